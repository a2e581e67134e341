//! The flow table: which packets belong to what was translated before.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::bindings::{BPF_NOEXIST, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{
    bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp,
};
use sluice_common::flow::{Flow, FlowKey, flag, seen};
use sluice_common::node::Config;

use crate::maps::{FLOWS, OLD_FLOWS};
use crate::packet::{Packet, is, protocol, tcp};

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
    if let Some(flow) = FLOWS.get_ptr_mut(key) {
        // SAFETY: an entry that is evicted and reused while a packet is translated sends this one packet astray; the
        // alternative would be a copy for each packet.
        return Some(unsafe { &mut *flow });
    }
    let old = OLD_FLOWS.get_ptr(key)?;
    // SAFETY: as above.
    let copy = unsafe { *old };
    FLOWS.insert(key, copy, 0).ok()?;
    // SAFETY: as above.
    FLOWS.get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
}

/// Whether a packet goes on with its flow, or begins a new one in its place. `key` is for the flow's other entry.
///
/// A first segment on a connection that lives changes nothing: anybody could send it. It goes to the endpoint, which asks
/// back; a client that really begins anew answers with a RST, and the next first segment begins a new flow.
#[inline(always)]
pub fn goes_on(flow: &Flow, packet: &Packet, key: &mut FlowKey, config: &Config, now: u64) -> bool {
    let is_reply = flow.flags & flag::REPLY != 0;
    let is_tcp = packet.key.protocol == protocol::TCP;
    // Replies begin nothing, except the answer to a handshake that was none of ours: somebody else may have given the port
    // to a connection.
    let may_begin = if is_reply { packet.is_syn_ack() } else { !is_tcp || packet.is_syn() };
    if !may_begin {
        return true;
    }
    let idle = u64::from(if is_tcp { SILENT } else { config.udp_stream_timeout }) * SECOND;
    let is_idle = now.wrapping_sub(flow.used) >= idle;
    if !is_tcp && !is_idle {
        return true;
    }
    reverse(flow, packet.key.protocol, key);
    let Some(other) = FLOWS.get_ptr(&*key) else { return !is_idle };
    // SAFETY: an entry that is evicted and reused meanwhile keeps or ends one flow.
    let (seen, used) = unsafe { ((*other).seen, (*other).used) };
    let is_idle = is_idle && now.wrapping_sub(used) >= idle;
    if !is_tcp {
        return !is_idle;
    }
    let is_made = (flow.seen | seen) & seen::ESTABLISHED != 0;
    let is_over = (flow.seen | seen) & seen::RST != 0 || flow.seen & seen & seen::FIN != 0;
    !(is_over || (is_idle && !is_made))
}

/// Seconds after which a handshake that came to nothing gives way to a new one.
const SILENT: u32 = 120;

/// Removes both entries of a flow, or later packets of the connection in its place would be taken for its own.
#[inline(always)]
pub fn forget(key: &FlowKey, flow: &Flow, other: &mut FlowKey) {
    reverse(flow, key.protocol, other);
    // Any of them may not be there.
    let _ = FLOWS.remove(&*other);
    let _ = FLOWS.remove(key);
    let _ = OLD_FLOWS.remove(&*other);
    let _ = OLD_FLOWS.remove(key);
}

/// Notes a packet. Writes only what changes, because all CPUs share the entry.
#[inline(always)]
pub fn note(flow: &mut Flow, packet: &Packet, now: u64) {
    let new = seen_in(packet);
    // A connection that goes on was not ended by the RST before, whoever sent that.
    let old =
        if new & seen::ESTABLISHED != 0 && new & seen::RST == 0 { flow.seen & !seen::RST } else { flow.seen };
    let seen = old | new;
    if seen != flow.seen {
        flow.seen = seen;
    }
    if now.wrapping_sub(flow.used) > SECOND {
        flow.used = now;
    }
}

/// What a packet adds to what its direction has seen.
#[inline(always)]
pub fn seen_in(packet: &Packet) -> u16 {
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

/// The key that packets in the other direction have.
#[inline(always)]
pub fn reverse(flow: &Flow, protocol: u32, out: &mut FlowKey) {
    out.source = flow.destination;
    out.destination = flow.source;
    out.source_port = flow.destination_port;
    out.destination_port = flow.source_port;
    out.protocol = protocol;
}

/// Tries to find a source port. Connections that are over keep theirs for a while, because servers remember them too; where
/// many of them have come and gone, half of the ports may be taken by such. So the last tries are content with one of those.
const TRIES: u32 = 16;
const FREE_TRIES: u32 = 10;

/// Enters a new flow: `flow` says where packets of `key` go; its source port is chosen here. `masquerade`: the source
/// address is the node's own, so the port must be none of its sockets'.
///
/// The entry of replies decides: whoever enters it first has the port.
#[inline(always)]
pub fn enter(
    skb: *mut __sk_buff,
    key: &FlowKey,
    flow: &mut Flow,
    reply: &mut Flow,
    reply_key: &mut FlowKey,
    config: &Config,
) -> Entered {
    let masquerade = flow.flags & flag::MASQUERADED != 0;
    reply.source = key.destination;
    reply.destination = key.source;
    reply.source_port = key.destination_port;
    reply.destination_port = key.source_port;
    reply.flags = flag::REPLY | flow.flags;
    reply.seen = 0;
    reply.used = flow.used;
    reply.group = flow.group;
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
            flow.source_port = port(config, at + step);
        }
        reverse(flow, key.protocol, reply_key);
        if (masquerade && is_taken(skb, reply_key)) || OLD_FLOWS.get_ptr(&*reply_key).is_some() {
            continue;
        }
        if FLOWS.insert(&*reply_key, &*reply, u64::from(BPF_NOEXIST)).is_err()
            && !is_finished(reply_key, reply, key, attempt >= FREE_TRIES)
        {
            continue;
        }
        return match FLOWS.insert(key, &*flow, 0) {
            Ok(()) => Entered::Done,
            Err(_) => Entered::Refused,
        };
    }
    Entered::NoPort
}

/// What became of a new flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// It is in the table.
    Done,
    /// Every port tried is taken.
    NoPort,
    /// The table refused it.
    Refused,
}

/// Replaces the entry of replies if it is of the same two ends or of a connection that was broken off; with `closed`, also
/// if it is of one that both its ends have closed. `key` is that of the new flow.
#[inline(always)]
fn is_finished(reply_key: &FlowKey, reply: &Flow, key: &FlowKey, closed: bool) -> bool {
    let Some(held) = FLOWS.get_ptr(reply_key) else {
        return FLOWS.insert(reply_key, reply, 0).is_ok();
    };
    // SAFETY: an entry that is evicted and reused meanwhile is compared in full.
    let held = unsafe { &*held };
    let same = held.source == reply.source
        && held.destination == reply.destination
        && held.source_port == reply.source_port
        && held.destination_port == reply.destination_port;
    if !same && !gives_way(held, key.protocol, closed) {
        return false;
    }
    FLOWS.insert(reply_key, reply, 0).is_ok()
}

/// Whether the connection of an entry of replies is over: broken off, or, with `closed`, closed by both its ends. Its other
/// entry is removed then: a later connection of its client would else go on by a port that is no longer its own.
#[inline(never)]
fn gives_way(held: &Flow, protocol: u32, closed: bool) -> bool {
    let mut first = FlowKey::default();
    reverse(held, protocol, &mut first);
    if held.seen & seen::RST == 0 {
        if !closed || held.seen & seen::FIN == 0 {
            return false;
        }
        if let Some(other) = FLOWS.get_ptr(&first) {
            // SAFETY: an entry that is evicted and reused meanwhile keeps or ends one flow.
            if unsafe { (*other).seen } & seen::FIN == 0 {
                return false;
            }
        }
    }
    let _ = FLOWS.remove(&first);
    true
}

/// One of the ports for masquerading, in network order: any number is that of one.
#[inline(always)]
fn port(config: &Config, number: u32) -> u16 {
    if config.ports == 0 {
        return 0;
    }
    let at = number % config.ports;
    let first = u32::from(config.first_count);
    let port = if at < first {
        u32::from(config.first_begin) + at
    } else {
        u32::from(config.second_begin) + (at - first)
    };
    (port as u16).to_be()
}

/// This network namespace, of include/uapi/linux/bpf.h.
const CURRENT_NETNS: u64 = u64::MAX;

/// Whether a socket of this node would get the replies.
#[inline(always)]
fn is_taken(skb: *mut __sk_buff, replies: &FlowKey) -> bool {
    // SAFETY: all zeros is a tuple.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size;
    if replies.source.is_v4() {
        tuple.__bindgen_anon_1.ipv4.saddr = replies.source.word4();
        tuple.__bindgen_anon_1.ipv4.daddr = replies.destination.word4();
        tuple.__bindgen_anon_1.ipv4.sport = replies.source_port;
        tuple.__bindgen_anon_1.ipv4.dport = replies.destination_port;
        size = 12;
    } else {
        tuple.__bindgen_anon_1.ipv6.saddr = replies.source.words;
        tuple.__bindgen_anon_1.ipv6.daddr = replies.destination.words;
        tuple.__bindgen_anon_1.ipv6.sport = replies.source_port;
        tuple.__bindgen_anon_1.ipv6.dport = replies.destination_port;
        size = 36;
    }
    // SAFETY: a socket that is found is released at once.
    unsafe {
        if replies.protocol == protocol::TCP {
            let found = bpf_skc_lookup_tcp(skb.cast(), &mut tuple, size, CURRENT_NETNS, 0);
            if found.is_null() {
                return false;
            }
            bpf_sk_release(found.cast());
        } else {
            let found = bpf_sk_lookup_udp(skb.cast(), &mut tuple, size, CURRENT_NETNS, 0);
            if found.is_null() {
                return false;
            }
            bpf_sk_release(found.cast());
        }
    }
    true
}
