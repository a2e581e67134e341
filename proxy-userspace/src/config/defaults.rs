//! kube-proxy's defaults (reference 6.1), and which section counts in which mode.

use serde_json::Value;

use super::duration::GoDuration;
use super::raw::{FormatOptions, KubeProxyConfiguration, PodNetwork};

/// Where maps and programs of mode ebpf are pinned.
pub(crate) const BPFFS: &str = "/sys/fs/bpf/sluice";
/// Where container runtimes look for plugins.
pub(crate) const BIN_DIR: &str = "/opt/cni/bin";
/// Where container runtimes look for configurations.
pub(crate) const CONF_DIR: &str = "/etc/cni/net.d";

/// What the user asked for, where defaults would hide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Requested {
    /// Mode nftables, or one of ours (ebpf, auto), for which the section of nftables counts too.
    Nftables,
    /// Mode iptables, or none: its section counts.
    Iptables,
    /// Mode ipvs: its section counts, and that of iptables for masquerading.
    Ipvs,
    /// Anything else, which validation reports.
    Other,
}

/// Fills fields in that are not set. Afterwards `mode` is what runs, and the section of that mode
/// is what counts.
pub(super) fn fill_in(config: &mut KubeProxyConfiguration) -> Requested {
    default(&mut config.api_version, "kubeproxy.config.k8s.io/v1alpha1");
    default(&mut config.kind, "KubeProxyConfiguration");
    default(&mut config.bind_address, "0.0.0.0");
    let v6 = config.bind_address.contains(':');
    default(&mut config.healthz_bind_address, if v6 { "[::]:10256" } else { "0.0.0.0:10256" });
    default(&mut config.metrics_bind_address, if v6 { "[::1]:10249" } else { "127.0.0.1:10249" });
    with_port(&mut config.healthz_bind_address, 10256);
    with_port(&mut config.metrics_bind_address, 10249);
    default(&mut config.detect_local_mode, "ClusterCIDR");
    config.oom_score_adj.get_or_insert(-999);
    config.config_sync_period = config.config_sync_period.filter(|period| !period.is_zero());
    config.config_sync_period.get_or_insert(GoDuration::seconds(900));
    // kube-proxy drops it too.
    config.port_range.clear();
    client(config);
    logging(config);
    conntrack(config);
    default(&mut config.sluice.scheduler, "random");
    config.sluice.cleanup_kube_proxy.get_or_insert(true);
    default(&mut config.sluice.ebpf.bpffs, BPFFS);
    config.sluice.ebpf.flows.get_or_insert(131_072);
    pod_network(&mut config.sluice.pod_network);
    sections(config);
    mode(config)
}

fn default(field: &mut String, value: &str) {
    if field.is_empty() {
        value.clone_into(field);
    }
}

/// Completes an address without a port.
fn with_port(field: &mut String, port: u16) {
    if let Some(ip) = sluice_core::net::parse_ip(field.trim_start_matches('[').trim_end_matches(']')) {
        *field = std::net::SocketAddr::new(ip, port).to_string();
    }
}

fn client(config: &mut KubeProxyConfiguration) {
    let client = &mut config.client_connection;
    default(&mut client.content_type, "application/vnd.kubernetes.protobuf");
    if client.qps == 0.0 {
        client.qps = 5.0;
    }
    if client.burst == 0 {
        client.burst = 10;
    }
}

fn logging(config: &mut KubeProxyConfiguration) {
    let logging = &mut config.logging;
    default(&mut logging.format, "text");
    if matches!(&logging.flush_frequency, Value::Null) || is_zero(&logging.flush_frequency) {
        logging.flush_frequency = "5s".into();
    }
    let size = |options: &mut FormatOptions| match &options.info_buffer_size {
        Value::Null => options.info_buffer_size = "0".into(),
        Value::Number(number) => options.info_buffer_size = number.to_string().into(),
        _ => {}
    };
    size(&mut logging.options.text);
    size(&mut logging.options.json);
}

fn is_zero(value: &Value) -> bool {
    value.as_i64() == Some(0)
        || value.as_str().and_then(GoDuration::parse).is_some_and(|duration| duration.is_zero())
}

fn conntrack(config: &mut KubeProxyConfiguration) {
    let conntrack = &mut config.conntrack;
    conntrack.max_per_core.get_or_insert(32768);
    conntrack.min.get_or_insert(131_072);
    conntrack.tcp_established_timeout.get_or_insert(GoDuration::seconds(86_400));
    conntrack.tcp_close_wait_timeout.get_or_insert(GoDuration::seconds(3600));
    conntrack.udp_timeout.get_or_insert_default();
    conntrack.udp_stream_timeout.get_or_insert_default();
}

fn sections(config: &mut KubeProxyConfiguration) {
    config.iptables.masquerade_bit.get_or_insert(14);
    config.iptables.localhost_node_ports.get_or_insert(true);
    config.nftables.masquerade_bit.get_or_insert(14);
    let ipvs = &mut config.ipvs;
    ipvs.tcp_timeout.get_or_insert_default();
    ipvs.tcp_fin_timeout.get_or_insert_default();
    ipvs.udp_timeout.get_or_insert_default();
    let (iptables, nftables) = (&mut config.iptables, &mut config.nftables);
    for period in [
        &mut iptables.sync_period,
        &mut iptables.min_sync_period,
        &mut nftables.sync_period,
        &mut nftables.min_sync_period,
    ] {
        *period = period.filter(|period| !period.is_zero());
    }
}

/// Mode ipvs takes its masquerading from section iptables.
fn ipvs(config: &mut KubeProxyConfiguration) {
    config.ipvs.sync_period = config.ipvs.sync_period.filter(|period| !period.is_zero());
    config.ipvs.sync_period.get_or_insert(GoDuration::seconds(30));
    config.ipvs.min_sync_period.get_or_insert_default();
    let unset = Some(GoDuration::default());
    (config.iptables.sync_period, config.iptables.min_sync_period) = (unset, unset);
    let nftables = &mut config.nftables;
    (nftables.sync_period, nftables.min_sync_period, nftables.masquerade_all) = (unset, unset, false);
}

/// Only the section of the mode supplies sync periods and masqueradeAll; those of the others show
/// as unset, as in kube-proxy. Mode iptables, or none, runs as nftables with the values of its own
/// section.
fn mode(config: &mut KubeProxyConfiguration) -> Requested {
    let requested = match config.mode.as_str() {
        "nftables" | "ebpf" | "auto" => Requested::Nftables,
        // kube-proxy's default, which the files of existing clusters count on.
        "" | "iptables" => Requested::Iptables,
        "ipvs" => {
            ipvs(config);
            return Requested::Ipvs;
        }
        _ => return Requested::Other,
    };
    let (iptables, nftables) = (&mut config.iptables, &mut config.nftables);
    if requested == Requested::Iptables {
        nftables.masquerade_bit = iptables.masquerade_bit;
        nftables.masquerade_all = iptables.masquerade_all;
        nftables.sync_period = iptables.sync_period;
        nftables.min_sync_period = iptables.min_sync_period;
        if config.node_port_addresses.as_ref().is_none_or(Vec::is_empty) {
            // Said, because in mode nftables, which is what this configuration becomes, nothing
            // said means "primary".
            config.node_port_addresses = Some(vec!["0.0.0.0/0".into(), "::/0".into()]);
        }
        "nftables".clone_into(&mut config.mode);
    } else if config.node_port_addresses.as_ref().is_none_or(Vec::is_empty) {
        config.node_port_addresses = Some(vec!["primary".into()]);
    }
    nftables.sync_period.get_or_insert(GoDuration::seconds(30));
    nftables.min_sync_period.get_or_insert(GoDuration::seconds(1));
    let unset = Some(GoDuration::default());
    (iptables.sync_period, iptables.min_sync_period, iptables.masquerade_all) = (unset, unset, false);
    (config.ipvs.sync_period, config.ipvs.min_sync_period) = (unset, unset);
    requested
}
/// Without a backend the section stays as it is: there is no pod network of ours.
fn pod_network(section: &mut PodNetwork) {
    if section.backend.is_empty() {
        return;
    }
    default(&mut section.mode, "routed");
    default(&mut section.bridge, sluice_cni::spec::BRIDGE);
    section.vni.get_or_insert(1);
    // RFC 7348, section 5.
    section.port.get_or_insert(4789);
    section.mtu.get_or_insert(0);
    section.masquerade.get_or_insert(true);
    let cni = &mut section.cni;
    default(&mut cni.name, "sluice");
    default(&mut cni.bin_dir, BIN_DIR);
    default(&mut cni.conf_dir, CONF_DIR);
    default(&mut cni.data_dir, sluice_cni::spec::DATA);
    default(&mut cni.run_dir, sluice_cni::spec::RUN);
}
