//! `cargo xtask fuzz`: runs targets, which are tests of the crates that they look into, with many
//! inputs.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail, ensure};

use crate::built_tests::BuiltTests;
use crate::machine::{cargo, run as run_command, target_directory};

/// As many as CI has time for: all targets together take some two minutes on two cores.
const INPUTS: u64 = 20_000;

/// From so many inputs on, it pays to build the targets optimized.
const MANY: u64 = 100_000;
/// The packages whose code reads inputs.
const READERS: [&str; 6] =
    ["sluice", "sluice-cni", "sluice-common", "sluice-core", "sluice-link", "sluice-sys"];

/// Arguments of the fuzz command.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Arguments {
    /// Names of targets to run [default: all]
    #[arg(long, value_name = "TARGET", num_args = 1..)]
    only: Vec<String>,
    /// Number of inputs for each target; the default is a tenth for a few slow targets
    #[arg(long, value_name = "N")]
    inputs: Option<u64>,
    /// Seed of the inputs [default: a new one]; each run prints its seed
    #[arg(long)]
    seed: Option<u64>,
    /// File whose content is the only input, such as a stored input on which the target failed
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
}

/// A test, or several.
struct Target {
    name: &'static str,
    package: &'static str,
    /// The program with the tests: `--lib`, or `--test` and its name.
    program: &'static [&'static str],
    /// Parts of the tests' names.
    tests: &'static [&'static str],
    /// Without a number of inputs it gets so many times fewer.
    slower: u64,
}

const TARGETS: &[Target] = &[
    Target {
        name: "manifests",
        package: "sluice",
        program: &["--lib"],
        tests: &["watch::fuzz::fuzz_manifests"],
        slower: 4,
    },
    Target {
        name: "objects",
        package: "sluice",
        program: &["--lib"],
        tests: &["watch::fuzz::fuzz_objects"],
        slower: 1,
    },
    Target {
        name: "frames",
        package: "sluice",
        program: &["--lib"],
        tests: &["kubernetes::fuzz::fuzz_frames", "items_and_the_rest_are_what_a_parser_sees"],
        slower: 1,
    },
    Target {
        name: "cni-stdin",
        package: "sluice-cni",
        program: &["--test", "hostile"],
        tests: &["fuzz_stdin", "any_configuration_is_answered", "any_bytes_are_answered"],
        slower: 10,
    },
    Target { name: "netlink", package: "sluice-sys", program: &["--lib"], tests: &["::fuzz_"], slower: 10 },
    Target {
        name: "route-netlink",
        package: "sluice-link",
        program: &["--lib"],
        tests: &["::fuzz_"],
        slower: 1,
    },
    Target {
        name: "packets",
        package: "sluice",
        program: &["--test", "packet_programs"],
        tests: &[
            "fuzz_packets",
            "noise_passes_or_is_dropped_as_it_is",
            "damaged_packets_harm_nobody",
            "the_kernel_takes_all_programs_and_maps",
        ],
        slower: 1,
    },
];

/// Builds the targets' packages and runs the targets; fails, after all of them, if one failed.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    run_with(arguments, |target| Ok(of_package(target, inputs(target, arguments))))
}

/// Runs all targets with programs that are there.
pub(crate) fn run_built(tests: &BuiltTests) -> Result<()> {
    run_with(&Arguments::default(), |target| {
        let program = target.program.last().copied().unwrap_or_default();
        tests.command(target.package, program)
    })
}

/// Runs the targets by commands that want only a test's arguments.
fn run_with(arguments: &Arguments, command: impl Fn(&Target) -> Result<Command>) -> Result<()> {
    let targets = select(&arguments.only)?;
    ensure!(
        arguments.input.is_none() || targets.len() == 1,
        "--input: name the target that failed on it, with --only"
    );
    let mut failed = Vec::new();
    for target in targets {
        println!("fuzzing {}", target.name);
        let done =
            command(target).and_then(|mut command| run_command(options(&mut command, target, arguments)));
        if let Err(error) = done {
            println!("{}: {error:#}", target.name);
            failed.push(target.name);
        }
    }
    let files = files();
    ensure!(
        failed.is_empty(),
        "{} failed: inputs and seeds are above, files in {}",
        failed.join(", "),
        files.display()
    );
    Ok(())
}

fn select(names: &[String]) -> Result<Vec<&'static Target>> {
    if let Some(unknown) = names.iter().find(|name| !TARGETS.iter().any(|target| target.name == **name)) {
        let known: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        bail!("no target {unknown}; there are {}", known.join(", "));
    }
    Ok(TARGETS
        .iter()
        .filter(|target| names.is_empty() || names.iter().any(|name| name == target.name))
        .collect())
}

/// Where inputs are written that targets fail on.
fn files() -> PathBuf {
    target_directory().join("fuzz")
}

fn inputs(target: &Target, arguments: &Arguments) -> u64 {
    arguments.inputs.unwrap_or(INPUTS / target.slower)
}

/// Builds a target's package and runs the target's program.
fn of_package(target: &Target, inputs: u64) -> Command {
    let mut command = cargo(&["test", "--quiet", "--package", target.package]);
    if inputs >= MANY {
        command.arg("--release").args(checked());
    }
    command.args(target.program).arg("--");
    command
}

/// Tells a target's program what to do.
fn options<'a>(command: &'a mut Command, target: &Target, arguments: &Arguments) -> &'a mut Command {
    let inputs = inputs(target, arguments).to_string();
    command.arg("--nocapture").args(target.tests);
    // Backtraces of thousands of inputs that are tried while one is made smaller take long.
    command.env("RUST_BACKTRACE", "0").env("SLUICE_FUZZ_FILES", files());
    command.env("SLUICE_FUZZ_INPUTS", &inputs).env("PROPTEST_CASES", &inputs);
    if let Some(seed) = arguments.seed {
        command.env("SLUICE_FUZZ_SEED", seed.to_string()).env("PROPTEST_RNG_SEED", seed.to_string());
    }
    if let Some(input) = &arguments.input {
        let input = std::path::absolute(input).unwrap_or_else(|_| input.clone());
        command.env("SLUICE_FUZZ_INPUT", input);
    }
    command
}

/// Options by which optimized code of ours keeps the checks that find what inputs break.
fn checked() -> impl Iterator<Item = String> {
    let checks = ["debug-assertions", "overflow-checks"];
    let of = move |package| checks.map(|check| format!("profile.release.package.{package}.{check}=true"));
    READERS.iter().flat_map(of).flat_map(|option| ["--config".to_owned(), option])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_selected_by_name() {
        assert_eq!(select(&[]).unwrap().len(), TARGETS.len());
        assert_eq!(select(&["frames".to_owned()]).unwrap().len(), 1);
        assert!(select(&["teapot".to_owned()]).is_err());
    }

    #[test]
    fn many_inputs_are_read_by_optimized_code_with_checks() {
        let of = |inputs| {
            let command = of_package(&TARGETS[0], inputs);
            command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert!(!of(MANY - 1).contains(&"--release".to_owned()));
        let many = of(MANY);
        assert!(many.contains(&"--release".to_owned()));
        for target in TARGETS {
            let check = format!("profile.release.package.{}.overflow-checks=true", target.package);
            assert!(many.contains(&check), "{check} is missing");
        }
    }
}
