//! The flow table of the packet path.

use crate::{Address, sizes};

/// Key of the map `FLOWS`: a packet as it comes in.
///
/// Every connection has two entries: one for packets of the client, one for replies. The key of one is the translated
/// packet of the other, turned round.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port, in network order.
    pub source_port: u16,
    /// Destination port, in network order.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u32,
}

/// Value of the map `FLOWS`: what becomes of the packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// New source address.
    pub source: Address,
    /// New destination address.
    pub destination: Address,
    /// New source port, in network order.
    pub source_port: u16,
    /// New destination port, in network order.
    pub destination_port: u16,
    /// Bits of [`seen`], of packets in this direction.
    pub seen: u16,
    /// Bits of [`flag`].
    pub flags: u16,
    /// The last packet in this direction: nanoseconds of `CLOCK_MONOTONIC`.
    pub used: u64,
    /// Group id without its list of the service port; for UDP, whose `MEMBERS` tell whether the endpoint still serves.
    pub group: u64,
}

/// Flags of a flow's entry.
pub mod flag {
    /// The entry of replies.
    pub const REPLY: u16 = 1;
    /// The flow's source is translated too.
    pub const MASQUERADED: u16 = 2;
}

/// What a direction of a flow has seen.
pub mod seen {
    /// Any packet.
    pub const PACKET: u16 = 1;
    /// A TCP FIN.
    pub const FIN: u16 = 2;
    /// A TCP RST.
    pub const RST: u16 = 4;
    /// A TCP segment after the handshake's first.
    pub const ESTABLISHED: u16 = 8;
}

/// Key of the map `FRAGMENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Identification: 16 bits in IPv4, 32 in IPv6, as it is in the packet.
    pub id: u32,
    /// IP protocol number.
    pub protocol: u32,
}

/// Value of the map `FRAGMENTS`: what the first fragment told and later ones do not have.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Source port, in network order.
    pub source_port: u16,
    /// Destination port, in network order.
    pub destination_port: u16,
    /// When the first fragment came: seconds of `CLOCK_MONOTONIC`. Identifications are used again soon.
    pub seen: u32,
}

sizes!(FlowKey = 40, Flow = 56, FragmentKey = 40, Fragment = 8);
