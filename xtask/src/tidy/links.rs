//! Links of pages lead to files and headings of the repository, and so do names of pages in code.

use std::collections::{BTreeMap, BTreeSet};

use pulldown_cmark::{BrokenLink, Event, LinkType, Options, Parser, Tag, TagEnd};

use super::Finding;
use super::tree::Tree;

/// A link of a page.
#[derive(Debug, PartialEq, Eq)]
struct Link {
    line: usize,
    to: String,
}

/// Links and pictures, where they stand.
fn links(text: &str) -> Vec<Link> {
    let mut found = Vec::new();
    for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
        if let Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) = event {
            found.push(Link { line: line_of(text, range.start), to: dest_url.into_string() });
        }
    }
    found
}

fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

/// Links `[text][name]` and `[name][]` of a page that nowhere says where `name` leads. They are
/// shown with their brackets. `[name]` alone is no link then.
fn undefined(text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let note = |link: BrokenLink<'_>| {
        if matches!(link.link_type, LinkType::Reference | LinkType::Collapsed) {
            let line = line_of(text, link.span.start);
            let what = format!("the link [{}] is not defined on this page", link.reference);
            found.push(Finding { path: String::new(), line, what });
        }
        None
    };
    // The parser calls `note` while it is read.
    Parser::new_with_broken_link_callback(text, Options::ENABLE_TABLES, Some(note)).for_each(drop);
    found
}

/// What headings are called in a link, with their lines: lower case, without punctuation, with a
/// number where one comes again. As GitHub and mdBook do it.
fn anchors(text: &str) -> Vec<(usize, String)> {
    let (mut found, mut heading) = (Vec::new(), None::<String>);
    let mut times = BTreeMap::<String, usize>::new();
    for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            Event::End(TagEnd::Heading(_)) => {
                let slug = slug(&heading.take().unwrap_or_default());
                let before = times.entry(slug.clone()).or_default();
                let anchor = if *before == 0 { slug } else { format!("{slug}-{before}") };
                found.push((line_of(text, range.start), anchor));
                *before += 1;
            }
            _ => {}
        }
    }
    found
}

/// Headings with the anchor of an earlier one, as with the headings `A`, `A` and `A 1`: mdBook
/// gives both the same, and GitHub another number to the last.
fn ambiguous(text: &str) -> Vec<Finding> {
    let mut seen = BTreeSet::new();
    let mut anchors = anchors(text);
    anchors.retain(|(_, anchor)| !seen.insert(anchor.clone()));
    let what = |anchor| format!("another heading has the anchor #{anchor} too: name one differently");
    let finding = |(line, anchor)| Finding { path: String::new(), line, what: what(anchor) };
    anchors.into_iter().map(finding).collect()
}

fn slug(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    heading.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect::<String>().to_lowercase()
}

/// A path relative to a page, from the root; `None` if it leads out of the repository.
fn resolved(page: &str, to: &str) -> Option<String> {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in to.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Why a place of the repository cannot be linked to.
fn problem(tree: &Tree, path: &str, anchor: &str) -> Option<String> {
    if !tree.has(path) {
        return Some(format!("there is no {path}"));
    }
    let text = tree.text(path).filter(|_| path.ends_with(".md") && !anchor.is_empty())?;
    (!anchors(text).iter().any(|(_, a)| a == anchor)).then(|| format!("{path} has no heading #{anchor}"))
}

/// The files of the repository that a page links to.
pub(crate) fn local_links(tree: &Tree, page: &str) -> Vec<String> {
    let path = |Link { to, .. }: Link| {
        let path = to.split('#').next().filter(|path| !path.is_empty() && !is_elsewhere(path))?;
        resolved(page, path)
    };
    links(tree.text(page).unwrap_or_default()).into_iter().filter_map(path).collect()
}

/// Whether a link leads out of the repository on purpose.
fn is_elsewhere(to: &str) -> bool {
    to.contains("://") || to.starts_with("mailto:")
}

/// Links of all pages.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (page, text) in tree.ending(".md") {
        for Link { line, to } in links(text) {
            if is_elsewhere(&to) {
                continue;
            }
            let (path, anchor) = to.split_once('#').unwrap_or((&to, ""));
            let what = match resolved(page, path) {
                _ if path.is_empty() => problem(tree, page, anchor),
                Some(path) => problem(tree, &path, anchor),
                None => Some(format!("{to} points outside the repository")),
            };
            findings.extend(what.map(|what| Finding { path: page.to_owned(), line, what }));
        }
        let of_page = undefined(text).into_iter().chain(ambiguous(text));
        findings.extend(of_page.map(|finding| Finding { path: page.to_owned(), ..finding }));
    }
    findings
}

/// The tests of these name pages that are not there.
const OF_TESTS: [&str; 2] = ["xtask/src/tidy/", "xtask/src/docs/"];

/// Pages that comments, messages and help name by their paths from the root.
pub(super) fn check_code(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for end in [".rs", ".yaml", ".toml", ".sh"] {
        for (path, text) in
            tree.ending(end).filter(|(path, _)| !OF_TESTS.iter().any(|of| path.starts_with(of)))
        {
            for (index, line) in text.lines().enumerate() {
                let problems = named(line).filter_map(|(page, anchor)| problem(tree, page, anchor));
                let finding = |what| Finding { path: path.to_owned(), line: index + 1, what };
                findings.extend(problems.map(finding));
            }
        }
    }
    findings
}

/// Names of pages below `docs` and `deploy` in a line, with the headings behind them.
fn named(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let of_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.');
    line.match_indices(".md").filter_map(move |(at, end)| {
        let begin = line[..at].rfind(|c| !of_path(c)).map_or(0, |before| before + 1);
        let page = &line[begin..at + end.len()];
        let rest = &line[at + end.len()..];
        let anchor = rest.strip_prefix('#').unwrap_or_default();
        let anchor_end = anchor
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_')))
            .unwrap_or(anchor.len());
        let is_of_ours = page.starts_with("docs/") || page.starts_with("deploy/");
        is_of_ours.then_some((page, &anchor[..anchor_end]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whats(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let page = "# The `one`, and two\n\n[a](b.md#there) [b](b.md#not-there) [c](no.md)\n\
                    ![d](../e.svg) [e](../../e) [f](https://example.com/x) [g](#the-one-and-two) [h](#one)\n\n\
                    | t |\n|---|\n| [i](gone.md) |\n\n`[k](code.md)`\n";
        let tree = Tree::of(&[("docs/a.md", page), ("docs/b.md", "## There\n"), ("e.svg", "")]);
        assert_eq!(
            whats(&check(&tree)),
            [
                "docs/a.md:3: docs/b.md has no heading #not-there",
                "docs/a.md:3: there is no docs/no.md",
                "docs/a.md:4: ../../e points outside the repository",
                "docs/a.md:4: docs/a.md has no heading #one",
                "docs/a.md:8: there is no docs/gone.md",
            ]
        );
    }

    #[test]
    fn undefined_reference_links_are_found() {
        let page = "[a][there] [b][gone]\n[there][] [gone][] [gone]\n\n    [c][code]\n\n`[d][code]`\n\n\
                    | t |\n|---|\n| [e][gone] |\n\n[there]: b.md\n";
        let tree = Tree::of(&[("docs/a.md", page), ("docs/b.md", "")]);
        let gone = |line| format!("docs/a.md:{line}: the link [gone] is not defined on this page");
        assert_eq!(whats(&check(&tree)), [gone(1), gone(2), gone(10)]);
    }

    #[test]
    fn repeated_headings_have_numbered_anchors() {
        let anchors: Vec<_> =
            anchors("# A b\n# A b\n# A\n# A b!\n").into_iter().map(|(_, anchor)| anchor).collect();
        assert_eq!(anchors, ["a-b", "a-b-1", "a", "a-b-2"]);
        let page = "# A\n\n# A\n\n[first](#a) [second](#a-1) [third](#a-2)\n";
        assert_eq!(
            whats(&check(&Tree::of(&[("docs/a.md", page)]))),
            ["docs/a.md:5: docs/a.md has no heading #a-2"]
        );
    }

    #[test]
    fn two_headings_with_one_anchor_are_found() {
        let tree = Tree::of(&[("docs/a.md", "# A\n\n# A\n\n# A 1\n"), ("docs/b.md", "# A\n\n# A\n")]);
        assert_eq!(
            whats(&check(&tree)),
            ["docs/a.md:5: another heading has the anchor #a-1 too: name one differently"]
        );
    }

    #[test]
    fn pages_named_in_code_are_looked_for() {
        let code = "// See docs/b.md#there, and docs/c.md.\n// Others' own.md, x/docs/d.md, deploy/e.md#f\n";
        let tree =
            Tree::of(&[("x/src/a.rs", code), ("docs/b.md", "# There\n"), ("deploy/e.md", "# There\n")]);
        assert_eq!(
            whats(&check_code(&tree)),
            ["x/src/a.rs:1: there is no docs/c.md", "x/src/a.rs:2: deploy/e.md has no heading #f"]
        );
    }
}
