//! The pod network between nodes: what this node needs so that its pods reach those of all others.
//!
//! Everything follows from the Nodes, and nothing has to be written into them: the hardware address
//! of a node's VXLAN device is a hash of the node's name, its address the first one of the node's
//! pod CIDR.

mod guard;
mod kernel;
mod ports;
mod rules;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::model::{Node, ObjectName};
use crate::net::Family;
pub use guard::{Dropped, TunnelGuard};
pub use kernel::{Device, KernelState, Step, Tunnel};
pub use ports::{PORTS_TABLE, PodPorts, Port};
pub use rules::{HostPort, PodRules, Sources, TABLE};

/// How names of the host's ends of pods' links begin.
pub const POD_LINK_PREFIX: &str = "sl";
/// How many hexadecimal digits follow it (`sluice_cni::wiring::host_name`).
const POD_LINK_DIGITS: usize = 12;

/// Whether the host's end of a pod's link can be called so.
pub fn is_pod_link(name: &str) -> bool {
    let digits = name.strip_prefix(POD_LINK_PREFIX).unwrap_or_default();
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    digits.len() == POD_LINK_DIGITS && digits.bytes().all(is_digit)
}

/// A hardware address.
pub type Mac = [u8; 6];

/// How packets get from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In VXLAN, always.
    Vxlan,
    /// As they are: the network between the nodes knows the pods' addresses, or all nodes are in
    /// one subnet.
    Direct,
    /// As they are to nodes of the same subnet, in VXLAN to others.
    CrossSubnet,
}

/// What is set for the way between nodes. All nodes have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Between {
    /// How packets get from node to node.
    pub transport: Transport,
    /// What tells this VXLAN from others on the same port.
    pub vni: u32,
    /// The family of outer packets; `None`: each two nodes have the one that follows from their
    /// addresses.
    pub underlay: Option<Family>,
}

/// What is known of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// Its Node.
    pub node: Node,
    /// The addresses of its interfaces, with the lengths of their networks' prefixes.
    pub networks: Vec<IpNet>,
}

/// The way to pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// A node's pod CIDR.
    pub to: IpNet,
    /// By whom.
    pub via: Hop,
    /// The address that this node's own processes have on that way; `None`: the kernel chooses,
    /// which is the address of the VXLAN device there.
    pub source: Option<IpAddr>,
}

/// Who takes packets for pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hop {
    /// The node itself, at this address.
    Node(IpAddr),
    /// Its VXLAN device, which has this address, through our device with outer packets of this
    /// family.
    Vtep(Family, IpAddr),
    /// Nobody: the kernel says at once that there is no such host. So it is with addresses of this
    /// node's pods that no pod has, which would else leave by the default route, and come back from
    /// a router that knows whose they are.
    Nobody,
}

/// A VXLAN device of another node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vtep {
    /// Its hardware address.
    pub mac: Mac,
    /// The node's address that outer packets go to.
    pub node: IpAddr,
    /// Its own addresses, one for each family.
    pub addresses: Vec<IpAddr>,
}

/// Why the pods of a node cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Problem {
    /// Two nodes have been given overlapping pod CIDRs. The first by name is routed to, or this
    /// node itself.
    #[error(
        "pod CIDR {cidr} of node {node} overlaps {other} of node {owner}; pods of {node} cannot be reached"
    )]
    Conflict {
        /// The node that is left out.
        node: ObjectName,
        /// Its pod CIDR.
        cidr: IpNet,
        /// The node that was there before.
        owner: ObjectName,
        /// Its pod CIDR.
        other: IpNet,
    },
    /// Packets to a pod CIDR would take those to a node, or to this node's own network, with them.
    #[error(
        "pod CIDR {cidr} of node {node} overlaps {network}, which has addresses of nodes; pods of {node} \
         or nodes cannot be reached"
    )]
    Underlay {
        /// The node that is left out.
        node: ObjectName,
        /// Its pod CIDR.
        cidr: IpNet,
        /// A network of this node, or a node's address.
        network: IpNet,
    },
    /// A node has no address of the family that nodes talk to each other in.
    #[error("node {node} has no {family} InternalIP, which node {own} needs to reach it")]
    NoAddress {
        /// The node.
        node: ObjectName,
        /// This node.
        own: ObjectName,
        /// The family.
        family: Family,
    },
    /// Two nodes have no addresses of one family.
    #[error(
        "nodes {own} and {node} have no InternalIPs of the same IP family, so there can be no tunnel \
         between them"
    )]
    NoCommonFamily {
        /// The node.
        node: ObjectName,
        /// This node.
        own: ObjectName,
    },
    /// Without VXLAN only nodes of the same subnet can be reached.
    #[error("node {node} ({address}) is in no subnet of node {own}, and cannot be reached without VXLAN")]
    OtherSubnet {
        /// The node.
        node: ObjectName,
        /// Its address.
        address: IpAddr,
        /// This node.
        own: ObjectName,
    },
}

/// What there should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodNetwork {
    /// The families of outer packets, for each of which there shall be a VXLAN device.
    pub underlays: BTreeSet<Family>,
    /// Addresses that each of these devices has.
    pub addresses: BTreeSet<IpAddr>,
    /// Ways to the pods of others.
    pub routes: BTreeSet<Route>,
    /// VXLAN devices of others.
    pub vteps: BTreeSet<Vtep>,
    /// Addresses of other nodes, from which packets out of these networks may come in VXLAN: those
    /// of their pods, and of the nodes themselves.
    pub peers: BTreeSet<(IpAddr, IpNet)>,
    /// Networks of this node's pods in which no other address is anybody's.
    pub own: BTreeSet<IpNet>,
    /// Who cannot be reached.
    pub problems: BTreeSet<Problem>,
}

/// The hardware address of a node's VXLAN device: locally administered, of one machine.
pub fn vtep_mac(node: &ObjectName, vni: u32) -> Mac {
    let mut hash = Sha256::new();
    hash.update(node.to_string().as_bytes());
    hash.update(vni.to_be_bytes());
    let digest = hash.finalize();
    let mut mac = [0; 6];
    mac.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    mac[0] = mac[0] & 0xfc | 0x02;
    mac
}

/// The address of a node's VXLAN device: the first of its pod CIDR, which no pod gets.
pub fn vtep_address(cidr: &IpNet) -> IpAddr {
    cidr.network()
}

/// The family in which two nodes wrap packets for each other, which is the same seen from either:
/// the one that is set; the only one that both have; the one that both list first; IPv4.
fn underlay(set: Option<Family>, own: &Node, node: &Node) -> Result<Family, Problem> {
    let lacks = |family: &Family, of: &Node| of.address(*family).is_none();
    if let Some(family) = set {
        let lacking = [own, node].into_iter().find(|of| lacks(&family, of));
        return lacking.map_or(Ok(family), |lacking| {
            let other = if lacking.name == own.name { node } else { own };
            Err(no_address(other, lacking, family))
        });
    }
    let common: Vec<Family> =
        Family::BOTH.into_iter().filter(|family| !lacks(family, own) && !lacks(family, node)).collect();
    let first = |of: &Node| of.addresses.first().map(Family::of);
    match common.as_slice() {
        [] => Err(Problem::NoCommonFamily { node: node.name.clone(), own: own.name.clone() }),
        [only] => Ok(*only),
        _ if first(own) == first(node) => Ok(first(own).unwrap_or(Family::V4)),
        _ => Ok(Family::V4),
    }
}

/// The family of the device that there is before another node asks for one.
fn main_underlay(set: Option<Family>, own: &Node) -> Option<Family> {
    match set {
        Some(family) => own.address(family).map(|_| family),
        None => own.addresses.first().map(Family::of),
    }
}

/// What this node needs. `None`: it has no address or no pod CIDR yet, so what there is stays.
pub fn pod_network<'a>(
    between: Between,
    own: &Own,
    nodes: impl Iterator<Item = &'a Node>,
) -> Option<PodNetwork> {
    if own.node.addresses.is_empty() || own.node.pod_cidrs.is_empty() {
        return None;
    }
    let mut network = PodNetwork::default();
    if between.transport != Transport::Direct {
        network.addresses = own.node.pod_cidrs.iter().map(vtep_address).collect();
    }
    let mut others: Vec<&Node> = nodes.filter(|node| node.name != own.node.name).collect();
    others.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let underlay_networks = underlay_networks(own, &others);
    for cidr in own.node.pod_cidrs.iter().map(IpNet::trunc) {
        // It stays in use, for better or worse: pods have addresses out of it.
        if let Some(other) = underlay_networks.iter().find(|other| overlap(other, &cidr)) {
            let node = own.node.name.clone();
            network.problems.insert(Problem::Underlay { node, cidr, network: *other });
        } else {
            network.own.insert(cidr);
        }
    }
    let mut taken: Vec<(IpNet, &ObjectName)> =
        own.node.pod_cidrs.iter().map(|cidr| (cidr.trunc(), &own.node.name)).collect();
    for node in others {
        let cidrs = reachable(&mut network, &taken, &underlay_networks, node);
        taken.extend(cidrs.iter().map(|cidr| (*cidr, &node.name)));
        reach(&mut network, between, own, node, &cidrs);
    }
    if between.transport != Transport::Direct && network.underlays.is_empty() {
        network.underlays.extend(main_underlay(between.underlay, &own.node));
    }
    Some(network)
}

/// The pod CIDRs of a node that are nobody else's.
fn reachable(
    network: &mut PodNetwork,
    taken: &[(IpNet, &ObjectName)],
    underlay_networks: &[IpNet],
    node: &Node,
) -> Vec<IpNet> {
    let mut cidrs = Vec::new();
    for cidr in node.pod_cidrs.iter().map(IpNet::trunc) {
        let name = node.name.clone();
        if let Some(other) = underlay_networks.iter().find(|other| overlap(other, &cidr)) {
            network.problems.insert(Problem::Underlay { node: name, cidr, network: *other });
            continue;
        }
        match taken.iter().find(|(other, _)| overlap(other, &cidr)) {
            Some((other, owner)) => drop(network.problems.insert(Problem::Conflict {
                node: name,
                cidr,
                owner: (*owner).clone(),
                other: *other,
            })),
            None => cidrs.push(cidr),
        }
    }
    cidrs
}

/// The ways to one node.
fn reach(network: &mut PodNetwork, between: Between, own: &Own, node: &Node, cidrs: &[IpNet]) {
    let mut wrapped = Vec::new();
    if between.transport != Transport::Direct && !cidrs.is_empty() {
        // Also of those that are reached without: they may see their subnet otherwise.
        let addresses = Family::BOTH.into_iter().filter_map(|family| node.address(family));
        // A node answers pods that have asked it by its own address without a tunnel.
        let own = node.addresses.iter().copied().map(IpNet::from);
        let sources: Vec<IpNet> = cidrs.iter().copied().chain(own).collect();
        network.peers.extend(addresses.flat_map(|ip| sources.iter().map(move |net| (ip, *net))));
    }
    for cidr in cidrs {
        // The next hop of a route is of its own family.
        let family = Family::of_net(cidr);
        let neighbour = node.address(family).filter(|address| is_near(own, address));
        match (between.transport, neighbour) {
            (Transport::Direct | Transport::CrossSubnet, Some(address)) => {
                let source = source(own, family);
                network.routes.insert(Route { to: *cidr, via: Hop::Node(address), source });
            }
            (Transport::Direct, None) => {
                let problem = match node.address(family) {
                    Some(address) => {
                        Problem::OtherSubnet { node: node.name.clone(), address, own: own.node.name.clone() }
                    }
                    None => no_address(&own.node, node, family),
                };
                network.problems.insert(problem);
            }
            (Transport::Vxlan, _) | (Transport::CrossSubnet, None) => wrapped.push(cidr),
        }
    }
    if !wrapped.is_empty() {
        wrap(network, between, own, node, &wrapped);
    }
}

/// The ways through a tunnel to one node.
fn wrap(network: &mut PodNetwork, between: Between, own: &Own, node: &Node, cidrs: &[&IpNet]) {
    let underlay = match underlay(between.underlay, &own.node, node) {
        Ok(underlay) => underlay,
        Err(problem) => {
            network.problems.insert(problem);
            return;
        }
    };
    let Some(address) = node.address(underlay) else { return };
    for cidr in cidrs {
        let via = Hop::Vtep(underlay, vtep_address(cidr));
        network.routes.insert(Route { to: **cidr, via, source: None });
    }
    let addresses = cidrs.iter().map(|cidr| vtep_address(cidr)).collect();
    network.vteps.insert(Vtep { mac: vtep_mac(&node.name, between.vni), node: address, addresses });
    network.underlays.insert(underlay);
}

/// The node's address of a family, if it is on an interface.
fn source(own: &Own, family: Family) -> Option<IpAddr> {
    own.node.address(family).filter(|ip| own.networks.iter().any(|net| net.addr() == *ip))
}

/// That `node` has no address by which `own` would reach it.
fn no_address(own: &Node, node: &Node, family: Family) -> Problem {
    Problem::NoAddress { node: node.name.clone(), own: own.name.clone(), family }
}

/// The networks by which other nodes reach this one. What else is on this node (other bridges,
/// tunnels) is no way to nodes.
fn subnets(own: &Own) -> impl Iterator<Item = &IpNet> {
    let is_host = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
    own.networks.iter().filter(move |net| !is_host(net) && own.node.addresses.contains(&net.addr()))
}

/// Whether an address is in a subnet of this node.
fn is_near(own: &Own, address: &IpAddr) -> bool {
    subnets(own).any(|net| net.contains(address))
}

/// What no pod CIDR of another node may overlap: the subnets of this node, and all nodes'
/// addresses.
fn underlay_networks(own: &Own, others: &[&Node]) -> Vec<IpNet> {
    let addresses = others.iter().flat_map(|node| node.addresses.iter()).chain(&own.node.addresses);
    subnets(own).map(IpNet::trunc).chain(addresses.map(|ip| IpNet::from(*ip))).collect()
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> Node {
        Node {
            name: ObjectName::cluster_scoped(name),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            pod_cidrs: pod_cidrs.iter().map(|text| text.parse().unwrap()).collect(),
            zone: None,
            eligible: true,
        }
    }

    fn own() -> Own {
        Own {
            node: node("a", &["192.168.1.1", "fd01::1"], &["10.244.1.0/24", "fd00:1::/64"]),
            networks: vec!["192.168.1.1/24".parse().unwrap(), "fd01::1/64".parse().unwrap()],
        }
    }

    fn near() -> Node {
        node("b", &["192.168.1.2", "fd01::2"], &["10.244.2.0/24", "fd00:2::/64"])
    }

    fn far() -> Node {
        node("c", &["192.168.2.3", "fd02::3"], &["10.244.3.0/24", "fd00:3::/64"])
    }

    fn between(transport: Transport) -> Between {
        Between { transport, vni: 1, underlay: None }
    }

    fn of(transport: Transport, nodes: &[Node]) -> PodNetwork {
        pod_network(between(transport), &own(), nodes.iter()).unwrap()
    }

    fn routes(network: &PodNetwork) -> Vec<String> {
        let text = |route: &Route| match route.via {
            Hop::Node(address) => format!("{} node {address}", route.to),
            Hop::Vtep(_, address) => format!("{} vtep {address}", route.to),
            Hop::Nobody => format!("{} nobody", route.to),
        };
        network.routes.iter().map(text).collect()
    }

    #[test]
    fn with_vxlan_every_other_node_has_a_device() {
        let network = of(Transport::Vxlan, &[own().node, near(), far()]);
        assert_eq!(
            routes(&network),
            [
                "10.244.2.0/24 vtep 10.244.2.0",
                "10.244.3.0/24 vtep 10.244.3.0",
                "fd00:2::/64 vtep fd00:2::",
                "fd00:3::/64 vtep fd00:3::"
            ]
        );
        assert_eq!(network.vteps.len(), 2);
        let outer: BTreeSet<String> = network.vteps.iter().map(|vtep| vtep.node.to_string()).collect();
        assert_eq!(outer, BTreeSet::from(["192.168.1.2".to_owned(), "192.168.2.3".to_owned()]));
        assert!(network.vteps.iter().all(|vtep| vtep.mac[0] & 3 == 2 && vtep.addresses.len() == 2));
        assert_eq!(network.addresses.len(), 2);
        assert!(network.problems.is_empty());
    }

    #[test]
    fn cross_subnet_uses_vxlan_only_for_nodes_of_other_subnets() {
        let network = of(Transport::CrossSubnet, &[near(), far()]);
        assert_eq!(
            routes(&network),
            [
                "10.244.2.0/24 node 192.168.1.2",
                "10.244.3.0/24 vtep 10.244.3.0",
                "fd00:2::/64 node fd01::2",
                "fd00:3::/64 vtep fd00:3::"
            ]
        );
        assert_eq!(network.vteps.len(), 1);
    }

    #[test]
    fn without_vxlan_nodes_of_other_subnets_are_reported_as_unreachable() {
        let network = of(Transport::Direct, &[near(), far()]);
        assert_eq!(routes(&network), ["10.244.2.0/24 node 192.168.1.2", "fd00:2::/64 node fd01::2"]);
        assert!(network.underlays.is_empty() && network.vteps.is_empty());
        let told: Vec<String> = network.problems.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 2);
        assert!(told[0].contains("c (192.168.2.3) is in no subnet of node a"), "{told:?}");
    }

    #[test]
    fn two_nodes_with_one_pod_cidr_are_reported_and_routes_stay_stable() {
        let twin = node("d", &["192.168.1.4"], &["10.244.2.0/25"]);
        let of_own = node("e", &["192.168.1.5"], &["10.244.0.0/16"]);
        let network = of(Transport::Vxlan, &[twin.clone(), of_own.clone(), near()]);
        assert_eq!(network, of(Transport::Vxlan, &[near(), of_own, twin]));
        assert_eq!(routes(&network), ["10.244.2.0/24 vtep 10.244.2.0", "fd00:2::/64 vtep fd00:2::"]);
        let told: Vec<String> = network.problems.iter().map(ToString::to_string).collect();
        assert!(told[0].contains("10.244.2.0/25 of node d overlaps 10.244.2.0/24 of node b"), "{told:?}");
        assert!(told[1].contains("10.244.0.0/16 of node e overlaps 10.244.1.0/24 of node a"), "{told:?}");
    }

    #[test]
    fn a_pod_cidr_that_contains_nodes_is_reported_and_omitted() {
        let subnet = node("d", &["192.168.1.4"], &["192.168.1.0/24"]);
        let far_away = node("e", &["192.168.1.5"], &["192.168.2.0/25"]);
        let network = of(Transport::Vxlan, &[subnet, far_away, far()]);
        assert_eq!(routes(&network), ["10.244.3.0/24 vtep 10.244.3.0", "fd00:3::/64 vtep fd00:3::"]);
        let told: Vec<String> = network.problems.iter().map(ToString::to_string).collect();
        assert!(told[0].contains("192.168.1.0/24 of node d overlaps 192.168.1.0/24"), "{told:?}");
        assert!(told[1].contains("192.168.2.0/25 of node e overlaps 192.168.2.3/32"), "{told:?}");
        let mut own = own();
        own.node.pod_cidrs = vec!["192.168.1.128/25".parse().unwrap()];
        let network = pod_network(between(Transport::Vxlan), &own, [].iter()).unwrap();
        assert_eq!(network.problems.len(), 1);
    }

    /// Nodes by the families of their addresses, in their order.
    fn of_families(name: &str, number: u8, families: &str) -> Node {
        let address = |family| match family {
            '4' => format!("192.168.1.{number}"),
            _ => format!("fd01::{number}"),
        };
        let addresses: Vec<String> = families.chars().map(address).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        node(name, &addresses, &[&format!("10.244.{number}.0/24"), &format!("fd00:{number}::/64")])
    }

    /// What the first node makes of the second.
    fn seen(underlay: Option<Family>, own: &Node, other: &Node) -> PodNetwork {
        let own = Own { node: own.clone(), networks: Vec::new() };
        let between = Between { underlay, ..between(Transport::Vxlan) };
        pod_network(between, &own, [other].into_iter()).unwrap()
    }

    /// The family of the tunnel of two nodes, which both have to agree on.
    fn tunnel(set: Option<Family>, a: &str, b: &str) -> Option<Family> {
        let (a, b) = (of_families("a", 1, a), of_families("b", 2, b));
        let families =
            [seen(set, &a, &b), seen(set, &b, &a)].map(|network| {
                let families: BTreeSet<Family> =
                    network.vteps.iter().map(|vtep| Family::of(&vtep.node)).collect();
                assert!(families.is_subset(&network.underlays), "{network:?}");
                assert!(network.routes.iter().all(|route| {
                    matches!(route.via, Hop::Vtep(family, _) if families.contains(&family))
                }));
                assert_eq!(network.routes.len(), 2 * families.len());
                assert_eq!(network.problems.is_empty(), !families.is_empty(), "{network:?}");
                families
            });
        assert_eq!(families[0], families[1], "the ends differ");
        families[0].first().copied()
    }

    #[test]
    fn both_ends_of_a_tunnel_come_to_one_family() {
        use Family::{V4, V6};
        for (a, b, expected) in [
            ("46", "46", V4),
            ("64", "64", V6),
            ("46", "64", V4),
            ("4", "64", V4),
            ("6", "46", V6),
            ("6", "64", V6),
            ("4", "4", V4),
            ("6", "6", V6),
        ] {
            assert_eq!(tunnel(None, a, b), Some(expected), "{a} {b}");
            assert_eq!(tunnel(None, b, a), Some(expected), "{b} {a}");
        }
        assert_eq!(tunnel(None, "4", "6"), None);
        for set in Family::BOTH {
            for (a, b) in [("46", "46"), ("64", "46"), ("64", "64")] {
                assert_eq!(tunnel(Some(set), a, b), Some(set), "{a} {b}");
            }
            let lacking = if set == V4 { "6" } else { "4" };
            assert_eq!(tunnel(Some(set), lacking, "46"), None);
        }
    }

    #[test]
    fn a_family_that_a_node_lacks_is_named_with_that_node_and_others_go_on() {
        let (dual, v4) = (of_families("a", 1, "46"), of_families("b", 2, "4"));
        let told = |own: &Node, other: &Node| {
            let problems = seen(Some(Family::V6), own, other).problems;
            problems.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(told(&dual, &v4), ["node b has no IPv6 InternalIP, which node a needs to reach it"]);
        assert_eq!(told(&v4, &dual), told(&dual, &v4));
        let own = Own { node: dual, networks: Vec::new() };
        let between = Between { underlay: Some(Family::V6), ..between(Transport::Vxlan) };
        let third = of_families("c", 3, "64");
        let network = pod_network(between, &own, [&v4, &third].into_iter()).unwrap();
        assert_eq!(routes(&network), ["10.244.3.0/24 vtep 10.244.3.0", "fd00:3::/64 vtep fd00:3::"]);
    }

    #[test]
    fn a_second_device_is_there_only_where_a_node_needs_it() {
        let own = Own { node: of_families("a", 1, "64"), networks: Vec::new() };
        let of =
            |others: &[Node]| pod_network(between(Transport::Vxlan), &own, others.iter()).unwrap().underlays;
        assert_eq!(of(&[]), BTreeSet::from([Family::V6]));
        assert_eq!(of(&[of_families("b", 2, "64")]), BTreeSet::from([Family::V6]));
        assert_eq!(of(&[of_families("b", 2, "64"), of_families("c", 3, "4")]), Family::BOTH.into());
    }

    #[test]
    fn processes_of_the_node_have_its_address_where_no_tunnel_is() {
        let sources = |network: PodNetwork| -> Vec<Option<String>> {
            network.routes.iter().map(|route| route.source.map(|ip| ip.to_string())).collect()
        };
        let network = of(Transport::CrossSubnet, &[near(), far()]);
        assert_eq!(sources(network), [Some("192.168.1.1".into()), None, Some("fd01::1".into()), None]);
        // The kernel refuses a source that is not on the node.
        let mut own = own();
        own.networks.push("192.168.1.7/24".parse().unwrap());
        own.node.addresses[0] = "192.168.1.9".parse().unwrap();
        own.node.addresses.push("192.168.1.7".parse().unwrap());
        let network = pod_network(between(Transport::Direct), &own, [near()].iter()).unwrap();
        assert_eq!(sources(network), [None, Some("fd01::1".into())]);
    }

    #[test]
    fn other_networks_of_this_node_are_no_way_to_nodes() {
        let mut own = own();
        // As docker0 would be.
        own.networks.push("192.168.2.1/24".parse().unwrap());
        let network = pod_network(between(Transport::CrossSubnet), &own, [far()].iter()).unwrap();
        assert_eq!(routes(&network), ["10.244.3.0/24 vtep 10.244.3.0", "fd00:3::/64 vtep fd00:3::"]);
    }

    #[test]
    fn a_node_without_an_address_or_a_pod_cidr_is_waited_for() {
        let lonely = node("f", &["fd09::1"], &["10.244.9.0/24"]);
        let network = of(Transport::Direct, &[lonely]);
        assert!(network.routes.is_empty());
        assert!(
            network.problems.iter().next().unwrap().to_string().contains("node f has no IPv4 InternalIP")
        );
        let without = Own { node: node("a", &["192.168.1.1"], &[]), networks: Vec::new() };
        assert_eq!(pod_network(between(Transport::Vxlan), &without, [near()].iter()), None);
        let without = Own { node: node("a", &[], &["10.244.1.0/24"]), networks: Vec::new() };
        assert_eq!(pod_network(between(Transport::Vxlan), &without, [near()].iter()), None);
    }
}
