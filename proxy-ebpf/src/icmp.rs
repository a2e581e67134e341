//! ICMP errors: those that this node makes, and those about translated packets on their way
//! through.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail};
use sluice_common::Address;
use sluice_common::node::Config;

use crate::Hook;
use crate::flow::now;
use crate::maps::INTERFACES;
use crate::packet::{Scratch, is, load, protocol};
use crate::rewrite::store;
use crate::service::own_address;

/// What is wrong with a packet.
#[derive(Clone, Copy)]
pub enum Error {
    /// Nobody there: port unreachable.
    Port,
    /// Bigger than the way takes, which is so many bytes.
    TooBig(u32),
    /// TTL or hop limit.
    Time,
}

impl Error {
    /// Type and code in one word as in the packet, and the second word of the ICMP header.
    #[inline(always)]
    fn header(self, v4: bool) -> (u32, u32) {
        let word = |kind: u32, code: u32| kind | code << 8;
        match (self, v4) {
            (Error::Port, true) => (word(3, 3), 0),
            (Error::Port, false) => (word(1, 4), 0),
            (Error::TooBig(mtu), true) => (word(3, 4), (mtu & 0xffff).to_be()),
            (Error::TooBig(mtu), false) => (word(2, 0), mtu.to_be()),
            (Error::Time, true) => (word(11, 0), 0),
            (Error::Time, false) => (word(3, 0), 0),
        }
    }
}

/// Errors of a kind that a CPU makes in a second: a flood of packets to where nothing is must not
/// be answered one by one.
const PER_SECOND: u64 = 1_000;
/// Quoted of the transport header and what follows: as much as any checksum in it needs, in whole
/// words.
const QUOTED: u32 = 28;
/// Between Ethernet and IP header, of include/uapi/linux/bpf.h.
const ROOM_MAC: u32 = 1;
/// Of include/uapi/linux/bpf.h: BPF_F_INGRESS.
const INWARDS: u64 = 1;
const TTL: u32 = 64;
/// Internetwork control (RFC 1812, 4.3.2.5).
const PRECEDENCE: u32 = 0xc0;
const DROP: i32 = 2;

/// Turns the packet into an ICMP error about itself and sends it back where it came from: out by
/// the interface that it came in by, or, if a process of this node sent it, in by the one that it
/// was to leave by.
#[inline(always)]
pub fn answer<const L2: u32>(
    skb: *mut __sk_buff,
    scratch: &mut Scratch,
    config: &Config,
    error: Error,
    hook: Hook,
) -> i32 {
    let v4 = scratch.packet.is(is::V4);
    let header = if v4 { 20 } else { 40 };
    let plain = !v4 || scratch.packet.transport == L2 + header;
    if scratch.packet.is(is::LATER_FRAGMENT) || !plain || is_too_much(scratch, error) {
        return DROP;
    }
    // SAFETY: the context is valid, and a plain field of it is read.
    let ifindex = unsafe { (*skb).ifindex };
    // The stack takes nothing from outside that claims to be its own.
    let source = match hook {
        Hook::Ingress => source(scratch, config, ifindex, v4),
        Hook::Egress => scratch.packet.key.destination,
    };
    let target = scratch.packet.key.source;
    let quoted = header + QUOTED;
    // SAFETY: the helpers check what they do with the packet.
    let made_room = unsafe {
        if bpf_skb_change_tail(skb, L2 + quoted, 0) != 0 || !load(skb, L2, scratch.bytes.as_mut_ptr(), quoted)
        {
            return DROP;
        }
        // No packet loses the checksum that a card has yet to finish. Others have no sum any more
        // after this.
        let unfinished = bpf_skb_change_tail(skb, scratch.packet.transport + 4, 0) != 0;
        if unfinished {
            finish(scratch, v4);
        }
        (unfinished || bpf_skb_change_tail(skb, L2 + quoted, 0) == 0)
            && bpf_skb_adjust_room(skb, header as i32 + 8, ROOM_MAC, 0) == 0
            && (unfinished || write_quote(skb, L2 + header + 8, v4, &scratch.bytes))
    };
    if !made_room {
        return DROP;
    }
    let (kind, rest) = error.header(v4);
    let written = if v4 {
        write4(skb, L2, scratch, kind, rest, &source, &target)
    } else {
        write6(skb, L2, scratch, kind, rest, &source, &target)
    };
    if !written || (L2 != 0 && !swap_ethernet(skb, scratch)) {
        return DROP;
    }
    // SAFETY: tells the kernel where to send the packet when the program has ended.
    unsafe { bpf_redirect(ifindex, if hook == Hook::Egress { INWARDS } else { 0 }) as i32 }
}

/// The card, or the kernel in its stead, will finish the checksum in the quote as if that were the
/// packet. Puts what comes out into the copy of the quote, of which the error's own checksum is
/// made; a receiver on this machine asks for neither.
#[inline(always)]
fn finish(scratch: &mut Scratch, v4: bool) {
    let header = if v4 { 5 } else { 10 };
    let tcp = scratch.packet.key.protocol == protocol::TCP;
    let transport = scratch.bytes[header..].as_mut_ptr();
    let finished = fold(sum(transport, QUOTED, 0));
    let finished = if finished == 0 { 0xffff } else { finished };
    if tcp {
        scratch.bytes[header + 4] = scratch.bytes[header + 4] & 0xffff_0000 | finished;
    } else {
        scratch.bytes[header + 1] = scratch.bytes[header + 1] & 0xffff | finished << 16;
    }
}

#[inline(always)]
fn write_quote(skb: *mut __sk_buff, at: u32, v4: bool, bytes: &[u32; 32]) -> bool {
    let bytes = core::ptr::from_ref(bytes);
    // SAFETY: the quote is shorter than the buffer.
    unsafe {
        if v4 {
            store(skb, at, &*bytes.cast::<[u32; 12]>())
        } else {
            store(skb, at, &*bytes.cast::<[u32; 17]>())
        }
    }
}

#[inline(always)]
fn is_too_much(scratch: &mut Scratch, error: Error) -> bool {
    let now = now();
    if now.wrapping_sub(scratch.icmp_since) > 1_000_000_000 {
        scratch.icmp_since = now;
        (scratch.refusals, scratch.others) = (0, 0);
    }
    let made = if matches!(error, Error::Port) { &mut scratch.refusals } else { &mut scratch.others };
    *made += 1;
    *made > PER_SECOND
}

/// The address that the error comes from: the one that was asked, if it is the node's; else that of
/// the interface.
#[inline(always)]
fn source(scratch: &Scratch, config: &Config, ifindex: u32, v4: bool) -> Address {
    let asked = scratch.packet.key.destination;
    if own_address(&asked) != 0 {
        return asked;
    }
    // SAFETY: elements of a map without preallocation are freed after a grace period.
    let interface = unsafe { INTERFACES.get(ifindex) };
    let none = Address::default();
    let (mine, common) = if v4 {
        (interface.map_or(none, |i| i.address4), config.address4)
    } else {
        (interface.map_or(none, |i| i.address6), config.address6)
    };
    if mine != none {
        mine
    } else if common != none {
        common
    } else {
        asked
    }
}

/// Adds words up.
#[inline(always)]
fn sum(words: *mut u32, bytes: u32, seed: u32) -> u32 {
    // SAFETY: the caller's buffer has so many bytes.
    unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, words, bytes, seed) as u32 }
}

#[inline(always)]
fn fold(sum: u32) -> u32 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !sum & 0xffff
}

/// Two bytes each in network order, as a word of a packet.
#[inline(always)]
fn halves(first: u32, second: u32) -> u32 {
    u32::from((first as u16).to_be()) | u32::from((second as u16).to_be()) << 16
}

#[inline(always)]
fn write4(
    skb: *mut __sk_buff,
    network: u32,
    scratch: &mut Scratch,
    kind: u32,
    rest: u32,
    source: &Address,
    target: &Address,
) -> bool {
    let mut icmp = [kind, rest];
    let quoted = sum(scratch.bytes.as_mut_ptr(), 48, 0);
    let check = fold(sum(icmp.as_mut_ptr(), 8, quoted));
    icmp[0] = kind | check << 16;
    let mut header = [
        halves(0x4500 | PRECEDENCE, 20 + 8 + 48),
        0,
        halves(TTL << 8 | 1, 0),
        source.word4(),
        target.word4(),
    ];
    let check = fold(sum(header.as_mut_ptr(), 20, 0));
    header[2] |= check << 16;
    store(skb, network, &header) && store(skb, network + 20, &icmp)
}

#[inline(always)]
fn write6(
    skb: *mut __sk_buff,
    network: u32,
    scratch: &mut Scratch,
    kind: u32,
    rest: u32,
    source: &Address,
    target: &Address,
) -> bool {
    let length = 8 + 40 + QUOTED;
    let mut icmp = [kind, rest];
    let mut pseudo = [source.words, target.words];
    let mut tail = [length.to_be(), 58_u32.to_be()];
    let quoted = sum(scratch.bytes.as_mut_ptr(), 68, 0);
    let check = sum(pseudo.as_mut_ptr().cast(), 32, sum(tail.as_mut_ptr(), 8, quoted));
    let check = fold(sum(icmp.as_mut_ptr(), 8, check));
    icmp[0] = kind | check << 16;
    let header = [0x6000_0000_u32.to_be(), halves(length, 58 << 8 | TTL)];
    store(skb, network, &header)
        && store(skb, network + 8, &[source.words, target.words])
        && store(skb, network + 40, &icmp)
}

#[inline(always)]
fn swap_ethernet(skb: *mut __sk_buff, scratch: &mut Scratch) -> bool {
    if !load(skb, 0, scratch.bytes.as_mut_ptr(), 12) {
        return false;
    }
    let [a, b, c, ..] = scratch.bytes;
    let swapped = [b >> 16 | c << 16, c >> 16 | a << 16, a >> 16 | b << 16];
    store(skb, 0, &swapped)
}
