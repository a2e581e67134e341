//! The conformance runner in a VM: the programs of this machine, another kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sluice_skips::LEDGER;
use sluice_tests::vm::{Command, Vm, VmOptions, modules};
use sluice_tests::{interrupt, lab::prune};

use super::kernels::{self, Series};
use super::{options, stream};
use crate::machine::target_directory;
use crate::skips;

/// How many times longer than usual an expectation may take to be met. Emulation makes a machine
/// ten times slower.
pub(crate) const PATIENCE: u32 = 10;
/// What a run may take beside what it runs.
const LIMIT: Duration = Duration::from_secs(300);
/// The ledger in a VM's output.
const SKIPS: &str = "skips.jsonl";

/// What the runner is to do.
pub(crate) struct Job<'a> {
    /// The kernel
    pub(crate) series: Series,
    /// Backends, whose modules are loaded
    pub(crate) proxies: &'a [&'a str],
    /// In MiB
    pub(crate) memory: u32,
    /// Places that it sees, beside the workspace
    pub(crate) keep: Vec<PathBuf>,
    /// The runner and its arguments but `--json`
    pub(crate) argv: Vec<String>,
    /// How long what it runs may take
    pub(crate) limit: Duration,
    /// Where the report goes
    pub(crate) json: Option<&'a Path>,
}

/// Runs it; fails unless the runner succeeds.
pub(crate) fn run(job: Job<'_>) -> Result<()> {
    with_output(|output| run_and_report(job, output))
}

/// Runs a program that is no runner; fails unless it succeeds.
pub(crate) fn run_alone(series: Series, proxies: &[&str], argv: Vec<String>, limit: Duration) -> Result<()> {
    with_output(|output| program(series, &options(Some(output))?, proxies, argv, limit))
}

/// Lets something use a directory for what a VM writes.
fn with_output(work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let output = target_directory().join(format!("vm/report-{}", std::process::id()));
    let done = work(&output);
    drop(fs::remove_dir_all(output));
    done
}

fn run_and_report(job: Job<'_>, output: &Path) -> Result<()> {
    let mut options = VmOptions { memory: job.memory, ..options(Some(output))? };
    options.keep.extend(job.keep);
    let mut argv = job.argv;
    argv.extend(["--json", "/out/report.json"].map(str::to_owned));
    let done = program(job.series, &options, job.proxies, argv, LIMIT + job.limit);
    let report = output.join("report.json");
    // A runner that could not begin has written none, and the reason is its status.
    if let Some(file) = job.json.filter(|_| report.exists()) {
        fs::copy(&report, file).with_context(|| format!("writing {}", file.display()))?;
    }
    done
}

/// Runs a program in a VM that has loaded what some backends need; fails unless it succeeds. What
/// it skips is counted where the VM has an output.
pub(crate) fn program(
    series: Series,
    options: &VmOptions,
    proxies: &[&str],
    argv: Vec<String>,
    limit: Duration,
) -> Result<()> {
    interrupt::install()?;
    prune::stale();
    let kernel = kernels::get(series, false)?;
    let mut vm = Vm::start(&kernel, options)?;
    println!("in a VM: Linux {}", kernel.release);
    vm.load(&modules_of(proxies))?;
    let name = argv.first().cloned().unwrap_or_default();
    let mut command = Command::new(argv);
    if options.output.is_some() {
        command = command.variable(LEDGER, &format!("/out/{SKIPS}"));
    }
    let status = stream(&mut vm, &command, limit)?;
    if let Some(output) = &options.output {
        skips::gather(&output.join(SKIPS))?;
    }
    match status {
        Some(0) => Ok(()),
        Some(status) => bail!("{name} in the VM ended with status {status}"),
        None if interrupt::requested() => bail!("interrupted"),
        None => bail!("{name} in the VM did not end within {limit:?}"),
    }
}

/// What a node has loaded that runs these.
fn modules_of(proxies: &[&str]) -> Vec<&'static str> {
    let mut wanted = [modules::OF_A_NODE.as_slice(), &modules::OF_NFTABLES].concat();
    if proxies.contains(&"ebpf") {
        wanted.extend(modules::OF_EBPF);
    }
    if proxies.contains(&"ipvs") {
        wanted.extend(modules::OF_IPVS);
    }
    wanted
}
