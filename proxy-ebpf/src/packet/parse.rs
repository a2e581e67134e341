//! From bytes to a [`Packet`].

use aya_ebpf::bindings::__sk_buff;
use sluice_common::Address;

use super::{Packet, fragments, is, load, protocol};

/// The bytes of a word of a packet.
#[inline(always)]
fn byte(word: u32, at: usize) -> u32 {
    (word >> (8 * at as u32)) & 0xff
}

/// Two bytes of a word of a packet, in host order.
#[inline(always)]
fn half(word: u32, at: u32) -> u32 {
    u32::from(u16::from_be((word >> (16 * at)) as u16))
}

/// Reads the packet whose IP header is at `offset`; `false`: it is nothing that services have to do
/// with.
#[inline(always)]
pub fn parse(skb: *mut __sk_buff, offset: u32, v4: bool, bytes: &mut [u32; 32], out: &mut Packet) -> bool {
    let read = if v4 { parse4(skb, offset, bytes, out) } else { parse6(skb, offset, bytes, out) };
    if !read {
        return false;
    }
    out.headers = out.transport - offset;
    parse_transport(skb, bytes, out)
}

#[inline(always)]
fn parse4(skb: *mut __sk_buff, offset: u32, bytes: &mut [u32; 32], out: &mut Packet) -> bool {
    if !load(skb, offset, bytes.as_mut_ptr(), 20) {
        return false;
    }
    let first = bytes[0];
    if byte(first, 0) >> 4 != 4 {
        return false;
    }
    let header = (byte(first, 0) & 0xf) * 4;
    if header < 20 {
        return false;
    }
    out.flags = is::V4;
    out.tos = byte(first, 1);
    out.length = half(first, 1);
    out.fragment_id = u32::from(bytes[1] as u16);
    let fragment = half(bytes[1], 1);
    if fragment & 0x1fff != 0 {
        out.flags |= is::LATER_FRAGMENT;
    } else if fragment & 0x2000 != 0 {
        out.flags |= is::FIRST_FRAGMENT;
    }
    if fragment & 0x4000 == 0 {
        out.flags |= is::MAY_FRAGMENT;
    }
    out.ttl = byte(bytes[2], 0);
    out.key.protocol = byte(bytes[2], 1);
    out.key.source = Address::v4(bytes[3]);
    out.key.destination = Address::v4(bytes[4]);
    out.transport = offset + header;
    true
}

/// Extension headers that may precede the transport header (RFC 8200, 4).
const HOP_BY_HOP: u32 = 0;
const ROUTING: u32 = 43;
const FRAGMENT: u32 = 44;
const DESTINATION: u32 = 60;
const EXTENSIONS: u32 = 4;

#[inline(always)]
fn parse6(skb: *mut __sk_buff, offset: u32, bytes: &mut [u32; 32], out: &mut Packet) -> bool {
    if !load(skb, offset, bytes.as_mut_ptr(), 40) {
        return false;
    }
    let first = bytes[0];
    if byte(first, 0) >> 4 != 6 {
        return false;
    }
    out.flags = 0;
    out.tos = ((byte(first, 0) & 0xf) << 4) | (byte(first, 1) >> 4);
    out.length = half(bytes[1], 0) + 40;
    out.ttl = byte(bytes[1], 3);
    out.key.source = Address { words: [bytes[2], bytes[3], bytes[4], bytes[5]] };
    out.key.destination = Address { words: [bytes[6], bytes[7], bytes[8], bytes[9]] };
    // On the wire these are nobody's (RFC 4291, 2.5.5.2), and they must not be taken for IPv4.
    if out.key.source.is_v4() || out.key.destination.is_v4() {
        return false;
    }
    out.fragment_id = 0;
    let mut next = byte(bytes[1], 2);
    let mut at = offset + 40;
    for _ in 0..EXTENSIONS {
        if next != HOP_BY_HOP && next != ROUTING && next != DESTINATION && next != FRAGMENT {
            break;
        }
        if !load(skb, at, bytes.as_mut_ptr(), 8) {
            return false;
        }
        if next == FRAGMENT {
            let place = half(bytes[0], 1);
            if place & 0xfff8 != 0 {
                out.flags |= is::LATER_FRAGMENT;
            } else if place & 1 != 0 {
                out.flags |= is::FIRST_FRAGMENT;
            }
            out.fragment_id = bytes[1];
            at += 8;
        } else {
            at += (byte(bytes[0], 1) + 1) * 8;
        }
        next = byte(bytes[0], 0);
    }
    out.key.protocol = next;
    out.transport = at;
    true
}

/// ICMP types that quote the packet that they are about (RFC 792, RFC 4443).
#[inline(always)]
fn quotes(v4: bool, kind: u32) -> bool {
    if v4 { kind == 3 || kind == 11 || kind == 12 } else { kind >= 1 && kind <= 4 }
}

#[inline(always)]
fn parse_transport(skb: *mut __sk_buff, bytes: &mut [u32; 32], out: &mut Packet) -> bool {
    (out.key.source_port, out.key.destination_port, out.detail) = (0, 0, 0);
    let has_ports = matches!(out.key.protocol, protocol::TCP | protocol::UDP);
    if has_ports {
        out.flags |= is::PORTS;
    }
    if out.is(is::LATER_FRAGMENT) {
        return !has_ports || fragments::recall(out);
    }
    if has_ports {
        if !load(skb, out.transport, bytes.as_mut_ptr(), 8) {
            return false;
        }
        out.key.source_port = bytes[0] as u16;
        out.key.destination_port = (bytes[0] >> 16) as u16;
        // The quoted part of a TCP segment may end before its flags.
        if out.key.protocol == protocol::TCP && load(skb, out.transport + 12, bytes.as_mut_ptr(), 4) {
            out.detail = byte(bytes[0], 1);
            out.headers += (byte(bytes[0], 0) >> 4) * 4;
        } else {
            out.headers += 8;
        }
    } else if matches!(out.key.protocol, protocol::ICMP | protocol::ICMP6) {
        if !load(skb, out.transport, bytes.as_mut_ptr(), 4) {
            return false;
        }
        out.detail = byte(bytes[0], 0);
        if quotes(out.is(is::V4), out.detail) {
            out.flags |= is::ICMP_ERROR;
        }
    }
    true
}
