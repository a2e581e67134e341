//! The map `POD_SOURCES`: which addresses pods have.

use std::collections::{BTreeMap, BTreeSet};

use sluice_common::Address;
use sluice_common::maps::MapName;
use sluice_common::node::PodSource;

use super::{BpfError, Maps, Plain};

/// What is known of the pod behind a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSources {
    /// Addresses that it has.
    pub addresses: BTreeSet<Address>,
    /// It has no others.
    pub are_all: bool,
}

/// Writes down which addresses are behind which interfaces, by index, and none behind all others.
/// Returns how many entries had to be changed.
///
/// That there are no others is said when all of them are there, and until the first of them goes.
pub fn set_pod_sources(maps: &Maps, wanted: &BTreeMap<u32, PodSources>) -> Result<usize, BpfError> {
    let map = maps.get(MapName::PodSources)?;
    let held: BTreeSet<PodSource> = map.values::<PodSource, u32>()?.into_iter().map(|(key, _)| key).collect();
    let change = difference(&held, wanted);
    // Room first.
    for key in &change.delete {
        map.delete(key.bytes())?;
    }
    for key in &change.put {
        map.put_value(key, &0u32)?;
    }
    Ok(change.put.len() + change.delete.len())
}

/// Entries in the order in which they are written.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    put: Vec<PodSource>,
    delete: Vec<PodSource>,
}

fn difference(held: &BTreeSet<PodSource>, wanted: &BTreeMap<u32, PodSources>) -> Difference {
    let all = Address::default();
    let entries = |(interface, pod): (&u32, &PodSources)| {
        let (interface, mark) = (*interface, pod.are_all.then_some(all));
        let addresses = pod.addresses.iter().copied().chain(mark);
        addresses.map(move |address| PodSource { address, interface }).collect::<Vec<_>>()
    };
    let wanted: BTreeSet<PodSource> = wanted.iter().flat_map(entries).collect();
    let mut put: Vec<PodSource> = wanted.difference(held).copied().collect();
    let mut delete: Vec<PodSource> = held.difference(&wanted).copied().collect();
    put.sort_by_key(|key| key.address == all);
    delete.sort_by_key(|key| key.address != all);
    Difference { put, delete }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(interface: u32, number: u32) -> PodSource {
        let address = if number == 0 { Address::default() } else { Address::v4(number) };
        PodSource { address, interface }
    }

    #[test]
    fn an_interface_is_checked_after_its_addresses_came_and_until_they_go() {
        let held = [source(2, 7), source(2, 0), source(3, 8), source(3, 0)].into();
        let pod = |numbers: &[u32], are_all| PodSources {
            addresses: numbers.iter().map(|number| Address::v4(*number)).collect(),
            are_all,
        };
        let wanted =
            BTreeMap::from([(3, pod(&[8, 9], true)), (4, pod(&[1, 2], true)), (5, pod(&[6], false))]);
        let change = difference(&held, &wanted);
        let is_mark = |key: &PodSource| key.address == Address::default();
        assert_eq!(change.put.iter().map(is_mark).collect::<Vec<_>>(), [false, false, false, false, true]);
        assert!(change.put.contains(&source(3, 9)) && change.put.last() == Some(&source(4, 0)));
        assert_eq!(change.delete, [source(2, 0), source(2, 7)]);
        let whole = [(3, 8), (3, 9), (3, 0), (4, 1), (4, 2), (4, 0), (5, 6)];
        let whole = whole.into_iter().map(|(interface, number)| source(interface, number)).collect();
        assert_eq!(difference(&whole, &wanted), Difference::default());
    }
}
