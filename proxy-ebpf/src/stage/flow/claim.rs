//! Who removes or replaces an entry of the flow table claims it before.
//!
//! Maps have no "remove if": what is at a key may be another flow's by the time that it is removed.
//! So an entry that shall go is marked in place of the time that it was used last, in one step, and
//! only if nobody has used it since. The rules:
//!
//! - Nobody removes or replaces an entry that he has not claimed, and nobody claims one that is
//!   claimed.
//! - Nobody waits: who finds an entry claimed takes another port, or lets the packet go; its sender
//!   sends it again.
//! - Where no entry is, one is only added (`BPF_NOEXIST`).
//!
//! So what is removed is what was claimed, unless a full table has dropped it in between; then, as
//! after each other loss of one of a flow's two entries, `flow::follow` mends it.
//! `proxy-common/tests/flow_protocol.rs` goes through all interleavings.

use core::arch::asm;
use core::ptr;

use aya_ebpf::bindings::__sk_buff;
use sluice_common::flow::{CLAIMED, ENDED, Flow, FlowKey, ORDER_AT, Order};

use crate::maps::FLOWS;
use crate::packet::load;

const NOT_ENDED: i32 = 0;
const ENOENT: i32 = 2;

/// Adds one to a number, in one step; returns what it was.
#[inline(always)]
pub fn next(number: *mut u64) -> u64 {
    let was: u64;
    // SAFETY: `number` is an aligned field of a map's value.
    unsafe {
        asm!(
            "{was} = atomic_fetch_add((u64 *)({number} + 0), {was})",
            number = in(reg) number,
            was = inout(reg) 1_u64 => was,
        );
    }
    was
}

/// Puts `new` in the place of `expected`, in one step; returns what was there.
#[inline(always)]
fn exchange(word: *mut u64, expected: u64, new: u64) -> u64 {
    let was: u64;
    // SAFETY: `word` is an aligned field of a map's value. The target's own atomics are made for
    // one thread.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inout("r0") expected => was,
        );
    }
    was
}

/// The last use of an entry, read once.
#[inline(always)]
pub fn used(flow: *const Flow) -> u64 {
    // SAFETY: an aligned field of a map's value.
    unsafe { ptr::read_volatile(&raw const (*flow).used) }
}

/// Notes the time of a packet. `false`: the entry was claimed since `before` was read.
#[inline(always)]
pub fn touch(flow: *mut Flow, before: u64, now: u64) -> bool {
    // SAFETY: computes an address. Another processor's time is as good as this one's.
    exchange(unsafe { &raw mut (*flow).used }, before, now) != CLAIMED
}

/// Claims an entry, if it was not used since `used` was read.
#[inline(always)]
pub fn claim(key: &FlowKey, flow: *mut Flow, used: u64) -> bool {
    // SAFETY: computes an address.
    if used == CLAIMED || exchange(unsafe { &raw mut (*flow).used }, used, CLAIMED) != used {
        return false;
    }
    // Memory that was evicted and used again after it was looked up holds another key's entry.
    if FLOWS.get_ptr_mut(key) == Some(flow) {
        return true;
    }
    release(flow, used);
    false
}

/// Gives up a claim.
#[inline(always)]
pub fn release(flow: *mut Flow, used: u64) {
    // SAFETY: computes an address.
    exchange(unsafe { &raw mut (*flow).used }, CLAIMED, used);
}

/// Removes an entry that was claimed. Where that cannot be done now (`EBUSY`), the claim is given
/// up.
#[inline(always)]
pub fn remove(key: &FlowKey, flow: *mut Flow, used: u64) -> bool {
    match FLOWS.remove(key) {
        Ok(()) => true,
        // Evicted meanwhile.
        Err(error) if error == -ENOENT => true,
        Err(_) => {
            release(flow, used);
            false
        }
    }
}

/// Removes a flow as the daemon says.
#[inline(always)]
pub fn obey(skb: *mut __sk_buff) -> i32 {
    let mut order = Order::default();
    if !load(skb, ORDER_AT, (&raw mut order).cast(), size_of::<Order>() as u32) {
        return NOT_ENDED;
    }
    let Order { key, other, used, other_used } = &order;
    if end(key, *used, other, *other_used) { ENDED as i32 } else { NOT_ENDED }
}

/// Removes both entries of a flow, if neither was used since the times were read; 0: there is no
/// other one. Returns whether they are removed.
#[inline(always)]
pub fn end(key: &FlowKey, used: u64, other_key: &FlowKey, other_used: u64) -> bool {
    let Some(flow) = FLOWS.get_ptr_mut(key) else { return false };
    if !claim(key, flow, used) {
        return false;
    }
    if other_used == 0 {
        return remove(key, flow, used);
    }
    let Some(other) = FLOWS.get_ptr_mut(other_key) else {
        release(flow, used);
        return false;
    };
    if !claim(other_key, other, other_used) {
        release(flow, used);
        return false;
    }
    [remove(other_key, other, other_used), remove(key, flow, used)] == [true, true]
}
