//! Fields that are accepted for the sake of existing files and have no effect, with the reason.

use super::duration::GoDuration;
use super::raw::{Ebpf, Iptables, Ipvs, KubeProxyConfiguration, Winkernel};
use super::validate::parse_cidr;

/// What to tell about a configuration as it was written, before defaults.
pub(super) fn told(config: &KubeProxyConfiguration) -> Vec<String> {
    let mut told = Told(Vec::new());
    modes(config, &mut told);
    let beyond =
        |period: Option<GoDuration>| period.is_some_and(|period| period.value > GoDuration::seconds(1).value);
    let min = if matches!(config.mode.as_str(), "" | "iptables") {
        &config.iptables.min_sync_period
    } else {
        &config.nftables.min_sync_period
    };
    told.no_effect(
        beyond(*min),
        "minSyncPeriod",
        "changes are applied at once, because their cost does not depend on the number of Services",
    );
    let client = &config.client_connection;
    told.no_effect(
        (client.qps != 0.0 && client.qps != 5.0) || !matches!(client.burst, 0 | 10),
        "clientConnection.qps, burst",
        "each kind of object has one list and one watch, and retries back off",
    );
    told.no_effect(
        !client.accept_content_types.is_empty()
            || !matches!(
                client.content_type.as_str(),
                "" | "application/json" | "application/vnd.kubernetes.protobuf"
            ),
        "clientConnection.acceptContentTypes, contentType",
        "objects are always read as JSON",
    );
    told.no_effect(!config.port_range.is_empty(), "portRange", "unused by kube-proxy too");
    told.no_effect(config.winkernel != Winkernel::default(), "winkernel", "Windows only");
    told.no_effect(config.windows_run_as_service, "windowsRunAsService", "Windows only");
    told.no_effect(
        config.enable_profiling,
        "enableProfiling",
        "there are no Go profiles: /debug/pprof is not served",
    );
    let hidden = !config.show_hidden_metrics_for_version.is_empty();
    told.no_effect(hidden, "showHiddenMetricsForVersion", "no metric is hidden");
    let period = config
        .config_sync_period
        .is_some_and(|period| !period.is_zero() && period != GoDuration::seconds(900));
    told.no_effect(
        period,
        "configSyncPeriod",
        "state is compared with the kernel, not delivered again from memory",
    );
    let pods = &config.sluice.pod_network;
    let is_bridge = matches!(pods.bridge.as_str(), "" | sluice_cni::spec::BRIDGE);
    told.no_effect(
        !is_bridge && matches!(pods.mode.as_str(), "" | "routed"),
        "sluice.podNetwork.bridge",
        "for mode bridge of the pod network only",
    );
    for gate in config.feature_gates.keys().filter(|gate| !super::gates::has_effect(gate)) {
        told.no_effect(true, &format!("featureGates.{gate}"), "no behaviour depends on it");
    }
    let flush = &config.logging.flush_frequency;
    let flushes = !flush.is_null() && flush != "5s" && flush != "0s" && flush.as_i64() != Some(0);
    told.no_effect(flushes, "logging.flushFrequency", "every line is written at once");
    let buffered = |size: &serde_json::Value| !matches!(size.as_str(), None | Some("0"));
    let options = &config.logging.options;
    let buffers = buffered(&options.text.info_buffer_size) || buffered(&options.json.info_buffer_size);
    told.no_effect(buffers, "logging.options.*.infoBufferSize", "every line is written at once");
    told.0
}

struct Told(Vec<String>);

impl Told {
    fn no_effect(&mut self, is_set: bool, field: &str, why: &str) {
        if is_set {
            self.0.push(format!("{field}: has no effect here ({why})"));
        }
    }

    /// kube-proxy reads them in mode ipvs only, and so takes anything in other modes.
    fn unreadable_networks(&mut self, networks: &[String]) {
        let unreadable = networks.iter().enumerate().filter(|(_, entry)| parse_cidr(entry).is_none());
        self.0.extend(unreadable.map(|(i, entry)| {
            format!(
                "ipvs.excludeCIDRs[{i}]: {entry:?} is not a CIDR such as 192.0.2.0/24; until it is \
                 corrected, all virtual servers of an earlier mode stay"
            )
        }));
    }
}

fn modes(config: &KubeProxyConfiguration, told: &mut Told) {
    // What another mode left is removed in any mode, except what these networks have.
    let excluded = &config.ipvs.exclude_cidrs;
    let same_networks = |preset: Ipvs| Ipvs { exclude_cidrs: excluded.clone(), ..preset };
    let preset = [Ipvs::default(), unset_ipvs()].map(same_networks).contains(&config.ipvs);
    told.no_effect(
        config.mode != "ipvs" && !preset,
        "ipvs, except excludeCIDRs",
        "for mode ipvs only; excludeCIDRs selects virtual servers of an earlier mode that stay",
    );
    if config.mode != "ipvs" {
        told.unreadable_networks(excluded.as_deref().unwrap_or_default());
    }
    let is_ebpf = matches!(config.mode.as_str(), "ebpf" | "auto");
    // Where the programs are counts in any mode: what another mode left is removed.
    let bpffs = &config.sluice.ebpf.bpffs;
    let same_place = |preset: Ebpf| Ebpf { bpffs: bpffs.clone(), ..preset };
    let preset = [Ebpf::default(), preset_ebpf()].map(same_place).contains(&config.sluice.ebpf);
    told.no_effect(
        !is_ebpf && !preset,
        "sluice.ebpf, except bpffs",
        "for modes ebpf and auto only; bpffs says where programs of an earlier mode are",
    );
    let iptables = &config.iptables;
    if matches!(config.mode.as_str(), "" | "iptables") {
        let mode = if config.mode.is_empty() {
            "unset, which means kube-proxy's default iptables,"
        } else {
            "\"iptables\""
        };
        told.0.push(format!(
            "mode: {mode} runs as nftables, with masqueradeBit, masqueradeAll and the sync periods of \
             section iptables; node ports answer on all addresses unless nodePortAddresses is set, and \
             on loopback if it contains \"localhost\""
        ));
        told.no_effect(
            iptables.localhost_node_ports == Some(true),
            "iptables.localhostNodePorts",
            "node ports answer on loopback if nodePortAddresses contains \"localhost\"",
        );
        return;
    }
    if config.mode == "ipvs" {
        return;
    }
    let mut ours = iptables.clone();
    ours.localhost_node_ports = None;
    let preset = Iptables {
        masquerade_bit: ours.masquerade_bit.filter(|bit| *bit == 14),
        sync_period: ours.sync_period.filter(|period| period.is_zero() || *period == GoDuration::seconds(30)),
        min_sync_period: ours
            .min_sync_period
            .filter(|period| period.is_zero() || *period == GoDuration::seconds(1)),
        ..Iptables::default()
    };
    told.no_effect(ours != preset, "iptables", "for mode iptables only");
}

/// The section as --write-config-to writes it.
fn preset_ebpf() -> Ebpf {
    let mut config = KubeProxyConfiguration::default();
    super::defaults::fill_in(&mut config);
    config.sluice.ebpf
}

/// The section as kubeadm writes it: present, with nothing set.
fn unset_ipvs() -> Ipvs {
    let zero = Some(GoDuration::default());
    Ipvs {
        sync_period: zero,
        min_sync_period: zero,
        tcp_timeout: zero,
        tcp_fin_timeout: zero,
        udp_timeout: zero,
        ..Ipvs::default()
    }
}
