//! Tables of the scheduler Maglev (Eisenbud et al., NSDI 2016, section 3.4).

use sha2::{Digest, Sha256};
use sluice_common::service::{MAGLEV_SLOTS, MaglevTable};

use super::entry::address;
use crate::group::Member;

/// The order in which an endpoint wants the parts of the hash space: it begins at `next` and goes
/// on by `skip`. The number of parts is a prime, so it comes by each of them once.
struct Wishes {
    next: usize,
    skip: usize,
    slot: u16,
}

/// The table of a group whose members are given in the order of their slots.
///
/// Which endpoint has which part of the hash space depends on the set of endpoints and not on their
/// slots: all nodes send a client to the same endpoint. Of more endpoints than there are parts,
/// some get none.
pub fn table(members: &[Member]) -> Box<MaglevTable> {
    let mut slots = [0; MAGLEV_SLOTS];
    let mut wishes = wishes(members);
    let mut taken = [false; MAGLEV_SLOTS];
    let mut left = if wishes.is_empty() { 0 } else { MAGLEV_SLOTS };
    while left > 0 {
        for wish in wishes.iter_mut().take(left) {
            while taken[wish.next] {
                wish.next = (wish.next + wish.skip) % MAGLEV_SLOTS;
            }
            taken[wish.next] = true;
            slots[wish.next] = wish.slot;
        }
        left = left.saturating_sub(wishes.len());
    }
    Box::new(MaglevTable { slots, reserved: 0 })
}

/// The wishes of all endpoints in the order of their turns. That order is hashed too: it decides
/// who gets a part more than others, or none, which should not always be the lowest addresses.
fn wishes(members: &[Member]) -> Vec<Wishes> {
    let numbered = members.iter().zip(0u16..=u16::MAX);
    let mut wishes: Vec<([u64; 3], Wishes)> = numbered
        .map(|(member, slot)| {
            let hash = hash(member);
            let next = (hash[1] % MAGLEV_SLOTS as u64) as usize;
            let skip = (hash[2] % (MAGLEV_SLOTS as u64 - 1) + 1) as usize;
            (hash, Wishes { next, skip, slot })
        })
        .collect();
    wishes.sort_unstable_by_key(|(hash, _)| *hash);
    wishes.into_iter().map(|(_, wishes)| wishes).collect()
}

/// Three numbers that say nothing about each other.
fn hash((ip, port): &Member) -> [u64; 3] {
    let mut hash = Sha256::new();
    hash.update(address(*ip).octets());
    hash.update(port.to_be_bytes());
    let digest = hash.finalize();
    let mut words =
        digest.chunks_exact(8).map(|word| word.iter().fold(0u64, |n, byte| n << 8 | u64::from(*byte)));
    [(); 3].map(|()| words.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn members(count: u16) -> Vec<Member> {
        (0..count).map(|n| (IpAddr::from([10, 0, (n >> 8) as u8, n as u8]), 8080)).collect()
    }

    /// Which endpoint has which part.
    fn shares(members: &[Member]) -> Vec<Member> {
        table(members).slots.iter().map(|slot| members[usize::from(*slot)]).collect()
    }

    #[test]
    fn every_endpoint_gets_the_same_share_give_or_take_one() {
        for count in [1, 2, 3, 7, 100, 1000, 1021] {
            let members = members(count);
            let shares = shares(&members);
            for member in &members {
                let share = shares.iter().filter(|other| *other == member).count();
                let fair = MAGLEV_SLOTS / usize::from(count);
                assert!((fair..=fair + 1).contains(&share), "{share} of {count}");
            }
        }
    }

    #[test]
    fn the_order_of_slots_does_not_matter() {
        let members = members(50);
        let reversed: Vec<Member> = members.iter().rev().copied().collect();
        assert_eq!(shares(&members), shares(&reversed));
    }

    #[test]
    fn the_table_is_the_same_in_every_version() {
        assert_eq!(table(&members(3)).slots[..12], [2, 0, 0, 2, 2, 1, 0, 2, 2, 0, 1, 2]);
    }

    #[test]
    fn removing_an_endpoint_moves_few_of_the_others() {
        for count in [2, 5, 20, 100] {
            let all = members(count);
            let before = shares(&all);
            let fewer: Vec<Member> = all[..all.len() - 1].to_vec();
            let after = shares(&fewer);
            let gone = all.last().unwrap();
            let moved = before.iter().zip(&after).filter(|(was, is)| was != is && *was != gone).count();
            assert!(moved < MAGLEV_SLOTS / 10, "{moved} of {MAGLEV_SLOTS} moved with {count} endpoints");
        }
    }

    #[test]
    fn no_endpoints_and_too_many_endpoints_give_a_table_all_the_same() {
        assert_eq!(table(&[]).slots, [0; MAGLEV_SLOTS]);
        let many = members(3000);
        let mut shares = shares(&many);
        shares.sort_unstable();
        shares.dedup();
        assert_eq!(shares.len(), MAGLEV_SLOTS);
    }
}
