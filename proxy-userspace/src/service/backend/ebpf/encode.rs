//! Between entries as values and entries as the bytes of maps. Pure.

use sluice_common::Address;
use sluice_common::node::Config;
use sluice_common::service::{
    Endpoint, EndpointKey, Frontend, FrontendKey, Group, MaglevTable, MemberKey, SourceKey,
};
use sluice_core::ebpf::{Entry, EntryId, MapKind, Op};
use sluice_sys::bpf::Plain;

/// Operations of one kind on one map that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) map: MapKind,
    pub(super) keys: Vec<u8>,
    /// `None`: the keys are to be deleted.
    pub(super) values: Option<Vec<u8>>,
}

/// What maps without a meaning of their values hold.
const NOTHING: u32 = 0;
/// The key of the only entry of an array.
const ONLY: u32 = 0;

/// Joins operations that the kernel can take at once, in their order.
pub(super) fn runs(ops: &[Op]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for op in ops {
        let (id, puts) = match op {
            Op::Put(entry) => (entry.id(), true),
            Op::Delete(id) => (*id, false),
        };
        let map = id.map();
        if runs.last().is_none_or(|run| run.map != map || run.values.is_some() != puts) {
            runs.push(Run { map, keys: Vec::new(), values: puts.then(Vec::new) });
        }
        let Some(run) = runs.last_mut() else { continue };
        write_key(&id, &mut run.keys);
        if let (Op::Put(entry), Some(values)) = (op, &mut run.values) {
            write_value(entry, values);
        }
    }
    runs
}

fn write_key(id: &EntryId, to: &mut Vec<u8>) {
    match id {
        EntryId::Member(key) => to.extend_from_slice(key.bytes()),
        EntryId::Source(length, key) => {
            to.extend_from_slice(length.bytes());
            to.extend_from_slice(key.bytes());
        }
        EntryId::Cursor(group) | EntryId::Maglev(group) | EntryId::Group(group) => {
            to.extend_from_slice(group.bytes());
        }
        EntryId::Endpoint(key) => to.extend_from_slice(key.bytes()),
        EntryId::Frontend(key) => to.extend_from_slice(key.bytes()),
        EntryId::Address(address) => to.extend_from_slice(address.bytes()),
        EntryId::Network(length, address) => {
            to.extend_from_slice(length.bytes());
            to.extend_from_slice(address.bytes());
        }
        EntryId::Config => to.extend_from_slice(ONLY.bytes()),
    }
}

fn write_value(entry: &Entry, to: &mut Vec<u8>) {
    match entry {
        Entry::Member(_) | Entry::Source(..) | Entry::Cursor(_) => to.extend_from_slice(NOTHING.bytes()),
        Entry::Endpoint(_, endpoint) => to.extend_from_slice(endpoint.bytes()),
        Entry::Maglev(_, table) => to.extend_from_slice(table.bytes()),
        Entry::Group(_, group) => to.extend_from_slice(group.bytes()),
        Entry::Frontend(_, frontend) => to.extend_from_slice(frontend.bytes()),
        Entry::Address(_, flags) | Entry::Network(.., flags) => to.extend_from_slice(flags.bytes()),
        Entry::Config(config) => to.extend_from_slice(config.bytes()),
    }
}

/// The entry that bytes are.
pub(super) fn read(map: MapKind, key: &[u8], value: &[u8]) -> Option<Entry> {
    Some(match map {
        MapKind::Members => Entry::Member(MemberKey::read(key)?),
        MapKind::Sources => {
            let (length, key) = key.split_at_checked(size_of::<u32>())?;
            Entry::Source(u32::read(length)?, SourceKey::read(key)?)
        }
        MapKind::Cursors => Entry::Cursor(u64::read(key)?),
        MapKind::Endpoints => Entry::Endpoint(EndpointKey::read(key)?, Endpoint::read(value)?),
        MapKind::Maglev => Entry::Maglev(u64::read(key)?, Box::new(MaglevTable::read(value)?)),
        MapKind::Groups => Entry::Group(u64::read(key)?, Group::read(value)?),
        MapKind::Frontends => Entry::Frontend(FrontendKey::read(key)?, Frontend::read(value)?),
        MapKind::Addresses => Entry::Address(Address::read(key)?, u32::read(value)?),
        MapKind::Networks => {
            let (length, key) = key.split_at_checked(size_of::<u32>())?;
            Entry::Network(u32::read(length)?, Address::read(key)?, u32::read(value)?)
        }
        MapKind::Config => Entry::Config(Box::new(Config::read(value)?)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_common::service::MAGLEV_SLOTS;
    use sluice_sys::bpf::{Sizes, spec};

    fn one_of_each() -> Vec<Entry> {
        let address = Address::v4(7);
        vec![
            Entry::Member(MemberKey { group: 6, address, port: 80, reserved: [0; 3] }),
            Entry::Source(260, SourceKey { frontend: FrontendKey::default(), source: address }),
            Entry::Cursor(5),
            Entry::Endpoint(
                EndpointKey { group: 4, slot: 1, reserved: 0 },
                Endpoint { address, port: 9, reserved: 0 },
            ),
            Entry::Maglev(4, Box::new(MaglevTable { slots: [3; MAGLEV_SLOTS], reserved: 0 })),
            Entry::Group(4, Group { count: 2, reserved: 0 }),
            Entry::Frontend(FrontendKey { address, port: 1, protocol: 6, kind: 0 }, Frontend::default()),
            Entry::Address(address, 3),
            Entry::Network(108, address, 1),
            Entry::Config(Box::new(Config { netns: 9, ..Config::default() })),
        ]
    }

    #[test]
    fn every_entry_is_as_long_as_its_map_wants_and_can_be_read_back() {
        let entries = one_of_each();
        assert_eq!(entries.iter().map(Entry::map).collect::<Vec<_>>(), MapKind::ALL);
        for entry in entries {
            let [run] = &runs(&[Op::Put(entry.clone())])[..] else { panic!("one run") };
            let spec = spec(run.map.map(), Sizes { flows: 1 });
            let values = run.values.clone().unwrap();
            assert_eq!((run.keys.len(), values.len()), (spec.key_size as usize, spec.value_size as usize));
            assert_eq!(read(run.map, &run.keys, &values), Some(entry));
        }
    }

    #[test]
    fn operations_are_joined_where_their_order_allows() {
        let group = |id| Op::Put(Entry::Group(id, Group::default()));
        let gone = |id| Op::Delete(EntryId::Group(id));
        let ops = [group(1), group(2), gone(3), Op::Delete(EntryId::Cursor(1)), gone(4), gone(5), group(6)];
        let shape: Vec<(MapKind, usize, bool)> =
            runs(&ops).iter().map(|run| (run.map, run.keys.len() / 8, run.values.is_some())).collect();
        let groups = MapKind::Groups;
        let expected = [
            (groups, 2, true),
            (groups, 1, false),
            (MapKind::Cursors, 1, false),
            (groups, 2, false),
            (groups, 1, true),
        ];
        assert_eq!(shape, expected);
    }
}
