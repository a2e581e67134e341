//! What tests did not run, and why: told on stderr, and written to a ledger that `cargo xtask test`
//! sums up.
//!
//! Each process appends to the file that [`LEDGER`] names; without it a skip is only told.

mod ledger;
mod namespaces;

use std::collections::BTreeSet;
use std::fmt;
use std::panic::Location;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

pub use ledger::{LEDGER, append, note, read};
pub use namespaces::in_namespaces;

/// Why something was not run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Why {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    need: Option<String>,
    reason: String,
}

impl Why {
    /// The machine lacks something: another one would have run it.
    #[must_use]
    pub fn lack(need: &str, detail: impl fmt::Display) -> Self {
        Self { need: Some(need.to_owned()), reason: format!("needs {need}: {detail}") }
    }

    /// It is not meant to be run here, on whatever machine.
    #[must_use]
    pub fn choice(reason: impl Into<String>) -> Self {
        Self { need: None, reason: reason.into() }
    }

    /// What the machine lacks.
    #[must_use]
    pub fn need(&self) -> Option<&str> {
        self.need.as_deref()
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// A test, or a part of one, that was not run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Skip {
    /// Its name
    pub test: String,
    /// Why
    #[serde(flatten)]
    pub why: Why,
}

/// Says that the running test, or a part of it, is skipped, because the machine lacks something.
///
/// # Panics
/// If it cannot be written to the ledger: a skip that nobody counts must not look like a success.
#[track_caller]
pub fn skip(need: &str, detail: impl fmt::Display) {
    skip_for(Why::lack(need, detail));
}

/// The same for a reason that is at hand.
///
/// # Panics
/// As [`skip`] does.
#[track_caller]
pub fn skip_for(why: Why) {
    tell(Skip { test: running_test(Location::caller()), why });
}

#[expect(clippy::panic, reason = "it fails the test that it is called by")]
fn tell(skip: Skip) {
    // A test may come to the same place again and again.
    static TOLD: Mutex<BTreeSet<Skip>> = Mutex::new(BTreeSet::new());
    eprintln!("skip: {}", skip.why);
    if !TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(skip.clone()) {
        return;
    }
    if let Err(error) = note(&skip) {
        panic!("the ledger of {LEDGER}: {error}");
    }
}

/// The test of this thread, which has its name, or only its file: threads of its own have none.
fn running_test(place: &Location<'_>) -> String {
    match std::thread::current().name() {
        Some(name) if name != "main" => format!("{}: {name}", place.file()),
        _ => place.file().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Makes the test below, in a process of its own, skip.
    const CHILD: &str = "SLUICE_SKIPS_TEST";

    #[test]
    fn a_part_that_is_skipped() {
        if std::env::var_os(CHILD).is_some() {
            for _ in 0..3 {
                skip("wings", "this machine cannot fly");
            }
            assert_eq!(in_namespaces(nix::sched::CloneFlags::empty(), || 7), Some(7));
        }
    }

    #[test]
    fn a_skip_is_written_once_with_its_test_and_why() {
        let ledger = std::env::temp_dir().join(format!("sluice-skips-{}", std::process::id()));
        let child = |ledger: &std::path::Path| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "tests::a_part_that_is_skipped"]).env(CHILD, "1").env(LEDGER, ledger);
            command.output().unwrap().status.success()
        };
        assert!(child(&ledger));
        let skips = read(&ledger).unwrap();
        std::fs::remove_file(&ledger).unwrap();
        let test = "skips/src/lib.rs: tests::a_part_that_is_skipped".to_owned();
        assert_eq!(skips, [Skip { test, why: Why::lack("wings", "this machine cannot fly") }]);
        assert_eq!(skips[0].why.to_string(), "needs wings: this machine cannot fly");
        assert!(!child(std::path::Path::new("/proc/no-such/ledger")), "a skip that nobody counts");
    }
}
