//! `cargo xtask scenarios`: builds, then hands over to the runner.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cluster_tools;
use crate::machine::{self, Programs, run as run_command};
use crate::vm::kernels::Series;
use crate::vm::runner::{self, Job, PATIENCE};

/// A container runtime that CNI plugins are tried with.
const CONTAINERS: [(&str, &str); 3] = [("podman", "podman"), ("runc", "runc"), ("conmon", "conmon")];

/// Arguments of the scenarios command.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Arguments {
    /// Names of scenarios to run [default: all]
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub(crate) only: Vec<String>,
    /// Also run scenarios that take minutes
    #[arg(long)]
    pub(crate) long: bool,
    #[command(flatten)]
    pub(crate) cluster: cluster_tools::Arguments,
    /// Factor on the time limits of expectations, for busy machines; in a VM at least 10
    #[arg(long)]
    pub(crate) patience: Option<u32>,
    /// File to write the results to
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Run in a VM with this kernel instead of on this machine
    #[arg(long, value_name = "KERNEL")]
    pub(crate) vm: Option<Series>,
}

/// What a scenario may take in a VM; the API server alone takes half a minute there.
const VM_LIMIT: Duration = Duration::from_secs(600);
/// In MiB: a control plane is in it.
const VM_MEMORY: u32 = 4096;

/// Runs scenarios; fails unless every selected one passed.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    machine::prepare()?;
    run_with(&machine::build()?, arguments)
}

/// Runs scenarios with these programs.
pub(crate) fn run_with(programs: &Programs, arguments: &Arguments) -> Result<()> {
    machine::install(&CONTAINERS)?;
    let tools = cluster_tools::build(arguments.cluster.kubernetes)?;
    let mut argv = vec!["scenarios".to_owned(), "--sluice".to_owned(), programs.sluice.display().to_string()];
    argv.extend(["--cluster-tools".to_owned(), tools.display().to_string()]);
    if !arguments.only.is_empty() {
        argv.push("--only".to_owned());
        argv.extend(arguments.only.iter().cloned());
    }
    if arguments.long {
        argv.push("--long".to_owned());
    }
    let usual = if arguments.vm.is_some() { PATIENCE } else { 1 };
    let patience = arguments.patience.unwrap_or(usual).max(usual);
    argv.extend(["--patience".to_owned(), patience.to_string()]);
    if let Some(series) = arguments.vm {
        return in_vm(arguments, series, programs, argv);
    }
    let mut command = Command::new(&programs.conformance);
    command.args(argv);
    if let Some(file) = &arguments.json {
        command.arg("--json").arg(file);
    }
    run_command(&mut command)
}

fn in_vm(arguments: &Arguments, series: Series, programs: &Programs, mut argv: Vec<String>) -> Result<()> {
    ensure!(
        !arguments.only.is_empty(),
        "--vm needs --only NAME...: not all scenarios are suitable for slow machines"
    );
    argv.insert(0, programs.conformance.display().to_string());
    runner::run(Job {
        series,
        proxies: &["ebpf", "ipvs"],
        memory: VM_MEMORY,
        keep: Vec::new(),
        argv,
        limit: VM_LIMIT * u32::try_from(arguments.only.len())?,
        json: arguments.json.as_deref(),
    })
}
