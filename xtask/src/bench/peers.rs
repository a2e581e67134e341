//! Sluice against kube-proxy: the same API server, the same machine, in turns.

mod document;
mod figures;
mod plot;
mod session;
mod world;

use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use sluice_tests::cluster::Cluster;
use sluice_tests::cluster::tools::Tools;
use sluice_tests::lab::{Lab, LabOptions, prune};
use sluice_tests::proxy::ProxyProgram;

use crate::cluster_tools;
use crate::machine;
use figures::Figures;
pub(super) use figures::{Spread, spread};
use session::Session;
pub(super) use world::{bulk, bulk_address};

#[derive(Debug, Clone, clap::Args)]
#[group(id = "peers")]
pub(crate) struct Arguments {
    /// Numbers of Services to measure with, comma-separated, ascending.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1000, 10_000])]
    services: Vec<usize>,
    /// Endpoints of each Service.
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    /// Proxies, in the order of their turns: nftables, ebpf, kube-proxy-nftables,
    /// kube-proxy-iptables.
    #[arg(long, value_delimiter = ',',
        default_values_t = ["nftables", "kube-proxy-nftables", "kube-proxy-iptables"].map(str::to_owned))]
    proxies: Vec<String>,
    /// Turns of each proxy at each number of Services.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// Turns at numbers of Services from --large on, where a turn of a peer takes minutes.
    #[arg(long, default_value_t = 1)]
    large_repetitions: usize,
    /// Number of Services from which on there are fewer turns, and no traffic is measured.
    #[arg(long, default_value_t = 20_000)]
    large: usize,
    /// Changes to measure in each turn.
    #[arg(long, default_value_t = 5)]
    changes: usize,
    /// Duration of each load of traffic, in seconds.
    #[arg(long, default_value_t = 2)]
    load_seconds: u64,
    /// Time limit of each step, in seconds; a proxy that exceeds it is stopped at that number of
    /// Services.
    #[arg(long, default_value_t = 600)]
    limit: u64,
    #[command(flatten)]
    cluster: cluster_tools::Arguments,
    /// File to write every figure to.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write docs/benchmarks.md and its plots from the figures of this run.
    #[arg(long)]
    docs: bool,
    /// File of figures that an earlier run wrote with --json; nothing is measured.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    from: Option<PathBuf>,
}

/// Measures and prints; writes what was asked for.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let figures = match &arguments.from {
        Some(file) => Figures::read(file)?,
        None => measure(arguments)?,
    };
    print!("{}", document::summary(&figures));
    if arguments.docs {
        document::write(&figures)?;
    }
    if figures.given_up.iter().any(|given_up| given_up.proxy == "nftables") {
        bail!("sluice itself did not finish");
    }
    Ok(())
}

fn measure(arguments: &Arguments) -> Result<Figures> {
    machine::prepare()?;
    let tools = Tools::of(&cluster_tools::build(arguments.cluster.kubernetes)?)?;
    let programs = machine::build()?;
    sluice_tests::interrupt::install()?;
    prune::stale();
    let proxies = proxies(arguments, &tools, &programs)?;
    let first = proxies.first().context("--proxies is empty")?;
    let options = LabOptions::new(programs.conformance.clone(), first.clone());
    let cluster = Rc::new(Cluster::start(&tools)?);
    let mut lab = Lab::create_with(&world::topology(proxies.len())?, options, Rc::clone(&cluster))?;
    world::prepare(&lab, proxies.len())?;
    let mut figures = Figures::new(arguments.endpoints, arguments.cluster.kubernetes.number())?;
    let mut filled = 0;
    let mut given_up: Vec<String> = Vec::new();
    for &services in &arguments.services {
        world::fill(&cluster, filled, services, arguments.endpoints)?;
        filled = services.max(filled);
        let turns =
            if services >= arguments.large { arguments.large_repetitions } else { arguments.repetitions };
        for turn in 0..turns {
            for (place, program) in proxies.iter().enumerate() {
                if given_up.contains(&program.name) {
                    continue;
                }
                println!("{services} services, turn {} of {turns}: {}", turn + 1, program.name);
                let mut session =
                    Session { arguments, lab: &mut lab, program, place, services, figures: &mut figures };
                if let Err(error) = session.run() {
                    sluice_tests::interrupt::sleep(std::time::Duration::ZERO)?;
                    println!("    stopped measuring {} from {services} Services on: {error:#}", program.name);
                    figures.give_up(&program.name, services, &format!("{error:#}"));
                    given_up.push(program.name.clone());
                }
                session::clean_up(&mut lab, program, place)?;
                if let Some(file) = &arguments.json {
                    // After each turn: hours of measuring must not be lost with the last one.
                    figures.write(file)?;
                }
            }
        }
    }
    Ok(figures)
}

fn proxies(arguments: &Arguments, tools: &Tools, programs: &machine::Programs) -> Result<Vec<ProxyProgram>> {
    let of = |name: &String| match name.strip_prefix("kube-proxy-") {
        Some(mode) => ProxyProgram::kube_proxy(&tools.kube_proxy, mode, &programs.sluice),
        None => ProxyProgram::sluice(&programs.sluice, name),
    };
    arguments.proxies.iter().map(of).collect()
}
