//! `cargo xtask test` and `cargo xtask lint`.

mod in_vms;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Result;
use sluice_skips::Why;

use crate::build_ebpf;
use crate::built_tests::BuiltTests;
use crate::bursts;
use crate::cluster_tools::{self, Kubernetes};
use crate::cni_suite;
use crate::conformance;
use crate::fuzz;
use crate::machine::{self, Programs, cargo, run as run_command};
use crate::scenarios;
use crate::skips;
use crate::suites::Suites;
use crate::supply_chain;
use crate::tidy;
use crate::torture;

/// A test says whether something comes to be, not how fast: it may share its cores with others.
const PATIENCE: u32 = 5;

/// Arguments of the test command.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run the tests in VMs instead of those on this machine: every case with each backend, on each
    /// kernel
    #[arg(long)]
    vm: bool,
}

/// Runs everything that this machine can run, or everything in VMs: all of it, whatever fails
/// meanwhile.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let required = skips::Required::of_environment()?;
    skips::begin()?;
    machine::prepare()?;
    let tests = BuiltTests::build()?;
    let mut suites = Suites::default();
    if arguments.vm {
        in_vms::all(&mut suites, &tests)?;
    } else {
        of_this_machine(&mut suites, &tests);
    }
    suites.run("skipped tests", || skips::account(required));
    Ok(suites.finish())
}

fn of_this_machine(suites: &mut Suites, tests: &BuiltTests) {
    let programs = &tests.programs;
    let tools = with_go(suites);
    suites.run("unit, property and kernel tests", || cargo_tests(tools.as_deref()));
    let name = "comparison of the eBPF programs with their record";
    match build_ebpf::obstacle() {
        Ok(Some(why)) => suites.skip(name, why),
        Ok(None) => suites.run(name, build_ebpf::check),
        Err(error) => suites.run(name, || Err(error)),
    }
    suites.run("fuzzing of readers", || fuzz::run_built(tests));
    suites.run("self-test of the conformance runner", || {
        run_command(Command::new(&programs.conformance).args(["self-test", "--sluice"]).arg(&programs.sluice))
    });
    for pod_network in ["lab", "sluice"] {
        for proxy in ["nftables", "ebpf"] {
            run_cases(suites, programs, proxy, "manifests", pod_network);
        }
    }
    suites.run("the same experiments in modes nftables and ebpf", || {
        let arguments =
            torture::Arguments { short: true, patience: PATIENCE, ..torture::Arguments::default() };
        torture::run_with(programs, &arguments)
    });
    suites.run("bursts of connections with reused ports", || bursts::some(programs));
    in_vms::smoke(suites, tests);
    if tools.is_none() {
        let lack = Why::lack("go", "it builds Kubernetes and etcd");
        return suites.skip("cases with a real API server, scenarios, CNI tests", lack);
    }
    for proxy in ["nftables", "kube-proxy-nftables"] {
        run_cases(suites, programs, proxy, "api", "lab");
    }
    // Where objects come from makes no difference to a backend, and the kernel's verifier makes
    // daemons of this mode slow to start.
    suites.run("some cases with a real API server: ebpf", || {
        let arguments = conformance::Arguments { cases: in_vms::some_cases("ebpf"), ..cases("ebpf", "api") };
        conformance::run_with(programs, &arguments)
    });
    suites.run("scenarios", || {
        let arguments = scenarios::Arguments { patience: Some(PATIENCE), ..scenarios::Arguments::default() };
        scenarios::run_with(programs, &arguments)
    });
    suites
        .run("integration tests of containernetworking/plugins with sluice-cni", || cni_suite::run(programs));
}

/// The directory of the real API server and kube-proxy, where they can be had.
fn with_go(suites: &mut Suites) -> Option<PathBuf> {
    if !cluster_tools::has_go() {
        return None;
    }
    let mut directory = None;
    suites.run("build of Kubernetes and etcd", || {
        directory = Some(cluster_tools::build(Kubernetes::default())?);
        Ok(())
    });
    directory
}

fn cargo_tests(tools: Option<&Path>) -> Result<()> {
    // All of them, too: cargo would stop at the first program that fails.
    let mut tests = cargo(&["test", "--workspace", "--quiet", "--no-fail-fast"]);
    if let Some(tools) = tools {
        // Some compare with the real kube-proxy, and skip that where it is not named.
        tests.env("SLUICE_KUBE_PROXY", tools.join("kube-proxy"));
    }
    if let Some(kernel) = in_vms::kernel_of_tests()? {
        tests.env(in_vms::KERNEL_VARIABLE, kernel);
    }
    run_command(&mut tests)
}

/// Runs all cases with a proxy, a source of objects and a pod network.
fn run_cases(suites: &mut Suites, programs: &Programs, proxy: &str, source: &str, pod_network: &str) {
    let name = format!("conformance: {proxy}, objects from {source}, pod network {pod_network}");
    let pod_network = pod_network.to_owned();
    let arguments = conformance::Arguments { pod_network, ..cases(proxy, source) };
    suites.run(&name, || conformance::run_with(programs, &arguments));
}

/// All cases with a proxy and a source of objects.
fn cases(proxy: &str, source: &str) -> conformance::Arguments {
    conformance::Arguments {
        pod_network: "lab".to_owned(),
        proxy: proxy.to_owned(),
        source: source.to_owned(),
        cluster: cluster_tools::Arguments::default(),
        cases: Vec::new(),
        json: None,
        jobs: None,
        patience: PATIENCE,
        vm: None,
    }
}

/// Checks the repository's own rules, formatting, lints, and dependencies.
pub(crate) fn lint() -> Result<()> {
    tidy::run()?;
    run_command(&mut cargo(&["fmt", "--all", "--check"]))?;
    run_command(&mut cargo(&["fmt", "--manifest-path", "proxy-ebpf/Cargo.toml", "--check"]))?;
    build_ebpf::prepare()?;
    run_command(&mut cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))?;
    // Nothing else builds this.
    run_command(&mut cargo(&["check", "--package", "sluice", "--no-default-features", "--quiet"]))?;
    supply_chain::dependencies()
}
