//! From the plan of one Service to its virtual servers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::marks::{Marks, cluster_group, group_of, is_split};
use super::{DestinationKey, SchedulerName, Server, ServerFlags, ServerKey};
use crate::list::List;
use crate::model::ServicePortName;
use crate::net::Family;
use crate::plan::{Capture, Frontend, Group, ServicePlan, Target};

/// Settings of IPVS that do not change while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsConfig {
    /// How every virtual server picks.
    pub scheduler: SchedulerName,
    /// How virtual servers by mark pick that a client shall stick to: by a hash of its address.
    /// Persistence is of no use there, because the kernel keeps the port that a persistent one is
    /// called at (`ip_vs_sched_persist`).
    pub sticky: SchedulerName,
    /// Virtual servers with addresses in these networks belong to others and are left alone.
    pub exclude: Vec<IpNet>,
}

impl IpvsConfig {
    fn server(&self, key: ServerKey, affinity: Option<u32>) -> Server {
        if matches!(key, ServerKey::Mark(..)) && affinity.is_some() {
            return Server { key, scheduler: self.sticky, flags: fallback(self.sticky), persistence: None };
        }
        // As kube-proxy does; without it all connections of a client would go to one endpoint.
        let port = match self.scheduler.as_str() {
            "mh" => ServerFlags::HASH_SOURCE_PORT,
            _ => ServerFlags::NONE,
        };
        let flags = fallback(self.scheduler) | port;
        Server { key, scheduler: self.scheduler, flags, persistence: affinity }
    }
}

/// Schedulers by hash refuse the connections that fall to a destination of weight 0, one that is
/// being drained, unless they are told to take another one then.
fn fallback(scheduler: SchedulerName) -> ServerFlags {
    match scheduler.as_str() {
        "mh" | "sh" => ServerFlags::HASH_FALLBACK,
        _ => ServerFlags::NONE,
    }
}

/// What virtual servers depend on and what may change while the daemon runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// The addresses that node ports answer on.
    pub node_port_addresses: Vec<IpAddr>,
    /// Addresses of other interfaces than the dummy link: these are not bound there too.
    pub own_addresses: Vec<IpAddr>,
    /// Addresses of others that a Service may have too: these are not bound either.
    pub others: Others,
}

/// Addresses in use by others than this node and Services: were they bound, nobody would reach
/// their owners from here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Nodes have been listed. Until then every address may be another node's that is not a
    /// ClusterIP.
    pub listed: bool,
    /// Of other nodes.
    pub addresses: BTreeSet<IpAddr>,
    /// Of pods.
    pub networks: Vec<IpNet>,
}

impl Others {
    /// Whether it is an address of others.
    pub fn have(&self, ip: &IpAddr) -> bool {
        self.addresses.contains(ip) || self.networks.iter().any(|net| net.contains(ip))
    }
}

/// Whose a virtual server is; of several claims the first counts, as it does in the ruleset:
/// addresses before node ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) is_node_port: bool,
    pub(super) port: ServicePortName,
}

/// A virtual server that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) server: Server,
    /// The endpoints; those that [`destination`] takes are its destinations.
    pub(super) targets: List<Target>,
}

/// What one Service needs.
#[derive(Clone, Debug, Default)]
pub(super) struct Lowered {
    pub(super) servers: Vec<(Claim, Wanted)>,
    /// Virtual servers that there are none of, because the ruleset refuses all connections of
    /// others.
    pub(super) refused: Vec<ServerKey>,
    /// Addresses to bind, with repetitions.
    pub(super) addresses: Vec<IpAddr>,
    /// Those of them that nobody but a Service can have.
    pub(super) cluster_ips: Vec<IpAddr>,
}

/// Lowers the plan of a Service.
pub(super) fn lower(plan: &ServicePlan, config: &IpvsConfig, node: &NodeView, marks: &Marks) -> Lowered {
    let cluster_ips = plan.cluster_ips.to_vec();
    let mut out = Lowered { addresses: cluster_ips.clone(), cluster_ips, ..Lowered::default() };
    for port in &plan.ports {
        let refused = &mut out.refused;
        let servers = &mut out.servers;
        let mut add = |is_node_port, key, group| {
            let server = config.server(key, port.affinity);
            let claim = Claim { is_node_port, port: port.id.clone() };
            servers.push((claim, Wanted { server, targets: port.targets(group).clone() }));
        };
        for frontend in &port.frontends {
            match group_of(frontend.actions.other) {
                Some(group) => {
                    keys(frontend, node).for_each(|(is_node_port, key)| add(is_node_port, key, group));
                }
                None => refused.extend(keys(frontend, node).map(|(_, key)| key)),
            }
        }
        if port.frontends.iter().any(is_split)
            && let Some(mark) = marks.of(&cluster_group(port))
        {
            add(false, ServerKey::Mark(port.id.family, mark), Group::Cluster);
        }
        out.addresses.extend(port.frontends.iter().filter_map(|frontend| match frontend.capture {
            Capture::Address(ip, ..) => Some(ip),
            Capture::NodePort(..) => None,
        }));
    }
    out.addresses.retain(is_usable);
    out.servers.retain(|(_, wanted)| wanted.server.key.address().is_none_or(|ip| is_usable(&ip)));
    out
}

/// Whether the kernel takes an address. One that it refuses would be refused again and again.
fn is_usable(ip: &IpAddr) -> bool {
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !ip.is_multicast() && !ip.is_unspecified() && !is_broadcast
}

/// The destination that an endpoint is; none if the kernel refuses its address.
pub(super) fn destination(target: &Target) -> Option<DestinationKey> {
    let key = DestinationKey { address: target.address, port: target.port };
    is_usable(&target.address).then_some(key)
}

/// The virtual servers of a frontend.
fn keys<'a>(frontend: &Frontend, node: &'a NodeView) -> Box<dyn Iterator<Item = (bool, ServerKey)> + 'a> {
    match frontend.capture {
        Capture::Address(ip, protocol, port) => {
            Box::new(std::iter::once((false, ServerKey::Address(ip, protocol, port))))
        }
        Capture::NodePort(family, protocol, port) => {
            let addresses = node.node_port_addresses.iter().filter(move |ip| Family::of(ip) == family);
            Box::new(addresses.map(move |ip| (true, ServerKey::Address(*ip, protocol, port))))
        }
    }
}
