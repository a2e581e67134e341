//! `cargo xtask scenarios`: builds, then hands over to the runner.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::cluster_tools;
use crate::machine::{self, run as run_command};

/// Arguments of the scenarios command.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// Only these, by name
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub(crate) only: Vec<String>,
    /// Also those that take minutes
    #[arg(long)]
    pub(crate) long: bool,
    /// Write the results there
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
}

/// Runs scenarios; fails unless every selected one passed.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    machine::prepare()?;
    let tools = cluster_tools::build()?;
    let programs = machine::build()?;
    let mut command = Command::new(&programs.conformance);
    command.args(["scenarios", "--sluice"]).arg(&programs.sluice).arg("--cluster-tools").arg(tools);
    if !arguments.only.is_empty() {
        command.arg("--only").args(&arguments.only);
    }
    if arguments.long {
        command.arg("--long");
    }
    if let Some(file) = &arguments.json {
        command.arg("--json").arg(file);
    }
    run_command(&mut command)
}
