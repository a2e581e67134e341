//! The runner's own test: it must notice each of many wrong expectations, and accept their right
//! counterparts.
//!
//! A runner that passes everything would be worse than none, so this runs with a real proxy and in
//! real labs.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Deserialize;

use crate::agent::lock;
use crate::case::Case;
use crate::interrupt;
use crate::lab::LabOptions;
use crate::report::{self, Ending};
use crate::runner::run_case;

const BASE: &str = include_str!("../self-test/base.yaml");
const WRONG: &str = include_str!("../self-test/wrong.yaml");

/// A right and a wrong last step.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    name: String,
    #[serde(default)]
    before: Option<String>,
    right: String,
    wrong: String,
    #[serde(default)]
    unreadable: bool,
}

impl Pair {
    fn text(&self, last: &str) -> String {
        let mut text = BASE.to_owned();
        for step in self.before.iter().map(String::as_str).chain([last]) {
            // A step of several lines goes on below its dash; one that begins a new step brings its
            // own dash.
            let body = step.trim_end().replace('\n', "\n  ").replace("\n  - ", "\n- ");
            text += &format!("- {body}\n");
        }
        text
    }

    fn right_passes(&self, options: &LabOptions) -> Result<(), String> {
        let case = self.parse(&self.right).map_err(|error| format!("the right case is refused: {error}"))?;
        match run_case(&case, options, None) {
            Ending::Passed => Ok(()),
            Ending::Failed(failure) => Err(format!("the right case failed:\n{}", failure.text(&case.file))),
            Ending::Skipped(reason) => Err(format!("the right case was skipped: {reason}")),
        }
    }

    fn wrong_fails(&self, options: &LabOptions) -> Result<(), String> {
        let case = match (self.parse(&self.wrong), self.unreadable) {
            (Ok(case), false) => case,
            (Err(error), true) if error.line.is_some_and(|line| line > lines(BASE)) => return Ok(()),
            (Err(error), true) => return Err(format!("refused, but not because of its last step: {error}")),
            (Ok(_), true) => return Err("a case that cannot be read was read".to_owned()),
            (Err(error), false) => return Err(format!("the wrong case is refused: {error}")),
        };
        match run_case(&case, options, None) {
            Ending::Failed(failure) if failure.step == Some(case.steps.len()) => Ok(()),
            Ending::Failed(failure) => Err(format!("it failed elsewhere:\n{}", failure.text(&case.file))),
            Ending::Passed => Err("a wrong expectation passed".to_owned()),
            Ending::Skipped(reason) => Err(format!("it was skipped: {reason}")),
        }
    }

    fn parse(&self, last: &str) -> Result<Case, crate::case::Unreadable> {
        Case::parse(&self.text(last), Path::new(&self.name))
    }
}

/// A case whose proxies start slowly, at first and again: their start is not held against them,
/// whatever time is given.
const SLOW: &str = "
- probe: {from: pod/client-1, to: 'tcp://10.96.0.10:80', reaches: [web-1, web-2], within: 500ms}
- stop: node-a
- run: {node: node-a, argv: [nft, flush, ruleset]}
- start: node-a
- probe: {from: pod/client-1, to: 'tcp://10.96.0.10:80', reaches: [web-1, web-2], within: 500ms}
";
/// The same, with what must hold all the time: that is not waited for.
const SLOW_BUT_ALWAYS: &str = "
- stop: node-a
- run: {node: node-a, argv: [nft, flush, ruleset]}
- start: node-a
- probe: {from: pod/client-1, to: 'tcp://10.96.0.10:80', reaches: [web-1, web-2], within: 500ms, always: true}
";

/// Runs the cases of slow proxies.
fn slow_starts(options: &LabOptions) -> Vec<(&'static str, Result<(), String>)> {
    let run = |steps: &str| -> anyhow::Result<Ending> {
        let dir = std::env::temp_dir().join(format!("sluice-lab-{}-slow", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let (script, mut options) = (dir.join("sluice"), options.clone());
        let program = format!("#!/bin/sh\nsleep 3\nexec {} \"$@\"\n", options.proxy.sluice.display());
        std::fs::write(&script, program)?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        options.proxy.sluice = script;
        let head = BASE.split_once("steps:").map_or(BASE, |(head, _)| head);
        let ending =
            run_case(&Case::parse(&format!("{head}steps:{steps}"), Path::new("slow"))?, &options, None);
        std::fs::remove_dir_all(&dir)?;
        Ok(ending)
    };
    let right = match run(SLOW) {
        Ok(Ending::Passed) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    let wrong = match run(SLOW_BUT_ALWAYS) {
        Ok(Ending::Failed(failure)) if failure.step == Some(4) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    vec![("right", right), ("wrong", wrong)]
}

fn lines(text: &str) -> u64 {
    text.lines().map(|_| 1).sum()
}

/// Runs all pairs, `jobs` at a time; whether the runner is to be trusted.
#[must_use]
pub fn run(options: &LabOptions, jobs: usize) -> bool {
    let pairs: Vec<Pair> = match serde_saphyr::from_str(WRONG) {
        Ok(pairs) => pairs,
        Err(error) => {
            report::print(&format!("FAIL self-test: {error}\n"));
            return false;
        }
    };
    let (next, passed, faults) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(0));
    let note = |name: &str, sides: Vec<(&str, Result<(), String>)>| {
        for (side, result) in sides {
            match result {
                Ok(()) => {
                    passed.fetch_add(1, Ordering::Relaxed);
                    report::print(&format!("ok   {name} ({side})\n"));
                }
                Err(why) => {
                    *lock(&faults) += 1;
                    report::print(&format!("FAIL {name} ({side}): {why}\n"));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| note("a slow start", slow_starts(options)));
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(pair) = pairs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if interrupt::requested() {
                        return;
                    }
                    let sides =
                        vec![("right", pair.right_passes(options)), ("wrong", pair.wrong_fails(options))];
                    note(&pair.name, sides);
                }
            });
        }
    });
    let (passed, failed) = (passed.into_inner(), *lock(&faults));
    report::print(&format!("{passed} passed, {failed} failed, 0 skipped\n"));
    failed == 0 && passed == 2 * (pairs.len() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_what_it_says() {
        let pairs: Vec<Pair> = serde_saphyr::from_str(WRONG).unwrap();
        for pair in &pairs {
            pair.parse(&pair.right).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(pair.parse(&pair.wrong).is_err(), pair.unreadable, "{}", pair.name);
        }
    }
}
