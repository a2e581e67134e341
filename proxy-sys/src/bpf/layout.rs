//! How large maps are, and what becomes of those of a predecessor. Which maps there are says
//! `sluice_common::maps`.

use sluice_common::maps::{MapName, MapType, Room};

use super::map::possible_cpus;
use super::syscall::MapShape;

/// `BPF_F_NO_PREALLOC`: memory for entries that there are, not for all that there could be.
const NO_PREALLOC: u32 = 1;

/// What a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Which one.
    pub map: MapName,
    /// The length of keys.
    pub key_size: u32,
    /// The length of values.
    pub value_size: u32,
    /// Entries that it has room for at first.
    pub entries: u32,
    /// How it finds its entries.
    pub map_type: MapType,
}

impl Spec {
    /// Whether the daemon alone adds entries, so that a full map must be made larger.
    #[must_use]
    pub fn grows(&self) -> bool {
        matches!(self.map_type, MapType::Hash | MapType::LongestPrefix)
    }

    /// Whether the programs, too, add entries; the least used go when it is full.
    #[must_use]
    pub fn is_lru(&self) -> bool {
        self.map_type == MapType::LruHash
    }

    /// What is done when the map is there with so many entries.
    pub(super) fn of_another_size(&self, found: u32) -> OtherSize {
        match self.map {
            MapName::Flows | MapName::OldFlows => OtherSize::Kept,
            MapName::Newest if found != self.entries => OtherSize::Anew,
            MapName::Counters if found < self.entries => OtherSize::Copied,
            _ if self.is_lru() && found != self.entries => OtherSize::Copied,
            _ => OtherSize::Kept,
        }
    }

    pub(super) fn shape(&self, max_entries: u32) -> MapShape {
        MapShape {
            map_type: self.map_type as u32,
            key_size: self.key_size,
            value_size: self.value_size,
            max_entries,
            flags: if self.grows() { NO_PREALLOC } else { 0 },
        }
    }
}

/// What becomes of a map of before that may have another size than it shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OtherSize {
    /// It stays, or has a way of its own to get larger.
    Kept,
    /// A new one has its content.
    Copied,
    /// A new one is empty: what is in it counts for nothing in another size.
    Anew,
}

/// Sizes that are settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Connections. `FLOWS` has two entries for each; what is remembered of sockets and clients
    /// goes by it, too, because these maps take all their memory at once.
    pub flows: u32,
}

impl Sizes {
    /// Flows that have only begun, besides.
    fn begun(self) -> u32 {
        (self.flows / 4).max(LEAST_BEGUN)
    }

    /// Entries of a map.
    fn entries(self, room: Room) -> u32 {
        match room {
            Room::Fixed(entries) => entries,
            Room::Clients => self.flows.max(LEAST),
            Room::Sockets => (self.flows / 2).max(LEAST),
            Room::Flows => self.flow_entries(),
            Room::Begun => self.begun().saturating_add(1),
        }
    }

    /// Entries of `FLOWS`. It drops some when fewer than [`STOCK`] are free, and each processor may
    /// have taken as many in stock.
    fn flow_entries(self) -> u32 {
        let stocks = STOCK.saturating_mul(possible_cpus() as u32 + 1);
        self.flows.saturating_add(self.begun()).saturating_mul(2).saturating_add(stocks)
    }
}

/// `LOCAL_FREE_TARGET` of kernel/bpf/bpf_lru_list.c.
const STOCK: u32 = 128;
/// A handshake takes no longer than so many others begin, whatever the setting.
const LEAST_BEGUN: u32 = 1_024;

/// As many as a small node may need at once, whatever the setting.
const LEAST: u32 = 4_096;

/// All maps.
pub(super) fn specs(sizes: Sizes) -> impl Iterator<Item = Spec> {
    MapName::ALL.iter().map(move |map| spec(*map, sizes))
}

/// A map.
#[must_use]
pub fn spec(map: MapName, sizes: Sizes) -> Spec {
    let layout = map.layout();
    Spec {
        map,
        key_size: layout.key_size,
        value_size: layout.value_size,
        entries: sizes.entries(layout.room),
        map_type: layout.map_type,
    }
}

#[cfg(test)]
mod tests {
    use sluice_common::counters;

    use super::*;

    #[test]
    fn maps_have_names_of_their_own_that_the_kernel_takes() {
        let names: std::collections::BTreeSet<&str> = MapName::ALL.iter().map(|map| map.name()).collect();
        assert_eq!(names.len(), MapName::ALL.len());
        // BPF_OBJ_NAME_LEN of include/uapi/linux/bpf.h, with a zero at the end.
        assert!(names.iter().all(|name| name.len() < 16));
    }

    #[test]
    fn the_flow_table_has_room_for_connections_and_for_a_ring_of_flows_that_begin() {
        for (flows, begun) in [(1_024, 1_024), (131_072, 32_768), (16_777_216, 4_194_304)] {
            let entries = |map| spec(map, Sizes { flows }).entries;
            assert_eq!(entries(MapName::Newest), begun + 1);
            assert!(entries(MapName::Flows) >= 2 * (flows + begun) + 2 * STOCK, "{flows}");
        }
    }

    #[test]
    fn what_is_counted_is_never_made_smaller() {
        let of = |map, found| spec(map, Sizes { flows: 10_000 }).of_another_size(found);
        let count = counters::COUNT as u32;
        assert_eq!(of(MapName::Counters, count - 1), OtherSize::Copied);
        let larger = [of(MapName::Counters, count), of(MapName::Counters, count + 1)];
        assert_eq!(larger, [OtherSize::Kept; 2]);
        let affinity = [of(MapName::Affinity, 9_999), of(MapName::Affinity, 10_001)];
        assert_eq!(affinity, [OtherSize::Copied; 2]);
        let newest = [of(MapName::Newest, 2_500), of(MapName::Newest, 2_501)];
        assert_eq!(newest, [OtherSize::Anew, OtherSize::Kept]);
        assert_eq!([of(MapName::Flows, 1), of(MapName::Endpoints, 1)], [OtherSize::Kept; 2]);
    }
}
