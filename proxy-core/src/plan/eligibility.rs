//! Which endpoints a service port uses on this node (reference 1.6 and 1.7).

use std::net::IpAddr;

use super::PlanConfig;
use crate::index::Endpoint;

/// An endpoint chosen for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Whether it runs on this node; such a pod may connect to itself (hairpin).
    pub local: bool,
}

/// The endpoint lists of one service port.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct EndpointLists {
    /// CE.
    pub cluster: Vec<Target>,
    /// LE.
    pub local: Vec<Target>,
    /// Whether any endpoint is usable anywhere.
    pub has_any: bool,
}

/// Which endpoints hints leave (reference 1.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    SameNode,
    SameZone,
    Everywhere,
}

/// Computes the endpoint lists of a service port. The order of `endpoints` is kept.
pub fn eligible(
    endpoints: &[Endpoint<'_>],
    uses_cluster: bool,
    uses_local: bool,
    config: &PlanConfig,
) -> EndpointLists {
    let mut lists = EndpointLists::default();
    let select = |keep: &dyn Fn(&Endpoint<'_>) -> bool| -> Vec<Target> {
        endpoints.iter().filter(|e| keep(e)).map(|e| target(e, config)).collect()
    };
    if uses_cluster {
        let topology = topology(endpoints, config);
        lists.cluster = select(&|e| e.conditions.ready && allowed(e, topology, config));
        if lists.cluster.is_empty() {
            lists.cluster = select(&serving_terminating);
        }
        lists.has_any = !lists.cluster.is_empty();
    }
    if uses_local {
        lists.has_any |= endpoints.iter().any(|e| e.conditions.ready || serving_terminating(e));
        lists.local = select(&|e| e.conditions.ready && is_local(e, config));
        if lists.local.is_empty() {
            lists.local = select(&|e| serving_terminating(e) && is_local(e, config));
        }
    }
    lists
}

fn target(endpoint: &Endpoint<'_>, config: &PlanConfig) -> Target {
    Target { address: endpoint.address, port: endpoint.port, local: is_local(endpoint, config) }
}

/// Whether an endpoint runs on this node.
pub(super) fn is_local(endpoint: &Endpoint<'_>, config: &PlanConfig) -> bool {
    !config.node_name.is_empty() && endpoint.node == Some(config.node_name.as_str())
}

fn serving_terminating(endpoint: &Endpoint<'_>) -> bool {
    endpoint.conditions.serving && endpoint.conditions.terminating
}

fn topology(endpoints: &[Endpoint<'_>], config: &PlanConfig) -> Topology {
    let mut ready = endpoints.iter().filter(|e| e.conditions.ready).peekable();
    if ready.peek().is_none() {
        return Topology::Everywhere;
    }
    let (mut all_node, mut any_node, mut all_zone, mut any_zone) = (true, false, true, false);
    for endpoint in ready {
        all_node &= endpoint.hints.is_some_and(|h| !h.nodes.is_empty());
        all_zone &= endpoint.hints.is_some_and(|h| !h.zones.is_empty());
        any_node |= allowed(endpoint, Topology::SameNode, config);
        any_zone |= allowed(endpoint, Topology::SameZone, config);
    }
    if all_node && any_node {
        Topology::SameNode
    } else if all_zone && any_zone {
        Topology::SameZone
    } else {
        Topology::Everywhere
    }
}

fn allowed(endpoint: &Endpoint<'_>, topology: Topology, config: &PlanConfig) -> bool {
    let hints = endpoint.hints;
    match topology {
        Topology::Everywhere => true,
        Topology::SameNode => hints.is_some_and(|h| h.nodes.iter().any(|n| **n == *config.node_name)),
        Topology::SameZone => {
            let Some(zone) = &config.zone else { return false };
            hints.is_some_and(|h| h.zones.contains(zone))
        }
    }
}
