//! The table of maps: an entry here and one in `proxy-ebpf/src/maps.rs` make a map. The daemon
//! compares the two when it loads the programs.

use crate::Address;
use crate::counters::COUNT;
use crate::flow::{Begun, Flow, FlowKey, Fragment, FragmentKey};
use crate::node::{Config, Interface, PodSource};
use crate::service::{
    Affinity, AffinityKey, Endpoint, EndpointKey, Frontend, FrontendKey, Group, MaglevTable, MemberKey,
    SourceKey,
};
use crate::socket::{Peer, Pick, SocketKey};

/// How a map finds its entries: `enum bpf_map_type` of `include/uapi/linux/bpf.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapType {
    /// By key. Only the daemon adds entries, so that a full map must be made larger.
    Hash = 1,
    /// By number.
    Array = 2,
    /// By number, for each CPU.
    PerCpuArray = 6,
    /// By key. Programs add entries, too; the least used go when the map is full.
    LruHash = 9,
    /// By the longest prefix; a word with its length comes before the key. Only the daemon adds
    /// entries.
    LongestPrefix = 11,
}

/// Entries that a map has room for at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// So many.
    Fixed(u32),
    /// As many as there may be connections (`sluice.ebpf.flows`).
    Clients,
    /// Half as many.
    Sockets,
    /// Two for each connection, and for each that has only begun.
    Flows,
    /// One for each connection that has only begun, and the first, which numbers them.
    Begun,
}

/// What a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// How it finds its entries.
    pub map_type: MapType,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries that it has room for at first.
    pub room: Room,
}

macro_rules! maps {
    ($($(#[$doc:meta])* $map:ident = $name:literal: $type:ident<$key:ty, $value:ty>, $room:expr;)+) => {
        /// A map.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum MapName {
            $($(#[$doc])* $map),+
        }

        impl MapName {
            /// All maps.
            pub const ALL: &'static [MapName] = &[$(MapName::$map),+];

            /// Its name in the object file and among the pins.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(MapName::$map => $name),+ }
            }

            /// What it is.
            #[must_use]
            pub const fn layout(self) -> Layout {
                match self {
                    $(MapName::$map => {
                        let map_type = MapType::$type;
                        Layout {
                            map_type,
                            key_size: size_of::<$key>() as u32 + prefix(map_type),
                            value_size: size_of::<$value>() as u32,
                            room: $room,
                        }
                    })+
                }
            }
        }
    };
}

maps! {
    /// What is captured. Written by the daemon.
    Frontends = "FRONTENDS": Hash<FrontendKey, Frontend>, Room::Fixed(16_384);
    /// By group id with list. Written by the daemon.
    Groups = "GROUPS": Hash<u64, Group>, Room::Fixed(16_384);
    /// Endpoints by slot. Written by the daemon.
    Endpoints = "ENDPOINTS": Hash<EndpointKey, Endpoint>, Room::Fixed(65_536);
    /// Whom an affine client may still stick to. Written by the daemon.
    Members = "MEMBERS": Hash<MemberKey, u32>, Room::Fixed(16_384);
    /// Source ranges of load balancers. Written by the daemon.
    Sources = "SOURCES": LongestPrefix<SourceKey, u32>, Room::Fixed(16_384);
    /// With scheduler rr, by group id with list: whose turn it is. The daemon creates them,
    /// programs count.
    Cursors = "CURSORS": Hash<u64, u32>, Room::Fixed(16_384);
    /// With scheduler maglev, by group id with list. Written by the daemon.
    Maglev = "MAGLEV": Hash<u64, MaglevTable>, Room::Fixed(16_384);
    /// Clients that are remembered. Written by programs.
    Affinity = "AFFINITY": LruHash<AffinityKey, Affinity>, Room::Clients;
    /// Connections of the packet path. Written by programs.
    Flows = "FLOWS": LruHash<FlowKey, Flow>, Room::Flows;
    /// The flow table of before; empty until the flow table gets another size. Written by programs.
    OldFlows = "OLD_FLOWS": LruHash<FlowKey, Flow>, Room::Fixed(64);
    /// 0, then slots of flows that have only begun. Written by programs.
    Newest = "NEWEST": Array<u32, Begun>, Room::Begun;
    /// Datagrams whose fragments pass. Written by programs.
    Fragments = "FRAGMENTS": LruHash<FragmentKey, Fragment>, Room::Fixed(8_192);
    /// UDP sockets that were translated. Written by programs.
    Peers = "PEERS": LruHash<SocketKey, Peer>, Room::Sockets;
    /// TCP sockets that were translated. Written by programs.
    TcpPeers = "TCP_PEERS": LruHash<SocketKey, Peer>, Room::Sockets;
    /// Endpoints that unconnected UDP sockets have. Written by programs.
    Picks = "PICKS": LruHash<SocketKey, Pick>, Room::Sockets;
    /// Settings. Written by the daemon.
    Config = "CONFIG": Array<u32, Config>, Room::Fixed(1);
    /// This node's addresses, with [`crate::node::address`]. Written by the daemon.
    Addresses = "ADDRESSES": Hash<Address, u32>, Room::Fixed(4_096);
    /// Networks of Services and pods, with [`crate::node::network`]. Written by the daemon.
    Networks = "NETWORKS": LongestPrefix<Address, u32>, Room::Fixed(1_024);
    /// By interface index. Written by the daemon.
    Interfaces = "INTERFACES": Hash<u32, Interface>, Room::Fixed(4_096);
    /// Addresses of pods behind links, with zero. Written by the daemon.
    PodSources = "POD_SOURCES": Hash<PodSource, u32>, Room::Fixed(8_192);
    /// By cookie of a network namespace, with [`crate::node::namespace`]. Written by the daemon.
    Namespaces = "NAMESPACES": Hash<u64, u32>, Room::Fixed(4_096);
    /// By [`crate::counters::Counter`]. Written by programs.
    Counters = "COUNTERS": PerCpuArray<u32, u64>, Room::Fixed(COUNT as u32);
}

/// Bytes before a key.
const fn prefix(map_type: MapType) -> u32 {
    match map_type {
        MapType::LongestPrefix => size_of::<u32>() as u32,
        _ => 0,
    }
}

impl core::fmt::Display for MapName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}
