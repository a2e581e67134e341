//! `sluice`: parse, set up logging, run or do what another command says, exit code.

use std::ffi::OsString;
use std::process::ExitCode;

use sluice::cli::{self, Command, Invocation, RunArgs};
use sluice::config::{asks_for_json, settings, write_effective};
use sluice::exit::ExitError;
use sluice::observe::logging;
use sluice::output::print;
use sluice::run;
use sluice::run::signals::EndSignals;
use sluice::tools::cleanup::Options;
use sluice::tools::{self, cleanup};
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match result(arguments) {
        Ok(code) => code,
        Err(error) => {
            logging::last_words(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn result(arguments: Vec<OsString>) -> Result<ExitCode, ExitError> {
    // Before anything else is done: a signal that comes meanwhile ends the daemon as any other
    // does.
    let process = if cli::is_run(&arguments) { Some(Process::begin()?) } else { None };
    let is_json = process.is_some() && cli::asks_for_json(&arguments);
    let invocation = match cli::parse(arguments) {
        Ok(invocation) => invocation,
        Err(error) if is_json && error.use_stderr() => {
            logging::as_json();
            logging::last_words(error.to_string().trim_end());
            return Ok(ExitCode::from(2));
        }
        Err(error) => error.exit(),
    };
    match &invocation.command {
        Command::Run(args) => run(args, &invocation, process.map_or_else(Process::begin, Ok)?)?,
        command => return tools::run(command),
    }
    Ok(ExitCode::SUCCESS)
}

fn show(text: impl std::fmt::Display) -> Result<(), ExitError> {
    print(text).map_err(failed("write to stdout"))
}

fn failed(operation: &'static str) -> impl Fn(std::io::Error) -> ExitError {
    move |source| ExitError::System { operation, source }
}

/// What a daemon needs of its process.
struct Process {
    runtime: Runtime,
    signals: EndSignals,
}

impl Process {
    fn begin() -> Result<Self, ExitError> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().map_err(failed("start the runtime"))?;
        let signals = {
            let _within = runtime.enter();
            EndSignals::listen().map_err(failed("listen for signals"))?
        };
        Ok(Process { runtime, signals })
    }

    /// Does something that ends by itself, or sooner by a signal.
    fn work(self, job: impl FnOnce() -> Result<(), ExitError> + Send + 'static) -> Result<(), ExitError> {
        let Process { runtime, mut signals } = self;
        let job = runtime.spawn_blocking(job);
        let result = runtime.block_on(async {
            tokio::select! {
                signal = signals.received() => Err(ExitError::Interrupted(signal)),
                result = job => result.unwrap_or(Err(ExitError::Ended("job"))),
            }
        });
        runtime.shutdown_background();
        result
    }
}

fn run(args: &RunArgs, invocation: &Invocation, process: Process) -> Result<(), ExitError> {
    if let Some(version) = args.version.as_deref().and_then(cli::version) {
        return show(format_args!("{version}\n"));
    }
    if args.actions.cleanup == Some(true) {
        return process.work(|| cleanup::cleanup(&Options::of_kube_proxy()));
    }
    let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let settings = settings(args, invocation, &host_name).inspect_err(|_| {
        if asks_for_json(args) {
            logging::as_json();
        }
    })?;
    logging::start(&settings.effective.logging);
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(file) = &args.actions.write_config_to {
        return Ok(write_effective(&settings, file)?);
    }
    if args.actions.init_only == Some(true) {
        return process.work(move || run::init(&settings));
    }
    let Process { runtime, signals } = process;
    let result = runtime.block_on(run::run(settings, signals));
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    result
}
