//! KubeProxyConfiguration v1alpha1 as kube-proxy reads it (reference 6.1), and our own section.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
        winkernel: serde_json::Value,
        detect_local_mode: String,
        detect_local: DetectLocalSection,
        #[serde(rename = "clusterCIDR")]
        cluster_cidr: String,
        node_port_addresses: Option<Vec<String>>,
        oom_score_adj: Option<i32>,
        conntrack: Conntrack,
        config_sync_period: Option<GoDuration>,
        port_range: String,
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
        qps: f32,
        burst: i32,
    }
}
section! {
    /// Logging.
    Logging {
        format: String,
        flush_frequency: serde_json::Value,
        verbosity: u32,
        vmodule: serde_json::Value,
        options: serde_json::Value,
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
    /// Our own settings.
    Sluice {
        /// `random` or `rr`.
        scheduler: String,
    }
}
