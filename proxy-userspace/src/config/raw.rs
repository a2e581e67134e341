//! KubeProxyConfiguration v1alpha1 as kube-proxy reads it (reference 6.1), and our own section.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::duration::GoDuration;

/// Declares a configuration section: all fields optional, names as in the API.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$attr:meta])* $field:ident: $kind:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        pub struct $name { $(
            #[doc = concat!("`", stringify!($field), "` of the API reference.")]
            $(#[$attr])*
            pub $field: $kind
        ),* }
    };
}

section! {
    /// The configuration file.
    KubeProxyConfiguration {
        api_version: String,
        kind: String,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        feature_gates: BTreeMap<String, bool>,
        client_connection: ClientConnection,
        logging: Logging,
        hostname_override: String,
        bind_address: String,
        healthz_bind_address: String,
        metrics_bind_address: String,
        bind_address_hard_fail: bool,
        enable_profiling: bool,
        show_hidden_metrics_for_version: String,
        mode: String,
        iptables: Iptables,
        ipvs: Ipvs,
        nftables: Nftables,
        winkernel: Winkernel,
        detect_local_mode: String,
        detect_local: DetectLocalSection,
        #[serde(rename = "clusterCIDR")]
        cluster_cidr: String,
        node_port_addresses: Option<Vec<String>>,
        oom_score_adj: Option<i32>,
        conntrack: Conntrack,
        config_sync_period: Option<GoDuration>,
        port_range: String,
        #[serde(skip_serializing_if = "is_false")]
        windows_run_as_service: bool,
        sluice: Sluice,
    }
}
section! {
    /// How to reach the API server.
    ClientConnection {
        kubeconfig: String,
        accept_content_types: String,
        content_type: String,
        #[serde(serialize_with = "go_float")]
        qps: f32,
        burst: i32,
    }
}
section! {
    /// Logging.
    Logging {
        format: String,
        /// A duration, or nanoseconds as a number.
        flush_frequency: Value,
        verbosity: u32,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        vmodule: Vec<VModule>,
        options: LoggingOptions,
    }
}
section! {
    /// The verbosity of some source files.
    VModule {
        /// The file's name without its extension; `*` and `?` stand for other characters.
        file_pattern: String,
        verbosity: u32,
    }
}
section! {
    /// Settings of the log formats.
    LoggingOptions {
        text: FormatOptions,
        json: FormatOptions,
    }
}
section! {
    /// Settings of one log format.
    FormatOptions {
        /// Errors and warnings to stderr, the rest to stdout.
        #[serde(skip_serializing_if = "is_false")]
        split_stream: bool,
        /// A number of bytes, such as `512` or `1Ki`.
        info_buffer_size: Value,
    }
}
section! {
    /// Settings of kube-proxy's iptables mode.
    Iptables {
        masquerade_bit: Option<i32>,
        masquerade_all: bool,
        localhost_node_ports: Option<bool>,
        sync_period: Option<GoDuration>,
        min_sync_period: Option<GoDuration>,
    }
}
section! {
    /// Settings of the ipvs mode.
    Ipvs {
        sync_period: Option<GoDuration>,
        min_sync_period: Option<GoDuration>,
        scheduler: String,
        #[serde(rename = "excludeCIDRs")]
        exclude_cidrs: Option<Vec<String>>,
        #[serde(rename = "strictARP")]
        strict_arp: bool,
        tcp_timeout: Option<GoDuration>,
        tcp_fin_timeout: Option<GoDuration>,
        udp_timeout: Option<GoDuration>,
    }
}
section! {
    /// Settings of the nftables mode.
    Nftables {
        masquerade_bit: Option<i32>,
        masquerade_all: bool,
        sync_period: Option<GoDuration>,
        min_sync_period: Option<GoDuration>,
    }
}
section! {
    /// Settings of detectLocalMode.
    DetectLocalSection {
        bridge_interface: String,
        interface_name_prefix: String,
    }
}
section! {
    /// Connection tracking sysctls.
    Conntrack {
        max_per_core: Option<i32>,
        min: Option<i32>,
        tcp_established_timeout: Option<GoDuration>,
        tcp_close_wait_timeout: Option<GoDuration>,
        tcp_be_liberal: bool,
        udp_timeout: Option<GoDuration>,
        udp_stream_timeout: Option<GoDuration>,
    }
}
section! {
    /// Settings of the Windows mode.
    Winkernel {
        network_name: String,
        source_vip: String,
        #[serde(rename = "enableDSR")]
        enable_dsr: bool,
        root_hns_endpoint_name: String,
        forward_health_check_vip: bool,
    }
}
section! {
    /// Our own settings.
    Sluice {
        /// `random`, `rr` or `maglev`.
        scheduler: String,
        /// Whether to remove what kube-proxy left in the kernel once our own rules are in force.
        cleanup_kube_proxy: Option<bool>,
        /// Networks that external IPs and load balancer IPs may be of; without it all.
        #[serde(rename = "externalAddressCIDRs")]
        external_address_cidrs: Option<Vec<String>>,
        service_budget: ServiceBudget,
        ebpf: Ebpf,
        pod_network: PodNetwork,
    }
}
section! {
    /// How large one Service may be.
    ServiceBudget {
        /// Ports times addresses.
        frontends: Option<i64>,
        /// These, and ports times endpoints.
        elements: Option<i64>,
    }
}
section! {
    /// The network between pods.
    PodNetwork {
        /// `vxlan`, `direct` or `cross-subnet`; without it the pod network is somebody else's.
        backend: String,
        /// `routed` or `bridge`: how pods are wired to their node.
        mode: String,
        /// The bridge of mode bridge.
        bridge: String,
        /// What tells this VXLAN from others on the same port.
        vni: Option<i64>,
        /// The UDP port of VXLAN.
        port: Option<i64>,
        /// `IPv4` or `IPv6`: the family of VXLAN's outer packets; without it what two nodes have in
        /// common.
        underlay_family: String,
        /// The pods' MTU; 0 for what the path to the other nodes allows.
        mtu: Option<i64>,
        /// Whether pods get the node's address when they leave the cluster.
        masquerade: Option<bool>,
        /// Networks that are reached with the pods' own addresses, beside clusterCIDR and the
        /// nodes' pod CIDRs.
        check_sources: Option<bool>,
        #[serde(rename = "nonMasqueradeCIDRs")]
        non_masquerade_cidrs: Option<Vec<String>>,
        cni: Cni,
    }
}
section! {
    /// The CNI plugin and its configuration.
    Cni {
        /// The network's name.
        name: String,
        /// The plugin to install; by default `sluice-cni` beside this program.
        plugin: String,
        /// Where container runtimes look for plugins.
        bin_dir: String,
        /// Where container runtimes look for configurations.
        conf_dir: String,
        /// Where the plugin writes down who has which address.
        data_dir: String,
        /// Where daemon and plugin meet.
        run_dir: String,
        /// Configurations of plugins that come behind ours.
        chain: Option<Vec<Value>>,
    }
}
section! {
    /// Settings of the ebpf mode.
    Ebpf {
        /// The cgroup whose processes the socket programs are for; the root of the cgroup2 mount if
        /// it is not said.
        cgroup_root: String,
        /// The directory, on a BPF file system, that keeps maps and programs over restarts.
        bpffs: String,
        /// Connections that the packet programs remember.
        flows: Option<i64>,
        /// Whether node ports answer on loopback to sockets of the node.
        localhost_node_ports: bool,
        /// Whether the programs log what they decide.
        debug: bool,
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Go writes whole numbers without a fraction.
fn go_float<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 && value.abs() < 1e9 {
        serializer.serialize_i64(*value as i64)
    } else {
        serializer.serialize_f32(*value)
    }
}
