//! Settings from the command line, with or without a configuration file.

use std::path::Path;

use super::places::{self, Places};
use super::raw::{KubeProxyConfiguration, Logging, VModule};
use super::resolve::{ConfigError, ConfigFile, Flags, Settings, resolve};
use super::{GoDuration, gates, load};
use crate::cli::{Invocation, List, RunArgs};
use crate::go_yaml::Lines;

/// Flags that have a say beside a configuration file.
const BESIDE_FILE: &[&str] = &[
    "config",
    "version",
    "write-config-to",
    "cleanup",
    "init-only",
    "hostname-override",
    "manifests",
    "kubeconfig",
    "master",
    "cleanup-kube-proxy",
    "cni",
    "scheduler",
    "v",
    "vmodule",
    "logging-format",
    "log-flush-frequency",
    "log-text-split-stream",
    "log-text-info-buffer-size",
    "log-json-split-stream",
    "log-json-info-buffer-size",
];

/// Settings from flags and file. `host_name` is what the system calls this machine.
pub fn settings(args: &RunArgs, invocation: &Invocation, host_name: &str) -> Result<Settings, ConfigError> {
    let (mut warnings, mut config_file, mut wrong, mut lines) = (Vec::new(), None, Vec::new(), None);
    let mut config = match &args.config {
        Some(path) => {
            let loaded = load(path)?;
            warnings.extend(loaded.odd.iter().map(|odd| format!("{}: {odd}", path.display())));
            let without_say = without_say(&invocation.given);
            if !without_say.is_empty() {
                warnings.push(format!(
                    "--config is given, so these flags have no effect: {}",
                    without_say.join(" ")
                ));
            }
            config_file = Some(ConfigFile { path: path.clone(), text: loaded.text });
            (wrong, lines) = (loaded.wrong, Some(loaded.lines));
            let mut config = loaded.config;
            warnings.extend(split_streams(&mut config));
            config
        }
        None => from_flags(args),
    };
    if args.config.is_none() {
        warnings.extend(without_trace(args, &invocation.given));
    }
    logging(args, &mut config.logging);
    if let Some(cleanup) = args.own.cleanup_kube_proxy {
        config.sluice.cleanup_kube_proxy = Some(cleanup);
    }
    if args.own.cni == Some(true) && config.sluice.pod_network.backend.is_empty() {
        config.sluice.pod_network.backend = "vxlan".to_owned();
    }
    if let Some(scheduler) = &args.own.scheduler {
        config.sluice.scheduler.clone_from(scheduler);
    }
    let no_file = args.config.is_none();
    let node = &args.node;
    let off = |address: &Option<String>, port| no_file && address.is_none() && port == Some(0);
    let flags = Flags {
        hostname_override: node.hostname_override.clone(),
        manifests: args.own.manifests.clone(),
        kubeconfig: args.client.kubeconfig.clone(),
        master: args.client.master.clone(),
        no_health: off(&node.healthz_bind_address, node.healthz_port),
        no_metrics: off(&node.metrics_bind_address, node.metrics_port),
    };
    let places = places(&invocation.given, lines.as_ref());
    let resolved = without_more(wrong, resolve(config, &flags, host_name));
    let mut settings = resolved.map_err(|error| placed(error, &places, args.config.as_deref()))?;
    settings.warnings = settings.warnings.into_iter().map(|warning| places.placed(warning)).collect();
    settings.warnings.extend(warnings);
    settings.config_file = config_file;
    settings.flags.clone_from(&invocation.flags);
    Ok(settings)
}

/// Whether the log is to be JSON, as far as a configuration that is wrong says so.
pub fn asks_for_json(args: &RunArgs) -> bool {
    let of_file = || Some(load(args.config.as_deref()?).ok()?.config.logging.format);
    args.log.logging_format.clone().or_else(of_file).is_some_and(|format| format == "json")
}

fn places<'a>(given: &'a [String], lines: Option<&'a Lines>) -> Places<'a> {
    let given = given.iter().map(String::as_str);
    Places { lines, typed: given.filter(|flag| lines.is_none() || BESIDE_FILE.contains(flag)).collect() }
}

/// Adds what is of a wrong type to all else that is wrong. What is told of the same field is told
/// of nothing, which stands in its place.
fn without_more(
    mut wrong: Vec<String>,
    resolved: Result<Settings, ConfigError>,
) -> Result<Settings, ConfigError> {
    match resolved {
        Ok(settings) if wrong.is_empty() => Ok(settings),
        Ok(_) => Err(ConfigError::Invalid(wrong)),
        Err(ConfigError::Invalid(more)) => {
            let is_told = |error: &String| wrong.iter().any(|told| places::path(told) == places::path(error));
            let more: Vec<String> = more.into_iter().filter(|error| !is_told(error)).collect();
            wrong.extend(more);
            Err(ConfigError::Invalid(wrong))
        }
        Err(error) => Err(error),
    }
}

/// Where the wrong values were written.
fn placed(error: ConfigError, places: &Places<'_>, file: Option<&Path>) -> ConfigError {
    let ConfigError::Invalid(errors) = error else { return error };
    let errors = errors.into_iter().map(|error| places.placed(error)).collect();
    match file {
        Some(path) => ConfigError::InvalidFile { path: path.to_owned(), errors },
        None => ConfigError::Invalid(errors),
    }
}

/// Writes the configuration in force as YAML, its fields in the order of their names.
pub fn write_effective(settings: &Settings, path: &Path) -> Result<(), ConfigError> {
    let write = || {
        let value = serde_json::to_value(&settings.effective).map_err(std::io::Error::other)?;
        let text = serde_saphyr::to_string(&value).map_err(std::io::Error::other)?;
        std::fs::write(path, text)
    };
    write().map_err(|source| ConfigError::Write { path: path.to_owned(), source })
}

/// kube-proxy forgets split streams of a file, and so takes one that lacks the gate for them.
fn split_streams(config: &mut KubeProxyConfiguration) -> Vec<String> {
    let allowed = gates::is_on(&config.feature_gates, gates::LOGGING_ALPHA_OPTIONS);
    let options = &mut config.logging.options;
    let formats = [("text", &mut options.text), ("json", &mut options.json)];
    let forgotten = formats.into_iter().filter(|(_, options)| !allowed && options.split_stream);
    let told = forgotten.map(|(name, options)| {
        options.split_stream = false;
        let gate = gates::LOGGING_ALPHA_OPTIONS;
        format!("logging.options.{name}.splitStream: has no effect without featureGates.{gate}")
    });
    told.collect()
}

fn without_say(given: &[String]) -> Vec<String> {
    let ignored = given.iter().filter(|flag| !BESIDE_FILE.contains(&flag.as_str()));
    ignored.map(|flag| format!("--{flag}")).collect()
}

/// Flags without a meaning here that leave no trace in the configuration, by which they would be
/// told.
fn without_trace(args: &RunArgs, given: &[String]) -> Vec<String> {
    const FILES: [&str; 2] = ["boot-id-file", "machine-id-file"];
    const PERIODS: [&str; 2] = ["ipvs-sync-period", "ipvs-min-sync-period"];
    let is_ipvs = args.dataplane.proxy_mode.as_deref() == Some("ipvs");
    let named = given.iter().filter(|flag| {
        let flag = flag.as_str();
        FILES.contains(&flag) || (!is_ipvs && PERIODS.contains(&flag))
    });
    let mut told: Vec<String> = named.map(|flag| format!("--{flag}: has no effect here")).collect();
    for (flag, port) in [("healthz-port", args.node.healthz_port), ("metrics-port", args.node.metrics_port)] {
        if port.is_some_and(|port| port != 0) {
            told.push(format!("--{flag}: has no effect unless it is 0, as in kube-proxy"));
        }
    }
    told
}

/// Logging flags win over the file; patterns of both count, those of the flag first.
fn logging(args: &RunArgs, logging: &mut Logging) {
    let log = &args.log;
    if let Some(level) = args.v {
        logging.verbosity = level;
    }
    if let Some(format) = &log.logging_format {
        logging.format.clone_from(format);
    }
    if let Some(period) = log.log_flush_frequency {
        logging.flush_frequency = period.to_string().into();
    }
    let patterns = log.vmodule.iter().flatten().filter(|pattern| !pattern.0.is_empty());
    let first = patterns.map(|p| VModule { file_pattern: p.0.clone(), verbosity: p.1 });
    logging.vmodule = first.chain(std::mem::take(&mut logging.vmodule)).collect();
    let options = &mut logging.options;
    for (options, split, size) in [
        (&mut options.text, log.log_text_split_stream, &log.log_text_info_buffer_size),
        (&mut options.json, log.log_json_split_stream, &log.log_json_info_buffer_size),
    ] {
        options.split_stream = split.unwrap_or(options.split_stream);
        if let Some(size) = size {
            options.info_buffer_size = size.clone().into();
        }
    }
}

/// The configuration that flags describe when there is no file.
fn from_flags(args: &RunArgs) -> KubeProxyConfiguration {
    let mut config = KubeProxyConfiguration::default();
    let (node, client) = (&args.node, &args.client);
    config.bind_address = text(&node.bind_address);
    config.bind_address_hard_fail = node.bind_address_hard_fail.unwrap_or_default();
    // Unlike those of a file, these defaults do not follow the family of bindAddress.
    config.healthz_bind_address = or_default(&node.healthz_bind_address, "0.0.0.0:10256");
    config.metrics_bind_address = or_default(&node.metrics_bind_address, "127.0.0.1:10249");
    config.enable_profiling = node.profiling.unwrap_or_default();
    config.show_hidden_metrics_for_version = text(&node.show_hidden_metrics_for_version);
    let gates = node.feature_gates.iter().flatten().filter(|gate| !gate.0.is_empty());
    config.feature_gates = gates.map(|gate| (gate.0.clone(), gate.1)).collect();
    config.oom_score_adj = node.oom_score_adj;
    config.config_sync_period = client.config_sync_period;
    let connection = &mut config.client_connection;
    connection.kubeconfig =
        client.kubeconfig.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
    connection.content_type = text(&client.kube_api_content_type);
    connection.qps = client.kube_api_qps.unwrap_or_default();
    connection.burst = client.kube_api_burst.unwrap_or_default();
    let tracking = &args.tracking;
    let conntrack = &mut config.conntrack;
    conntrack.max_per_core = tracking.conntrack_max_per_core;
    conntrack.min = tracking.conntrack_min;
    conntrack.tcp_established_timeout = tracking.conntrack_tcp_timeout_established;
    conntrack.tcp_close_wait_timeout = tracking.conntrack_tcp_timeout_close_wait;
    conntrack.tcp_be_liberal = tracking.conntrack_tcp_be_liberal.unwrap_or_default();
    conntrack.udp_timeout = tracking.conntrack_udp_timeout;
    conntrack.udp_stream_timeout = tracking.conntrack_udp_timeout_stream;
    dataplane(args, &mut config);
    config
}

fn or_default(value: &Option<String>, default: &str) -> String {
    value.as_deref().filter(|text| !text.is_empty()).unwrap_or(default).to_owned()
}

/// Each flag adds to the list.
fn list(given: &Option<Vec<List>>) -> Option<Vec<String>> {
    Some(given.as_ref()?.iter().flat_map(|list| list.0.iter().cloned()).collect())
}

fn text(value: &Option<String>) -> String {
    value.clone().unwrap_or_default()
}

/// --masquerade-all is of every mode, and so are the iptables sync periods but of mode ipvs; the
/// masquerade bit is not.
fn dataplane(args: &RunArgs, config: &mut KubeProxyConfiguration) {
    let given = &args.dataplane;
    config.mode = text(&given.proxy_mode);
    config.cluster_cidr = text(&given.cluster_cidr);
    config.detect_local_mode = text(&given.detect_local_mode);
    config.detect_local.bridge_interface = text(&given.pod_bridge_interface);
    config.detect_local.interface_name_prefix = text(&given.pod_interface_name_prefix);
    config.node_port_addresses = list(&given.nodeport_addresses);
    let (sync, min) = (given.iptables_sync_period, given.iptables_min_sync_period);
    let all = given.masquerade_all.unwrap_or_default();
    config.iptables.masquerade_bit = given.iptables_masquerade_bit;
    config.iptables.localhost_node_ports = given.iptables_localhost_nodeports;
    let (iptables, nftables, ipvs) = (&mut config.iptables, &mut config.nftables, &mut config.ipvs);
    match config.mode.as_str() {
        // No mode is mode iptables.
        "" | "iptables" => {
            (iptables.sync_period, iptables.min_sync_period, iptables.masquerade_all) = (sync, min, all);
        }
        "ipvs" => {
            iptables.masquerade_all = all;
            ipvs.sync_period = given.ipvs_sync_period;
            // Not the default of a file.
            ipvs.min_sync_period = given.ipvs_min_sync_period.or(Some(GoDuration::seconds(1)));
        }
        _ => (nftables.sync_period, nftables.min_sync_period, nftables.masquerade_all) = (sync, min, all),
    }
    ipvs.scheduler = text(&given.ipvs_scheduler);
    ipvs.exclude_cidrs = list(&given.ipvs_exclude_cidrs);
    ipvs.strict_arp = given.ipvs_strict_arp.unwrap_or_default();
    ipvs.tcp_timeout = given.ipvs_tcp_timeout;
    ipvs.tcp_fin_timeout = given.ipvs_tcpfin_timeout;
    ipvs.udp_timeout = given.ipvs_udp_timeout;
}
