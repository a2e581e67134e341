//! The flags of `sluice run`: those of kube-proxy on Linux (reference 6.2), and a few of our own.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::pflag;
use crate::config::GoDuration;
use crate::go_number;

/// Flags of `sluice run`, the same as kube-proxy's. With --config, settings come from the file, and
/// only these flags still have an effect: --hostname-override, the logging flags, --master,
/// --kubeconfig, the flags of Sluice, and the flags that select an action.
#[derive(Debug, Default, Args)]
#[command(args_override_self = true)]
pub struct RunArgs {
    /// KubeProxyConfiguration file (kubeproxy.config.k8s.io/v1alpha1), YAML or JSON; the program
    /// exits when the file changes.
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub config: Option<PathBuf>,
    /// Print the version and exit; `raw` prints details.
    #[arg(long, value_name = "BOOL|raw", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = version_value)]
    pub version: Option<String>,
    /// Log level: from 2, each sync is logged; from 4, also API objects and messages of libraries.
    #[arg(short, long = "v", value_name = "LEVEL", value_parser = go_level)]
    pub v: Option<u32>,
    /// What to do instead of running.
    #[command(flatten)]
    pub actions: ActionsArgs,
    /// Flags that kube-proxy does not have.
    #[command(flatten)]
    pub own: OwnArgs,
    /// How to reach the API server.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Node and listeners.
    #[command(flatten)]
    pub node: NodeArgs,
    /// How traffic is handled.
    #[command(flatten)]
    pub dataplane: DataplaneArgs,
    /// Connection tracking sysctls.
    #[command(flatten)]
    pub tracking: TrackingArgs,
    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
}

impl RunArgs {
    /// An empty name of a file is as good as none.
    pub(super) fn without_empty_paths(&mut self) {
        let actions = &mut self.actions;
        for path in [
            &mut self.config,
            &mut actions.write_config_to,
            &mut self.own.manifests,
            &mut self.client.kubeconfig,
        ] {
            *path = path.take().filter(|path| !path.as_os_str().is_empty());
        }
    }
}

/// What to do instead of running.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Actions")]
pub struct ActionsArgs {
    /// Write the effective configuration to this file, and exit.
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub write_config_to: Option<PathBuf>,
    /// Set only what needs full privileges (sysctls), and exit; the daemon then needs only
    /// CAP_NET_ADMIN.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub init_only: Option<bool>,
    /// Remove all state of Sluice and of kube-proxy from the kernel, and exit.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub cleanup: Option<bool>,
}

/// Flags that kube-proxy does not have.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Flags of Sluice")]
pub struct OwnArgs {
    /// Read objects from the YAML and JSON files of this directory instead of the Kubernetes API.
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub manifests: Option<PathBuf>,
    /// Scheduler that picks endpoints: random, rr or, in modes ebpf and ipvs, maglev; overrides the
    /// configuration file.
    #[arg(long, value_name = "NAME")]
    pub scheduler: Option<String>,
    /// Remove what kube-proxy left in the kernel once Sluice's rules are in force [default: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub cleanup_kube_proxy: Option<bool>,
    /// Install the CNI plugin and maintain the pod network between nodes, with VXLAN unless the
    /// configuration file selects another backend [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub cni: Option<bool>,
}

/// How to reach the API server.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "API server")]
pub struct ClientArgs {
    /// Kubeconfig file; without it (and without --manifests) the pod's service account is used.
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server; overrides the kubeconfig.
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,
    /// No effect: objects are always read as JSON.
    #[arg(long, hide_short_help = true, value_name = "TYPE")]
    pub kube_api_content_type: Option<String>,
    /// No effect: each kind of object has one list and one watch.
    #[arg(long, hide_short_help = true, value_name = "NUMBER", value_parser = go_float)]
    pub kube_api_qps: Option<f32>,
    /// No effect, like --kube-api-qps.
    #[arg(long, hide_short_help = true, value_name = "NUMBER", value_parser = go_int)]
    pub kube_api_burst: Option<i32>,
    /// No effect: state is compared with the kernel, not delivered again.
    #[arg(long, hide_short_help = true, value_name = "DURATION")]
    pub config_sync_period: Option<GoDuration>,
}

/// Node and listeners.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Node and listeners")]
pub struct NodeArgs {
    /// Name of the Node, if it is not the host name.
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Primary address of the node, in place of the detected one; no listener binds to it.
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<String>,
    /// Exit if a listener cannot bind [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub bind_address_hard_fail: Option<bool>,
    /// Address of /healthz and /livez, IP or IP:port [default: 0.0.0.0:10256].
    #[arg(long, value_name = "ADDRESS")]
    pub healthz_bind_address: Option<String>,
    /// Deprecated: 0 disables the health server, unless --healthz-bind-address is given.
    #[arg(long, value_name = "PORT", value_parser = go_int)]
    pub healthz_port: Option<i32>,
    /// Address of /metrics, IP or IP:port [default: 127.0.0.1:10249].
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_bind_address: Option<String>,
    /// Deprecated: 0 disables the metrics server, unless --metrics-bind-address is given.
    #[arg(long, value_name = "PORT", value_parser = go_int)]
    pub metrics_port: Option<i32>,
    /// No effect: there are no Go profiles.
    #[arg(long, hide_short_help = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub profiling: Option<bool>,
    /// No effect: no metric is hidden.
    #[arg(long, hide_short_help = true, value_name = "VERSION")]
    pub show_hidden_metrics_for_version: Option<String>,
    /// Feature gates of kube-proxy 1.36 to 1.38; docs/configuration.md lists those that have an
    /// effect.
    #[arg(long, value_name = "GATE=BOOL", value_delimiter = ',')]
    pub feature_gates: Option<Vec<Gate>>,
    /// oom_score_adj of this process, -1000 to 1000 [default: -999].
    #[arg(long, value_name = "NUMBER", value_parser = go_int)]
    pub oom_score_adj: Option<i32>,
    /// No effect.
    #[arg(long, hide_short_help = true, value_name = "FILES")]
    pub boot_id_file: Option<String>,
    /// No effect.
    #[arg(long, hide_short_help = true, value_name = "FILES")]
    pub machine_id_file: Option<String>,
}

/// How traffic is handled.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Dataplane")]
pub struct DataplaneArgs {
    /// Dataplane: nftables, ebpf, ipvs, or auto, which selects ebpf if the kernel supports it;
    /// iptables, the default, runs as nftables.
    #[arg(long, value_name = "MODE")]
    pub proxy_mode: Option<String>,
    /// Masquerade all traffic to ClusterIPs [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub masquerade_all: Option<bool>,
    /// How traffic from pods is detected: ClusterCIDR, NodeCIDR, BridgeInterface or
    /// InterfaceNamePrefix [default: ClusterCIDR].
    #[arg(long, value_name = "MODE")]
    pub detect_local_mode: Option<String>,
    /// CIDRs of the pod networks, comma-separated, at most one for each IP family; traffic from
    /// them counts as traffic from pods.
    #[arg(long, value_name = "CIDRS")]
    pub cluster_cidr: Option<String>,
    /// Name of the bridge, for --detect-local-mode BridgeInterface.
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,
    /// Prefix of interface names, for --detect-local-mode InterfaceNamePrefix.
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,
    /// CIDRs, comma-separated, of the node's addresses on which node ports answer; or the keywords
    /// "primary", "localhost" and "all".
    #[arg(long, value_name = "CIDRS")]
    pub nodeport_addresses: Option<Vec<List>>,
    /// Bit of the packet mark that requests masquerading, for --proxy-mode iptables [default: 14].
    #[arg(long, value_name = "BIT", value_parser = go_int)]
    pub iptables_masquerade_bit: Option<i32>,
    /// No effect: --nodeport-addresses decides whether node ports answer on loopback.
    #[arg(long, hide_short_help = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub iptables_localhost_nodeports: Option<bool>,
    /// Longest time until a failed change is tried again [default: 30s].
    #[arg(long, value_name = "DURATION")]
    pub iptables_sync_period: Option<GoDuration>,
    /// No effect: changes go to the kernel at once.
    #[arg(long, hide_short_help = true, value_name = "DURATION")]
    pub iptables_min_sync_period: Option<GoDuration>,
    /// Mode ipvs: longest time until a failed change is tried again [default: 30s].
    #[arg(long, value_name = "DURATION")]
    pub ipvs_sync_period: Option<GoDuration>,
    /// No effect: changes go to the kernel at once.
    #[arg(long, hide_short_help = true, value_name = "DURATION")]
    pub ipvs_min_sync_period: Option<GoDuration>,
    /// Mode ipvs: scheduler of virtual servers, such as rr, lc or mh [default: rr].
    #[arg(long, value_name = "NAME")]
    pub ipvs_scheduler: Option<String>,
    /// Mode ipvs: CIDRs, comma-separated, whose virtual servers are left unchanged.
    #[arg(long, value_name = "CIDRS")]
    pub ipvs_exclude_cidrs: Option<Vec<List>>,
    /// Mode ipvs: answer ARP requests only for addresses of the receiving interface [default:
    /// false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub ipvs_strict_arp: Option<bool>,
    /// Mode ipvs: timeout of idle TCP connections; 0 keeps the kernel's value [default: 0s].
    #[arg(long, value_name = "DURATION")]
    pub ipvs_tcp_timeout: Option<GoDuration>,
    /// Mode ipvs: timeout of TCP connections after a FIN; 0 keeps the kernel's value [default: 0s].
    #[arg(long, value_name = "DURATION")]
    pub ipvs_tcpfin_timeout: Option<GoDuration>,
    /// Mode ipvs: timeout of UDP flows; 0 keeps the kernel's value [default: 0s].
    #[arg(long, value_name = "DURATION")]
    pub ipvs_udp_timeout: Option<GoDuration>,
}

/// Connection tracking sysctls.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Connection tracking")]
pub struct TrackingArgs {
    /// Limit of tracked connections for each CPU core; 0 keeps the kernel's limit [default: 32768].
    #[arg(long, value_name = "NUMBER", value_parser = go_int)]
    pub conntrack_max_per_core: Option<i32>,
    /// Lowest limit of tracked connections, for any number of cores [default: 131072].
    #[arg(long, value_name = "NUMBER", value_parser = go_int)]
    pub conntrack_min: Option<i32>,
    /// Timeout of idle TCP connections; 0 keeps the kernel's value [default: 24h].
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_established: Option<GoDuration>,
    /// Timeout of TCP connections in CLOSE_WAIT; 0 keeps the kernel's value [default: 1h].
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_close_wait: Option<GoDuration>,
    /// Do not treat TCP packets outside the window as invalid [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub conntrack_tcp_be_liberal: Option<bool>,
    /// Timeout of UDP flows without an answer; 0 keeps the kernel's value [default:
    /// 0s].
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout: Option<GoDuration>,
    /// Timeout of answered UDP flows; 0 keeps the kernel's value [default: 0s].
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout_stream: Option<GoDuration>,
}

/// Logging.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// Log format: text or json [default: text].
    #[arg(long, value_name = "FORMAT")]
    pub logging_format: Option<String>,
    /// Log levels of source files, comma-separated. A file has its name without .rs; * and ? are
    /// wildcards.
    #[arg(long, value_name = "PATTERN=LEVEL", value_delimiter = ',')]
    pub vmodule: Option<Vec<Pattern>>,
    /// No effect: every line is written at once.
    #[arg(long, hide_short_help = true, value_name = "DURATION")]
    pub log_flush_frequency: Option<GoDuration>,
    /// Text format: write warnings and errors to stderr, the rest to stdout [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub log_text_split_stream: Option<bool>,
    /// No effect: every line is written at once.
    #[arg(long, hide_short_help = true, value_name = "SIZE")]
    pub log_text_info_buffer_size: Option<String>,
    /// JSON format: write warnings and errors to stderr, the rest to stdout [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub log_json_split_stream: Option<bool>,
    /// No effect: every line is written at once.
    #[arg(long, hide_short_help = true, value_name = "SIZE")]
    pub log_json_info_buffer_size: Option<String>,
}

/// A feature gate, `Name=true`; nameless for an empty part of a list, which Go skips.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate(pub String, pub bool);

impl FromStr for Gate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Gate(String::new(), false));
        }
        let (name, value) =
            text.split_once('=').ok_or_else(|| format!("{text:?} is not of the form Name=true"))?;
        let name = name.trim();
        if name.is_empty() {
            return Err(format!("{text:?} has no name of a feature gate"));
        }
        Ok(Gate(name.to_owned(), go_bool(value.trim())?))
    }
}

/// A part of --vmodule, `pattern=2`; nameless for an empty part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(pub String, pub u32);

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Pattern(String::new(), 0));
        }
        let parsed = text.split_once('=').filter(|(name, _)| !name.is_empty());
        let (name, level) = parsed.ok_or_else(|| format!("{text:?} is not of the form pattern=2"))?;
        Ok(Pattern(name.to_owned(), go_level(level)?))
    }
}

/// The values of one flag that is a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List(pub Vec<String>);

impl FromStr for List {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        pflag::csv(text).map(List).map_err(|reason| format!("not a list in CSV format: {reason}"))
    }
}

/// A file; unlike clap, pflag takes an empty name, which is as good as none.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// A whole number, with a prefix for its base as in Go.
fn go_int(text: &str) -> Result<i32, String> {
    let value = go_number::parse_int(text, true).and_then(|value| i32::try_from(value).ok());
    value.ok_or_else(|| format!("{text:?} is not a 32-bit integer such as 10, 0x10 or 010 (octal, 8)"))
}

fn go_float(text: &str) -> Result<f32, String> {
    go_number::parse_f32(text).ok_or_else(|| format!("{text:?} is not a number such as 2.5 or 0x1p3"))
}

/// A log level: digits and nothing else, and 31 bits.
fn go_level(text: &str) -> Result<u32, String> {
    let level = text.parse().ok().filter(|level| *level <= i32::MAX as u32 && !text.starts_with('+'));
    level.ok_or_else(|| format!("{text:?} is not a level such as 2"))
}

/// A truth value as Go writes them.
pub(super) fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

fn version_value(text: &str) -> Result<String, String> {
    let fine = text == "raw" || text.starts_with('v') || go_bool(text).is_ok();
    if fine { Ok(text.to_owned()) } else { Err("use true, false, raw or vX.Y.Z".into()) }
}
