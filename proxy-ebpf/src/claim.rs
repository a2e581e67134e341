//! Who removes or replaces an entry of the flow table claims it before.
//!
//! Maps have no "remove if": what is at a key may be another flow's by the time that it is removed. So an entry that shall go
//! is marked in place of the time that it was used last, in one step, and only if nobody has used it since. The rules:
//!
//! - Nobody removes or replaces an entry that he has not claimed, and nobody claims one that is claimed.
//! - Nobody waits: who finds an entry claimed takes another port, or lets the packet go; its sender sends it again.
//! - Where no entry is, one is only added (`BPF_NOEXIST`).
//!
//! So what is removed is what was claimed, unless a full table has dropped it in between; then, as after each other loss of one
//! of a flow's two entries, `flow::follow` mends it. `proxy-common/tests/flow_protocol.rs` goes through all interleavings.

use core::arch::asm;
use core::ptr;

use aya_ebpf::bindings::__sk_buff;
use sluice_common::flow::{CLAIMED, ENDED, Flow, FlowKey, ORDER_AT, Order};

use crate::maps::FLOWS;
use crate::packet::load;

const NOT_ENDED: i32 = 0;
const ENOENT: i32 = 2;

/// Puts `new` in the place of `expected`, in one step; returns what was there.
#[inline(always)]
fn exchange(word: *mut u64, expected: u64, new: u64) -> u64 {
    let was: u64;
    // SAFETY: `word` is an aligned field of a map's value. The target's own atomics are made for one thread.
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

/// Removes an entry that was claimed. Where that cannot be done now (`EBUSY`), the claim is given up.
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
    let Some(flow) = FLOWS.get_ptr_mut(&order.key) else { return NOT_ENDED };
    if !claim(&order.key, flow, order.used) {
        return NOT_ENDED;
    }
    if order.other_used == 0 {
        return if remove(&order.key, flow, order.used) { ENDED as i32 } else { NOT_ENDED };
    }
    let Some(other) = FLOWS.get_ptr_mut(&order.other) else {
        release(flow, order.used);
        return NOT_ENDED;
    };
    if !claim(&order.other, other, order.other_used) {
        release(flow, order.used);
        return NOT_ENDED;
    }
    let both = [remove(&order.other, other, order.other_used), remove(&order.key, flow, order.used)];
    if both == [true, true] { ENDED as i32 } else { NOT_ENDED }
}
