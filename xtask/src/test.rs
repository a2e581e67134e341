//! `cargo xtask test` and `cargo xtask lint`.

use std::process::Command;

use anyhow::Result;

use crate::conformance;
use crate::machine::{self, cargo, run as run_command};

/// Runs everything that this machine can run.
pub(crate) fn run() -> Result<()> {
    machine::prepare()?;
    println!("unit, property and kernel tests");
    run_command(&mut cargo(&["test", "--workspace", "--quiet"]))?;
    let programs = machine::build()?;
    println!("self-test of the conformance runner");
    run_command(Command::new(&programs.conformance).args(["self-test", "--sluice"]).arg(&programs.sluice))?;
    println!("conformance: nftables, objects from manifests");
    let arguments = conformance::Arguments {
        proxy: "nftables".into(),
        source: "manifests".into(),
        cases: Vec::new(),
        json: None,
        jobs: None,
    };
    conformance::run(&arguments)
}

/// Checks formatting and lints.
pub(crate) fn lint() -> Result<()> {
    run_command(&mut cargo(&["fmt", "--all", "--check"]))?;
    run_command(&mut cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))
}
