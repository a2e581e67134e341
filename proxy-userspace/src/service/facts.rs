//! From settings, own Node and interface addresses to what plan and backend depend on. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use sluice_core::ebpf;
use sluice_core::ipvs::{self, IpvsConfig, Others, SchedulerName};
use sluice_core::loopback::Loopback;
use sluice_core::model::Node;
use sluice_core::net::Family;
use sluice_core::nft::{self, NftConfig, NodeView};
use sluice_core::plan::{self, Detector, Grants, PlanConfig};

use crate::config::{BackendKind, DetectLocal, GoDuration, Scheduler, Settings};
use crate::node::Device;

/// What is known of the node at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The own Node object.
    pub node: Option<Node>,
    /// Addresses of all interfaces.
    pub interfaces: Vec<IpAddr>,
    /// All interfaces but the loopback.
    pub devices: Vec<Device>,
    /// Networks out of which ClusterIPs are allocated.
    pub service_networks: Vec<IpNet>,
    /// Addresses of others, in mode ipvs.
    pub others: Others,
    /// Where API servers listen, or the proxy before them. A ClusterIP that leads there is none of
    /// these.
    pub api_servers: BTreeSet<(IpAddr, u16)>,
}

/// The node's primary address of a family: a specific bindAddress counts more than the Node object.
fn primary(settings: &Settings, facts: &NodeFacts, family: Family) -> Option<IpAddr> {
    let bound = settings.bind_address.filter(|ip| Family::of(ip) == family);
    bound.or_else(|| facts.node.as_ref()?.address(family))
}

/// The Node's addresses, for the log.
pub fn told_addresses(facts: &NodeFacts) -> String {
    let node = facts.node.iter();
    let addresses: Vec<String> = node.flat_map(|node| &node.addresses).map(ToString::to_string).collect();
    addresses.join(",")
}

/// What decisions depend on.
pub fn plan_config(settings: &Settings, facts: &NodeFacts) -> PlanConfig {
    let detects = |family| detector(settings, facts, family) != Detector::None;
    PlanConfig {
        node_name: settings.node_name.clone(),
        zone: facts.node.as_ref().and_then(|node| node.zone.clone()),
        node_addresses: Family::BOTH.iter().filter_map(|f| primary(settings, facts, *f)).collect(),
        detects_pods: [detects(Family::V4), detects(Family::V6)],
        masquerade_all: settings.masquerade_all,
        ignores_external_ips: !settings.gates.allow_service_external_ips,
        budget: settings.service_budget,
        grants: Grants {
            networks: settings.external_addresses.clone(),
            service_networks: facts.service_networks.clone(),
            api_servers: facts.api_servers.clone(),
        },
    }
}

/// How pods are told from others, for IPv4 and IPv6.
pub fn detectors(settings: &Settings, facts: &NodeFacts) -> [Detector; 2] {
    Family::BOTH.map(|family| detector(settings, facts, family))
}

fn detector(settings: &Settings, facts: &NodeFacts, family: Family) -> Detector {
    let cidr = |net: Option<IpNet>| net.map_or(Detector::None, Detector::Cidr);
    match &settings.detect_local {
        DetectLocal::ClusterCidr(list) => {
            cidr(list.iter().copied().find(|net| Family::of_net(net) == family))
        }
        DetectLocal::NodeCidr => cidr(facts.node.as_ref().and_then(|node| node.pod_cidr(family))),
        DetectLocal::BridgeInterface(name) => Detector::Interface(name.clone()),
        DetectLocal::InterfaceNamePrefix(prefix) => Detector::InterfacePrefix(prefix.clone()),
    }
}

/// The backend's configuration.
pub fn nft_config(settings: &Settings, facts: &NodeFacts) -> NftConfig {
    NftConfig {
        masquerade_bit: settings.masquerade_bit,
        detectors: detectors(settings, facts),
        scheduler: match settings.scheduler {
            // Maglev is refused without mode ebpf.
            Scheduler::Random | Scheduler::Maglev => nft::Scheduler::Random,
            Scheduler::RoundRobin => nft::Scheduler::RoundRobin,
        },
        match_all_node_addresses: Family::BOTH.map(|family| matches_all(settings, family)),
        loopback: Family::BOTH.map(|family| loopback(settings, family)),
        balancer: match settings.backend {
            BackendKind::Ipvs => nft::Balancer::Ipvs,
            _ => nft::Balancer::Ruleset,
        },
    }
}

/// What virtual servers are made by.
pub fn ipvs_config(settings: &Settings, sticky: SchedulerName) -> IpvsConfig {
    IpvsConfig { scheduler: settings.ipvs.scheduler, sticky, exclude: settings.ipvs.exclude.clone() }
}

/// What virtual servers depend on: node ports need one on each address that they answer on.
pub fn ipvs_view(settings: &Settings, facts: &NodeFacts) -> ipvs::NodeView {
    let own = own_addresses(facts);
    let mut node_port_addresses = node_port_addresses(settings, facts);
    node_port_addresses.extend(own.iter().filter(|ip| matches_all(settings, Family::of(ip))));
    node_port_addresses.sort_unstable();
    node_port_addresses.dedup();
    ipvs::NodeView { node_port_addresses, own_addresses: own, others: facts.others.clone() }
}

/// The node's primary addresses that are on an interface, by family.
pub fn primary_addresses(settings: &Settings, facts: &NodeFacts) -> [Option<IpAddr>; 2] {
    let own = own_addresses(facts);
    Family::BOTH.map(|family| {
        let is_there = |ip: &IpAddr| own.contains(ip);
        let any = || own.iter().copied().find(|ip| Family::of(ip) == family);
        primary(settings, facts, family).filter(is_there).or_else(any)
    })
}

/// Addresses that others than this node and Services have: other nodes, pods, and API servers.
/// Networks of pods that ClusterIPs are allocated from, too, do not count: somebody has configured
/// them wrongly, and ClusterIPs go first.
pub fn others(
    node_name: &str,
    nodes: &[Node],
    service_networks: &[IpNet],
    api_servers: &BTreeSet<(IpAddr, u16)>,
) -> Others {
    let of_others = nodes.iter().filter(|node| node.name.name() != node_name);
    let pods: Vec<IpNet> = nodes.iter().flat_map(|node| node.pod_cidrs.iter().copied()).collect();
    let overlaps = |a: &IpNet| service_networks.iter().any(|b| a.contains(b) || b.contains(a));
    let mut networks = IpNet::aggregate(&pods);
    networks.retain(|net| !overlaps(net));
    let is_cluster_ip = |ip: &IpAddr| service_networks.iter().any(|net| net.contains(ip));
    let api_servers = api_servers.iter().map(|(ip, _)| *ip).filter(|ip| !is_cluster_ip(ip));
    let addresses = of_others.flat_map(|node| node.addresses.iter().copied()).chain(api_servers).collect();
    Others { listed: true, addresses, networks }
}

/// Addresses of this node that a Service may have too. Those of a link (IPv6) come and go with
/// every pod, and no Service has them.
fn own_addresses(facts: &NodeFacts) -> Vec<IpAddr> {
    let is_usable = |ip: &&IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    facts.interfaces.iter().filter(is_usable).copied().collect()
}

/// Whether node ports of a family answer on all local addresses but loopback.
fn matches_all(settings: &Settings, family: Family) -> bool {
    settings.node_port_addresses.matches_all(family)
}

/// What becomes of node ports on loopback. The option of mode ebpf serves them whatever is listed.
pub fn loopback(settings: &Settings, family: Family) -> Loopback {
    match settings.backend {
        BackendKind::Ebpf if settings.ebpf.localhost_node_ports => Loopback::Served,
        _ => settings.node_port_addresses.loopback(family),
    }
}

/// In which families we listen on loopback for node ports. The programs of mode ebpf need no
/// listener.
pub fn listens_on_loopback(settings: &Settings) -> [bool; 2] {
    let by_programs = settings.backend == BackendKind::Ebpf;
    Family::BOTH.map(|family| !by_programs && loopback(settings, family) == Loopback::Served)
}

/// What is listed in families that do not match all: interface addresses, loopback ones too, and
/// the primary addresses, which need not be an interface's.
fn listed_addresses(settings: &Settings, facts: &NodeFacts) -> Vec<IpAddr> {
    let selection = &settings.node_port_addresses;
    let chosen = facts.interfaces.iter().copied().filter(|ip| selection.lists(ip));
    let primaries =
        Family::BOTH.iter().filter(|family| selection.primary && !matches_all(settings, **family));
    let mut found: Vec<IpAddr> =
        chosen.chain(primaries.filter_map(|family| primary(settings, facts, *family))).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// The addresses that node ports answer on in families that do not match all.
pub fn node_port_addresses(settings: &Settings, facts: &NodeFacts) -> Vec<IpAddr> {
    let mut found = listed_addresses(settings, facts);
    found.retain(|ip| !ip.is_loopback());
    found
}

/// Whether node ports answer on an address of this node.
pub fn has_node_ports(settings: &Settings, facts: &NodeFacts, ip: &IpAddr) -> bool {
    if matches_all(settings, Family::of(ip)) {
        return !ip.is_loopback() && facts.interfaces.contains(ip);
    }
    node_port_addresses(settings, facts).contains(ip)
}

/// The addresses of this node on which node ports answer.
pub fn answering_addresses(settings: &Settings, facts: &NodeFacts) -> BTreeSet<IpAddr> {
    facts.interfaces.iter().filter(|ip| has_node_ports(settings, facts, ip)).copied().collect()
}

/// What the skeleton of the ruleset depends on.
pub fn node_view(settings: &Settings, facts: &NodeFacts) -> NodeView {
    NodeView {
        node_port_addresses: node_port_addresses(settings, facts),
        service_networks: facts.service_networks.clone(),
        own_addresses: match settings.backend {
            BackendKind::Ipvs => own_addresses(facts),
            _ => Vec::new(),
        },
        others: facts.others.clone(),
    }
}

/// What is read from this machine, not told by the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineFacts {
    /// The cookie of the network namespace.
    pub netns: u64,
    /// Ports that the kernel gives to processes that ask for any.
    pub local_ports: RangeInclusive<u16>,
    /// What settings of `lo` were before they were changed.
    pub lo_before: sluice_sys::lo::Before,
    /// Slots of the map `NEWEST`.
    pub newest: u32,
}

/// What the maps of the eBPF backend say of the node.
pub fn ebpf_view(settings: &Settings, facts: &NodeFacts, machine: &MachineFacts) -> ebpf::NodeView {
    ebpf::NodeView {
        netns: machine.netns,
        own_addresses: facts.interfaces.clone(),
        node_port_addresses: node_port_addresses(settings, facts),
        match_all_node_addresses: Family::BOTH.map(|family| matches_all(settings, family)),
        service_networks: facts.service_networks.clone(),
        detectors: detectors(settings, facts),
        primary: Family::BOTH.map(|family| primary(settings, facts, family)),
        local_ports: machine.local_ports.clone(),
        timeouts: timeouts(settings),
        scheduler: ebpf_scheduler(settings),
        loopback: Family::BOTH.map(|family| loopback(settings, family)),
        lo_before: machine.lo_before.0,
        newest: machine.newest,
    }
}

/// How the eBPF backend picks endpoints.
pub fn ebpf_scheduler(settings: &Settings) -> plan::Scheduler {
    match settings.scheduler {
        Scheduler::Random => plan::Scheduler::Random,
        Scheduler::RoundRobin => plan::Scheduler::RoundRobin,
        Scheduler::Maglev => plan::Scheduler::Maglev,
    }
}

/// When silent flows end: what is set for conntrack counts for our own flows too.
fn timeouts(settings: &Settings) -> ebpf::Timeouts {
    let usual = ebpf::Timeouts::default();
    let seconds = |set: Option<GoDuration>, usual: u32| {
        let set = set.map_or(0, |duration| duration.value.as_secs());
        if set == 0 { usual } else { u32::try_from(set).unwrap_or(u32::MAX) }
    };
    let conntrack = &settings.conntrack;
    ebpf::Timeouts {
        udp: seconds(conntrack.udp_timeout, usual.udp),
        udp_stream: seconds(conntrack.udp_stream_timeout, usual.udp_stream),
        tcp_established: seconds(conntrack.tcp_established_timeout, usual.tcp_established),
    }
}

/// Where health-check node ports listen: everywhere in families that match all, else on what is
/// listed, as far as an interface has it. Loopback counts here, because it is an ordinary listener.
pub fn health_check_addresses(settings: &Settings, facts: &NodeFacts, family: Family) -> Vec<IpAddr> {
    if matches_all(settings, family) {
        return vec![match family {
            Family::V4 => IpAddr::from([0, 0, 0, 0]),
            Family::V6 => IpAddr::from([0u16; 8]),
        }];
    }
    let mut listed = listed_addresses(settings, facts);
    listed.retain(|ip| Family::of(ip) == family && facts.interfaces.contains(ip));
    listed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, resolve};
    use sluice_core::model::ObjectName;

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
    }

    fn settings(mode: &str, list: &[&str]) -> Settings {
        let config = serde_json::json!({"mode": mode, "nodePortAddresses": list});
        let flags = Flags { manifests: Some("/m".into()), ..Flags::default() };
        resolve(serde_json::from_value(config).unwrap(), &flags, "n").unwrap()
    }

    /// A node with an IPv4 address in the Node object, which has none of IPv6.
    fn facts() -> NodeFacts {
        let node = Node {
            name: ObjectName::cluster_scoped("n"),
            addresses: ips("192.168.0.2"),
            pod_cidrs: vec![],
            zone: None,
            eligible: true,
        };
        NodeFacts {
            node: Some(node),
            interfaces: ips("127.0.0.1 192.168.0.2 10.1.0.1 ::1 fd00::2 fe80::1"),
            ..NodeFacts::default()
        }
    }

    #[test]
    fn a_family_with_nothing_but_loopback_has_no_node_ports_in_any_mode() {
        for mode in ["nftables", "iptables", "ipvs", "ebpf", "auto"] {
            for list in [&["127.0.0.0/8", "::1/128"][..], &["localhost"], &["127.0.0.1/8", "::1/64"]] {
                let settings = settings(mode, list);
                assert_eq!(nft_config(&settings, &facts()).match_all_node_addresses, [false; 2], "{mode}");
                let none: Vec<IpAddr> = vec![];
                assert_eq!(node_view(&settings, &facts()).node_port_addresses, none, "{mode} {list:?}");
                assert_eq!(ipvs_view(&settings, &facts()).node_port_addresses, none, "{mode} {list:?}");
                assert!(facts().interfaces.iter().all(|ip| !has_node_ports(&settings, &facts(), ip)));
            }
        }
        let one = settings("ipvs", &["192.168.0.0/16", "::1/128"]);
        assert_eq!(ipvs_view(&one, &facts()).node_port_addresses, ips("192.168.0.2"));
    }

    #[test]
    fn node_ports_answer_on_addresses_that_the_node_has() {
        let of = |list, facts| Vec::from_iter(answering_addresses(&settings("ebpf", list), &facts));
        assert_eq!(of(&["primary"], facts()), ips("192.168.0.2"));
        let without = |lost: &str| {
            let mut facts = facts();
            facts.interfaces.retain(|ip| ip.to_string() != lost);
            facts
        };
        assert_eq!(of(&["primary"], without("192.168.0.2")), ips(""));
        assert_eq!(of(&["0.0.0.0/0"], facts()), ips("10.1.0.1 192.168.0.2 fd00::2 fe80::1"));
        assert_eq!(of(&["0.0.0.0/0", "fd00::/8"], without("10.1.0.1")), ips("192.168.0.2 fd00::2"));
    }

    #[test]
    fn networks_that_hold_no_address_of_the_node_open_nothing() {
        let settings = settings("nftables", &["203.0.113.0/24", "2001:db8::/32"]);
        assert_eq!(nft_config(&settings, &facts()).match_all_node_addresses, [false; 2]);
        assert_eq!(node_port_addresses(&settings, &facts()), ips(""));
        for family in Family::BOTH {
            assert_eq!(health_check_addresses(&settings, &facts(), family), ips(""));
        }
    }

    #[test]
    fn keywords_and_networks_add_up() {
        let addresses = |list| node_port_addresses(&settings("nftables", list), &facts());
        assert_eq!(addresses(&["primary"]), ips("192.168.0.2"));
        assert_eq!(addresses(&["primary", "localhost"]), ips("192.168.0.2"));
        assert_eq!(addresses(&["primary", "10.1.2.3/16"]), ips("10.1.0.1 192.168.0.2"));
        assert_eq!(addresses(&["localhost", "fd00::/8"]), ips("fd00::2"));
        assert_eq!(addresses(&["primary", "all"]), ips(""), "both families match all");
        let is_open = |ip: &str| {
            has_node_ports(&settings("nftables", &["all", "localhost"]), &facts(), &ip.parse().unwrap())
        };
        assert!(is_open("10.1.0.1") && is_open("fd00::2"));
        assert!(!is_open("127.0.0.1") && !is_open("::1") && !is_open("10.1.0.9"));
    }

    #[test]
    fn health_checks_listen_where_node_ports_answer_and_on_loopback_where_listed() {
        let of = |mode, list| {
            let settings = settings(mode, list);
            Family::BOTH.map(|family| health_check_addresses(&settings, &facts(), family))
        };
        let everywhere = [ips("0.0.0.0"), ips("::")];
        assert_eq!((of("iptables", &[]), of("ipvs", &[])), (everywhere.clone(), everywhere.clone()));
        assert_eq!(of("nftables", &["all", "localhost"]), everywhere);
        assert_eq!(of("nftables", &[]), [ips("192.168.0.2"), ips("")]);
        assert_eq!(of("nftables", &["localhost"]), [ips("127.0.0.1"), ips("::1")]);
        assert_eq!(of("nftables", &["primary", "localhost"]), [ips("127.0.0.1 192.168.0.2"), ips("::1")]);
        assert_eq!(of("ebpf", &["10.0.0.0/8"]), [ips("10.1.0.1"), ips("::")]);
        let mut elsewhere = facts();
        elsewhere.interfaces = ips("10.1.0.1");
        let primary = settings("nftables", &["primary"]);
        assert_eq!(health_check_addresses(&primary, &elsewhere, Family::V4), ips(""));
    }

    #[test]
    fn others_are_other_nodes_and_all_pods() {
        let node = |name: &str, number: u8| Node {
            name: ObjectName::cluster_scoped(name),
            addresses: vec![IpAddr::from([192, 168, 77, number])],
            pod_cidrs: vec![format!("10.244.{number}.0/24").parse().unwrap()],
            zone: None,
            eligible: true,
        };
        let nodes = [node("a", 2), node("b", 3)];
        let found = others("a", &nodes, &["10.96.0.0/12".parse().unwrap()], &BTreeSet::new());
        assert_eq!(found.addresses, [IpAddr::from([192, 168, 77, 3])].into());
        assert!(found.listed && !facts().others.listed, "nobody's addresses are known before the list");
        assert_eq!(found.networks, ["10.244.2.0/23".parse::<IpNet>().unwrap()]);
        let overlapping = others("a", &nodes, &["10.244.0.0/16".parse().unwrap()], &BTreeSet::new());
        assert!(overlapping.networks.is_empty());
        // API servers too, but where it is a ClusterIP that leads to them.
        let api_servers = ips("203.0.113.1 10.96.0.1").into_iter().map(|ip| (ip, 443)).collect();
        let found = others("a", &[], &["10.96.0.0/12".parse().unwrap()], &api_servers);
        assert_eq!(found.addresses, ips("203.0.113.1").into_iter().collect());
    }
}
