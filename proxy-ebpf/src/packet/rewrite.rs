//! Rewriting addresses and ports, with every checksum that depends on them.

use core::ptr;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_load_bytes,
};
use sluice_common::Address;
use sluice_common::flow::Flow;

use super::{Packet, is, protocol, store, store_summed};

/// Of include/uapi/linux/bpf.h: the value replaced is part of the pseudo header.
const PSEUDO_HEADER: u64 = 0x10;
/// A UDP checksum of 0 means none: none becomes 0.
const MANGLED_0: u64 = 0x20;
/// The packet is IPv6, whose addresses are in no other checksum (Linux 6.16; older ones do not know
/// it).
const IPV6: u64 = 0x80;

/// Offsets of the addresses in the IP header.
#[inline(always)]
fn addresses_at(v4: bool) -> u32 {
    if v4 { 12 } else { 8 }
}

/// The one's complement difference of source and destination together.
#[inline(always)]
fn difference(from: [&Address; 2], to: [&Address; 2]) -> i64 {
    let mut old = [from[0].words, from[1].words];
    let mut new = [to[0].words, to[1].words];
    // SAFETY: 32 bytes each. The fixed part of mapped IPv4 addresses cancels out.
    unsafe { bpf_csum_diff(old.as_mut_ptr().cast(), 32, new.as_mut_ptr().cast(), 32, 0) }
}

/// Replaces addresses and ports of the packet whose IP header is at `network`.
#[inline(always)]
pub fn translate(skb: *mut __sk_buff, network: u32, packet: &Packet, to: &Flow) -> bool {
    let v4 = packet.is(is::V4);
    let diff = difference([&packet.key.source, &packet.key.destination], [&to.source, &to.destination]);
    let bare = packet.is(is::LATER_FRAGMENT) || has_no_checksum(skb, packet);
    if !packet.is(is::LATER_FRAGMENT) && !translate_transport(skb, packet, to, diff as u64, bare) {
        return false;
    }
    write_addresses(skb, network, v4, &to.source, &to.destination, diff as u64, bare)
}

/// Whether a datagram's sender left its checksum out.
#[inline(always)]
fn has_no_checksum(skb: *mut __sk_buff, packet: &Packet) -> bool {
    let mut checksum = 1_u16;
    // SAFETY: two bytes; the helper checks the packet's.
    packet.key.protocol == protocol::UDP
        && unsafe {
            let to = ptr::from_mut(&mut checksum).cast();
            bpf_skb_load_bytes(skb.cast(), packet.transport + 6, to, 2) == 0 && checksum == 0
        }
}

/// Writes both addresses and mends the IP header's checksum. `bare`: there is no transport checksum
/// that they are part of.
#[inline(always)]
fn write_addresses(
    skb: *mut __sk_buff,
    network: u32,
    v4: bool,
    source: &Address,
    destination: &Address,
    diff: u64,
    bare: bool,
) -> bool {
    let at = network + addresses_at(v4);
    if !v4 {
        let both = [source.words, destination.words];
        return if bare { store_summed(skb, at, &both) } else { store(skb, at, &both) };
    }
    // SAFETY: the helper checks the offset.
    let mended = unsafe { bpf_l3_csum_replace(skb, network + 10, 0, diff, 0) };
    mended == 0 && store(skb, at, &[source.word4(), destination.word4()])
}

#[inline(always)]
fn ports(source: u16, destination: u16) -> u32 {
    u32::from(source) | u32::from(destination) << 16
}

#[inline(always)]
fn translate_transport(skb: *mut __sk_buff, packet: &Packet, to: &Flow, diff: u64, bare: bool) -> bool {
    let (checksum, flags) = match packet.key.protocol {
        protocol::TCP => (packet.transport + 16, 0),
        protocol::UDP => (packet.transport + 6, MANGLED_0),
        _ => return true,
    };
    let old = ports(packet.key.source_port, packet.key.destination_port);
    let new = ports(to.source_port, to.destination_port);
    if bare {
        return store_summed(skb, packet.transport, &new);
    }
    // SAFETY: the helper checks the offset.
    unsafe {
        let family = if packet.is(is::V4) { 0 } else { IPV6 };
        let pseudo = flags | PSEUDO_HEADER;
        if bpf_l4_csum_replace(skb, checksum, 0, diff, pseudo | family) != 0
            && (family == 0 || bpf_l4_csum_replace(skb, checksum, 0, diff, pseudo) != 0)
        {
            return false;
        }
        if old != new && bpf_l4_csum_replace(skb, checksum, u64::from(old), u64::from(new), flags | 4) != 0 {
            return false;
        }
    }
    old == new || store(skb, packet.transport, &new)
}

/// Takes one off the TTL or hop limit.
#[inline(always)]
pub fn age(skb: *mut __sk_buff, network: u32, v4: bool) -> bool {
    if !v4 {
        let mut hop_limit = 0_u8;
        // SAFETY: one byte; the helper checks the packet's.
        let read =
            unsafe { bpf_skb_load_bytes(skb.cast(), network + 7, ptr::from_mut(&mut hop_limit).cast(), 1) };
        return read == 0 && store_summed(skb, network + 7, &hop_limit.wrapping_sub(1));
    }
    let mut word = 0_u16;
    // SAFETY: two bytes (TTL and protocol); the helpers check the packet's.
    unsafe {
        if bpf_skb_load_bytes(skb.cast(), network + 8, ptr::from_mut(&mut word).cast(), 2) != 0 {
            return false;
        }
        let aged = (word & 0xff00) | (word & 0xff).wrapping_sub(1) & 0xff;
        bpf_l3_csum_replace(skb, network + 10, u64::from(word), u64::from(aged), 2) == 0
            && store(skb, network + 8, &aged)
    }
}

/// Rewrites an ICMP error: the packet that it quotes (at `quoted`) becomes `inner`, and its own
/// addresses `source` and `destination`.
///
/// The quoted transport checksum is left as it is: it is about a packet that the receiver of the
/// error never compares it with, and it is often cut off.
#[inline(always)]
pub fn translate_error(
    skb: *mut __sk_buff,
    network: u32,
    packet: &Packet,
    quoted: u32,
    quote: &Packet,
    inner: &Flow,
    outer: [&Address; 2],
) -> bool {
    let v4 = packet.is(is::V4);
    let checksum = packet.transport + 2;
    let inner_diff =
        difference([&quote.key.source, &quote.key.destination], [&inner.source, &inner.destination]);
    let outer_diff = difference([&packet.key.source, &packet.key.destination], outer);
    let old = ports(quote.key.source_port, quote.key.destination_port);
    let new = ports(inner.source_port, inner.destination_port);
    // SAFETY: the helper checks the offsets.
    unsafe {
        // The addresses of a quoted IPv4 header and its mended checksum cancel out; ICMPv6 has no
        // such checksum, but a pseudo header.
        if !v4 {
            if bpf_l4_csum_replace(skb, checksum, 0, inner_diff as u64, 0) != 0 {
                return false;
            }
            let pseudo = bpf_l4_csum_replace(skb, checksum, 0, outer_diff as u64, PSEUDO_HEADER | IPV6);
            if pseudo != 0 && bpf_l4_csum_replace(skb, checksum, 0, outer_diff as u64, PSEUDO_HEADER) != 0 {
                return false;
            }
        }
        if bpf_l4_csum_replace(skb, checksum, u64::from(old), u64::from(new), 4) != 0 {
            return false;
        }
    }
    store(skb, quote.transport, &new)
        && write_addresses(skb, quoted, v4, &inner.source, &inner.destination, inner_diff as u64, false)
        && write_addresses(skb, network, v4, outer[0], outer[1], outer_diff as u64, false)
}
