//! The bytes of one packet: reading and writing them. What becomes of a packet is decided
//! elsewhere.

pub mod fragments;
pub mod icmp;
pub mod parse;
pub mod rewrite;

use core::ptr;

use aya_ebpf::bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::generated::{bpf_skb_load_bytes, bpf_skb_store_bytes};
use sluice_common::flow::FlowKey;

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

    /// Whether it is the second one.
    #[inline(always)]
    pub fn is_syn_ack(&self) -> bool {
        let both = tcp::SYN | tcp::ACK;
        self.key.protocol == protocol::TCP && self.detail & (both | tcp::RST) == both
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

    /// Where the packet begins that an ICMP error quotes.
    #[inline(always)]
    pub fn quoted(&self) -> u32 {
        self.transport + 8
    }
}

/// Reads so many bytes at an offset.
#[inline(always)]
pub fn load(skb: *mut __sk_buff, offset: u32, to: *mut u32, bytes: u32) -> bool {
    // SAFETY: the caller's buffer has so many bytes, and the helper checks the packet's.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, to.cast(), bytes) == 0 }
}

/// Writes bytes that are in no sum, or that a checksum in the packet makes up for.
#[inline(always)]
pub fn store<T>(skb: *mut __sk_buff, offset: u32, from: &T) -> bool {
    store_with(skb, offset, from, 0)
}

/// Writes bytes that no checksum in the packet makes up for: the sum over all of it that the card
/// has made is mended.
#[inline(always)]
pub fn store_summed<T>(skb: *mut __sk_buff, offset: u32, from: &T) -> bool {
    store_with(skb, offset, from, u64::from(BPF_F_RECOMPUTE_CSUM))
}

#[inline(always)]
fn store_with<T>(skb: *mut __sk_buff, offset: u32, from: &T, flags: u64) -> bool {
    // SAFETY: `from` has its size in bytes, and the helper checks the packet's.
    unsafe { bpf_skb_store_bytes(skb, offset, ptr::from_ref(from).cast(), size_of::<T>() as u32, flags) == 0 }
}
