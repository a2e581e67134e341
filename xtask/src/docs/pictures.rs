//! Pictures are made of texts in the repository, by Graphviz, and say of which.

use sha2::{Digest, Sha256};

use crate::tidy::{Finding, Tree};

/// How the names of texts end.
pub(super) const TEXT: &str = ".dot";

/// Where the picture of a text is.
pub(super) fn of(text: &str) -> String {
    format!("{}.svg", text.trim_end_matches(TEXT))
}

/// What a picture has in it that was drawn from a text. Not the picture is compared: each version
/// of Graphviz draws another.
fn mark(text: &str) -> String {
    let digest: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("<!-- drawn from a text with SHA-256 {digest} -->")
}

/// Whether a picture is of a text.
pub(super) fn is_of(svg: &str, text: &str) -> bool {
    svg.contains(&mark(text))
}

/// A picture that says of which text it is.
pub(super) fn signed(svg: &str, text: &str) -> String {
    let end = svg.trim_end().trim_end_matches("</svg>");
    format!("{end}{}\n</svg>\n", mark(text))
}

/// Texts whose pictures are missing or of another text.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let stale = |(path, text): (&str, &str)| {
        let svg = tree.text(&of(path)).unwrap_or_default();
        (!is_of(svg, text)).then(|| Finding {
            path: path.to_owned(),
            line: 1,
            what: format!("{} is out of date: run cargo xtask docs", of(path)),
        })
    };
    tree.ending(TEXT).filter_map(stale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_of_another_text_is_found() {
        let svg = signed("<svg>\n</svg>\n", "digraph { a }");
        let files = |text| [("docs/a.dot", text), ("docs/a.svg", svg.as_str())];
        assert_eq!(check(&Tree::of(&files("digraph { a }"))), []);
        assert_eq!(check(&Tree::of(&files("digraph { b }"))).len(), 1);
        assert_eq!(check(&Tree::of(&[("docs/a.dot", "digraph { a }")])).len(), 1);
        assert!(svg.ends_with("-->\n</svg>\n"), "{svg}");
    }
}
