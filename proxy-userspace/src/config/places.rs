//! Where a setting was written: by which flag, or on which line of the file. Pure.

use crate::go_yaml::Lines;

/// Flags, and the fields that they set.
const FIELDS: &[(&str, &[&str])] = &[
    ("bind-address", &["bindAddress"]),
    ("bind-address-hard-fail", &["bindAddressHardFail"]),
    ("cluster-cidr", &["clusterCIDR"]),
    ("config-sync-period", &["configSyncPeriod"]),
    ("conntrack-max-per-core", &["conntrack.maxPerCore"]),
    ("conntrack-min", &["conntrack.min"]),
    ("conntrack-tcp-be-liberal", &["conntrack.tcpBeLiberal"]),
    ("conntrack-tcp-timeout-close-wait", &["conntrack.tcpCloseWaitTimeout"]),
    ("conntrack-tcp-timeout-established", &["conntrack.tcpEstablishedTimeout"]),
    ("conntrack-udp-timeout", &["conntrack.udpTimeout"]),
    ("conntrack-udp-timeout-stream", &["conntrack.udpStreamTimeout"]),
    ("detect-local-mode", &["detectLocalMode"]),
    ("feature-gates", &["featureGates"]),
    ("healthz-bind-address", &["healthzBindAddress"]),
    ("hostname-override", &["hostnameOverride"]),
    ("iptables-localhost-nodeports", &["iptables.localhostNodePorts"]),
    ("iptables-masquerade-bit", &["iptables.masqueradeBit"]),
    ("iptables-min-sync-period", &["iptables.minSyncPeriod", "nftables.minSyncPeriod"]),
    ("iptables-sync-period", &["iptables.syncPeriod", "nftables.syncPeriod"]),
    ("ipvs-exclude-cidrs", &["ipvs.excludeCIDRs"]),
    ("ipvs-min-sync-period", &["ipvs.minSyncPeriod"]),
    ("ipvs-scheduler", &["ipvs.scheduler"]),
    ("ipvs-strict-arp", &["ipvs.strictARP"]),
    ("ipvs-sync-period", &["ipvs.syncPeriod"]),
    ("ipvs-tcp-timeout", &["ipvs.tcpTimeout"]),
    ("ipvs-tcpfin-timeout", &["ipvs.tcpFinTimeout"]),
    ("ipvs-udp-timeout", &["ipvs.udpTimeout"]),
    ("kube-api-burst", &["clientConnection.burst"]),
    ("kube-api-content-type", &["clientConnection.contentType"]),
    ("kube-api-qps", &["clientConnection.qps"]),
    ("log-flush-frequency", &["logging.flushFrequency"]),
    ("log-json-info-buffer-size", &["logging.options.json.infoBufferSize"]),
    ("log-json-split-stream", &["logging.options.json.splitStream"]),
    ("log-text-info-buffer-size", &["logging.options.text.infoBufferSize"]),
    ("log-text-split-stream", &["logging.options.text.splitStream"]),
    ("logging-format", &["logging.format"]),
    ("metrics-bind-address", &["metricsBindAddress"]),
    ("nodeport-addresses", &["nodePortAddresses"]),
    ("oom-score-adj", &["oomScoreAdj"]),
    ("pod-bridge-interface", &["detectLocal.bridgeInterface"]),
    ("pod-interface-name-prefix", &["detectLocal.interfaceNamePrefix"]),
    ("profiling", &["enableProfiling"]),
    ("proxy-mode", &["mode"]),
    ("scheduler", &["sluice.scheduler"]),
    ("show-hidden-metrics-for-version", &["showHiddenMetricsForVersion"]),
    ("v", &["logging.verbosity"]),
    ("vmodule", &["logging.vmodule"]),
];

/// Where settings come from.
#[derive(Debug, Default)]
pub(super) struct Places<'a> {
    /// The lines of the file's fields, if there is a file.
    pub(super) lines: Option<&'a Lines>,
    /// Flags that were typed and have a say.
    pub(super) typed: Vec<&'a str>,
}

impl Places<'_> {
    /// A message that begins with a field's path, with the flag that sets it, or the line.
    pub(super) fn placed(&self, message: String) -> String {
        let Some((path, rest)) = message.split_once(": ").filter(|(path, _)| !path.contains(' ')) else {
            return message;
        };
        let flag = flag_of(path).filter(|flag| self.lines.is_none() || self.typed.contains(flag));
        match (flag, self.lines.and_then(|lines| lines.of(path))) {
            (Some(flag), _) => format!("--{flag} ({path}): {rest}"),
            (None, Some(line)) => format!("{path}: {rest} (line {line})"),
            (None, None) => message,
        }
    }
}

/// What a message is about.
pub(super) fn path(message: &str) -> &str {
    message.split_once(": ").map_or(message, |(path, _)| path)
}

/// The flag that sets a field, or a part of it.
fn flag_of(path: &str) -> Option<&'static str> {
    let is_part = |field: &&str| {
        path.strip_prefix(field).is_some_and(|rest| matches!(rest.chars().next(), None | Some('[' | '.')))
    };
    FIELDS.iter().find(|(_, fields)| fields.iter().any(is_part)).map(|(flag, _)| *flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn without_a_file_the_flag_is_named() {
        let places = Places::default();
        let placed = |message: &str| places.placed(message.into());
        assert_eq!(
            placed("clusterCIDR: \"x\" is not a CIDR"),
            "--cluster-cidr (clusterCIDR): \"x\" is not a CIDR"
        );
        assert_eq!(placed("nodePortAddresses[2]: x"), "--nodeport-addresses (nodePortAddresses[2]): x");
        assert_eq!(placed("featureGates.A: x"), "--feature-gates (featureGates.A): x");
        assert_eq!(placed("modest: x"), "modest: x");
        assert_eq!(placed("the host has no name: x"), "the host has no name: x");
    }

    #[test]
    fn with_a_file_the_line_is_named_unless_a_flag_overrides_it() {
        let lines = crate::go_yaml::first_document("mode: x\nsluice:\n  scheduler: y\n").unwrap().lines;
        let places = Places { lines: Some(&lines), typed: vec!["scheduler"] };
        let placed = |message: &str| places.placed(message.into());
        assert_eq!(placed("mode: wrong"), "mode: wrong (line 1)");
        assert_eq!(placed("sluice.scheduler: wrong"), "--scheduler (sluice.scheduler): wrong");
        assert_eq!(placed("sluice.ebpf.flows: wrong"), "sluice.ebpf.flows: wrong (line 2)");
        assert_eq!(placed("clusterCIDR: wrong"), "clusterCIDR: wrong");
    }

    #[test]
    fn all_flags_of_the_table_exist() {
        let command = crate::cli::Cli::command();
        let run = command.find_subcommand("run").unwrap();
        for (flag, _) in FIELDS {
            assert!(run.get_arguments().any(|argument| argument.get_long() == Some(flag)), "{flag}");
        }
    }
}
