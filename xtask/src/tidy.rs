//! `cargo xtask tidy`: rules of the repository that neither the compiler nor clippy checks.

mod lines;
mod links;
mod tree;
mod walls;
mod words;

use std::fmt;

use anyhow::{Result, ensure};

pub(crate) use links::local_links;
pub(crate) use tree::Tree;

use crate::docs;

/// A place that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// Relative to the repository's root.
    pub(crate) path: String,
    /// From 1.
    pub(crate) line: usize,
    pub(crate) what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

type Check = fn(&Tree) -> Vec<Finding>;

/// All rules, with their names.
const RULES: [(&str, Check); 8] = [
    ("links are valid", links::check),
    ("pages named in code exist", links::check_code),
    ("files are short enough to read", lines::check_files),
    ("prose has short lines and tables short cells", lines::check_prose),
    ("pictures are drawn from their texts", docs::check_pictures),
    ("every page is on the site", docs::check_site),
    ("dependencies between crates and between modules follow the rules", walls::check),
    ("what belongs to no feature has no words of features", words::check),
];

/// Checks all rules; fails if one is broken, after it has printed where.
pub(crate) fn run() -> Result<()> {
    let tree = Tree::read()?;
    let mut count = 0;
    for (rule, check) in RULES {
        let mut findings = check(&tree);
        findings.sort();
        println!("{} {rule}", if findings.is_empty() { "ok  " } else { "FAIL" });
        for finding in &findings {
            println!("     {finding}");
        }
        count += findings.len();
    }
    ensure!(count == 0, "{count} violations of the rules: see CONTRIBUTING.md");
    Ok(())
}
