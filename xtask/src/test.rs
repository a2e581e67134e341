//! `cargo xtask test` and `cargo xtask lint`.

mod in_vms;

use std::process::Command;

use anyhow::Result;

use crate::build_ebpf;
use crate::cluster_tools;
use crate::cni_suite;
use crate::conformance;
use crate::machine::{self, cargo, run as run_command};
use crate::scenarios;

/// A test says whether something comes to be, not how fast: it may share its cores with others.
const PATIENCE: u32 = 3;

/// Arguments of the test command.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Instead of the tests of this machine, all those in VMs: every case with each backend, under each kernel
    #[arg(long)]
    vm: bool,
}

/// Runs everything that this machine can run, or everything in VMs.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    machine::prepare()?;
    if arguments.vm {
        return in_vms::all();
    }
    build_ebpf::prepare()?;
    let has_go = cluster_tools::has_go();
    let mut tests = cargo(&["test", "--workspace", "--quiet"]);
    if has_go {
        // First, because some of these tests compare with the real kube-proxy, and skip that where it is not named.
        tests.env("SLUICE_KUBE_PROXY", cluster_tools::build()?.join("kube-proxy"));
    }
    if let Some(kernel) = in_vms::kernel_of_tests()? {
        tests.env(in_vms::KERNEL_VARIABLE, kernel);
    }
    println!("unit, property and kernel tests");
    run_command(&mut tests)?;
    let programs = machine::build()?;
    println!("self-test of the conformance runner");
    run_command(Command::new(&programs.conformance).args(["self-test", "--sluice"]).arg(&programs.sluice))?;
    conformance::run(&cases("nftables", "manifests"))?;
    conformance::run(&cases("ebpf", "manifests"))?;
    for proxy in ["nftables", "ebpf"] {
        println!("with sluice's own pod network");
        let pod_network = "sluice".to_owned();
        conformance::run(&conformance::Arguments { pod_network, ..cases(proxy, "manifests") })?;
    }
    in_vms::smoke(&programs)?;
    if !has_go {
        println!("skip: everything with a real API server and kube-proxy: Go, which builds them, is missing");
        return Ok(());
    }
    conformance::run(&cases("nftables", "api"))?;
    conformance::run(&cases("ebpf", "api"))?;
    conformance::run(&cases("kube-proxy-nftables", "api"))?;
    println!("scenarios");
    scenarios::run(&scenarios::Arguments::default())?;
    cni_suite::run(&programs)
}

/// All cases with a proxy and a source of objects.
fn cases(proxy: &str, source: &str) -> conformance::Arguments {
    println!("conformance: {proxy}, objects from {source}");
    conformance::Arguments {
        pod_network: "lab".to_owned(),
        proxy: proxy.to_owned(),
        source: source.to_owned(),
        cases: Vec::new(),
        json: None,
        jobs: None,
        patience: PATIENCE,
        vm: None,
    }
}

/// Checks formatting and lints.
pub(crate) fn lint() -> Result<()> {
    run_command(&mut cargo(&["fmt", "--all", "--check"]))?;
    run_command(&mut cargo(&["fmt", "--manifest-path", "proxy-ebpf/Cargo.toml", "--check"]))?;
    build_ebpf::prepare()?;
    run_command(&mut cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))?;
    // Nothing else builds this.
    run_command(&mut cargo(&["check", "--package", "sluice", "--no-default-features", "--quiet"]))
}
