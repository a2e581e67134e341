//! Which slot of a group each endpoint has.
//!
//! A backend that picks by slot number needs slots 0..N without holes. Keeping survivors where they
//! are makes a change of one endpoint cost one or two slots, whatever the size of the group.

/// Arranges `next` so that members of `previous` keep their slot where that slot still exists;
/// holes are filled with members from beyond the new end, then with new members, each in their
/// given order.
///
/// `next` must not hold duplicates. The result is a permutation of `next`.
pub fn arrange<T: Clone + Eq + std::hash::Hash>(previous: &[T], next: &[T]) -> Vec<T> {
    let wanted: rustc_hash::FxHashSet<&T> = next.iter().collect();
    let mut slots: Vec<Option<T>> = vec![None; next.len()];
    let mut kept: rustc_hash::FxHashSet<&T> = rustc_hash::FxHashSet::default();
    for (slot, member) in slots.iter_mut().zip(previous) {
        if wanted.contains(member) && kept.insert(member) {
            *slot = Some(member.clone());
        }
    }
    let beyond = previous.iter().skip(next.len()).filter(|m| wanted.contains(m));
    let mut rest: Vec<&T> = Vec::new();
    for member in beyond.chain(next) {
        if kept.insert(member) {
            rest.push(member);
        }
    }
    let mut rest = rest.into_iter().cloned();
    slots.into_iter().filter_map(|slot| slot.or_else(|| rest.next())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn growing_appends() {
        assert_eq!(arrange(&[2, 1], &[1, 2, 3]), [2, 1, 3]);
    }

    #[test]
    fn shrinking_moves_the_last_slot_into_the_hole() {
        assert_eq!(arrange(&[1, 2, 3, 4], &[1, 3, 4]), [1, 4, 3]);
    }

    #[test]
    fn a_replaced_member_leaves_the_others_alone() {
        assert_eq!(arrange(&[1, 2, 3], &[1, 3, 9]), [1, 9, 3]);
    }

    proptest! {
        #[test]
        fn the_result_is_a_permutation_and_moves_no_survivor_without_need(
            previous in proptest::collection::hash_set(0u8..40, 0..20),
            next in proptest::collection::btree_set(0u8..40, 0..20),
        ) {
            let previous: Vec<u8> = previous.into_iter().collect();
            let next: Vec<u8> = next.into_iter().collect();
            let slots = arrange(&previous, &next);
            let mut sorted = slots.clone();
            sorted.sort_unstable();
            prop_assert_eq!(&sorted, &next);
            for (slot, member) in previous.iter().enumerate() {
                if slot < next.len() && next.contains(member) {
                    prop_assert_eq!(&slots[slot], member);
                }
            }
        }
    }
}
