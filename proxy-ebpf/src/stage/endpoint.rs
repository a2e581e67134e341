//! Which endpoint a client gets. Both paths use it.

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use sluice_common::Address;
use sluice_common::node::{Config, scheduler};
use sluice_common::service::{
    Affinity, AffinityKey, Endpoint, EndpointKey, Frontend, FrontendKey, MAGLEV_SLOTS, MemberKey, action,
    list,
};

use crate::maps::{AFFINITY, CURSORS, ENDPOINTS, GROUPS, MAGLEV, MEMBERS};
use crate::run::{Run, Scratch};
use crate::verdict::{Reason, Verdict};

/// Makes the flow in `scratch.flow` one to an endpoint. Returns whether it is masqueraded.
#[inline(always)]
pub fn set(run: &Run<'_>, scratch: &mut Scratch, frontend: &Frontend, what: u8) -> Result<bool, Verdict> {
    let client = &scratch.packet.key;
    let hash = hash(&client.source, client.source_port, &scratch.frontend);
    let Some(endpoint) = pick(frontend, what, &client.source, hash, run.config) else {
        return Err(Verdict::Drop(Reason::NoEndpoint));
    };
    scratch.flow.destination = endpoint.address;
    scratch.flow.destination_port = endpoint.port;
    scratch.flow.flags = 0;
    scratch.flow.group = frontend.group;
    let hairpin = endpoint.address == client.source;
    Ok(what & action::MASQUERADE != 0 || hairpin)
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
    // SAFETY: as in `node::interface`.
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
    // SAFETY: as in `is_member`.
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
    // SAFETY: as in `is_member`.
    unsafe { ENDPOINTS.get(EndpointKey { group, slot, reserved: 0 }) }.copied()
}

#[inline(always)]
fn turn(group: u64, hash: u32, config: &Config) -> u32 {
    match config.scheduler {
        scheduler::ROUND_ROBIN => {
            if let Some(cursor) = CURSORS.get_ptr_mut(group) {
                // SAFETY: aligned, and memory of an element of this map even if it is deleted
                // meanwhile. Two CPUs at once may take the same turn.
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
