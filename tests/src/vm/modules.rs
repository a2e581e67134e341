//! Modules that a node of a cluster has loaded long before a proxy starts.
//!
//! Each is loaded by itself when it is asked for. But a new VM has none, and under emulation the
//! proxy that starts first would wait for a dozen of them, half a second each.

/// What nodes and pods are connected with, and what every backend uses.
pub const OF_A_NODE: [&str; 5] = ["veth", "bridge", "sctp", "nf_conntrack", "nf_conntrack_netlink"];

/// What rulesets of nftables are made of.
pub const OF_NFTABLES: [&str; 14] = [
    "nf_tables",
    "nf_nat",
    "nf_log_syslog",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_hash",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nft_redir",
    "nft_reject_inet",
];

/// What joins nodes.
pub const OF_POD_NETWORK: [&str; 1] = ["vxlan"];

/// What virtual servers and their addresses take.
pub const OF_IPVS: [&str; 4] = ["ip_vs", "ip_vs_rr", "ip_vs_mh", "dummy"];

/// What eBPF programs at interfaces are attached by, where the kernel has no TCX.
pub const OF_EBPF: [&str; 2] = ["sch_ingress", "cls_bpf"];
