//! What others have put into a table of ours, as far as notices tell, so that what they do to it
//! later is known to be no harm.
//!
//! Harm is whatever may touch what is ours. In doubt it is harm: a pass that finds nothing costs
//! little.

use rustc_hash::{FxHashMap, FxHashSet};

/// What a notice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// An element.
    Element {
        /// Its set.
        set: &'a str,
        /// Its key.
        key: &'a [u8],
    },
    /// A set or map.
    Set {
        /// Its name.
        name: &'a str,
        /// Its number in the table; later ones have greater ones.
        handle: u64,
    },
    /// A chain.
    Chain {
        /// Its name.
        name: &'a str,
        /// Its number in the table; later ones have greater ones.
        handle: u64,
        /// Whether packets enter it by themselves.
        is_base: bool,
    },
    /// A rule.
    Rule {
        /// Its chain.
        chain: &'a str,
    },
    /// The table itself.
    Table,
    /// A kind of object of which we have none.
    Alien,
}

/// What was done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It was added, or changed.
    Put,
    /// It was removed.
    Removed,
}

/// So many are remembered; what is done to others counts as harm.
const LIMIT: usize = 10_000;

/// What is not ours.
#[derive(Debug, Default)]
pub struct Strangers {
    elements: FxHashMap<String, FxHashSet<Vec<u8>>>,
    chains: FxHashSet<String>,
    sets: FxHashSet<String>,
    count: usize,
    /// The greatest handle seen: what has a lower one was there before.
    newest: u64,
}

impl Strangers {
    /// Nobody's things are known; no chain and no set of the table has a greater handle than this
    /// one.
    pub fn new(newest: u64) -> Self {
        Strangers { newest, ..Strangers::default() }
    }

    /// Takes something in that we did ourselves: what it was about is ours now, or gone.
    pub fn we_did(&mut self, subject: Subject<'_>) {
        self.forget(subject);
        self.is_new(subject);
    }

    /// Takes something in that others did. Returns whether it may have touched what is ours.
    pub fn others_did(&mut self, deed: Deed, subject: Subject<'_>) -> bool {
        let is_new = self.is_new(subject);
        let was_theirs = self.knows(subject);
        match (deed, subject) {
            (_, Subject::Alien) => false,
            (_, Subject::Table) => {
                *self = Strangers::new(if deed == Deed::Removed { 0 } else { self.newest });
                true
            }
            (_, Subject::Rule { .. }) => !was_theirs,
            (Deed::Removed, _) => {
                self.forget(subject);
                !was_theirs
            }
            (Deed::Put, Subject::Chain { is_base: true, .. }) => true,
            (Deed::Put, Subject::Chain { .. } | Subject::Set { .. }) if !is_new => !was_theirs,
            (Deed::Put, _) => {
                self.remember(subject);
                false
            }
        }
    }

    /// Whether a chain or set came after all others.
    fn is_new(&mut self, subject: Subject<'_>) -> bool {
        let (Subject::Chain { handle, .. } | Subject::Set { handle, .. }) = subject else { return false };
        let is_new = handle > self.newest;
        self.newest = self.newest.max(handle);
        is_new
    }

    fn knows(&self, subject: Subject<'_>) -> bool {
        match subject {
            Subject::Element { set, key } => {
                self.sets.contains(set) || self.elements.get(set).is_some_and(|keys| keys.contains(key))
            }
            Subject::Chain { name, .. } | Subject::Rule { chain: name } => self.chains.contains(name),
            Subject::Set { name, .. } => self.sets.contains(name),
            Subject::Table | Subject::Alien => false,
        }
    }

    fn remember(&mut self, subject: Subject<'_>) {
        if self.count >= LIMIT {
            return;
        }
        let is_new = match subject {
            Subject::Element { set, .. } if self.sets.contains(set) => false,
            Subject::Element { set, key } => {
                self.elements.entry(set.to_owned()).or_default().insert(key.to_owned())
            }
            Subject::Chain { name, .. } => self.chains.insert(name.to_owned()),
            Subject::Set { name, .. } => self.sets.insert(name.to_owned()),
            Subject::Rule { .. } | Subject::Table | Subject::Alien => false,
        };
        self.count += usize::from(is_new);
    }

    fn forget(&mut self, subject: Subject<'_>) {
        let was_known = match subject {
            Subject::Element { set, key } => self.elements.get_mut(set).is_some_and(|keys| keys.remove(key)),
            Subject::Chain { name, .. } => self.chains.remove(name),
            Subject::Set { name, .. } => self.sets.remove(name),
            Subject::Rule { .. } | Subject::Alien => false,
            Subject::Table => {
                *self = Strangers::default();
                false
            }
        };
        self.count -= usize::from(was_known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: u64 = 100;

    fn element(key: &[u8]) -> Subject<'_> {
        Subject::Element { set: "guests4", key }
    }

    fn chain(name: &str, handle: u64) -> Subject<'_> {
        Subject::Chain { name, handle, is_base: false }
    }

    /// Whether others do harm with one thing after the other.
    fn harms(strangers: &mut Strangers, deeds: &[(Deed, Subject<'_>)]) -> Vec<bool> {
        deeds.iter().map(|(deed, subject)| strangers.others_did(*deed, *subject)).collect()
    }

    #[test]
    fn what_others_add_and_take_away_again_is_no_harm() {
        let mut strangers = Strangers::new(OURS);
        let theirs = [element(b"a"), chain("x", 101), Subject::Set { name: "s", handle: 102 }];
        let inside = [
            Subject::Rule { chain: "x" },
            Subject::Element { set: "s", key: b"b" },
            Subject::Alien,
            chain("x", 101),
        ];
        for deed in [Deed::Put, Deed::Removed] {
            for subject in inside.iter().filter(|_| deed == Deed::Removed) {
                assert!(!strangers.others_did(Deed::Put, *subject), "{subject:?}");
                if !matches!(subject, Subject::Chain { .. }) {
                    assert!(!strangers.others_did(Deed::Removed, *subject), "{subject:?}");
                }
            }
            for subject in &theirs {
                assert!(!strangers.others_did(deed, *subject), "{deed:?} {subject:?}");
            }
        }
        assert_eq!(strangers.count, 0);
    }

    #[test]
    fn what_is_done_to_ours_is_harm() {
        let ours = [
            (Deed::Removed, element(b"a")),
            (Deed::Removed, chain("x", 5)),
            (Deed::Removed, Subject::Set { name: "s", handle: 6 }),
            (Deed::Removed, Subject::Rule { chain: "x" }),
            (Deed::Put, Subject::Rule { chain: "x" }),
            // Renamed, or changed.
            (Deed::Put, chain("y", 5)),
            (Deed::Put, Subject::Set { name: "s", handle: 6 }),
            (Deed::Put, Subject::Chain { name: "b", handle: 101, is_base: true }),
            (Deed::Put, Subject::Table),
            (Deed::Removed, Subject::Table),
        ];
        for deed in ours {
            assert_eq!(harms(&mut Strangers::new(OURS), &[deed]), [true], "{deed:?}");
        }
    }

    #[test]
    fn an_element_of_ours_that_others_exchanged_is_ours_again_when_it_is_back() {
        let mut strangers = Strangers::new(OURS);
        let exchange = [(Deed::Removed, element(b"a")), (Deed::Put, element(b"a"))];
        assert_eq!(harms(&mut strangers, &exchange), [true, false]);
        strangers.we_did(element(b"a"));
        assert_eq!(harms(&mut strangers, &exchange), [true, false]);
    }

    #[test]
    fn a_chain_of_our_own_is_older_than_what_comes_later() {
        let mut strangers = Strangers::new(OURS);
        strangers.we_did(chain("class", 105));
        assert_eq!(harms(&mut strangers, &[(Deed::Put, chain("renamed", 105))]), [true]);
        assert_eq!(harms(&mut strangers, &[(Deed::Put, chain("theirs", 106))]), [false]);
    }

    #[test]
    fn memory_is_bounded_and_what_is_not_remembered_counts_as_ours() {
        let mut strangers = Strangers::new(OURS);
        for n in 0..2 * LIMIT as u32 {
            assert!(!strangers.others_did(Deed::Put, element(&n.to_ne_bytes())));
        }
        assert_eq!(strangers.count, LIMIT);
        assert!(strangers.others_did(Deed::Removed, element(&(LIMIT as u32).to_ne_bytes())));
        assert!(!strangers.others_did(Deed::Removed, element(&0_u32.to_ne_bytes())));
    }

    #[test]
    fn a_removed_table_resets_the_counts() {
        let mut strangers = Strangers::new(OURS);
        assert!(!strangers.others_did(Deed::Put, element(b"a")));
        assert!(strangers.others_did(Deed::Removed, Subject::Table));
        assert!(!strangers.others_did(Deed::Put, chain("x", 1)));
        strangers.we_did(Subject::Table);
        assert_eq!((strangers.count, strangers.newest), (0, 0));
    }
}
