//! What the daemon writes about services, and affinity, which the programs write.

use crate::{Address, sizes};

/// Key of the map `FRONTENDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendKey {
    /// The address captured. For node ports the unspecified address of the family: `::`, or
    /// `::ffff:0.0.0.0`.
    pub address: Address,
    /// The port captured, in network order; 0 in the entry that marks an address as a ClusterIP.
    pub port: u16,
    /// IP protocol number; 0 in the entry that marks an address as a ClusterIP.
    pub protocol: u8,
    /// One of [`kind`].
    pub kind: u8,
}

/// Kinds of frontends.
pub mod kind {
    /// An address.
    pub const ADDRESS: u8 = 0;
    /// A node port on the node's chosen addresses.
    pub const NODE_PORT: u8 = 1;
}

/// Value of the map `FRONTENDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frontend {
    /// Identity of the service port, with the bits of [`list`] zero.
    pub group: u64,
    /// ClientIP affinity timeout in seconds; 0: none.
    pub affinity: u32,
    /// What pods get: one of [`action`].
    pub pod: u8,
    /// What this node's own processes get.
    pub host: u8,
    /// What everybody else gets.
    pub other: u8,
    /// Bits of [`flag`].
    pub flags: u8,
}

/// What a client of some kind gets: one of the values, and bits for those that forward.
pub mod action {
    /// Nothing may be read into a zeroed entry.
    pub const NONE: u8 = 0;
    /// Refuse with an ICMP port unreachable, or `ECONNREFUSED` from a system call.
    pub const REJECT: u8 = 1;
    /// Say nothing.
    pub const DROP: u8 = 2;
    /// Send to an endpoint of the Cluster list.
    pub const CLUSTER: u8 = 4;
    /// Send to an endpoint of the Local list.
    pub const LOCAL: u8 = 5;
    /// A bit beside `CLUSTER` and `LOCAL`: the endpoint sees an address of this node.
    pub const MASQUERADE: u8 = 0x10;
}

/// Flags of a frontend.
pub mod flag {
    /// Only sources in the map `SOURCES` may connect.
    pub const FILTERED: u8 = 1;
    /// An address that is marked as a ClusterIP, and nothing more: [`action`](super::action)s are
    /// what its undefined ports get.
    pub const CLUSTER_IP: u8 = 2;
}

/// The lowest bits of a group id: which list of a service port.
pub mod list {
    /// The Cluster endpoint list.
    pub const CLUSTER: u64 = 0;
    /// The Local endpoint list.
    pub const LOCAL: u64 = 1;
    /// UDP: all serving endpoints (`MEMBERS` only); flows to others are stale.
    pub const SERVING: u64 = 2;
    /// The bits.
    pub const MASK: u64 = 3;
}

/// Value of the map `GROUPS`; its key is the group id with its list.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Number of slots in `ENDPOINTS`.
    pub count: u32,
    /// Zero.
    pub reserved: u32,
}

/// Key of the map `ENDPOINTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointKey {
    /// Group id with its list.
    pub group: u64,
    /// From 0 to the group's count less one.
    pub slot: u32,
    /// Zero.
    pub reserved: u32,
}

/// Value of the map `ENDPOINTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Its address.
    pub address: Address,
    /// Its port, in network order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// Key of the map `MEMBERS`, whose value is a `u32` without meaning: which endpoints may still be
/// used by whoever was sent there before. Held for groups with affinity, and for UDP
/// ([`list::SERVING`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberKey {
    /// Group id with its list.
    pub group: u64,
    /// The endpoint's address.
    pub address: Address,
    /// The endpoint's port, in network order.
    pub port: u16,
    /// Zero.
    pub reserved: [u16; 3],
}

/// Data of the map `SOURCES`, a longest prefix match over this: networks that may use a filtered
/// frontend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceKey {
    /// The frontend; always matched in full.
    pub frontend: FrontendKey,
    /// The client.
    pub source: Address,
}

/// Bits of [`SourceKey`] before the client's address.
pub const SOURCE_PREFIX: u32 = 160;

/// Key of the map `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// Group id without its list: all frontends and both lists of a service port share what they
    /// remember.
    pub group: u64,
    /// The client's address. Of the node's own processes, which may use any of its addresses: the
    /// cookie of the network namespace in the last two words and zeros (which no client's address
    /// has) before.
    pub client: Address,
}

/// Value of the map `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// When the client last connected: nanoseconds of `CLOCK_MONOTONIC`.
    pub used: u64,
    /// Where to.
    pub endpoint: Endpoint,
    /// Zero.
    pub reserved: u32,
}

/// Slots of a Maglev table (a prime, as Maglev needs it).
pub const MAGLEV_SLOTS: usize = 1021;

/// Value of the map `MAGLEV`; its key is the group id with its list.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaglevTable {
    /// Which slot of `ENDPOINTS` has each part of the hash space.
    pub slots: [u16; MAGLEV_SLOTS],
    /// Zero.
    pub reserved: u16,
}

sizes!(
    FrontendKey = 20,
    Frontend = 16,
    Group = 8,
    EndpointKey = 16,
    Endpoint = 20,
    MemberKey = 32,
    SourceKey = 36,
    AffinityKey = 24,
    Affinity = 32,
    MaglevTable = 2044,
);
const _: () = assert!(SOURCE_PREFIX as usize == core::mem::size_of::<FrontendKey>() * 8);
