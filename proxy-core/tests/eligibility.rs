//! Which endpoints a service port uses: each row of kube-proxy's `TestCategorizeEndpoints`
//! (reference 9.2).
//!
//! Row 11, "PreferSameNode falls back to same-zone when feature gate disabled", has no counterpart:
//! the gate is locked on upstream, and there is no such switch here.
//!
//! kube-proxy's third list, the union of both, is not computed here: each list is asked for by
//! itself.

#![expect(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::net::IpAddr;

use sluice_core::index::Endpoint;
use sluice_core::model::{Conditions, Hints, ObjectName, Service, ServicePort, ServiceType, TrafficPolicy};
use sluice_core::net::{Family, Protocol};
use sluice_core::plan::{EndpointLists, PlanConfig, Target, eligible};

use TrafficPolicy::{Cluster, Local};

/// The own node of all rows.
const NODE: &str = "here";

/// One row.
struct Row {
    /// The row's name upstream.
    claim: &'static str,
    /// `topology.kubernetes.io/zone` of the own node.
    zone: Option<&'static str>,
    internal: TrafficPolicy,
    external: TrafficPolicy,
    /// 0: the Service is reached by its ClusterIP only.
    node_port: u16,
    /// Each `ADDRESS CONDITIONS [@NODE] [zones=A,B] [nodes=A,B]`. Conditions: `r` ready, `s`
    /// serving, `t` terminating, `-` none of them.
    endpoints: &'static [&'static str],
    /// The Cluster list, addresses only.
    cluster: &'static [&'static str],
    /// The Local list.
    local: &'static [&'static str],
    has_any: bool,
}

impl Row {
    /// A row with policies Cluster, without zone, external access or endpoints.
    const fn new(claim: &'static str) -> Row {
        Row {
            claim,
            zone: None,
            internal: Cluster,
            external: Cluster,
            node_port: 0,
            endpoints: &[],
            cluster: &[],
            local: &[],
            has_any: true,
        }
    }

    fn holds(&self) {
        let parsed: Vec<Parsed> = self.endpoints.iter().map(|text| Parsed::new(text)).collect();
        let endpoints: Vec<Endpoint<'_>> = parsed.iter().map(Parsed::endpoint).collect();
        let config =
            PlanConfig { node_name: NODE.into(), zone: self.zone.map(Into::into), ..PlanConfig::default() };
        let (service, port) = self.service();
        let uses_cluster = service.uses_cluster_endpoints(&port, Family::V4);
        let uses_local = service.uses_local_endpoints(&port, Family::V4);
        let lists = eligible(&endpoints, uses_cluster, uses_local, &config);
        let expected = EndpointLists {
            cluster: self.targets(self.cluster, &parsed).into_iter().collect(),
            local: self.targets(self.local, &parsed).into_iter().collect(),
            has_any: self.has_any,
        };
        assert_eq!(lists, expected, "{}", self.claim);
        assert!(lists.local.iter().all(|target| target.local), "{}", self.claim);
    }

    fn service(&self) -> (Service, ServicePort) {
        let port =
            ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: self.node_port };
        let service = Service {
            name: ObjectName::new("default", "web"),
            created: None,
            service_type: if self.node_port == 0 { ServiceType::ClusterIp } else { ServiceType::NodePort },
            cluster_ips: vec![address("172.30.0.1")],
            ports: vec![port.clone()],
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            affinity: None,
            internal_policy: self.internal,
            external_policy: self.external,
            health_check_node_port: 0,
        };
        (service, port)
    }

    fn targets(&self, list: &[&str], parsed: &[Parsed]) -> Vec<Target> {
        let target = |text: &&str| {
            let known = parsed.iter().find(|p| p.address == address(text)).expect(self.claim);
            Target { address: known.address, port: 80, local: known.node.as_deref() == Some(NODE) }
        };
        list.iter().map(target).collect()
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect(text)
}

struct Parsed {
    address: IpAddr,
    node: Option<String>,
    conditions: Conditions,
    hints: Option<Hints>,
}

impl Parsed {
    fn new(text: &str) -> Parsed {
        let mut words = text.split_whitespace();
        let address = address(words.next().expect(text));
        let letters = words.next().expect(text);
        let conditions = Conditions {
            ready: letters.contains('r'),
            serving: letters.contains('s'),
            terminating: letters.contains('t'),
        };
        let mut parsed = Parsed { address, node: None, conditions, hints: None };
        for word in words {
            if let Some(node) = word.strip_prefix('@') {
                parsed.node = Some(node.into());
            } else if let Some((kind, list)) = word.split_once('=') {
                let list = list.split(',').filter(|name| !name.is_empty()).map(Into::into).collect();
                let hints = parsed.hints.get_or_insert_default();
                match kind {
                    "zones" => hints.zones = list,
                    "nodes" => hints.nodes = list,
                    _ => panic!("{text}"),
                }
            }
        }
        parsed
    }

    fn endpoint(&self) -> Endpoint<'_> {
        Endpoint {
            address: self.address,
            port: 80,
            conditions: self.conditions,
            node: self.node.as_deref(),
            hints: self.hints.as_ref(),
        }
    }
}

macro_rules! rows {
    ($($test:ident: $claim:literal { $($field:ident: $value:expr,)* })*) => {
        $(#[test]
        fn $test() {
            Row { $($field: $value,)* ..Row::new($claim) }.holds();
        })*
    };
}

/// Four ready endpoints with a zone hint each, two of them on this node.
const ZONES: &[&str] = &[
    "10.1.2.3 rs @here zones=zone-a",
    "10.1.2.4 rs @here zones=zone-b",
    "10.1.2.5 rs @there zones=zone-c",
    "10.1.2.6 rs @there zones=zone-a",
];
const ALL: &[&str] = &["10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"];

rows! {
    row_01_zone_hints_leave_the_endpoints_of_the_own_zone:
    "should use topology since all endpoints have hints, node has a zone label and and there are endpoints for the node's zone" {
        zone: Some("zone-a"),
        endpoints: ZONES,
        cluster: &["10.1.2.3", "10.1.2.6"],
    }
    row_02_hints_leave_the_local_list_of_external_traffic_alone:
    "externalTrafficPolicy: Local, topology ignored for Local endpoints" {
        zone: Some("zone-a"),
        external: Local,
        node_port: 30080,
        endpoints: ZONES,
        cluster: &["10.1.2.3", "10.1.2.6"],
        local: &["10.1.2.3", "10.1.2.4"],
    }
    row_03_hints_leave_the_local_list_of_internal_traffic_alone:
    "internalTrafficPolicy: Local, topology ignored for Local endpoints" {
        zone: Some("zone-a"),
        internal: Local,
        node_port: 30080,
        endpoints: ZONES,
        cluster: &["10.1.2.3", "10.1.2.6"],
        local: &["10.1.2.3", "10.1.2.4"],
    }
    row_04_a_node_without_a_zone_uses_all_endpoints: "empty node labels" {
        zone: None,
        endpoints: ZONES,
        cluster: ALL,
    }
    row_05_a_node_with_an_empty_zone_uses_all_endpoints: "empty zone label" {
        zone: Some(""),
        endpoints: ZONES,
        cluster: ALL,
    }
    row_06_a_node_in_a_zone_without_endpoints_uses_all: "node in different zone, no endpoint filtering" {
        zone: Some("zone-z"),
        endpoints: ZONES,
        cluster: ALL,
    }
    row_07_an_unready_endpoint_of_the_own_zone_is_left_out: "unready endpoint" {
        zone: Some("zone-a"),
        endpoints: &[
            "10.1.2.3 rs zones=zone-a",
            "10.1.2.4 rs zones=zone-b",
            "10.1.2.5 rs zones=zone-c",
            "10.1.2.6 - zones=zone-a",
        ],
        cluster: &["10.1.2.3"],
    }
    row_08_only_unready_endpoints_in_the_own_zone_turn_hints_off:
    "only unready endpoints in same zone (should not filter)" {
        zone: Some("zone-a"),
        endpoints: &[
            "10.1.2.3 - zones=zone-a",
            "10.1.2.4 rs zones=zone-b",
            "10.1.2.5 rs zones=zone-c",
            "10.1.2.6 - zones=zone-a",
        ],
        cluster: &["10.1.2.4", "10.1.2.5"],
    }
    row_09_one_endpoint_without_hints_turns_hints_off: "missing hints, no filtering applied" {
        zone: Some("zone-a"),
        endpoints: &[
            "10.1.2.3 rs zones=zone-a",
            "10.1.2.4 rs zones=zone-b",
            "10.1.2.5 rs",
            "10.1.2.6 rs zones=zone-a",
        ],
        cluster: ALL,
    }
    row_10_one_of_several_zone_hints_is_enough:
    "multiple hints per endpoint, filtering includes any endpoint with zone included" {
        zone: Some("zone-c"),
        endpoints: &[
            "10.1.2.3 rs zones=zone-a,zone-b,zone-c",
            "10.1.2.4 rs zones=zone-b,zone-c",
            "10.1.2.5 rs zones=zone-b,zone-d",
            "10.1.2.6 rs zones=zone-c",
        ],
        cluster: &["10.1.2.3", "10.1.2.4", "10.1.2.6"],
    }
    row_12_node_hints_beat_zone_hints: "PreferSameNode available" {
        zone: Some("zone-a"),
        endpoints: &[
            "10.1.2.3 rs zones=zone-a nodes=here",
            "10.1.2.4 rs zones=zone-b nodes=node-2",
            "10.1.2.5 rs zones=zone-c nodes=node-3",
            "10.1.2.6 rs zones=zone-a nodes=node-4",
        ],
        cluster: &["10.1.2.3"],
    }
    row_13_node_hints_count_only_if_all_endpoints_have_them:
    "PreferSameNode ignored if some endpoints unhinted" {
        zone: Some("zone-a"),
        endpoints: &[
            "10.1.2.3 rs zones=zone-a nodes=here",
            "10.1.2.4 rs zones=zone-b nodes=node-2",
            "10.1.2.5 rs",
            "10.1.2.6 rs zones=zone-a nodes=node-4",
        ],
        cluster: ALL,
    }
    row_14_without_an_endpoint_for_the_node_its_zone_counts:
    "PreferSameNode falls back to PreferSameZone if no endpoint for node" {
        zone: Some("zone-a"),
        endpoints: &[
            "10.1.2.3 rs zones=zone-a nodes=node-1",
            "10.1.2.4 rs zones=zone-b nodes=node-2",
            "10.1.2.5 rs zones=zone-c nodes=node-3",
            "10.1.2.6 rs zones=zone-a nodes=node-4",
        ],
        cluster: &["10.1.2.3", "10.1.2.6"],
    }
    row_15_the_two_lists_may_have_nothing_in_common:
    "conflicting topology and localness require merging allEndpoints" {
        zone: Some("zone-a"),
        external: Local,
        node_port: 30080,
        endpoints: &[
            "10.0.0.0 rs @there zones=zone-a",
            "10.0.0.1 rs @here zones=zone-b",
            "10.0.0.2 rs @there zones=zone-b",
            "10.0.0.3 rs @there zones=zone-c",
        ],
        cluster: &["10.0.0.0"],
        local: &["10.0.0.1"],
    }
    row_16_an_internal_local_service_without_endpoints_has_none:
    "internalTrafficPolicy: Local, with empty endpoints" {
        internal: Local,
        has_any: false,
    }
    row_17_remote_endpoints_leave_the_local_list_empty_but_exist:
    "internalTrafficPolicy: Local, but all endpoints are remote" {
        internal: Local,
        endpoints: &["10.0.0.0 rs @there", "10.0.0.1 rs @there"],
    }
    row_18_all_local_endpoints_are_listed: "internalTrafficPolicy: Local, all endpoints are local" {
        internal: Local,
        endpoints: &["10.0.0.0 rs @here", "10.0.0.1 rs @here"],
        local: &["10.0.0.0", "10.0.0.1"],
    }
    row_19_remote_endpoints_are_not_local: "internalTrafficPolicy: Local, some endpoints are local" {
        internal: Local,
        endpoints: &["10.0.0.0 rs @here", "10.0.0.1 rs @there"],
        local: &["10.0.0.0"],
    }
    row_20_unready_endpoints_are_not_used: "Cluster traffic policy, endpoints not Ready" {
        endpoints: &["10.0.0.0 -", "10.0.0.1 -"],
        has_any: false,
    }
    row_21_only_the_ready_endpoints_are_used: "Cluster traffic policy, some endpoints are Ready" {
        endpoints: &["10.0.0.0 -", "10.0.0.1 rs"],
        cluster: &["10.0.0.1"],
    }
    row_22_serving_terminating_endpoints_are_the_last_resort:
    "Cluster traffic policy, all endpoints are terminating" {
        endpoints: &["10.0.0.0 st @here", "10.0.0.1 st @there", "10.0.0.2 t"],
        cluster: &["10.0.0.0", "10.0.0.1"],
    }
    row_23_internal_local_and_external_cluster_need_both_lists:
    "iTP: Local, eTP: Cluster, some endpoints local" {
        internal: Local,
        node_port: 30080,
        endpoints: &["10.0.0.0 rs @here", "10.0.0.1 rs @there"],
        cluster: &["10.0.0.0", "10.0.0.1"],
        local: &["10.0.0.0"],
    }
    row_24_internal_cluster_and_external_local_need_both_lists:
    "iTP: Cluster, eTP: Local, some endpoints local" {
        external: Local,
        node_port: 30080,
        endpoints: &["10.0.0.0 rs @here", "10.0.0.1 rs @there"],
        cluster: &["10.0.0.0", "10.0.0.1"],
        local: &["10.0.0.0"],
    }
    row_25_both_policies_local_still_need_the_cluster_list: "iTP: Local, eTP: Local, some endpoints local" {
        internal: Local,
        external: Local,
        node_port: 30080,
        endpoints: &["10.0.0.0 rs @here", "10.0.0.1 rs @there"],
        cluster: &["10.0.0.0", "10.0.0.1"],
        local: &["10.0.0.0"],
    }
    row_26_both_policies_local_with_remote_endpoints_only: "iTP: Local, eTP: Local, all endpoints remote" {
        internal: Local,
        external: Local,
        node_port: 30080,
        endpoints: &["10.0.0.0 rs @there", "10.0.0.1 rs @there"],
        cluster: &["10.0.0.0", "10.0.0.1"],
    }
    row_27_remote_terminating_endpoints_serve_the_cluster_list:
    "iTP: Local, eTP: Local, all endpoints remote and terminating" {
        internal: Local,
        external: Local,
        node_port: 30080,
        endpoints: &["10.0.0.0 st @there", "10.0.0.1 st @there"],
        cluster: &["10.0.0.0", "10.0.0.1"],
    }
    row_28_each_list_falls_back_to_terminating_endpoints_by_itself:
    "iTP: Cluster, eTP: Local, with terminating endpoints" {
        external: Local,
        node_port: 30080,
        endpoints: &[
            "10.0.0.0 - @there",
            "10.0.0.1 rs @there",
            "10.0.0.2 st @here",
            "10.0.0.3 st @there",
        ],
        cluster: &["10.0.0.1"],
        local: &["10.0.0.2"],
    }
    row_29_external_policy_without_external_access_needs_no_local_list:
    "externalTrafficPolicy ignored if not externally accessible" {
        external: Local,
        endpoints: &["10.0.0.0 rs @here", "10.0.0.1 rs @there"],
        cluster: &["10.0.0.0", "10.0.0.1"],
    }
    row_30_an_internal_only_local_service_needs_no_cluster_list:
    "no cluster endpoints for iTP:Local internal-only service" {
        internal: Local,
        external: Local,
        endpoints: &["10.0.0.0 rs @here", "10.0.0.1 rs @there"],
        local: &["10.0.0.0"],
    }
    row_31_a_service_without_endpoints_has_none: "empty endpoints when no service endpoints exist" {
        has_any: false,
    }
    row_32_an_endpoint_in_no_condition_is_unusable:
    "single endpoint not ready, not serving, not terminating" {
        internal: Local,
        node_port: 30080,
        endpoints: &["10.0.0.0 - @here"],
        has_any: false,
    }

    // Not in the table, but in the algorithm of reference 1.6 and 1.7.
    serving_without_terminating_is_not_usable: "ready=false, serving=true, terminating=false" {
        internal: Local,
        node_port: 30080,
        endpoints: &["10.0.0.0 s @here"],
        has_any: false,
    }
    ready_and_terminating_is_ready: "publishNotReadyAddresses" {
        internal: Local,
        node_port: 30080,
        endpoints: &["10.0.0.0 rt @here", "10.0.0.1 st @here"],
        cluster: &["10.0.0.0"],
        local: &["10.0.0.0"],
    }
    the_terminating_fallback_ignores_topology: "serving terminating endpoints of all zones" {
        zone: Some("zone-a"),
        endpoints: &["10.0.0.0 st zones=zone-a nodes=here", "10.0.0.1 st zones=zone-b nodes=there"],
        cluster: &["10.0.0.0", "10.0.0.1"],
    }
    hints_of_unusable_endpoints_do_not_count: "unready and terminating endpoints without hints" {
        zone: Some("zone-a"),
        endpoints: &[
            "10.0.0.0 rs zones=zone-a",
            "10.0.0.1 rs zones=zone-b",
            "10.0.0.2 -",
            "10.0.0.3 st",
        ],
        cluster: &["10.0.0.0"],
    }
    empty_hint_lists_are_no_hints: "an empty forZones list" {
        zone: Some("zone-a"),
        endpoints: &["10.0.0.0 rs zones=zone-a", "10.0.0.1 rs zones="],
        cluster: &["10.0.0.0", "10.0.0.1"],
    }
    node_hints_work_without_a_zone: "node hints on a node without a zone label" {
        endpoints: &["10.0.0.0 rs @there nodes=there,here", "10.0.0.1 rs @here nodes=there"],
        cluster: &["10.0.0.0"],
    }
}

#[test]
fn a_proxy_without_a_node_name_has_no_local_endpoints() {
    let endpoint = Parsed::new("10.0.0.1 rs @");
    assert_eq!(endpoint.node.as_deref(), Some(""));
    let lists = eligible(&[endpoint.endpoint()], true, true, &PlanConfig::default());
    assert_eq!(lists.local, []);
    assert_eq!(lists.cluster, [Target { address: address("10.0.0.1"), port: 80, local: false }]);
    assert!(lists.has_any);
}
