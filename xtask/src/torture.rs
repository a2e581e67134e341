//! `cargo xtask torture`: builds, then hands over to the runner.

use std::process::Command;

use anyhow::Result;

use crate::machine::{self, Programs, root, run as run_command};

/// Arguments of the torture command.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Arguments {
    /// Run only experiments whose names contain one of these
    #[arg(long, value_name = "PART", num_args = 1..)]
    pub(crate) only: Vec<String>,
    /// Run only the selection that CI runs: some of each network, and none with a documented
    /// difference
    #[arg(long)]
    pub(crate) short: bool,
    /// Factor on the time to wait for an answer, for busy machines
    #[arg(long, default_value_t = 1)]
    pub(crate) patience: u32,
}

/// Does the same experiments in modes nftables and ebpf; fails on a difference that
/// docs/differences.md does not name.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    machine::prepare()?;
    run_with(&machine::build()?, arguments)
}

/// Does them with these programs.
pub(crate) fn run_with(programs: &Programs, arguments: &Arguments) -> Result<()> {
    machine::install(&[("ethtool", "ethtool")])?;
    let mut command = Command::new(&programs.conformance);
    command.arg("torture").arg("--sluice").arg(&programs.sluice);
    command.arg("--documented").arg(root().join("docs/differences.md"));
    command.args(["--patience", &arguments.patience.to_string()]);
    if arguments.short {
        command.arg("--short");
    }
    if !arguments.only.is_empty() {
        command.arg("--only").args(&arguments.only);
    }
    run_command(&mut command)
}
