//! Which maps there are: the table in sluice-common, with sizes.

use std::mem::size_of;

use sluice_common::Address;
use sluice_common::counters;
use sluice_common::flow::{Flow, FlowKey, Fragment, FragmentKey};
use sluice_common::node::{Config, Interface};
use sluice_common::service::{
    Affinity, AffinityKey, Endpoint, EndpointKey, Frontend, FrontendKey, Group, MaglevTable, MemberKey,
    SourceKey,
};
use sluice_common::socket::{Peer, Pick, SocketKey};

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

/// Sizes that are settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Connections. `FLOWS` has two entries for each; what is remembered of sockets and clients goes by it, too, because these
    /// maps take all their memory at once.
    pub flows: u32,
}

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
        "FLOWS" => (LRU_HASH, size_of::<FlowKey>(), size_of::<Flow>(), sizes.flows.saturating_mul(2)),
        // Empty until the flow table gets another size.
        "OLD_FLOWS" => (LRU_HASH, size_of::<FlowKey>(), size_of::<Flow>(), 64),
        "FRAGMENTS" => (LRU_HASH, size_of::<FragmentKey>(), size_of::<Fragment>(), 8_192),
        "PEERS" | "TCP_PEERS" => (LRU_HASH, size_of::<SocketKey>(), size_of::<Peer>(), (sizes.flows / 2).max(LEAST)),
        "PICKS" => (LRU_HASH, size_of::<SocketKey>(), size_of::<Pick>(), (sizes.flows / 2).max(LEAST)),
        "CONFIG" => (ARRAY, WORD, size_of::<Config>(), 1),
        "ADDRESSES" => (HASH, size_of::<Address>(), WORD, 4_096),
        "NETWORKS" => (LPM_TRIE, LENGTH + size_of::<Address>(), WORD, 1_024),
        "INTERFACES" => (HASH, WORD, size_of::<Interface>(), 4_096),
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
        assert_eq!(spec("FLOWS", sizes).map(|spec| spec.entries), Some(2000));
        assert_eq!(spec("NONE", sizes), None);
        assert!(specs(sizes).all(|spec| !(spec.is_lru && spec.grows())));
    }
}
