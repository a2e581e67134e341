//! What stays in force while a part of a file cannot be read.
//!
//! A broken document keeps only what it could have been: an object that it names, else one that stood where it
//! stands now. What the rest of the file no longer has is withdrawn.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::key::{Kind, ObjectKey};

/// What an unreadable part may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MayBe {
    /// This object.
    Object(ObjectKey),
    /// Whatever this text may have meant.
    Text(String),
}

/// A document as it was read.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// A hash of its text.
    pub(super) content: u64,
    /// What it defines.
    pub(super) objects: Arc<[ObjectKey]>,
    /// What it may have been, and so keeps in force.
    pub(super) kept: Vec<ObjectKey>,
}

impl Known {
    /// All that is in force because of it.
    pub(super) fn holds(&self) -> impl Iterator<Item = &ObjectKey> {
        self.objects.iter().chain(&self.kept)
    }
}

/// Decides what the broken parts of a file keep. `broken` has those of each document of `new` that were not as they
/// are when the file was read before; `cut_off` says that the file seems to end within its last document.
pub(super) fn keep(old: &[Known], new: &mut [Known], broken: &[Vec<MayBe>], cut_off: bool) {
    let defined: HashSet<ObjectKey> = new.iter().flat_map(|known| known.objects.iter().cloned()).collect();
    for known in new.iter_mut() {
        known.kept.retain(|key| !defined.contains(key));
    }
    if broken.iter().all(Vec::is_empty) {
        return;
    }
    let places = places(old, new);
    for (j, parts) in broken.iter().enumerate().filter(|(_, parts)| !parts.is_empty()) {
        let after = places[..j].iter().rev().find_map(|place| *place).map_or(0, |i| i + 1);
        let before = places[j + 1..].iter().find_map(|place| *place).unwrap_or(old.len());
        let last = cut_off && j + 1 == broken.len();
        // Documents that changed their order say nothing of where this one was.
        let range = if last {
            after..old.len()
        } else if after <= before {
            after..before
        } else {
            0..old.len()
        };
        let vanished = |documents: &[Known]| -> Vec<ObjectKey> {
            documents.iter().flat_map(Known::holds).filter(|key| !defined.contains(*key)).cloned().collect()
        };
        let near = vanished(&old[range]);
        let kept = parts.iter().flat_map(|part| match part {
            _ if last => near.clone(),
            MayBe::Object(key) => vanished(old).into_iter().filter(|gone| gone == key).collect(),
            MayBe::Text(text) => meant(text, &near),
        });
        let kept: HashSet<ObjectKey> = kept.collect();
        new[j].kept.extend(kept);
    }
}

/// Where each new document was in the old file: by its text, or by an object that both define.
fn places(old: &[Known], new: &[Known]) -> Vec<Option<usize>> {
    let mut by_content: HashMap<u64, VecDeque<usize>> = HashMap::new();
    for (i, known) in old.iter().enumerate() {
        by_content.entry(known.content).or_default().push_back(i);
    }
    let objects = old.iter().enumerate().flat_map(|(i, known)| known.objects.iter().map(move |key| (key, i)));
    let by_object: HashMap<&ObjectKey, usize> = objects.collect();
    let place = |known: &Known| {
        let same = by_content.get_mut(&known.content).and_then(VecDeque::pop_front);
        same.or_else(|| known.objects.iter().find_map(|key| by_object.get(key).copied()))
    };
    new.iter().map(place).collect()
}

/// The objects that an unreadable text can have meant: of its kind, and those that it names if it names any.
fn meant(text: &str, candidates: &[ObjectKey]) -> Vec<ObjectKey> {
    let of_kind: Vec<&ObjectKey> = match kind(text) {
        Said::Foreign => return Vec::new(),
        Said::Kind(kind) => candidates.iter().filter(|(of, _)| *of == kind).collect(),
        Said::Nothing => candidates.iter().collect(),
    };
    let words: HashSet<&str> =
        text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))).collect();
    let named: Vec<&ObjectKey> =
        of_kind.iter().copied().filter(|(_, name)| words.contains(name.name())).collect();
    let chosen = if named.is_empty() { of_kind } else { named };
    chosen.into_iter().cloned().collect()
}

enum Said {
    Nothing,
    Kind(Kind),
    /// A kind that is not read here.
    Foreign,
}

/// The kind that a text says at the beginning of a line, or else anywhere.
fn kind(text: &str) -> Said {
    let value = |at: usize| {
        let rest = text[at + "kind".len()..].trim_start_matches(['"', '\'']).trim_start();
        let rest = rest.strip_prefix(':')?.trim_start().trim_start_matches(['"', '\'']);
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric())?;
        Some(&rest[..end]).filter(|word| !word.is_empty())
    };
    let begins = |at: &usize| *at == 0 || text.as_bytes().get(at - 1) == Some(&b'\n');
    let places: Vec<usize> = text.match_indices("kind").map(|(at, _)| at).collect();
    let first = places.iter().copied().filter(begins).find_map(value);
    match first.or_else(|| places.iter().copied().find_map(value)) {
        None => Said::Nothing,
        Some(word) if word.ends_with("List") => Said::Nothing,
        Some(word) => Kind::parse(word).map_or(Said::Foreign, Said::Kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> ObjectKey {
        (Kind::Service, Kind::Service.object(None, name))
    }

    /// A document for each word: `a,b` defines two Services; `?text` is broken.
    fn read(words: &[&str]) -> (Vec<Known>, Vec<Vec<MayBe>>) {
        let one = |word: &&str| {
            let broken = word.strip_prefix('?').map(|text| MayBe::Text(text.to_owned()));
            let names = word.split(',').filter(|_| broken.is_none());
            let objects = names.map(service).collect();
            let content = word.bytes().fold(7, |hash: u64, b| hash.wrapping_mul(31).wrapping_add(b.into()));
            (Known { content, objects, kept: Vec::new() }, Vec::from_iter(broken))
        };
        words.iter().map(one).unzip()
    }

    fn kept(old: &[&str], new: &[&str], cut_off: bool) -> String {
        let (old, _) = read(old);
        let (mut new, broken) = read(new);
        keep(&old, &mut new, &broken, cut_off);
        let mut names: Vec<&str> =
            new.iter().flat_map(|known| &known.kept).map(|(_, name)| name.name()).collect();
        names.sort_unstable();
        names.join(" ")
    }

    #[test]
    fn a_broken_document_keeps_only_what_it_could_have_been() {
        for (old, new, expected) in [
            // Where it stood.
            (&["a", "b", "c"][..], &["a", "?]", "c"][..], "b"),
            (&["a", "b", "c"], &["?]", "c"], "a b"),
            (&["a", "b", "c"], &["a", "?]"], "b c"),
            (&["a", "b", "c"], &["a", "?]", "c", "d"], "b"),
            // A removed one elsewhere is not hidden.
            (&["a", "b", "c"], &["?]", "a", "b"], ""),
            (&["a", "b", "c"], &["a", "?]", "b"], ""),
            (&["a", "b", "c", "d"], &["a", "?]", "c"], "b"),
            // What it names.
            (&["a", "b", "c"], &["a", "?name: b ["], "b"),
            (&["a", "b", "c"], &["?kind: Service\nname: c\n", "a"], ""),
            (&["a", "b"], &["?kind: Service\nmeta"], "a b"),
            (&["a", "b"], &["?kind: EndpointSlice\nname: a ["], ""),
            (&["a", "b"], &["?kind: AllowList2\nname: [", "a"], ""),
            (&["a", "b"], &["?kind: AllowList2\nname: ["], ""),
            (&["a", "b"], &["?kind: Serv"], "a b"),
            (&["a", "b"], &["?{\"kind\": \"Service\", \"name\": \"b\""], "b"),
            // A List with parts that are broken.
            (&["a,b,c"], &["a"], ""),
            // Order turned round.
            (&["a", "b", "c"], &["c", "?]", "a"], "b"),
        ] {
            assert_eq!(kept(old, new, false), expected, "{old:?} {new:?}");
        }
    }

    #[test]
    fn a_file_that_is_cut_off_keeps_what_stood_behind() {
        assert_eq!(kept(&["a", "b", "c", "d"], &["a", "?kind: Service\nname: b\n"], true), "b c d");
        assert_eq!(kept(&["a", "b", "c"], &["b", "?]"], true), "c");
    }

    #[test]
    fn a_broken_object_of_a_list_keeps_itself_and_nothing_else() {
        let (old, _) = read(&["a,b,c"]);
        let (mut new, _) = read(&["a"]);
        keep(&old, &mut new, &[vec![MayBe::Object(service("b"))]], false);
        assert_eq!(new[0].kept, [service("b")]);
    }

    #[test]
    fn what_is_kept_stays_while_the_document_does_and_until_another_defines_it() {
        let (old, _) = read(&["a", "b"]);
        let (mut broken, parts) = read(&["a", "?]"]);
        keep(&old, &mut broken, &parts, false);
        let mut later = broken.clone();
        keep(&broken, &mut later, &[Vec::new(), Vec::new()], false);
        assert_eq!(later[1].kept, [service("b")]);
        later.push(read(&["b"]).0.remove(0));
        keep(&broken, &mut later, &[Vec::new(), Vec::new(), Vec::new()], false);
        assert!(later[1].kept.is_empty());
    }
}
