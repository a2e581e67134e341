//! On which addresses node ports answer: from `nodePortAddresses` and its feature gate. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sluice_core::loopback::{Loopback, localhost};
use sluice_core::net::Family;

use super::gates::{self, LOCALHOST_NODE_PORTS};
use super::raw::KubeProxyConfiguration;
use super::validate::{Errors, parse_cidr};

/// On which of the node's addresses node ports answer (reference 3.1).
///
/// Each family is judged by its own networks. One whose only networks are loopback, or hold no
/// address of the node, is a restricted one without node ports, and not one that nobody restricted.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct NodePortSelection {
    /// The node's primary addresses, whatever they are at the time (keyword `primary`).
    pub primary: bool,
    /// Addresses of interfaces in these networks; those that the keywords `localhost` and `all`
    /// stand for are among them.
    pub networks: Vec<IpNet>,
    /// Whether loopback is ours to serve or to refuse (gate `KubeProxyNFTablesLocalhostNodePorts`).
    pub decides_loopback: bool,
}

impl NodePortSelection {
    fn networks_of(&self, family: Family) -> impl Iterator<Item = &IpNet> {
        self.networks.iter().filter(move |net| Family::of_net(net) == family)
    }

    /// Whether node ports of a family answer on all local addresses but loopback: nothing is listed
    /// for it, or a network of prefix length 0 is. With `primary` a family without a primary
    /// address has no node ports (kube-proxy would open them everywhere).
    pub fn matches_all(&self, family: Family) -> bool {
        let is_restricted = self.primary || self.networks_of(family).next().is_some();
        !is_restricted || self.networks_of(family).any(|net| net.prefix_len() == 0)
    }

    /// Whether an interface's address is listed, loopback or not. Nothing is where a family matches
    /// all.
    pub fn lists(&self, ip: &IpAddr) -> bool {
        let family = Family::of(ip);
        !self.matches_all(family) && self.networks_of(family).any(|net| net.contains(ip))
    }

    /// What becomes of node ports on loopback addresses of a family. A network that holds all
    /// addresses says nothing about loopback (kube-proxy 1.38).
    pub fn loopback(&self, family: Family) -> Loopback {
        let localhost = localhost(family);
        let is_meant = |net: &IpNet| net.prefix_len() > 0 && net.contains(&localhost);
        match self.decides_loopback {
            false => Loopback::LocalStack,
            true if self.networks_of(family).any(is_meant) => Loopback::Served,
            true => Loopback::Refused,
        }
    }
}

const ANYWHERE: [IpNet; 2] = [
    IpNet::new_assert(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
    IpNet::new_assert(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
];
const LOOPBACK: [IpNet; 2] = [
    IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
    IpNet::new_assert(IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
];

/// Reads `nodePortAddresses`: CIDRs and keywords in any mixture, each keyword once.
pub(super) fn selection(
    config: &KubeProxyConfiguration,
    errors: &mut Errors,
    warnings: &mut Vec<String>,
) -> NodePortSelection {
    let list = config.node_port_addresses.as_deref().unwrap_or_default();
    let mut found = NodePortSelection {
        decides_loopback: gates::is_on(&config.feature_gates, LOCALHOST_NODE_PORTS),
        ..NodePortSelection::default()
    };
    for (i, entry) in list.iter().enumerate() {
        let is_keyword = matches!(entry.as_str(), "primary" | "localhost" | "all");
        errors.check(!is_keyword || !list[..i].contains(entry), || {
            format!("nodePortAddresses[{i}]: {entry:?} is a duplicate: name a keyword once")
        });
        match (entry.as_str(), parse_cidr(entry)) {
            ("primary", _) => found.primary = true,
            ("localhost", _) => found.networks.extend(LOOPBACK),
            ("all", _) => found.networks.extend(ANYWHERE),
            (_, Some(net)) => found.networks.push(net),
            (_, None) => errors.check(false, || {
                format!(
                    "nodePortAddresses[{i}]: {entry:?} is neither a CIDR such as 192.0.2.0/24 nor one of the \
                     keywords \"primary\", \"localhost\" and \"all\""
                )
            }),
        }
    }
    warnings.extend(told(&found));
    found
}

/// What one might not expect of a list.
fn told(selection: &NodePortSelection) -> Vec<String> {
    let mut told = Vec::new();
    for family in Family::BOTH {
        let mut networks = selection.networks_of(family).peekable();
        let is_listed = networks.peek().is_some();
        let is_loopback = |net: &IpNet| net.prefix_len() > 0 && net.addr().is_loopback();
        if !is_listed && !selection.primary && !selection.networks.is_empty() {
            told.push(format!(
                "nodePortAddresses: no {family} network is listed, so {family} node ports answer on all local \
                 addresses, as in kube-proxy"
            ));
        }
        if networks.any(is_loopback) && !selection.decides_loopback {
            told.push(format!(
                "nodePortAddresses: the loopback networks of {family} have no effect, because the feature gate \
                 {LOCALHOST_NODE_PORTS} is off"
            ));
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, Settings, resolve};

    fn settings(list: &[&str]) -> Result<Settings, String> {
        of(serde_json::json!({"mode": "nftables", "nodePortAddresses": list}))
    }

    fn of(mut config: serde_json::Value) -> Result<Settings, String> {
        config["clusterCIDR"] = "10.0.0.0/8,fd00::/8".into();
        let flags = Flags { manifests: Some("/m".into()), ..Flags::default() };
        let resolved = resolve(serde_json::from_value(config).unwrap(), &flags, "n");
        resolved.map_err(|error| error.to_string())
    }

    fn selected(list: &[&str]) -> NodePortSelection {
        settings(list).unwrap().node_port_addresses
    }

    /// Which families match all, IPv4 before IPv6.
    fn open(list: &[&str]) -> [bool; 2] {
        Family::BOTH.map(|family| selected(list).matches_all(family))
    }

    #[test]
    fn a_family_with_loopback_only_is_restricted_and_not_open() {
        assert_eq!(open(&["127.0.0.0/8"]), [false, true]);
        assert_eq!(open(&["127.0.0.1/32", "::1/128"]), [false, false]);
        assert_eq!(open(&["192.168.0.0/16", "::1/128"]), [false, false]);
        assert_eq!(open(&["127.0.0.5/8"]), [false, true], "host bits");
        assert_eq!(open(&["::ffff:127.0.0.0/104"]), [false, true], "IPv4 in the form of IPv6");
        assert_eq!(open(&["localhost"]), [false, false]);
        assert_eq!(open(&["primary", "localhost"]), [false, false]);
        for list in [&["localhost"][..], &["127.0.0.0/8", "::1/128"]] {
            assert_eq!(settings(list).unwrap().warnings, Vec::<String>::new());
        }
    }

    #[test]
    fn a_family_is_open_when_nothing_restricts_it_or_everything_is_listed() {
        assert_eq!(open(&["10.0.0.0/8"]), [false, true]);
        assert_eq!(open(&["primary"]), [false, false]);
        assert_eq!(open(&["primary", "10.0.0.0/8"]), [false, false]);
        assert_eq!(open(&["all"]), [true, true]);
        assert_eq!(open(&["localhost", "all", "primary"]), [true, true]);
        assert_eq!(open(&["10.1.2.3/0", "fd00::/8"]), [true, false]);
        assert_eq!(open(&["::/0", "127.0.0.0/8"]), [false, true]);
        let warnings = settings(&["10.0.0.0/8"]).unwrap().warnings;
        assert!(warnings.iter().any(|told| told.contains("no IPv6 network")), "{warnings:?}");
    }

    #[test]
    fn what_is_listed_is_told_by_family() {
        let list = selected(&["10.1.2.3/8", "127.0.0.0/8", "::/0"]);
        let lists = |ip: &str| list.lists(&ip.parse().unwrap());
        assert!(lists("10.9.0.1") && lists("127.0.0.1"));
        assert!(!lists("192.168.0.1") && !lists("fd00::1"), "IPv6 matches all");
    }

    #[test]
    fn loopback_is_served_where_it_is_meant_and_refused_elsewhere() {
        let of = |list: &[&str]| Family::BOTH.map(|family| selected(list).loopback(family));
        let (served, refused) = (Loopback::Served, Loopback::Refused);
        assert_eq!(of(&["primary"]), [refused, refused]);
        assert_eq!(of(&["all"]), [refused, refused]);
        assert_eq!(of(&["0.0.0.0/0", "::/0"]), [refused, refused]);
        assert_eq!(of(&["localhost"]), [served, served]);
        assert_eq!(of(&["all", "localhost"]), [served, served]);
        assert_eq!(of(&["127.0.0.1/32"]), [served, refused]);
        assert_eq!(of(&["127.0.0.2/32", "126.0.0.0/7"]), [served, refused]);
        assert_eq!(of(&["127.0.0.2/32"]), [refused, refused], "what serves is at 127.0.0.1");
        assert_eq!(of(&["::/0", "::1/128"]), [refused, served]);
        assert_eq!(of(&["::/64"]), [refused, served]);
    }

    #[test]
    fn without_the_gate_loopback_is_the_local_stack_s() {
        let of = |gates: serde_json::Value| {
            let config = serde_json::json!({
                "mode": "nftables", "nodePortAddresses": ["localhost"], "featureGates": gates,
            });
            let settings = of(config).unwrap();
            (settings.node_port_addresses.loopback(Family::V4), settings.warnings)
        };
        let (loopback, warnings) = of(serde_json::json!({LOCALHOST_NODE_PORTS: false}));
        assert_eq!(loopback, Loopback::LocalStack);
        assert!(warnings.iter().any(|told| told.contains("loopback networks of IPv4")), "{warnings:?}");
        assert_eq!(of(serde_json::json!({LOCALHOST_NODE_PORTS: true})), (Loopback::Served, vec![]));
        assert_eq!(of(serde_json::json!({"AllBeta": false})).0, Loopback::LocalStack);
        let both = serde_json::json!({"AllBeta": false, LOCALHOST_NODE_PORTS: true});
        assert_eq!(of(both).0, Loopback::Served);
    }

    #[test]
    fn wrong_entries_are_told_by_their_index() {
        let told = |list: &[&str]| settings(list).unwrap_err();
        assert!(told(&["primary", "localhost", "primary"]).contains("nodePortAddresses[2]: \"primary\""));
        for wrong in ["Localhost", "PRIMARY", "any", "", "10.0.0.1", " 10.0.0.0/8", "10.0.0.0/33"] {
            let error = told(&["all", wrong]);
            assert!(error.contains("nodePortAddresses[1]: "), "{error}");
            assert!(!error.contains("nodePortAddresses[0]"), "{error}");
        }
        assert!(settings(&["10.0.0.0/8", "10.0.0.0/8"]).is_ok(), "networks may come again");
    }

    #[test]
    fn the_list_is_shown_as_it_was_given() {
        let shown = settings(&["localhost", "10.1.2.3/8"]).unwrap().effective.node_port_addresses;
        assert_eq!(shown, Some(vec!["localhost".into(), "10.1.2.3/8".into()]));
    }
}
