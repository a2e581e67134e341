//! `sluice`: parse, set up logging, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use sluice::cli::{Cli, Command, RunArgs};
use sluice::daemon::{self, DaemonError};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Cleanup => cleanup(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            eprintln!("sluice: {message}");
            ExitCode::from(code)
        }
    }
}

type Outcome = Result<(), (u8, String)>;

fn run(args: &RunArgs) -> Outcome {
    let fail = |error: DaemonError| (error.exit_code(), error.to_string());
    log_to_stderr(args);
    let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let settings = daemon::settings(args, &host_name).map_err(fail)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| (1, format!("cannot start the runtime: {error}")))?;
    let result = runtime.block_on(daemon::run(settings)).map_err(fail);
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    result
}

fn cleanup() -> Outcome {
    match sluice::cleanup::cleanup() {
        Ok(true) => println!("removed table inet sluice"),
        Ok(false) => println!("nothing to remove: there is no table inet sluice"),
        Err(error) if error.errno() == Some(libc::EPERM) => {
            return Err((3, DaemonError::Capability.to_string()));
        }
        Err(error) => return Err((1, error.to_string())),
    }
    Ok(())
}

fn log_to_stderr(args: &RunArgs) {
    // The client tells each failed request as an error; the watch tells of them too, but does not flood the log.
    let level = match args.verbosity {
        0..=1 => "info,kube_client=off",
        2..=3 => "info,sluice=debug,kube_client=off",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if args.logging_format == "json" {
        builder.json().init();
    } else {
        let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        builder.with_ansi(is_terminal).init();
    }
}
