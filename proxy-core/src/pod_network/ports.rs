//! The table of pods on a bridge: what comes in by a pod's port has the pod's hardware address and
//! one of its addresses.
//!
//! It belongs to the family `bridge`, because ARP and frames from one port to another never meet
//! the table of IP. Whatever is neither IP nor ARP is dropped: nothing that a pod needs, and
//! nothing that could be checked.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

use super::Mac;
use super::guard::{Dropped, ETH_P_IP, ETH_P_IPV6, ICMP6, REDIRECT6, has_icmp_type};
use super::rules::address_bytes;
use crate::lang::nftables::{
    Chain, ChainName, CmpOp, Element, ElementId, Expr, Field, Hook, Key, MetaKey, Op, PREROUTING, Rule, Set,
    SetId, SetSpec, Table, TableId, Verdict, Wanted, in_network, load_source, plain_difference,
};
use crate::net::Family;

/// `NF_BR_PRI_NAT_DST_BRIDGED` of linux/netfilter_bridge.h: before `br_netfilter` hands packets to
/// the tables of IP.
const BEFORE_IP: i32 = -300;
/// Of linux/if_ether.h.
const ETH_P_ARP: [u8; 2] = [0x08, 0x06];
/// RFC 4861, section 4; RFC 3810, section 5.2.
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const LISTENER_REPORT: u8 = 143;

/// A pod on a bridge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The host's end of its link.
    pub link: String,
    /// The hardware address of the pod's end.
    pub mac: Mac,
    /// The pod's addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// The pods on bridges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodPorts {
    /// Who is there.
    pub ports: BTreeSet<Port>,
    /// Networks out of which a pod has no address but its own; `None`: out of none at all. Programs
    /// at the ports (mode ebpf) have turned answers of endpoints back before they come here, so
    /// that their sources are those of Services.
    pub checked: Option<BTreeSet<IpNet>>,
}

const ID: TableId = TableId::bridge("sluice-pods");

/// The table.
pub static PORTS_TABLE: Table = Table::new(ID, &SETS);

static SETS: [Set; 3] = ID.sets([
    // Names of pods' ports.
    SetSpec::plain("ports", &[Field::Interface]),
    // Name of a port, hardware address, address of the pod behind it.
    SetSpec::plain("sources4", &[Field::Interface, Field::Ethernet, Field::Ipv4]),
    SetSpec::plain("sources6", &[Field::Interface, Field::Ethernet, Field::Ipv6]),
]);

const NAMES: SetId = SETS[0].id();

/// An address that stands for none: there is a hardware address without any.
const NOBODY: [u8; 4] = [0; 4];

fn sources(family: Family) -> SetId {
    match family {
        Family::V4 => SETS[1].id(),
        Family::V6 => SETS[2].id(),
    }
}

impl PodPorts {
    /// Operations after which the table is right, whatever its sets and rules held.
    pub fn replace(&self) -> Vec<Op> {
        let elements = self.elements().into_iter().map(Element::plain).collect();
        Wanted { sets: PORTS_TABLE.sets().collect(), chains: self.chains(), elements }.overwrite()
    }

    /// Operations that make this table of another one, which is in the kernel as it should be.
    pub fn difference(&self, from: &PodPorts) -> Vec<Op> {
        let mut ops = plain_difference(&from.elements(), &self.elements());
        if self.checked != from.checked {
            ops.extend(self.chains().into_iter().map(|chain| Op::SetRules(chain.name, chain.rules)));
        }
        ops
    }

    fn elements(&self) -> BTreeSet<ElementId> {
        self.ports.iter().flat_map(of_port).collect()
    }

    /// The name of the port that a frame came in by is in registers 0 to 3, the hardware address it
    /// says it is from in 4 and 5.
    fn chains(&self) -> Vec<Chain> {
        let checks = ChainName::new("pods");
        let entry = Rule::new(
            "from pods",
            vec![
                Expr::Meta { dreg: 0, key: MetaKey::IifName },
                Expr::Lookup { set: NAMES, sreg: 0 },
                Expr::Verdict(Verdict::Goto(checks)),
            ],
        );
        let hook = Some(Hook { chain_type: "filter", number: PREROUTING, priority: BEFORE_IP });
        vec![
            Chain { name: checks, hook: None, rules: checked(self.checked.as_ref()) },
            Chain { name: ChainName::new("prerouting"), hook, rules: vec![entry] },
        ]
    }
}

fn of_port(port: &Port) -> impl Iterator<Item = ElementId> {
    let mut name = port.link.as_bytes().to_vec();
    name.resize(16, 0);
    let name = Key::new(&name);
    let mut mac = [0; 8];
    mac[..6].copy_from_slice(&port.mac);
    let own = std::iter::once(IpAddr::V6(link_local(&port.mac)));
    let addresses = port.addresses.iter().copied().chain(own).map(move |ip| ElementId {
        set: sources(Family::of(&ip)),
        key: name.with(&mac).with(&address_bytes(ip)),
    });
    let nobody = ElementId { set: sources(Family::V4), key: name.with(&mac).with(&NOBODY) };
    addresses.chain([ElementId { set: NAMES, key: name }, nobody])
}

/// The link-local address that an interface gives itself (RFC 4291, appendix A).
fn link_local(mac: &Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = *mac;
    let words = [[a ^ 2, b], [c, 0xff], [0xfe, d], [e, f]].map(u16::from_be_bytes);
    Ipv6Addr::new(0xfe80, 0, 0, 0, words[0], words[1], words[2], words[3])
}

/// All link-local addresses.
pub(super) fn link_locals() -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10))
}

fn checked(networks: Option<&BTreeSet<IpNet>>) -> Vec<Rule> {
    let accept = |about, mut exprs: Vec<Expr>| {
        exprs.push(Expr::Verdict(Verdict::Accept));
        Rule::new(about, exprs)
    };
    let of_type = |data: [u8; 2]| {
        vec![
            // Of the frame itself: the kernel's own idea of it is behind a tag.
            Expr::LinkHeader { dreg: 0, offset: 12, len: 2 },
            Expr::Cmp { sreg: 0, op: CmpOp::Eq, data: data.to_vec() },
        ]
    };
    let own = |mac: Expr, address: Expr, family| {
        let name = Expr::Meta { dreg: 0, key: MetaKey::IifName };
        [name, mac, address, Expr::Lookup { set: sources(family), sreg: 0 }]
    };
    let frame = || Expr::LinkHeader { dreg: 4, offset: 6, len: 6 };
    let header = |offset, len| Expr::NetworkHeader { dreg: 6, offset, len };
    let with = |mut exprs: Vec<Expr>, more: Vec<Expr>| {
        exprs.extend(more);
        exprs
    };
    let icmp6 = |kind| with(of_type(ETH_P_IPV6), has_icmp_type(ICMP6, kind).into());
    // The address that neighbour discovery is about (RFC 4861, sections 4.3 and 4.4).
    let target = || own(frame(), Expr::TransportHeader { dreg: 6, offset: 8, len: 16 }, Family::V6);
    let nobody = || {
        let data = Ipv6Addr::UNSPECIFIED.octets().to_vec();
        vec![Expr::NetworkHeader { dreg: 0, offset: 8, len: 16 }, Expr::Cmp { sreg: 0, op: CmpOp::Eq, data }]
    };
    // What ARP says of its sender (RFC 826); the hardware address there counts, not only that of
    // the frame. A pod that looks whether an address is taken says that it has none (RFC 5227).
    let arp = own(Expr::NetworkHeader { dreg: 4, offset: 8, len: 6 }, header(14, 4), Family::V4);
    let arp_by_frame = own(frame(), header(14, 4), Family::V4);
    // A pod's hardware address, whatever the address is.
    let own_frame = || own(frame(), Expr::Immediate { dreg: 6, data: NOBODY.to_vec() }, Family::V4);
    let mut rules = vec![
        accept("own address", with(of_type(ETH_P_IP), own(frame(), header(12, 4), Family::V4).into())),
        accept("own ARP", with(of_type(ETH_P_ARP), [arp, arp_by_frame].concat())),
        accept("own neighbour advertisement", with(icmp6(NEIGHBOUR_ADVERTISEMENT), target().into())),
        Dropped::PodClaim.rule(icmp6(NEIGHBOUR_ADVERTISEMENT)),
        Dropped::PodClaim.rule(icmp6(ROUTER_ADVERTISEMENT)),
        Dropped::PodClaim.rule(icmp6(REDIRECT6)),
        accept(
            "duplicate address detection",
            [icmp6(NEIGHBOUR_SOLICITATION), nobody(), target().into()].concat(),
        ),
        accept("reports of listeners", [icmp6(LISTENER_REPORT), nobody(), own_frame().into()].concat()),
        accept("own address", with(of_type(ETH_P_IPV6), own(frame(), header(8, 16), Family::V6).into())),
    ];
    if let Some(networks) = networks {
        // No Service has an address of a link.
        rules.extend(networks.iter().chain([&link_locals()]).map(|net| {
            let family = Family::of_net(net);
            let mut exprs = of_type(if family == Family::V4 { ETH_P_IP } else { ETH_P_IPV6 });
            exprs.extend(in_network(load_source(family, 0), net, CmpOp::Eq));
            Dropped::PodSource.rule(exprs)
        }));
        rules.extend(
            [ETH_P_IP, ETH_P_IPV6].map(|kind| accept("turned back", with(of_type(kind), own_frame().into()))),
        );
    }
    rules.extend([
        Dropped::PodSource.rule(of_type(ETH_P_IP)),
        Dropped::PodSource.rule(of_type(ETH_P_IPV6)),
        Dropped::PodClaim.rule(Vec::new()),
    ]);
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(addresses: &[&str]) -> Port {
        Port {
            link: "sl0123456789ab".into(),
            mac: [2, 0, 0, 0, 0, 7],
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    fn pods<const N: usize>(ports: [Port; N]) -> PodPorts {
        PodPorts { ports: ports.into(), checked: None }
    }

    #[test]
    fn a_port_has_its_name_its_addresses_and_the_one_it_gives_itself() {
        let elements = pods([port(&["10.244.1.7", "fd00::7"])]).elements();
        assert_eq!(elements.len(), 5);
        let ours = [b"sl0123456789ab\0\0".as_slice(), &[2, 0, 0, 0, 0, 7, 0, 0], &[10, 244, 1, 7]].concat();
        assert!(elements.contains(&ElementId { set: sources(Family::V4), key: Key::new(&ours) }));
        assert_eq!(link_local(&[2, 0, 0, 0, 0, 7]).to_string(), "fe80::ff:fe00:7");
    }

    #[test]
    fn one_pod_more_costs_its_own_elements() {
        let one = pods([port(&["10.244.1.7"])]);
        let other = Port { link: "slffffffffffff".into(), ..port(&["10.244.1.8"]) };
        let both = pods([port(&["10.244.1.7"]), other]);
        assert_eq!(both.difference(&one).len(), 4);
        assert!(one.difference(&both).iter().all(|op| matches!(op, Op::DeleteElement(_))));
        assert_eq!(one.difference(&one), []);
    }
}
