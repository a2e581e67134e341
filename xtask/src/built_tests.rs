//! The programs of the workspace's tests, built together. For the tests of one package alone, cargo
//! selects other features of shared dependencies, and builds those and what uses them again.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::build_ebpf;
use crate::machine::{Programs, cargo};

/// All of them, and the programs that they and the labs use.
pub(crate) struct BuiltTests {
    tests: Vec<Test>,
    /// Not optimized, with checks of overflow and debug assertions.
    pub(crate) programs: Programs,
}

struct Test {
    package: String,
    /// `--lib`, or a file's name.
    program: String,
    executable: PathBuf,
    directory: PathBuf,
}

impl BuiltTests {
    /// Builds them.
    pub(crate) fn build() -> Result<Self> {
        build_ebpf::prepare()?;
        println!("building all programs and tests");
        let mut build = cargo(&["test", "--workspace", "--no-run", "--quiet", "--message-format=json"]);
        let output = build.stderr(Stdio::inherit()).output().context("starting cargo")?;
        let messages = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "the tests cannot be built: {}", errors(&messages));
        let tests = messages.lines().filter_map(|line| Test::of(&serde_json::from_str(line).ok()?)).collect();
        Ok(Self { tests, programs: Programs::of("debug") })
    }

    /// Starts as cargo would start it: in the directory of its package.
    pub(crate) fn command(&self, package: &str, program: &str) -> Result<Command> {
        let test = self.tests.iter().find(|test| test.package == package && test.program == program);
        let test = test.with_context(|| format!("cargo built no test {program} of {package}"))?;
        let mut command = Command::new(&test.executable);
        command.current_dir(&test.directory);
        Ok(command)
    }
}

impl Test {
    /// That which a message of cargo tells.
    fn of(message: &Value) -> Option<Self> {
        let is_test = message.get("profile")?.get("test")?.as_bool()?;
        let executable = PathBuf::from(message.get("executable")?.as_str()?);
        let target = message.get("target")?;
        let program = match target.get("kind")?.get(0)?.as_str()? {
            "lib" => "--lib".to_owned(),
            "test" => target.get("name")?.as_str()?.to_owned(),
            _ => return None,
        };
        let manifest = PathBuf::from(message.get("manifest_path")?.as_str()?);
        let directory = manifest.parent()?.to_owned();
        let package = package(message.get("package_id")?.as_str()?);
        is_test.then_some(Self { package, program, executable, directory })
    }
}

/// The name in an identifier like `path+file:///sluice/proxy-sys#sluice-sys@0.1.0`. Cargo leaves
/// it out where the directory has it.
fn package(id: &str) -> String {
    let (path, rest) = id.rsplit_once('#').unwrap_or((id, ""));
    let of_directory = path.rsplit('/').next().unwrap_or(path);
    rest.split_once('@').map_or(of_directory, |(name, _)| name).to_owned()
}

/// What the compiler says in cargo's messages.
fn errors(messages: &str) -> String {
    let of_line = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        Some(message.get("message")?.get("rendered")?.as_str()?.to_owned())
    };
    messages.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_tests_are_found_in_cargos_messages() {
        let message = serde_json::json!({
            "reason": "compiler-artifact",
            "package_id": "path+file:///sluice/proxy-sys#sluice-sys@0.1.0",
            "manifest_path": "/sluice/proxy-sys/Cargo.toml",
            "target": {"kind": ["test"], "name": "ipvs"},
            "profile": {"test": true},
            "executable": "/sluice/target/debug/deps/ipvs-0123",
        });
        let test = Test::of(&message).unwrap();
        assert_eq!((test.package.as_str(), test.program.as_str()), ("sluice-sys", "ipvs"));
        let built = BuiltTests { tests: vec![test], programs: Programs::of("debug") };
        let command = built.command("sluice-sys", "ipvs").unwrap();
        assert_eq!(command.get_program(), "/sluice/target/debug/deps/ipvs-0123");
        assert_eq!(command.get_current_dir(), Some("/sluice/proxy-sys".as_ref()));
        assert!(built.command("sluice-core", "ipvs").is_err());

        let mut program = message;
        program["profile"]["test"] = false.into();
        assert!(Test::of(&program).is_none());
    }

    #[test]
    fn packages_have_their_names() {
        assert_eq!(package("path+file:///sluice/proxy-sys#sluice-sys@0.1.0"), "sluice-sys");
        assert_eq!(package("path+file:///sluice/xtask#0.1.0"), "xtask");
    }
}
