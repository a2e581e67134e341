//! Which frontend an address is, and which endpoint a client of it gets. Both paths use it.

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::maps::lpm_trie::Key;
use sluice_common::node::{Config, address, option, scheduler};
use sluice_common::service::{
    Affinity, AffinityKey, Endpoint, EndpointKey, Frontend, FrontendKey, MAGLEV_SLOTS, MemberKey,
    SOURCE_PREFIX, SourceKey, action, flag, kind, list,
};
use sluice_common::{Address, MAPPED};

use crate::maps::{ADDRESSES, AFFINITY, CURSORS, ENDPOINTS, FRONTENDS, GROUPS, MAGLEV, MEMBERS, SOURCES};

/// Looks a frontend up by its key.
#[inline(always)]
fn frontend(key: &FrontendKey) -> Option<&'static Frontend> {
    // SAFETY: elements of a map without preallocation are freed after a grace period, so a reader
    // never sees one reused.
    unsafe { FRONTENDS.get(key) }
}

/// Finds the frontend of a destination; leaves the key that it was found by in `key`, which must
/// hold address, port and protocol. `loopback` is what becomes of node ports there.
#[inline(always)]
pub fn find(key: &mut FrontendKey, loopback: Loopback) -> Option<&'static Frontend> {
    key.kind = kind::ADDRESS;
    if let Some(found) = frontend(key) {
        return Some(found);
    }
    if !answers_node_ports(&key.address, loopback) {
        return None;
    }
    key.kind = kind::NODE_PORT;
    let address = key.address;
    key.address = if address.is_v4() { Address::v4(0) } else { Address::default() };
    let found = frontend(key);
    if found.is_none() {
        key.address = address;
        key.kind = kind::ADDRESS;
    }
    found
}

/// Whether an address is some Service's ClusterIP, whose undefined ports are refused.
#[inline(always)]
pub fn is_cluster_ip(key: &mut FrontendKey) -> bool {
    let (port, protocol) = (key.port, key.protocol);
    (key.port, key.protocol, key.kind) = (0, 0, kind::ADDRESS);
    let found = frontend(key).is_some_and(|marker| marker.flags & flag::CLUSTER_IP != 0);
    (key.port, key.protocol) = (port, protocol);
    found
}

#[inline(always)]
fn answers_node_ports(to: &Address, loopback: Loopback) -> bool {
    loopback != Loopback::Elsewhere || own_address(to) & address::NODE_PORTS != 0
}

/// What becomes of a node port on a loopback address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Loopback {
    /// It is no loopback address, or the local stack's to answer.
    Elsewhere,
    /// It leads to endpoints.
    Served,
    /// It is refused.
    Refused,
}

impl Loopback {
    /// For one of this node's own processes that connects or sends to an address.
    #[inline(always)]
    pub fn of(to: &Address, config: &Config) -> Self {
        let [a, b, c, d] = to.words;
        let (serves, refuses) = if a != 0 || b != 0 {
            (0, 0)
        } else if c == MAPPED && u32::from_be(d) >> 24 == 127 {
            (option::SERVES_LOOPBACK4, option::REFUSES_LOOPBACK4)
        } else if c == 0 && d == 1_u32.to_be() {
            (option::SERVES_LOOPBACK6, option::REFUSES_LOOPBACK6)
        } else {
            (0, 0)
        };
        if config.options & serves != 0 {
            Loopback::Served
        } else if config.options & refuses != 0 {
            Loopback::Refused
        } else {
            Loopback::Elsewhere
        }
    }

    /// What a node port found there does. Nobody is short-circuited past externalTrafficPolicy
    /// Local, and what has no endpoints is refused like a closed port.
    #[inline(always)]
    pub fn action(self, frontend: &Frontend) -> u8 {
        if self == Loopback::Served && forwards(frontend.other) { frontend.other } else { action::REJECT }
    }
}

/// Bits of `ADDRESSES`; 0 for addresses that are not the node's.
#[inline(always)]
pub fn own_address(to: &Address) -> u32 {
    // SAFETY: as in `frontend`.
    unsafe { ADDRESSES.get(to) }.map_or(0, |bits| *bits)
}

/// Whether load balancer source ranges let a client use a frontend.
#[inline(always)]
pub fn is_allowed(frontend: &Frontend, key: &FrontendKey, source: &Address) -> bool {
    if frontend.flags & flag::FILTERED == 0 {
        return true;
    }
    SOURCES.get(Key::new(SOURCE_PREFIX + 128, SourceKey { frontend: *key, source: *source })).is_some()
}

/// What is left to do when it is known what a client gets.
#[inline(always)]
pub fn forwards(what: u8) -> bool {
    let what = what & !action::MASQUERADE;
    what == action::CLUSTER || what == action::LOCAL
}

/// The list that an action that forwards balances over.
#[inline(always)]
fn list_of(what: u8) -> u64 {
    if what & !action::MASQUERADE == action::LOCAL { list::LOCAL } else { list::CLUSTER }
}

/// Whether a member of a list is in force.
#[inline(always)]
pub fn is_member(group: u64, endpoint: &Endpoint) -> bool {
    let key = MemberKey { group, address: endpoint.address, port: endpoint.port, reserved: [0; 3] };
    // SAFETY: as in `frontend`.
    unsafe { MEMBERS.get(key) }.is_some()
}

/// Picks an endpoint for a new connection and remembers it for the client, if the service port has
/// affinity. `hash` is of what identifies the connection's client, for Maglev.
#[inline(always)]
pub fn pick(frontend: &Frontend, what: u8, client: &Address, hash: u32, config: &Config) -> Option<Endpoint> {
    let group = frontend.group | list_of(what);
    if frontend.affinity == 0 {
        return pick_slot(group, hash, config);
    }
    let key = AffinityKey { group: frontend.group, client: *client };
    // SAFETY: reads the clock.
    let now = unsafe { bpf_ktime_get_ns() };
    let timeout = u64::from(frontend.affinity) * 1_000_000_000;
    if let Some(known) = AFFINITY.get_ptr_mut(key) {
        // SAFETY: the element may be evicted and reused meanwhile; then another client's endpoint
        // is read, which must be a member of the group too, or it does not count.
        let (used, endpoint) = unsafe { ((*known).used, (*known).endpoint) };
        if now.wrapping_sub(used) < timeout && is_member(group, &endpoint) {
            // SAFETY: as above; a lost update costs one pick.
            unsafe { (*known).used = now };
            return Some(endpoint);
        }
    }
    let endpoint = pick_slot(group, hash, config)?;
    // A full map evicts; a failed update must not fail the connection.
    let _ = AFFINITY.insert(key, Affinity { used: now, endpoint, reserved: 0 }, 0);
    Some(endpoint)
}

#[inline(always)]
fn pick_slot(group: u64, hash: u32, config: &Config) -> Option<Endpoint> {
    // SAFETY: as in `frontend`.
    let count = unsafe { GROUPS.get(group) }?.count;
    if count == 0 {
        return None;
    }
    let slot = if count == 1 { 0 } else { turn(group, hash, config) % count };
    endpoint(group, slot).or_else(|| {
        // The group shrank between the two lookups. Slot 0 goes last.
        endpoint(group, 0)
    })
}

#[inline(always)]
fn endpoint(group: u64, slot: u32) -> Option<Endpoint> {
    // SAFETY: as in `frontend`.
    unsafe { ENDPOINTS.get(EndpointKey { group, slot, reserved: 0 }) }.copied()
}

#[inline(always)]
fn turn(group: u64, hash: u32, config: &Config) -> u32 {
    match config.scheduler {
        scheduler::ROUND_ROBIN => {
            if let Some(cursor) = CURSORS.get_ptr_mut(group) {
                // SAFETY: aligned, and lives until after a grace period. Two CPUs at once may take
                // the same turn.
                return unsafe {
                    let turn = core::ptr::read_volatile(cursor);
                    core::ptr::write_volatile(cursor, turn.wrapping_add(1));
                    turn
                };
            }
        }
        scheduler::MAGLEV => {
            if let Some(table) = MAGLEV.get_ptr(group) {
                // The verifier cannot tell that a remainder is below the divisor: it must see the
                // comparison.
                let at = core::hint::black_box(hash % MAGLEV_SLOTS as u32) as usize;
                if at < MAGLEV_SLOTS {
                    // SAFETY: `at` is below the table's length.
                    return u32::from(unsafe { *(table.cast::<u16>().add(at)) });
                }
            }
        }
        _ => {}
    }
    // SAFETY: reads a generator of random numbers.
    unsafe { bpf_get_prandom_u32() }
}

/// A hash of client and frontend that is the same on every node.
#[inline(always)]
pub fn hash(client: &Address, client_port: u16, frontend: &FrontendKey) -> u32 {
    let mut hash = 0x9e37_79b9_u32 ^ (u32::from(client_port) << 16) ^ u32::from(frontend.port);
    let words = [client.words, frontend.address.words];
    let mut mix = |word: u32| {
        // The finalizer of MurmurHash3, which is in the public domain.
        hash ^= word;
        hash ^= hash >> 16;
        hash = hash.wrapping_mul(0x85eb_ca6b);
        hash ^= hash >> 13;
        hash = hash.wrapping_mul(0xc2b2_ae35);
        hash ^= hash >> 16;
    };
    let [[a, b, c, d], [e, f, g, h]] = words;
    mix(a);
    mix(b);
    mix(c);
    mix(d);
    mix(e);
    mix(f);
    mix(g);
    mix(h);
    hash
}
