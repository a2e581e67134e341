//! The map `NAMESPACES`: whose sockets are left alone.

use std::collections::BTreeSet;

use sluice_common::maps::MapName;
use sluice_common::node::namespace::NO_SOCKET_PATH;

use super::{BpfError, Maps, Plain};

/// Lets the socket programs leave alone the sockets of exactly these network namespaces, by their
/// cookies. Returns how many entries had to be changed.
///
/// Connections that were made before stay as they are.
pub fn leave_alone(maps: &Maps, cookies: &BTreeSet<u64>) -> Result<usize, BpfError> {
    let map = maps.get(MapName::Namespaces)?;
    let change = difference(&map.values()?, cookies);
    // Room first.
    for cookie in &change.delete {
        map.delete(cookie.bytes())?;
    }
    for (cookie, bits) in &change.put {
        map.put_value(cookie, bits)?;
    }
    Ok(change.delete.len() + change.put.len())
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    put: Vec<(u64, u32)>,
    delete: Vec<u64>,
}

/// From what the map holds to what is wanted; other bits are another's.
fn difference(held: &[(u64, u32)], wanted: &BTreeSet<u64>) -> Difference {
    let mut change = Difference::default();
    for (cookie, bits) in held {
        match bits & !NO_SOCKET_PATH {
            _ if wanted.contains(cookie) => {}
            0 => change.delete.push(*cookie),
            others if others != *bits => change.put.push((*cookie, others)),
            _ => {}
        }
    }
    for cookie in wanted {
        let bits = held.iter().find(|(key, _)| key == cookie).map_or(0, |(_, bits)| *bits);
        if bits & NO_SOCKET_PATH == 0 {
            change.put.push((*cookie, bits | NO_SOCKET_PATH));
        }
    }
    change
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_difference_is_written_and_other_bits_stay() {
        const OTHER: u32 = 0x80;
        let held =
            [(1, NO_SOCKET_PATH), (2, NO_SOCKET_PATH), (3, OTHER), (4, OTHER | NO_SOCKET_PATH), (5, OTHER)];
        let change = difference(&held, &BTreeSet::from([2, 3, 6]));
        assert_eq!(change.put, [(4, OTHER), (3, OTHER | NO_SOCKET_PATH), (6, NO_SOCKET_PATH)]);
        assert_eq!(change.delete, [1]);
        assert_eq!(difference(&[(7, NO_SOCKET_PATH)], &BTreeSet::from([7])), Difference::default());
    }
}
