//! `cargo xtask vm`: this machine's programs under other kernels.

pub(crate) mod kernels;
pub(crate) mod runner;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Subcommand;
use sluice_tests::vm::{self, Command, Output, Vm, VmOptions};
use sluice_tests::{interrupt, lab::prune};

use crate::machine::{root, target_directory};
use kernels::Series;

/// The status of a command that took too long, as timeout(1) has it.
const TIMED_OUT: u8 = 124;
/// The status of a VM that failed.
const BROKEN: u8 = 125;
/// What of the environment a command inside has, too.
const INHERITED: [&str; 6] = ["PATH", "HOME", "LANG", "TERM", "RUST_LOG", "RUST_BACKTRACE"];

/// Arguments of the VM commands.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: VmCommand,
}

#[derive(Debug, Subcommand)]
enum VmCommand {
    /// Run a command in a VM. The exit status is that of the command, 124 if it took too long, or
    /// 125 if the VM failed.
    Run(RunArguments),
    /// Run a shell in a VM, on this terminal. `exit` ends the VM; Ctrl-A X ends it at once.
    Shell(MachineArguments),
    /// Download the kernels, and print their paths
    Kernels {
        /// Look for newer packages
        #[arg(long)]
        update: bool,
    },
}

#[derive(Debug, clap::Args)]
struct MachineArguments {
    /// Kernel series
    #[arg(long, default_value_t)]
    kernel: Series,
    /// Memory in MiB
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// Number of CPUs
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Directory that the VM can write to, as /out
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    #[command(flatten)]
    machine: MachineArguments,
    /// Time limit of the command, in seconds
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs one of the VM commands.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.command {
        VmCommand::Run(arguments) => Ok(run_reported(arguments)),
        VmCommand::Shell(arguments) => shell(arguments).map(|()| ExitCode::SUCCESS),
        VmCommand::Kernels { update } => {
            for series in [Series::V6_1, Series::V6_12] {
                let kernel = kernels::get(series, *update)?;
                println!("{series} {} {}", kernel.release, kernels::directory(series).display());
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// How a VM of the project is made: it sees the workspace, wherever that is.
pub(crate) fn options(output: Option<&Path>) -> Result<VmOptions> {
    let output = output.map(|directory| {
        std::fs::create_dir_all(directory)
            .and_then(|()| directory.canonicalize())
            .with_context(|| format!("creating {}", directory.display()))
    });
    let keep = vec![root(), target_directory(), std::env::current_dir()?];
    Ok(VmOptions { output: output.transpose()?, keep, ..VmOptions::default() })
}

fn options_of(arguments: &MachineArguments) -> Result<VmOptions> {
    let options = options(arguments.output.as_deref())?;
    Ok(VmOptions { memory: arguments.memory, cpus: arguments.cpus, ..options })
}

fn shell(arguments: &MachineArguments) -> Result<()> {
    let kernel = kernels::get(arguments.kernel, false)?;
    prune::stale();
    println!("Linux {}: exit ends the VM, Ctrl-A X ends it at once", kernel.release);
    vm::shell(&kernel, &options_of(arguments)?, &std::env::current_dir()?)
}

fn run_reported(arguments: &RunArguments) -> ExitCode {
    let failed = |error: anyhow::Error| {
        eprintln!("cargo xtask vm: {error:#}");
        ExitCode::from(BROKEN)
    };
    run_command(arguments).unwrap_or_else(failed)
}

fn run_command(arguments: &RunArguments) -> Result<ExitCode> {
    let kernel = kernels::get(arguments.machine.kernel, false)?;
    interrupt::install()?;
    prune::stale();
    let mut vm = Vm::start(&kernel, &options_of(&arguments.machine)?)?;
    let mut command = Command::new(arguments.command.clone()).directory(&std::env::current_dir()?);
    for name in INHERITED {
        if let Ok(value) = std::env::var(name) {
            command = command.variable(name, &value);
        }
    }
    let limit = Duration::from_secs(arguments.timeout);
    match stream(&mut vm, &command, limit)? {
        // The kernel has 8 bits for it.
        Some(status) => Ok(ExitCode::from(u8::try_from(status).unwrap_or(BROKEN))),
        None if interrupt::requested() => Ok(ExitCode::from(130)),
        None => {
            eprintln!("cargo xtask vm: {command} did not end within {limit:?}");
            Ok(ExitCode::from(TIMED_OUT))
        }
    }
}

/// Runs a command to its end, or for `limit`, and prints what it writes. Returns its status, if it
/// ended.
pub(crate) fn stream(vm: &mut Vm, command: &Command, limit: Duration) -> Result<Option<i32>> {
    let mut running = vm.spawn(command)?;
    vm.wait(&mut running, limit, |output, bytes| {
        // A reader that went away does not end the command.
        let _written = match output {
            Output::Stdout => write_now(&mut std::io::stdout(), bytes),
            Output::Stderr => write_now(&mut std::io::stderr(), bytes),
        };
    })
}

fn write_now(to: &mut dyn std::io::Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}
