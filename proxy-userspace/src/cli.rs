//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Sluice: service proxy for Linux Kubernetes nodes.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, about, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes:
  0  done, or ended by SIGTERM or SIGINT (rules stay in force)
  1  failed while running
  2  wrong command line or configuration
  3  the machine lacks something: a capability, a kernel feature, a file";

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch Services and EndpointSlices and keep the kernel in step, until SIGTERM.
    Run(Box<RunArgs>),
    /// Remove everything of Sluice from the kernel.
    Cleanup,
}

/// Flags of `sluice run`. With --config, settings come from the file, as in kube-proxy; only
/// --hostname-override, --manifests, --kubeconfig, --master and -v keep their say.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// KubeProxyConfiguration file (kubeproxy.config.k8s.io/v1alpha1), YAML or JSON.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Read objects from the YAML and JSON files of this directory instead of the Kubernetes API.
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Kubeconfig file; without it (and without --manifests) the pod's service account is used.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server, over that of the kubeconfig.
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,
    /// The node's name, if it is not the host's.
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Dataplane: nftables.
    #[arg(long, value_name = "MODE")]
    pub proxy_mode: Option<String>,
    /// How endpoints are picked: random or rr.
    #[arg(long, value_name = "NAME")]
    pub scheduler: Option<String>,
    /// Pod networks, at most one for each family, comma-separated; tells pods from other clients.
    #[arg(long, value_name = "CIDRS")]
    pub cluster_cidr: Option<String>,
    /// How pods are told from others: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix.
    #[arg(long, value_name = "MODE")]
    pub detect_local_mode: Option<String>,
    /// The bridge for BridgeInterface.
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,
    /// The prefix for InterfaceNamePrefix.
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,
    /// Networks of the node addresses that node ports answer on, comma-separated, or "primary".
    #[arg(long, value_name = "CIDRS")]
    pub nodeport_addresses: Option<String>,
    /// Masquerade all traffic to ClusterIPs.
    #[arg(long)]
    pub masquerade_all: bool,
    /// Where /healthz and /livez are served, IP or IP:port.
    #[arg(long, value_name = "ADDRESS")]
    pub healthz_bind_address: Option<String>,
    /// Where /metrics is served, IP or IP:port.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_bind_address: Option<String>,
    /// Log more: 2 and above log each sync, 4 and above each object.
    #[arg(short, long = "v", value_name = "LEVEL", default_value_t = 0)]
    pub verbosity: u8,
    /// Log format: text or json.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub logging_format: String,
}
