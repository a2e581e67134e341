//! The flow table: which packets belong to what was translated before.

pub mod claim;
mod newest;

use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use sluice_common::flow::{CLAIMED, Flow, FlowKey, flag, seen};
use sluice_common::node::Config;

use super::masquerade;
use crate::maps::{FLOWS, OLD_FLOWS};
use crate::packet::{Packet, is, protocol, tcp};
use crate::run::{Run, Scratch};
use crate::verdict::{self, Reason, Verdict};

const SECOND: u64 = 1_000_000_000;

/// The time.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: reads the clock.
    unsafe { bpf_ktime_get_ns() }
}

/// Finds the flow of a packet. A flow of the table of before comes along into the one in force.
#[inline(always)]
pub fn find(key: &FlowKey) -> Option<&'static mut Flow> {
    let found = FLOWS.get_ptr_mut(key).or_else(|| bring(key))?;
    // SAFETY: an entry that is evicted and reused while a packet is translated sends this one
    // packet astray; the alternative would be a copy for each packet.
    Some(unsafe { &mut *found })
}

/// Takes an entry out of the table of before, where none is added any more.
#[inline(always)]
fn bring(key: &FlowKey) -> Option<*mut Flow> {
    let old = OLD_FLOWS.get_ptr(key)?;
    // SAFETY: as in `find`.
    let copy = unsafe { *old };
    // The copy of a claim would be nobody's claim, and stay.
    if copy.used == CLAIMED {
        return None;
    }
    // Another processor may have been faster, or may have begun a new flow. If there is no room it
    // stays where it is.
    if let Err(error) = FLOWS.insert(key, copy, u64::from(BPF_NOEXIST))
        && error != EXISTS
    {
        return None;
    }
    // It must not come again when the flow has ended.
    let _ = OLD_FLOWS.remove(key);
    FLOWS.get_ptr_mut(key)
}

/// `-EEXIST`, of include/uapi/asm-generic/errno-base.h.
const EXISTS: i32 = -17;

/// The flow that a packet belongs to.
#[inline(always)]
pub fn of(packet: &Packet) -> Option<&'static mut Flow> {
    if packet.is(is::PORTS) { find(&packet.key) } else { None }
}

/// Whether a packet could be the first of a connection.
#[inline(always)]
pub fn may_begin(packet: &Packet) -> bool {
    packet.key.protocol != protocol::TCP || packet.is_syn()
}

/// Whether a flow's entry is a client's that goes straight to an endpoint.
#[inline(always)]
pub fn is_straight(flow: &Flow) -> bool {
    flow.flags & (flag::STRAIGHT | flag::REPLY) == flag::STRAIGHT
}

/// Whether a packet goes on with the flow that was found, which `scratch.flow` has then; `false`:
/// that flow is removed, and the packet belongs to none.
#[inline(always)]
pub fn continues(run: &Run<'_>, scratch: &mut Scratch, flow: &mut Flow) -> Result<bool, Verdict> {
    match follow(flow, &scratch.packet, &mut scratch.key, &mut scratch.reply, run.config) {
        Follow::GoesOn => {
            scratch.flow = *flow;
            Ok(true)
        }
        Follow::Ended => Ok(false),
        Follow::Lost => Err(Verdict::Drop(Reason::FlowTable)),
        Follow::Passes => Err(Verdict::Pass),
    }
}

/// What becomes of a packet whose flow was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    /// It goes on with the flow.
    GoesOn,
    /// That flow is removed, and the packet belongs to none.
    Ended,
    /// Somebody else is just removing the flow.
    Lost,
    /// It goes on as it is.
    Passes,
}

/// Decides about a packet whose flow was found, and notes it. `other_key` and `spare` are scratch
/// memory.
///
/// A first segment on a connection that lives changes nothing: anybody could send it. It goes to
/// the endpoint, which asks back; a client that really begins anew answers with a RST, and the next
/// first segment begins a new flow.
#[inline(always)]
fn follow(
    flow: &mut Flow,
    packet: &Packet,
    other_key: &mut FlowKey,
    spare: &mut Flow,
    config: &Config,
) -> Follow {
    let used = claim::used(flow);
    if used == CLAIMED {
        return Follow::Lost;
    }
    let now = now();
    *other_key = packet.key.other(flow);
    if flow.flags & flag::PASSES != 0 {
        note_seen(flow, packet);
        let is_noted = now.wrapping_sub(used) <= SECOND || claim::touch(flow, used, now);
        return if is_noted { Follow::Passes } else { Follow::Lost };
    }
    if is_of_another(flow, packet, other_key) {
        return give_way(flow, used, packet, other_key, spare, now);
    }
    if !goes_on(flow, used, packet, other_key, config, now) {
        return end(flow, used, packet, other_key);
    }
    let is_more = note_seen(flow, packet);
    // Once a second, because all CPUs share the entry. A claim is only made on what was silent for
    // longer, or must end at once, or has not gone on since it began: what goes on says so here,
    // and a first segment that comes again does not.
    let is_due = now.wrapping_sub(used) > SECOND || packet.is_syn_ack() || is_more;
    if !is_due || packet.is_syn() {
        return Follow::GoesOn;
    }
    if !is_whole(flow, packet, other_key, spare, now) {
        return end(flow, used, packet, other_key);
    }
    if claim::touch(flow, used, now) { Follow::GoesOn } else { Follow::Lost }
}

/// Whether what an endpoint says first is no answer to the first segment of its flow. The client's
/// port is not translated, so it has a connection straight to the endpoint by the same ends, which
/// programs do not see begin; or had one that the endpoint has not forgotten.
#[inline(always)]
fn is_of_another(flow: &Flow, packet: &Packet, other_key: &FlowKey) -> bool {
    if packet.key.protocol != protocol::TCP
        || flow.flags & (flag::REPLY | flag::MASQUERADED) != flag::REPLY
        || flow.seen != 0
        || packet.is(is::LATER_FRAGMENT)
        || packet.is_syn_ack()
        || packet.detail & tcp::RST != 0
    {
        return false;
    }
    // A full table has dropped what this direction had seen.
    FLOWS.get_ptr(other_key).is_some_and(|other| {
        // SAFETY: as in `find`.
        let other = unsafe { &*other };
        other.is_other_of(&packet.key) && other.seen & seen::ESTABLISHED == 0
    })
}

/// Gives the ends of an entry of replies to the connection that has them. The client's entry goes:
/// when it says again what the endpoint has not answered, its flow begins anew, by another port.
#[inline(always)]
fn give_way(
    flow: &mut Flow,
    used: u64,
    packet: &Packet,
    other_key: &FlowKey,
    spare: &mut Flow,
    now: u64,
) -> Follow {
    *spare = *flow;
    spare.flags |= flag::PASSES;
    spare.seen |= seen_in(packet);
    spare.used = now;
    if !claim::claim(&packet.key, flow, used) {
        return Follow::Lost;
    }
    // Replaced, not written to: a full table may give its memory to another flow meanwhile.
    if end_other(other_key, &packet.key) && FLOWS.insert(&packet.key, &*spare, 0).is_ok() {
        return Follow::Passes;
    }
    claim::release(flow, used);
    Follow::Lost
}

/// Leaves a packet straight to an endpoint alone, unless its answers would be taken for those of a
/// Service's flow.
#[inline(always)]
pub fn check_meets_service(scratch: &mut Scratch) -> Result<(), Verdict> {
    let Scratch { packet, key: other_key, .. } = scratch;
    if packet.is(is::PORTS) && meets_service(&packet.key, other_key) { Ok(()) } else { Err(Verdict::Pass) }
}

/// Whether packets straight to an endpoint would get answers that are taken for a Service's.
/// `other_key` is scratch memory.
#[inline(always)]
fn meets_service(key: &FlowKey, other_key: &mut FlowKey) -> bool {
    other_key.source = key.destination;
    other_key.destination = key.source;
    other_key.source_port = key.destination_port;
    other_key.destination_port = key.source_port;
    other_key.protocol = key.protocol;
    FLOWS.get_ptr(&*other_key).is_some_and(|flow| {
        // SAFETY: as in `find`.
        unsafe { (*flow).flags & (flag::REPLY | flag::PASSES) == flag::REPLY }
    })
}

/// Whether a packet goes on with its flow, or begins a new one in its place.
#[inline(always)]
fn goes_on(flow: &Flow, used: u64, packet: &Packet, other_key: &FlowKey, config: &Config, now: u64) -> bool {
    let is_reply = flow.flags & flag::REPLY != 0;
    let is_tcp = packet.key.protocol == protocol::TCP;
    // Replies begin nothing, except the answer to a handshake that was none of ours: somebody else
    // may have given the port to a connection.
    let may_begin = if is_reply { packet.is_syn_ack() } else { !is_tcp || packet.is_syn() };
    if !may_begin {
        return true;
    }
    let idle = u64::from(if is_tcp { SILENT } else { config.udp_stream_timeout }) * SECOND;
    let is_idle = now.wrapping_sub(used) >= idle;
    if !is_tcp && !is_idle {
        return true;
    }
    let other = find(other_key).filter(|other| other.is_other_of(&packet.key));
    // Half a flow brings no answer back: a first packet begins a new one. An answer restores it.
    let Some(other) = other else { return is_reply };
    let other_used = claim::used(other);
    if other_used == CLAIMED {
        return is_reply;
    }
    let is_idle = is_idle && now.wrapping_sub(other_used) >= idle;
    if !is_tcp {
        return !is_idle;
    }
    let is_made = (flow.seen | other.seen) & seen::ESTABLISHED != 0;
    let is_over = (flow.seen | other.seen) & seen::RST != 0 || flow.seen & other.seen & seen::FIN != 0;
    !(is_over || (is_idle && !is_made))
}

/// Seconds after which a handshake that came to nothing gives way to a new one.
const SILENT: u32 = 120;

/// Sees to it that a flow has both its entries: a full table drops one without the other. `false`:
/// another flow has the key of the other one.
#[inline(always)]
fn is_whole(flow: &Flow, packet: &Packet, other_key: &FlowKey, spare: &mut Flow, now: u64) -> bool {
    if let Some(other) = find(other_key) {
        return other.is_other_of(&packet.key);
    }
    *spare = flow.turned(&packet.key);
    spare.used = now;
    // Only who is faster makes this fail; the next look finds it.
    let _ = FLOWS.insert(other_key, &*spare, u64::from(BPF_NOEXIST));
    true
}

/// Removes both entries of a flow, or later packets of the connection in its place would be taken
/// for its own.
#[inline(always)]
fn end(flow: &mut Flow, used: u64, packet: &Packet, other_key: &FlowKey) -> Follow {
    let key = &packet.key;
    if !claim::claim(key, flow, used) {
        return Follow::Lost;
    }
    end_other(other_key, key);
    if claim::remove(key, flow, used) { Follow::Ended } else { Follow::Lost }
}

/// Removes the other entry of the flow of `key`, if it has one. `false`: it has one that somebody
/// else is at.
#[inline(always)]
fn end_other(other_key: &FlowKey, key: &FlowKey) -> bool {
    let Some(other) = FLOWS.get_ptr_mut(other_key) else { return true };
    let used = claim::used(other);
    // SAFETY: what is reused meanwhile cannot be claimed with the time that was read before.
    if !unsafe { &*other }.is_other_of(key) {
        return true;
    }
    claim::claim(other_key, other, used) && claim::remove(other_key, other, used)
}

/// Notes what a packet shows. Writes only what changes, because all CPUs share the entry. Returns
/// whether it is the first that shows more than a beginning.
#[inline(always)]
fn note_seen(flow: &mut Flow, packet: &Packet) -> bool {
    let mut new = seen_in(packet);
    let is_clients = flow.flags & flag::REPLY == 0 && !packet.is(is::LATER_FRAGMENT);
    if packet.key.protocol == protocol::UDP && is_clients {
        new |= seen::ESTABLISHED;
    }
    let is_more = new & !flow.seen & seen::ESTABLISHED != 0;
    // A connection that goes on was not ended by the RST before, whoever sent that.
    let old =
        if new & seen::ESTABLISHED != 0 && new & seen::RST == 0 { flow.seen & !seen::RST } else { flow.seen };
    let seen = old | new;
    if seen != flow.seen {
        flow.seen = seen;
    }
    is_more
}

/// What a packet adds to what its direction has seen.
#[inline(always)]
fn seen_in(packet: &Packet) -> u16 {
    let mut seen = seen::PACKET;
    if packet.key.protocol == protocol::TCP && !packet.is(is::LATER_FRAGMENT) {
        if packet.detail & tcp::FIN != 0 {
            seen |= seen::FIN;
        }
        if packet.detail & tcp::RST != 0 {
            seen |= seen::RST;
        }
        if packet.detail & (tcp::SYN | tcp::ACK) == tcp::ACK {
            seen |= seen::ESTABLISHED;
        }
    }
    seen
}

/// What a flow is before it is known where it leads: straight to where its first packet goes.
#[inline(always)]
pub fn straight(packet: &Packet) -> Flow {
    Flow {
        source: packet.key.source,
        destination: packet.key.destination,
        source_port: packet.key.source_port,
        destination_port: packet.key.destination_port,
        seen: seen_in(packet),
        flags: flag::STRAIGHT,
        used: now(),
        group: 0,
    }
}

/// Begins the flow in `scratch.flow` with its first packet. `false`: another processor has just
/// begun one for the same client, which `scratch.flow` has then.
#[inline(always)]
pub fn begin(run: &Run<'_>, scratch: &mut Scratch) -> Result<bool, Verdict> {
    let Scratch { packet, key, flow, reply, .. } = scratch;
    newest::remember(&packet.key, flow.used, run.config.newest, key);
    match enter(run.skb, &packet.key, flow, reply, key, run.config) {
        Entered::Done => {
            verdict::flow_began(packet, flow);
            Ok(true)
        }
        Entered::Before => Ok(false),
        Entered::NoPort => Err(Verdict::Drop(Reason::NoPort)),
        Entered::Refused => Err(Verdict::Drop(Reason::FlowTable)),
    }
}

/// Tries to find a source port. Connections that are over keep theirs for a while, because servers
/// remember them too; where many of them have come and gone, half of the ports may be taken by
/// such. So the last tries are content with one of those.
const TRIES: u32 = 16;
const FREE_TRIES: u32 = 10;

/// Enters a new flow: `flow` says where packets of `key` go; its source port is chosen here.
/// `masquerade`: the source address is the node's own, so the port must be none of its sockets'.
///
/// The entry of replies decides: whoever enters it first has the port. If another processor has
/// entered a flow for the same client meanwhile, that one counts, and `flow` is what it says; the
/// port that was taken in vain is free when it was silent for long enough.
#[inline(always)]
fn enter(
    skb: *mut __sk_buff,
    key: &FlowKey,
    flow: &mut Flow,
    reply: &mut Flow,
    reply_key: &mut FlowKey,
    config: &Config,
) -> Entered {
    let masquerade = flow.flags & flag::MASQUERADED != 0;
    *reply = flow.turned(key);
    let mut at = 0;
    for attempt in 0..TRIES {
        if masquerade || attempt > 0 {
            if config.ports == 0 {
                return Entered::NoPort;
            }
            // The last ones follow each other, so that none of a few ports is missed.
            let step = attempt.saturating_sub(FREE_TRIES);
            if step == 0 {
                // SAFETY: reads a generator of random numbers.
                at = unsafe { bpf_get_prandom_u32() } >> 1;
            }
            flow.source_port = masquerade::port(config, at + step);
        }
        *reply_key = key.other(flow);
        if (masquerade && masquerade::is_taken(skb, reply_key)) || OLD_FLOWS.get_ptr(&*reply_key).is_some() {
            continue;
        }
        if FLOWS.insert(&*reply_key, &*reply, u64::from(BPF_NOEXIST)).is_err()
            && !takes_over(reply_key, reply, key, attempt >= FREE_TRIES)
        {
            continue;
        }
        if FLOWS.insert(key, &*flow, u64::from(BPF_NOEXIST)).is_ok() {
            return Entered::Done;
        }
        let Some(faster) = FLOWS.get_ptr(key) else { return Entered::Refused };
        // SAFETY: as in `find`.
        *flow = unsafe { *faster };
        return Entered::Before;
    }
    Entered::NoPort
}

/// What became of a new flow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entered {
    /// It is in the table.
    Done,
    /// Another one was, just before.
    Before,
    /// Every port tried is taken.
    NoPort,
    /// The table refused it.
    Refused,
}

/// Replaces the entry of replies if it is of the same two ends or of a connection that was broken
/// off; with `closed`, also if it is of one that both its ends have closed. `key` is that of the
/// new flow.
#[inline(always)]
fn takes_over(reply_key: &FlowKey, reply: &Flow, key: &FlowKey, closed: bool) -> bool {
    let Some(held) = FLOWS.get_ptr_mut(reply_key) else {
        return FLOWS.insert(reply_key, reply, u64::from(BPF_NOEXIST)).is_ok();
    };
    let used = claim::used(held);
    // SAFETY: what is reused meanwhile cannot be claimed with the time that was read before.
    let flow = unsafe { &*held };
    let same = flow.is_other_of(key);
    if !same && !gives_way(flow, reply_key, closed) {
        return false;
    }
    if !claim::claim(reply_key, held, used) {
        return false;
    }
    // A later connection of its client would else go on by a port that is no longer its own.
    if (same || end_client(flow, reply_key)) && FLOWS.insert(reply_key, reply, 0).is_ok() {
        return true;
    }
    claim::release(held, used);
    false
}

/// Whether the connection of an entry of replies is over: broken off, or, with `closed`, closed by
/// both its ends.
#[inline(never)]
fn gives_way(held: &Flow, reply_key: &FlowKey, closed: bool) -> bool {
    if held.seen & seen::RST != 0 {
        return true;
    }
    if !closed || held.seen & seen::FIN == 0 {
        return false;
    }
    let Some(first) = FLOWS.get_ptr(reply_key.other(held)) else { return true };
    // SAFETY: an entry that is evicted and reused meanwhile keeps or ends one flow.
    let first = unsafe { &*first };
    !first.is_other_of(reply_key) || first.seen & seen::FIN != 0
}

/// Removes the client's entry of an entry of replies that is claimed.
#[inline(never)]
fn end_client(held: &Flow, reply_key: &FlowKey) -> bool {
    end_other(&reply_key.other(held), reply_key)
}
