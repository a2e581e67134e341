//! What is there whatever the Services are: sets, base chains and the chains that they call.

use std::net::IpAddr;

use ipnet::IpNet;

use super::classes::{
    CLASS, FRONTEND, INSIDE, IdTable, OUTSIDE, REFUSAL, dummy_load, from_host, has_server_mark, is_pod,
    load_tuple, set_mark, set_server_mark,
};
use super::sets::SetKind;
use super::{Balancer, NftConfig};
use crate::ipvs::Others;
use crate::lang::nftables::{
    CT_DNAT, CT_NEW, Chain, ChainName, CmpOp, DNAT, Element, Expr, FORWARD, Hook, INPUT, Key, MetaKey,
    OUTPUT, POSTROUTING, PREROUTING, Reg, Rule, SNAT, Value, Verdict, address_regs, any_bit,
    compare_loopback, in_network, load_destination, load_port, load_source, local_type, not_loopback,
    of_family, prefix_mask,
};
use crate::loopback::Loopback;
use crate::net::{Family, Protocol};
use crate::plan::Detector;

/// What the skeleton depends on and what may change while the daemon runs.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NodeView {
    /// Addresses that node ports answer on; unused in a family that matches all local addresses.
    pub node_port_addresses: Vec<IpAddr>,
    /// Networks out of which ClusterIPs are allocated.
    pub service_networks: Vec<IpNet>,
    /// Addresses of interfaces other than the one that holds the services' addresses. All their
    /// ports are the node's own, and where node ports answer on all addresses, on these. With IPVS
    /// only; none otherwise.
    pub own_addresses: Vec<IpAddr>,
    /// Addresses that others have, beside services: of other nodes, and of pods. All but the
    /// services' ports are theirs. With IPVS only; none otherwise.
    pub others: Others,
}

const BEFORE_DNAT: i32 = -110;
/// IPVS takes connections of this node at `NF_IP_PRI_NAT_DST + 2` (ip_vs_core.c), those of others
/// in the input hook.
const MARK: i32 = -106;
const BEFORE_IPVS: i32 = -105;
const FILTER: i32 = 0;

fn reject_chain() -> ChainName {
    ChainName::new("reject")
}

pub(super) fn source_filter_chain(family: Family) -> ChainName {
    ChainName::new(if family == Family::V4 { "filter-sources4" } else { "filter-sources6" })
}

/// Elements that are there whatever the Services are: what refusals and the classes of eTP=Local
/// lead to.
pub(super) fn static_elements() -> Vec<Element> {
    let mut elements = Vec::new();
    for family in Family::BOTH {
        let mut add = |kind: SetKind, key: &[u8], verdict| {
            elements.push(Element::new(kind.set(family), Key::new(key), Value::Verdict(verdict)));
        };
        add(SetKind::Refusals, &Refusal::Reject.bytes(), Verdict::Goto(reject_chain()));
        add(SetKind::Refusals, &Refusal::Drop.bytes(), Verdict::Drop);
        for table in [IdTable::Services, IdTable::NodePorts] {
            let chain = local_policy_chain(table, family);
            add(SetKind::Entries, &table.local_policy_class(), Verdict::Goto(chain));
        }
    }
    elements
}

/// Refuses connections to node ports on loopback; a rule for each protocol, in the order of their
/// numbers, counts them.
pub fn loopback_refusal_chain(family: Family) -> ChainName {
    ChainName::new(if family == Family::V4 { "refuse-loopback4" } else { "refuse-loopback6" })
}

/// What the filter hooks do with connections that are not translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Reject,
    Drop,
}

impl Refusal {
    pub(super) fn bytes(self) -> [u8; 4] {
        match self {
            Refusal::Reject => 1u32.to_ne_bytes(),
            Refusal::Drop => 2u32.to_ne_bytes(),
        }
    }
}

/// The entry chain of eTP=Local frontends.
fn local_policy_chain(table: IdTable, family: Family) -> ChainName {
    ChainName::new(&format!("{}-local", table.prefix(family)))
}

/// All chains that are there whatever the Services are. `prefix_lengths` are those of the source
/// ranges in use, by family.
pub fn chains(config: &NftConfig, node: &NodeView, prefix_lengths: &[(Family, u8)]) -> Vec<Chain> {
    let mut chains = vec![
        chain("reject", None, vec![Rule::new("refuse", vec![Expr::RejectPortUnreachable])]),
        chain("check-sources", None, check_sources()),
        chain("check-endpoints", None, check_endpoints(config)),
        chain("check-nodeports", None, check_node_ports(config)),
        chain("check-cluster-ips", None, check_cluster_ips(config, node)),
        chain("services", None, dispatch(config)),
    ];
    for family in Family::BOTH {
        let rules = filter_sources(family, prefix_lengths);
        chains.push(Chain { name: source_filter_chain(family), hook: None, rules });
        let rules = refuse_loopback();
        chains.push(Chain { name: loopback_refusal_chain(family), hook: None, rules });
        for table in [IdTable::Services, IdTable::NodePorts] {
            let rules = local_policy(config, table, family);
            chains.push(Chain { name: local_policy_chain(table, family), hook: None, rules });
        }
    }
    let sources = || vec![new_only("check-sources")];
    let addresses = || vec![new_only("check-endpoints"), new_only("check-cluster-ips")];
    chains.extend([
        chain("filter-prerouting", hook("filter", PREROUTING, BEFORE_DNAT), sources()),
        chain("filter-output-early", hook("filter", OUTPUT, BEFORE_DNAT), sources()),
        chain("filter-forward", hook("filter", FORWARD, FILTER), addresses()),
        chain("nat-postrouting", hook("nat", POSTROUTING, SNAT), masquerade(config)),
    ]);
    match config.balancer {
        Balancer::Ruleset => {
            let translate = || vec![Rule::new("translate", vec![jump("services")])];
            let of_the_node = translate().into_iter().chain(keep_node_ports(config)).collect();
            let input = vec![new_only("check-endpoints"), new_only("check-nodeports")];
            chains.extend([
                chain("nat-prerouting", hook("nat", PREROUTING, DNAT), translate()),
                chain("nat-output", hook("nat", OUTPUT, DNAT), of_the_node),
                chain("filter-input", hook("filter", INPUT, FILTER), input),
                chain("filter-output", hook("filter", OUTPUT, FILTER), addresses()),
            ]);
        }
        // All addresses of services are the node's own, so connections of others to them come to
        // the input hook. What IPVS shall not see must be refused before its place in the output
        // hook.
        Balancer::Ipvs => {
            let mark = || vec![new_only("services")];
            let mut input = addresses();
            input.insert(1, new_only("check-nodeports"));
            chains.extend([
                chain("mark-prerouting", hook("filter", PREROUTING, MARK), mark()),
                chain("mark-output", hook("filter", OUTPUT, MARK), mark()),
                chain("filter-input", hook("filter", INPUT, FILTER), input),
                chain("filter-output", hook("filter", OUTPUT, BEFORE_IPVS), addresses()),
            ]);
        }
    }
    chains
}

fn chain(name: &str, hook: Option<Hook>, rules: Vec<Rule>) -> Chain {
    Chain { name: ChainName::new(name), hook, rules }
}

fn hook(chain_type: &'static str, number: u32, priority: i32) -> Option<Hook> {
    Some(Hook { chain_type, number, priority })
}

fn jump(name: &str) -> Expr {
    Expr::Verdict(Verdict::Jump(ChainName::new(name)))
}

/// The first packet of a connection goes through a chain.
fn new_only(name: &str) -> Rule {
    let mut exprs = vec![Expr::CtState { dreg: 0 }];
    exprs.extend(any_bit(CT_NEW));
    exprs.push(jump(name));
    Rule::new("new connections", exprs)
}

/// Looks the destination up in a map of refusals and does what it says.
fn refuse(family: Family, table: IdTable, kind: SetKind) -> Vec<Expr> {
    let mut exprs = vec![dummy_load(REFUSAL, 4)];
    exprs.extend(table.load_key(family));
    exprs.push(Expr::LookupData { set: kind.set(family), sreg: 0, dreg: REFUSAL - 1 });
    exprs.push(Expr::LookupVerdict { set: SetKind::Refusals.set(family), sreg: REFUSAL });
    exprs
}

/// Looks the destination up among the frontends and goes to one of the class chains named there.
fn go_to_class(family: Family, table: IdTable, class: Reg) -> Vec<Expr> {
    let mut exprs = vec![dummy_load(class, 8)];
    exprs.extend(table.load_key(family));
    exprs.push(Expr::LookupData { set: table.frontends(family), sreg: 0, dreg: FRONTEND });
    let kind = if class == CLASS { SetKind::Entries } else { SetKind::Classes };
    exprs.push(Expr::LookupVerdict { set: kind.set(family), sreg: class });
    exprs
}

fn check_sources() -> Vec<Rule> {
    Family::BOTH
        .map(|family| {
            let mut exprs = of_family(family);
            exprs.extend(load_tuple(family));
            exprs.push(Expr::Lookup { set: SetKind::Filtered.set(family), sreg: 0 });
            exprs.push(Expr::Verdict(Verdict::Goto(source_filter_chain(family))));
            Rule::new("load balancer source ranges", exprs)
        })
        .into()
}

fn check_endpoints(config: &NftConfig) -> Vec<Rule> {
    let mut rules = short_circuited(config);
    rules.extend(Family::BOTH.map(|family| {
        let mut exprs = of_family(family);
        exprs.extend(refuse(family, IdTable::Services, SetKind::NoEndpoints));
        Rule::new("frontends without endpoints", exprs)
    }));
    rules
}

/// With IPVS the filter hooks see connections before they are translated; those that a mark leads
/// to all endpoints are not to be measured by the local ones.
fn short_circuited(config: &NftConfig) -> Vec<Rule> {
    if config.balancer == Balancer::Ruleset {
        return Vec::new();
    }
    let mut exprs = has_server_mark();
    exprs.push(Expr::Verdict(Verdict::Accept));
    vec![Rule::new("clients that reach all endpoints", exprs)]
}

fn check_node_ports(config: &NftConfig) -> Vec<Rule> {
    let refusals = Family::BOTH.map(|family| {
        let mut exprs = to_node_port(config, family);
        exprs.extend(refuse(family, IdTable::NodePorts, SetKind::NodePortNoEndpoints));
        Rule::new("node ports without endpoints", exprs)
    });
    // A process that listens on the number of a node port must not answer in its place.
    let on_loopback = Family::BOTH.map(|family| {
        let mut exprs = of_family(family);
        exprs.extend(compare_loopback(family, CmpOp::Eq));
        exprs.extend(IdTable::NodePorts.load_key(family));
        exprs.push(Expr::Lookup { set: SetKind::LoopbackRefusals.set(family), sreg: 0 });
        exprs.push(Expr::Verdict(Verdict::Goto(loopback_refusal_chain(family))));
        Rule::new("node ports on loopback", exprs)
    });
    refusals.into_iter().chain(on_loopback).collect()
}

/// Node ports count more than what comes behind them, ports of the node that lead to pods: on
/// loopback too, where a process of ours answers, or nobody. To be translated to what it is keeps a
/// connection from being translated later on.
fn keep_node_ports(config: &NftConfig) -> Vec<Rule> {
    let decided = |family: &Family| config.loopback[*family as usize] != Loopback::LocalStack;
    let keep = |family| {
        let port = address_regs(family);
        let mut exprs = of_family(family);
        exprs.extend(compare_loopback(family, CmpOp::Eq));
        exprs.extend(IdTable::NodePorts.load_key(family));
        let set = IdTable::NodePorts.frontends(family);
        exprs.push(Expr::LookupData { set, sreg: 0, dreg: FRONTEND });
        exprs.push(load_destination(family, 0));
        exprs.push(Expr::TransportHeader { dreg: port, offset: 2, len: 2 });
        exprs.push(Expr::Dnat { family, address: 0, port });
        Rule::new("node ports on loopback", exprs)
    };
    Family::BOTH.into_iter().filter(decided).map(keep).collect()
}

fn refuse_loopback() -> Vec<Rule> {
    let of = |protocol: Protocol| {
        let exprs = vec![
            Expr::Meta { dreg: 0, key: MetaKey::L4Proto },
            Expr::Cmp { sreg: 0, op: CmpOp::Eq, data: vec![protocol.number()] },
            Expr::Counter,
            Expr::RejectPortUnreachable,
        ];
        Rule::new("refuse and count", exprs)
    };
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(of).into()
}

fn dispatch(config: &NftConfig) -> Vec<Rule> {
    let addresses = Family::BOTH.map(|family| {
        let mut exprs = of_family(family);
        exprs.extend(go_to_class(family, IdTable::Services, CLASS));
        Rule::new("service addresses", exprs)
    });
    let ports = Family::BOTH.map(|family| {
        let mut exprs = to_node_port(config, family);
        exprs.extend(go_to_class(family, IdTable::NodePorts, CLASS));
        Rule::new("node ports", exprs)
    });
    addresses.into_iter().chain(ports).collect()
}

/// Ends the rule unless the packet is for one of the addresses that node ports answer on.
fn to_node_port(config: &NftConfig, family: Family) -> Vec<Expr> {
    let mut exprs = of_family(family);
    let listed = match (config.match_all_node_addresses[family as usize], config.balancer) {
        (false, _) => SetKind::NodePortAddresses,
        // Addresses of services are local too, and have no node ports.
        (true, Balancer::Ipvs) => SetKind::OwnAddresses,
        (true, Balancer::Ruleset) => {
            exprs.push(Expr::FibDestinationType { dreg: 0 });
            exprs.push(local_type());
            exprs.extend(not_loopback(family));
            return exprs;
        }
    };
    exprs.push(load_destination(family, 0));
    exprs.push(Expr::Lookup { set: listed.set(family), sreg: 0 });
    exprs
}

fn check_cluster_ips(config: &NftConfig, node: &NodeView) -> Vec<Rule> {
    let mut rules = Vec::new();
    if config.balancer == Balancer::Ipvs {
        rules.extend(known_to_ipvs());
        rules.extend(node.others.networks.iter().map(of_pods));
    }
    for family in Family::BOTH {
        let (key, refuse) = (vec![load_destination(family, 0)], Verdict::Goto(reject_chain()));
        rules.push(listed("ports that no service has", family, key, SetKind::ClusterIps, refuse));
    }
    for net in &node.service_networks {
        let family = Family::of_net(net);
        let mut exprs = of_family(family);
        exprs.extend(in_network(load_destination(family, 0), net, CmpOp::Eq));
        exprs.push(Expr::Verdict(Verdict::Drop));
        rules.push(Rule::new("addresses that no service has", exprs));
    }
    rules
}

/// What becomes of packets of a family whose key is in a set.
fn listed(name: &'static str, family: Family, key: Vec<Expr>, kind: SetKind, verdict: Verdict) -> Rule {
    let mut exprs = of_family(family);
    exprs.extend(key);
    exprs.push(Expr::Lookup { set: kind.set(family), sreg: 0 });
    exprs.push(Expr::Verdict(verdict));
    Rule::new(name, exprs)
}

/// What is dropped because its service is gone, and what is not to be refused although it is still
/// addressed to a service: ports that the service has, those that load balancers ask for the node's
/// health, and addresses that are the node's own too.
fn known_to_ipvs() -> Vec<Rule> {
    let ports = Family::BOTH.map(|family| {
        let table = IdTable::Services;
        let mut exprs = of_family(family);
        exprs.extend(table.load_key(family));
        exprs.push(Expr::LookupData { set: table.frontends(family), sreg: 0, dreg: FRONTEND });
        exprs.push(Expr::Verdict(Verdict::Accept));
        Rule::new("ports that a service has", exprs)
    });
    let health = Family::BOTH.map(|family| {
        let key = IdTable::NodePorts.load_key(family);
        listed("health checks", family, key, SetKind::HealthPorts, Verdict::Accept)
    });
    let to = |name, kind, verdict| {
        Family::BOTH.map(|family| listed(name, family, vec![load_destination(family, 0)], kind, verdict))
    };
    let closed = to("addresses of removed services", SetKind::Closed, Verdict::Drop);
    let addresses = to("addresses of the node", SetKind::OwnAddresses, Verdict::Accept);
    let others = to("addresses of other nodes", SetKind::OthersAddresses, Verdict::Accept);
    closed.into_iter().chain(ports).chain(health).chain(addresses).chain(others).collect()
}

fn of_pods(net: &IpNet) -> Rule {
    let family = Family::of_net(net);
    let mut exprs = of_family(family);
    exprs.extend(in_network(load_destination(family, 0), net, CmpOp::Eq));
    exprs.push(Expr::Verdict(Verdict::Accept));
    Rule::new("addresses of pods", exprs)
}

/// One rule for each prefix length in use: the source, cut to that length, must be listed for the
/// frontend. Hash lookups only, so a change costs the same however many ranges there are.
fn filter_sources(family: Family, prefix_lengths: &[(Family, u8)]) -> Vec<Rule> {
    let words = address_regs(family);
    let source: Reg = words + 2;
    let mut rules = Vec::new();
    for (_, length) in prefix_lengths.iter().filter(|(f, _)| *f == family) {
        let mut exprs = load_tuple(family);
        exprs.push(load_source(family, source));
        let mask = prefix_mask(*length, usize::from(words) * 4);
        let xor = vec![0; mask.len()];
        exprs.push(Expr::Bitwise { sreg: source, dreg: source, mask, xor });
        let data = u32::from(*length).to_ne_bytes().to_vec();
        exprs.push(Expr::Immediate { dreg: source + words, data });
        exprs.push(Expr::Lookup { set: SetKind::AllowedSources.set(family), sreg: 0 });
        exprs.push(Expr::Verdict(Verdict::Accept));
        rules.push(Rule::new("allowed sources", exprs));
    }
    rules.push(Rule::new("all other clients", vec![Expr::Verdict(Verdict::Drop)]));
    rules
}

/// eTP=Local: pods and this node are short-circuited to all endpoints, others get local ones only.
fn local_policy(config: &NftConfig, table: IdTable, family: Family) -> Vec<Rule> {
    if config.balancer == Balancer::Ipvs {
        return local_policy_by_marks(config, table, family);
    }
    let mut rules = Vec::new();
    if *config.detector(family) != Detector::None {
        let mut exprs = is_pod(config.detector(family), family, true);
        exprs.extend(go_to_class(family, table, INSIDE));
        rules.push(Rule::new("pods reach all endpoints", exprs));
    }
    let mut mark = from_host();
    mark.extend(set_mark(config));
    rules.push(Rule::new("masquerade this node", mark));
    let mut host = from_host();
    host.extend(go_to_class(family, table, INSIDE));
    rules.push(Rule::new("this node reaches all endpoints", host));
    rules.push(Rule::new("others reach local endpoints", go_to_class(family, table, OUTSIDE)));
    rules
}

/// The same with IPVS: a virtual server of its own has all endpoints, and takes the connections
/// that have its mark.
fn local_policy_by_marks(config: &NftConfig, table: IdTable, family: Family) -> Vec<Rule> {
    let mut rules = Vec::new();
    if *config.detector(family) != Detector::None {
        let mut exprs = is_pod(config.detector(family), family, true);
        exprs.extend(set_server_mark(table, family));
        rules.push(Rule::new("pods reach all endpoints", exprs));
    }
    let mut host = from_host();
    host.extend(set_server_mark(table, family));
    rules.push(Rule::new("this node reaches all endpoints", host));
    rules
}

/// The mark of a virtual server has done its work in the postrouting hook; the node's own
/// connections are masqueraded.
fn masquerade_by_marks() -> Vec<Rule> {
    let clear = [Expr::Immediate { dreg: 0, data: vec![0; 4] }, Expr::SetMark { sreg: 0 }];
    let mut host = has_server_mark();
    host.extend(from_host());
    host.extend(clear.clone());
    host.push(Expr::Masquerade);
    let mut pods = has_server_mark();
    pods.extend(clear);
    vec![Rule::new("this node reaches all endpoints", host), Rule::new("pods reach all endpoints", pods)]
}

fn masquerade(config: &NftConfig) -> Vec<Rule> {
    let mut marked = vec![Expr::Meta { dreg: 0, key: MetaKey::Mark }];
    marked.extend(any_bit(config.mark()));
    // The bit is cleared so that a packet that passes again (tunnels) is not masqueraded twice.
    marked.extend([
        Expr::Meta { dreg: 0, key: MetaKey::Mark },
        Expr::Bitwise { sreg: 0, dreg: 0, mask: (!config.mark()).to_ne_bytes().to_vec(), xor: vec![0; 4] },
        Expr::SetMark { sreg: 0 },
        Expr::Masquerade,
    ]);
    let is_ipvs = config.balancer == Balancer::Ipvs;
    let mut rules = if is_ipvs { masquerade_by_marks() } else { Vec::new() };
    rules.push(Rule::new("marked connections", marked));
    for family in Family::BOTH {
        let words = address_regs(family);
        let mut exprs = of_family(family);
        // IPVS leaves no such trace; but a pod that calls itself directly does not come by here.
        if !is_ipvs {
            exprs.push(Expr::CtStatus { dreg: 0 });
            exprs.extend(any_bit(CT_DNAT));
        }
        exprs.push(load_source(family, 0));
        exprs.push(load_destination(family, words));
        exprs.extend(load_port(2 * words));
        exprs.push(Expr::Lookup { set: SetKind::Hairpin.set(family), sreg: 0 });
        exprs.push(Expr::Masquerade);
        rules.push(Rule::new("pods that reach themselves", exprs));
    }
    rules
}
