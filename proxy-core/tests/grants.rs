//! Which addresses Services get besides their ClusterIPs, and what of others is left out and named.

#![expect(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "grants/budget.rs"]
mod budget;
#[path = "support/objects.rs"]
mod objects;
#[path = "support/world.rs"]
mod world;

use sluice_core::event::{Change, Event};
use sluice_core::model::Service;
use sluice_core::net::Protocol::{Tcp, Udp};
use sluice_core::plan::{Capture, Grants, PlanConfig, Refusal, Role};

use objects::{endpoint, ip, ips, name, nets, port, service, slice};
use world::World;

/// What a Service is refused, with the reason.
fn refused(world: &World, text: &str) -> Vec<(Capture, Role, Refusal)> {
    world.plan(text).refused.iter().map(|refused| (refused.capture, refused.role, refused.why)).collect()
}

/// A Service of one port.
fn web(external_ips: &str, load_balancer_ips: &str) -> Service {
    Service {
        ports: vec![port("http", Tcp, 80, 0)],
        external_ips: ips(external_ips),
        load_balancer_ips: ips(load_balancer_ips),
        ..service("web", "172.30.0.1")
    }
}

fn dns(address: &str) -> Capture {
    Capture::Address(ip(address), Udp, 53)
}

#[test]
fn a_cluster_ip_wins_over_every_other_role_of_older_services() {
    let of_tenant = Service {
        created: Some(1),
        ports: vec![port("dns", Udp, 53, 0)],
        external_ips: ips("172.30.0.10"),
        load_balancer_ips: ips("172.30.0.10"),
        ..service("old", "172.30.0.1")
    };
    let young =
        Service { created: Some(9), ports: vec![port("dns", Udp, 53, 0)], ..service("dns", "172.30.0.10") };
    for order in [[&of_tenant, &young], [&young, &of_tenant]] {
        let mut world = World::new(PlanConfig::default());
        for service in order {
            world.apply(Event::Service(Change::Apply(service.clone())));
        }
        let frontend = world.frontend("dns", dns("172.30.0.10")).expect("the ClusterIP");
        assert_eq!(frontend.role, Role::ClusterIp);
        assert!(world.frontend("old", dns("172.30.0.10")).is_none());
        assert_eq!(refused(&world, "old"), [(dns("172.30.0.10"), Role::ExternalIp, Refusal::Taken)]);
        assert_eq!(refused(&world, "dns"), []);
        // Nobody else wants it any more.
        world.apply(Event::Service(Change::Delete(name("dns"))));
        assert!(world.frontend("old", dns("172.30.0.10")).is_some());
        assert_eq!(refused(&world, "old"), []);
    }
}

#[test]
fn only_cluster_ips_are_served_in_a_service_network() {
    let web = web("172.30.0.1 172.30.0.77 192.0.2.1", "172.30.0.88");
    let grants = Grants { service_networks: nets("172.30.0.0/16"), ..Grants::default() };
    let world = World::of(PlanConfig { grants, ..PlanConfig::default() }, &[web], &[]);
    let at = |address| Capture::Address(ip(address), Tcp, 80);
    for address in ["172.30.0.1", "192.0.2.1"] {
        assert!(world.frontend("web", at(address)).is_some(), "{address}");
    }
    let expected = [
        (at("172.30.0.77"), Role::ExternalIp, Refusal::ServiceNetwork),
        (at("172.30.0.88"), Role::LoadBalancer, Refusal::ServiceNetwork),
    ];
    assert_eq!(refused(&world, "web"), expected);
    assert!(expected.iter().all(|(capture, ..)| world.frontend("web", *capture).is_none()));
}

#[test]
fn no_service_gets_the_address_and_port_of_an_api_server() {
    let web = Service {
        ports: vec![port("http", Tcp, 80, 0), port("https", Tcp, 6443, 0), port("quic", Udp, 6443, 0)],
        external_ips: ips("192.0.2.1"),
        load_balancer_ips: ips("2001:db8::1"),
        ..service("web", "172.30.0.1 fd00:172::1")
    };
    let api_servers = [(ip("192.0.2.1"), 6443), (ip("2001:db8::1"), 6443)].into();
    let grants = Grants { api_servers, ..Grants::default() };
    let slices = [slice("web-1", "web", ("https", Tcp, 8443), vec![endpoint("10.0.0.1", "here")])];
    let world = World::of(PlanConfig { grants, ..PlanConfig::default() }, &[web], &slices);
    let https = |address| Capture::Address(ip(address), Tcp, 6443);
    let expected = [
        (https("192.0.2.1"), Role::ExternalIp, Refusal::ApiServer),
        (https("2001:db8::1"), Role::LoadBalancer, Refusal::ApiServer),
    ];
    assert_eq!(refused(&world, "web"), expected);
    assert!(world.frontend("web", https("192.0.2.1")).is_none());
    // Its other ports are no API server's.
    assert!(world.frontend("web", Capture::Address(ip("192.0.2.1"), Tcp, 80)).is_some());
    assert!(world.frontend("web", Capture::Address(ip("192.0.2.1"), Udp, 6443)).is_some());
}

#[test]
fn only_networks_that_are_permitted_are_given() {
    let web = web("192.0.2.1 198.51.100.1", "203.0.113.1");
    let grants = Grants { networks: Some(nets("192.0.2.0/24 203.0.113.0/24")), ..Grants::default() };
    let mut world = World::of(PlanConfig { grants, ..PlanConfig::default() }, &[web], &[]);
    let at = |address| Capture::Address(ip(address), Tcp, 80);
    assert_eq!(refused(&world, "web"), [(at("198.51.100.1"), Role::ExternalIp, Refusal::NotPermitted)]);
    assert!(world.frontend("web", at("203.0.113.1")).is_some());
    // An empty list permits none; ClusterIPs are not concerned.
    let grants = Grants { networks: Some(Vec::new()), ..Grants::default() };
    let changes = world.planner.reconfigure(PlanConfig { grants, ..PlanConfig::default() }, &world.index);
    assert_eq!(changes.len(), 1);
    assert_eq!(refused(&world, "web").len(), 3);
    assert!(world.frontend("web", at("172.30.0.1")).is_some());
}
