//! Which clients are forgotten when the set of those that are remembered (ClientIP affinity) gets
//! full.
//!
//! The set is one for all Services of a family, so a Service with very many clients would keep the
//! others' from being remembered. Each Service port has a share, as large as there is room for:
//! those that have most give away until none of them has more than the others, and those that have
//! less than that lose nobody. Of one Service port those go first that were silent longest.

use std::collections::BTreeMap;

use crate::lang::nftables::Key;

/// A client that is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its key in the set: affinity id, address.
    pub key: Key,
    /// For how many milliseconds more, if it does not come again. All clients of one affinity id
    /// have the same timeout, so the least here has been silent longest.
    pub left: u64,
}

impl Client {
    /// The service port that it is remembered for.
    fn share(&self) -> Share {
        self.key.as_slice().first_chunk().copied().unwrap_or_default()
    }
}

/// The affinity id, which a key begins with.
type Share = [u8; 8];
/// In milliseconds: so exactly is known when those that were forgotten would have ended.
const STEP: u64 = 60_000;
/// So many times as many clients as usually are read at most.
const MOST: usize = 4;
/// Who ends within so many milliseconds need not be forgotten; to try it would be in vain for some.
const SOON: u64 = 10_000;
/// In percent: from where on clients are forgotten, and how many are left then.
const HIGH: usize = 90;
const LOW: usize = 80;

/// Whether clients have to be forgotten.
pub fn is_due(entries: usize, capacity: usize) -> bool {
    capacity > 0 && entries > percent(capacity, HIGH)
}

/// What is kept of a set from one time to the next. Of a large set only the first part is read, and
/// so who is forgotten is always of it: afterwards it has fewer of those that have most than the
/// rest of the set has, and tells the truth only together with these.
#[derive(Debug)]
pub struct Evictor {
    /// How many were forgotten, by when they would have ended and of which Service port they were.
    forgotten: BTreeMap<(u64, Share), usize>,
    least: usize,
    sample: usize,
}

impl Evictor {
    /// Of a set of which so many clients are read usually.
    pub fn new(sample: usize) -> Self {
        Evictor { forgotten: BTreeMap::new(), least: sample, sample }
    }

    /// How many clients are to be read now.
    pub fn sample(&self) -> usize {
        self.sample
    }

    /// So many entries there are now. A table that is half empty is made smaller by the kernel, and
    /// has another order then.
    pub fn counted(&mut self, entries: usize, capacity: usize) {
        if entries < capacity / 2 {
            self.forgotten.clear();
        }
    }

    /// Who is forgotten of a set with so many entries. `clients`: all of them, or the first ones.
    /// The set's order is that of a hash, so that these are as good as any others to tell how many
    /// each Service port has. Of a part, no more than the older half of each Service port's goes at
    /// once: with more, it were others than those that were silent longest. `now`: milliseconds, by
    /// a clock that nobody sets.
    pub fn evicted(
        &mut self,
        mut clients: Vec<Client>,
        entries: usize,
        capacity: usize,
        now: u64,
    ) -> Vec<Key> {
        // Who would have ended by now would not be there anyway.
        self.forgotten = self.forgotten.split_off(&(now / STEP, Share::default()));
        let read = clients.len();
        // What was read may be more than was counted before.
        let entries = entries.max(read);
        if read == entries {
            self.forgotten.clear();
        }
        if clients.is_empty() || !is_due(entries, capacity) {
            return Vec::new();
        }
        clients.sort_unstable_by_key(|client| (client.share(), client.left));
        let shares: Vec<&[Client]> = clients.chunk_by(|a, b| a.share() == b.share()).collect();
        let sizes = self.sizes(&shares, entries, read);
        let level = level(sizes.values().copied(), percent(capacity, LOW));
        let mut gone = Vec::new();
        for share in shares {
            let most = if read < entries { share.len() / 2 } else { share.len() };
            let size = share.first().and_then(|client| sizes.get(&client.share())).copied().unwrap_or(0);
            let older = share.iter().take(size.saturating_sub(level).min(most));
            for client in older.filter(|client| client.left > SOON) {
                *self.forgotten.entry(((now + client.left) / STEP, client.share())).or_default() += 1;
                gone.push(client.key);
            }
        }
        if read < entries {
            self.adapt(gone.len(), read);
        }
        gone
    }

    /// Reads more the next time if next to nobody could be forgotten, because the part that is read
    /// has only those left who are to stay. The kernel's time for it goes by the square, so not
    /// without a limit: at that, those give away who have most of this part.
    fn adapt(&mut self, gone: usize, read: usize) {
        if gone > read / 4 {
            self.sample = self.least.max(self.sample / 2);
        } else if gone < read / 16 && self.sample < MOST * self.least {
            self.sample *= 2;
        } else if gone == 0 {
            self.forgotten.clear();
        }
    }

    /// How many clients each Service port has in the whole set. If nobody had been forgotten, the
    /// part that was read would have as many more of each as were, and would tell of a set with all
    /// of these.
    fn sizes(&self, shares: &[&[Client]], entries: usize, read: usize) -> BTreeMap<Share, usize> {
        let mut forgotten: BTreeMap<Share, usize> = BTreeMap::new();
        for ((_, share), count) in &self.forgotten {
            *forgotten.entry(*share).or_default() += count;
        }
        let all: usize = forgotten.values().sum();
        let mut sizes = forgotten.clone();
        for share in shares {
            *sizes.entry(share.first().map_or_else(Share::default, Client::share)).or_default() +=
                share.len();
        }
        for (share, size) in &mut sizes {
            let was = forgotten.get(share).copied().unwrap_or(0);
            *size = scaled(*size, entries + all, read + all).saturating_sub(was);
        }
        sizes
    }
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

    fn evicted(clients: Vec<Client>, entries: usize, capacity: usize) -> Vec<Key> {
        Evictor::new(0).evicted(clients, entries, capacity, 0)
    }

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
    fn services_with_most_clients_lose_some_and_small_ones_none() {
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
    fn clients_that_expire_soon_are_not_evicted() {
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

    /// A set in the order of a hash: of which share each client is, and when it came.
    type Set = BTreeMap<u64, (u64, u64)>;

    fn count(set: &Set, share: u64) -> usize {
        set.values().filter(|(of, _)| *of == share).count()
    }

    /// Lets clients of share 1 come, so many before each look; returns how many of them were
    /// refused.
    fn flood(set: &mut Set, evictor: &mut Evictor, capacity: usize, a_look: usize, looks: u64) -> usize {
        let (timeout, mut number, mut refused) = (10_800_000, 1 << 32, 0);
        for now in (1..=looks).map(|look| look * 1000) {
            for _ in 0..a_look {
                number += 1_u64;
                if set.len() < capacity {
                    set.insert(mixed(number), (1, now));
                } else {
                    refused += 1;
                }
            }
            let client = |(hash, (share, came)): (&u64, &(u64, u64))| Client {
                key: Key::new(&share.to_be_bytes())
                    .with(&hash.to_be_bytes()[..4])
                    .with(&hash.to_be_bytes()[4..]),
                left: timeout - (now - came),
            };
            if is_due(set.len(), capacity) {
                let first = set.iter().take(evictor.sample()).map(client).collect();
                for key in evictor.evicted(first, set.len(), capacity, now) {
                    let hash = key.as_slice()[8..].try_into().map(u64::from_be_bytes).unwrap_or(0);
                    assert!(set.remove(&hash).is_some(), "it was there");
                }
            }
        }
        refused
    }

    fn mixed(number: u64) -> u64 {
        let number = (number ^ number >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let number = (number ^ number >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        number ^ number >> 33
    }

    #[test]
    fn a_long_flood_takes_nothing_from_those_that_have_less() {
        let capacity = 16_000;
        for (others, a_look) in [(0.3, 0.01), (0.3, 0.03), (0.1, 0.01)] {
            let of = |share: f64| (f64::from(capacity) * share) as usize;
            let mut set: Set = (0..of(others) as u64)
                .map(|n| (mixed(n), (2, 0)))
                .chain((1_000_000..1_000_100).map(|n| (mixed(n), (3, 0))))
                .collect();
            let mut evictor = Evictor::new(2_000);
            let refused = flood(&mut set, &mut evictor, of(1.0), of(a_look), 300);
            assert_eq!((count(&set, 2), count(&set, 3)), (of(others), 100), "{others} {a_look} {refused}");
            assert!(refused < 30 * of(a_look), "{refused} refused, {others} {a_look}");
        }
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
