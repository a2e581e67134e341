//! `sluice-conformance`: runs conformance cases against a proxy, and tests itself.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use sluice_tests::lab::{LabOptions, prune};
use sluice_tests::proxy::ProxyProgram;
use sluice_tests::report::{Counts, Report};
use sluice_tests::{agent, interrupt, runner, self_test};

/// Status of a run that could not begin.
const UNUSABLE: u8 = 2;

#[derive(Debug, Parser)]
#[command(version, about = "Runs conformance cases in labs of network namespaces")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run cases against a proxy
    Run(RunArguments),
    /// Check that the runner notices wrong expectations
    SelfTest {
        /// The sluice binary
        #[arg(long)]
        sluice: PathBuf,
        /// Cases at a time
        #[arg(long)]
        jobs: Option<usize>,
    },
    /// Serve requests inside a namespace
    #[command(hide = true)]
    Agent,
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    /// The proxy under test
    #[arg(long)]
    proxy: ProxyKind,
    /// Where the proxy gets its objects from
    #[arg(long, default_value = "manifests")]
    source: SourceKind,
    /// The sluice binary
    #[arg(long)]
    sluice: PathBuf,
    /// Files, or directories of files; the project's own when not given
    #[arg(long, num_args = 1..)]
    cases: Vec<PathBuf>,
    /// Write the results there
    #[arg(long)]
    json: Option<PathBuf>,
    /// Cases at a time; twice the number of CPUs when not given
    #[arg(long)]
    jobs: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProxyKind {
    Nftables,
    Ebpf,
    Ipvs,
    KubeProxyNftables,
    KubeProxyIptables,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SourceKind {
    Manifests,
    Api,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Agent => agent::serve::run().map(|()| ExitCode::SUCCESS),
        Command::Run(arguments) => run(&arguments),
        Command::SelfTest { sluice, jobs } => test_self(&sluice, jobs),
    };
    done.unwrap_or_else(|error| {
        eprintln!("sluice-conformance: {error:#}");
        ExitCode::from(UNUSABLE)
    })
}

fn prepare(sluice: &Path, mode: &str) -> Result<LabOptions> {
    ensure!(nix::unistd::geteuid().is_root(), "labs need root");
    interrupt::install()?;
    prune::stale();
    let agent = std::env::current_exe().context("finding this program")?;
    Ok(LabOptions { agent, proxy: ProxyProgram::new(sluice, mode)? })
}

fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(2, |cpus| cpus.get() * 2)
}

fn run(arguments: &RunArguments) -> Result<ExitCode> {
    let name = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
        value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    };
    let proxy = name(&|| arguments.proxy.to_possible_value());
    let source = name(&|| arguments.source.to_possible_value());
    if arguments.proxy != ProxyKind::Nftables {
        bail!("--proxy {proxy} is not available in this version; --proxy nftables is");
    }
    if arguments.source != SourceKind::Manifests {
        bail!("--source {source} is not available in this version; --source manifests is");
    }
    let files = select(&arguments.cases)?;
    ensure!(!files.is_empty(), "no case is selected");
    let options = prepare(&arguments.sluice, &proxy)?;
    let report = Report::default();
    runner::run_all(&files, &options, arguments.jobs.unwrap_or_else(default_jobs), &report);
    report.finish();
    if let Some(file) = &arguments.json {
        report.write_json(file, &proxy, &source)?;
    }
    Ok(status(report.counts(), files.len()))
}

/// Success only when every selected case was looked at and none failed.
fn status(counts: Counts, selected: usize) -> ExitCode {
    if interrupt::requested() {
        return ExitCode::from(130);
    }
    let all = counts.passed + counts.failed + counts.skipped == selected;
    if all && counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn test_self(sluice: &Path, jobs: Option<usize>) -> Result<ExitCode> {
    let options = prepare(sluice, "nftables")?;
    let good = self_test::run(&options, jobs.unwrap_or_else(default_jobs));
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The case files of the given places, or of the usual ones.
fn select(given: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if given.is_empty() {
        let root = workspace_root()?;
        let usual = [root.join("tests/cases"), root.join("../shared/conformance/cases")];
        for dir in usual.iter().filter(|dir| dir.is_dir()) {
            files.extend(yaml_files(dir)?);
        }
    }
    for place in given {
        if place.is_dir() {
            files.extend(yaml_files(place)?);
        } else if place.is_file() {
            files.push(place.clone());
        } else {
            bail!("no case at {}", place.display());
        }
    }
    Ok(files)
}

fn yaml_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if path.is_file()
            && path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The directory above the current one, or it itself, whose Cargo.toml has a workspace.
fn workspace_root() -> Result<PathBuf> {
    let here = std::env::current_dir()?;
    let is_root = |dir: &&Path| {
        std::fs::read_to_string(dir.join("Cargo.toml")).is_ok_and(|text| text.contains("[workspace]"))
    };
    let root = here.ancestors().find(is_root);
    root.map(Path::to_owned).context("not inside the workspace; say --cases")
}
