//! What each frontend does with each kind of client: tables 2.2 and 2.3 of the reference, source
//! ranges (2.5), which frontends a Service has (1.2, 1.3, 1.8) and health-check counts (5.3).

#![expect(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "policy/health_checks.rs"]
mod health_checks;
#[path = "support/objects.rs"]
mod objects;
#[path = "policy/source_ranges.rs"]
mod source_ranges;
#[path = "support/world.rs"]
mod world;

use sluice_core::event::{Change, Event};
use sluice_core::list::List;
use sluice_core::model::{Conditions, EndpointSlice, Service, ServiceType, SliceEndpoint, TrafficPolicy};
use sluice_core::net::{Family, Protocol};
use sluice_core::nft::GroupId;
use sluice_core::plan::{
    Action, Actions, Capture, Group, HealthCheck, PlanConfig, PortPlan, Role, ServicePlan, Target,
};

use objects::{endpoint, ip, ips, name, port, service, slice};
use world::World;

use Action::{Drop, Reject};
use Protocol::{Sctp, Tcp, Udp};
use TrafficPolicy::{Cluster, Local};

/// To the Cluster list, with the client's address.
const CLUSTER: Action = Action::Forward { group: Group::Cluster, masquerade: false };
/// To the Cluster list, masqueraded.
const CLUSTER_SNAT: Action = Action::Forward { group: Group::Cluster, masquerade: true };
/// To the Local list, with the client's address.
const LOCAL: Action = Action::Forward { group: Group::Local, masquerade: false };
/// To the Local list, masqueraded.
const LOCAL_SNAT: Action = Action::Forward { group: Group::Local, masquerade: true };

const EXTERNAL: [Role; 3] = [Role::NodePort, Role::LoadBalancer, Role::ExternalIp];

fn config(detects: bool, masquerade_all: bool) -> PlanConfig {
    PlanConfig {
        node_name: "here".into(),
        detects_pods: [detects, detects],
        masquerade_all,
        node_addresses: ips("192.168.0.2 fd00:192::2"),
        ..PlanConfig::default()
    }
}

/// A dual-stack load balancer with every kind of frontend.
fn web(internal: TrafficPolicy, external: TrafficPolicy) -> Service {
    Service {
        service_type: ServiceType::LoadBalancer,
        ports: vec![port("http", Tcp, 80, 30080)],
        external_ips: ips("192.0.2.10 2001:db8::10"),
        load_balancer_ips: ips("203.0.113.10 2001:db8:1::10"),
        internal_policy: internal,
        external_policy: external,
        ..service("web", "172.30.0.1 fd00:172::1")
    }
}

fn capture(role: Role, family: Family) -> Capture {
    let text = match (role, family) {
        (Role::NodePort, _) => return Capture::NodePort(family, Tcp, 30080),
        (Role::ClusterIp, Family::V4) => "172.30.0.1",
        (Role::ClusterIp, Family::V6) => "fd00:172::1",
        (Role::ExternalIp, Family::V4) => "192.0.2.10",
        (Role::ExternalIp, Family::V6) => "2001:db8::10",
        (Role::LoadBalancer, Family::V4) => "203.0.113.10",
        (Role::LoadBalancer, Family::V6) => "2001:db8:1::10",
    };
    Capture::Address(ip(text), Tcp, 80)
}

fn at(address: &str, port: u16) -> Capture {
    Capture::Address(ip(address), Tcp, port)
}

fn state(ready: bool, serving: bool, terminating: bool, endpoint: SliceEndpoint) -> SliceEndpoint {
    SliceEndpoint { conditions: Conditions { ready, serving, terminating }, ..endpoint }
}

fn serving_terminating(address: &str, node: &str) -> SliceEndpoint {
    state(false, true, true, endpoint(address, node))
}

fn unready(address: &str, node: &str) -> SliceEndpoint {
    state(false, false, false, endpoint(address, node))
}

/// The last part of an address, a node, and how to make the endpoint.
type Short<'a> = (&'a str, &'a str, fn(&str, &str) -> SliceEndpoint);

/// One slice for each family with the same endpoints.
fn slices(endpoints: &[Short<'_>]) -> Vec<EndpointSlice> {
    let v4 = endpoints.iter().map(|(host, node, make)| make(&format!("10.0.0.{host}"), node)).collect();
    let v6 = endpoints.iter().map(|(host, node, make)| make(&format!("fd00:10::{host}"), node)).collect();
    vec![slice("web-4", "web", ("http", Tcp, 8080), v4), slice("web-6", "web", ("http", Tcp, 8080), v6)]
}

fn here_and_there() -> Vec<EndpointSlice> {
    slices(&[("1", "here", endpoint), ("2", "there", endpoint)])
}

fn only_there() -> Vec<EndpointSlice> {
    slices(&[("2", "there", endpoint)])
}

/// Pods, host, others.
fn by_client(pod: Action, host: Action, other: Action) -> Actions {
    Actions { pod, host, other }
}

/// What a frontend does: with a detector, with a detector and masqueradeAll, without a detector,
/// without a detector and with masqueradeAll. The same in both families.
fn matrix(service: &Service, slices: &[EndpointSlice], role: Role) -> [Actions; 4] {
    [(true, false), (true, true), (false, false), (false, true)].map(|(detects, masquerade_all)| {
        let world = World::of(config(detects, masquerade_all), std::slice::from_ref(service), slices);
        let [v4, v6] = Family::BOTH.map(|family| {
            let found = world.frontend("web", capture(role, family));
            let found = found.unwrap_or_else(|| panic!("no frontend {role:?} {family}"));
            assert_eq!(found.role, role);
            found.actions
        });
        assert_eq!(v4, v6, "{role:?}: both families");
        v4
    })
}

fn port_plan(plan: &ServicePlan, port: &str, protocol: Protocol, family: Family) -> PortPlan {
    let found =
        plan.ports.iter().find(|p| &*p.id.port == port && p.id.protocol == protocol && p.id.family == family);
    found.expect("a service port").clone()
}

fn target(address: &str, port: u16, local: bool) -> Target {
    Target { address: ip(address), port, local }
}

// Table 2.2.

#[test]
fn a_closed_gate_takes_external_ips_away_and_nothing_else() {
    let config = PlanConfig { ignores_external_ips: true, ..config(true, false) };
    let world = World::of(config, &[web(Cluster, Cluster)], &here_and_there());
    for family in Family::BOTH {
        assert!(world.frontend("web", capture(Role::ExternalIp, family)).is_none());
        for role in [Role::ClusterIp, Role::LoadBalancer, Role::NodePort] {
            assert!(world.frontend("web", capture(role, family)).is_some(), "{role:?}");
        }
    }
}

#[test]
fn the_groups_hold_the_cluster_and_the_local_list() {
    let world = World::of(config(true, false), &[web(Local, Local)], &here_and_there());
    let plan = world.plan("web");
    let v4 = port_plan(&plan, "http", Tcp, Family::V4);
    assert_eq!(v4.cluster, [target("10.0.0.1", 8080, true), target("10.0.0.2", 8080, false)]);
    assert_eq!(v4.local, [target("10.0.0.1", 8080, true)]);
    let v6 = port_plan(&plan, "http", Tcp, Family::V6);
    assert_eq!(v6.cluster, [target("fd00:10::1", 8080, true), target("fd00:10::2", 8080, false)]);
    assert_eq!(v6.local, [target("fd00:10::1", 8080, true)]);
}

#[test]
fn cluster_ip_with_itp_cluster_masquerades_who_is_known_to_be_no_pod() {
    for external in [Cluster, Local] {
        assert_eq!(
            matrix(&web(Cluster, external), &here_and_there(), Role::ClusterIp),
            [
                by_client(CLUSTER, CLUSTER_SNAT, CLUSTER_SNAT),
                by_client(CLUSTER_SNAT, CLUSTER_SNAT, CLUSTER_SNAT),
                by_client(CLUSTER, CLUSTER, CLUSTER),
                by_client(CLUSTER_SNAT, CLUSTER_SNAT, CLUSTER_SNAT),
            ],
            "eTP={external:?} must not matter"
        );
    }
}

#[test]
fn cluster_ip_with_itp_local_stays_here_with_the_same_masquerading() {
    for external in [Cluster, Local] {
        assert_eq!(
            matrix(&web(Local, external), &here_and_there(), Role::ClusterIp),
            [
                by_client(LOCAL, LOCAL_SNAT, LOCAL_SNAT),
                by_client(LOCAL_SNAT, LOCAL_SNAT, LOCAL_SNAT),
                by_client(LOCAL, LOCAL, LOCAL),
                by_client(LOCAL_SNAT, LOCAL_SNAT, LOCAL_SNAT),
            ],
            "eTP={external:?} must not matter"
        );
    }
}

#[test]
fn external_traffic_with_etp_cluster_is_always_masqueraded() {
    for role in EXTERNAL {
        for internal in [Cluster, Local] {
            assert_eq!(
                matrix(&web(internal, Cluster), &here_and_there(), role),
                [Actions::all(CLUSTER_SNAT); 4],
                "{role:?}, iTP={internal:?} must not matter"
            );
        }
    }
}

#[test]
fn external_traffic_with_etp_local_short_circuits_pods_and_host_and_keeps_other_sources() {
    for role in EXTERNAL {
        for internal in [Cluster, Local] {
            assert_eq!(
                matrix(&web(internal, Local), &here_and_there(), role),
                [
                    by_client(CLUSTER, CLUSTER_SNAT, LOCAL),
                    by_client(CLUSTER, CLUSTER_SNAT, LOCAL),
                    // Without a detector pods are others.
                    by_client(LOCAL, CLUSTER_SNAT, LOCAL),
                    by_client(LOCAL, CLUSTER_SNAT, LOCAL),
                ],
                "{role:?}, iTP={internal:?} must not matter"
            );
        }
    }
}

#[test]
fn local_endpoints_are_marked_for_hairpin_in_both_lists() {
    let world = World::of(config(true, false), &[web(Cluster, Local)], &here_and_there());
    let plan = port_plan(&world.plan("web"), "http", Tcp, Family::V4);
    let local = |targets: &List<Target>| -> Vec<bool> { targets.iter().map(|t| t.local).collect() };
    assert_eq!(local(&plan.cluster), [true, false]);
    assert_eq!(local(&plan.local), [true]);
}

#[test]
fn the_detector_counts_by_family() {
    let config = PlanConfig { detects_pods: [true, false], ..config(false, false) };
    let world = World::of(config, &[web(Cluster, Local)], &here_and_there());
    let actions = |role, family| world.frontend("web", capture(role, family)).expect("frontend").actions;
    assert_eq!(actions(Role::ClusterIp, Family::V4), by_client(CLUSTER, CLUSTER_SNAT, CLUSTER_SNAT));
    assert_eq!(actions(Role::ClusterIp, Family::V6), Actions::all(CLUSTER));
    assert_eq!(actions(Role::LoadBalancer, Family::V4), by_client(CLUSTER, CLUSTER_SNAT, LOCAL));
    assert_eq!(actions(Role::LoadBalancer, Family::V6), by_client(LOCAL, CLUSTER_SNAT, LOCAL));
}

// Table 2.3.

#[test]
fn without_a_usable_endpoint_anywhere_everything_is_refused() {
    let waiting = |address: &str, node: &str| state(false, true, false, endpoint(address, node));
    let dying = |address: &str, node: &str| state(false, false, true, endpoint(address, node));
    let states: [(&str, Vec<EndpointSlice>); 5] = [
        ("no slice", vec![]),
        ("an empty slice", slices(&[])),
        ("unready", slices(&[("1", "here", unready), ("2", "there", unready)])),
        ("serving, but neither ready nor terminating", slices(&[("1", "here", waiting)])),
        ("terminating without serving", slices(&[("1", "here", dying), ("2", "there", dying)])),
    ];
    for (state, slices) in &states {
        for (internal, external) in [(Cluster, Cluster), (Cluster, Local), (Local, Cluster), (Local, Local)] {
            for role in [Role::ClusterIp].into_iter().chain(EXTERNAL) {
                assert_eq!(
                    matrix(&web(internal, external), slices, role),
                    [Actions::all(Reject); 4],
                    "{state}, iTP={internal:?}, eTP={external:?}, {role:?}"
                );
            }
        }
    }
}

#[test]
fn itp_local_without_local_endpoints_drops_at_the_cluster_ip_only() {
    let service = web(Local, Cluster);
    assert_eq!(matrix(&service, &only_there(), Role::ClusterIp), [Actions::all(Drop); 4]);
    for role in EXTERNAL {
        assert_eq!(matrix(&service, &only_there(), role), [Actions::all(CLUSTER_SNAT); 4], "{role:?}");
    }
}

#[test]
fn etp_local_without_local_endpoints_drops_others_only() {
    let service = web(Cluster, Local);
    assert_eq!(
        matrix(&service, &only_there(), Role::ClusterIp),
        [
            by_client(CLUSTER, CLUSTER_SNAT, CLUSTER_SNAT),
            by_client(CLUSTER_SNAT, CLUSTER_SNAT, CLUSTER_SNAT),
            by_client(CLUSTER, CLUSTER, CLUSTER),
            by_client(CLUSTER_SNAT, CLUSTER_SNAT, CLUSTER_SNAT),
        ]
    );
    for role in EXTERNAL {
        assert_eq!(
            matrix(&service, &only_there(), role),
            [
                by_client(CLUSTER, CLUSTER_SNAT, Drop),
                by_client(CLUSTER, CLUSTER_SNAT, Drop),
                by_client(Drop, CLUSTER_SNAT, Drop),
                by_client(Drop, CLUSTER_SNAT, Drop),
            ],
            "{role:?}"
        );
    }
}

#[test]
fn both_policies_local_without_local_endpoints_drop_each_by_its_own_rule() {
    let service = web(Local, Local);
    assert_eq!(matrix(&service, &only_there(), Role::ClusterIp), [Actions::all(Drop); 4]);
    let short = by_client(CLUSTER, CLUSTER_SNAT, Drop);
    let no_pods = by_client(Drop, CLUSTER_SNAT, Drop);
    for role in EXTERNAL {
        assert_eq!(matrix(&service, &only_there(), role), [short, short, no_pods, no_pods], "{role:?}");
    }
}

#[test]
fn local_terminating_endpoints_serve_local_traffic_beside_remote_ready_ones() {
    let slices = slices(&[("1", "here", serving_terminating), ("2", "there", endpoint)]);
    let world = World::of(config(true, false), &[web(Cluster, Local)], &slices);
    let plan = port_plan(&world.plan("web"), "http", Tcp, Family::V4);
    assert_eq!(plan.cluster, [target("10.0.0.2", 8080, false)]);
    assert_eq!(plan.local, [target("10.0.0.1", 8080, true)]);
    let actions = world.frontend("web", capture(Role::LoadBalancer, Family::V4)).expect("frontend").actions;
    assert_eq!(actions, by_client(CLUSTER, CLUSTER_SNAT, LOCAL));
}

#[test]
fn remote_terminating_endpoints_serve_cluster_traffic_only() {
    let slices = slices(&[("1", "here", unready), ("2", "there", serving_terminating)]);
    let world = World::of(config(true, false), &[web(Cluster, Local)], &slices);
    let actions = |role| world.frontend("web", capture(role, Family::V4)).expect("frontend").actions;
    assert_eq!(actions(Role::ClusterIp), by_client(CLUSTER, CLUSTER_SNAT, CLUSTER_SNAT));
    assert_eq!(actions(Role::LoadBalancer), by_client(CLUSTER, CLUSTER_SNAT, Drop));
    let plan = port_plan(&world.plan("web"), "http", Tcp, Family::V4);
    assert_eq!(plan.cluster, [target("10.0.0.2", 8080, false)]);
}

// Sections 1.2, 1.3 and 1.8.

/// All frontends of a plan with their roles, sorted.
fn frontends(plan: &ServicePlan) -> Vec<(Capture, Role)> {
    let mut found: Vec<(Capture, Role)> =
        plan.ports.iter().flat_map(|p| p.frontends.iter().map(|f| (f.capture, f.role))).collect();
    found.sort_by_key(|(capture, _)| *capture);
    found
}

#[test]
fn a_service_answers_only_in_families_of_its_cluster_ips() {
    let single = Service { cluster_ips: ips("172.30.0.1"), ..web(Cluster, Cluster) };
    let world = World::of(config(true, false), &[single], &here_and_there());
    assert_eq!(
        frontends(&world.plan("web")),
        [
            (at("172.30.0.1", 80), Role::ClusterIp),
            (at("192.0.2.10", 80), Role::ExternalIp),
            (at("203.0.113.10", 80), Role::LoadBalancer),
            (Capture::NodePort(Family::V4, Tcp, 30080), Role::NodePort),
        ]
    );
    let single = Service { cluster_ips: ips("fd00:172::1"), ..web(Cluster, Cluster) };
    let world = World::of(config(true, false), &[single], &here_and_there());
    assert_eq!(
        frontends(&world.plan("web")),
        [
            (at("2001:db8::10", 80), Role::ExternalIp),
            (at("2001:db8:1::10", 80), Role::LoadBalancer),
            (at("fd00:172::1", 80), Role::ClusterIp),
            (Capture::NodePort(Family::V6, Tcp, 30080), Role::NodePort),
        ]
    );
}

#[test]
fn each_family_uses_only_slices_of_its_own() {
    let mut v4_only = here_and_there();
    v4_only.truncate(1);
    let world = World::of(config(true, false), &[web(Cluster, Cluster)], &v4_only);
    let actions = |family| world.frontend("web", capture(Role::NodePort, family)).expect("frontend").actions;
    assert_eq!(actions(Family::V4), Actions::all(CLUSTER_SNAT));
    assert_eq!(actions(Family::V6), Actions::all(Reject));
}

#[test]
fn node_port_load_balancer_and_external_addresses_count_whatever_the_type() {
    for service_type in [ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer] {
        let service = Service { service_type, ..web(Cluster, Cluster) };
        let world = World::of(config(true, false), &[service], &here_and_there());
        assert_eq!(frontends(&world.plan("web")).len(), 8, "{service_type:?}");
        for role in EXTERNAL {
            assert_eq!(
                world.frontend("web", capture(role, Family::V4)).expect("frontend").actions,
                Actions::all(CLUSTER_SNAT),
                "{service_type:?} {role:?}"
            );
        }
    }
}

#[test]
fn etp_local_counts_for_load_balancer_node_port_and_external_ips() {
    let short = by_client(CLUSTER, CLUSTER_SNAT, LOCAL);
    let cases = [
        (ServiceType::LoadBalancer, "", short),
        (ServiceType::NodePort, "", short),
        (ServiceType::ClusterIp, "192.0.2.10", short),
        (ServiceType::ClusterIp, "", Actions::all(CLUSTER_SNAT)),
    ];
    for (service_type, external_ips, expected) in cases {
        let service = Service { service_type, external_ips: ips(external_ips), ..web(Cluster, Local) };
        let world = World::of(config(true, false), &[service], &here_and_there());
        for role in [Role::NodePort, Role::LoadBalancer] {
            let found = world.frontend("web", capture(role, Family::V4)).expect("frontend");
            assert_eq!(found.actions, expected, "{service_type:?} {external_ips:?} {role:?}");
        }
    }
}

#[test]
fn an_internal_only_local_service_has_no_cluster_list() {
    let service = Service {
        ports: vec![port("http", Tcp, 80, 0)],
        internal_policy: Local,
        external_policy: Local,
        service_type: ServiceType::LoadBalancer,
        ..service("web", "172.30.0.1")
    };
    let world = World::of(config(true, false), &[service], &here_and_there());
    let plan = port_plan(&world.plan("web"), "http", Tcp, Family::V4);
    assert_eq!(plan.cluster, []);
    assert_eq!(plan.local, [target("10.0.0.1", 8080, true)]);
    assert!(!plan.lacks_local_external);
}

#[test]
fn affinity_is_one_for_all_frontends_and_both_lists_of_a_service_port() {
    let service = Service { affinity: Some(10800), ..web(Local, Local) };
    let world = World::of(config(true, false), &[service], &here_and_there());
    let plan = world.plan("web");
    assert_eq!(plan.ports.len(), 2);
    for port in &plan.ports {
        assert_eq!(port.affinity, Some(10800));
        assert_eq!(port.frontends.len(), 4);
        let [cluster, local] =
            [Group::Cluster, Group::Local].map(|group| GroupId::new(&port.id, port.affinity, group).number());
        assert_eq!((cluster & 1, local & 1), (0, 1));
        assert_eq!(cluster >> 1, local >> 1);
    }
}

#[test]
fn affinity_is_separate_for_protocols_families_ports_and_services() {
    let both = |text: &str, cluster_ips: &str| Service {
        ports: vec![port("dns", Udp, 53, 0), port("dns", Tcp, 53, 0), port("x", Tcp, 54, 0)],
        affinity: Some(60),
        ..service(text, cluster_ips)
    };
    let services = [both("a", "172.30.0.1 fd00:172::1"), both("b", "172.30.0.2 fd00:172::2")];
    let world = World::of(config(true, false), &services, &[]);
    let mut seen = std::collections::BTreeSet::new();
    for service in ["a", "b"] {
        for port in &world.plan(service).ports {
            assert!(seen.insert(GroupId::new(&port.id, port.affinity, Group::Cluster)), "{}", port.id);
        }
    }
    assert_eq!(seen.len(), 12);
}

#[test]
fn one_port_number_serves_each_protocol_by_itself() {
    let service = Service {
        ports: vec![port("t", Tcp, 53, 30053), port("u", Udp, 53, 30053), port("s", Sctp, 53, 30053)],
        ..service("dns", "172.30.0.10")
    };
    let slices = [
        slice("t-4", "dns", ("t", Tcp, 1001), vec![endpoint("10.0.0.1", "")]),
        slice("u-4", "dns", ("u", Udp, 1002), vec![endpoint("10.0.0.2", "")]),
        slice("s-4", "dns", ("s", Sctp, 1003), vec![endpoint("10.0.0.3", "")]),
    ];
    let world = World::of(config(true, false), &[service], &slices);
    let plan = world.plan("dns");
    for (name, protocol, endpoint) in [
        ("t", Tcp, target("10.0.0.1", 1001, false)),
        ("u", Udp, target("10.0.0.2", 1002, false)),
        ("s", Sctp, target("10.0.0.3", 1003, false)),
    ] {
        let port = port_plan(&plan, name, protocol, Family::V4);
        assert_eq!(port.cluster, [endpoint]);
        let captures: Vec<Capture> = port.frontends.iter().map(|f| f.capture).collect();
        assert_eq!(
            captures,
            [
                Capture::Address(ip("172.30.0.10"), protocol, 53),
                Capture::NodePort(Family::V4, protocol, 30053)
            ]
        );
    }
}

#[test]
fn one_port_name_may_have_two_protocols() {
    let service = Service {
        ports: vec![port("dns", Tcp, 53, 0), port("dns", Udp, 53, 0)],
        ..service("dns", "172.30.0.10")
    };
    let slices = [
        slice("t-4", "dns", ("dns", Tcp, 1001), vec![endpoint("10.0.0.1", "")]),
        slice("u-4", "dns", ("dns", Udp, 1002), vec![endpoint("10.0.0.1", "")]),
    ];
    let world = World::of(config(true, false), &[service], &slices);
    let plan = world.plan("dns");
    assert_eq!(port_plan(&plan, "dns", Tcp, Family::V4).cluster, [target("10.0.0.1", 1001, false)]);
    assert_eq!(port_plan(&plan, "dns", Udp, Family::V4).cluster, [target("10.0.0.1", 1002, false)]);
}

#[test]
fn a_removed_ingress_address_is_withdrawn() {
    let mut world = World::of(config(true, false), &[web(Cluster, Cluster)], &here_and_there());
    let vip = capture(Role::LoadBalancer, Family::V4);
    assert!(world.frontend("web", vip).is_some());
    let bare = Service { load_balancer_ips: Vec::new(), ..web(Cluster, Cluster) };
    world.apply(Event::Service(Change::Apply(bare)));
    assert_eq!(world.frontend("web", vip), None);
    assert!(world.frontend("web", capture(Role::NodePort, Family::V4)).is_some());
}

#[test]
fn a_load_balancer_without_ingress_already_has_the_rest() {
    let service = Service {
        load_balancer_ips: Vec::new(),
        external_ips: Vec::new(),
        health_check_node_port: 32000,
        ..web(Cluster, Local)
    };
    let world = World::of(config(true, false), &[service], &here_and_there());
    let plan = world.plan("web");
    assert_eq!(frontends(&plan).len(), 4);
    assert_eq!(plan.health_check.as_ref().map(|check| check.node_port), Some(32000));
}

#[test]
fn host_network_endpoints_are_ordinary() {
    let slice = slice("web-4", "web", ("http", Tcp, 80), vec![endpoint("192.168.0.2", "here")]);
    let world = World::of(config(true, false), &[web(Cluster, Cluster)], &[slice]);
    let plan = port_plan(&world.plan("web"), "http", Tcp, Family::V4);
    assert_eq!(plan.cluster, [target("192.168.0.2", 80, true)]);
}

#[test]
fn a_service_without_ports_has_no_frontends() {
    let world = World::of(config(true, false), &[service("web", "172.30.0.1")], &here_and_there());
    let plan = world.plan("web");
    assert!(plan.ports.is_empty());
    assert_eq!(*plan.cluster_ips, [ip("172.30.0.1")]);
}

#[test]
fn a_deleted_service_has_no_plan() {
    let mut world = World::of(config(true, false), &[web(Cluster, Cluster)], &here_and_there());
    let changes = world.apply(Event::Service(Change::Delete(name("web"))));
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].name, name("web"));
    assert!(changes[0].old.is_some());
    assert_eq!(changes[0].new, None);
    assert_eq!(world.planner.plans().len(), 0);
}

#[test]
fn an_event_that_changes_nothing_changes_no_plan() {
    let mut world = World::of(config(true, false), &[web(Cluster, Cluster)], &here_and_there());
    assert_eq!(world.apply(Event::Service(Change::Apply(web(Cluster, Cluster)))), []);
    let slice = here_and_there().remove(0);
    assert_eq!(world.apply(Event::Slice(Change::Apply(slice.clone()))), []);
    let retriggered = EndpointSlice { triggered: Some(1), ..slice };
    assert_eq!(world.apply(Event::Slice(Change::Apply(retriggered))), []);
}

#[test]
fn udp_ports_tell_which_endpoints_may_keep_flows() {
    let service = Service { ports: vec![port("dns", Udp, 53, 0)], ..service("dns", "172.30.0.10") };
    let endpoints = vec![
        endpoint("10.0.0.1", "here"),
        serving_terminating("10.0.0.2", "there"),
        state(false, true, false, endpoint("10.0.0.3", "there")),
        unready("10.0.0.4", "here"),
    ];
    let slices = [slice("dns-4", "dns", ("dns", Udp, 53), endpoints)];
    let world = World::of(config(true, false), &[service], &slices);
    let plan = port_plan(&world.plan("dns"), "dns", Udp, Family::V4);
    let serving: List<_> = ips("10.0.0.1 10.0.0.2 10.0.0.3").into_iter().map(|ip| (ip, 53)).collect();
    assert_eq!(plan.serving, serving);
    let world = World::of(config(true, false), &[web(Cluster, Cluster)], &here_and_there());
    assert!(world.plan("web").ports.iter().all(|port| port.serving.is_empty()), "TCP");
}
