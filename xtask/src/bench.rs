//! `cargo xtask bench`: figures, each printed by a command that anyone can run again.

mod scale;

use anyhow::Result;

/// What to measure.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Load and change times, memory and kernel objects by number of services.
    Scale(scale::Arguments),
}

/// Runs a benchmark.
pub(crate) fn run(command: &Command) -> Result<()> {
    match command {
        Command::Scale(arguments) => scale::run(arguments),
    }
}
