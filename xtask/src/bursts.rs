//! `cargo xtask bursts`: builds, then hands over to the runner.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use sluice_tests::bursts;

use crate::machine::{self, Programs, run as run_command};

/// Arguments of the bursts command.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// sluice binary to test [default: built from these sources]
    #[arg(long)]
    sluice: Option<PathBuf>,
    /// Mode of sluice
    #[arg(long, default_value = "ebpf")]
    proxy: String,
    #[command(flatten)]
    bursts: bursts::Arguments,
}

/// Runs them; fails if a connection failed.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    machine::prepare()?;
    let programs = machine::build()?;
    let mut command = Command::new(&programs.conformance);
    let bursts::Arguments { connections, round } = arguments.bursts;
    command.args(["bursts", "--proxy", &arguments.proxy, "--connections", &connections.to_string()]);
    command.args(["--round", &round.to_string(), "--sluice"]);
    run_command(command.arg(arguments.sluice.as_ref().unwrap_or(&programs.sluice)))
}

/// As many as CI has time for, which is what the runner does unless told otherwise.
pub(crate) fn some(programs: &Programs) -> Result<()> {
    run_command(Command::new(&programs.conformance).args(["bursts", "--sluice"]).arg(&programs.sluice))
}
