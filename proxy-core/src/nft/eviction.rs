//! Which clients are forgotten when the set of those that are remembered (ClientIP affinity) gets full.
//!
//! The set is one for all Services of a family, so a Service with very many clients would keep the others' from being remembered.
//! Each Service port has a share, as large as there is room for: those that have most give away until none of them has more than
//! the others, and those that have less than that lose nobody. Of one Service port those go first that were silent longest.

use std::collections::BTreeMap;

use super::object::Key;

/// A client that is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its key in the set: affinity id, address.
    pub key: Key,
    /// For how many milliseconds more, if it does not come again. All clients of one affinity id have the same timeout, so the least
    /// here has been silent longest.
    pub left: u64,
}

impl Client {
    /// The service port that it is remembered for.
    fn share(&self) -> &[u8] {
        let key = self.key.as_slice();
        key.get(..AFFINITY_ID).unwrap_or(key)
    }
}

/// Bytes of the affinity id, which a key begins with.
const AFFINITY_ID: usize = 8;
/// Who ends within so many milliseconds need not be forgotten; to try it would be in vain for some.
const SOON: u64 = 10_000;
/// In percent: from where on clients are forgotten, and how many are left then.
const HIGH: usize = 90;
const LOW: usize = 80;

/// Whether clients have to be forgotten.
pub fn is_due(entries: usize, capacity: usize) -> bool {
    capacity > 0 && entries > percent(capacity, HIGH)
}

/// Who is forgotten of a set with so many entries. `clients`: all of them, or as many as one cares to read. The set's order is that of a
/// hash, so that its first ones are as good as any others to tell by them how many each Service port has. Of a part, no more than the
/// older half of each Service port's goes at once: with more, it were others than those that were silent longest.
pub fn evicted(mut clients: Vec<Client>, entries: usize, capacity: usize) -> Vec<Key> {
    if clients.is_empty() || !is_due(entries, capacity) {
        return Vec::new();
    }
    let read = clients.len();
    // What was read may be more than was counted before.
    let entries = entries.max(read);
    let keep = scaled(percent(capacity, LOW), read, entries);
    clients.sort_unstable_by(|a, b| a.share().cmp(b.share()).then(a.left.cmp(&b.left)));
    let shares: Vec<&[Client]> = clients.chunk_by(|a, b| a.share() == b.share()).collect();
    let level = level(shares.iter().map(|share| share.len()), keep);
    let go = |share: &&[Client]| {
        let most = if read < entries { share.len() / 2 } else { share.len() };
        scaled(share.len().saturating_sub(level), entries, read).min(most)
    };
    let gone = shares.iter().flat_map(|share| share.iter().take(go(share)));
    gone.filter(|client| client.left > SOON).map(|client| client.key).collect()
}

/// The greatest share with which no more than `keep` are left of all together.
fn level(shares: impl Iterator<Item = usize>, keep: usize) -> usize {
    let mut of_size: BTreeMap<usize, usize> = BTreeMap::new();
    for size in shares {
        *of_size.entry(size).or_default() += 1;
    }
    let mut larger: usize = of_size.values().sum();
    let (mut room, mut level) = (keep, 0);
    for (size, count) in of_size {
        if size * larger > room {
            return room / larger;
        }
        room -= size * count;
        larger -= count;
        level = size;
        if larger == 0 {
            break;
        }
    }
    level
}

fn percent(of: usize, percent: usize) -> usize {
    scaled(of, percent, 100)
}

/// `n * by / of`, without overflow.
fn scaled(n: usize, by: usize, of: usize) -> usize {
    usize::try_from(n as u128 * by as u128 / of.max(1) as u128).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn client(share: u64, number: u32, left: u64) -> Client {
        Client { key: Key::new(&share.to_be_bytes()).with(&number.to_be_bytes()), left }
    }

    /// So many clients of each service port; later ones came later.
    fn clients(sizes: &[usize]) -> Vec<Client> {
        let each = sizes.iter().zip(0..);
        each.flat_map(|(size, share)| (0..*size).map(move |n| client(share, n as u32, SOON + 1 + n as u64)))
            .collect()
    }

    /// How many are left of each.
    fn left(sizes: &[usize], gone: &[Key]) -> Vec<usize> {
        let of =
            |share: u64| gone.iter().filter(|key| key.as_slice().starts_with(&share.to_be_bytes())).count();
        sizes.iter().zip(0..).map(|(size, share)| size - of(share)).collect()
    }

    #[test]
    fn who_has_most_gives_away_and_small_ones_lose_nobody() {
        let sizes = [850, 60, 30, 1];
        let gone = evicted(clients(&sizes), 941, 1000);
        assert_eq!(left(&sizes, &gone), [709, 60, 30, 1]);
        let sizes = [400, 500, 50];
        assert_eq!(left(&sizes, &evicted(clients(&sizes), 950, 1000)), [375, 375, 50]);
    }

    #[test]
    fn nobody_is_forgotten_while_there_is_room() {
        assert!(evicted(clients(&[900]), 900, 1000).is_empty());
        assert_eq!(evicted(clients(&[901]), 901, 1000).len(), 101);
        assert!(!is_due(0, 0) && evicted(Vec::new(), 1000, 1000).is_empty());
    }

    #[test]
    fn who_ends_soon_ends_by_itself() {
        let mut all = clients(&[95]);
        for client in &mut all[..10] {
            client.left = SOON;
        }
        assert_eq!(evicted(all, 95, 100).len(), 15 - 10);
    }

    #[test]
    fn a_part_tells_of_the_whole_and_loses_its_older_half_at_most() {
        // A tenth was read of 900,000 and 90,000 and 10,000, in a set for a million.
        let sizes = [90_000, 9_000, 1_000];
        let gone = evicted(clients(&sizes), 1_000_000, 1_000_000);
        assert_eq!(
            left(&sizes, &gone),
            [45_000, 9_000, 1_000],
            "200,000 would have to go, 45,000 are the older half"
        );
        let oldest: Vec<Key> = clients(&sizes).iter().take(45_000).map(|client| client.key).collect();
        assert_eq!(gone, oldest);
    }

    proptest! {
        #[test]
        fn shares_are_fair(
            sizes in proptest::collection::vec(0_usize..60, 1..20),
            capacity in 1_usize..600,
            ages in proptest::collection::vec(0_u64..100, 1200),
        ) {
            let mut all = clients(&sizes);
            for (client, age) in all.iter_mut().zip(&ages) {
                client.left = SOON + 1 + *age;
            }
            let entries = all.len();
            let gone = evicted(all.clone(), entries, capacity);
            let after = left(&sizes, &gone);
            prop_assert_eq!(gone.iter().collect::<BTreeSet<_>>().len(), gone.len());
            let rest = entries - gone.len();
            let low = capacity * 80 / 100;
            if is_due(entries, capacity) {
                prop_assert!(rest <= low && rest + sizes.len() >= low, "{} of {}", rest, low);
            } else {
                prop_assert!(gone.is_empty());
            }
            // Who lost somebody has as many as anybody.
            let most = after.iter().max().copied().unwrap_or(0);
            for (before, after) in sizes.iter().zip(&after) {
                prop_assert!(before == after || *after == most, "{:?} from {:?}", after, sizes);
            }
            // Whoever goes was silent at least as long as those of his share who stay.
            let is_gone: BTreeSet<Key> = gone.into_iter().collect();
            for share in all.chunk_by(|a, b| a.share() == b.share()) {
                let (goes, stays): (Vec<&Client>, Vec<&Client>) =
                    share.iter().partition(|client| is_gone.contains(&client.key));
                let newest = goes.iter().map(|client| client.left).max();
                let oldest = stays.iter().map(|client| client.left).min();
                prop_assert!(newest.zip(oldest).is_none_or(|(newest, oldest)| newest <= oldest));
            }
        }
    }
}
