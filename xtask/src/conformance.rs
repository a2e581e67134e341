//! `cargo xtask conformance`: builds, then hands over to the runner.

mod in_vm;

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::cluster_tools;
use crate::machine::{self, Programs, root, run as run_command};
use crate::vm::kernels::Series;

/// Arguments of the conformance command.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// Proxy under test: nftables, ebpf, ipvs, kube-proxy-nftables or kube-proxy-iptables
    #[arg(long, default_value = "nftables")]
    pub(crate) proxy: String,
    /// Source of objects: manifests or api
    #[arg(long, default_value = "manifests")]
    pub(crate) source: String,
    #[command(flatten)]
    pub(crate) cluster: cluster_tools::Arguments,
    /// Pod network: lab, sluice (its CNI plugin and VXLAN), sluice-bridge or sluice-direct
    #[arg(long, default_value = "lab")]
    pub(crate) pod_network: String,
    /// Case files, or directories of case files [default: the project's own cases]
    #[arg(long, num_args = 1..)]
    pub(crate) cases: Vec<PathBuf>,
    /// File to write the results to
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Number of cases that run at a time
    #[arg(long)]
    pub(crate) jobs: Option<usize>,
    /// Factor on the time limits of expectations, for busy machines; in a VM at least 10
    #[arg(long, default_value_t = 1)]
    pub(crate) patience: u32,
    /// Run in a VM with this kernel instead of on this machine
    #[arg(long, value_name = "KERNEL")]
    pub(crate) vm: Option<Series>,
}

/// Runs cases; fails unless every selected case passed.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    machine::prepare()?;
    run_with(&machine::build()?, arguments)
}

/// Runs cases with these programs.
pub(crate) fn run_with(programs: &Programs, arguments: &Arguments) -> Result<()> {
    let cases = if arguments.cases.is_empty() { vec![directory()] } else { arguments.cases.clone() };
    if let Some(series) = arguments.vm {
        return in_vm::run(arguments, series, programs, &cases);
    }
    let mut command = Command::new(&programs.conformance);
    command.args(["run", "--proxy", &arguments.proxy, "--source", &arguments.source]);
    command.args(["--pod-network", &arguments.pod_network]);
    command.args(["--patience", &arguments.patience.to_string(), "--sluice"]);
    command.arg(&programs.sluice);
    command.arg("--cases").args(cases);
    if arguments.source == "api" {
        command.arg("--cluster-tools").arg(cluster_tools::build(arguments.cluster.kubernetes)?);
    }
    if let Some(file) = &arguments.json {
        command.arg("--json").arg(file);
    }
    if let Some(jobs) = arguments.jobs {
        command.args(["--jobs", &jobs.to_string()]);
    }
    run_command(&mut command)
}

/// Where the project's cases are.
pub(crate) fn directory() -> PathBuf {
    root().join("tests/cases")
}
