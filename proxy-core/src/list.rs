//! Sorted lists of which versions share what is the same in both: one endpoint of 250,000 that
//! changes costs its piece, and a pointer for each of the others.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use rustc_hash::FxHashSet;

/// So many members a piece has when it is made; it is cut in pieces again when it has twice as
/// many.
const PIECE: usize = 128;

/// A sorted list that never changes. Copies of it and edited versions share their pieces.
#[derive(Clone)]
pub struct List<T> {
    pieces: Pieces<T>,
    len: usize,
}

/// Most lists are short, and pay for one allocation only.
#[derive(Clone)]
enum Pieces<T> {
    One(Arc<[T]>),
    /// None of them is empty.
    Many(Arc<[Arc<[T]>]>),
}

impl<T> List<T> {
    /// How many members there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All members, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> + Clone {
        self.pieces().iter().flat_map(|piece| piece.iter())
    }

    /// The member at a place. Costs a step for each piece before it.
    pub fn get(&self, mut at: usize) -> Option<&T> {
        for piece in self.pieces() {
            match piece.get(at) {
                Some(found) => return Some(found),
                None => at -= piece.len(),
            }
        }
        None
    }

    /// The members with a key, by which the list is sorted too.
    pub fn with<K: Ord>(&self, wanted: K, key: impl Fn(&T) -> K) -> impl Iterator<Item = &T> {
        let pieces = self.pieces();
        let at = pieces.partition_point(|piece| piece.last().is_some_and(|last| key(last) < wanted));
        let begin = pieces.get(at).map_or(0, |piece| piece.partition_point(|member| key(member) < wanted));
        let rest = pieces[at..].iter().flat_map(|piece| piece.iter()).skip(begin);
        rest.take_while(move |member| key(member) == wanted)
    }

    /// The place of the first member with a key.
    pub(crate) fn place<K: Ord>(&self, wanted: &K, key: impl Fn(&T) -> K) -> Option<usize> {
        let mut before = 0;
        for piece in self.pieces() {
            if piece.last().is_some_and(|last| key(last) >= *wanted) {
                let at = piece.partition_point(|member| key(member) < *wanted);
                return piece.get(at).filter(|member| key(member) == *wanted).map(|_| before + at);
            }
            before += piece.len();
        }
        None
    }

    /// How many members this list has in the very pieces of another one.
    pub fn shared_with(&self, other: &List<T>) -> usize {
        let known: FxHashSet<*const [T]> = other.pieces().iter().map(Arc::as_ptr).collect();
        self.pieces()
            .iter()
            .filter(|piece| known.contains(&Arc::as_ptr(piece)))
            .map(|piece| piece.len())
            .sum()
    }

    fn pieces(&self) -> &[Arc<[T]>] {
        match &self.pieces {
            Pieces::One(_) if self.len == 0 => &[],
            Pieces::One(piece) => std::slice::from_ref(piece),
            Pieces::Many(pieces) => pieces,
        }
    }

    fn of_pieces(mut pieces: Vec<Arc<[T]>>) -> Self {
        let len = pieces.iter().map(|piece| piece.len()).sum();
        let pieces = match (pieces.len(), pieces.pop()) {
            (_, None) => return List::default(),
            (1, Some(only)) => Pieces::One(only),
            (_, Some(last)) => {
                pieces.push(last);
                Pieces::Many(pieces.into())
            }
        };
        List { pieces, len }
    }
}

impl<T: Copy + Ord> List<T> {
    /// The list without some members, and with others that it has not. Both are sorted.
    pub fn edited(&self, gone: &[T], came: &[T]) -> List<T> {
        let (mut gone, mut came, mut rest) = (gone, came, self.pieces());
        let mut edited = Edited(Vec::with_capacity(rest.len() + 1));
        while let Some(next) = gone.first().into_iter().chain(came.first()).min() {
            // Where it is, or would be: in the last piece that begins before it, or else in the
            // first one.
            let at = rest.partition_point(|piece| piece.first() <= Some(next)).saturating_sub(1);
            edited.keep(&rest[..at]);
            let (piece, behind) = rest[at..].split_first().map_or((&[][..], &[][..]), |(p, rest)| (p, rest));
            let end = behind.first().and_then(|piece| piece.first());
            edited.push(changed(piece, before(&mut gone, end), before(&mut came, end)));
            rest = behind;
        }
        edited.keep(rest);
        List::of_pieces(edited.0)
    }

    /// What is only in this list and what is only in another one. Costs what the pieces cost that
    /// they do not share.
    pub fn difference(&self, other: &List<T>) -> (Vec<T>, Vec<T>) {
        let (mut gone, mut came) = (Vec::new(), Vec::new());
        let (mut old, mut new) = (Cursor::of(self), Cursor::of(other));
        loop {
            skip_shared(&mut old, &mut new);
            let order = match (old.get(), new.get()) {
                (None, None) => return (gone, came),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(first), Some(other)) => first.cmp(other),
            };
            if order == Ordering::Less {
                gone.extend(old.get());
            }
            if order == Ordering::Greater {
                came.extend(new.get());
            }
            if order != Ordering::Greater {
                old.advance();
            }
            if order != Ordering::Less {
                new.advance();
            }
        }
    }
}

/// The pieces of an edited list.
struct Edited<T>(Vec<Arc<[T]>>);

impl<T: Copy> Edited<T> {
    /// Adds the pieces from one that was changed to the next, as they are; but a small one is
    /// joined to that before it.
    fn keep(&mut self, pieces: &[Arc<[T]>]) {
        match (self.0.last(), pieces) {
            (Some(last), [first, others @ ..]) if last.len() + first.len() <= PIECE => {
                self.push(first.to_vec());
                self.0.extend_from_slice(others);
            }
            _ => self.0.extend_from_slice(pieces),
        }
    }

    /// Adds a piece that was changed. Small ones are joined to those before them, or there would be
    /// more and more.
    fn push(&mut self, mut piece: Vec<T>) {
        if let Some(last) = self.0.last().filter(|last| last.len() + piece.len() <= PIECE) {
            piece.splice(..0, last.iter().copied());
            self.0.pop();
        }
        let cut = if piece.len() >= 2 * PIECE { PIECE } else { piece.len().max(1) };
        self.0.extend(piece.chunks(cut).map(Arc::from));
    }
}

/// Takes away what comes before a member.
fn before<'a, T: Ord>(list: &mut &'a [T], end: Option<&T>) -> &'a [T] {
    let (taken, rest) = list.split_at(list.partition_point(|member| end.is_none_or(|end| member < end)));
    *list = rest;
    taken
}

fn changed<T: Copy + Ord>(piece: &[T], mut gone: &[T], mut came: &[T]) -> Vec<T> {
    let mut all = Vec::with_capacity(piece.len() + came.len());
    for member in piece {
        all.extend_from_slice(before(&mut came, Some(member)));
        before(&mut gone, Some(member));
        if gone.first() != Some(member) {
            all.push(*member);
        }
    }
    all.extend_from_slice(came);
    all
}

/// A place in a list.
struct Cursor<'a, T> {
    pieces: &'a [Arc<[T]>],
    at: usize,
}

impl<'a, T> Cursor<'a, T> {
    fn of(list: &'a List<T>) -> Self {
        Cursor { pieces: list.pieces(), at: 0 }
    }

    fn get(&self) -> Option<&'a T> {
        self.pieces.first()?.get(self.at)
    }

    fn advance(&mut self) {
        self.at += 1;
        if self.pieces.first().is_some_and(|piece| self.at == piece.len()) {
            self.skip_piece();
        }
    }

    fn skip_piece(&mut self) {
        (self.pieces, self.at) = (&self.pieces[1..], 0);
    }
}

/// Goes on behind the pieces that are one and the same in both.
fn skip_shared<T>(one: &mut Cursor<'_, T>, other: &mut Cursor<'_, T>) {
    while one.at == 0
        && other.at == 0
        && let (Some(first), Some(second)) = (one.pieces.first(), other.pieces.first())
        && Arc::ptr_eq(first, second)
    {
        one.skip_piece();
        other.skip_piece();
    }
}

/// What is only in the one and only in the other of two sorted slices.
pub(crate) fn difference<T: Copy + Ord>(old: &[T], new: &[T]) -> (Vec<T>, Vec<T>) {
    // Most lists differ in one place, and comparing is much faster than merging.
    let start = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let (old, new) = (&old[start..], &new[start..]);
    let end = old.iter().rev().zip(new.iter().rev()).take_while(|(old, new)| old == new).count();
    let (mut old, mut new) = (&old[..old.len() - end], &new[..new.len() - end]);
    let (mut gone, mut came) = (Vec::new(), Vec::new());
    while let ([first, old_rest @ ..], [other, new_rest @ ..]) = (old, new) {
        match first.cmp(other) {
            Ordering::Less => {
                gone.push(*first);
                old = old_rest;
            }
            Ordering::Greater => {
                came.push(*other);
                new = new_rest;
            }
            Ordering::Equal => (old, new) = (old_rest, new_rest),
        }
    }
    gone.extend_from_slice(old);
    came.extend_from_slice(new);
    (gone, came)
}

impl<T> Default for List<T> {
    fn default() -> Self {
        List { pieces: Pieces::One(Arc::default()), len: 0 }
    }
}

/// Of members that are sorted.
impl<T: Copy> From<&[T]> for List<T> {
    fn from(sorted: &[T]) -> Self {
        let cut = if sorted.len() >= 2 * PIECE { PIECE } else { sorted.len().max(1) };
        List::of_pieces(sorted.chunks(cut).map(Arc::from).collect())
    }
}

/// Of members that are sorted.
impl<T: Copy, const N: usize> From<[T; N]> for List<T> {
    fn from(sorted: [T; N]) -> Self {
        List::from(&sorted[..])
    }
}

/// Of members that are sorted.
impl<T: Copy> FromIterator<T> for List<T> {
    fn from_iter<I: IntoIterator<Item = T>>(sorted: I) -> Self {
        List::from(&sorted.into_iter().collect::<Vec<T>>()[..])
    }
}

impl<T: PartialEq> PartialEq for List<T> {
    fn eq(&self, other: &Self) -> bool {
        let (mut one, mut two) = (Cursor::of(self), Cursor::of(other));
        self.len == other.len
            && loop {
                skip_shared(&mut one, &mut two);
                match (one.get(), two.get()) {
                    (Some(first), Some(second)) if first == second => {}
                    (None, None) => break true,
                    _ => break false,
                }
                one.advance();
                two.advance();
            }
    }
}

impl<T: Eq> Eq for List<T> {}

impl<T: PartialEq, const N: usize> PartialEq<[T; N]> for List<T> {
    fn eq(&self, other: &[T; N]) -> bool {
        self.iter().eq(other)
    }
}

impl<T: fmt::Debug> fmt::Debug for List<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn check(list: &List<u32>, wanted: &BTreeSet<u32>) {
        assert!(list.iter().eq(wanted), "{list:?} is not {wanted:?}");
        assert_eq!((list.len(), list.is_empty()), (wanted.len(), wanted.is_empty()));
        assert!(list.pieces().iter().all(|piece| !piece.is_empty() && piece.len() < 2 * PIECE));
        let two = list.pieces().windows(2).filter(|two| two[0].len() + two[1].len() <= PIECE / 2).count();
        assert!(two <= 1 + list.pieces().len() / 2, "too many small pieces");
        for (at, member) in wanted.iter().enumerate() {
            assert_eq!((list.get(at), list.place(member, |m| *m)), (Some(member), Some(at)));
            assert!(list.with(*member, |m| *m).eq([member]));
        }
        assert_eq!(list.get(wanted.len()), None);
    }

    #[test]
    fn one_change_rebuilds_one_piece() {
        let all: List<u32> = (0..100_000).map(|n| 2 * n).collect();
        let less = all.edited(&[5000], &[]);
        let more = less.edited(&[], &[5001]);
        let made = |a: &List<u32>, b: &List<u32>| b.len() - b.shared_with(a);
        assert_eq!((made(&all, &less), made(&less, &more)), (PIECE - 1, PIECE));
        assert_eq!(all.difference(&more), (vec![5000], vec![5001]));
        assert_ne!(all, more);
        assert_eq!(more.edited(&[5001], &[5000]), all);
    }

    #[test]
    fn members_with_one_key_are_found_over_the_borders_of_pieces() {
        let list: List<(u32, u32)> = (0..1000).map(|n| (n / 300, n)).collect();
        for key in 0..4 {
            let found: Vec<u32> = list.with(key, |m| m.0).map(|m| m.1).collect();
            assert_eq!(found, (key * 300..(key * 300 + 300).min(1000)).collect::<Vec<_>>());
        }
        assert_eq!((list.with(4, |m| m.0).count(), list.place(&2, |m| m.0)), (0, Some(600)));
        assert_eq!(List::<u32>::default().with(1, |m| *m).count(), 0);
    }

    #[test]
    fn pieces_that_get_small_are_joined_from_whichever_end_members_go() {
        for backwards in [false, true] {
            let all: List<u32> = (0..100 * PIECE as u32).collect();
            let mut list = all;
            let go = |n: &u32| !n.is_multiple_of(PIECE as u32);
            let mut gone: Vec<u32> = list.iter().copied().filter(go).collect();
            if backwards {
                gone.reverse();
            }
            for members in gone.chunks(7) {
                let mut members = members.to_vec();
                members.sort_unstable();
                list = list.edited(&members, &[]);
            }
            assert_eq!((list.len(), list.pieces().len()), (100, 1), "backwards: {backwards}");
        }
    }

    proptest! {
        #[test]
        fn edits_end_where_making_anew_does(
            first in proptest::collection::btree_set(0u32..2000, 0..900),
            edits in proptest::collection::vec(
                (0u32..2000, 1u32..700, proptest::collection::btree_set(0u32..2000, 0..300)), 1..6),
        ) {
            let mut wanted = first;
            let mut list: List<u32> = wanted.iter().copied().collect();
            check(&list, &wanted);
            for (from, span, others) in edits {
                // What is there goes, what is not comes; and a whole stretch goes.
                let gone: BTreeSet<u32> = wanted.iter().copied()
                    .filter(|m| others.contains(m) || (from..from + span).contains(m)).collect();
                let came: BTreeSet<u32> = others.difference(&wanted).copied().collect();
                let next: BTreeSet<u32> = wanted.difference(&gone).chain(&came).copied().collect();
                let flat = |set: &BTreeSet<u32>| set.iter().copied().collect::<Vec<u32>>();
                let edited = list.edited(&flat(&gone), &flat(&came));
                check(&edited, &next);
                let anew: List<u32> = next.iter().copied().collect();
                prop_assert_eq!(&edited, &anew);
                prop_assert_eq!(list == edited, wanted == next);
                prop_assert_eq!(list.difference(&edited), (flat(&gone), flat(&came)));
                prop_assert_eq!(list.difference(&anew), (flat(&gone), flat(&came)));
                prop_assert_eq!(difference(&flat(&wanted), &flat(&next)), (flat(&gone), flat(&came)));
                (list, wanted) = (edited, next);
            }
        }
    }
}
