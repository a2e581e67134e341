//! What the programs know about the node. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net};
use sluice_common::Address;
use sluice_common::node::{Config, address as flag, network, option, scheduler};

use super::entry::{Entry, Op, address, ordered, sorted};
use super::lower::prefix_length;
use crate::diff::diff;
use crate::loopback::Loopback;
use crate::net::Family;
use crate::plan::{Detector, Scheduler};

/// Seconds after which silent flows end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// UDP with packets in one direction only.
    pub udp: u32,
    /// UDP with packets in both.
    pub udp_stream: u32,
    /// Established TCP.
    pub tcp_established: u32,
}

/// As the kernel's conntrack has them, but for TCP what kube-proxy sets.
impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { udp: 30, udp_stream: 120, tcp_established: 86_400 }
    }
}

/// Everything about the node that the programs depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Cookie of the node's own network namespace.
    pub netns: u64,
    /// Addresses of all interfaces.
    pub own_addresses: Vec<IpAddr>,
    /// Addresses that node ports answer on; unused in a family that matches all local addresses.
    pub node_port_addresses: Vec<IpAddr>,
    /// Whether node ports answer on all local addresses of a family.
    pub match_all_node_addresses: [bool; 2],
    /// Networks out of which ClusterIPs are allocated; none until the Services are in, or those not
    /// yet known would be dropped.
    pub service_networks: Vec<IpNet>,
    /// How pods are told from others, for IPv4 and IPv6.
    pub detectors: [Detector; 2],
    /// The node's primary addresses, for IPv4 and IPv6.
    pub primary: [Option<IpAddr>; 2],
    /// `net.ipv4.ip_local_port_range`: ports that the node's own processes get.
    pub local_ports: RangeInclusive<u16>,
    /// When silent flows end.
    pub timeouts: Timeouts,
    /// How endpoints are picked.
    pub scheduler: Scheduler,
    /// What becomes of node ports on loopback, for IPv4 and IPv6. Only this node's processes get
    /// there.
    pub loopback: [Loopback; 2],
    /// What settings of `lo` were before they were changed, for those who come later.
    pub lo_before: u32,
    /// Slots of the ring of flows that began last.
    pub newest: u32,
}

/// Nothing is known, no client is a pod.
impl Default for NodeView {
    fn default() -> Self {
        NodeView {
            netns: 0,
            own_addresses: Vec::new(),
            node_port_addresses: Vec::new(),
            match_all_node_addresses: [false; 2],
            service_networks: Vec::new(),
            detectors: [Detector::None, Detector::None],
            primary: [None; 2],
            local_ports: 32768..=60999,
            timeouts: Timeouts::default(),
            scheduler: Scheduler::Random,
            loopback: [Loopback::LocalStack; 2],
            lo_before: 0,
            newest: 0,
        }
    }
}

impl NodeView {
    /// All entries of the node's maps.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = vec![Entry::Config(Box::new(self.config()))];
        entries.extend(self.addresses().into_iter().map(|(address, flags)| Entry::Address(address, flags)));
        let networks = self.networks().into_iter();
        entries.extend(networks.map(|(length, address, flags)| Entry::Network(length, address, flags)));
        sorted(entries)
    }

    /// Operations that turn entries of the node's maps, those of an earlier view or those that the
    /// kernel holds, into the entries of this view. Entries of other maps are left alone.
    pub fn change(&self, held: Vec<Entry>) -> Vec<Op> {
        let mut held: Vec<Entry> = held.into_iter().map(Entry::canonical).collect();
        held.retain(|entry| !entry.map().is_of_services());
        ordered(diff(sorted(held), self.entries()))
    }

    /// The settings.
    pub fn config(&self) -> Config {
        let runs = free_ports(&self.local_ports);
        let [address4, address6] = self.primary.map(|ip| ip.map(address).unwrap_or_default());
        Config {
            netns: self.netns,
            options: self.options(),
            scheduler: match self.scheduler {
                Scheduler::Random => scheduler::RANDOM,
                Scheduler::RoundRobin => scheduler::ROUND_ROBIN,
                Scheduler::Maglev => scheduler::MAGLEV,
            },
            address4,
            address6,
            ports: runs.count(),
            first_begin: runs.first.0,
            first_count: runs.first.1,
            second_begin: runs.second.0,
            reserved: 0,
            udp_timeout: self.timeouts.udp,
            udp_stream_timeout: self.timeouts.udp_stream,
            tcp_established_timeout: self.timeouts.tcp_established,
            lo_before: self.lo_before,
            newest: self.newest,
        }
    }

    fn options(&self) -> u32 {
        let detects = |family: Family| self.detectors[family as usize] != Detector::None;
        let by_interface = |d: &Detector| matches!(d, Detector::Interface(_) | Detector::InterfacePrefix(_));
        let [v4, v6] = self.loopback;
        [
            (option::DETECTS4, detects(Family::V4)),
            (option::DETECTS6, detects(Family::V6)),
            (option::BY_INTERFACE, self.detectors.iter().any(by_interface)),
            (option::SERVES_LOOPBACK4, v4 == Loopback::Served),
            (option::SERVES_LOOPBACK6, v6 == Loopback::Served),
            (option::REFUSES_LOOPBACK4, v4 == Loopback::Refused),
            (option::REFUSES_LOOPBACK6, v6 == Loopback::Refused),
        ]
        .into_iter()
        .filter(|(_, set)| *set)
        .fold(0, |options, (bit, _)| options | bit)
    }

    /// The entries of `ADDRESSES`. An address that node ports answer on need not be an own one: the
    /// Node object may name an address that a router translates, which this node's processes use
    /// all the same.
    fn addresses(&self) -> BTreeMap<Address, u32> {
        let matches_all = |ip: &IpAddr| self.match_all_node_addresses[Family::of(ip) as usize];
        let mut found = BTreeMap::new();
        for ip in &self.own_addresses {
            *found.entry(address(*ip)).or_default() |= flag::OWN;
        }
        let all = self.own_addresses.iter().filter(|ip| matches_all(ip));
        let listed = self.node_port_addresses.iter().filter(|ip| !matches_all(ip));
        for ip in all.chain(listed).filter(|ip| !ip.is_loopback()) {
            *found.entry(address(*ip)).or_default() |= flag::NODE_PORTS;
        }
        found
    }

    /// The entries of `NETWORKS`. The longest prefix wins, so a network has the flags of all around
    /// it.
    fn networks(&self) -> Vec<(u32, Address, u32)> {
        let mut listed: Vec<(IpNet, u32)> =
            self.service_networks.iter().map(|net| (net.trunc(), network::SERVICES)).collect();
        for detector in &self.detectors {
            if let Detector::Cidr(net) = detector {
                listed.push((net.trunc(), network::PODS));
            }
        }
        let flags = |inner: &IpNet| {
            let around = listed.iter().filter(|(outer, _)| outer.contains(inner));
            around.fold(0, |flags, (_, more)| flags | more)
        };
        let mut nets: Vec<IpNet> = listed.iter().map(|(net, _)| *net).collect();
        // IPv4 addresses are among those of IPv6 here, but not part of any IPv6 network.
        let mapped = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
        let ipv4 = IpNet::V4(Ipv4Net::default());
        let holds_ipv4 = |net: &IpNet| matches!(net, IpNet::V6(net) if net.contains(&mapped));
        if nets.iter().any(holds_ipv4) {
            nets.push(ipv4);
        }
        nets.sort_unstable();
        nets.dedup();
        nets.iter().map(|net| (prefix_length(net), address(net.network()), flags(net))).collect()
    }
}

/// Up to two runs of ports: where each begins, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PortRuns {
    /// The lower one.
    pub first: (u16, u16),
    /// The higher one.
    pub second: (u16, u16),
}

/// The default of the API server's `--service-node-port-range`.
const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;

/// Fewer free ports than this are too few for masquerading.
const ENOUGH: u32 = 4096;

impl PortRuns {
    fn count(&self) -> u32 {
        u32::from(self.first.1) + u32::from(self.second.1)
    }
}

/// Whether the ports that the node's own processes get (`net.ipv4.ip_local_port_range`) leave
/// enough for masquerading.
pub fn leaves_ports(local: &RangeInclusive<u16>) -> bool {
    runs_without(&[local.clone(), NODE_PORTS]).count() >= ENOUGH
}

/// Ports for masqueraded packets: those that neither the node's own processes nor node ports use.
/// Where too few are left, all but node ports: the programs take no port of a socket or of another
/// flow, but a socket may get the port of a flow later, and then both take each other's packets.
pub fn free_ports(local: &RangeInclusive<u16>) -> PortRuns {
    if leaves_ports(local) { runs_without(&[local.clone(), NODE_PORTS]) } else { runs_without(&[NODE_PORTS]) }
}

/// Unprivileged ports outside of these ranges. Of three runs the shortest is left out.
fn runs_without(taken: &[RangeInclusive<u16>]) -> PortRuns {
    let mut taken = taken.to_vec();
    taken.sort_unstable_by_key(|range| *range.start());
    let mut runs: Vec<(u16, u16)> = Vec::new();
    let mut next = 1024u32;
    for range in taken.iter().filter(|range| !range.is_empty()) {
        push_run(&mut runs, next, u32::from(*range.start()));
        next = next.max(u32::from(*range.end()) + 1);
    }
    push_run(&mut runs, next, 1 << 16);
    if runs.len() > 2
        && let Some(shortest) = runs.iter().map(|(_, count)| *count).min()
        && let Some(at) = runs.iter().position(|(_, count)| *count == shortest)
    {
        runs.remove(at);
    }
    let mut runs = runs.into_iter();
    PortRuns { first: runs.next().unwrap_or_default(), second: runs.next().unwrap_or_default() }
}

/// Adds the ports from `begin` to just below `end`, if there are any.
fn push_run(runs: &mut Vec<(u16, u16)>, begin: u32, end: u32) {
    let count = end.saturating_sub(begin);
    if count > 0
        && let (Ok(begin), Ok(count)) = (u16::try_from(begin), u16::try_from(count))
    {
        runs.push((begin, count));
    }
}

/// Whether what comes in by an interface comes from pods.
pub fn interface_is_pod(detectors: &[Detector], name: &str) -> bool {
    detectors.iter().any(|detector| match detector {
        Detector::Interface(wanted) => name == wanted,
        Detector::InterfacePrefix(prefix) => name.starts_with(prefix.as_str()),
        Detector::None | Detector::Cidr(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(ip).collect()
    }

    fn nets(text: &str) -> Vec<IpNet> {
        text.split_whitespace().map(|net| net.parse().unwrap()).collect()
    }

    fn flags_of(view: &NodeView, text: &str) -> Option<u32> {
        view.addresses().get(&address(ip(text))).copied()
    }

    /// What a longest prefix match finds.
    fn network_of(view: &NodeView, text: &str) -> u32 {
        let within = |(length, net, _): &&(u32, Address, u32)| {
            let differ = u128::from_be_bytes(net.octets()) ^ u128::from_be_bytes(address(ip(text)).octets());
            differ.leading_zeros() >= *length
        };
        let networks = view.networks();
        networks.iter().filter(within).max_by_key(|(length, ..)| *length).map_or(0, |(.., flags)| *flags)
    }

    #[test]
    fn node_ports_answer_where_they_should_and_never_on_loopback() {
        let own_addresses = ips("127.0.0.1 192.168.0.2 10.1.0.1 ::1 fd00::2 fe80::1");
        let view = NodeView {
            own_addresses,
            node_port_addresses: ips("192.168.0.2 127.0.0.1 203.0.113.9 2001:db8::1"),
            match_all_node_addresses: [false, true],
            ..NodeView::default()
        };
        assert_eq!(flags_of(&view, "192.168.0.2"), Some(flag::OWN | flag::NODE_PORTS));
        assert_eq!(flags_of(&view, "10.1.0.1"), Some(flag::OWN));
        assert_eq!(flags_of(&view, "127.0.0.1"), Some(flag::OWN));
        assert_eq!(flags_of(&view, "203.0.113.9"), Some(flag::NODE_PORTS), "a translated address");
        assert_eq!(flags_of(&view, "fd00::2"), Some(flag::OWN | flag::NODE_PORTS));
        assert_eq!(flags_of(&view, "fe80::1"), Some(flag::OWN | flag::NODE_PORTS));
        assert_eq!(flags_of(&view, "::1"), Some(flag::OWN));
        assert_eq!(
            flags_of(&view, "2001:db8::1"),
            None,
            "the list has no meaning in a family that matches all"
        );
    }

    #[test]
    fn a_network_inside_another_one_has_its_flags_too() {
        let view = NodeView {
            service_networks: nets("10.96.0.0/12 fd00:96::/112 10.100.0.0/16"),
            detectors: [Detector::Cidr(nets("10.0.0.0/8")[0]), Detector::Cidr(nets("fd00:96::/112")[0])],
            ..NodeView::default()
        };
        assert_eq!(network_of(&view, "10.1.0.1"), network::PODS);
        assert_eq!(network_of(&view, "10.96.0.1"), network::PODS | network::SERVICES);
        assert_eq!(network_of(&view, "10.100.0.1"), network::PODS | network::SERVICES);
        assert_eq!(network_of(&view, "fd00:96::1"), network::PODS | network::SERVICES);
        assert_eq!(network_of(&view, "192.0.2.1"), 0);
        assert_eq!(view.networks().len(), 4);
    }

    #[test]
    fn an_ipv6_network_of_everything_holds_no_ipv4_addresses() {
        let mut view = NodeView {
            detectors: [Detector::None, Detector::Cidr(nets("::/0")[0])],
            service_networks: nets("10.96.0.0/12"),
            ..NodeView::default()
        };
        assert_eq!(network_of(&view, "fd00::1"), network::PODS);
        assert_eq!(network_of(&view, "192.0.2.1"), 0);
        assert_eq!(network_of(&view, "10.96.0.1"), network::SERVICES);
        view.detectors = [Detector::Cidr(nets("0.0.0.0/0")[0]), Detector::None];
        assert_eq!(network_of(&view, "192.0.2.1"), network::PODS);
        assert_eq!(network_of(&view, "fd00::1"), 0);
    }

    #[test]
    fn ports_for_masquerading_are_neither_node_ports_nor_local_ones() {
        let runs = |first, second| PortRuns { first, second };
        assert_eq!(free_ports(&(32768..=60999)), runs((1024, 28976), (61000, 4536)));
        assert_eq!(free_ports(&(1024..=29999)), runs((32768, 32768), (0, 0)));
        // None is left, or too few: all but node ports.
        let all = runs((1024, 28976), (32768, 32768));
        assert!(!leaves_ports(&(1024..=65535)) && leaves_ports(&(32768..=60999)));
        for few in [1024..=65535, 1..=65535, 1024..=62000, 2048..=65535, 4000..=64416] {
            assert_eq!(free_ports(&few), all, "{few:?}");
        }
        assert_eq!(free_ports(&(1024..=61439)), runs((61440, 4096), (0, 0)));
        assert_eq!(free_ports(&(31000..=65535)), runs((1024, 28976), (0, 0)));
        assert_eq!(free_ports(&(20000..=40000)), runs((1024, 18976), (40001, 25535)));
        // Three runs, the shortest is the last, the middle, the first.
        assert_eq!(free_ports(&(40000..=65000)), runs((1024, 28976), (32768, 7232)));
        assert_eq!(free_ports(&(33000..=50000)), runs((1024, 28976), (50001, 15535)));
        assert_eq!(free_ports(&(1100..=20000)), runs((20001, 9999), (32768, 32768)));
        let view = NodeView { local_ports: 1..=29999, ..NodeView::default() };
        let config = view.config();
        assert_eq!((config.ports, config.first_begin, config.first_count), (32768, 32768, 32768));
        let view = NodeView { local_ports: 1024..=65535, ..NodeView::default() };
        assert_eq!(view.config().ports, 28976 + 32768);
    }

    #[test]
    fn detectors_by_interface_compare_names() {
        let bridge = Detector::Interface("cni0".into());
        let prefix = Detector::InterfacePrefix("veth".into());
        assert!(interface_is_pod(&[bridge.clone(), Detector::None], "cni0"));
        assert!(!interface_is_pod(&[bridge, Detector::None], "cni01"));
        assert!(interface_is_pod(&[Detector::None, prefix], "veth12"));
        assert!(!interface_is_pod(&[Detector::None, Detector::Cidr(nets("10.0.0.0/8")[0])], "veth12"));
    }

    #[test]
    fn each_family_says_what_becomes_of_its_loopback() {
        let options = |loopback| NodeView { loopback, ..NodeView::default() }.options();
        assert_eq!(options([Loopback::LocalStack; 2]), 0);
        let served_and_refused = option::SERVES_LOOPBACK4 | option::REFUSES_LOOPBACK6;
        assert_eq!(options([Loopback::Served, Loopback::Refused]), served_and_refused);
        let refused_and_served = option::REFUSES_LOOPBACK4 | option::SERVES_LOOPBACK6;
        assert_eq!(options([Loopback::Refused, Loopback::Served]), refused_and_served);
    }

    #[test]
    fn a_changed_node_costs_what_changed() {
        let before = NodeView {
            own_addresses: ips("192.168.0.2 192.168.1.2"),
            primary: [Some(ip("192.168.0.2")), None],
            service_networks: nets("10.96.0.0/12"),
            ..NodeView::default()
        };
        assert_eq!(before.change(before.entries()), []);
        let after = NodeView { own_addresses: ips("192.168.0.2 192.168.3.2"), ..before.clone() };
        let expected = [
            Op::Put(Entry::Address(address(ip("192.168.3.2")), flag::OWN)),
            Op::Delete(Entry::Address(address(ip("192.168.1.2")), 0).id()),
        ];
        assert_eq!(after.change(before.entries()), expected);
        let other = NodeView { loopback: [Loopback::Served, Loopback::Refused], ..before.clone() };
        let expected = [Op::Put(Entry::Config(Box::new(other.config())))];
        assert_eq!(other.change(before.entries()), expected);
    }
}
