//! Reading packets, and what is remembered on a packet's way.

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup};
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_skb_load_bytes};
use sluice_common::Address;
use sluice_common::flow::{Flow, FlowKey, Fragment, FragmentKey};

use crate::maps::{FRAGMENTS, SCRATCH};

/// IP protocol numbers.
pub mod protocol {
    /// ICMP for IPv4
    pub const ICMP: u32 = 1;
    /// TCP
    pub const TCP: u32 = 6;
    /// UDP
    pub const UDP: u32 = 17;
    /// ICMP for IPv6
    pub const ICMP6: u32 = 58;
}

/// Ethernet types, as they are in packets.
pub const ETH_IPV4: u16 = 0x0800_u16.to_be();
/// As above.
pub const ETH_IPV6: u16 = 0x86dd_u16.to_be();
/// As above: tags of IEEE 802.1Q and 802.1ad.
pub const ETH_VLAN: u16 = 0x8100_u16.to_be();
/// As above.
pub const ETH_SERVICE_VLAN: u16 = 0x88a8_u16.to_be();

/// A packet as it was read.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Packet {
    /// Addresses, ports, protocol.
    pub key: FlowKey,
    /// Offset of the transport header.
    pub transport: u32,
    /// Length from the IP header on.
    pub length: u32,
    /// Bits of [`is`].
    pub flags: u32,
    /// TTL or hop limit.
    pub ttl: u32,
    /// Type of service or traffic class.
    pub tos: u32,
    /// TCP's flags; type of an ICMP message.
    pub detail: u32,
    /// Identification of a fragment.
    pub fragment_id: u32,
    /// Length of all headers from the IP header on, those of TCP or UDP among them.
    pub headers: u32,
}

/// Flags of [`Packet`].
pub mod is {
    /// IPv4.
    pub const V4: u32 = 1;
    /// The first part of a fragmented packet.
    pub const FIRST_FRAGMENT: u32 = 2;
    /// A later part: it has no transport header.
    pub const LATER_FRAGMENT: u32 = 4;
    /// It has ports (TCP, UDP).
    pub const PORTS: u32 = 8;
    /// An ICMP error.
    pub const ICMP_ERROR: u32 = 0x10;
    /// IPv4 that routers may cut up.
    pub const MAY_FRAGMENT: u32 = 0x20;
    /// The stack cuts it up, or has cut the first part of it.
    pub const CUT: u32 = 0x40;
}

/// TCP flags.
pub mod tcp {
    /// FIN
    pub const FIN: u32 = 1;
    /// SYN
    pub const SYN: u32 = 2;
    /// RST
    pub const RST: u32 = 4;
    /// ACK
    pub const ACK: u32 = 0x10;
}

impl Packet {
    /// Whether a flag is set.
    #[inline(always)]
    pub fn is(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Whether it is the first segment of a TCP connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.key.protocol == protocol::TCP && self.detail & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN
    }

    /// Whether it is a question whether somebody is there.
    #[inline(always)]
    pub fn is_echo_request(&self) -> bool {
        (self.key.protocol == protocol::ICMP && self.detail == 8)
            || (self.key.protocol == protocol::ICMP6 && self.detail == 128)
    }

    /// Whether it is ICMP.
    #[inline(always)]
    pub fn is_icmp(&self) -> bool {
        self.key.protocol == protocol::ICMP || self.key.protocol == protocol::ICMP6
    }

    /// Whether it is the second one.
    #[inline(always)]
    pub fn is_syn_ack(&self) -> bool {
        let both = tcp::SYN | tcp::ACK;
        self.key.protocol == protocol::TCP && self.detail & (both | tcp::RST) == both
    }
}

/// What a run of a packet program remembers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Scratch {
    /// The packet.
    pub packet: Packet,
    /// The packet inside an ICMP error.
    pub inner: Packet,
    /// Key of the flow's other entry, or of a fragment.
    pub key: FlowKey,
    /// The flow in the packet's direction.
    pub flow: Flow,
    /// The flow's other entry.
    pub reply: Flow,
    /// A frontend's key.
    pub frontend: sluice_common::service::FrontendKey,
    /// Flags of the interface that it came in by; zero on the way out.
    pub interface: u32,
    /// Whose source is looked for.
    pub source: sluice_common::node::PodSource,
    /// Arguments of a route lookup.
    pub fib: bpf_fib_lookup,
    /// Bytes of headers.
    pub bytes: [u32; 32],
    /// Limits how many ICMP errors this CPU makes: when the second began...
    pub icmp_since: u64,
    /// ...how many refusals since...
    pub refusals: u64,
    /// ...and how many errors about sizes and times, which go on when refusals are too many.
    pub others: u64,
}

/// This CPU's scratch memory. Packet programs run with bottom halves off, so no other packet's run
/// comes between.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: one run at a time on a CPU, which takes it once.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// Reads `N` words at an offset.
#[inline(always)]
pub fn load(skb: *mut __sk_buff, offset: u32, to: *mut u32, bytes: u32) -> bool {
    // SAFETY: the caller's buffer has so many bytes, and the helper checks the packet's.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, to.cast(), bytes) == 0 }
}

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
        return !has_ports || recall_fragment(out);
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

#[inline(always)]
fn fragment_key(packet: &Packet) -> FragmentKey {
    FragmentKey {
        source: packet.key.source,
        destination: packet.key.destination,
        id: packet.fragment_id,
        protocol: packet.key.protocol,
    }
}

/// Remembers the ports and the way of a packet for its later parts.
#[inline(always)]
pub fn remember_fragment(packet: &Packet) {
    let ports = Fragment {
        source_port: packet.key.source_port,
        destination_port: packet.key.destination_port,
        seen: if packet.is(is::CUT) { seconds() | Fragment::CUT } else { seconds() },
    };
    // If it cannot be remembered, the later parts go nowhere and the packet is lost, as on any
    // congested way.
    let _ = FRAGMENTS.insert(fragment_key(packet), ports, 0);
}

/// Forgets what an earlier packet of the same identification left, which this one's later parts
/// must not be taken for.
#[inline(always)]
pub fn forget_fragment(packet: &Packet) {
    // Mostly there is none.
    let _ = FRAGMENTS.remove(fragment_key(packet));
}

/// How long the parts of a packet may come after each other, in seconds (Linux:
/// net.ipv4.ipfrag_time).
const FRAGMENT_SECONDS: u32 = 30;

/// The time in seconds.
#[inline(always)]
fn seconds() -> u32 {
    // SAFETY: reads the clock.
    (unsafe { bpf_ktime_get_ns() } / 1_000_000_000) as u32 & !Fragment::CUT
}

#[inline(always)]
fn recall_fragment(packet: &mut Packet) -> bool {
    let Some(ports) = FRAGMENTS.get_ptr(fragment_key(packet)) else { return false };
    // SAFETY: an element that is evicted and reused meanwhile gives the ports of another packet,
    // whose flow is not of these addresses.
    let ports = unsafe { *ports };
    if seconds().wrapping_sub(ports.seen & !Fragment::CUT) > FRAGMENT_SECONDS {
        return false;
    }
    if ports.seen & Fragment::CUT != 0 {
        packet.flags |= is::CUT;
    }
    (packet.key.source_port, packet.key.destination_port) = (ports.source_port, ports.destination_port);
    true
}
