//! `sluice-conformance`: runs conformance cases against a proxy, and tests itself.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use sluice_tests::cluster::tools::Tools;
use sluice_tests::known::{self, KnownErrors};
use sluice_tests::lab::plugin::PodNetwork;
use sluice_tests::lab::{LabOptions, bpffs, cgroup, prune};
use sluice_tests::proxy::ProxyProgram;
use sluice_tests::report::{Counts, Report};
use sluice_tests::runner::{self, RunOptions};
use sluice_tests::{agent, bursts, interrupt, needs, patience, scenarios, self_test, soak, torture};

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
        /// Path of the sluice binary
        #[arg(long)]
        sluice: PathBuf,
        /// Number of cases that run at a time
        #[arg(long)]
        jobs: Option<usize>,
    },
    /// Run scenarios: controllers, an API server in trouble, migration and restarts under load
    Scenarios(ScenarioArguments),
    /// Open connections from few client ports, with pauses in which flows end; fail if a connection
    /// fails
    Bursts(BurstArguments),
    /// Do a day's work within an hour; memory and elements must not grow, and no connection may
    /// fail
    Soak(SoakArguments),
    /// Run the same experiments in modes nftables and ebpf, and compare
    Torture(TortureArguments),
    /// Serve requests inside a namespace
    #[command(hide = true)]
    Agent {
        /// Factor on time limits, as the runner's
        #[arg(long, default_value_t = 1)]
        patience: u32,
    },
}

#[derive(Debug, clap::Args)]
struct BurstArguments {
    /// Path of the sluice binary
    #[arg(long)]
    sluice: PathBuf,
    /// Mode of the proxy
    #[arg(long, default_value = "ebpf")]
    proxy: String,
    #[command(flatten)]
    bursts: bursts::Arguments,
}

#[derive(Debug, clap::Args)]
struct SoakArguments {
    /// Path of the sluice binary; sluice-cni must be in the same directory
    #[arg(long)]
    sluice: PathBuf,
    /// Mode of the proxy
    #[arg(long, default_value = "nftables")]
    proxy: String,
    #[command(flatten)]
    soak: soak::Arguments,
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    /// Proxy under test
    #[arg(long)]
    proxy: ProxyKind,
    /// Source of objects
    #[arg(long, default_value = "manifests")]
    source: SourceKind,
    /// Path of the sluice binary
    #[arg(long)]
    sluice: PathBuf,
    /// Pod network
    #[arg(long, default_value = "lab")]
    pod_network: PodNetwork,
    /// Directory of the cluster's programs, for --source api
    #[arg(long)]
    cluster_tools: Option<PathBuf>,
    /// Case files, or directories of case files [default: the project's own cases]
    #[arg(long, num_args = 1..)]
    cases: Vec<PathBuf>,
    /// File to write the results to
    #[arg(long)]
    json: Option<PathBuf>,
    /// Number of cases that run at a time [default: twice the number of CPUs, or their number with
    /// --source api]
    #[arg(long)]
    jobs: Option<usize>,
    /// Factor on the time limits of expectations, for slow machines
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    patience: u32,
}

#[derive(Debug, clap::Args)]
struct ScenarioArguments {
    /// Path of the sluice binary
    #[arg(long)]
    sluice: PathBuf,
    /// Directory of the cluster's programs
    #[arg(long)]
    cluster_tools: PathBuf,
    /// Names of scenarios to run [default: all]
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// Also run scenarios that take minutes
    #[arg(long)]
    long: bool,
    /// File to write the results to
    #[arg(long)]
    json: Option<PathBuf>,
    /// Factor on the time limits of expectations, for slow machines
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    patience: u32,
}

#[derive(Debug, clap::Args)]
struct TortureArguments {
    /// Path of the sluice binary
    #[arg(long)]
    sluice: PathBuf,
    /// Page that documents differences: docs/differences.md
    #[arg(long)]
    documented: PathBuf,
    /// Run only experiments whose names contain one of these
    #[arg(long, value_name = "PART", num_args = 1..)]
    only: Vec<String>,
    /// Run only the selection that CI runs: some of each network, and none with a documented
    /// difference
    #[arg(long)]
    short: bool,
    /// Factor on the time to wait for an answer, for slow machines
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    patience: u32,
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
        Command::Agent { patience } => {
            patience::set(patience);
            agent::serve::run().map(|()| ExitCode::SUCCESS)
        }
        Command::Run(arguments) => run(&arguments),
        Command::Scenarios(arguments) => run_scenarios(&arguments),
        Command::Bursts(arguments) => run_bursts(&arguments),
        Command::Soak(arguments) => run_soak(&arguments),
        Command::Torture(arguments) => run_torture(arguments),
        Command::SelfTest { sluice, jobs } => test_self(&sluice, jobs),
    };
    done.unwrap_or_else(|error| {
        eprintln!("sluice-conformance: {error:#}");
        ExitCode::from(UNUSABLE)
    })
}

fn run_bursts(arguments: &BurstArguments) -> Result<ExitCode> {
    let lab = prepare(ProxyProgram::sluice(&arguments.sluice, &arguments.proxy)?)?;
    bursts::run(lab, arguments.bursts).map(|()| ExitCode::SUCCESS)
}

/// The proxy that the arguments ask for.
fn program(arguments: &RunArguments, name: &str) -> Result<ProxyProgram> {
    match arguments.proxy {
        ProxyKind::Nftables => ProxyProgram::sluice(&arguments.sluice, name),
        ProxyKind::Ebpf => {
            ensure!(
                cgroup::root().is_some(),
                "--proxy {name} needs a writable cgroup2 mount: each node has its own cgroup"
            );
            bpffs::mounted()?;
            ProxyProgram::sluice(&arguments.sluice, name)
        }
        ProxyKind::Ipvs => {
            for need in ["ipvs", "dummy"] {
                if let Some(lack) = needs::missing(need)? {
                    bail!(
                        "--proxy {name} {lack}; cargo xtask conformance --vm runs it in a VM whose kernel has it"
                    );
                }
            }
            ProxyProgram::sluice(&arguments.sluice, name)
        }
        ProxyKind::KubeProxyNftables | ProxyKind::KubeProxyIptables => {
            ensure!(
                arguments.source == SourceKind::Api,
                "--proxy {name} needs --source api: it reads no files"
            );
            let mode = name.trim_start_matches("kube-proxy-");
            ProxyProgram::kube_proxy(&tools(arguments)?.kube_proxy, mode, &arguments.sluice)
        }
    }
}

fn tools(arguments: &RunArguments) -> Result<Tools> {
    let dir = arguments.cluster_tools.as_deref();
    Tools::of(dir.context("--source api needs --cluster-tools DIR (cargo xtask cluster-tools builds it)")?)
}

fn prepare(proxy: ProxyProgram) -> Result<LabOptions> {
    ensure!(nix::unistd::geteuid().is_root(), "labs need root");
    interrupt::install()?;
    prune::stale();
    let agent = std::env::current_exe().context("finding this program")?;
    Ok(LabOptions::new(agent, proxy))
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn run(arguments: &RunArguments) -> Result<ExitCode> {
    let name = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
        value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    };
    let proxy = name(&|| arguments.proxy.to_possible_value());
    let source = name(&|| arguments.source.to_possible_value());
    let files = select(&arguments.cases)?;
    ensure!(!files.is_empty(), "no case is selected");
    let tools = match arguments.source {
        SourceKind::Manifests => None,
        SourceKind::Api => Some(tools(arguments)?),
    };
    let program = program(arguments, &proxy)?;
    ensure!(
        program.is_sluice() || !arguments.pod_network.is_sluice(),
        "--pod-network: --proxy {proxy} has no pod network"
    );
    let lab = LabOptions { pod_network: arguments.pod_network, ..prepare(program)? };
    let options = RunOptions { lab, tools, known: KnownErrors::parse(known::OF_THE_PROJECT)? };
    patience::set(arguments.patience);
    let report = Report::default();
    // A control plane for each job takes memory and, at its start, most of a core.
    let default_jobs = if options.tools.is_some() { cpus() } else { cpus() * 2 };
    runner::run_all(&files, &options, arguments.jobs.unwrap_or(default_jobs), &report);
    report.finish()?;
    if let Some(file) = &arguments.json {
        report.write_json(file, &proxy, &source)?;
    }
    Ok(status(report.counts(), files.len()))
}

fn run_scenarios(arguments: &ScenarioArguments) -> Result<ExitCode> {
    patience::set(arguments.patience);
    let selected = scenarios::select(&arguments.only)?;
    let tools = Tools::of(&arguments.cluster_tools)?;
    let lab = prepare(ProxyProgram::sluice(&arguments.sluice, "nftables")?)?;
    let report = Report::default();
    scenarios::run_all(&selected, &scenarios::Options { lab, tools, long: arguments.long }, &report);
    report.finish()?;
    if let Some(file) = &arguments.json {
        report.write_json(file, "nftables", "api")?;
    }
    Ok(status(report.counts(), selected.len()))
}

fn run_soak(arguments: &SoakArguments) -> Result<ExitCode> {
    match arguments.proxy.as_str() {
        "ebpf" => {
            ensure!(cgroup::root().is_some(), "mode ebpf needs a writable cgroup2 mount");
            bpffs::mounted()?;
        }
        "ipvs" => {
            if let Some(lack) = needs::missing("ipvs")? {
                sluice_skips::skip_for(lack);
                return Ok(ExitCode::SUCCESS);
            }
        }
        _ => {}
    }
    let lab = prepare(ProxyProgram::sluice(&arguments.sluice, &arguments.proxy)?)?;
    soak::run(lab, arguments.soak)?;
    Ok(ExitCode::SUCCESS)
}

fn run_torture(arguments: TortureArguments) -> Result<ExitCode> {
    patience::set(arguments.patience);
    ensure!(cgroup::root().is_some(), "mode ebpf needs a writable cgroup2 mount");
    bpffs::mounted()?;
    let lab = prepare(ProxyProgram::sluice(&arguments.sluice, torture::MODES[0])?)?;
    let documented = std::fs::read_to_string(&arguments.documented)
        .with_context(|| format!("reading {}", arguments.documented.display()))?;
    let TortureArguments { only, short, .. } = arguments;
    let good = torture::run(&torture::Options { lab, only, short, documented })?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
    let options = prepare(ProxyProgram::sluice(sluice, "nftables")?)?;
    let good = self_test::run(&options, jobs.unwrap_or(cpus() * 2));
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The case files of the given places, or of the usual ones.
fn select(given: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if given.is_empty() {
        files.extend(yaml_files(&workspace_root()?.join("tests/cases"))?);
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
    root.map(Path::to_owned).context("not inside the workspace; set --cases")
}
