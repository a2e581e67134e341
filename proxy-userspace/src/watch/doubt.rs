//! What stays in force while a part of a file cannot be read.
//!
//! A broken document keeps only what it could have been: an object that it names, else one that
//! stood where it stands now. What the rest of the file no longer has is withdrawn.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use sluice_core::kind::{Kind, ObjectKey};

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
    /// What it may have been, and so keeps in force. Each list is shared with all documents that
    /// may have been the same.
    pub(super) kept: Arc<[Arc<[ObjectKey]>]>,
}

impl Known {
    /// All that is in force because of it.
    pub(super) fn holds(&self) -> impl Iterator<Item = &ObjectKey> {
        self.objects.iter().chain(self.kept.iter().flat_map(|keys| keys.iter()))
    }
}

/// All that is in force because of documents. What several keep together is looked at once.
pub(super) fn held(documents: &[Known]) -> BTreeSet<&ObjectKey> {
    let kept = kept_lists(documents).flat_map(|keys| keys.iter());
    documents.iter().flat_map(|known| known.objects.iter()).chain(kept).collect()
}

/// The lists of what documents keep, each once.
fn kept_lists(documents: &[Known]) -> impl Iterator<Item = &Arc<[ObjectKey]>> {
    let mut seen = HashSet::new();
    let lists = documents.iter().flat_map(|known| known.kept.iter());
    lists.filter(move |keys| seen.insert(keys.as_ptr()))
}

/// How much there is to look at in documents.
fn weight(documents: &[Known]) -> usize {
    let own: usize = documents.iter().map(|known| 1 + known.objects.len() + known.kept.len()).sum();
    own + kept_lists(documents).map(|keys| keys.len()).sum::<usize>()
}

/// Decides what the broken parts of a file keep. `broken` has those of each document of `new` that
/// were not as they are when the file was read before; `cut_off` says that the file seems to end
/// within its last document.
///
/// Any number of broken documents may stand in one place: they keep the same objects, which are
/// there once.
pub(super) fn keep(old: &[Known], new: &mut [Known], broken: &[Vec<MayBe>], cut_off: bool) {
    let defined: HashSet<ObjectKey> = new.iter().flat_map(|known| known.objects.iter().cloned()).collect();
    sift(new, &defined);
    if broken.iter().all(Vec::is_empty) {
        return;
    }
    let vanished = |documents: &[Known]| -> Vec<ObjectKey> {
        held(documents).into_iter().filter(|key| !defined.contains(*key)).cloned().collect()
    };
    let everywhere: BTreeSet<ObjectKey> = vanished(old).into_iter().collect();
    let mut near: HashMap<Range<usize>, Candidates> = HashMap::new();
    let (mut looked_at, patience) = (0, 4 * weight(old));
    for (j, place) in around(&places(old, new), old.len()).into_iter().enumerate() {
        let parts = broken.get(j).map(Vec::as_slice).unwrap_or_default();
        if parts.is_empty() {
            continue;
        }
        let last = cut_off && j + 1 == broken.len();
        // Documents that changed their order say nothing of where this one was.
        let mut range = match (last, place) {
            (true, (after, _)) => after..old.len(),
            (false, (after, before)) if after <= before => after..before,
            _ => 0..old.len(),
        };
        if !near.contains_key(&range) {
            // Nor do those of which there is no end of different places.
            if looked_at <= patience {
                looked_at += weight(&old[range.clone()]);
            }
            if looked_at > patience {
                range = 0..old.len();
            }
        }
        let near = near.entry(range.clone()).or_insert_with(|| Candidates::new(vanished(&old[range])));
        let mut kept = Kept::default();
        for part in parts {
            match part {
                _ if last => kept.add(&near.all),
                MayBe::Object(key) => kept.named.extend(everywhere.get(key)),
                MayBe::Text(text) => near.meant(text).into_iter().for_each(|keys| kept.add(keys)),
            }
        }
        new[j].kept.iter().for_each(|keys| kept.add(keys));
        new[j].kept = kept.finish();
    }
}

/// What a document is going to keep. A list that several of its parts may mean is there once.
#[derive(Default)]
struct Kept<'a> {
    lists: Vec<Arc<[ObjectKey]>>,
    seen: HashSet<*const ObjectKey>,
    /// Objects that its parts name.
    named: BTreeSet<&'a ObjectKey>,
}

impl Kept<'_> {
    fn add(&mut self, keys: &Arc<[ObjectKey]>) {
        if !keys.is_empty() && self.seen.insert(keys.as_ptr()) {
            self.lists.push(keys.clone());
        }
    }

    fn finish(mut self) -> Arc<[Arc<[ObjectKey]>]> {
        let named: Arc<[ObjectKey]> = std::mem::take(&mut self.named).into_iter().cloned().collect();
        self.add(&named);
        self.lists.into()
    }
}

/// What is defined again is kept no longer.
fn sift(new: &mut [Known], defined: &HashSet<ObjectKey>) {
    // With what was there before, so that no address is given twice.
    let mut sifted: HashMap<*const ObjectKey, [Arc<[ObjectKey]>; 2]> = HashMap::new();
    for known in new.iter_mut() {
        let mut is_other = false;
        let mut sift = |keys: &Arc<[ObjectKey]>| -> Arc<[ObjectKey]> {
            let [before, after] = sifted.entry(keys.as_ptr()).or_insert_with(|| {
                let is_defined = keys.iter().any(|key| defined.contains(key));
                let rest = || keys.iter().filter(|key| !defined.contains(*key)).cloned().collect();
                [keys.clone(), if is_defined { rest() } else { keys.clone() }]
            });
            is_other |= before.as_ptr() != after.as_ptr();
            after.clone()
        };
        let kept: Vec<Arc<[ObjectKey]>> = known.kept.iter().map(&mut sift).collect();
        if is_other {
            known.kept = kept.into_iter().filter(|keys| !keys.is_empty()).collect();
        }
    }
}

/// For each document, behind which old one and before which old one it stands.
fn around(places: &[Option<usize>], end: usize) -> Vec<(usize, usize)> {
    let mut around = vec![(0, end); places.len()];
    let mut after = 0;
    for (place, around) in places.iter().zip(&mut around) {
        around.0 = after;
        after = place.map_or(after, |i| i + 1);
    }
    let mut before = end;
    for (place, around) in places.iter().zip(&mut around).rev() {
        around.1 = before;
        before = place.unwrap_or(before);
    }
    around
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

/// Objects that the broken documents of one place can have been. Every list is made once, whatever
/// number of documents may mean it.
struct Candidates {
    all: Arc<[ObjectKey]>,
    by_kind: HashMap<Kind, Arc<[ObjectKey]>>,
    /// By a kind, or by none, and a name, which objects of any number of namespaces may have.
    by_name: HashMap<Option<Kind>, HashMap<String, Arc<[ObjectKey]>>>,
}

impl Candidates {
    fn new(all: Vec<ObjectKey>) -> Candidates {
        let mut by_kind: HashMap<Kind, Vec<ObjectKey>> = HashMap::new();
        let mut by_name: HashMap<Option<Kind>, HashMap<String, Vec<ObjectKey>>> = HashMap::new();
        for key in &all {
            by_kind.entry(key.0).or_default().push(key.clone());
            for kind in [None, Some(key.0)] {
                let of_kind = by_name.entry(kind).or_default();
                of_kind.entry(key.1.name().to_owned()).or_default().push(key.clone());
            }
        }
        let by_kind = by_kind.into_iter().map(|(kind, keys)| (kind, keys.into())).collect();
        let shared = |names: HashMap<String, Vec<ObjectKey>>| {
            names.into_iter().map(|(name, keys)| (name, keys.into())).collect()
        };
        let by_name = by_name.into_iter().map(|(kind, names)| (kind, shared(names))).collect();
        Candidates { all: all.into(), by_kind, by_name }
    }

    /// Those that an unreadable text can have meant: of its kind, and those that it names if it
    /// names any.
    fn meant(&self, text: &str) -> Vec<&Arc<[ObjectKey]>> {
        let (kind, of_kind) = match kind(text) {
            Said::Foreign => return Vec::new(),
            Said::Kind(kind) => (Some(kind), self.by_kind.get(&kind)),
            Said::Nothing => (None, Some(&self.all)),
        };
        let words: BTreeSet<&str> =
            text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))).collect();
        let by_name = self.by_name.get(&kind);
        let named: Vec<_> = words.iter().filter_map(|word| by_name?.get(*word)).collect();
        if named.is_empty() { of_kind.into_iter().collect() } else { named }
    }
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
    use sluice_core::model::ObjectName;

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
            (Known { content, objects, kept: Arc::default() }, Vec::from_iter(broken))
        };
        words.iter().map(one).unzip()
    }

    fn keys_kept(known: &Known) -> impl Iterator<Item = &ObjectKey> {
        known.kept.iter().flat_map(|keys| keys.iter())
    }

    /// How much memory what documents keep takes: keys, and lists of lists.
    fn size(documents: &[Known]) -> [usize; 2] {
        let lists = documents.iter().map(|known| known.kept.len()).sum();
        [kept_lists(documents).map(|keys| keys.len()).sum(), lists]
    }

    fn kept(old: &[&str], new: &[&str], cut_off: bool) -> String {
        let (old, _) = read(old);
        let (mut new, broken) = read(new);
        keep(&old, &mut new, &broken, cut_off);
        let mut names: Vec<&str> = new.iter().flat_map(keys_kept).map(|(_, name)| name.name()).collect();
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
        assert!(keys_kept(&new[0]).eq([&service("b")]));
    }

    #[test]
    fn kept_objects_stay_until_their_document_goes_or_another_defines_them() {
        let (old, _) = read(&["a", "b"]);
        let (mut broken, parts) = read(&["a", "?]"]);
        keep(&old, &mut broken, &parts, false);
        let mut later = broken.clone();
        keep(&broken, &mut later, &[Vec::new(), Vec::new()], false);
        assert!(keys_kept(&later[1]).eq([&service("b")]));
        later.push(read(&["b"]).0.remove(0));
        keep(&broken, &mut later, &[Vec::new(), Vec::new(), Vec::new()], false);
        assert!(later[1].kept.is_empty());
    }

    #[test]
    fn any_number_of_broken_documents_keep_what_vanished_once() {
        const MANY: usize = 1_000;
        let names: Vec<String> = (0..MANY).map(|n| format!("s{n}")).collect();
        let (old, _) = read(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let distinct = |known: &[Known]| (size(known)[0], held(known).len());
        // Everything is broken, in one place.
        let (mut new, broken) = read(&vec!["?]"; MANY]);
        keep(&old, &mut new, &broken, false);
        assert_eq!(distinct(&new), (MANY, MANY));
        // And again, with one that can be read.
        let before = new.clone();
        new[7] = read(&["s7"]).0.remove(0);
        keep(&before, &mut new, &vec![Vec::new(); MANY], false);
        assert_eq!(distinct(&new), (MANY - 1, MANY));
        // In as many places as there are documents, with ranges that overlap.
        let words: Vec<String> = (0..MANY / 2)
            .flat_map(|n| [format!("s{}", if n.is_multiple_of(2) { n } else { MANY - n }), "?]".to_owned()])
            .collect();
        let (mut new, broken) = read(&words.iter().map(String::as_str).collect::<Vec<_>>());
        keep(&old, &mut new, &broken, false);
        let (kept, _) = distinct(&new);
        assert!(kept <= 6 * MANY, "{kept}");
    }

    /// Services of one name in many namespaces: each broken document may have been any of them.
    #[test]
    fn a_name_that_many_namespaces_have_is_kept_once() {
        const MANY: usize = 1_000;
        let key = |name: &str, n: usize| (Kind::Service, ObjectName::new(&format!("n{n}"), name));
        let known = |content: usize, objects: Vec<ObjectKey>| Known {
            content: content as u64,
            objects: objects.into(),
            kept: Arc::default(),
        };
        let own = |n: usize| format!("own{n}");
        let old: Vec<Known> = (0..MANY).map(|n| known(n, vec![key("web", n), key(&own(n), n)])).collect();
        let text =
            |n: usize, more: &str| format!("kind: Service\nmetadata: {{name: web, namespace: n{n} {more}\n");
        for (with_own, kept) in [(false, MANY), (true, 2 * MANY)] {
            let mut new: Vec<Known> = (0..MANY).map(|n| known(MANY + n, Vec::new())).collect();
            let more = |n: usize| if with_own { own(n) } else { String::new() };
            let broken: Vec<_> = (0..MANY).map(|n| vec![MayBe::Text(text(n, &more(n)))]).collect();
            keep(&old, &mut new, &broken, false);
            assert_eq!(held(&new).len(), kept);
            assert_eq!(size(&new), [kept, kept]);
            assert_eq!(keys_kept(&new[7]).count(), MANY + usize::from(with_own));
            // And when the file changes again, with another broken document between those that stay
            // as they were.
            let before = new.clone();
            let changed =
                |n: usize| if n.is_multiple_of(2) { known(n + 9 * MANY, Vec::new()) } else { new[n].clone() };
            let mut later: Vec<Known> = (0..MANY).map(changed).collect();
            let broken: Vec<_> = broken
                .into_iter()
                .enumerate()
                .map(|(n, parts)| if n.is_multiple_of(2) { parts } else { Vec::new() })
                .collect();
            keep(&before, &mut later, &broken, false);
            let [keys, lists] = size(&later);
            assert!(keys <= 25 * MANY && lists <= 2 * MANY, "{keys} {lists}");
        }
    }

    #[test]
    fn any_number_of_broken_objects_of_a_list_are_kept_in_one_place() {
        const MANY: usize = 10_000;
        let names: Vec<String> = (0..MANY).map(|n| format!("s{n}")).collect();
        let (old, _) = read(&[&*names.join(",")]);
        let (mut new, _) = read(&["other"]);
        let objects = names.iter().map(|name| MayBe::Object(service(name)));
        let texts = (0..MANY).map(|n| MayBe::Text(format!("kind: Service\nspec: {{clusterIP: 10.0.0.{n}")));
        keep(&old, &mut new, &[objects.chain(texts).collect()], false);
        // What the objects name, and all that the texts may have been.
        assert_eq!(size(&new), [2 * MANY, 2]);
        assert_eq!(held(&new).len(), MANY + 1);
    }
}
