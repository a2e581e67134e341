//! Suites one after another: one that fails keeps none from running, and a summary of all comes
//! last.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use sluice_skips::{Skip, Why};

use crate::skips;

/// How suites ended, in their order.
#[derive(Debug, Default)]
pub(crate) struct Suites(Vec<Suite>);

#[derive(Debug)]
struct Suite {
    name: String,
    time: Duration,
    ending: Ending,
}

#[derive(Debug)]
enum Ending {
    Passed,
    Failed(String),
    Skipped(Why),
}

impl Suites {
    /// Runs a suite.
    pub(crate) fn run(&mut self, name: &str, suite: impl FnOnce() -> Result<()>) {
        println!("== {name}");
        let started = Instant::now();
        let ending = match suite() {
            Ok(()) => Ending::Passed,
            Err(error) => {
                // At once, too: the summary may be far away.
                println!("FAIL {name}: {error:#}");
                Ending::Failed(format!("{error:#}"))
            }
        };
        self.0.push(Suite { name: name.to_owned(), time: started.elapsed(), ending });
    }

    /// Notes a suite that this machine cannot run.
    pub(crate) fn skip(&mut self, name: &str, why: Why) {
        println!("skip {name}: {why}");
        let skip = Skip { test: name.to_owned(), why };
        let ending = match skips::note(&skip) {
            Ok(()) => Ending::Skipped(skip.why),
            Err(error) => Ending::Failed(format!("{error:#}")),
        };
        self.0.push(Suite { name: name.to_owned(), time: Duration::ZERO, ending });
    }

    /// A line for each suite, and the counts alone on the last one.
    fn summary(&self) -> String {
        let line = |suite: &Suite| match &suite.ending {
            Ending::Passed => format!("ok   {} ({} s)\n", suite.name, suite.time.as_secs()),
            Ending::Failed(why) => format!("FAIL {} ({} s): {why}\n", suite.name, suite.time.as_secs()),
            Ending::Skipped(why) => format!("skip {}: {why}\n", suite.name),
        };
        let count = |wanted: fn(&Ending) -> bool| self.0.iter().filter(|s| wanted(&s.ending)).count();
        let lines: String = self.0.iter().map(line).collect();
        let (passed, failed, skipped) = (
            count(|ending| matches!(ending, Ending::Passed)),
            count(|ending| matches!(ending, Ending::Failed(_))),
            count(|ending| matches!(ending, Ending::Skipped(_))),
        );
        format!("{lines}{passed} passed, {failed} failed, {skipped} skipped\n")
    }

    /// Prints the summary, and nothing after it; the status says whether a suite has failed.
    pub(crate) fn finish(self) -> ExitCode {
        print!("== all suites\n{}", self.summary());
        let failed = self.0.iter().any(|suite| matches!(suite.ending, Ending::Failed(_)));
        if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn a_failure_stops_no_other_suite_and_is_reported_at_the_end() {
        let mut suites = Suites::default();
        let mut ran = false;
        suites.run("one", || bail!("broken"));
        suites.run("two", || {
            ran = true;
            Ok(())
        });
        suites.skip("three", Why::lack("go", "nothing is built"));
        assert!(ran);
        let summary = suites.summary();
        let lines: Vec<&str> = summary.lines().collect();
        assert_eq!(
            lines,
            [
                "FAIL one (0 s): broken",
                "ok   two (0 s)",
                "skip three: needs go: nothing is built",
                "1 passed, 1 failed, 1 skipped"
            ]
        );
        assert_eq!(suites.finish(), ExitCode::FAILURE);
        assert_eq!(Suites::default().finish(), ExitCode::SUCCESS);
    }
}
