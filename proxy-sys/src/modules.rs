//! Modules of the kernel.

use std::process::{Command, Stdio};

/// A module is needed, and could not be loaded.
#[derive(Debug, thiserror::Error)]
#[error(
    "the kernel lacks module {module}, and it cannot be loaded here ({reason}); on the node, run: modprobe {module}"
)]
pub struct ModuleError {
    /// The module's name.
    pub module: String,
    /// What modprobe said, or why it could not be run.
    pub reason: String,
}

/// Loads a module with the modprobe program, which knows where modules are, and what else they
/// need. Succeeds if it is loaded already, or part of the kernel.
pub fn load(module: &str) -> Result<(), ModuleError> {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("modprobe")
        .args(["--", module])
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::null())
        .output();
    let reason = match output {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => reason(&output.stderr, &output.status.to_string()),
        Err(error) => format!("modprobe: {error}"),
    };
    Err(ModuleError { module: module.to_owned(), reason })
}

/// The first line that the program wrote, or how it ended.
fn reason(written: &[u8], status: &str) -> String {
    let text = String::from_utf8_lossy(written);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    line.map_or_else(|| format!("modprobe: {status}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_the_module_and_what_to_run() {
        let reason =
            reason(b"\nmodprobe: FATAL: Module ip_vs not found in directory /lib/modules/6.1\n", "exit");
        let error = ModuleError { module: "ip_vs".into(), reason };
        let expected = "the kernel lacks module ip_vs, and it cannot be loaded here (modprobe: FATAL: Module ip_vs not \
            found in directory /lib/modules/6.1); on the node, run: modprobe ip_vs";
        assert_eq!(error.to_string(), expected);
        assert_eq!(super::reason(b"", "exit status: 1"), "modprobe: exit status: 1");
    }

    #[test]
    fn a_module_that_nobody_has_is_an_error() {
        let error = load("sluice_no_such_module").unwrap_err();
        assert_eq!(error.module, "sluice_no_such_module");
        assert!(!error.reason.is_empty());
    }
}
