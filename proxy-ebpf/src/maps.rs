//! The maps; `sluice_common::maps` says who writes what. Sizes are those of a small node: the
//! daemon sets others at load.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use sluice_common::Address;
use sluice_common::counters::COUNT;
use sluice_common::flow::{Begun, Flow, FlowKey, Fragment, FragmentKey};
use sluice_common::node::{Config, Interface, PodSource};
use sluice_common::service::{
    Affinity, AffinityKey, Endpoint, EndpointKey, Frontend, FrontendKey, Group, MaglevTable, MemberKey,
    SourceKey,
};
use sluice_common::socket::{Peer, Pick, SocketKey};

use crate::run::Scratch;

/// Memory for what there is, not for what there could be.
const GROWS: u32 = BPF_F_NO_PREALLOC;

#[map]
pub static FRONTENDS: HashMap<FrontendKey, Frontend> = HashMap::with_max_entries(65_536, GROWS);
#[map]
pub static GROUPS: HashMap<u64, Group> = HashMap::with_max_entries(65_536, GROWS);
#[map]
pub static ENDPOINTS: HashMap<EndpointKey, Endpoint> = HashMap::with_max_entries(262_144, GROWS);
#[map]
pub static MEMBERS: HashMap<MemberKey, u32> = HashMap::with_max_entries(65_536, GROWS);
#[map]
pub static SOURCES: LpmTrie<SourceKey, u32> = LpmTrie::with_max_entries(16_384, 0);
#[map]
pub static CURSORS: HashMap<u64, u32> = HashMap::with_max_entries(65_536, GROWS);
#[map]
pub static MAGLEV: HashMap<u64, MaglevTable> = HashMap::with_max_entries(65_536, GROWS);
#[map]
pub static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::with_max_entries(65_536, 0);
#[map]
pub static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(262_144, 0);
#[map]
pub static OLD_FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(1, 0);
#[map]
pub static NEWEST: Array<Begun> = Array::with_max_entries(1, 0);
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, Fragment> = LruHashMap::with_max_entries(8_192, 0);
#[map]
pub static PEERS: LruHashMap<SocketKey, Peer> = LruHashMap::with_max_entries(65_536, 0);
#[map]
pub static TCP_PEERS: LruHashMap<SocketKey, Peer> = LruHashMap::with_max_entries(65_536, 0);
#[map]
pub static PICKS: LruHashMap<SocketKey, Pick> = LruHashMap::with_max_entries(65_536, 0);
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map]
pub static ADDRESSES: HashMap<Address, u32> = HashMap::with_max_entries(16_384, GROWS);
#[map]
pub static NETWORKS: LpmTrie<Address, u32> = LpmTrie::with_max_entries(1_024, 0);
#[map]
pub static INTERFACES: HashMap<u32, Interface> = HashMap::with_max_entries(16_384, GROWS);
#[map]
pub static POD_SOURCES: HashMap<PodSource, u32> = HashMap::with_max_entries(8_192, GROWS);
#[map]
pub static NAMESPACES: HashMap<u64, u32> = HashMap::with_max_entries(16_384, GROWS);
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNT as u32, 0);
/// What a run of a packet program remembers.
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
