//! ICMP errors that this node makes, out of the packets that they are about.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_skb_adjust_room, bpf_skb_change_tail};
use sluice_common::Address;

use super::{Packet, is, load, protocol, store};
use crate::run::Scratch;

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

/// Quoted of the transport header and what follows: as much as any checksum in it needs, in whole
/// words.
const QUOTED: u32 = 28;
/// Between Ethernet and IP header, of include/uapi/linux/bpf.h.
const ROOM_MAC: u32 = 1;
const TTL: u32 = 64;
/// Internetwork control (RFC 1812, 4.3.2.5).
const PRECEDENCE: u32 = 0xc0;

/// Length of an IP header without options or extensions.
#[inline(always)]
const fn plain_header(v4: bool) -> u32 {
    if v4 { 20 } else { 40 }
}

/// Whether an error can be made about a packet.
#[inline(always)]
pub fn can_quote<const L2: u32>(packet: &Packet) -> bool {
    let v4 = packet.is(is::V4);
    !packet.is(is::LATER_FRAGMENT) && (!v4 || packet.transport == L2 + plain_header(v4))
}

/// Turns the packet into an ICMP error about itself, from `source` to its sender. `false`: it
/// cannot be made, and of the packet is nothing left to be of use.
#[inline(always)]
pub fn make<const L2: u32>(
    skb: *mut __sk_buff,
    scratch: &mut Scratch,
    error: Error,
    source: &Address,
) -> bool {
    let v4 = scratch.packet.is(is::V4);
    let header = plain_header(v4);
    let target = scratch.packet.key.source;
    let quoted = header + QUOTED;
    // SAFETY: the helpers check what they do with the packet.
    let made_room = unsafe {
        if bpf_skb_change_tail(skb, L2 + quoted, 0) != 0 || !load(skb, L2, scratch.bytes.as_mut_ptr(), quoted)
        {
            return false;
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
        return false;
    }
    let (kind, rest) = error.header(v4);
    let written = if v4 {
        write4(skb, L2, scratch, kind, rest, source, &target)
    } else {
        write6(skb, L2, scratch, kind, rest, source, &target)
    };
    written && (L2 == 0 || swap_ethernet(skb, scratch))
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
