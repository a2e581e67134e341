//! The universe of property tests: few names and addresses, so that everything collides.

use std::hash::{DefaultHasher, Hash, Hasher};

use proptest::prelude::*;
use sluice_core::event::{Change, Event};
use sluice_core::model::{
    Conditions, EndpointSlice, Hints, Service, ServicePort, ServiceType, SliceEndpoint, SlicePort,
    TrafficPolicy,
};
use sluice_core::net::Protocol;
use sluice_core::plan::{Budget, Grants, PlanConfig};

use crate::objects::{endpoint, ip, ips, name, nets, port, service, slice};

use Protocol::{Sctp, Tcp, Udp};

/// Names of Services.
pub(crate) const SERVICES: [&str; 4] = ["s1", "s2", "s3", "s4"];
/// Names of slices; the last character tells the family.
pub(crate) const SLICES: [&str; 6] = ["a4", "b4", "c4", "d4", "a6", "b6"];

/// Some of the texts, separated by spaces.
pub(crate) fn subset(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
    proptest::sample::subsequence(texts, 0..=texts.len()).prop_map(|chosen| chosen.join(" "))
}

/// A traffic policy.
fn policy() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)]
}

/// Ports of a Service.
fn service_ports() -> impl Strategy<Value = Vec<ServicePort>> {
    // Manifests are not validated by an API server: names and numbers may repeat.
    let pool = vec![
        port("", Tcp, 80, 0),
        port("http", Tcp, 80, 30080),
        port("http", Tcp, 8080, 30081),
        port("dns", Udp, 53, 30080),
        port("dns", Tcp, 53, 0),
        port("sctp", Sctp, 80, 30080),
        port("alt", Tcp, 80, 30081),
    ];
    proptest::collection::vec(proptest::sample::select(pool), 0..4)
}

/// A Service.
pub(crate) fn any_service() -> impl Strategy<Value = Service> {
    let addresses = (
        subset(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]),
        subset(&["192.0.2.1", "203.0.113.9", "2001:db8::9"]),
        subset(&["192.0.2.0/24", "192.0.2.128/25", "10.9.0.0/16", "2001:db8:2::/48"]),
    );
    let policies = (policy(), policy());
    let kinds = proptest::sample::select(vec![
        ServiceType::ClusterIp,
        ServiceType::NodePort,
        ServiceType::LoadBalancer,
    ]);
    let rest = (
        proptest::option::of(0i64..3),
        proptest::option::weighted(0.3, proptest::sample::select(vec![60, 10800])),
        proptest::sample::select(vec![0u16, 32000]),
        prop_oneof![6 => Just("own4"), 6 => Just("own"), 1 => Just("own6"), 1 => Just("shared")],
    );
    (0..SERVICES.len(), service_ports(), addresses, policies, kinds, rest).prop_map(
        |(at, ports, (external, balancer, ranges), (internal, external_policy), service_type, rest)| {
            let (created, affinity, health_check_node_port, cluster) = rest;
            let cluster_ips = match cluster {
                "own4" => format!("172.30.0.{at}"),
                "own6" => format!("fd00:172::{at}"),
                "own" => format!("172.30.0.{at} fd00:172::{at}"),
                _ => "172.30.0.99".into(),
            };
            Service {
                created,
                service_type,
                ports,
                external_ips: ips(&external),
                load_balancer_ips: ips(&balancer),
                source_ranges: nets(&ranges),
                affinity,
                internal_policy: internal,
                external_policy,
                health_check_node_port,
                ..service(SERVICES[at], &cluster_ips)
            }
        },
    )
}

/// What a slice says of an endpoint: host, node, conditions and hints.
fn any_endpoint() -> impl Strategy<Value = (u8, &'static str, Conditions, Option<Box<Hints>>)> {
    let conditions = (prop::bool::weighted(0.7), any::<bool>(), prop::bool::weighted(0.3))
        .prop_map(|(ready, serving, terminating)| Conditions { ready, serving, terminating });
    let list = |names: &'static [&'static str]| {
        proptest::sample::subsequence(names, 0..=names.len())
            .prop_map(|chosen| chosen.into_iter().map(Into::into).collect())
    };
    let hints = (list(&["za", "zb"]), list(&["here", "there"]))
        .prop_map(|(zones, nodes)| Box::new(Hints { zones, nodes }));
    let node = proptest::sample::select(vec!["", "here", "there"]);
    (1u8..7, node, conditions, proptest::option::of(hints))
}

/// A slice.
pub(crate) fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    let pool = vec![
        ("", Tcp, 8080),
        ("http", Tcp, 8080),
        ("http", Tcp, 8081),
        ("dns", Udp, 53),
        ("dns", Tcp, 53),
        ("sctp", Sctp, 80),
    ];
    let ports = proptest::collection::vec(proptest::sample::select(pool), 1..4);
    let services = [&SERVICES[..], &["ghost"]].concat();
    let owner = proptest::sample::select(services);
    (0..SLICES.len(), owner, ports, proptest::collection::vec(any_endpoint(), 0..6)).prop_map(
        |(at, owner, ports, endpoints)| {
            let prefix = if SLICES[at].ends_with('4') { "10.0.0." } else { "fd00:10::" };
            let endpoints = endpoints.into_iter().map(|(host, node, conditions, hints)| SliceEndpoint {
                conditions,
                hints,
                ..endpoint(&format!("{prefix}{host}"), node)
            });
            let mut slice = slice(SLICES[at], owner, ports[0], endpoints.collect());
            let more = ports[1..].iter();
            slice.ports.extend(more.map(|(port, protocol, number)| SlicePort {
                name: (*port).into(),
                protocol: *protocol,
                port: *number,
            }));
            slice
        },
    )
}

/// An event.
pub(crate) fn any_event() -> impl Strategy<Value = Event> {
    let service_name = || proptest::sample::select(&SERVICES[..]).prop_map(name);
    let slice_name = || proptest::sample::select(&SLICES[..]).prop_map(name);
    prop_oneof![
        8 => any_service().prop_map(|s| Event::Service(Change::Apply(s))),
        2 => service_name().prop_map(|n| Event::Service(Change::Delete(n))),
        1 => service_name().prop_map(|n| Event::Service(Change::Keep(n))),
        12 => any_slice().prop_map(|s| Event::Slice(Change::Apply(s))),
        2 => slice_name().prop_map(|n| Event::Slice(Change::Delete(n))),
        1 => slice_name().prop_map(|n| Event::Slice(Change::Keep(n))),
    ]
}

/// The own node.
pub(crate) fn any_config() -> impl Strategy<Value = PlanConfig> {
    (proptest::option::of(proptest::sample::select(vec!["za", "zb"])), any::<bool>(), any::<bool>()).prop_map(
        |(zone, in_range, masquerade_all)| PlanConfig {
            node_name: "here".into(),
            zone: zone.map(Into::into),
            node_addresses: if in_range { ips("192.0.2.200 2001:db8:2::1") } else { ips("192.168.0.2") },
            detects_pods: DETECTS,
            masquerade_all,
            ignores_external_ips: false,
            budget: Budget::default(),
            grants: Grants {
                networks: (!in_range).then(|| nets("192.0.2.1/32 203.0.113.0/24 2001:db8::/32")),
                service_networks: if masquerade_all { nets("172.30.0.0/16") } else { Vec::new() },
                api_servers: [(ip("192.0.2.1"), 80)].into(),
            },
        },
    )
}

/// The detectors cannot change while a ledger lives: one family has one, the other has none.
pub(crate) const DETECTS: [bool; 2] = [true, false];

/// A number that depends on both, nothing else.
pub(crate) fn chance(seed: u64, what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, what).hash(&mut hasher);
    hasher.finish()
}

/// So many cases, without files of failed ones.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}
