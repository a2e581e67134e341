//! How objects are joined: merging of slices and contested frontends (reference 1.5), listings, and
//! what an event touches.

#![expect(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "support/objects.rs"]
mod objects;
#[path = "support/world.rs"]
mod world;

use std::collections::BTreeSet;

use sluice_core::event::{Change, Event};
use sluice_core::index::Index;
use sluice_core::model::{
    Conditions, EndpointSlice, Node, ObjectName, Service, ServiceCidr, ServicePortName, SliceEndpoint,
    SlicePort,
};
use sluice_core::net::{Family, Protocol};
use sluice_core::plan::{Capture, PlanConfig, Role};

use objects::{endpoint, ip, ips, name, nets, port, service, slice};
use world::World;

use Protocol::{Tcp, Udp};

const HTTP: (&str, Protocol, u16) = ("http", Tcp, 8080);

fn apply_service(service: &Service) -> Event {
    Event::Service(Change::Apply(service.clone()))
}

fn apply_slice(slice: &EndpointSlice) -> Event {
    Event::Slice(Change::Apply(slice.clone()))
}

fn web(text: &str, cluster_ip: &str) -> Service {
    Service { ports: vec![port("http", Tcp, 80, 0)], ..service(text, cluster_ip) }
}

fn index_of(slices: &[&EndpointSlice]) -> Index {
    let mut index = Index::default();
    for slice in slices {
        index.apply(apply_slice(slice));
    }
    index
}

fn id(port: &str, protocol: Protocol, family: Family) -> ServicePortName {
    ServicePortName { service: name("web"), port: port.into(), protocol, family }
}

/// The endpoints of a port of `web`, as text.
fn endpoints(index: &Index, id: &ServicePortName) -> Vec<String> {
    index.endpoints(id).iter().map(|e| std::net::SocketAddr::new(e.address, e.port).to_string()).collect()
}

fn http(index: &Index) -> Vec<String> {
    endpoints(index, &id("http", Tcp, Family::V4))
}

fn with(conditions: Conditions, endpoint: SliceEndpoint) -> SliceEndpoint {
    SliceEndpoint { conditions, ..endpoint }
}

const READY: Conditions = Conditions { ready: true, serving: true, terminating: false };
const UNREADY: Conditions = Conditions { ready: false, serving: false, terminating: false };
const TERMINATING: Conditions = Conditions { ready: false, serving: true, terminating: true };
const READY_TERMINATING: Conditions = Conditions { ready: true, serving: true, terminating: true };

#[test]
fn slices_of_a_service_are_merged_and_sorted() {
    let index = index_of(&[
        &slice("b-4", "web", HTTP, vec![endpoint("10.0.0.3", ""), endpoint("10.0.0.1", "")]),
        &slice("a-4", "web", HTTP, vec![endpoint("10.0.0.2", "")]),
        &slice("c-4", "other", HTTP, vec![endpoint("10.0.0.9", "")]),
    ]);
    assert_eq!(http(&index), ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"]);
}

#[test]
fn every_endpoint_of_a_slice_has_every_port_of_it() {
    let mut both = slice("a-4", "web", HTTP, vec![endpoint("10.0.0.1", ""), endpoint("10.0.0.2", "")]);
    both.ports.push(SlicePort { name: "https".into(), protocol: Tcp, port: 8443 });
    let index = index_of(&[&both]);
    assert_eq!(http(&index), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    let https = endpoints(&index, &id("https", Tcp, Family::V4));
    assert_eq!(https, ["10.0.0.1:8443", "10.0.0.2:8443"]);
}

#[test]
fn ports_are_joined_by_name_and_protocol_and_family() {
    let index = index_of(&[
        &slice("a-4", "web", ("dns", Tcp, 1), vec![endpoint("10.0.0.1", "")]),
        &slice("b-4", "web", ("dns", Udp, 2), vec![endpoint("10.0.0.1", "")]),
        &slice("c-4", "web", ("", Tcp, 3), vec![endpoint("10.0.0.1", "")]),
        &slice("d-6", "web", ("dns", Tcp, 4), vec![endpoint("fd00::1", "")]),
    ]);
    assert_eq!(endpoints(&index, &id("dns", Tcp, Family::V4)), ["10.0.0.1:1"]);
    assert_eq!(endpoints(&index, &id("dns", Udp, Family::V4)), ["10.0.0.1:2"]);
    assert_eq!(endpoints(&index, &id("", Tcp, Family::V4)), ["10.0.0.1:3"]);
    assert_eq!(endpoints(&index, &id("dns", Tcp, Family::V6)), ["[fd00::1]:4"]);
    assert_eq!(endpoints(&index, &id("dns", Udp, Family::V6)), [""; 0]);
}

#[test]
fn a_named_port_may_have_another_number_in_each_slice() {
    let index = index_of(&[
        &slice("a-4", "web", ("http", Tcp, 80), vec![endpoint("10.0.0.1", ""), endpoint("10.0.0.2", "")]),
        &slice("b-4", "web", ("http", Tcp, 8080), vec![endpoint("10.0.0.1", "")]),
    ]);
    assert_eq!(http(&index), ["10.0.0.1:80", "10.0.0.1:8080", "10.0.0.2:80"]);
}

#[test]
fn of_duplicates_the_better_one_wins_whatever_the_order() {
    let cases = [
        (UNREADY, TERMINATING, UNREADY),
        (READY, TERMINATING, READY),
        (UNREADY, READY_TERMINATING, UNREADY),
        (READY, UNREADY, READY),
        (READY_TERMINATING, TERMINATING, READY_TERMINATING),
    ];
    for (one, other, winner) in cases {
        let of = |text: &str, conditions| {
            slice(text, "web", HTTP, vec![with(conditions, endpoint("10.0.0.1", "here"))])
        };
        for (first, second) in [(one, other), (other, one)] {
            let (a, b) = (of("a-4", first), of("b-4", second));
            for order in [[&a, &b], [&b, &a]] {
                let index = index_of(&order);
                let found = index.endpoints(&id("http", Tcp, Family::V4));
                let conditions: Vec<Conditions> = found.iter().map(|e| e.conditions).collect();
                assert_eq!(conditions, [winner], "a: {first:?}, b: {second:?}");
            }
        }
    }
}

#[test]
fn of_equal_duplicates_the_first_slice_by_name_wins_whatever_the_order() {
    let a = slice("a-4", "web", HTTP, vec![endpoint("10.0.0.1", "node-a")]);
    let b = slice("b-4", "web", HTTP, vec![endpoint("10.0.0.1", "node-b")]);
    for order in [[&a, &b], [&b, &a]] {
        let index = index_of(&order);
        let found = index.endpoints(&id("http", Tcp, Family::V4));
        assert_eq!(found.iter().map(|e| e.node).collect::<Vec<_>>(), [Some("node-a")]);
    }
}

#[test]
fn an_updated_slice_replaces_what_it_said_before() {
    let mut index = index_of(&[
        &slice("a-4", "web", HTTP, vec![endpoint("10.0.0.1", ""), endpoint("10.0.0.2", "")]),
        &slice("b-4", "web", HTTP, vec![endpoint("10.0.0.3", "")]),
    ]);
    index.apply(apply_slice(&slice("a-4", "web", HTTP, vec![endpoint("10.0.0.2", "")])));
    assert_eq!(http(&index), ["10.0.0.2:8080", "10.0.0.3:8080"]);
    index.apply(Event::Slice(Change::Delete(name("b-4"))));
    assert_eq!(http(&index), ["10.0.0.2:8080"]);
    assert_eq!(index.slice_count(), 1);
}

#[test]
fn a_slice_that_is_given_to_another_service_moves_at_once() {
    let own = slice("a-4", "web", HTTP, vec![endpoint("10.0.0.1", "")]);
    let moved = EndpointSlice { service: name("api"), ..own.clone() };
    let services = [web("web", "172.30.0.1"), web("api", "172.30.0.2")];
    let mut world = World::of(PlanConfig::default(), &services, &[own]);
    let changes = world.apply(apply_slice(&moved));
    let changed: Vec<&ObjectName> = changes.iter().map(|change| &change.name).collect();
    assert_eq!(changed, [&name("api"), &name("web")]);
    assert!(world.plan("web").ports[0].cluster.is_empty());
    assert_eq!(world.plan("api").ports[0].cluster.get(0).unwrap().address, ip("10.0.0.1"));
    assert_eq!(world.index.slices(&name("web")).count(), 0);
    assert_eq!(world.index.slices(&name("api")).count(), 1);
}

#[test]
fn slices_that_come_before_their_service_come_to_life_with_it() {
    let own = slice("a-4", "web", HTTP, vec![endpoint("10.0.0.1", "")]);
    let mut world = World::new(PlanConfig::default());
    assert_eq!(world.apply(apply_slice(&own)), []);
    world.apply(apply_service(&web("web", "172.30.0.1")));
    assert_eq!(world.plan("web").ports[0].cluster.get(0).unwrap().address, ip("10.0.0.1"));
    // They outlive it, too.
    world.apply(Event::Service(Change::Delete(name("web"))));
    world.apply(apply_service(&web("web", "172.30.0.1")));
    assert_eq!(world.plan("web").ports[0].cluster.get(0).unwrap().address, ip("10.0.0.1"));
}

#[test]
fn equal_names_in_different_namespaces_are_different_services() {
    let own = slice("a-4", "web", HTTP, vec![endpoint("10.0.0.1", "")]);
    let foreign = EndpointSlice {
        name: ObjectName::new("other", "a-4"),
        service: ObjectName::new("other", "web"),
        ..slice("a-4", "web", HTTP, vec![endpoint("10.0.0.2", "")])
    };
    assert_eq!(http(&index_of(&[&own, &foreign])), ["10.0.0.1:8080"]);
}

// What is dirty.

#[test]
fn an_event_touches_only_the_services_that_it_is_about() {
    let mut index = Index::default();
    let dirty = |names: &[&str]| names.iter().map(|text| name(text)).collect::<BTreeSet<_>>();
    index.apply(apply_service(&web("web", "172.30.0.1")));
    index.apply(apply_slice(&slice("a-4", "api", HTTP, vec![])));
    assert_eq!(index.take_dirty().services, dirty(&["web", "api"]));
    assert!(index.take_dirty() == Default::default());
    index.apply(apply_service(&web("web", "172.30.0.1")));
    index.apply(apply_slice(&slice("a-4", "api", HTTP, vec![])));
    index.apply(Event::Service(Change::Delete(name("unknown"))));
    index.apply(Event::Slice(Change::Delete(name("unknown"))));
    index.apply(Event::Service(Change::Keep(name("web"))));
    assert!(index.take_dirty() == Default::default(), "nothing changed");
    index.apply(Event::Slice(Change::Delete(name("a-4"))));
    assert_eq!(index.take_dirty().services, dirty(&["api"]));
}

#[test]
fn nodes_and_service_cidrs_touch_the_node_and_no_service() {
    let node = Node {
        name: ObjectName::cluster_scoped("here"),
        addresses: ips("192.168.0.2"),
        pod_cidrs: nets("10.0.0.0/24"),
        zone: None,
        eligible: true,
    };
    let cidr = |text: &str, cidrs: &str| {
        let name = ObjectName::cluster_scoped(text);
        Event::ServiceCidr(Change::Apply(ServiceCidr { name, cidrs: nets(cidrs) }))
    };
    let mut index = Index::default();
    index.apply(Event::Node(Change::Apply(node.clone())));
    let dirty = index.take_dirty();
    assert!(dirty.node && dirty.services.is_empty());
    index.apply(Event::Node(Change::Apply(node.clone())));
    assert!(index.take_dirty() == Default::default(), "the same node");
    assert_eq!(index.node("here"), Some(&node));
    index.apply(cidr("b", "172.30.0.0/16 fd00:172::/112"));
    index.apply(cidr("a", "172.31.0.0/16 172.30.0.0/16"));
    assert!(index.take_dirty().node);
    assert_eq!(index.service_networks(), nets("172.30.0.0/16 172.31.0.0/16 fd00:172::/112"));
    index.apply(Event::ServiceCidr(Change::Delete(ObjectName::cluster_scoped("a"))));
    assert!(index.take_dirty().node);
    assert_eq!(index.service_networks(), nets("172.30.0.0/16 fd00:172::/112"));
}

// Contested frontends.

const CONTESTED: &str = "192.0.2.1";

fn contender(text: &str, cluster_ip: &str, created: Option<i64>) -> Service {
    Service { created, external_ips: ips(CONTESTED), ..web(text, cluster_ip) }
}

fn owner(world: &World) -> Option<&'static str> {
    let capture = Capture::Address(ip(CONTESTED), Tcp, 80);
    let known = ["a", "b", "c"].into_iter().filter(|text| world.planner.plan(&name(text)).is_some());
    let owners: Vec<&str> = known.filter(|text| world.frontend(text, capture).is_some()).collect();
    assert!(owners.len() <= 1, "{owners:?}");
    owners.first().copied()
}

#[test]
fn the_oldest_service_owns_a_contested_frontend_whatever_the_order() {
    let cases = [
        ("older beats younger", Some(2), Some(1), "b"),
        ("the name decides between equals", Some(1), Some(1), "a"),
        ("a known age beats an unknown one", None, Some(5), "b"),
        ("the name decides between unknown ages", None, None, "a"),
    ];
    for (case, age_a, age_b, expected) in cases {
        let a = contender("a", "172.30.0.1", age_a);
        let b = contender("b", "172.30.0.2", age_b);
        for order in [[&a, &b], [&b, &a]] {
            let mut world = World::new(PlanConfig::default());
            order.into_iter().for_each(|service| {
                world.apply(apply_service(service));
            });
            assert_eq!(owner(&world), Some(expected), "{case}");
            // What is not contested stays with each.
            for (text, cluster_ip) in [("a", "172.30.0.1"), ("b", "172.30.0.2")] {
                let capture = Capture::Address(ip(cluster_ip), Tcp, 80);
                assert_eq!(world.frontend(text, capture).expect("ClusterIP").role, Role::ClusterIp);
            }
            let at_once = World::of(PlanConfig::default(), &[a.clone(), b.clone()], &[]);
            assert_eq!(owner(&at_once), Some(expected), "{case}, at once");
        }
    }
}

#[test]
fn the_next_oldest_service_gets_a_contested_frontend_of_a_deleted_owner() {
    let services = [
        contender("a", "172.30.0.1", Some(1)),
        contender("b", "172.30.0.2", Some(2)),
        contender("c", "172.30.0.3", Some(3)),
    ];
    let mut world = World::of(PlanConfig::default(), &services, &[]);
    assert_eq!(owner(&world), Some("a"));
    let changes = world.apply(Event::Service(Change::Delete(name("a"))));
    assert_eq!(owner(&world), Some("b"));
    let changed: Vec<&ObjectName> = changes.iter().map(|change| &change.name).collect();
    assert_eq!(changed, [&name("a"), &name("b")], "c has lost nothing");
    // The owner may also just not want it any more.
    world.apply(apply_service(&web("b", "172.30.0.2")));
    assert_eq!(owner(&world), Some("c"));
    world.apply(Event::Service(Change::Delete(name("c"))));
    assert_eq!(owner(&world), None);
}

#[test]
fn an_owner_that_comes_back_takes_its_frontend_back() {
    let (a, b) = (contender("a", "172.30.0.1", Some(1)), contender("b", "172.30.0.2", Some(2)));
    let mut world = World::of(PlanConfig::default(), &[a.clone(), b], &[]);
    world.apply(Event::Service(Change::Delete(name("a"))));
    assert_eq!(owner(&world), Some("b"));
    world.apply(apply_service(&a));
    assert_eq!(owner(&world), Some("a"));
    // Created anew, it is the younger one.
    world.apply(apply_service(&Service { created: Some(9), ..a }));
    assert_eq!(owner(&world), Some("b"));
}

#[test]
fn deleting_a_service_that_lost_a_frontend_does_not_change_its_owner() {
    let (a, b) = (contender("a", "172.30.0.1", Some(1)), contender("b", "172.30.0.2", Some(2)));
    let mut world = World::of(PlanConfig::default(), &[a, b], &[]);
    let changes = world.apply(Event::Service(Change::Delete(name("b"))));
    assert_eq!(changes.iter().map(|change| &change.name).collect::<Vec<_>>(), [&name("b")]);
    assert_eq!(owner(&world), Some("a"));
}

#[test]
fn node_ports_are_contested_by_family_and_protocol() {
    let of = |text: &str, cluster_ips: &str, protocol| Service {
        ports: vec![port("p", protocol, 80, 30080)],
        ..service(text, cluster_ips)
    };
    let services = [
        of("a", "172.30.0.1", Tcp),
        of("b", "fd00:172::2", Tcp),
        of("c", "172.30.0.3", Udp),
        of("d", "172.30.0.4 fd00:172::4", Tcp),
    ];
    let world = World::of(PlanConfig::default(), &services, &[]);
    let has =
        |text, family, protocol| world.frontend(text, Capture::NodePort(family, protocol, 30080)).is_some();
    assert!(has("a", Family::V4, Tcp));
    assert!(has("b", Family::V6, Tcp));
    assert!(has("c", Family::V4, Udp));
    assert!(!has("d", Family::V4, Tcp) && !has("d", Family::V6, Tcp));
}

// Listings.

#[test]
fn a_listing_withdraws_what_it_did_not_name_and_only_at_its_end() {
    let services = ["applied", "kept", "gone", "deleted"].map(|text| web(text, "172.30.0.1"));
    let mut world = World::of(PlanConfig::default(), &services, &[]);
    let known = |world: &World| {
        let mut names: Vec<String> = world.planner.plans().map(|p| p.name.name().to_owned()).collect();
        names.sort();
        names.join(" ")
    };
    world.apply(Event::Service(Change::ListBegin));
    world.apply(apply_service(&services[0]));
    world.apply(apply_service(&web("new", "172.30.0.9")));
    world.apply(Event::Service(Change::Keep(name("kept"))));
    world.apply(Event::Service(Change::Keep(name("never-known"))));
    world.apply(apply_service(&services[3]));
    world.apply(Event::Service(Change::Delete(name("deleted"))));
    assert_eq!(known(&world), "applied gone kept new", "nothing is withdrawn before the end");
    let changes = world.apply(Event::Service(Change::ListEnd));
    assert_eq!(changes.iter().map(|change| &change.name).collect::<Vec<_>>(), [&name("gone")]);
    assert_eq!(known(&world), "applied kept new");
    // Later events are no part of the listing.
    world.apply(apply_service(&web("late", "172.30.0.10")));
    assert_eq!(known(&world), "applied kept late new");
}

#[test]
fn a_listing_that_begins_again_forgets_what_it_had_named() {
    let services = ["a", "b"].map(|text| web(text, "172.30.0.1"));
    let mut world = World::of(PlanConfig::default(), &services, &[]);
    world.apply(Event::Service(Change::ListBegin));
    world.apply(apply_service(&services[0]));
    world.apply(Event::Service(Change::ListBegin));
    world.apply(apply_service(&services[1]));
    world.apply(Event::Service(Change::ListEnd));
    assert!(world.index.service(&name("a")).is_none());
    assert!(world.index.service(&name("b")).is_some());
}

#[test]
fn a_listing_of_slices_withdraws_endpoints_only_at_its_end() {
    let own = |text: &str, address: &str| slice(text, "web", HTTP, vec![endpoint(address, "")]);
    let slices = [own("a-4", "10.0.0.1"), own("b-4", "10.0.0.2"), own("c-4", "10.0.0.3")];
    let mut index = index_of(&slices.iter().collect::<Vec<_>>());
    index.take_dirty();
    index.apply(Event::Slice(Change::ListBegin));
    index.apply(apply_slice(&own("a-4", "10.0.0.4")));
    index.apply(Event::Slice(Change::Keep(name("b-4"))));
    assert_eq!(http(&index), ["10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.4:8080"]);
    index.apply(Event::Slice(Change::ListEnd));
    assert_eq!(http(&index), ["10.0.0.2:8080", "10.0.0.4:8080"]);
    assert_eq!(index.take_dirty().services, BTreeSet::from([name("web")]));
}

#[test]
fn a_listing_of_one_kind_leaves_the_others_alone() {
    let own = slice("a-4", "web", HTTP, vec![endpoint("10.0.0.1", "")]);
    let mut world = World::of(PlanConfig::default(), &[web("web", "172.30.0.1")], &[own]);
    for events in [
        [Event::Node(Change::ListBegin), Event::Node(Change::ListEnd)],
        [Event::ServiceCidr(Change::ListBegin), Event::ServiceCidr(Change::ListEnd)],
    ] {
        for event in events {
            assert_eq!(world.apply(event), []);
        }
    }
    assert_eq!(world.plan("web").ports[0].cluster.len(), 1);
}

#[test]
fn the_index_is_complete_when_services_and_slices_are_listed() {
    let mut index = Index::default();
    index.apply(Event::Service(Change::ListBegin));
    index.apply(Event::Slice(Change::ListBegin));
    index.apply(Event::Service(Change::ListEnd));
    assert!(!index.is_complete());
    index.apply(Event::Slice(Change::ListEnd));
    assert!(index.is_complete() && !index.is_fully_listed());
    index.apply(Event::Node(Change::ListEnd));
    assert!(!index.is_fully_listed());
    index.apply(Event::ServiceCidr(Change::ListEnd));
    assert!(index.is_fully_listed());
    // A new listing does not make it incomplete again.
    index.apply(Event::Service(Change::ListBegin));
    assert!(index.is_fully_listed());
}
