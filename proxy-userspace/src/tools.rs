//! Commands other than `run`. They need no daemon; two of them work on what the features leave in
//! the kernel and on the disk.

pub mod cleanup;
pub mod status;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use crate::cli::{self, Command, ConfigCommand};
use crate::config::settings;
use crate::exit::ExitError;
use crate::feature::Places;
use crate::output::print;
use cleanup::Options;

/// Does what a command says.
pub fn run(command: &Command) -> Result<ExitCode, ExitError> {
    match command {
        // Needs more than a command: see `main.rs`.
        Command::Run(_) => {}
        Command::Status { bpffs, output } => {
            return Ok(ExitCode::from(status::status(bpffs, *output)?.exit_code()));
        }
        Command::Cleanup { kube_proxy, bpffs, run_dir, force } => cleanup::cleanup(&Options {
            kube_proxy: *kube_proxy,
            force: *force,
            places: Places { bpffs: bpffs.clone(), run_dir: run_dir.clone() },
        })?,
        Command::Config(ConfigCommand::Check { file }) => check(file)?,
        Command::Version => show(format_args!("{}\n", cli::version("raw").unwrap_or_default()))?,
        Command::Completion { shell } => show(cli::completion(*shell))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn show(text: impl std::fmt::Display) -> Result<(), ExitError> {
    print(text).map_err(|source| ExitError::System { operation: "write to stdout", source })
}

/// Reads a configuration as the daemon does.
fn check(file: &Path) -> Result<(), ExitError> {
    let line = ["sluice", "run", "--hostname-override=node", "--config"].map(OsString::from);
    let line = line.into_iter().chain([file.as_os_str().to_owned()]);
    let invocation = cli::parse(line).unwrap_or_else(|error| error.exit());
    let Command::Run(args) = &invocation.command else { return Ok(()) };
    let settings = settings(args, &invocation, "")?;
    settings.warnings.iter().try_for_each(|warning| show(format_args!("{warning}\n")))?;
    show(format_args!("{} can be used\n", file.display()))
}
