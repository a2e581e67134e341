//! `sluice-cni`: called by a container runtime, with parameters in the environment and a configuration on stdin.

use std::io::{Read, Write};
use std::process::ExitCode;

use sluice_cni::plugin;
use sluice_cni::spec::STDIN_LIMIT;

fn main() -> ExitCode {
    let mut input = Vec::new();
    // One byte more than may be there shows that it is too much.
    let read = std::io::stdin().lock().take(STDIN_LIMIT as u64 + 1).read_to_end(&mut input);
    let answer = plugin::run(|name| std::env::var(name).ok(), read.map(|_| input));
    let (text, status) = match answer {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(object)) => (object, ExitCode::SUCCESS),
        Err(object) => (object, ExitCode::FAILURE),
    };
    // A runtime that does not listen any more learns nothing from this either.
    let _gone = writeln!(std::io::stdout(), "{text}");
    status
}
