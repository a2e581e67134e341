//! Differences that are meant, or cannot be helped, each with its row in `docs/differences.md`.

use anyhow::{Result, anyhow, ensure};
use serde::Deserialize;

/// The list that the project keeps.
const OF_THE_PROJECT: &str = include_str!("../../torture-differences.yaml");

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Differences(Vec<Difference>);

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Difference {
    /// What names of its experiments have in them
    experiments: String,
    /// The left cell of the row that names it, in `docs/differences.md`
    row: String,
}

impl Differences {
    /// Those of the project. `documented` is the text of `docs/differences.md`.
    pub(super) fn of_the_project(documented: &str) -> Result<Self> {
        Self::parse(OF_THE_PROJECT, documented)
    }

    fn parse(text: &str, documented: &str) -> Result<Self> {
        let read: Option<Vec<Difference>> =
            serde_saphyr::from_str(text).map_err(|error| anyhow!("torture-differences.yaml: {error}"))?;
        let read = read.unwrap_or_default();
        for Difference { experiments, row } in &read {
            let is_there = documented.lines().any(|line| {
                line.strip_prefix("| ").and_then(|rest| rest.split(" | ").next()) == Some(row.as_str())
            });
            ensure!(
                is_there,
                "torture-differences.yaml: {experiments}: docs/differences.md has no row {row:?}"
            );
        }
        Ok(Self(read))
    }

    /// The row that names the difference of an experiment.
    pub(super) fn reason(&self, experiment: &str) -> Option<&str> {
        self.0.iter().find(|known| experiment.contains(&known.experiments)).map(|known| known.row.as_str())
    }

    /// Entries of which experiments were done, and none differed.
    pub(super) fn gone(&self, equal: &[&str], different: &[&str]) -> Vec<&str> {
        let has =
            |names: &[&str], known: &Difference| names.iter().any(|name| name.contains(&known.experiments));
        let gone = self.0.iter().filter(|known| has(equal, known) && !has(different, known));
        gone.map(|known| known.experiments.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCS: &str = "| kube-proxy | Sluice |\n|---|---|\n| Parts in any order | In order |\n";

    #[test]
    fn each_difference_names_its_row() {
        let known = Differences::parse("- {experiments: parts/, row: Parts in any order}", DOCS).unwrap();
        assert_eq!(known.reason("v4/parts/reversed"), Some("Parts in any order"));
        assert_eq!(known.reason("v4/whole"), None);
        assert!(Differences::parse("- {experiments: parts/, row: Parts}", DOCS).is_err());
        assert!(Differences::parse("# none\n", DOCS).unwrap().0.is_empty());
    }

    #[test]
    fn what_does_not_differ_any_more_has_to_go() {
        let known = Differences::parse("- {experiments: parts/, row: Parts in any order}", DOCS).unwrap();
        assert_eq!(known.gone(&["v4/parts/a"], &["v4/whole"]), ["parts/"]);
        assert!(known.gone(&["v4/parts/a"], &["v6/parts/a"]).is_empty());
        assert!(known.gone(&["v4/whole"], &[]).is_empty(), "not tried");
    }
}
