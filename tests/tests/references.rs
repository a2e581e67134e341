//! What the repository cites is in it: each "(reference N)", and each `ref:` of a case, is a
//! section of docs/kube-proxy-behaviour.md.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the helpers of a test, too, may end it")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use sluice_tests::case::Case;

/// Relative to the root.
const PAGE: &str = "docs/kube-proxy-behaviour.md";
/// What may cite it.
const KINDS: [&str; 4] = ["rs", "md", "yaml", "toml"];
/// Made, or somebody else's.
const LEFT_OUT: [&str; 2] = ["target", ".git"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The numbers that the page's headings begin with.
fn sections() -> BTreeSet<String> {
    let page = fs::read_to_string(root().join(PAGE)).unwrap();
    let number = |line: &str| {
        let words = line.strip_prefix("## ").or_else(|| line.strip_prefix("### "))?;
        let number = words.split(' ').next()?;
        number.starts_with(|first: char| first.is_ascii_digit()).then(|| number.to_owned())
    };
    page.lines().filter_map(number).collect()
}

/// The numbers of sections at the beginning of a text: `2.1`, `5.1, 5.2` or `1.6 and 1.7`.
fn numbers(mut text: &str) -> Vec<String> {
    let mut found = Vec::new();
    loop {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, rest) = text.split_at(end);
        let number = number.trim_end_matches('.');
        if number.is_empty() {
            return found;
        }
        found.push(number.to_owned());
        let rest = rest.trim_start_matches([',', ' ', '\n', '/', '!', '#']);
        text = rest.strip_prefix("and ").unwrap_or(rest);
    }
}

/// The sections that a text cites, by the word "reference" before a number.
fn cited(text: &str) -> Vec<String> {
    let after = |(at, word): (usize, &str)| {
        let rest = text[at + word.len()..].trim_start_matches([',', ' ', '\n', '/', '!', '#']);
        numbers(rest.strip_prefix("section ").unwrap_or(rest))
    };
    text.match_indices("eference").flat_map(after).collect()
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !LEFT_OUT.contains(&name.as_str()) {
            files(&path, found);
        } else if path.extension().is_some_and(|kind| KINDS.iter().any(|known| kind == *known)) {
            found.push(path);
        }
    }
}

#[test]
fn every_cited_section_of_the_reference_is_there() {
    let sections = sections();
    let mut all = Vec::new();
    files(&root(), &mut all);
    let mut citations = 0;
    for file in all.iter().filter(|file| !file.ends_with("references.rs")) {
        for number in cited(&fs::read_to_string(file).unwrap()) {
            assert!(sections.contains(&number), "{}: {PAGE} has no section {number}", file.display());
            citations += 1;
        }
    }
    assert!(citations > 30, "{citations} citations: the search for them is broken");
}

#[test]
fn every_case_can_be_read_and_cites_sections_that_are_there() {
    let sections = sections();
    let mut all = Vec::new();
    files(&root().join("tests/cases"), &mut all);
    assert!(all.len() > 50, "only {} cases: the search for them is broken", all.len());
    for file in all {
        let case = Case::read(&file).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(Some(case.name.as_str()), file.file_stem().and_then(|stem| stem.to_str()));
        let numbers = numbers(&case.reference);
        let said = numbers.join(", ");
        assert_eq!(said, case.reference, "{}: ref is a list of sections", file.display());
        for number in numbers {
            assert!(sections.contains(&number), "{}: {PAGE} has no section {number}", file.display());
        }
    }
}

#[test]
fn numbers_are_found_in_all_the_ways_they_are_written() {
    let text = "(reference 1.6 and 1.7)\n/// (reference\n/// 5.3), Reference 1.3. reference, section 4.";
    assert_eq!(cited(text), ["1.6", "1.7", "5.3", "1.3", "4"]);
    assert_eq!(cited("a reference to 3 things, by reference"), Vec::<String>::new());
}
