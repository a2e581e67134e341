//! The names that kube-proxy gives to what it writes.

/// Chains of its modes iptables and ipvs. KUBE-FIREWALL, KUBE-KUBELET-CANARY and KUBE-IPTABLES-HINT
/// are the kubelet's.
const CHAINS: [&str; 13] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-LOAD-BALANCER",
    "KUBE-NODE-PORT",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];

/// Those that kube-proxy leads to from built-in chains. A rule there that leads to another is
/// somebody else's, who uses it.
const ENTRIES: [&str; 9] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-NODE-PORT",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];

/// How chains of single Services and endpoints begin.
const CHAIN_PREFIXES: [&str; 6] =
    ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-", "KUBE-XLB-"];

/// How ipsets of mode ipvs begin, behind `KUBE-` or, for IPv6, `KUBE-6-`.
const SETS: [&str; 7] = [
    "CLUSTER-IP",
    "LOOP-BACK",
    "EXTERNAL-IP",
    "LOAD-BALANCER",
    "NODE-PORT",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];

/// The tables of mode nftables.
pub(super) const TABLE: &str = "kube-proxy";

/// Whether a chain of iptables is kube-proxy's.
pub(super) fn is_chain(name: &str) -> bool {
    CHAINS.contains(&name) || CHAIN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a rule of a built-in chain that leads to this chain is kube-proxy's.
pub(super) fn is_entry(name: &str) -> bool {
    ENTRIES.contains(&name)
}

/// Whether an ipset is kube-proxy's.
pub(super) fn is_set(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("KUBE-") else { return false };
    let rest = rest.strip_prefix("6-").unwrap_or(rest);
    SETS.iter().any(|set| rest.starts_with(set))
}
