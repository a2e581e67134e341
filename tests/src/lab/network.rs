//! The network of a lab as `ip -batch` lines: links, addresses, routes.

use std::net::IpAddr;

use crate::address::{CLIENT, EXTERNAL_CIDRS, NodeAddresses, SERVICE_CIDRS, host_prefix};
use crate::topology::{PodSpec, Topology};

/// Kernel settings of every namespace: no waiting for duplicate address detection, no filtering by
/// route.
pub(super) const EVERYWHERE: &[(&str, &str)] = &[
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/default/accept_redirects", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
];

/// The same for IPv6, where the machine has it.
pub(super) const EVERYWHERE6: &[(&str, &str)] = &[
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/all/accept_redirects", "0"),
    ("net/ipv6/conf/default/accept_redirects", "0"),
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
];

/// What a router needs in addition.
pub(super) const FORWARDING: &[(&str, &str)] = &[("net/ipv4/ip_forward", "1")];
/// The same for IPv6.
pub(super) const FORWARDING6: &[(&str, &str)] =
    &[("net/ipv6/conf/all/forwarding", "1"), ("net/ipv6/conf/default/forwarding", "1")];

/// Batch lines under construction.
#[derive(Debug)]
pub(super) struct Batch {
    lines: String,
    v6: bool,
}

impl Batch {
    pub(super) fn new(v6: bool) -> Self {
        Self { lines: "link set lo up\n".to_owned(), v6 }
    }

    pub(super) fn text(&self) -> &str {
        &self.lines
    }

    fn line(&mut self, line: &str) {
        self.lines.push_str(line);
        self.lines.push('\n');
    }

    fn addr(&mut self, addr: IpAddr, prefix: u8, dev: &str) {
        if addr.is_ipv4() {
            self.line(&format!("addr add {addr}/{prefix} dev {dev}"));
        } else if self.v6 {
            self.line(&format!("addr add {addr}/{prefix} dev {dev} nodad"));
        }
    }

    fn route(&mut self, to: &str, via: IpAddr, rest: &str) {
        if via.is_ipv4() || self.v6 {
            self.line(&format!("route add {to} via {via} dev eth0 {rest}"));
        }
    }

    fn default_route(&mut self, via: [IpAddr; 2], rest: &str) {
        self.route("0.0.0.0/0", via[0], rest);
        self.route("::/0", via[1], rest);
    }

    fn pod_cidrs(&mut self, node: &NodeAddresses) {
        for (cidr, via) in node.pod_cidr.iter().zip(node.eth0) {
            self.route(cidr, via, "");
        }
    }
}

/// The underlay: a bridge, and a cable to the client and to each node. `netns` names the namespace
/// of a member.
pub(super) fn switch(topology: &Topology, v6: bool, netns: impl Fn(&str) -> String) -> Batch {
    let mut batch = Batch::new(v6);
    batch.line("link add br0 type bridge mcast_snooping 0");
    batch.line("link set br0 up");
    for (index, member) in topology.nodes.keys().map(String::as_str).chain(["client"]).enumerate() {
        batch.line(&format!("link add port{index} type veth peer name eth0 netns {}", netns(member)));
        batch.line(&format!("link set port{index} master br0 up"));
    }
    batch
}

/// The host end of a pod's cable.
pub(super) fn pod_link(index: usize) -> String {
    format!("veth{index}")
}

/// A node: its uplink, and the way to whatever is outside of the cluster.
pub(super) fn node(name: &str, v6: bool) -> Batch {
    let mut batch = Batch::new(v6);
    let Some(own) = NodeAddresses::of(name) else { return batch };
    batch.addr(own.eth0[0], 24, "eth0");
    batch.addr(own.eth0[1], 64, "eth0");
    batch.line("link set eth0 up");
    batch.default_route(CLIENT, "");
    batch
}

/// Addresses that cases take for the node's own, where pods are wired without them.
pub(super) fn gateways(name: &str, v6: bool) -> Batch {
    let mut batch = Batch::new(v6);
    if let Some(own) = NodeAddresses::of(name) {
        batch.addr(own.gateway[0], 32, "lo");
        batch.addr(own.gateway[1], 128, "lo");
    }
    batch
}

/// The pods of a node: their cables and host routes, and the way to those of other nodes.
pub(super) fn pods_of(topology: &Topology, name: &str, v6: bool, netns: impl Fn(&str) -> String) -> Batch {
    let mut batch = Batch::new(v6);
    let Some(own) = NodeAddresses::of(name) else { return batch };
    let pods = topology.pods.iter().filter(|(_, pod)| pod.node == name);
    for (index, (pod_name, pod)) in pods.enumerate() {
        let dev = pod_link(index);
        batch.line(&format!("link add {dev} type veth peer name eth0 netns {}", netns(pod_name)));
        batch.addr(own.gateway[0], 32, &dev);
        batch.addr(own.gateway[1], 128, &dev);
        batch.line(&format!("link set {dev} up"));
        for addr in pod.addresses().filter(|addr| addr.is_ipv4() || v6) {
            batch.line(&format!("route add {} dev {dev}", host_prefix(addr)));
        }
    }
    for other in
        topology.nodes.keys().filter(|other| *other != name).filter_map(|other| NodeAddresses::of(other))
    {
        batch.pod_cidrs(&other);
    }
    batch
}

/// A pod: host addresses, everything through its node.
pub(super) fn pod(pod: &PodSpec, v6: bool) -> Batch {
    let mut batch = Batch::new(v6);
    for addr in pod.addresses() {
        batch.addr(addr, if addr.is_ipv4() { 32 } else { 128 }, "eth0");
    }
    batch.line("link set eth0 up");
    let Some(node) = NodeAddresses::of(&pod.node) else { return batch };
    if pod.ip.is_some() {
        batch.route("0.0.0.0/0", node.gateway[0], "onlink");
    }
    if pod.ip6.is_some() {
        batch.route("::/0", node.gateway[1], "onlink");
    }
    batch
}

/// The client: services through the first node, pods through theirs.
pub(super) fn client(topology: &Topology, v6: bool) -> Batch {
    let mut batch = Batch::new(v6);
    batch.addr(CLIENT[0], 24, "eth0");
    batch.addr(CLIENT[1], 64, "eth0");
    batch.line("link set eth0 up");
    if let Some(first) = NodeAddresses::of(topology.first_node()) {
        for cidr in SERVICE_CIDRS.iter().chain(&EXTERNAL_CIDRS) {
            batch.route(cidr, first.eth0[usize::from(cidr.contains(':'))], "");
        }
    }
    for node in topology.nodes.keys().filter_map(|name| NodeAddresses::of(name)) {
        batch.pod_cidrs(&node);
    }
    batch
}

/// The client's route to one destination through one node.
pub(super) fn client_via(node: &NodeAddresses, dest: IpAddr, add: bool) -> String {
    let via = node.eth0[usize::from(dest.is_ipv6())];
    let verb = if add { "replace" } else { "del" };
    format!("route {verb} {} via {via} dev eth0\n", host_prefix(dest))
}
