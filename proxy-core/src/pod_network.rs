//! The pod network between nodes: what this node needs so that its pods reach those of all others.
//!
//! Everything follows from the Nodes, and nothing has to be written into them: the hardware address of a node's VXLAN device
//! is a hash of the node's name, its address the first one of the node's pod CIDR.

mod kernel;
mod rules;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::model::{Node, ObjectName};
use crate::net::Family;
pub use kernel::{Device, KernelState, Step};
pub use rules::{HostPort, PodRules, TABLE};

/// A hardware address.
pub type Mac = [u8; 6];

/// How packets get from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In VXLAN, always.
    Vxlan,
    /// As they are: the network between the nodes knows the pods' addresses, or all nodes are in one subnet.
    Direct,
    /// As they are to nodes of the same subnet, in VXLAN to others.
    CrossSubnet,
}

/// What is known of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// Its Node.
    pub node: Node,
    /// The addresses of its interfaces, with the lengths of their networks' prefixes.
    pub networks: Vec<IpNet>,
}

/// The way to the pods of another node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Its pod CIDR.
    pub to: IpNet,
    /// By whom.
    pub via: Hop,
}

/// Who takes packets for another node's pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hop {
    /// The node itself, at this address.
    Node(IpAddr),
    /// Its VXLAN device, which has this address.
    Vtep(IpAddr),
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
    /// Two nodes have been given overlapping pod CIDRs. The first by name is routed to, or this node itself.
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
        "pod CIDR {cidr} of node {node} overlaps {network}, which is the network of nodes themselves; pods of {node}, or nodes, cannot be reached"
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
    #[error("node {node} has no {family} InternalIP, which node {own} would reach it by")]
    NoAddress {
        /// The node.
        node: ObjectName,
        /// This node.
        own: ObjectName,
        /// The family.
        family: Family,
    },
    /// Without VXLAN only nodes of the same subnet can be reached.
    #[error("node {node} ({address}) is in no subnet of node {own}, and there is no VXLAN to reach it by")]
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
    /// Addresses of this node's VXLAN device; none: there shall be no device.
    pub device: BTreeSet<IpAddr>,
    /// Ways to the pods of others.
    pub routes: BTreeSet<Route>,
    /// VXLAN devices of others.
    pub vteps: BTreeSet<Vtep>,
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

/// What this node needs. `None`: it has no address or no pod CIDR yet, so what there is stays.
pub fn pod_network<'a>(
    transport: Transport,
    vni: u32,
    own: &Own,
    nodes: impl Iterator<Item = &'a Node>,
) -> Option<PodNetwork> {
    let underlay = Family::of(own.node.addresses.first()?);
    if own.node.pod_cidrs.is_empty() {
        return None;
    }
    let mut network = PodNetwork::default();
    if transport != Transport::Direct {
        network.device = own.node.pod_cidrs.iter().map(vtep_address).collect();
    }
    let mut others: Vec<&Node> = nodes.filter(|node| node.name != own.node.name).collect();
    others.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let underlay_networks = underlay_networks(own, &others);
    for cidr in own.node.pod_cidrs.iter().map(IpNet::trunc) {
        // It stays in use, for better or worse: pods have addresses out of it.
        if let Some(other) = underlay_networks.iter().find(|other| overlap(other, &cidr)) {
            let node = own.node.name.clone();
            network.problems.insert(Problem::Underlay { node, cidr, network: *other });
        }
    }
    let mut taken: Vec<(IpNet, &ObjectName)> =
        own.node.pod_cidrs.iter().map(|cidr| (cidr.trunc(), &own.node.name)).collect();
    for node in others {
        let mut cidrs = Vec::new();
        for cidr in node.pod_cidrs.iter().map(IpNet::trunc) {
            if let Some(other) = underlay_networks.iter().find(|other| overlap(other, &cidr)) {
                let node = node.name.clone();
                network.problems.insert(Problem::Underlay { node, cidr, network: *other });
                continue;
            }
            match taken.iter().find(|(other, _)| overlap(other, &cidr)) {
                Some((other, owner)) => drop(network.problems.insert(Problem::Conflict {
                    node: node.name.clone(),
                    cidr,
                    owner: (*owner).clone(),
                    other: *other,
                })),
                None => cidrs.push(cidr),
            }
        }
        taken.extend(cidrs.iter().map(|cidr| (*cidr, &node.name)));
        reach(&mut network, transport, vni, own, underlay, node, &cidrs);
    }
    Some(network)
}

/// The ways to one node.
fn reach(
    network: &mut PodNetwork,
    transport: Transport,
    vni: u32,
    own: &Own,
    underlay: Family,
    node: &Node,
    cidrs: &[IpNet],
) {
    let mut wrapped = Vec::new();
    for cidr in cidrs {
        // The next hop of a route is of its own family.
        let neighbour = node.address(Family::of_net(cidr)).filter(|address| is_near(own, address));
        match (transport, neighbour) {
            (Transport::Direct | Transport::CrossSubnet, Some(address)) => {
                network.routes.insert(Route { to: *cidr, via: Hop::Node(address) });
            }
            (Transport::Direct, None) => {
                let problem = match node.address(Family::of_net(cidr)) {
                    Some(address) => {
                        Problem::OtherSubnet { node: node.name.clone(), address, own: own.node.name.clone() }
                    }
                    None => no_address(own, node, Family::of_net(cidr)),
                };
                network.problems.insert(problem);
            }
            (Transport::Vxlan, _) | (Transport::CrossSubnet, None) => wrapped.push(cidr),
        }
    }
    if wrapped.is_empty() {
        return;
    }
    let Some(address) = node.address(underlay) else {
        network.problems.insert(no_address(own, node, underlay));
        return;
    };
    for cidr in &wrapped {
        network.routes.insert(Route { to: **cidr, via: Hop::Vtep(vtep_address(cidr)) });
    }
    let addresses = wrapped.iter().map(|cidr| vtep_address(cidr)).collect();
    network.vteps.insert(Vtep { mac: vtep_mac(&node.name, vni), node: address, addresses });
}

fn no_address(own: &Own, node: &Node, family: Family) -> Problem {
    Problem::NoAddress { node: node.name.clone(), own: own.node.name.clone(), family }
}

/// The networks by which other nodes reach this one. What else is on this node (other bridges, tunnels) is no way to nodes.
fn subnets(own: &Own) -> impl Iterator<Item = &IpNet> {
    let is_host = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
    own.networks.iter().filter(move |net| !is_host(net) && own.node.addresses.contains(&net.addr()))
}

/// Whether an address is in a subnet of this node.
fn is_near(own: &Own, address: &IpAddr) -> bool {
    subnets(own).any(|net| net.contains(address))
}

/// What no pod CIDR of another node may overlap: the subnets of this node, and all nodes' addresses.
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

    fn of(transport: Transport, nodes: &[Node]) -> PodNetwork {
        pod_network(transport, 1, &own(), nodes.iter()).unwrap()
    }

    fn routes(network: &PodNetwork) -> Vec<String> {
        let text = |route: &Route| match route.via {
            Hop::Node(address) => format!("{} node {address}", route.to),
            Hop::Vtep(address) => format!("{} vtep {address}", route.to),
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
        assert_eq!(network.device.len(), 2);
        assert!(network.problems.is_empty());
    }

    #[test]
    fn nodes_of_the_same_subnet_need_none_across_subnets() {
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
    fn without_vxlan_who_is_far_cannot_be_reached_and_that_is_said() {
        let network = of(Transport::Direct, &[near(), far()]);
        assert_eq!(routes(&network), ["10.244.2.0/24 node 192.168.1.2", "fd00:2::/64 node fd01::2"]);
        assert!(network.device.is_empty() && network.vteps.is_empty());
        let told: Vec<String> = network.problems.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 2);
        assert!(told[0].contains("c (192.168.2.3) is in no subnet of node a"), "{told:?}");
    }

    #[test]
    fn two_nodes_with_one_pod_cidr_are_told_and_nothing_flaps() {
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
    fn a_pod_cidr_that_holds_nodes_is_told_and_left_out() {
        let subnet = node("d", &["192.168.1.4"], &["192.168.1.0/24"]);
        let far_away = node("e", &["192.168.1.5"], &["192.168.2.0/25"]);
        let network = of(Transport::Vxlan, &[subnet, far_away, far()]);
        assert_eq!(routes(&network), ["10.244.3.0/24 vtep 10.244.3.0", "fd00:3::/64 vtep fd00:3::"]);
        let told: Vec<String> = network.problems.iter().map(ToString::to_string).collect();
        assert!(told[0].contains("192.168.1.0/24 of node d overlaps 192.168.1.0/24"), "{told:?}");
        assert!(told[1].contains("192.168.2.0/25 of node e overlaps 192.168.2.3/32"), "{told:?}");
        let mut own = own();
        own.node.pod_cidrs = vec!["192.168.1.128/25".parse().unwrap()];
        let network = pod_network(Transport::Vxlan, 1, &own, [].iter()).unwrap();
        assert_eq!(network.problems.len(), 1);
    }

    #[test]
    fn other_networks_of_this_node_are_no_way_to_nodes() {
        let mut own = own();
        // As docker0 would be.
        own.networks.push("192.168.2.1/24".parse().unwrap());
        let network = pod_network(Transport::CrossSubnet, 1, &own, [far()].iter()).unwrap();
        assert_eq!(routes(&network), ["10.244.3.0/24 vtep 10.244.3.0", "fd00:3::/64 vtep fd00:3::"]);
    }

    #[test]
    fn a_node_without_an_address_or_a_pod_cidr_is_waited_for() {
        let lonely = node("f", &["fd09::1"], &["10.244.9.0/24"]);
        let network = of(Transport::Vxlan, &[lonely]);
        assert!(network.routes.is_empty());
        assert!(
            network.problems.iter().next().unwrap().to_string().contains("node f has no IPv4 InternalIP")
        );
        let without = Own { node: node("a", &["192.168.1.1"], &[]), networks: Vec::new() };
        assert_eq!(pod_network(Transport::Vxlan, 1, &without, [near()].iter()), None);
        let without = Own { node: node("a", &[], &["10.244.1.0/24"]), networks: Vec::new() };
        assert_eq!(pod_network(Transport::Vxlan, 1, &without, [near()].iter()), None);
    }
}
