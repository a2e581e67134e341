//! Which objects somebody reads. Pure.

use std::collections::BTreeMap;

use sluice_core::kind::Kind;

/// Which objects of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// The own Node, and what is on it.
    ThisNode,
    /// All.
    Cluster,
}

/// Kinds of objects, and which of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kinds(BTreeMap<Kind, Reach>);

impl Kinds {
    /// Those of both: where one reads all objects of a kind, all.
    #[must_use]
    pub fn and(mut self, other: Kinds) -> Kinds {
        for (kind, reach) in other.0 {
            let known = self.0.entry(kind).or_insert(reach);
            *known = reach.max(*known);
        }
        self
    }

    /// Whether objects of a kind are among them.
    pub fn has(&self, kind: Kind) -> bool {
        self.0.contains_key(&kind)
    }

    /// All, in the order of [`Kind::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Kind, Reach)> {
        self.0.iter().map(|(kind, reach)| (*kind, *reach))
    }
}

impl FromIterator<(Kind, Reach)> for Kinds {
    fn from_iter<I: IntoIterator<Item = (Kind, Reach)>>(kinds: I) -> Kinds {
        Kinds(kinds.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_reads_all_objects_of_a_kind_counts() {
        let one = || Kinds::from_iter([(Kind::Service, Reach::Cluster), (Kind::Node, Reach::ThisNode)]);
        let other = || Kinds::from_iter([(Kind::Node, Reach::Cluster)]);
        let both = Kinds::from_iter([(Kind::Service, Reach::Cluster), (Kind::Node, Reach::Cluster)]);
        assert_eq!((one().and(other()), other().and(one())), (both.clone(), both));
        assert!(one().has(Kind::Node) && !other().has(Kind::Service));
    }
}
