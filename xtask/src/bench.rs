//! `cargo xtask bench`: figures, each printed by a command that anyone can run again.

mod cni;
mod datapath;
mod ipvs;
mod peers;
mod pod_network;
mod scale;
mod tenants;

use anyhow::Result;

/// What to measure.
#[derive(Debug, clap::Args)]
#[group(id = "bench")]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    peers: peers::Arguments,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Measure Sluice alone, without an API server: load and change times, memory and kernel
    /// objects by number of Services.
    Scale(scale::Arguments),
    /// Measure the eBPF data path: ClusterIPs against direct access, and the cost of a packet by
    /// number of Services.
    Datapath(datapath::Arguments),
    /// Measure mode ipvs against kube-proxy's, in a VM: load and change times, memory.
    Ipvs(ipvs::Arguments),
    /// Measure the CNI plugin against Debian's bridge and host-local: ADD and DEL, one after the
    /// other and all at once.
    Cni(cni::Arguments),
    /// Measure how long changes of one Service take while another one, as large as its budget
    /// allows, is added, changed and removed.
    Tenants(tenants::Arguments),
    /// Measure pod-to-pod throughput over VXLAN between two VMs, against the same network set up by
    /// hand.
    PodNetwork(pod_network::Arguments),
}

/// Runs a benchmark.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Some(Command::Scale(arguments)) => scale::run(arguments),
        Some(Command::Ipvs(arguments)) => ipvs::run(arguments),
        Some(Command::Cni(arguments)) => cni::run(arguments),
        Some(Command::PodNetwork(arguments)) => pod_network::run(arguments),
        Some(Command::Tenants(arguments)) => tenants::run(arguments),
        Some(Command::Datapath(arguments)) => datapath::run(arguments),
        None => peers::run(&arguments.peers),
    }
}
