//! The files of the repository, as values.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::machine::root;

/// Paths relative to the root, and the texts of those that are text.
#[derive(Debug, Default)]
pub(crate) struct Tree(BTreeMap<String, Option<String>>);

impl Tree {
    /// What git has, and new files that it does not ignore.
    pub(crate) fn read() -> Result<Tree> {
        let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
        let output = Command::new("git").args(arguments).current_dir(root()).output();
        let output = output.context("cannot start git: install it")?;
        ensure!(output.status.success(), "git ls-files failed: {}", output.status);
        let mut files = BTreeMap::new();
        for path in String::from_utf8(output.stdout)?.split_terminator('\0') {
            // A file that was removed is still listed until the removal is committed.
            let Ok(bytes) = std::fs::read(root().join(path)) else { continue };
            files.insert(path.to_owned(), String::from_utf8(bytes).ok());
        }
        Ok(Tree(files))
    }

    /// Made of paths and texts.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Tree {
        Tree(files.iter().map(|(path, text)| ((*path).to_owned(), Some((*text).to_owned()))).collect())
    }

    /// Whether there is a file or a directory of this path.
    pub(crate) fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let below = format!("{path}/");
        self.0.contains_key(path)
            || self.0.range(below.clone()..).next().is_some_and(|(p, _)| p.starts_with(&below))
    }

    /// The text of a file.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.0.get(path)?.as_deref()
    }

    /// Files whose names end so, with their texts.
    pub(crate) fn ending<'a>(&'a self, end: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let of = move |(path, text): (&'a String, &'a Option<String>)| {
            path.ends_with(end).then_some((path.as_str(), text.as_deref()?))
        };
        self.0.iter().filter_map(of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_there_by_their_files() {
        let tree = Tree::of(&[("a/b.md", ""), ("a-b/c.rs", "")]);
        assert!(tree.has("a") && tree.has("a/") && tree.has("a/b.md") && tree.has("a-b"));
        assert!(!tree.has("a/b") && !tree.has("b.md") && !tree.has("c"));
        assert_eq!(tree.ending(".rs").map(|(path, _)| path).collect::<Vec<_>>(), ["a-b/c.rs"]);
    }
}
