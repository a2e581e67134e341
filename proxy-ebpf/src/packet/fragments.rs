//! Ports for the parts of a fragmented packet that have none: its first part says them.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use sluice_common::flow::{Fragment, FragmentKey};

use super::{Packet, is};
use crate::maps::FRAGMENTS;

#[inline(always)]
fn key_of(packet: &Packet) -> FragmentKey {
    FragmentKey {
        source: packet.key.source,
        destination: packet.key.destination,
        id: packet.fragment_id,
        protocol: packet.key.protocol,
    }
}

/// Remembers the ports and the way of a packet for its later parts.
#[inline(always)]
pub fn remember(packet: &Packet) {
    let ports = Fragment {
        source_port: packet.key.source_port,
        destination_port: packet.key.destination_port,
        seen: if packet.is(is::CUT) { seconds() | Fragment::CUT } else { seconds() },
    };
    // If it cannot be remembered, the later parts go nowhere and the packet is lost, as on any
    // congested way.
    let _ = FRAGMENTS.insert(key_of(packet), ports, 0);
}

/// Forgets what an earlier packet of the same identification left, which this one's later parts
/// must not be taken for, if this is a first part.
#[inline(always)]
pub fn begin(packet: &Packet) {
    if packet.is(is::FIRST_FRAGMENT) {
        // Mostly there is none.
        let _ = FRAGMENTS.remove(key_of(packet));
    }
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

/// Gives a later part the ports and the way of the first; `false`: they are not known.
#[inline(always)]
pub fn recall(packet: &mut Packet) -> bool {
    let Some(ports) = FRAGMENTS.get_ptr(key_of(packet)) else { return false };
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
