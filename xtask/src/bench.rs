//! `cargo xtask bench`: figures, each printed by a command that anyone can run again.

mod cni;
mod datapath;
mod ipvs;
mod peers;
mod pod_network;
mod scale;

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
    /// Sluice alone, without an API server: load and change times, memory and kernel objects by
    /// number of services.
    Scale(scale::Arguments),
    /// The eBPF data path: ClusterIPs against direct access, and the cost of a packet by number of
    /// services.
    Datapath(datapath::Arguments),
    /// Mode ipvs against kube-proxy's, in a VM: load and change times, memory.
    Ipvs(ipvs::Arguments),
    /// The CNI plugin beside Debian's bridge and host-local: ADD and DEL, one after the other and
    /// all at once.
    Cni(cni::Arguments),
    /// Pod to pod over VXLAN between two VMs, beside the same plumbing made by hand.
    PodNetwork(pod_network::Arguments),
}

/// Runs a benchmark.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Some(Command::Scale(arguments)) => scale::run(arguments),
        Some(Command::Ipvs(arguments)) => ipvs::run(arguments),
        Some(Command::Cni(arguments)) => cni::run(arguments),
        Some(Command::PodNetwork(arguments)) => pod_network::run(arguments),
        Some(Command::Datapath(arguments)) => datapath::run(arguments),
        None => peers::run(&arguments.peers),
    }
}
