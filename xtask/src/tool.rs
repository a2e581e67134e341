//! Programs from crates.io that commands use, each of exactly one version.

use std::path::PathBuf;

use anyhow::Result;

use crate::machine::{cargo, run as run_command, target_directory};

/// A crate with a program of the same name.
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    /// What it is built with; its usual features where there are none.
    pub(crate) features: &'static [&'static str],
}

impl Tool {
    /// The program, which is built where it is not there yet.
    pub(crate) fn installed(&self) -> Result<PathBuf> {
        let Self { name, version, features } = self;
        let place = target_directory().join(format!("tools/{name}-{version}"));
        let program = place.join("bin").join(name);
        if !program.is_file() {
            println!("building {name} {version} into target/tools (minutes, once)");
            let mut command = cargo(&["install", name, "--version", version, "--locked", "--quiet"]);
            if !features.is_empty() {
                command.args(["--no-default-features", "--features", &features.join(",")]);
            }
            // It runs for a second: optimizing takes longer than that saves.
            command.args(["--debug", "--root"]).arg(&place).env("CARGO_PROFILE_DEV_DEBUG", "0");
            run_command(&mut command)?;
        }
        Ok(program)
    }
}
