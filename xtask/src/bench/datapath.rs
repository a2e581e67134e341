//! The eBPF data path by itself: what a ClusterIP costs on the socket path, and what a packet costs
//! on the packet path.

mod packets;
mod sockets;

use anyhow::Result;
use sluice_tests::lab::{Lab, LabOptions, prune};
use sluice_tests::proxy::ProxyProgram;
use sluice_tests::topology::Topology;

use crate::machine;

/// Arguments of `bench datapath`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Turns of each load, alternately through the ClusterIP and straight to the pod
    #[arg(long, default_value_t = 15)]
    turns: usize,
    /// Duration of each load, in milliseconds
    #[arg(long, default_value_t = 1000)]
    millis: u64,
    /// Numbers of Services for the cost of a packet, comma-separated
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1000, 10_000, 50_000])]
    services: Vec<usize>,
    /// Endpoints of each Service
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    /// Runs of the program in each sample
    #[arg(long, default_value_t = 200_000)]
    runs: u32,
    /// Samples of each packet
    #[arg(long, default_value_t = 9)]
    samples: usize,
}

const NODE: &str = "node-a";

/// Measures and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    machine::prepare()?;
    let programs = machine::build()?;
    sluice_tests::interrupt::install()?;
    prune::stale();
    if arguments.turns > 0 {
        sockets::run(arguments, lab(&programs, sockets::TOPOLOGY)?)?;
    }
    packets::heading();
    for services in &arguments.services {
        packets::run(arguments, lab(&programs, packets::TOPOLOGY)?, *services)?;
    }
    Ok(())
}

fn lab(programs: &machine::Programs, topology: &str) -> Result<Lab> {
    let topology: Topology = serde_json::from_str(topology)?;
    let proxy = ProxyProgram::sluice(&programs.sluice, "ebpf")?;
    Lab::create(&topology, LabOptions::new(programs.conformance.clone(), proxy))
}

/// Median and range of samples.
fn spread(samples: &mut [f64]) -> (f64, f64, f64) {
    samples.sort_by(f64::total_cmp);
    let at = |index: usize| samples.get(index).copied().unwrap_or(f64::NAN);
    (at(samples.len() / 2), at(0), at(samples.len().saturating_sub(1)))
}
