//! What a run tells: a line for each case, the details of failures, the counts, and the same as
//! JSON.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use sluice_skips::{Skip, Why};

use crate::agent::lock;

/// How a case ended.
#[derive(Debug, Clone, Serialize)]
pub struct CaseReport {
    /// Its name
    pub name: String,
    /// Its file
    pub file: PathBuf,
    /// How long it took
    pub seconds: f64,
    /// How it ended
    #[serde(flatten)]
    pub ending: Ending,
}

/// How a case ended.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "result", rename_all = "lowercase")]
pub enum Ending {
    /// All expectations were met
    Passed,
    /// One was not
    Failed(Box<Failure>),
    /// It was not executed
    Skipped(Why),
}

/// Why a case failed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Failure {
    /// The line of the failed step
    pub line: Option<u64>,
    /// Its number, from 1
    pub step: Option<usize>,
    /// Its word
    pub kind: Option<String>,
    /// What went wrong other than an expectation
    pub reason: Option<String>,
    /// What was demanded
    pub expected: Option<String>,
    /// What was there
    pub observed: Option<String>,
    /// The first packets of one more attempt, by namespace
    pub packets: BTreeMap<String, String>,
    /// The ends of logs, by whose they are
    pub logs: BTreeMap<String, String>,
}

impl Failure {
    /// The details as indented lines.
    #[must_use]
    pub fn text(&self, file: &Path) -> String {
        let mut text = format!("{}:{}", file.display(), self.line.unwrap_or(1));
        if let (Some(step), Some(kind)) = (self.step, &self.kind) {
            text += &format!(": step {step} ({kind})");
        }
        let mut section = |title: &str, body: &str| text += &format!("\n{title}: {}", body.trim_end());
        for (title, body) in
            [("reason", &self.reason), ("expected", &self.expected), ("observed", &self.observed)]
        {
            if let Some(body) = body {
                section(title, body);
            }
        }
        for (place, packets) in &self.packets {
            section(&format!("first packets of one more attempt, {place}"), &format!("\n{packets}"));
        }
        for (place, log) in self.logs.iter().filter(|(_, log)| !log.is_empty()) {
            section(&format!("log of {place}"), &format!("\n{log}"));
        }
        text.lines().map(|line| format!("    {line}\n")).collect()
    }
}

impl CaseReport {
    /// The line of the case, and the details of its failure.
    #[must_use]
    pub fn text(&self) -> String {
        match &self.ending {
            Ending::Passed => format!("ok   {} ({:.1}s)\n", self.name, self.seconds),
            Ending::Failed(failure) => format!("FAIL {}\n{}", self.name, failure.text(&self.file)),
            Ending::Skipped(why) => format!("skip {}: {why}\n", self.name),
        }
    }
}

/// Collects the reports of a run and prints each as it comes.
#[derive(Debug, Default)]
pub struct Report {
    cases: Mutex<Vec<CaseReport>>,
}

/// The counts of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Cases that passed
    pub passed: usize,
    /// Cases that failed
    pub failed: usize,
    /// Cases that were skipped
    pub skipped: usize,
}

impl Report {
    /// Adds a case and prints it.
    pub fn add(&self, report: CaseReport) {
        let mut cases = lock(&self.cases);
        print(&report.text());
        cases.push(report);
    }

    /// The counts so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let cases = lock(&self.cases);
        let count = |wanted: fn(&Ending) -> bool| cases.iter().filter(|case| wanted(&case.ending)).count();
        Counts {
            passed: count(|ending| matches!(ending, Ending::Passed)),
            failed: count(|ending| matches!(ending, Ending::Failed(_))),
            skipped: count(|ending| matches!(ending, Ending::Skipped(_))),
        }
    }

    /// Writes the skips to the ledger of all tests, and prints the last line.
    pub fn finish(&self) -> Result<()> {
        for case in lock(&self.cases).iter() {
            if let Ending::Skipped(why) = &case.ending {
                let skip = Skip { test: case.name.clone(), why: why.clone() };
                sluice_skips::note(&skip).context("the ledger of skips")?;
            }
        }
        let Counts { passed, failed, skipped } = self.counts();
        print(&format!("{passed} passed, {failed} failed, {skipped} skipped\n"));
        Ok(())
    }

    /// Writes everything as JSON.
    pub fn write_json(&self, file: &Path, proxy: &str, source: &str) -> Result<()> {
        #[derive(Serialize)]
        struct Whole<'a> {
            proxy: &'a str,
            source: &'a str,
            #[serde(flatten)]
            counts: Counts,
            cases: Vec<CaseReport>,
        }
        let counts = self.counts();
        let mut cases = lock(&self.cases).clone();
        cases.sort_by(|one, other| one.name.cmp(&other.name));
        let text = serde_json::to_string_pretty(&Whole { proxy, source, counts, cases })?;
        std::fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))
    }
}

/// Prints at once. A reader that went away is no reason to leave labs behind.
pub fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    drop(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()));
}

/// Seconds for a report.
#[must_use]
pub fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_counts() {
        let report = Report::default();
        let case = |ending| CaseReport { name: "x".into(), file: "x.yaml".into(), seconds: 2.34, ending };
        assert_eq!(case(Ending::Passed).text(), "ok   x (2.3s)\n");
        assert_eq!(case(Ending::Skipped(Why::choice("no"))).text(), "skip x: no\n");
        let failure = Failure { line: Some(7), expected: Some("a".into()), ..Failure::default() };
        let failed = case(Ending::Failed(Box::new(failure)));
        assert_eq!(failed.text(), "FAIL x\n    x.yaml:7\n    expected: a\n");
        report.add(failed);
        report.add(case(Ending::Passed));
        assert_eq!(report.counts(), Counts { passed: 1, failed: 1, skipped: 0 });
    }
}
