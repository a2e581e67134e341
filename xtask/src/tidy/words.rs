//! Words that a part of the tree does not have, in names, comments and texts: whoever needs one
//! there is about to put into it what belongs to a feature.

use super::Finding;
use super::tree::Tree;
use super::walls::is_inside;

/// Words that are not used in a part of the tree.
struct Ban {
    /// A module, with all below it.
    inside: &'static str,
    /// Each of one or more parts, in lower case; with an `s` behind it too.
    words: &'static [&'static str],
    why: &'static str,
}

const BANS: &[Ban] =
    &[Ban { inside: "proxy-core/src/lang", words: KUBERNETES, why: "lang knows no Kubernetes" }];

/// Words of Kubernetes that nothing of the kernel is called by.
const KUBERNETES: &[&str] = &[
    "cluster ip",
    "clusterip",
    "endpoint",
    "endpointslice",
    "frontend",
    "kube",
    "kubelet",
    "kubernetes",
    "load balancer",
    "loadbalancer",
    "network policy",
    "node port",
    "nodeport",
    "pod",
    "service",
    "session affinity",
    "traffic policy",
];

/// All words that stand where they must not.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let files = || tree.ending(".rs");
    let of = |ban: &'static Ban| {
        let inside = files().filter(move |(path, _)| is_inside(path, ban.inside));
        inside.flat_map(move |(path, text)| broken(path, text, ban))
    };
    BANS.iter().flat_map(of).collect()
}

fn broken(path: &str, text: &str, ban: &Ban) -> Vec<Finding> {
    let parts = parts(text);
    let mut findings = Vec::new();
    for (i, (line, _)) in parts.iter().enumerate() {
        let begins = |word: &&&str| is_word(parts[i..].iter().map(|(_, part)| part.as_str()), word);
        let found = ban.words.iter().find(begins);
        findings.extend(found.map(|word| Finding {
            path: path.to_owned(),
            line: *line,
            what: format!("\u{201c}{word}\u{201d}: {}", ban.why),
        }));
    }
    findings
}

/// Whether parts begin with a word; its last part may have an `s` behind it.
fn is_word<'a>(mut parts: impl Iterator<Item = &'a str>, word: &str) -> bool {
    let mut wanted = word.split(' ').peekable();
    while let Some(of_word) = wanted.next() {
        let is_last = wanted.peek().is_none();
        let fits = |part: &str| part == of_word || is_last && part.strip_suffix('s') == Some(of_word);
        if !parts.next().is_some_and(fits) {
            return false;
        }
    }
    true
}

/// The parts of all words in lower case, with their lines: `NodePort`, `NODE_PORT`, `node ports`
/// and `nodePort4` have two each, `IPVSPod` too.
fn parts(text: &str) -> Vec<(usize, String)> {
    let mut parts: Vec<(usize, String)> = Vec::new();
    for (line, text) in text.lines().enumerate() {
        let mut before = None;
        for (at, letter) in text.char_indices() {
            let is_small = |letter: Option<char>| letter.is_some_and(char::is_lowercase);
            let mut after = text[at..].chars().skip(1);
            // An `s` behind an acronym begins no word.
            let begins_word = match after.next() {
                Some('s') => is_small(after.next()),
                next => is_small(next),
            };
            let goes_on = |before: char| {
                let is_new = letter.is_uppercase() && (before.is_lowercase() || begins_word);
                before.is_alphabetic() && !is_new
            };
            if letter.is_alphabetic() {
                match parts.last_mut() {
                    Some((_, part)) if before.is_some_and(goes_on) => part.extend(letter.to_lowercase()),
                    _ => parts.push((line + 1, letter.to_lowercase().collect())),
                }
            }
            before = Some(letter);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        check(&Tree::of(&[(path, text)])).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_word_is_found_in_names_comments_and_texts_however_it_is_written() {
        for text in [
            "// A node\n    /// port.",
            "struct NodePorts;",
            "const NODE_PORT: u8 = 1;",
            "let nodeports4 = 1;",
            "f(\"node-port\")",
            "struct IPVSNodePort;",
        ] {
            assert_eq!(findings("proxy-core/src/lang/a.rs", text).len(), 1, "{text}");
            for elsewhere in ["proxy-core/src/nft/a.rs", "proxy-core/src/language.rs"] {
                assert_eq!(findings(elsewhere, text), [""; 0], "{text}");
            }
        }
        let text = "fn a() {}\n//! Of ClusterIPs.\nstruct EndpointSlice(Pod);\n";
        let broken = findings("proxy-core/src/lang.rs", text);
        assert_eq!(
            broken[0],
            "proxy-core/src/lang.rs:2: \u{201c}cluster ip\u{201d}: lang knows no Kubernetes"
        );
        assert_eq!(broken.len(), 3, "{broken:?}");
    }

    #[test]
    fn every_word_is_found_and_no_longer_one() {
        for word in KUBERNETES {
            assert_eq!(findings("proxy-core/src/lang.rs", &format!("// The {word}s.")).len(), 1, "{word}");
            assert_eq!(findings("proxy-core/src/lang.rs", &format!("// The {word}ed.")), [""; 0], "{word}");
        }
        assert_eq!(findings("proxy-core/src/lang.rs", "// Tripods, a node, its port; serviceable."), [""; 0]);
    }
}
