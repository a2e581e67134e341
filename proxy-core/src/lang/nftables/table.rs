//! Tables, as their owners declare them.

use std::fmt;

use super::set::{Set, SetId, SetSpec};

/// What passes through a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableFamily {
    /// Packets of IPv4 and IPv6.
    Inet,
    /// Frames that pass bridges.
    Bridge,
}

/// What identifies a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId {
    /// What passes through it.
    pub family: TableFamily,
    /// Its name.
    pub name: &'static str,
}

impl TableId {
    /// A table for packets of IPv4 and IPv6.
    pub const fn inet(name: &'static str) -> Self {
        TableId { family: TableFamily::Inet, name }
    }

    /// A table for frames that pass bridges.
    pub const fn bridge(name: &'static str) -> Self {
        TableId { family: TableFamily::Bridge, name }
    }

    /// The sets of this table. Their order is that in which new elements are written: what is
    /// looked up late in the packet path comes first, so that nothing leads to what is not there.
    pub const fn sets<const N: usize>(self, specs: [SetSpec; N]) -> [Set; N] {
        let mut sets = [Set::new(self, 0, specs[0]); N];
        let mut rank = 1;
        while rank < N {
            sets[rank] = Set::new(self, rank as u16, specs[rank]);
            rank += 1;
        }
        sets
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            TableFamily::Inet => "inet",
            TableFamily::Bridge => "bridge",
        };
        write!(f, "{family} {}", self.name)
    }
}

/// A table of ours, with all sets that it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// What identifies it.
    pub id: TableId,
    sets: &'static [Set],
}

impl Table {
    /// A table and its sets, which [`TableId::sets`] has made. In a constant it does not compile
    /// if they are another table's, or if two have one name.
    pub const fn new(id: TableId, sets: &'static [Set]) -> Self {
        let mut rank = 0;
        while rank < sets.len() {
            let set = sets[rank].id();
            assert!(is_same(set.table(), id), "sets of another table");
            let mut other = 0;
            while other < rank {
                assert!(!is_text(set.name(), sets[other].id().name()), "two sets of one name");
                other += 1;
            }
            rank += 1;
        }
        Table { id, sets }
    }

    /// The same under another name: operations can be tried there.
    #[must_use]
    pub const fn named(self, name: &'static str) -> Self {
        Table { id: TableId { name, ..self.id }, ..self }
    }

    /// Its sets, in the order of writing.
    pub fn sets(&self) -> impl ExactSizeIterator<Item = SetId> + use<> {
        self.sets.iter().map(Set::id)
    }

    /// The set of a name.
    pub fn set(&self, name: &str) -> Option<SetId> {
        self.sets().find(|set| set.name() == name)
    }
}

const fn is_same(one: TableId, other: TableId) -> bool {
    matches!(
        (one.family, other.family),
        (TableFamily::Inet, TableFamily::Inet) | (TableFamily::Bridge, TableFamily::Bridge)
    ) && is_text(one.name, other.name)
}

/// Equality, which constants cannot have of a trait.
const fn is_text(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// As nft writes it: `inet name`.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.fmt(f)
    }
}
