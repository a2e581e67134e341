//! Rules that keep neighbours from being somebody else: on the wire, and behind a pod's link.
//!
//! Whoever can send to the UDP port of VXLAN could be any pod, since the VNI and hardware addresses
//! are no secrets. So what comes out of the tunnel has to come from a node's address, with a source
//! out of that node's pod CIDRs or its own, and no pod of this node may send such packets to other
//! nodes: they would leave with this node's address.
//!
//! A pod may send what it likes, if its container runtime leaves it `CAP_NET_RAW` (containerd's
//! default). In mode routed the kernel knows by its routes who is behind which link. On a bridge
//! all pods are behind the same one, and frames have to be looked at where they enter its ports
//! ([`super::ports`]).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::ports::link_locals;
use super::rules::address_bytes;
use super::{POD_LINK_DIGITS, POD_LINK_PREFIX};
use crate::lang::nftables::{
    Chain, ChainName, CmpOp, ElementId, Expr, FORWARD, Field, Hook, INPUT, Key, MetaKey, OUTPUT, PREROUTING,
    RAW, Rule, Set, SetId, SetSpec, TableId, Verdict, address_regs, in_network, load_destination,
    load_source, of_family, prefix_mask,
};
use crate::net::Family;

/// The table of all rules for IP.
pub(super) const ID: TableId = TableId::inet("sluice-pods");

/// Its sets, each for outer packets of IPv4 and of IPv6.
pub(super) static SETS: [Set; 6] = {
    use Field::{Ipv4, Ipv6, Number};
    ID.sets([
        // Addresses of other nodes.
        SetSpec::plain("underlay4", &[Ipv4]),
        SetSpec::plain("underlay6", &[Ipv6]),
        // Outer source, inner source network of IPv4, prefix length.
        SetSpec::plain("pods4_over4", &[Ipv4, Ipv4, Number]),
        SetSpec::plain("pods4_over6", &[Ipv6, Ipv4, Number]),
        // The same for inner sources of IPv6.
        SetSpec::plain("pods6_over4", &[Ipv4, Ipv6, Number]),
        SetSpec::plain("pods6_over6", &[Ipv6, Ipv6, Number]),
    ])
};

fn underlay(family: Family) -> SetId {
    match family {
        Family::V4 => SETS[0].id(),
        Family::V6 => SETS[1].id(),
    }
}

/// Networks of pods, by the families of inner and of outer packets.
fn tunnel_sources(inner: Family, outer: Family) -> SetId {
    match (inner, outer) {
        (Family::V4, Family::V4) => SETS[2].id(),
        (Family::V4, Family::V6) => SETS[3].id(),
        (Family::V6, Family::V4) => SETS[4].id(),
        (Family::V6, Family::V6) => SETS[5].id(),
    }
}

/// The length of pods' links' names.
const POD_LINK_LENGTH: usize = POD_LINK_PREFIX.len() + POD_LINK_DIGITS;
/// `IPPROTO_UDP`, `IPPROTO_ICMP`, `IPPROTO_ICMPV6`.
const UDP: u8 = 17;
const ICMP: u8 = 1;
pub(super) const ICMP6: u8 = 58;
/// Types of redirects: RFC 792; RFC 4861, section 4.5.
const REDIRECT: u8 = 5;
pub(super) const REDIRECT6: u8 = 137;
/// Of linux/if_ether.h.
pub(super) const ETH_P_IP: [u8; 2] = [0x08, 0x00];
pub(super) const ETH_P_IPV6: [u8; 2] = [0x86, 0xdd];

/// Where things are, behind the beginning of the outer UDP header: VXLAN's VNI (RFC 7348, section
/// 5), the inner Ethernet type, and the inner source addresses.
const VNI: u32 = 8 + 4;
const INNER_TYPE: u32 = 8 + 8 + 12;
const INNER_SOURCE4: u32 = 8 + 8 + 14 + 12;
const INNER_SOURCE6: u32 = 8 + 8 + 14 + 8;

/// What a rule that drops is for; each is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dropped {
    /// VXLAN that comes from no node, or with a source that is not of that node's pods.
    TunnelSource,
    /// VXLAN that a pod sends to a node.
    TunnelForwarded,
    /// A pod that sends with an address that is not its own.
    PodSource,
    /// A pod on a bridge that sends with a hardware address, or claims an address, that is not its
    /// own.
    PodClaim,
    /// A redirect to a pod.
    Redirect,
}

impl Dropped {
    /// All of them.
    pub const ALL: [Dropped; 5] = [
        Dropped::TunnelSource,
        Dropped::TunnelForwarded,
        Dropped::PodSource,
        Dropped::PodClaim,
        Dropped::Redirect,
    ];

    /// The comment of its rules.
    pub fn about(self) -> &'static str {
        match self {
            Dropped::TunnelSource => "VXLAN that is not from nodes and their pods",
            Dropped::TunnelForwarded => "VXLAN from pods",
            Dropped::PodSource => "pods with source addresses of others",
            Dropped::PodClaim => "pods that claim addresses of others",
            Dropped::Redirect => "redirects to pods",
        }
    }

    /// The value of the metric's label.
    pub fn reason(self) -> &'static str {
        match self {
            Dropped::TunnelSource => "tunnel_source",
            Dropped::TunnelForwarded => "tunnel_forwarded",
            Dropped::PodSource => "pod_source",
            Dropped::PodClaim => "pod_claim",
            Dropped::Redirect => "redirect",
        }
    }

    pub(super) fn rule(self, mut exprs: Vec<Expr>) -> Rule {
        exprs.extend([Expr::Counter, Expr::Verdict(Verdict::Drop)]);
        Rule::new(self.about(), exprs)
    }
}

/// What comes out of the tunnel, and from whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelGuard {
    /// The VNI of our device.
    pub vni: u32,
    /// Its UDP port.
    pub port: u16,
    /// Addresses of other nodes, each with a network of its pods.
    pub peers: BTreeSet<(IpAddr, IpNet)>,
    /// Whether sources of inner packets are held against these networks; else any packet of a
    /// node's passes.
    pub checks_inner: bool,
}

impl TunnelGuard {
    /// The elements of the sets.
    pub(super) fn elements(&self) -> BTreeSet<ElementId> {
        let underlay = |node: &IpAddr| ElementId {
            set: underlay(Family::of(node)),
            key: Key::new(&address_bytes(*node)),
        };
        let source = |(node, pods): &(IpAddr, IpNet)| ElementId {
            set: tunnel_sources(Family::of_net(pods), Family::of(node)),
            key: Key::new(&address_bytes(*node)).with(&address_bytes(pods.network())).with(&length(pods)),
        };
        let nodes = self.peers.iter().map(|(node, _)| underlay(node));
        nodes.chain(self.peers.iter().map(source)).collect()
    }

    /// Where packets to this node's device come in, and where packets to those of others pass.
    pub(super) fn chains(&self, bridge: Option<&str>) -> Vec<Chain> {
        let filter = |number| Some(Hook { chain_type: "filter", number, priority: RAW });
        let mut from = self.passes();
        from.push(Dropped::TunnelSource.rule(self.is_ours()));
        // What this node forwards for other nodes is theirs.
        let forwarded = Family::BOTH.into_iter().flat_map(|family| {
            of_pods(Side::In, bridge).into_iter().map(move |from| {
                let mut exprs = of_family(family);
                exprs.extend(from);
                exprs.extend(self.is_ours());
                exprs.extend(is_node(family, load_destination(family, 0)));
                Dropped::TunnelForwarded.rule(exprs)
            })
        });
        vec![
            Chain { name: ChainName::new("tunnel-guard"), hook: filter(INPUT), rules: from },
            Chain {
                name: ChainName::new("tunnel-forward-guard"),
                hook: filter(FORWARD),
                rules: forwarded.collect(),
            },
        ]
    }

    /// VXLAN with our VNI to our port; that of others is theirs.
    fn is_ours(&self) -> Vec<Expr> {
        let is = |data: &[u8]| Expr::Cmp { sreg: 0, op: CmpOp::Eq, data: data.to_vec() };
        vec![
            Expr::Meta { dreg: 0, key: MetaKey::L4Proto },
            is(&[UDP]),
            Expr::TransportHeader { dreg: 0, offset: 2, len: 2 },
            is(&self.port.to_be_bytes()),
            Expr::TransportHeader { dreg: 0, offset: VNI, len: 3 },
            is(&self.vni.to_be_bytes()[1..]),
        ]
    }

    /// A rule for each family of outer and inner packets, and each length of pod CIDRs, of which
    /// clusters have one or two: a look-up in a hash table, however many nodes there are.
    fn passes(&self) -> Vec<Rule> {
        if !self.checks_inner {
            let rules = Family::BOTH.map(|family| {
                let mut exprs = of_family(family);
                exprs.extend(self.is_ours());
                exprs.extend(is_node(family, load_source(family, 0)));
                exprs.push(Expr::Verdict(Verdict::Accept));
                Rule::new("VXLAN from nodes", exprs)
            });
            return rules.into();
        }
        let shapes: BTreeSet<(Family, Family, u8)> = self
            .peers
            .iter()
            .map(|(node, pods)| (Family::of(node), Family::of_net(pods), pods.prefix_len()))
            .collect();
        let rules = shapes.into_iter().map(|(outer, inner, length)| {
            let (ethernet, offset, len) = match inner {
                Family::V4 => (ETH_P_IP, INNER_SOURCE4, 4),
                Family::V6 => (ETH_P_IPV6, INNER_SOURCE6, 16),
            };
            let network = address_regs(outer);
            let mask = prefix_mask(length, len);
            let mut exprs = of_family(outer);
            exprs.extend(self.is_ours());
            exprs.extend([
                Expr::TransportHeader { dreg: 0, offset: INNER_TYPE, len: 2 },
                Expr::Cmp { sreg: 0, op: CmpOp::Eq, data: ethernet.to_vec() },
                load_source(outer, 0),
                Expr::TransportHeader { dreg: network, offset, len: len as u32 },
                Expr::Bitwise { sreg: network, dreg: network, xor: vec![0; mask.len()], mask },
                Expr::Immediate { dreg: network + address_regs(inner), data: vec![length, 0, 0, 0] },
                Expr::Lookup { set: tunnel_sources(inner, outer), sreg: 0 },
                Expr::Verdict(Verdict::Accept),
            ]);
            Rule::new("VXLAN from nodes", exprs)
        });
        rules.collect()
    }
}

/// Whether an address, which `load` puts into register 0, is another node's.
fn is_node(family: Family, load: Expr) -> [Expr; 2] {
    [load, Expr::Lookup { set: underlay(family), sreg: 0 }]
}

fn length(net: &IpNet) -> [u8; 4] {
    [net.prefix_len(), 0, 0, 0]
}

/// Whether an interface is the host's end of a pod's link. It is a veth device, and its name says
/// so: the prefix and hexadecimal digits. Other devices of ours (`sluice0`) come behind them in the
/// order of names.
fn is_pod_link(side: Side) -> [Expr; 5] {
    let (key, kind) = side.keys();
    let name = |digit| {
        let mut name = POD_LINK_PREFIX.as_bytes().to_vec();
        name.resize(POD_LINK_LENGTH, digit);
        name.resize(16, 0);
        name
    };
    [
        Expr::Meta { dreg: 0, key },
        Expr::Cmp { sreg: 0, op: CmpOp::Gte, data: name(b'0') },
        Expr::Cmp { sreg: 0, op: CmpOp::Lte, data: name(b'f') },
        Expr::Meta { dreg: 0, key: kind },
        is_name("veth"),
    ]
}

/// Which interface of a packet.
#[derive(Clone, Copy)]
enum Side {
    In,
    Out,
}

impl Side {
    /// Of the interface's name and kind.
    fn keys(self) -> (MetaKey, MetaKey) {
        match self {
            Side::In => (MetaKey::IifName, MetaKey::IifKind),
            Side::Out => (MetaKey::OifName, MetaKey::OifKind),
        }
    }
}

/// Compares the name of an interface, or of a kind of them.
pub(super) fn is_name(name: &str) -> Expr {
    let mut data = name.as_bytes().to_vec();
    data.resize(16, 0);
    Expr::Cmp { sreg: 0, op: CmpOp::Eq, data }
}

/// Ways that lead to pods, each by its own condition: links of pods, and the bridge of ours.
fn of_pods(side: Side, bridge: Option<&str>) -> Vec<Vec<Expr>> {
    let (key, _) = side.keys();
    let bridge = bridge.map(|name| vec![Expr::Meta { dreg: 0, key }, is_name(name)]);
    std::iter::once(is_pod_link(side).to_vec()).chain(bridge).collect()
}

/// Packets that come in by a pod's link with a source that is not behind it. `checked`: only
/// sources in these networks, because programs at the links (mode ebpf) have turned answers back,
/// which have Services' addresses then.
pub(super) fn source_guard(checked: Option<&BTreeSet<IpNet>>) -> Chain {
    let link_local = link_locals();
    let everything = Family::BOTH.map(|family| (family, None));
    let networks = |nets: &BTreeSet<IpNet>| -> Vec<(Family, Option<IpNet>)> {
        nets.iter().map(|net| (Family::of_net(net), Some(*net))).collect()
    };
    let sources = checked.map_or(everything.into(), networks);
    let rules = sources.into_iter().map(|(family, net)| {
        let mut exprs = of_family(family);
        exprs.extend(is_pod_link(Side::In));
        exprs.extend(net.iter().flat_map(|net| in_network(load_source(family, 0), net, CmpOp::Eq)));
        // Neighbour discovery (RFC 4861) goes from link-local addresses and from none. They lead no
        // further than this link.
        if family == Family::V6 {
            exprs.extend(in_network(load_source(family, 0), &link_local, CmpOp::Neq));
            let none = Ipv6Addr::UNSPECIFIED.octets().to_vec();
            exprs.extend([load_source(family, 0), Expr::Cmp { sreg: 0, op: CmpOp::Neq, data: none }]);
        }
        exprs.push(Expr::FibSourceDevice { dreg: 0 });
        exprs.push(Expr::Cmp { sreg: 0, op: CmpOp::Eq, data: vec![0; 4] });
        Dropped::PodSource.rule(exprs)
    });
    let hook = Some(Hook { chain_type: "filter", number: PREROUTING, priority: RAW });
    Chain { name: ChainName::new("source-guard"), hook, rules: rules.collect() }
}

/// Redirects to pods: the sysctl of a link does not keep them back where that of `all` asks for
/// them.
pub(super) fn redirect_guard(bridge: Option<&str>) -> Chain {
    let redirects = [(Family::V4, ICMP, REDIRECT), (Family::V6, ICMP6, REDIRECT6)];
    let rules = redirects.into_iter().flat_map(|(family, protocol, kind)| {
        of_pods(Side::Out, bridge).into_iter().map(move |out| {
            let mut exprs = of_family(family);
            exprs.extend(out);
            exprs.extend(has_icmp_type(protocol, kind));
            Dropped::Redirect.rule(exprs)
        })
    });
    let hook = Some(Hook { chain_type: "filter", number: OUTPUT, priority: RAW });
    Chain { name: ChainName::new("redirect-guard"), hook, rules: rules.collect() }
}

pub(super) fn has_icmp_type(protocol: u8, kind: u8) -> [Expr; 4] {
    let is = |byte| Expr::Cmp { sreg: 0, op: CmpOp::Eq, data: vec![byte] };
    [
        Expr::Meta { dreg: 0, key: MetaKey::L4Proto },
        is(protocol),
        Expr::TransportHeader { dreg: 0, offset: 0, len: 1 },
        is(kind),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(peers: &[(&str, &str)]) -> TunnelGuard {
        let read = |(node, pods): &(&str, &str)| (node.parse().unwrap(), pods.parse().unwrap());
        TunnelGuard { vni: 1, port: 4789, peers: peers.iter().map(read).collect(), checks_inner: true }
    }

    #[test]
    fn rules_are_as_few_as_shapes_of_pod_cidrs_and_elements_as_many_as_nodes() {
        let many: BTreeSet<(IpAddr, IpNet)> = (0..200u8)
            .flat_map(|i| {
                let node = IpAddr::from([192, 168, 77, i]);
                [format!("10.244.{i}.0/24"), format!("fd00:{i}::/64")].map(|net| (node, net.parse().unwrap()))
            })
            .collect();
        let guard = TunnelGuard { peers: many, ..guard(&[]) };
        assert_eq!(guard.chains(None)[0].rules.len(), 3, "two lengths, and the rest is dropped");
        assert_eq!(guard.elements().len(), 200 + 2 * 200);
    }

    #[test]
    fn networks_of_two_lengths_are_not_taken_for_each_other() {
        let keys = |pods: &str| {
            let elements = guard(&[("192.168.77.2", pods)]).elements();
            elements.into_iter().find(|id| id.set == tunnel_sources(Family::V4, Family::V4)).unwrap().key
        };
        assert_ne!(keys("10.244.1.0/24"), keys("10.244.1.0/25"));
        assert_eq!(keys("10.244.1.0/24").as_slice(), [192, 168, 77, 2, 10, 244, 1, 0, 24, 0, 0, 0]);
    }

    #[test]
    fn without_any_peer_everything_is_dropped() {
        let chains = guard(&[]).chains(None);
        assert_eq!(chains[0].rules.len(), 1);
        assert_eq!(chains[0].rules[0].exprs.last(), Some(&Expr::Verdict(Verdict::Drop)));
    }

    #[test]
    fn only_names_as_the_plugin_makes_them_are_those_of_pods_links() {
        let [_, Expr::Cmp { data: least, .. }, Expr::Cmp { data: most, .. }, ..] = is_pod_link(Side::In)
        else {
            panic!("other expressions");
        };
        let is = |name: &str| {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(16, 0);
            least <= bytes && bytes <= most
        };
        assert!(is("sl000000000000") && is("sl0123456789ab") && is("slffffffffffff"));
        for other in ["sl0", "eth0", "sluice-vxlan0", "sluice0", "slip0", "lo", "zz0", "sk9"] {
            assert!(!is(other), "{other}");
        }
    }
}
