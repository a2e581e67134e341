//! `cargo xtask soak`: builds, then hands over to the runner, once for each mode.

use std::process::Command;

use anyhow::{Result, ensure};
use sluice_tests::soak;

use crate::machine::{self, run as run_command};

/// Arguments of the soak command.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Modes to test, one after the other; a mode that the machine does not support is a counted
    /// skip
    #[arg(long, num_args = 1.., default_values = ["nftables", "ebpf", "ipvs"])]
    proxy: Vec<String>,
    #[command(flatten)]
    soak: soak::Arguments,
}

/// Runs them; fails, after all of them, if a limit was broken.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    machine::prepare()?;
    let programs = machine::build()?;
    let mut failed = Vec::new();
    for proxy in &arguments.proxy {
        let mut command = Command::new(&programs.conformance);
        command.args([
            "soak",
            "--proxy",
            proxy,
            "--minutes",
            &arguments.soak.minutes.to_string(),
            "--sluice",
        ]);
        if let Err(error) = run_command(command.arg(&programs.sluice)) {
            println!("{proxy}: {error:#}");
            failed.push(proxy.as_str());
        }
    }
    ensure!(failed.is_empty(), "failed in mode {}", failed.join(", "));
    Ok(())
}
