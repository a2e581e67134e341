//! The flow table of the packet path.

use crate::{Address, sizes};

/// Key of the map `FLOWS`: a packet as it comes in.
///
/// Every connection has two entries: one for packets of the client, one for replies. The key of one
/// is the translated packet of the other, turned round.
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
    /// The last packet in this direction: nanoseconds of `CLOCK_MONOTONIC`. Or [`CLAIMED`].
    pub used: u64,
    /// Group id without its list of the service port; for UDP, whose `MEMBERS` tell whether the
    /// endpoint still serves.
    pub group: u64,
}

/// [`Flow::used`] of an entry that somebody is about to remove or to replace, and nobody else may.
///
/// No other value comes back: it is a time that only goes on. Whoever exchanges the value that he
/// has read for this one has claimed what he has read, and not what came in its place.
pub const CLAIMED: u64 = u64::MAX;

impl FlowKey {
    /// The key of the other entry of the flow of this key.
    #[inline(always)]
    #[must_use]
    pub const fn other(&self, flow: &Flow) -> FlowKey {
        FlowKey {
            source: flow.destination,
            destination: flow.source,
            source_port: flow.destination_port,
            destination_port: flow.source_port,
            protocol: self.protocol,
        }
    }
}

impl Flow {
    /// Whether this is an entry of a flow whose other entry has that key. If not, another flow has
    /// the key of its other entry; or this one lets pass what is for nobody's flow, and has none.
    #[inline(always)]
    #[must_use]
    pub fn is_other_of(&self, key: &FlowKey) -> bool {
        self.source == key.destination
            && self.destination == key.source
            && self.source_port == key.destination_port
            && self.destination_port == key.source_port
            && self.flags & flag::PASSES == 0
    }

    /// What the other entry of the flow of this key says, before it has seen a packet.
    #[inline(always)]
    #[must_use]
    pub const fn turned(&self, key: &FlowKey) -> Flow {
        Flow {
            source: key.destination,
            destination: key.source,
            source_port: key.destination_port,
            destination_port: key.source_port,
            seen: 0,
            flags: self.flags ^ flag::REPLY,
            used: self.used,
            group: self.group,
        }
    }
}

/// Value of the map `NEWEST`: a flow that began.
///
/// Slot 0 has in `used` the number of the flow that begins next. The others are a ring: the slot of
/// a number holds the flow that began so many flows ago, which ends now if its client's entry is as
/// it was entered: `used` is still what it is here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Begun {
    /// Its first packet, as it came in.
    pub key: FlowKey,
    /// [`Flow::used`] of both its entries when they were entered.
    pub used: u64,
}

/// What the program `end_flow` is told, [`ORDER_AT`] bytes into its packet: a flow to remove, if
/// nobody has used it since.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// One entry.
    pub key: FlowKey,
    /// The other one.
    pub other: FlowKey,
    /// [`Flow::used`] of the first when it was decided on.
    pub used: u64,
    /// The same of the other one; 0: it was not there, or of another flow.
    pub other_used: u64,
}

/// Where an [`Order`] begins in the packet that brings it.
pub const ORDER_AT: u32 = 16;
/// What the program returns when it has removed the flow.
pub const ENDED: u32 = 1;

/// Flags of a flow's entry.
pub mod flag {
    /// The entry of replies.
    pub const REPLY: u16 = 1;
    /// The flow's source is translated too.
    pub const MASQUERADED: u16 = 2;
    /// Of an entry of replies, whose other one is gone: these ends are a connection straight to the
    /// endpoint, which was there before the flow, and of which the table knows nothing else.
    /// Packets pass as they are.
    pub const PASSES: u16 = 4;
    /// The flow is a connection straight to the endpoint, which gets another source port: that of
    /// the client is a Service flow's.
    pub const STRAIGHT: u16 = 8;
}

/// What a direction of a flow has seen.
pub mod seen {
    /// Any packet.
    pub const PACKET: u16 = 1;
    /// A TCP FIN.
    pub const FIN: u16 = 2;
    /// A TCP RST.
    pub const RST: u16 = 4;
    /// A TCP segment after the handshake's first; of a UDP client, a datagram after the first.
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
    /// When the first fragment came: seconds of `CLOCK_MONOTONIC`. Identifications are used again
    /// soon. With [`Fragment::CUT`] or without.
    pub seen: u32,
}

impl Fragment {
    /// The first fragment was too big for its way and went by the node's stack. So do the others,
    /// or a stack that puts fragments together would wait for them in vain.
    pub const CUT: u32 = 1 << 31;
}

sizes!(FlowKey = 40, Flow = 56, Begun = 48, Order = 96, FragmentKey = 40, Fragment = 8);
