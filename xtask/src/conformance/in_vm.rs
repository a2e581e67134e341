//! Cases in a VM.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Arguments;
use crate::machine::Programs;
use crate::vm::kernels::Series;
use crate::vm::runner::{self, Job, PATIENCE};

/// How long a case may take, in the mean. Emulated, it takes some five seconds.
const CASE_LIMIT: Duration = Duration::from_secs(60);
/// Cases at a time; they wait more than they work, even here.
const JOBS: usize = 3;
/// In mode ebpf they work: to verify its programs takes a daemon some ten seconds of an emulated
/// CPU.
const JOBS_OF_EBPF: usize = 1;
/// In MiB.
const MEMORY: u32 = 3072;

/// Runs cases; fails unless every selected case passed.
pub(super) fn run(
    arguments: &Arguments,
    series: Series,
    programs: &Programs,
    cases: &[PathBuf],
) -> Result<()> {
    ensure!(arguments.source == "manifests", "--vm supports only --source manifests");
    let cases = absolute(cases)?;
    let directory = |place: &PathBuf| {
        if place.is_file() { place.parent().map(Path::to_owned) } else { Some(place.clone()) }
    };
    let files = u32::try_from(cases.iter().map(|place| count(place)).sum::<usize>())?;
    runner::run(Job {
        series,
        proxies: &[&arguments.proxy],
        memory: MEMORY,
        keep: cases.iter().filter_map(directory).collect(),
        argv: argv(arguments, programs, &cases),
        limit: CASE_LIMIT * files,
        json: arguments.json.as_deref(),
    })
}

fn argv(arguments: &Arguments, programs: &Programs, cases: &[PathBuf]) -> Vec<String> {
    let text = |path: &PathBuf| path.display().to_string();
    let usual = if arguments.proxy == "ebpf" { JOBS_OF_EBPF } else { JOBS };
    let jobs = arguments.jobs.unwrap_or(usual).to_string();
    let patience = arguments.patience.max(PATIENCE).to_string();
    let mut argv = vec![text(&programs.conformance)];
    argv.extend(["run", "--proxy", &arguments.proxy, "--jobs", &jobs].map(str::to_owned));
    argv.extend(["--pod-network", &arguments.pod_network].map(str::to_owned));
    argv.extend(["--patience", &patience, "--sluice"].map(str::to_owned));
    argv.extend([text(&programs.sluice), "--cases".to_owned()]);
    argv.extend(cases.iter().map(text));
    argv
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
