//! `sluice`: parse, set up logging, run, exit code.

use std::process::ExitCode;

use sluice::cli::{self, Command, Invocation, RunArgs};
use sluice::config::{settings, write_effective};
use sluice::daemon::{self, DaemonError};
use sluice::{cleanup, logging, status};

fn main() -> ExitCode {
    let invocation = cli::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let result = match &invocation.command {
        Command::Run(args) => run(args, &invocation),
        Command::Status { bpffs } => status::status(bpffs),
        Command::Cleanup { kube_proxy, bpffs } => cleanup::cleanup(*kube_proxy, bpffs),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: &RunArgs, invocation: &Invocation) -> Result<(), DaemonError> {
    if let Some(version) = args.version.as_deref().and_then(cli::version) {
        println!("{version}");
        return Ok(());
    }
    if args.actions.cleanup == Some(true) {
        return cleanup::cleanup(true, &cleanup::usual_bpffs());
    }
    let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let settings = settings(args, invocation, &host_name)?;
    logging::start(&settings.effective.logging);
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(file) = &args.actions.write_config_to {
        return Ok(write_effective(&settings, file)?);
    }
    if args.actions.init_only == Some(true) {
        return daemon::init(&settings);
    }
    let system = |source| DaemonError::System { operation: "start the runtime", source };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(system)?;
    let result = runtime.block_on(daemon::run(settings));
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    result
}
