//! `cargo xtask`: every developer command. CI calls nothing else.

mod bench;
mod build_ebpf;
mod built_tests;
mod bursts;
mod cluster_tools;
mod cni_suite;
mod conformance;
mod demo;
mod docs;
mod fuzz;
mod image;
mod machine;
mod passes;
mod scenarios;
mod skips;
mod soak;
mod suites;
mod supply_chain;
mod test;
mod tidy;
mod tool;
mod torture;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Developer commands of Sluice")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show Sluice in action: two nodes, real traffic, live changes. Needs nothing but this
    /// machine.
    Demo(demo::Arguments),
    /// Run all tests: unit, property and kernel tests, the runner's self-test, conformance cases
    /// and scenarios; some run in a VM.
    Test(test::Arguments),
    /// Run conformance cases against a proxy.
    Conformance(conformance::Arguments),
    /// Run scenarios against a real API server: controllers, faults, migration, restarts.
    Scenarios(scenarios::Arguments),
    /// Open connections from few client ports, with pauses in which flows end (docs/testing.md).
    Bursts(bursts::Arguments),
    /// Do a day's work within an hour, in all modes. Memory and elements must not grow, and no
    /// connection may fail (docs/testing.md).
    Soak(soak::Arguments),
    /// Run the same experiments in modes nftables and ebpf, and fail on differences that are not
    /// documented.
    Torture(torture::Arguments),
    /// Fuzz the readers of files, objects, frames, configurations, netlink messages and packets
    /// (docs/testing.md).
    Fuzz(fuzz::Arguments),
    /// Draw the pictures of docs/ from their sources, and build a site of all pages, with search,
    /// in target/docs.
    Docs,
    /// Check the repository's own rules: links, sizes, prose, dependencies between crates. Part of
    /// lint.
    Tidy,
    /// Run a command, or a shell, in a VM with another kernel.
    Vm(vm::Arguments),
    /// Measure Sluice against kube-proxy, or alone.
    Bench(bench::Arguments),
    /// Build the eBPF programs, and install what the build needs. A build of sluice embeds them.
    BuildEbpf(build_ebpf::Arguments),
    /// Build the API server, etcd and kube-proxy that tests and benchmarks run, and print where
    /// they are.
    ClusterTools(cluster_tools::Arguments),
    /// Build the container image: an OCI archive with the static binary, without a container
    /// engine.
    Image(image::Arguments),
    /// Check the supply chain: licences, sources and advisories of dependencies, digests of what is
    /// built; and write an SBOM.
    SupplyChain(supply_chain::Arguments),
    /// Check formatting and lints, warnings denied, and the licences and sources of dependencies.
    Lint,
}

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Demo(arguments) => demo::run(&arguments)?,
        Command::Test(arguments) => return test::run(&arguments),
        Command::Conformance(arguments) => conformance::run(&arguments)?,
        Command::Scenarios(arguments) => scenarios::run(&arguments)?,
        Command::Bursts(arguments) => bursts::run(&arguments)?,
        Command::Soak(arguments) => soak::run(&arguments)?,
        Command::Torture(arguments) => torture::run(&arguments)?,
        Command::Fuzz(arguments) => fuzz::run(&arguments)?,
        Command::Vm(arguments) => return vm::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments)?,
        Command::BuildEbpf(arguments) => build_ebpf::run(&arguments)?,
        Command::ClusterTools(arguments) => {
            println!("{}", cluster_tools::build(arguments.kubernetes)?.display());
        }
        Command::Image(arguments) => image::run(&arguments)?,
        Command::SupplyChain(arguments) => supply_chain::run(&arguments)?,
        Command::Lint => test::lint()?,
        Command::Docs => docs::run()?,
        Command::Tidy => tidy::run()?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_can_be_parsed() {
        Cli::command().debug_assert();
    }
}
