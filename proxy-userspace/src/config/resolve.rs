//! From flags and file to what the program needs; all errors are collected and told at once.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sluice_core::ipvs::SchedulerName;
use sluice_core::net::{Family, parse_ip};
use sluice_core::plan::Budget;
use sluice_sys::ipvs::Timeouts;

use super::GoDuration;
use super::defaults::{Requested, fill_in};
use super::gates::{self, FeatureGates};
use super::ignored;
use super::node_ports::{self, NodePortSelection};
use super::pod_network::{PodNetworkSettings, pod_network};
use super::raw::{self, Conntrack, KubeProxyConfiguration};
use super::validate::{Errors, parse_cidr, validate};

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration file {}: {source}. Name an existing file with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The file is no KubeProxyConfiguration.
    #[error("configuration file {}: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file to write cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// Values are wrong.
    #[error("invalid configuration:\n  {}", .0.join("\n  "))]
    Invalid(Vec<String>),
    /// Values in a file, or of flags beside it, are wrong.
    #[error("invalid configuration in {}:\n  {}", path.display(), errors.join("\n  "))]
    InvalidFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        errors: Vec<String>,
    },
}

/// Flags that have a say beside the file.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--hostname-override`: wins over the file.
    pub hostname_override: Option<String>,
    /// `--manifests`.
    pub manifests: Option<PathBuf>,
    /// `--kubeconfig`: wins over the file.
    pub kubeconfig: Option<PathBuf>,
    /// `--master`: the API server's URL, over that of the kubeconfig.
    pub master: Option<String>,
    /// `--healthz-port=0`: no health server.
    pub no_health: bool,
    /// `--metrics-port=0`: no metrics server.
    pub no_metrics: bool,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of YAML and JSON files.
    Manifests(PathBuf),
    /// The Kubernetes API; without a kubeconfig, as a pod of the cluster.
    Kubernetes {
        /// The kubeconfig file.
        kubeconfig: Option<PathBuf>,
        /// The API server's URL, if it is not that of the kubeconfig.
        master: Option<String>,
    },
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Manifests(directory) => write!(f, "files in {}", directory.display()),
            Source::Kubernetes { kubeconfig, master } => {
                match kubeconfig {
                    Some(file) => write!(f, "the API by {}", file.display())?,
                    None => f.write_str("the API as a pod")?,
                }
                master.iter().try_for_each(|master| write!(f, " at {master}"))
            }
        }
    }
}

/// How pods are told from others (reference 3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// By these source networks, at most one for each family.
    ClusterCidr(Vec<IpNet>),
    /// By the own Node's pod CIDRs.
    NodeCidr,
    /// By the interface that packets come in by.
    BridgeInterface(String),
    /// By how the name of that interface starts.
    InterfaceNamePrefix(String),
}

/// A configuration file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it held.
    pub text: String,
}

/// What is to drive the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// Maps of nf_tables.
    Nftables,
    /// Programs at sockets and interfaces.
    Ebpf,
    /// IP virtual servers.
    Ipvs,
    /// eBPF where the kernel has all that it takes, else nftables: to be decided at start.
    Auto,
}

impl BackendKind {
    /// What the configuration, /proxyMode and the log call it.
    pub fn name(self) -> &'static str {
        match self {
            BackendKind::Nftables => "nftables",
            BackendKind::Ebpf => "ebpf",
            BackendKind::Ipvs => "ipvs",
            BackendKind::Auto => "auto",
        }
    }
}

/// How endpoints are picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduler {
    /// Uniformly at random, as kube-proxy does.
    Random,
    /// In turn, by a counter for each group.
    RoundRobin,
    /// By a hash of the connection that picks the same endpoint on every node. Of the eBPF backend
    /// only.
    Maglev,
}

/// What only the eBPF backend needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EbpfSettings {
    /// The cgroup whose processes the socket programs are for; `None` stands for the root of the
    /// cgroup2 mount.
    pub cgroup_root: Option<PathBuf>,
    /// The directory that keeps maps and programs over restarts.
    pub bpffs: PathBuf,
    /// Connections that the packet programs remember.
    pub flows: u32,
    /// Whether node ports answer on loopback to sockets of the node.
    pub localhost_node_ports: bool,
    /// Whether the programs log what they decide.
    pub debug: bool,
}

/// What only the IPVS backend needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsSettings {
    /// How virtual servers pick a destination.
    pub scheduler: SchedulerName,
    /// Virtual servers in these networks belong to others.
    pub exclude: Vec<IpNet>,
    /// Whether the node answers ARP for addresses of the interface asked only.
    pub strict_arp: bool,
    /// Seconds after which silent connections end; 0 leaves the kernel's.
    pub timeouts: Timeouts,
}

/// What the program needs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The own node's name.
    pub node_name: String,
    /// Where objects come from.
    pub source: Source,
    /// What is to drive the kernel; at start, `Auto` gives way to the backend that was found to
    /// work.
    pub backend: BackendKind,
    /// What only the eBPF backend needs.
    pub ebpf: EbpfSettings,
    /// What only the IPVS backend needs.
    pub ipvs: IpvsSettings,
    /// Bit of the packet mark that asks for masquerading.
    pub masquerade_bit: u8,
    /// Masquerade all ClusterIP traffic.
    pub masquerade_all: bool,
    /// How pods are told from others.
    pub detect_local: DetectLocal,
    /// On which addresses node ports answer.
    pub node_port_addresses: NodePortSelection,
    /// How endpoints are picked.
    pub scheduler: Scheduler,
    /// A failed change is retried after this time at the latest; health turns red after twice of
    /// it.
    pub sync_period: Duration,
    /// Overrides the Node object's address, if specified.
    pub bind_address: Option<IpAddr>,
    /// Where /healthz and /livez are served.
    pub healthz_bind: Option<SocketAddr>,
    /// Where /metrics is served.
    pub metrics_bind: Option<SocketAddr>,
    /// A listener that cannot bind ends the program.
    pub bind_hard_fail: bool,
    /// `oom_score_adj` of this process.
    pub oom_score_adj: i32,
    /// Connection tracking sysctls.
    pub conntrack: Conntrack,
    /// Networks that external IPs and load balancer IPs may be of; `None`: all.
    pub external_addresses: Option<Vec<IpNet>>,
    /// How large one Service may be.
    pub service_budget: Budget,
    /// Feature gates with an effect here, as they are in force.
    pub gates: FeatureGates,
    /// No mode was said, so that it is kube-proxy's default.
    pub default_mode: bool,
    /// Whether to remove what kube-proxy left in the kernel once our own rules are in force.
    pub cleanup_kube_proxy: bool,
    /// The network between pods, if it is ours.
    pub pod_network: Option<PodNetworkSettings>,
    /// The configuration file, to be watched for changes.
    pub config_file: Option<ConfigFile>,
    /// All flags and their values, for /flagz.
    pub flags: BTreeMap<String, String>,
    /// The configuration in force, for /configz.
    pub effective: KubeProxyConfiguration,
    /// What was accepted but has no effect, for the log.
    pub warnings: Vec<String>,
}

/// Resolves flags and file. `host_name` is what the system calls this machine.
pub fn resolve(
    mut config: KubeProxyConfiguration,
    flags: &Flags,
    host_name: &str,
) -> Result<Settings, ConfigError> {
    let mut errors = Errors::default();
    let mut warnings = ignored::told(&config);
    warnings.extend(gates::judge(&config.feature_gates).warnings);
    let default_mode = config.mode.is_empty();
    let requested = fill_in(&mut config);
    validate(&config, requested, &mut errors);
    if let Some(name) = &flags.hostname_override {
        config.hostname_override = name.trim().to_lowercase();
    }
    let node_name = node_name(&config, host_name, &mut errors);
    let (nftables, iptables) = (&config.nftables, &config.iptables);
    let (masquerade_bit, masquerade_all, sync_period) = if requested == Requested::Ipvs {
        (iptables.masquerade_bit, iptables.masquerade_all, config.ipvs.sync_period)
    } else {
        (nftables.masquerade_bit, nftables.masquerade_all, nftables.sync_period)
    };
    let health = listen("healthzBindAddress", &config.healthz_bind_address, &mut errors);
    let metrics = listen("metricsBindAddress", &config.metrics_bind_address, &mut errors);
    let detect_local = detect_local(&config, &mut errors);
    warnings.extend(undetected(&detect_local));
    let settings = Settings {
        node_name,
        source: source(&config, flags),
        backend: backend(&config),
        ebpf: ebpf(&config),
        ipvs: ipvs(&config, &mut errors),
        masquerade_bit: masquerade_bit.and_then(|bit| u8::try_from(bit).ok()).unwrap_or(14),
        masquerade_all,
        detect_local,
        node_port_addresses: node_ports::selection(&config, &mut errors, &mut warnings),
        scheduler: scheduler(&config, &mut errors),
        sync_period: sync_period.unwrap_or_default().value,
        bind_address: parse_ip(&config.bind_address).filter(|ip| !ip.is_unspecified()),
        healthz_bind: health.filter(|_| !flags.no_health),
        metrics_bind: metrics.filter(|_| !flags.no_metrics),
        bind_hard_fail: config.bind_address_hard_fail,
        oom_score_adj: config.oom_score_adj.unwrap_or_default(),
        conntrack: config.conntrack.clone(),
        external_addresses: external_addresses(&config.sluice),
        service_budget: service_budget(&config.sluice.service_budget),
        gates: FeatureGates::of(&config.feature_gates),
        default_mode,
        cleanup_kube_proxy: config.sluice.cleanup_kube_proxy.unwrap_or(true),
        pod_network: pod_network(&config, &mut errors),
        config_file: None,
        flags: BTreeMap::new(),
        effective: config,
        warnings,
    };
    errors.finish(settings)
}

fn node_name(config: &KubeProxyConfiguration, host_name: &str, errors: &mut Errors) -> String {
    let overridden = config.hostname_override.trim();
    let name = if overridden.is_empty() { host_name.trim() } else { overridden };
    errors.check(!name.is_empty(), || "the host has no name: set one with --hostname-override".into());
    // What the API takes for the name of a Node (RFC 1123 subdomain); it becomes a part of
    // requests.
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
    errors.check(is_plain, || {
        format!("hostnameOverride: {name:?} is not a Node name: use letters, digits, \"-\" and \".\" only")
    });
    name.to_lowercase()
}

fn source(config: &KubeProxyConfiguration, flags: &Flags) -> Source {
    match &flags.manifests {
        Some(directory) => Source::Manifests(directory.clone()),
        None => {
            let file = &config.client_connection.kubeconfig;
            let from_file = (!file.is_empty()).then(|| PathBuf::from(file));
            Source::Kubernetes {
                kubeconfig: flags.kubeconfig.clone().or(from_file),
                master: flags.master.clone(),
            }
        }
    }
}

fn backend(config: &KubeProxyConfiguration) -> BackendKind {
    match config.mode.as_str() {
        "ebpf" => BackendKind::Ebpf,
        "ipvs" => BackendKind::Ipvs,
        // Without that backend there is nothing to decide.
        "auto" if cfg!(feature = "ebpf") => BackendKind::Auto,
        _ => BackendKind::Nftables,
    }
}

fn ebpf(config: &KubeProxyConfiguration) -> EbpfSettings {
    let ebpf = &config.sluice.ebpf;
    EbpfSettings {
        cgroup_root: (!ebpf.cgroup_root.is_empty()).then(|| PathBuf::from(&ebpf.cgroup_root)),
        bpffs: PathBuf::from(&ebpf.bpffs),
        flows: ebpf.flows.and_then(|flows| u32::try_from(flows).ok()).unwrap_or_default(),
        localhost_node_ports: ebpf.localhost_node_ports,
        debug: ebpf.debug,
    }
}

fn ipvs(config: &KubeProxyConfiguration, errors: &mut Errors) -> IpvsSettings {
    let section = &config.ipvs;
    let name = match (section.scheduler.as_str(), config.sluice.scheduler.as_str()) {
        // What is said for all modes.
        ("", "maglev") => "mh",
        ("", _) => "rr",
        (name, _) => name,
    };
    let scheduler = SchedulerName::new(name).unwrap_or_else(|error| {
        errors.check(false, || {
            format!("ipvs.scheduler: {name:?}: {error}; for example \"rr\", \"lc\" or \"mh\"")
        });
        SchedulerName::ROUND_ROBIN
    });
    let seconds = |period: Option<GoDuration>| {
        u32::try_from(period.unwrap_or_default().value.as_secs()).unwrap_or(u32::MAX)
    };
    IpvsSettings {
        scheduler,
        exclude: excluded(section),
        strict_arp: section.strict_arp,
        timeouts: Timeouts {
            tcp: seconds(section.tcp_timeout),
            tcp_fin: seconds(section.tcp_fin_timeout),
            udp: seconds(section.udp_timeout),
        },
    }
}

/// Networks whose virtual servers are others'. Any address may be in one that cannot be read.
fn excluded(section: &raw::Ipvs) -> Vec<IpNet> {
    let networks: Option<Vec<IpNet>> =
        section.exclude_cidrs.iter().flatten().map(|entry| parse_cidr(entry)).collect();
    networks.unwrap_or_else(|| vec![Ipv4Net::default().into(), Ipv6Net::default().into()])
}

fn service_budget(section: &raw::ServiceBudget) -> Budget {
    let usual = Budget::default();
    let number =
        |configured: Option<i64>, usual| configured.and_then(|n| usize::try_from(n).ok()).unwrap_or(usual);
    Budget {
        frontends: number(section.frontends, usual.frontends),
        elements: number(section.elements, usual.elements),
    }
}

fn external_addresses(section: &raw::Sluice) -> Option<Vec<IpNet>> {
    let listed = section.external_address_cidrs.as_ref()?;
    Some(listed.iter().filter_map(|cidr| parse_cidr(cidr)).collect())
}

fn scheduler(config: &KubeProxyConfiguration, errors: &mut Errors) -> Scheduler {
    match config.sluice.scheduler.as_str() {
        "random" => Scheduler::Random,
        "rr" => Scheduler::RoundRobin,
        "maglev" => {
            // Mode auto may end in nftables, which has no such thing.
            errors.check(matches!(config.mode.as_str(), "ebpf" | "ipvs"), || {
                format!(
                    "sluice.scheduler: \"maglev\" needs mode \"ebpf\" or \"ipvs\", and the mode is {:?}",
                    config.mode
                )
            });
            Scheduler::Maglev
        }
        other => {
            errors.check(false, || {
                format!("sluice.scheduler: {other:?} is unknown; use \"random\", \"rr\" or, in modes ebpf and ipvs, \"maglev\"")
            });
            Scheduler::Random
        }
    }
}

fn detect_local(config: &KubeProxyConfiguration, errors: &mut Errors) -> DetectLocal {
    let section = &config.detect_local;
    let mut required = |field: &str, value: &str| {
        errors.check(!value.is_empty(), || {
            format!("detectLocal.{field}: must be set with detectLocalMode {}", config.detect_local_mode)
        });
        // IFNAMSIZ of linux/if.h, less the final zero.
        errors.check(value.len() <= 15, || {
            format!("detectLocal.{field}: {value:?} is longer than an interface name can be (15 bytes)")
        });
        value.to_owned()
    };
    match config.detect_local_mode.as_str() {
        "NodeCIDR" => DetectLocal::NodeCidr,
        "BridgeInterface" => {
            DetectLocal::BridgeInterface(required("bridgeInterface", &section.bridge_interface))
        }
        "InterfaceNamePrefix" => {
            DetectLocal::InterfaceNamePrefix(required("interfaceNamePrefix", &section.interface_name_prefix))
        }
        "ClusterCIDR" => DetectLocal::ClusterCidr(cluster_cidrs(&config.cluster_cidr, errors)),
        other => {
            errors.check(false, || {
                format!(
                    "detectLocalMode: {other:?} is unknown; use ClusterCIDR, NodeCIDR, BridgeInterface or \
                     InterfaceNamePrefix"
                )
            });
            DetectLocal::NodeCidr
        }
    }
}

/// Without a network there is no pod, as far as the proxy can tell.
fn undetected(detect_local: &DetectLocal) -> Option<String> {
    (*detect_local == DetectLocal::ClusterCidr(Vec::new())).then(|| {
        "clusterCIDR: is not set, and detectLocalMode is \"ClusterCIDR\": no client counts as a pod. \
         Connections from outside to ClusterIPs keep their source address unless masqueradeAll is set, and traffic \
         policy Local applies to pods too. Set it to the pod networks, or detectLocalMode to \"NodeCIDR\""
            .into()
    })
}

fn cluster_cidrs(text: &str, errors: &mut Errors) -> Vec<IpNet> {
    let mut found: Vec<IpNet> = Vec::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let net = parse_cidr(part);
        errors.check(net.is_some(), || format!("clusterCIDR: {part:?} is not a CIDR such as 10.244.0.0/16"));
        found.extend(net);
    }
    let of = |family| found.iter().filter(|net| Family::of_net(net) == family).count();
    errors.check(of(Family::V4) <= 1 && of(Family::V6) <= 1, || {
        format!("clusterCIDR: {text:?} has more than one CIDR of an IP family; give at most one of each")
    });
    found
}

fn listen(field: &str, text: &str, errors: &mut Errors) -> Option<SocketAddr> {
    let address = text.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    errors.check(address.is_some(), || {
        format!("{field}: {text:?} is neither an IP address nor IP:port with a port from 1 to 65535")
    });
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(config: serde_json::Value) -> Result<Settings, ConfigError> {
        let flags = Flags { manifests: Some("/m".into()), ..Flags::default() };
        resolve(serde_json::from_value(config).unwrap(), &flags, "Host-1")
    }

    #[test]
    fn defaults_are_kube_proxys() {
        let settings = settings(serde_json::json!({})).unwrap();
        assert_eq!(settings.node_name, "host-1");
        assert_eq!(settings.healthz_bind, Some("0.0.0.0:10256".parse().unwrap()));
        assert_eq!(settings.metrics_bind, Some("127.0.0.1:10249".parse().unwrap()));
        assert_eq!((settings.masquerade_bit, settings.sync_period.as_secs()), (14, 30));
        assert_eq!(settings.detect_local, DetectLocal::ClusterCidr(vec![]));
        assert_eq!(settings.scheduler, Scheduler::Random);
    }

    #[test]
    fn node_ports_answer_on_primary_addresses_in_mode_nftables_and_on_all_where_kube_proxy_would_run_iptables()
     {
        let of = |mode| settings(serde_json::json!({"mode": mode})).unwrap().node_port_addresses;
        assert!(of("nftables").primary && of("nftables").networks.is_empty());
        assert!(Family::BOTH.iter().all(|family| of("").matches_all(*family)));
        assert_eq!(of("iptables"), of(""));
    }

    #[cfg(feature = "ebpf")]
    #[test]
    fn modes_of_our_own_take_the_settings_of_nftables_and_keep_their_name() {
        let of = |mode| {
            let config = serde_json::json!({
                "mode": mode, "nftables": {"masqueradeBit": 5, "masqueradeAll": true, "syncPeriod": "7s"},
            });
            settings(config).unwrap()
        };
        for (mode, backend) in [("nftables", BackendKind::Nftables), ("ebpf", BackendKind::Ebpf)] {
            let settings = of(mode);
            assert_eq!((settings.backend, settings.effective.mode.as_str()), (backend, mode));
            assert!(settings.node_port_addresses.primary);
            assert_eq!((settings.masquerade_bit, settings.masquerade_all), (5, true));
            assert_eq!(settings.sync_period.as_secs(), 7);
        }
        assert_eq!(of("auto").backend, BackendKind::Auto);
        assert_eq!(of("auto").effective.mode, "auto");
        assert_eq!(of("iptables").backend, BackendKind::Nftables);
    }

    #[cfg(feature = "ebpf")]
    #[test]
    fn the_section_of_ebpf_has_defaults_and_limits() {
        let of = |section: serde_json::Value| {
            let (mode, networks) = ("ebpf", "10.244.0.0/16");
            settings(serde_json::json!({"mode": mode, "clusterCIDR": networks, "sluice": {"ebpf": section}}))
        };
        let preset = of(serde_json::json!({})).unwrap();
        let expected = EbpfSettings {
            cgroup_root: None,
            bpffs: "/sys/fs/bpf/sluice".into(),
            flows: 131_072,
            localhost_node_ports: false,
            debug: false,
        };
        assert_eq!((preset.ebpf, preset.warnings), (expected, vec![]));
        let set = of(serde_json::json!({
            "cgroupRoot": "/c", "bpffs": "/b", "flows": 1024, "localhostNodePorts": true, "debug": true,
        }));
        let expected = EbpfSettings {
            cgroup_root: Some("/c".into()),
            bpffs: "/b".into(),
            flows: 1024,
            localhost_node_ports: true,
            debug: true,
        };
        assert_eq!(set.unwrap().ebpf, expected);
        let wrong = serde_json::json!({"cgroupRoot": "c", "bpffs": "b", "flows": 1023});
        let error = of(wrong).unwrap_err().to_string();
        for field in ["sluice.ebpf.cgroupRoot", "sluice.ebpf.bpffs", "sluice.ebpf.flows: 1023"] {
            assert!(error.contains(field), "{field} in {error}");
        }
        assert!(of(serde_json::json!({"flows": 16_777_217})).is_err());
        let elsewhere = serde_json::json!({"mode": "nftables", "sluice": {"ebpf": {"debug": true}}});
        let told = settings(elsewhere).unwrap().warnings;
        assert!(told[0].starts_with("sluice.ebpf, except bpffs: has no effect"), "{told:?}");
        // Where programs of an earlier mode are.
        let place = serde_json::json!({
            "mode": "nftables", "detectLocalMode": "NodeCIDR", "sluice": {"ebpf": {"bpffs": "/b", "flows": 131_072}},
        });
        assert_eq!(settings(place).unwrap().warnings, Vec::<String>::new());
    }

    #[cfg(feature = "ebpf")]
    #[test]
    fn maglev_is_of_mode_ebpf_only() {
        let of = |mode| settings(serde_json::json!({"mode": mode, "sluice": {"scheduler": "maglev"}}));
        assert_eq!(of("ebpf").unwrap().scheduler, Scheduler::Maglev);
        for mode in ["nftables", "auto", ""] {
            assert!(of(mode).unwrap_err().to_string().contains("needs mode \"ebpf\""), "{mode}");
        }
    }

    #[test]
    fn all_errors_are_told_at_once_with_their_fields() {
        let error = settings(serde_json::json!({
            "mode": "nftables", "clusterCIDR": "10.0.0.0/8,10.1.0.0/16,x", "nodePortAddresses": ["primary", "1.2.3.4", "primary"],
            "nftables": {"masqueradeBit": 32, "syncPeriod": "-1s"}, "detectLocalMode": "ClusterCIDR",
            "healthzBindAddress": "nowhere", "oomScoreAdj": 2000, "sluice": {"scheduler": "wrr"},
        }))
        .unwrap_err()
        .to_string();
        for field in [
            "clusterCIDR: \"x\"",
            "clusterCIDR: \"10.0.0.0/8,10.1.0.0/16,x\" has more than one",
            "nodePortAddresses[1]",
            "nodePortAddresses[2]",
            "nftables.masqueradeBit",
            "nftables.syncPeriod",
            "healthzBindAddress",
            "oomScoreAdj",
            "sluice.scheduler",
        ] {
            assert!(error.contains(field), "{field} in {error}");
        }
    }

    #[test]
    fn one_warning_says_that_pods_cannot_be_detected_and_what_to_set() {
        let told = |config| {
            let warnings = settings(config).unwrap().warnings;
            warnings.into_iter().filter(|told| told.starts_with("clusterCIDR: ")).collect::<Vec<_>>()
        };
        for config in [serde_json::json!({}), serde_json::json!({"detectLocalMode": "ClusterCIDR"})] {
            let told = told(config);
            assert!(told.len() == 1 && told[0].contains("NodeCIDR"), "{told:?}");
        }
        for config in [
            serde_json::json!({"clusterCIDR": "fd00::/8"}),
            serde_json::json!({"detectLocalMode": "NodeCIDR"}),
        ] {
            assert_eq!(told(config), Vec::<String>::new());
        }
    }

    #[test]
    fn while_a_network_of_others_cannot_be_read_every_virtual_server_is_theirs() {
        let of = |networks: &[&str]| {
            let section = serde_json::json!({"excludeCIDRs": networks});
            settings(serde_json::json!({"mode": "nftables", "ipvs": section})).unwrap().ipvs.exclude
        };
        assert_eq!(of(&["10.0.0.0/8"]), ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(of(&["10.0.0.0/8", "x"]), ["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]);
    }

    #[test]
    fn the_flag_wins_over_the_files_node_name() {
        let flags = Flags { hostname_override: Some(" Node-A ".into()), ..Flags::default() };
        let config = KubeProxyConfiguration { hostname_override: "b".into(), ..Default::default() };
        assert_eq!(resolve(config, &flags, "c").unwrap().node_name, "node-a");
    }

    #[test]
    fn the_source_of_objects_is_described_in_plain_words() {
        let api = |kubeconfig: Option<&str>, master: Option<&str>| {
            let (kubeconfig, master) = (kubeconfig.map(PathBuf::from), master.map(str::to_owned));
            Source::Kubernetes { kubeconfig, master }.to_string()
        };
        assert_eq!(Source::Manifests("/m".into()).to_string(), "files in /m");
        assert_eq!(api(None, None), "the API as a pod");
        assert_eq!(api(Some("/k"), Some("https://x:6443")), "the API by /k at https://x:6443");
    }

    #[test]
    fn interface_modes_need_their_interface() {
        let error = settings(serde_json::json!({"detectLocalMode": "BridgeInterface"})).unwrap_err();
        assert!(error.to_string().contains("detectLocal.bridgeInterface"));
        let long = serde_json::json!({
            "detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "a234567890123456"}
        });
        assert!(settings(long).unwrap_err().to_string().contains("15 bytes"));
    }

    #[test]
    fn a_listener_may_be_an_address_or_an_address_with_a_port() {
        let settings = settings(serde_json::json!({
            "healthzBindAddress": "10.0.0.1", "metricsBindAddress": "[::]:9000"
        }))
        .unwrap();
        assert_eq!(settings.healthz_bind, Some("10.0.0.1:10256".parse().unwrap()));
        assert_eq!(settings.metrics_bind, Some("[::]:9000".parse().unwrap()));
    }
}
