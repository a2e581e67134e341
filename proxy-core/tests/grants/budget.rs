//! How large one Service may be, and that the others do not pay for it.

use std::net::IpAddr;

use sluice_core::event::{Change, Event};
use sluice_core::model::Service;
use sluice_core::net::Protocol::Tcp;
use sluice_core::plan::{Budget, Capture, PlanConfig, Role, Size};

use super::objects::{endpoint, ip, name, port, service, slice};
use super::world::World;

fn config(frontends: usize, elements: usize) -> PlanConfig {
    PlanConfig { budget: Budget { frontends, elements }, ..PlanConfig::default() }
}

/// A Service with so many ports and external IPs.
fn web(ports: u16, external_ips: u32) -> Service {
    Service {
        ports: (1..=ports).map(|number| port(&format!("p{number}"), Tcp, number, 0)).collect(),
        external_ips: (0..external_ips)
            .map(|number| IpAddr::from((0xc000_0200 + number).to_be_bytes()))
            .collect(),
        ..service("web", "172.30.0.1")
    }
}

fn apply(service: &Service) -> Event {
    Event::Service(Change::Apply(service.clone()))
}

fn at(address: &str, port: u16) -> Capture {
    Capture::Address(ip(address), Tcp, port)
}

#[test]
fn a_new_service_over_the_budget_gets_nothing_and_an_old_one_keeps_its_endpoints() {
    let mut world = World::new(config(12, 1000));
    // 3 ports on 5 addresses.
    world.apply(apply(&web(3, 4)));
    let plan = world.plan("web");
    assert_eq!(plan.oversize, Some(Size { frontends: 15, elements: 15 }));
    assert!(plan.ports.is_empty() && plan.cluster_ips.is_empty());
    // It has no claims either: another Service gets what it would have.
    let heir = Service {
        external_ips: vec![ip("192.0.2.0")],
        ports: vec![port("p1", Tcp, 1, 0)],
        ..service("young", "172.30.0.2")
    };
    world.apply(apply(&heir));
    assert!(world.frontend("young", at("192.0.2.0", 1)).is_some());
    world.apply(Event::Service(Change::Delete(name("young"))));
    // Small enough.
    world.apply(apply(&web(3, 3)));
    assert_eq!(world.plan("web").oversize, None);
    assert!(world.frontend("web", at("192.0.2.2", 3)).is_some());
    // It outgrows the budget, with another set of ports.
    let changes = world.apply(apply(&web(4, 3)));
    assert_eq!(changes.len(), 1);
    assert_eq!(world.plan("web").oversize, Some(Size { frontends: 16, elements: 16 }));
    assert!(world.frontend("web", at("192.0.2.2", 3)).is_some());
    assert!(world.frontend("web", at("192.0.2.2", 4)).is_none());
    world.apply(apply(&heir));
    assert!(world.frontend("young", at("192.0.2.0", 1)).is_none(), "it still has its claims");
    // And shrinks again.
    world.apply(apply(&web(1, 3)));
    assert_eq!(world.plan("web").oversize, None);
    assert!(world.frontend("web", at("192.0.2.2", 3)).is_none());
    assert_eq!(world.frontend("web", at("172.30.0.1", 1)).expect("the ClusterIP").role, Role::ClusterIp);
    let changes = world.apply(Event::Service(Change::Delete(name("web"))));
    assert_eq!(changes.len(), 2, "the heir gets it: {changes:?}");
}

#[test]
fn endpoints_count_for_each_port_that_the_service_has() {
    let mut world = World::new(config(1000, 20));
    world.apply(apply(&web(2, 0)));
    let endpoints =
        |count: u8| (1..=count).map(|number| endpoint(&format!("10.0.0.{number}"), "here")).collect();
    let slice =
        |count| Event::Slice(Change::Apply(slice("web-1", "web", ("p1", Tcp, 8080), endpoints(count))));
    world.apply(slice(18));
    assert_eq!((world.plan("web").oversize, world.plan("web").ports[0].cluster.len()), (None, 18));
    world.apply(slice(19));
    let plan = world.plan("web");
    assert_eq!(plan.oversize, Some(Size { frontends: 2, elements: 21 }));
    assert_eq!(plan.ports[0].cluster.len(), 18);
    world.apply(slice(3));
    assert_eq!((world.plan("web").oversize, world.plan("web").ports[0].cluster.len()), (None, 3));
}

#[test]
fn a_deleted_service_leaves_no_claims_though_it_was_too_large() {
    let mut world = World::new(config(12, 1000));
    world.apply(apply(&web(3, 3)));
    world.apply(apply(&web(300, 3)));
    world.apply(Event::Service(Change::Delete(name("web"))));
    let heir = Service { ports: vec![port("p1", Tcp, 1, 0)], ..service("young", "172.30.0.1") };
    world.apply(apply(&heir));
    assert!(world.frontend("young", at("172.30.0.1", 1)).is_some());
}
