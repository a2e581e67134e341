//! Which address comes next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::range::{address, number};
use crate::spec::{Attachment, Range};

/// Who has which address, and where the last search ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leases {
    /// By address.
    pub held: BTreeMap<IpAddr, Attachment>,
    /// The address that was given out last, of each family. The next one is looked for behind it,
    /// so that an address that was given back rests for as long as others are free: somebody may
    /// still send to it.
    pub last: BTreeMap<Family, IpAddr>,
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// That of an address.
    pub fn of(ip: &IpAddr) -> Self {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// An address for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// With the length of its network's prefix.
    pub address: IpNet,
    /// The node's address in that network.
    pub gateway: IpAddr,
}

impl Lease {
    /// The gateway, with the length of the network's prefix: what the node has in that network.
    pub fn gateway_address(&self) -> IpNet {
        with_prefix(self.gateway, self.address)
    }
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocationError {
    /// All are taken.
    #[error("no address is free in {ranges}: {held} are in use, by {holders}")]
    Exhausted {
        /// The ranges that were searched.
        ranges: String,
        /// How many are in use.
        held: usize,
        /// The first of those who use them.
        holders: String,
    },
    /// An address that is asked for is somebody else's.
    #[error("requested address {address} is in use by container {}, interface {}", .holder.container, .holder.interface)]
    Taken {
        /// The address.
        address: IpAddr,
        /// Whose it is.
        holder: Attachment,
    },
    /// An address that is asked for is in no range.
    #[error("requested address {0} is in none of the ranges {1}")]
    Outside(IpAddr, String),
    /// There are no ranges.
    #[error("there are no ranges to allocate addresses from")]
    NoRanges,
}

/// How many holders an error names.
const NAMED: usize = 3;

/// Chooses an address out of each set of ranges. Those in `requested` are taken if they are free,
/// reserved or not; a set that none of them is in gives any that is free and not reserved.
///
/// Somebody who has addresses already gets the same again: a runtime that was killed asks twice.
pub fn allocate(
    sets: &[Vec<Range>],
    reserved: &BTreeSet<IpAddr>,
    leases: &Leases,
    requested: &[IpAddr],
    whose: &Attachment,
) -> Result<Vec<Lease>, AllocationError> {
    if sets.is_empty() {
        return Err(AllocationError::NoRanges);
    }
    for address in requested {
        if !sets.iter().flatten().any(|range| range.contains(address)) {
            return Err(AllocationError::Outside(*address, names(sets.iter().flatten())));
        }
        if let Some(holder) = leases.held.get(address).filter(|holder| *holder != whose) {
            return Err(AllocationError::Taken { address: *address, holder: holder.clone() });
        }
    }
    sets.iter().map(|set| from_set(set, reserved, leases, requested, whose)).collect()
}

fn from_set(
    set: &[Range],
    reserved: &BTreeSet<IpAddr>,
    leases: &Leases,
    requested: &[IpAddr],
    whose: &Attachment,
) -> Result<Lease, AllocationError> {
    let range_of = |address: &IpAddr| set.iter().find(|range| range.contains(address));
    let wanted = requested.iter().find_map(|address| Some((*address, range_of(address)?)));
    let own = || {
        let mut own = leases.held.iter().filter(|(_, holder)| *holder == whose);
        own.find_map(|(address, _)| Some((*address, range_of(address)?)))
    };
    let free = || next_free(set, reserved, leases);
    let (address, range) = wanted.or_else(own).or_else(free).ok_or_else(|| exhausted(set, leases))?;
    Ok(Lease { address: with_prefix(address, range.subnet), gateway: range.gateway() })
}

/// The first free one behind the last one that was given out, or else from the beginning.
fn next_free<'a>(
    set: &'a [Range],
    reserved: &BTreeSet<IpAddr>,
    leases: &Leases,
) -> Option<(IpAddr, &'a Range)> {
    let family = Family::of(&set.first()?.gateway());
    let last = leases.last.get(&family);
    let begin = last.and_then(|last| set.iter().position(|range| range.contains(last))).unwrap_or(0);
    let is_free = |range: &Range, address: &IpAddr| {
        range.contains(address) && !leases.held.contains_key(address) && !reserved.contains(address)
    };
    let behind = |range: &Range, from: Option<IpAddr>| {
        let (first, end) = range.bounds();
        let first = from.map_or(number(first), |last| number(last) + 1);
        (first..=number(end)).map(|n| address(n, end)).find(|address| is_free(range, address))
    };
    let in_order = || (0..set.len()).filter_map(|i| set.get((begin + i) % set.len()));
    let mut from = last.copied().filter(|last| set.get(begin).is_some_and(|range| range.contains(last)));
    for range in in_order() {
        if let Some(address) = behind(range, from.take()) {
            return Some((address, range));
        }
    }
    // The part of the first one that was left out.
    let range = set.get(begin)?;
    behind(range, None).map(|address| (address, range))
}

fn with_prefix(address: IpAddr, subnet: IpNet) -> IpNet {
    // The length is that of a network of the same family.
    IpNet::new(address, subnet.prefix_len()).unwrap_or_else(|_| IpNet::from(address))
}

fn exhausted(set: &[Range], leases: &Leases) -> AllocationError {
    let in_set = |address: &IpAddr| set.iter().any(|range| range.contains(address));
    let holders: Vec<&Attachment> =
        leases.held.iter().filter(|(address, _)| in_set(address)).map(|(_, holder)| holder).collect();
    let mut named: Vec<String> = holders.iter().take(NAMED).map(|holder| holder.container.clone()).collect();
    if holders.len() > NAMED {
        named.push(format!("{} more", holders.len() - NAMED));
    }
    AllocationError::Exhausted { ranges: names(set.iter()), held: holders.len(), holders: named.join(", ") }
}

fn names<'a>(ranges: impl Iterator<Item = &'a Range>) -> String {
    let name = |range: &Range| {
        let (first, last) = range.bounds();
        format!("{first}-{last}")
    };
    ranges.map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn set(subnets: &[&str]) -> Vec<Range> {
        subnets.iter().map(|subnet| Range::of(subnet.parse().unwrap())).collect()
    }

    fn pod(number: usize) -> Attachment {
        Attachment::new(&format!("pod-{number}"), "eth0").unwrap()
    }

    /// Gives addresses to a pod, and writes that down.
    fn give(sets: &[Vec<Range>], leases: &mut Leases, number: usize) -> Result<Vec<IpAddr>, AllocationError> {
        let given = allocate(sets, &BTreeSet::new(), leases, &[], &pod(number))?;
        let addresses: Vec<IpAddr> = given.iter().map(|lease| lease.address.addr()).collect();
        for address in &addresses {
            leases.held.insert(*address, pod(number));
            leases.last.insert(Family::of(address), *address);
        }
        Ok(addresses)
    }

    #[test]
    fn addresses_come_in_order_and_come_back_last() {
        let sets = [set(&["10.0.0.0/29"]), set(&["fd00::/64"])];
        let mut leases = Leases::default();
        for number in 0..3 {
            let expected = [ip(&format!("10.0.0.{}", number + 2)), ip(&format!("fd00::{}", number + 2))];
            assert_eq!(give(&sets, &mut leases, number).unwrap(), expected);
        }
        leases.held.remove(&ip("10.0.0.2"));
        leases.held.remove(&ip("fd00::2"));
        assert_eq!(give(&sets, &mut leases, 3).unwrap(), [ip("10.0.0.5"), ip("fd00::5")]);
        assert_eq!(give(&sets, &mut leases, 4).unwrap()[0], ip("10.0.0.6"));
        assert_eq!(give(&sets, &mut leases, 5).unwrap()[0], ip("10.0.0.2"));
    }

    #[test]
    fn the_error_says_how_many_are_in_use_and_by_whom() {
        let sets = [set(&["10.0.0.0/29", "10.0.1.0/30"])];
        let mut leases = Leases::default();
        for number in 0..6 {
            give(&sets, &mut leases, number).unwrap();
        }
        let error = give(&sets, &mut leases, 6).unwrap_err().to_string();
        let expected = "no address is free in 10.0.0.1-10.0.0.6, 10.0.1.1-10.0.1.2: 6 are in use, by pod-0, pod-1, pod-2, 3 more";
        assert_eq!(error, expected);
        // The same pod again has what it has.
        assert_eq!(give(&sets, &mut leases, 2).unwrap(), [ip("10.0.0.4")]);
    }

    #[test]
    fn an_address_may_be_asked_for_even_a_reserved_one() {
        let sets = [set(&["10.0.0.0/24"]), set(&["fd00::/64"])];
        let reserved = BTreeSet::from([ip("10.0.0.2"), ip("10.0.0.9")]);
        let mut leases = Leases::default();
        let first = allocate(&sets, &reserved, &leases, &[], &pod(0)).unwrap();
        assert_eq!(first[0].address.to_string(), "10.0.0.3/24");
        let asked = allocate(&sets, &reserved, &leases, &[ip("10.0.0.9")], &pod(0)).unwrap();
        assert_eq!((asked[0].address.addr(), asked[1].address.addr()), (ip("10.0.0.9"), ip("fd00::2")));
        leases.held.insert(ip("10.0.0.9"), pod(1));
        let taken = allocate(&sets, &reserved, &leases, &[ip("10.0.0.9")], &pod(0)).unwrap_err();
        assert!(taken.to_string().contains("in use by container pod-1"), "{taken}");
        let outside = allocate(&sets, &reserved, &leases, &[ip("10.0.9.9")], &pod(0)).unwrap_err();
        assert!(matches!(outside, AllocationError::Outside(..)));
        assert_eq!(allocate(&[], &reserved, &leases, &[], &pod(0)), Err(AllocationError::NoRanges));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_address_is_given_twice_and_all_are_used(
            steps in proptest::collection::vec((0..24usize, any::<bool>()), 1..120),
        ) {
            let sets = [set(&["10.0.0.0/29", "10.0.1.0/29", "10.0.2.0/30"])];
            // Six, six and two addresses, of which one each is the gateway's.
            let room = 5 + 5 + 1;
            let mut leases = Leases::default();
            for (number, adds) in steps {
                if adds {
                    let had = leases.held.values().any(|holder| *holder == pod(number));
                    let before = leases.held.len();
                    match give(&sets, &mut leases, number) {
                        Ok(_) => prop_assert_eq!(leases.held.len(), before + usize::from(!had)),
                        Err(error) => {
                            prop_assert!(!had && before == room, "{} with {}", error, before);
                        }
                    }
                } else {
                    leases.held.retain(|_, holder| *holder != pod(number));
                }
            }
        }
    }
}
