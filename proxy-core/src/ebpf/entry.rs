//! Map entries as values, and what is done with them.

use std::net::IpAddr;

use sluice_common::Address;
use sluice_common::maps::MapName;
use sluice_common::node::Config;
use sluice_common::service::{
    Endpoint, EndpointKey, Frontend, FrontendKey, Group, MaglevTable, MemberKey, SOURCE_PREFIX, SourceKey,
    flag,
};

use crate::diff::{Delta, Keyed};

/// A map that the daemon writes, in the order of writing: what programs look up late is written
/// first and deleted last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MapKind {
    /// Which endpoints may still be used by whoever was sent there before.
    Members,
    /// Who may use filtered frontends.
    Sources,
    /// Whose turn it is (scheduler rr).
    Cursors,
    /// The slots of groups.
    Endpoints,
    /// Maglev tables (scheduler maglev).
    Maglev,
    /// How many slots there are.
    Groups,
    /// What is captured.
    Frontends,
    /// This node's addresses.
    Addresses,
    /// Networks of services and pods.
    Networks,
    /// Settings.
    Config,
}

impl MapKind {
    /// All of them, in order.
    pub const ALL: [MapKind; 10] = [
        MapKind::Members,
        MapKind::Sources,
        MapKind::Cursors,
        MapKind::Endpoints,
        MapKind::Maglev,
        MapKind::Groups,
        MapKind::Frontends,
        MapKind::Addresses,
        MapKind::Networks,
        MapKind::Config,
    ];

    /// The map.
    pub const fn map(self) -> MapName {
        match self {
            MapKind::Members => MapName::Members,
            MapKind::Sources => MapName::Sources,
            MapKind::Cursors => MapName::Cursors,
            MapKind::Endpoints => MapName::Endpoints,
            MapKind::Maglev => MapName::Maglev,
            MapKind::Groups => MapName::Groups,
            MapKind::Frontends => MapName::Frontends,
            MapKind::Addresses => MapName::Addresses,
            MapKind::Networks => MapName::Networks,
            MapKind::Config => MapName::Config,
        }
    }

    /// Whether the map tells of services ([`Ledger`](super::Ledger)), and not of the node
    /// ([`NodeView`](super::NodeView)).
    pub const fn is_of_services(self) -> bool {
        !matches!(self, MapKind::Addresses | MapKind::Networks | MapKind::Config)
    }
}

/// An entry of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An endpoint that may still be used. There is nothing but the key.
    Member(MemberKey),
    /// A network that may use a filtered frontend: prefix length in bits, frontend included, and
    /// data.
    Source(u32, SourceKey),
    /// The cursor of a group. What it says belongs to the programs, so it is put only where there
    /// is none.
    Cursor(u64),
    /// The endpoint in a slot.
    Endpoint(EndpointKey, Endpoint),
    /// The Maglev table of a group.
    Maglev(u64, Box<MaglevTable>),
    /// The size of a group.
    Group(u64, Group),
    /// A frontend, or the mark of a ClusterIP.
    Frontend(FrontendKey, Frontend),
    /// An own address, with bits of `sluice_common::node::address`.
    Address(Address, u32),
    /// A network: prefix length in bits, address, and bits of `sluice_common::node::network`.
    Network(u32, Address, u32),
    /// The settings.
    Config(Box<Config>),
}

/// Which entry: map and key. They are ordered as they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntryId {
    /// In `MEMBERS`.
    Member(MemberKey),
    /// In `SOURCES`: prefix length and data.
    Source(u32, SourceKey),
    /// In `CURSORS`.
    Cursor(u64),
    /// In `ENDPOINTS`.
    Endpoint(EndpointKey),
    /// In `MAGLEV`.
    Maglev(u64),
    /// In `GROUPS`.
    Group(u64),
    /// In `FRONTENDS`.
    Frontend(FrontendKey),
    /// In `ADDRESSES`.
    Address(Address),
    /// In `NETWORKS`: prefix length and address.
    Network(u32, Address),
    /// In `CONFIG`.
    Config,
}

impl Entry {
    /// Its map and key.
    pub fn id(&self) -> EntryId {
        match self {
            Entry::Member(key) => EntryId::Member(*key),
            Entry::Source(length, key) => EntryId::Source(*length, *key),
            Entry::Cursor(group) => EntryId::Cursor(*group),
            Entry::Endpoint(key, _) => EntryId::Endpoint(*key),
            Entry::Maglev(group, _) => EntryId::Maglev(*group),
            Entry::Group(group, _) => EntryId::Group(*group),
            Entry::Frontend(key, _) => EntryId::Frontend(*key),
            Entry::Address(address, _) => EntryId::Address(*address),
            Entry::Network(length, address, _) => EntryId::Network(*length, *address),
            Entry::Config(_) => EntryId::Config,
        }
    }

    /// Its map.
    pub fn map(&self) -> MapKind {
        self.id().map()
    }

    /// The entry with nothing behind its prefix. In a longest prefix match such entries are the
    /// same, so they must not differ here: to delete one would delete the other.
    pub(super) fn canonical(self) -> Entry {
        match self {
            Entry::Source(length, SourceKey { frontend, source }) => {
                let source = truncated(source, length.saturating_sub(SOURCE_PREFIX));
                Entry::Source(length, SourceKey { frontend, source })
            }
            Entry::Network(length, address, flags) => {
                Entry::Network(length, truncated(address, length), flags)
            }
            other => other,
        }
    }

    /// Marks of ClusterIPs: written after all frontends and deleted before them, because what they
    /// say of ports that are not defined would be wrong for those not yet, or no more, written.
    fn is_mark(&self) -> bool {
        matches!(self, Entry::Frontend(_, frontend) if frontend.flags & flag::CLUSTER_IP != 0)
    }

    fn rank(&self) -> (MapKind, bool, EntryId) {
        (self.map(), self.is_mark(), self.id())
    }
}

impl EntryId {
    /// The map.
    pub fn map(&self) -> MapKind {
        match self {
            EntryId::Member(_) => MapKind::Members,
            EntryId::Source(..) => MapKind::Sources,
            EntryId::Cursor(_) => MapKind::Cursors,
            EntryId::Endpoint(_) => MapKind::Endpoints,
            EntryId::Maglev(_) => MapKind::Maglev,
            EntryId::Group(_) => MapKind::Groups,
            EntryId::Frontend(_) => MapKind::Frontends,
            EntryId::Address(_) => MapKind::Addresses,
            EntryId::Network(..) => MapKind::Networks,
            EntryId::Config => MapKind::Config,
        }
    }
}

impl Keyed for Entry {
    type Key<'a> = EntryId;

    fn key(&self) -> EntryId {
        self.id()
    }

    fn same_content(&self, other: &Self) -> bool {
        self == other
    }
}

/// One update of one map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes an entry, whether or not its key exists.
    Put(Entry),
    /// Deletes an entry that exists.
    Delete(EntryId),
}

/// Operations in an order that leaves every lookup right between any two of them.
pub(super) fn ordered(delta: Delta<Entry>) -> Vec<Op> {
    let mut puts = delta.create;
    puts.extend(delta.update.into_iter().map(|(_, new)| new));
    puts.sort_unstable_by_key(Entry::rank);
    let mut deletes = delta.delete;
    deletes.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.rank()));
    puts.into_iter().map(Op::Put).chain(deletes.iter().map(|entry| Op::Delete(entry.id()))).collect()
}

/// Sorted by key, each key once.
pub(super) fn sorted(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_by_key(Entry::id);
    entries.dedup_by_key(|entry| entry.id());
    entries
}

/// An address as programs have it.
pub fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => Address::from_octets(ip.to_ipv6_mapped().octets()),
        IpAddr::V6(ip) => Address::from_octets(ip.octets()),
    }
}

/// An address of a program.
pub fn ip(address: Address) -> IpAddr {
    IpAddr::from(address.octets()).to_canonical()
}

/// An address with nothing behind the first `bits` bits.
fn truncated(address: Address, bits: u32) -> Address {
    let keep = u128::MAX.checked_shl(128u32.saturating_sub(bits)).unwrap_or(0);
    Address::from_octets((u128::from_be_bytes(address.octets()) & keep).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_survive_the_way_there_and_back() {
        for text in ["10.1.2.3", "0.0.0.0", "fd00::1", "::", "::1"] {
            let there: IpAddr = text.parse().unwrap();
            assert_eq!(ip(address(there)), there);
            assert_eq!(address(there).is_v4(), there.is_ipv4());
        }
        assert_eq!(address("10.1.2.3".parse().unwrap()).word4(), u32::from_ne_bytes([10, 1, 2, 3]));
    }

    #[test]
    fn maps_are_in_the_order_of_writing() {
        assert!(MapKind::ALL.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn networks_that_differ_behind_their_prefix_are_the_same() {
        let entry = |text: &str, bits| Entry::Network(bits, address(text.parse().unwrap()), 1).canonical();
        assert_eq!(entry("10.1.2.3", 96 + 8), entry("10.0.0.0", 96 + 8));
        assert_eq!(entry("10.1.2.3", 128), Entry::Network(128, address("10.1.2.3".parse().unwrap()), 1));
        assert_eq!(entry("fd00::1", 0), entry("::", 0));
        let source = |text: &str| {
            let key = SourceKey { source: address(text.parse().unwrap()), ..SourceKey::default() };
            Entry::Source(SOURCE_PREFIX + 96 + 24, key).canonical()
        };
        assert_eq!(source("192.0.2.77"), source("192.0.2.0"));
        assert_ne!(source("192.0.2.77"), source("192.0.3.0"));
    }
}
