//! Flows that have only begun keep no place from others.
//!
//! The flow table drops what was silent longest when it is full, and a first packet costs its
//! sender nothing: without more, a flood of them would push out connections that live. So flows
//! that begin are written down in a ring, and each that comes takes the place of the one that began
//! a whole ring ago. If nobody has gone on with that one since, it ends. The table has room for a
//! ring besides the connections, so that what only begins never makes it full.
//!
//! Nobody has gone on as long as the client's entry was not touched since it was entered:
//! `flow::follow` does so with the first segment after a SYN, with a client's second datagram, and
//! with all that comes more than a second after. For UDP the endpoint must not have gone on for
//! longer than that, either. conntrack calls the others assured, by nearly the same rules.

use sluice_common::flow::{Begun, FlowKey};

use super::claim;
use crate::maps::{FLOWS, NEWEST};
use crate::packet::protocol;
use crate::verdict;

/// Writes down a flow that is about to be entered, in one of so many slots. `spare` is scratch
/// memory.
#[inline(never)]
pub fn remember(key: &FlowKey, used: u64, slots: u32, spare: &mut FlowKey) {
    if slots == 0 {
        return;
    }
    let Some(first) = NEWEST.get_ptr_mut(0) else { return };
    // SAFETY: computes an address.
    let number = claim::next(unsafe { &raw mut (*first).used });
    let Some(slot) = NEWEST.get_ptr_mut(1 + (number % u64::from(slots)) as u32) else { return };
    // SAFETY: elements of an array stay. Nobody else has this one before so many other flows have
    // begun.
    let slot = unsafe { &mut *slot };
    if end(slot, spare) {
        verdict::flow_gave_way();
    }
    slot.key = *key;
    slot.used = used;
}

/// Ends a flow that has only begun.
#[inline(always)]
fn end(begun: &Begun, other_key: &mut FlowKey) -> bool {
    let Some(flow) = FLOWS.get_ptr(&begun.key) else { return false };
    // SAFETY: what is reused meanwhile cannot be claimed with the time that was written down.
    let flow = unsafe { &*flow };
    if claim::used(flow) != begun.used {
        return false;
    }
    *other_key = begun.key.other(flow);
    let other_used = match FLOWS.get_ptr(&*other_key) {
        // SAFETY: as above.
        Some(other) if unsafe { &*other }.is_other_of(&begun.key) => claim::used(other),
        _ => 0,
    };
    // A SYN-ACK is a question still.
    if begun.key.protocol == protocol::UDP && other_used > begun.used {
        return false;
    }
    claim::end(&begun.key, begun.used, other_key, other_used)
}
