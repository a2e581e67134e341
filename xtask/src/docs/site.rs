//! What the site is made of: pages at their places in the repository, so that their links stay as
//! they are, and what they link to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};

use crate::machine::root;
use crate::tidy::{Finding, Tree, local_links};

/// The order of pages.
const SUMMARY: &str = "docs/SUMMARY.md";

/// mdBook's.
pub(super) const CONFIGURATION: &str = r#"[book]
title = "Sluice"
language = "en"

[build]
# The index preprocessor gives README.md another name, by which links do not call it.
use-default-preprocessors = false

[output.html.search]
"#;

/// All files of the site, with their paths.
pub(super) fn files(tree: &Tree) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let summary = tree.text(SUMMARY).with_context(|| format!("there is no {SUMMARY}"))?;
    files.insert("SUMMARY.md".to_owned(), from_root(summary).into_bytes());
    for page in pages(tree) {
        let linked = local_links(tree, &page).into_iter().filter(|to| !to.ends_with(".md"));
        let wanted: Vec<String> = linked.chain([page]).collect();
        for path in wanted {
            let file = root().join(&path);
            if file.is_file() {
                files.insert(
                    path,
                    std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?,
                );
            }
        }
    }
    Ok(files)
}

/// The pages of the site: those that its order names.
fn pages(tree: &Tree) -> BTreeSet<String> {
    local_links(tree, SUMMARY).into_iter().collect()
}

/// The order of pages, whose links are relative to its own place, with links from the root.
fn from_root(summary: &str) -> String {
    summary.replace("](../", "](\u{0}").replace("](", "](docs/").replace("](docs/\u{0}", "](")
}

/// Pages that the site lacks.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let pages = pages(tree);
    let is_missing = |path: &&str| {
        let is_page = path.starts_with("docs/") || path.starts_with("deploy/") || !path.contains('/');
        is_page && *path != SUMMARY && !pages.contains(*path)
    };
    let missing = tree.ending(".md").map(|(path, _)| path).filter(is_missing);
    let finding = |path: &str| Finding {
        path: path.to_owned(),
        line: 1,
        what: format!("this page is not part of the site: add it to {SUMMARY}"),
    };
    missing.map(finding).collect()
}

/// Links and pictures of the finished site that lead nowhere.
pub(super) fn broken(book: &Path) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for page in html(book)? {
        let text = std::fs::read_to_string(&page)?;
        let with = |attribute| text.split(attribute).skip(1).filter_map(|rest| rest.split_once('"'));
        for (to, _) in with(" href=\"").chain(with(" src=\"")) {
            let elsewhere = ["mailto:", "javascript:", "data:"];
            if to.contains("://") || elsewhere.iter().any(|scheme| to.starts_with(scheme)) {
                continue;
            }
            let (file, anchor) = to.split_once('#').unwrap_or((to, ""));
            let file = if file.is_empty() { page.clone() } else { page.with_file_name("").join(file) };
            let leads = match std::fs::read(&file) {
                Err(_) => file.is_dir(),
                Ok(_) if anchor.is_empty() => true,
                Ok(bytes) => String::from_utf8_lossy(&bytes).contains(&format!("id=\"{anchor}\"")),
            };
            if !leads {
                broken.push(format!("{}: {to}", page.display()));
            }
        }
    }
    Ok(broken)
}

/// All pages of the site, but the one for what is not there, whose links are from the root of a
/// server, and the one for print, which has all pages in it.
fn html(directory: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            found.extend(html(&path)?);
        } else if name.ends_with(".html") && name != "404.html" && name != "print.html" {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_pictures_that_lead_nowhere_are_found() {
        let book = std::env::temp_dir().join(format!("sluice-site-{}", std::process::id()));
        std::fs::create_dir_all(book.join("docs")).unwrap();
        let page = r##"<h1 id="top"></h1><a class="x" href="b.html#there"></a><a href="b.html#gone"></a>
            <a href="#top"></a><a href="https://example.com/x"></a><a href="c.html"></a>
            <img alt="a" src="a.svg"><img src="../docs/gone.svg" alt="b"><img src="data:image/png;base64,A">"##;
        for (path, text) in [("a.html", page), ("b.html", r#"<h1 id="there">"#), ("a.svg", "")] {
            std::fs::write(book.join("docs").join(path), text).unwrap();
        }
        let found = broken(&book).unwrap();
        std::fs::remove_dir_all(&book).unwrap();
        let name = book.join("docs/a.html");
        let expected = ["b.html#gone", "c.html", "../docs/gone.svg"];
        assert_eq!(found, expected.map(|to| format!("{}: {to}", name.display())));
    }

    #[test]
    fn the_order_of_pages_is_read_from_the_root() {
        assert_eq!(from_root("[a](../README.md) [b](ebpf.md)"), "[a](README.md) [b](docs/ebpf.md)");
    }

    #[test]
    fn a_page_that_the_site_lacks_is_found() {
        let summary = "- [a](a.md)\n- [r](../README.md)\n";
        let files =
            [(SUMMARY, summary), ("docs/a.md", ""), ("docs/b.md", ""), ("README.md", ""), ("x/c.md", "")];
        let findings = check(&Tree::of(&files));
        assert_eq!(findings.iter().map(|finding| finding.path.as_str()).collect::<Vec<_>>(), ["docs/b.md"]);
    }
}
