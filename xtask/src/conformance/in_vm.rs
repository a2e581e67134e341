//! The conformance runner in a VM: the programs of this machine, another kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sluice_tests::vm::{Command, Vm, VmOptions, modules};
use sluice_tests::{interrupt, lab::prune};

use super::Arguments;
use crate::machine::{Programs, target_directory};
use crate::vm::kernels::{self, Series};
use crate::vm::{options, stream};

/// How long a case may take, in the mean. Emulated, one at a time, it takes some five seconds.
const CASE_LIMIT: Duration = Duration::from_secs(60);
/// What a run may take beside.
const LIMIT: Duration = Duration::from_secs(300);
/// Cases at a time; they wait more than they work, even here.
const JOBS: usize = 3;
/// How many times longer than usual an expectation may take to be met. Emulation makes a machine ten times slower.
const PATIENCE: &str = "10";
/// In MiB.
const MEMORY: u32 = 3072;

/// Runs cases; fails unless every selected case passed.
pub(super) fn run(
    arguments: &Arguments,
    series: Series,
    programs: &Programs,
    cases: &[PathBuf],
) -> Result<()> {
    ensure!(arguments.source == "manifests", "--vm runs cases with --source manifests only");
    let cases = absolute(cases)?;
    let output = target_directory().join(format!("vm/report-{}", std::process::id()));
    let done = run_and_report(arguments, series, programs, &cases, &output);
    drop(fs::remove_dir_all(output));
    done
}

fn run_and_report(
    arguments: &Arguments,
    series: Series,
    programs: &Programs,
    cases: &[PathBuf],
    output: &Path,
) -> Result<()> {
    interrupt::install()?;
    prune::stale();
    let kernel = kernels::get(series, false)?;
    let mut options = VmOptions { memory: MEMORY, ..options(Some(output))? };
    let directory = |place: &PathBuf| {
        if place.is_file() { place.parent().map(Path::to_owned) } else { Some(place.clone()) }
    };
    options.keep.extend(cases.iter().filter_map(directory));
    let mut vm = Vm::start(&kernel, &options)?;
    println!("in a VM: Linux {}", kernel.release);
    vm.load(&modules_of(&arguments.proxy))?;
    let files = u32::try_from(cases.iter().map(|place| count(place)).sum::<usize>())?;
    let limit = LIMIT + CASE_LIMIT * files;
    let status = stream(&mut vm, &command(arguments, programs, cases), limit)?;
    let report = output.join("report.json");
    // A runner that could not begin has written none, and the reason is its status.
    if let Some(file) = arguments.json.as_ref().filter(|_| report.exists()) {
        fs::copy(&report, file).with_context(|| format!("writing {}", file.display()))?;
    }
    match status {
        Some(0) => Ok(()),
        Some(status) => bail!("the conformance runner in the VM ended with status {status}"),
        None if interrupt::requested() => bail!("interrupted"),
        None => bail!("the conformance runner in the VM did not end within {limit:?}"),
    }
}

/// What a node has loaded that runs a proxy.
fn modules_of(proxy: &str) -> Vec<&'static str> {
    let mut wanted = [modules::OF_A_NODE.as_slice(), &modules::OF_NFTABLES].concat();
    if proxy == "ebpf" {
        wanted.extend(modules::OF_EBPF);
    }
    if proxy == "ipvs" {
        wanted.extend(modules::OF_IPVS);
    }
    wanted
}

fn command(arguments: &Arguments, programs: &Programs, cases: &[PathBuf]) -> Command {
    let text = |path: &PathBuf| path.display().to_string();
    let jobs = arguments.jobs.unwrap_or(JOBS).to_string();
    let mut argv = vec![text(&programs.conformance)];
    let options = ["run", "--proxy", &arguments.proxy, "--json", "/out/report.json"];
    argv.extend(options.map(str::to_owned));
    argv.extend(["--jobs", &jobs, "--patience", PATIENCE].map(str::to_owned));
    argv.extend(["--sluice".to_owned(), text(&programs.sluice), "--cases".to_owned()]);
    argv.extend(cases.iter().map(text));
    Command::new(argv)
}

fn absolute(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let absolute =
        |path: &PathBuf| path.canonicalize().with_context(|| format!("no case at {}", path.display()));
    paths.iter().map(absolute).collect()
}

/// About how many cases are at a place.
fn count(place: &Path) -> usize {
    if place.is_file() { 1 } else { fs::read_dir(place).map_or(0, Iterator::count) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_counted_for_the_time_limit() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/conformance");
        assert_eq!(count(&source.join("in_vm.rs")), 1);
        assert!(count(&source) >= 1);
        assert_eq!(count(Path::new("/no-such")), 0);
        assert!(absolute(&[PathBuf::from("/no-such")]).is_err());
    }
}
