//! One generic difference between two ordered lists of keyed objects.

use std::cmp::Ordering;

/// A kernel object as a value: a key that identifies it, and a content that may change under that
/// key.
pub trait Keyed {
    /// What identifies the object.
    type Key<'a>: Ord
    where
        Self: 'a;
    /// The object's key.
    fn key(&self) -> Self::Key<'_>;
    /// Whether two objects with the same key are the same.
    fn same_content(&self, other: &Self) -> bool;
}

/// What turns one list of objects into another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta<T> {
    /// Objects whose key is new.
    pub create: Vec<T>,
    /// Objects whose key stays and whose content changed: the old one, then the new one.
    pub update: Vec<(T, T)>,
    /// Objects whose key is gone.
    pub delete: Vec<T>,
}

impl<T> Default for Delta<T> {
    fn default() -> Self {
        Delta { create: Vec::new(), update: Vec::new(), delete: Vec::new() }
    }
}

impl<T> Delta<T> {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.create.is_empty() && self.update.is_empty() && self.delete.is_empty()
    }

    /// The number of objects created, updated or deleted.
    pub fn len(&self) -> usize {
        self.create.len() + self.update.len() + self.delete.len()
    }
}

/// The difference between two lists, each sorted by key and without duplicate keys.
pub fn diff<T: Keyed>(old: Vec<T>, new: Vec<T>) -> Delta<T> {
    let mut delta = Delta::default();
    let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return delta,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(o), Some(n)) => o.key().cmp(&n.key()),
        };
        match order {
            Ordering::Less => delta.delete.extend(old.next()),
            Ordering::Greater => delta.create.extend(new.next()),
            Ordering::Equal => {
                if let (Some(o), Some(n)) = (old.next(), new.next())
                    && !o.same_content(&n)
                {
                    delta.update.push((o, n));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Clone)]
    struct Pair(u8, char);

    impl Keyed for Pair {
        type Key<'a> = u8;
        fn key(&self) -> u8 {
            self.0
        }
        fn same_content(&self, other: &Self) -> bool {
            self.1 == other.1
        }
    }

    #[test]
    fn lists_are_compared_by_key_and_content() {
        let old = vec![Pair(1, 'a'), Pair(2, 'b'), Pair(4, 'd')];
        let new = vec![Pair(0, 'z'), Pair(2, 'B'), Pair(4, 'd'), Pair(5, 'e')];
        let delta = diff(old.clone(), new);
        assert_eq!(delta.create, [Pair(0, 'z'), Pair(5, 'e')]);
        assert_eq!(delta.update, [(Pair(2, 'b'), Pair(2, 'B'))]);
        assert_eq!(delta.delete, [Pair(1, 'a')]);
        assert_eq!(delta.len(), 4);
        assert!(diff(old.clone(), old).is_empty());
    }
}
