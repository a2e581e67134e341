//! What all tests together skipped: the ledger of a run, and which skips are expected.
//!
//! What a test cannot do for a reason of its own (a case that is documented not to be for a proxy,
//! say) is a choice of the project. What it cannot do because the machine lacks something is
//! expected only where `tests/expected-skips.yaml` says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use sluice_skips::{Skip, Why};

use crate::machine::target_directory;

/// Says what must not be skipped.
const REQUIRE: &str = "SLUICE_REQUIRE";
/// The list that the project keeps, for the machine of CI.
const EXPECTED: &str = include_str!("../../tests/expected-skips.yaml");
/// Of the tests that a reason is for, how many are named.
const NAMED: usize = 8;

static LEDGER: OnceLock<PathBuf> = OnceLock::new();

/// Begins an empty ledger, for all that this process runs from now on.
pub(crate) fn begin() -> Result<()> {
    let directory = target_directory();
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let file = LEDGER.get_or_init(|| directory.join("skips.jsonl"));
    fs::write(file, "").with_context(|| format!("writing {}", file.display()))
}

/// The ledger, if one was begun.
pub(crate) fn ledger() -> Option<&'static Path> {
    LEDGER.get().map(PathBuf::as_path)
}

/// Counts a skip.
pub(crate) fn note(skip: &Skip) -> Result<()> {
    match ledger() {
        Some(file) => sluice_skips::append(file, skip).with_context(|| format!("writing {}", file.display())),
        None => Ok(()),
    }
}

/// Counts the skips that a VM's ledger has.
pub(crate) fn gather(inside: &Path) -> Result<()> {
    let skips = sluice_skips::read(inside).with_context(|| format!("reading {}", inside.display()))?;
    skips.iter().try_for_each(note)
}

/// Which skips fail a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Required {
    /// None.
    Nothing,
    /// All that are not expected.
    All,
}

impl Required {
    /// What the environment says.
    pub(crate) fn of_environment() -> Result<Self> {
        Self::of(std::env::var_os(REQUIRE).as_deref().and_then(std::ffi::OsStr::to_str))
    }

    fn of(value: Option<&str>) -> Result<Self> {
        match value {
            None | Some("") => Ok(Self::Nothing),
            Some("all") => Ok(Self::All),
            Some(other) => bail!("{REQUIRE}={other}: only \"all\" is known"),
        }
    }
}

/// Prints the sum of the run; fails if there is a skip that is required not to be.
pub(crate) fn account(required: Required) -> Result<()> {
    let skips = match ledger() {
        Some(file) => sluice_skips::read(file).with_context(|| format!("reading {}", file.display()))?,
        None => Vec::new(),
    };
    let account = Account::of(&skips, &Expected::parse(EXPECTED)?);
    print!("{}", account.text());
    account.verdict(required)
}

/// Needs that a machine is expected to lack.
#[derive(Debug, Default)]
struct Expected(BTreeMap<String, String>);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedSkip {
    /// What is lacking
    need: String,
    /// Why that is so, and what is tested elsewhere in its place
    because: String,
}

impl Expected {
    fn parse(text: &str) -> Result<Self> {
        let list: Option<Vec<ExpectedSkip>> =
            serde_saphyr::from_str(text).map_err(|error| anyhow!("expected skips: {error}"))?;
        Ok(Self(list.unwrap_or_default().into_iter().map(|skip| (skip.need, skip.because)).collect()))
    }

    fn has(&self, why: &Why) -> bool {
        why.need().is_none_or(|need| self.0.contains_key(need))
    }
}

/// The sum of a run.
#[derive(Debug)]
struct Account<'a> {
    /// By whether it is expected and why: tests, each as often as it was skipped.
    groups: BTreeMap<(bool, &'a Why), Vec<&'a str>>,
}

impl<'a> Account<'a> {
    fn of(skips: &'a [Skip], expected: &Expected) -> Self {
        let mut groups: BTreeMap<_, Vec<&str>> = BTreeMap::new();
        for skip in skips {
            groups.entry((expected.has(&skip.why), &skip.why)).or_default().push(&skip.test);
        }
        Self { groups }
    }

    fn count(&self, wanted: impl Fn(bool, &Why) -> bool) -> usize {
        let groups = self.groups.iter().filter(|((expected, why), _)| wanted(*expected, why));
        groups.map(|(_, tests)| tests.len()).sum()
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for ((expected, why), tests) in self.groups.iter().rev() {
            let mark = if *expected { "" } else { "UNEXPECTED: " };
            let names: BTreeSet<&str> = tests.iter().copied().collect();
            let named: Vec<&str> = names.iter().copied().take(NAMED).collect();
            let more = names.len() - named.len();
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            let _ = writeln!(text, "{mark}{} × {why}: {}{more}", tests.len(), named.join(", "));
        }
        let (all, lacks) = (self.count(|_, _| true), self.count(|_, why| why.need().is_some()));
        let unexpected = self.count(|expected, _| !expected);
        let _ = writeln!(
            text,
            "skips: {all}, of these {lacks} because of features that this machine lacks, {unexpected} of them unexpected"
        );
        text
    }

    fn verdict(&self, required: Required) -> Result<()> {
        let needs: BTreeSet<&str> =
            self.groups.keys().filter(|(expected, _)| !expected).filter_map(|(_, why)| why.need()).collect();
        if needs.is_empty() || required == Required::Nothing {
            return Ok(());
        }
        let needs: Vec<&str> = needs.into_iter().collect();
        bail!(
            "{REQUIRE}=all, but there were unexpected skips because of missing features: {}",
            needs.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skip(test: &str, why: Why) -> Skip {
        Skip { test: test.to_owned(), why }
    }

    #[test]
    fn skips_are_summed_by_reason_and_the_unexpected_come_last() {
        let expected = Expected::parse("- {need: ipvs, because: no modules}").unwrap();
        let ipvs = || Why::lack("ipvs", "none");
        let mut skips = vec![skip("a", ipvs()), skip("b", ipvs()), skip("a", ipvs())];
        skips.push(skip("c", Why::choice("not for ebpf: why")));
        let account = Account::of(&skips, &expected);
        assert_eq!(
            account.text(),
            "3 × needs ipvs: none: a, b\n1 × not for ebpf: why: c\n\
             skips: 4, of these 3 because of features that this machine lacks, 0 of them unexpected\n"
        );
        assert!(account.verdict(Required::All).is_ok());

        skips.extend((0..10).map(|test| skip(&format!("test {test}"), Why::lack("root", "no rights"))));
        let account = Account::of(&skips, &expected);
        let text = account.text();
        let unexpected = text.lines().nth(2).unwrap();
        assert!(unexpected.starts_with("UNEXPECTED: 10 × needs root: no rights: test 0, test 1"), "{text}");
        assert!(unexpected.ends_with("test 7, and 2 more"), "{text}");
        assert!(
            text.ends_with("13 because of features that this machine lacks, 10 of them unexpected\n"),
            "{text}"
        );
        let error = account.verdict(Required::All).unwrap_err().to_string();
        assert_eq!(
            error,
            "SLUICE_REQUIRE=all, but there were unexpected skips because of missing features: root"
        );
        assert!(account.verdict(Required::Nothing).is_ok());
    }

    #[test]
    fn what_is_required_is_all_or_nothing() {
        assert_eq!(Required::of(None).unwrap(), Required::Nothing);
        assert_eq!(Required::of(Some("all")).unwrap(), Required::All);
        assert!(Required::of(Some("ipvs")).is_err());
    }

    #[test]
    fn the_project_s_list_can_be_read() {
        assert!(!Expected::parse(EXPECTED).unwrap().0.is_empty());
        assert!(Expected::parse("- need: ipvs").is_err());
    }
}
