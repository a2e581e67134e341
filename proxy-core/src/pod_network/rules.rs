//! Rules of the pod network: what leaves the cluster gets the node's address, and ports of the node
//! lead to pods.
//!
//! They have a table of their own, whatever drives the services.
//!
//! Ports of the node answer on its loopback addresses too, to its own processes (as portmap of
//! containernetworking/plugins). A packet from 127.0.0.1 leaves by the pod's link only where
//! `route_localnet` is set for that link, which would let whoever is at its other end reach what
//! the node serves on loopback: so packets that come from outside with such an address are dropped,
//! on every interface, before anything else looks at them. The kernel routes nothing from ::1, so
//! connections from there are left to the node.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::guard::{self, TunnelGuard, is_name, redirect_guard, source_guard};
use crate::lang::nftables::{
    CT_DNAT, Chain, ChainName, CmpOp, DNAT, Element, ElementId, Expr, Hook, MetaKey, OUTPUT, Op, POSTROUTING,
    PREROUTING, RAW, Reg, Rule, SNAT, Table, Verdict, Wanted, address_regs, any_bit, in_network,
    load_destination, load_source, local_type, not_loopback, of_family, plain_difference,
};
use crate::net::{Family, Protocol};

/// The table; all its sets are those of the guard.
pub static TABLE: Table = Table::new(guard::ID, &guard::SETS);

/// Node ports of Services count more, so ours come just behind them.
const BEHIND_SERVICES: i32 = DNAT + 1;

/// A port of the node that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// The protocol.
    pub protocol: Protocol,
    /// The node's port.
    pub port: u16,
    /// The node's address; `None`: all.
    pub host: Option<IpAddr>,
    /// The pod's address.
    pub pod: IpAddr,
    /// The pod's port.
    pub pod_port: u16,
}

/// What the rules follow from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRules {
    /// Networks of this node's pods, whose packets get the node's address when they leave the
    /// cluster; none: no packet does.
    pub masqueraded: Vec<IpNet>,
    /// Networks of the cluster.
    pub inside: Vec<IpNet>,
    /// Of several for one port the first one has it.
    pub host_ports: Vec<HostPort>,
    /// The node's own networks and addresses; ports of the node are no others' ports. `None`: every
    /// local address is the node's own. That is not so where a link holds addresses of Services, as
    /// with IPVS.
    pub own: Option<Vec<IpNet>>,
    /// `route_localnet` is set for pods with ports of the node, so that packets from 127.0.0.0/8
    /// leave to them. Where it cannot be set, connections from there are left to the node.
    pub from_loopback: bool,
    /// What may come out of the tunnel; `None`: there is none of ours.
    pub tunnel: Option<TunnelGuard>,
    /// Whether pods are kept from sending with addresses of others.
    pub sources: Sources,
    /// The bridge of pods, if there is one of ours.
    pub bridge: Option<String>,
}

/// Which sources pods may send with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sources {
    /// Any.
    #[default]
    Any,
    /// Their own only.
    Own,
    /// Of these networks their own only, and any that is in none of them.
    OwnOf(BTreeSet<IpNet>),
}

impl PodRules {
    /// Operations after which the table is right, whatever it held.
    pub fn replace(&self) -> Vec<Op> {
        let elements = self.elements().into_iter().map(Element::plain).collect();
        Wanted { sets: TABLE.sets().collect(), chains: self.chains(), elements }.overwrite()
    }

    /// Operations that make this table of another one, which is in the kernel as it should be. What
    /// does not change keeps its counters.
    pub fn difference(&self, from: &PodRules) -> Vec<Op> {
        let mut ops = plain_difference(&from.elements(), &self.elements());
        let pairs = from.chains().into_iter().zip(self.chains());
        let changed = pairs.filter(|(is, shall)| is != shall);
        ops.extend(changed.map(|(_, shall)| Op::SetRules(shall.name, shall.rules)));
        ops
    }

    fn elements(&self) -> BTreeSet<ElementId> {
        self.tunnel.as_ref().map(TunnelGuard::elements).unwrap_or_default()
    }

    fn chains(&self) -> Vec<Chain> {
        let host_ports = ChainName::new("host-ports");
        let from_outside = self.to_host_ports(host_ports, |family| match family {
            Family::V4 => not_loopback(Family::V4),
            Family::V6 => Vec::new(),
        });
        let of_the_node = self.to_host_ports(host_ports, |family| match family {
            Family::V4 if self.from_loopback => Vec::new(),
            Family::V4 => in_network(load_source(Family::V4, 0), &loopback(), CmpOp::Neq),
            Family::V6 => not_from_loopback6(),
        });
        let at_nat = |number, priority| Some(Hook { chain_type: "nat", number, priority });
        let empty = |chain: Chain| Chain { rules: Vec::new(), ..chain };
        // Chains are always the same, so that one that is not needed any more is emptied.
        let bridge = self.bridge.as_deref();
        let sources = match &self.sources {
            Sources::Any => empty(source_guard(None)),
            Sources::Own => source_guard(None),
            Sources::OwnOf(networks) => source_guard(Some(networks)),
        };
        let pods = [sources, redirect_guard(bridge)];
        let tunnel = match &self.tunnel {
            Some(tunnel) => tunnel.chains(bridge),
            None => TunnelGuard::default().chains(bridge).into_iter().map(empty).collect(),
        };
        let nat = vec![
            Chain {
                name: ChainName::new("loopback-guard"),
                hook: Some(Hook { chain_type: "filter", number: PREROUTING, priority: RAW }),
                rules: loopback_guard(),
            },
            Chain { name: host_ports, hook: None, rules: self.host_ports.iter().map(translate).collect() },
            Chain {
                name: ChainName::new("prerouting"),
                hook: at_nat(PREROUTING, BEHIND_SERVICES),
                rules: from_outside,
            },
            Chain {
                name: ChainName::new("output"),
                hook: at_nat(OUTPUT, BEHIND_SERVICES),
                rules: of_the_node,
            },
            Chain {
                name: ChainName::new("postrouting"),
                hook: at_nat(POSTROUTING, SNAT),
                rules: self.masquerade(),
            },
        ];
        nat.into_iter().chain(pods).chain(tunnel).collect()
    }

    /// What can be addressed to a port of the node, and meets a condition, goes to the chain.
    fn to_host_ports(&self, chain: ChainName, condition: impl Fn(Family) -> Vec<Expr>) -> Vec<Rule> {
        let jump = |family, mut destination: Vec<Expr>| {
            let mut exprs = of_family(family);
            exprs.extend(condition(family));
            exprs.append(&mut destination);
            exprs.push(Expr::Verdict(Verdict::Jump(chain)));
            Rule::new("host ports", exprs)
        };
        let Some(own) = &self.own else {
            return Family::BOTH.into_iter().map(|family| jump(family, Vec::new())).collect();
        };
        let to = |net: &IpNet| {
            let family = Family::of_net(net);
            jump(family, in_network(load_destination(family, 0), net, CmpOp::Eq))
        };
        own.iter().map(to).collect()
    }

    fn masquerade(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        let mut pods: Vec<IpAddr> = self.host_ports.iter().map(|port| port.pod).collect();
        pods.sort_unstable();
        pods.dedup();
        rules.extend(pods.iter().copied().filter(IpAddr::is_ipv4).map(from_loopback));
        rules.extend(pods.into_iter().map(hairpin));
        for family in Family::BOTH {
            let own: Vec<&IpNet> =
                self.masqueraded.iter().filter(|net| Family::of_net(net) == family).collect();
            for to in inside(&self.inside, &self.masqueraded, family) {
                let mut exprs = of_family(family);
                exprs.extend(in_network(load_destination(family, 0), &to, CmpOp::Eq));
                exprs.push(Expr::Verdict(Verdict::Accept));
                if !own.is_empty() {
                    rules.push(Rule::new("inside the cluster", exprs));
                }
            }
            for from in own {
                let mut exprs = of_family(family);
                exprs.extend(in_network(load_source(family, 0), from, CmpOp::Eq));
                exprs.push(Expr::Masquerade);
                rules.push(Rule::new("pods that leave the cluster", exprs));
            }
        }
        rules
    }
}

/// Networks that pods are seen in with their own addresses, as few as possible.
fn inside(cluster: &[IpNet], own: &[IpNet], family: Family) -> Vec<IpNet> {
    let all = cluster.iter().chain(own).copied().filter(|net| Family::of_net(net) == family);
    let multicast = match family {
        Family::V4 => Ipv4Net::new(std::net::Ipv4Addr::new(224, 0, 0, 0), 4).map(IpNet::V4),
        Family::V6 => Ipv6Net::new(std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8).map(IpNet::V6),
    };
    IpNet::aggregate(&all.chain(multicast).collect::<Vec<_>>())
}

pub(super) fn address_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn is_address(load: Expr, ip: IpAddr) -> [Expr; 2] {
    [load, Expr::Cmp { sreg: 0, op: CmpOp::Eq, data: address_bytes(ip) }]
}

/// Addresses of the node that nobody else can have.
fn loopback() -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8))
}

/// Drops what nobody sends who means well: packets with a loopback address that come from outside.
/// Those of the node itself come from `lo`, or from the device of their VRF. In IPv6 the kernel
/// does that always.
fn loopback_guard() -> Vec<Rule> {
    let of_interface = |key, name| vec![Expr::Meta { dreg: 0, key }, is_name(name)];
    let accepted = |about, mut exprs: Vec<Expr>| {
        exprs.push(Expr::Verdict(Verdict::Accept));
        Rule::new(about, exprs)
    };
    let dropped = |about, load| {
        let mut exprs = of_family(Family::V4);
        exprs.extend(in_network(load, &loopback(), CmpOp::Eq));
        exprs.push(Expr::Verdict(Verdict::Drop));
        Rule::new(about, exprs)
    };
    vec![
        accepted("from the node itself", of_interface(MetaKey::IifName, "lo")),
        accepted("from a VRF of the node", of_interface(MetaKey::IifKind, "vrf")),
        dropped("from outside to loopback", load_destination(Family::V4, 0)),
        dropped("from outside with a loopback address", load_source(Family::V4, 0)),
    ]
}

/// Ends the rule for packets from ::1, whose answers would not come back.
fn not_from_loopback6() -> Vec<Expr> {
    let data = Ipv6Addr::LOCALHOST.octets().to_vec();
    vec![load_source(Family::V6, 0), Expr::Cmp { sreg: 0, op: CmpOp::Neq, data }]
}

/// A pod cannot answer to the node's loopback addresses.
fn from_loopback(pod: IpAddr) -> Rule {
    let family = Family::of(&pod);
    let mut exprs = of_family(family);
    exprs.push(Expr::CtStatus { dreg: 0 });
    exprs.extend(any_bit(CT_DNAT));
    exprs.extend(in_network(load_source(family, 0), &loopback(), CmpOp::Eq));
    exprs.extend(is_address(load_destination(family, 0), pod));
    exprs.push(Expr::Masquerade);
    Rule::new("from the node's loopback addresses", exprs)
}

/// A pod that calls itself by a port of the node would see its own address, and not answer to it.
fn hairpin(pod: IpAddr) -> Rule {
    let family = Family::of(&pod);
    let mut exprs = of_family(family);
    exprs.push(Expr::CtStatus { dreg: 0 });
    exprs.extend(any_bit(CT_DNAT));
    exprs.extend(is_address(load_source(family, 0), pod));
    exprs.extend(is_address(load_destination(family, 0), pod));
    exprs.push(Expr::Masquerade);
    Rule::new("pods that call themselves", exprs)
}

fn translate(port: &HostPort) -> Rule {
    let family = Family::of(&port.pod);
    let mut exprs = of_family(family);
    exprs.push(Expr::Meta { dreg: 0, key: MetaKey::L4Proto });
    exprs.push(Expr::Cmp { sreg: 0, op: CmpOp::Eq, data: vec![port.protocol.number()] });
    exprs.push(Expr::TransportHeader { dreg: 0, offset: 2, len: 2 });
    exprs.push(Expr::Cmp { sreg: 0, op: CmpOp::Eq, data: port.port.to_be_bytes().to_vec() });
    // Whatever was asked for, only what is addressed to this node is its port.
    exprs.extend([Expr::FibDestinationType { dreg: 0 }, local_type()]);
    if let Some(host) = port.host {
        exprs.extend(is_address(load_destination(family, 0), host));
    }
    let port_reg: Reg = address_regs(family);
    exprs.push(Expr::Immediate { dreg: 0, data: address_bytes(port.pod) });
    exprs.push(Expr::Immediate { dreg: port_reg, data: port.pod_port.to_be_bytes().to_vec() });
    exprs.push(Expr::Dnat { family, address: 0, port: port_reg });
    Rule::new("to a pod", exprs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn networks_of_the_cluster_are_put_together() {
        let cluster: Vec<IpNet> = (0..=255).map(|i| format!("10.244.{i}.0/24").parse().unwrap()).collect();
        let own = nets(&["10.244.1.0/24", "fd00:1::/64"]);
        let texts =
            |family| inside(&cluster, &own, family).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(Family::V4), ["10.244.0.0/16", "224.0.0.0/4"]);
        assert_eq!(texts(Family::V6), ["fd00:1::/64", "ff00::/8"]);
    }

    #[test]
    fn destinations_inside_the_cluster_are_excluded_before_the_masquerade_rule() {
        let rules = PodRules {
            masqueraded: nets(&["10.244.1.0/24"]),
            inside: nets(&["10.244.0.0/16"]),
            ..PodRules::default()
        };
        let about: Vec<&str> = rules.masquerade().iter().map(|rule| rule.about).collect();
        assert_eq!(about, ["inside the cluster", "inside the cluster", "pods that leave the cluster"]);
        assert!(PodRules { masqueraded: Vec::new(), ..rules }.masquerade().is_empty());
    }

    #[test]
    fn ports_of_the_node_are_no_ports_of_services_whose_addresses_it_holds() {
        let jumps = |own: Option<Vec<IpNet>>| {
            let rules = PodRules { own, ..PodRules::default() };
            let chain = |name: &str| {
                let chains = rules.chains();
                let found = chains.into_iter().find(|chain| chain.name.as_str() == name);
                found.map(|chain| chain.rules).unwrap_or_default()
            };
            assert_eq!(chain("prerouting").len(), chain("output").len());
            chain("prerouting")
        };
        assert_eq!(jumps(None).len(), 2, "one for each family, whatever the address");
        assert_eq!(jumps(Some(Vec::new())), []);
        let own = jumps(Some(nets(&["192.168.77.11/32", "fd00::1/128"])));
        assert_eq!(own.len(), 2);
        let compares = |rule: &Rule, bytes: &[u8]| {
            let is = |expr: &Expr| matches!(expr, Expr::Cmp { op: CmpOp::Eq, data, .. } if data == bytes);
            rule.exprs.iter().any(is)
        };
        assert!(compares(&own[0], &[192, 168, 77, 11]), "{:?}", own[0]);
        assert!(own.iter().all(|rule| matches!(rule.exprs.last(), Some(Expr::Verdict(Verdict::Jump(_))))));
    }

    #[test]
    fn a_port_of_the_node_translates_and_lets_its_pod_call_itself() {
        let port = HostPort {
            protocol: Protocol::Udp,
            port: 53,
            host: None,
            pod: "fd00:1::5".parse().unwrap(),
            pod_port: 5353,
        };
        let rules = PodRules {
            host_ports: vec![
                port.clone(),
                HostPort { port: 54, host: Some("2001:db8::1".parse().unwrap()), ..port },
            ],
            ..PodRules::default()
        };
        assert_eq!(rules.masquerade().len(), 1);
        let is_of_ports = |op: &Op| matches!(op, Op::SetRules(name, _) if name.as_str() == "host-ports");
        let Some(Op::SetRules(name, translations)) = rules.replace().into_iter().find(is_of_ports) else {
            panic!("no rules");
        };
        assert_eq!((name.as_str(), translations.len()), ("host-ports", 2));
        assert!(matches!(
            translations[0].exprs.last(),
            Some(Expr::Dnat { family: Family::V6, address: 0, port: 4 })
        ));
    }

    #[test]
    fn loopback_is_for_the_node_itself() {
        let port = HostPort {
            protocol: Protocol::Tcp,
            port: 80,
            host: Some("127.0.0.1".parse().unwrap()),
            pod: "10.244.1.5".parse().unwrap(),
            pod_port: 8080,
        };
        let rules = PodRules { host_ports: vec![port], ..PodRules::default() };
        let about = |chain: &str| -> Vec<&str> {
            let chains = rules.chains();
            let chain = chains.iter().find(|found| found.name.as_str() == chain).unwrap();
            chain.rules.iter().map(|rule| rule.about).collect()
        };
        assert_eq!(about("postrouting")[0], "from the node's loopback addresses");
        assert_eq!(
            about("loopback-guard")[2..],
            ["from outside to loopback", "from outside with a loopback address"]
        );
        // Where nothing from 127.0.0.0/8 can leave, it is not translated either.
        let jump = |from_loopback| {
            let chains = PodRules { from_loopback, ..rules.clone() }.chains();
            chains.into_iter().find(|found| found.name.as_str() == "output").unwrap().rules[0].exprs.clone()
        };
        let source = in_network(load_source(Family::V4, 0), &loopback(), CmpOp::Neq);
        let has_source = |exprs: &[Expr]| exprs.windows(source.len()).any(|part| part == source);
        assert!(has_source(&jump(false)) && !has_source(&jump(true)));
        let none = PodRules::default();
        assert_eq!(none.chains()[0].rules.len(), 4, "the guard is there before any port is");
    }
}
