//! `sluice-cni`: called by a container runtime, with parameters in the environment and a
//! configuration on stdin. Called by the name of `loopback` it is that plugin.

use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

use sluice_cni::spec::{STDIN_LIMIT, Version};
use sluice_cni::{loopback, plugin};

/// What --version prints, like the plugins of containernetworking.
fn version() -> String {
    let (version, protocol) = (env!("CARGO_PKG_VERSION"), Version::list().join(", "));
    format!("sluice-cni {version}\nCNI protocol versions supported: {protocol}")
}

fn main() -> ExitCode {
    // A runtime gives no arguments.
    if std::env::args_os().nth(1).is_some_and(|first| first == "--version" || first == "-V") {
        let _gone = writeln!(std::io::stdout(), "{}", version());
        return ExitCode::SUCCESS;
    }
    let mut input = Vec::new();
    // One byte more than may be there shows that it is too much.
    let read = std::io::stdin().lock().take(STDIN_LIMIT as u64 + 1).read_to_end(&mut input);
    let (variable, input) = (|name: &str| std::env::var(name).ok(), read.map(|_| input));
    let name = std::env::args_os().next();
    let is_loopback = name.is_some_and(|name| Path::new(&name).ends_with(loopback::NAME));
    let answer = if is_loopback { loopback::run(variable, input) } else { plugin::run(variable, input) };
    let (text, status) = match answer {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(object)) => (object, ExitCode::SUCCESS),
        Err(object) => (object, ExitCode::FAILURE),
    };
    // A runtime that does not listen any more learns nothing from this either.
    let _gone = writeln!(std::io::stdout(), "{text}");
    status
}
