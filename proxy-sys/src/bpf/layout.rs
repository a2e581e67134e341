//! Which maps there are: the table in sluice-common, with sizes.

use std::mem::size_of;

use sluice_common::Address;
use sluice_common::counters;
use sluice_common::flow::{Begun, Flow, FlowKey, Fragment, FragmentKey};
use sluice_common::node::{Config, Interface, PodSource};
use sluice_common::service::{
    Affinity, AffinityKey, Endpoint, EndpointKey, Frontend, FrontendKey, Group, MaglevTable, MemberKey,
    SourceKey,
};
use sluice_common::socket::{Peer, Pick, SocketKey};

use super::map::possible_cpus;
use super::syscall::MapShape;

const HASH: u32 = 1;
const ARRAY: u32 = 2;
pub(super) const PER_CPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const LPM_TRIE: u32 = 11;
/// `BPF_F_NO_PREALLOC`: memory for entries that there are, not for all that there could be.
const NO_PREALLOC: u32 = 1;

/// What a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its name.
    pub name: &'static str,
    /// The length of keys.
    pub key_size: u32,
    /// The length of values.
    pub value_size: u32,
    /// Entries that it has room for at first.
    pub entries: u32,
    /// Whether the programs, too, add entries; the least used go when it is full.
    pub is_lru: bool,
    map_type: u32,
}

impl Spec {
    /// Whether the daemon alone adds entries, so that a full map must be made larger.
    #[must_use]
    pub fn grows(&self) -> bool {
        matches!(self.map_type, HASH | LPM_TRIE)
    }

    /// What is done when the map is there with so many entries.
    pub(super) fn of_another_size(&self, found: u32) -> OtherSize {
        match self.name {
            "FLOWS" | "OLD_FLOWS" => OtherSize::Kept,
            "NEWEST" if found != self.entries => OtherSize::Anew,
            "COUNTERS" if found < self.entries => OtherSize::Copied,
            _ if self.is_lru && found != self.entries => OtherSize::Copied,
            _ => OtherSize::Kept,
        }
    }

    pub(super) fn shape(&self, max_entries: u32) -> MapShape {
        MapShape {
            map_type: self.map_type,
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
    sluice_common::maps::NAMES.iter().filter_map(move |name| spec(name, sizes))
}

/// A map by its name.
#[must_use]
pub fn spec(name: &str, sizes: Sizes) -> Option<Spec> {
    /// The prefix length of a key.
    const LENGTH: usize = size_of::<u32>();
    const ID: usize = size_of::<u64>();
    const WORD: usize = size_of::<u32>();
    let name = *sluice_common::maps::NAMES.iter().find(|known| **known == name)?;
    let (map_type, key, value, entries) = match name {
        "FRONTENDS" => (HASH, size_of::<FrontendKey>(), size_of::<Frontend>(), 16_384),
        "GROUPS" => (HASH, ID, size_of::<Group>(), 16_384),
        "ENDPOINTS" => (HASH, size_of::<EndpointKey>(), size_of::<Endpoint>(), 65_536),
        "MEMBERS" => (HASH, size_of::<MemberKey>(), WORD, 16_384),
        "SOURCES" => (LPM_TRIE, LENGTH + size_of::<SourceKey>(), WORD, 16_384),
        "CURSORS" => (HASH, ID, WORD, 16_384),
        "MAGLEV" => (HASH, ID, size_of::<MaglevTable>(), 16_384),
        "AFFINITY" => (LRU_HASH, size_of::<AffinityKey>(), size_of::<Affinity>(), sizes.flows.max(LEAST)),
        "FLOWS" => (LRU_HASH, size_of::<FlowKey>(), size_of::<Flow>(), sizes.flow_entries()),
        "NEWEST" => (ARRAY, WORD, size_of::<Begun>(), sizes.begun().saturating_add(1)),
        // Empty until the flow table gets another size.
        "OLD_FLOWS" => (LRU_HASH, size_of::<FlowKey>(), size_of::<Flow>(), 64),
        "FRAGMENTS" => (LRU_HASH, size_of::<FragmentKey>(), size_of::<Fragment>(), 8_192),
        "PEERS" | "TCP_PEERS" => {
            (LRU_HASH, size_of::<SocketKey>(), size_of::<Peer>(), (sizes.flows / 2).max(LEAST))
        }
        "PICKS" => (LRU_HASH, size_of::<SocketKey>(), size_of::<Pick>(), (sizes.flows / 2).max(LEAST)),
        "CONFIG" => (ARRAY, WORD, size_of::<Config>(), 1),
        "ADDRESSES" => (HASH, size_of::<Address>(), WORD, 4_096),
        "NETWORKS" => (LPM_TRIE, LENGTH + size_of::<Address>(), WORD, 1_024),
        "INTERFACES" => (HASH, WORD, size_of::<Interface>(), 4_096),
        "POD_SOURCES" => (HASH, size_of::<PodSource>(), WORD, 8_192),
        "NAMESPACES" => (HASH, ID, WORD, 4_096),
        "COUNTERS" => (PER_CPU_ARRAY, WORD, ID, counters::COUNT as u32),
        _ => return None,
    };
    Some(Spec {
        name,
        key_size: key as u32,
        value_size: value as u32,
        entries,
        is_lru: map_type == LRU_HASH,
        map_type,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_has_a_shape() {
        let sizes = Sizes { flows: 1000 };
        assert_eq!(specs(sizes).count(), sluice_common::maps::NAMES.len());
        assert_eq!(spec("NONE", sizes), None);
        assert!(specs(sizes).all(|spec| !(spec.is_lru && spec.grows())));
    }

    #[test]
    fn the_flow_table_has_room_for_connections_and_for_a_ring_of_flows_that_begin() {
        for (flows, begun) in [(1_024, 1_024), (131_072, 32_768), (16_777_216, 4_194_304)] {
            let entries = |name| spec(name, Sizes { flows }).map_or(0, |spec| spec.entries);
            assert_eq!(entries("NEWEST"), begun + 1);
            assert!(entries("FLOWS") >= 2 * (flows + begun) + 2 * STOCK, "{flows}");
        }
    }

    #[test]
    fn what_is_counted_is_never_made_smaller() {
        let of =
            |name: &str, found| spec(name, Sizes { flows: 10_000 }).map(|spec| spec.of_another_size(found));
        let count = counters::COUNT as u32;
        assert_eq!(of("COUNTERS", count - 1), Some(OtherSize::Copied));
        assert_eq!([of("COUNTERS", count), of("COUNTERS", count + 1)], [Some(OtherSize::Kept); 2]);
        assert_eq!([of("AFFINITY", 9_999), of("AFFINITY", 10_001)], [Some(OtherSize::Copied); 2]);
        assert_eq!([of("NEWEST", 2_500), of("NEWEST", 2_501)], [OtherSize::Anew, OtherSize::Kept].map(Some));
        assert_eq!([of("FLOWS", 1), of("ENDPOINTS", 1)], [Some(OtherSize::Kept); 2]);
    }
}
