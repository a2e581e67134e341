//! Decisions on single packets, told through aya-log. The daemon sets `AYA_LOG_LEVEL` before it
//! loads the programs; when it is off, which is the rule, the verifier removes all of this.

use aya_log_ebpf::info;
use sluice_common::flow::Flow;

use crate::packet::Packet;

/// Tells what became of a packet.
#[inline(never)]
pub fn tell(packet: &Packet, what: &'static str) {
    info!(
        packet,
        "{:i}:{} -> {:i}:{} protocol {}: {}",
        packet.key.source.octets(),
        u16::from_be(packet.key.source_port),
        packet.key.destination.octets(),
        u16::from_be(packet.key.destination_port),
        packet.key.protocol,
        what
    );
}

/// Tells of a new flow, in two messages: a stack of 512 bytes has no room for one.
#[inline(always)]
pub fn tell_flow(packet: &Packet, flow: &Flow) {
    tell(packet, "translated");
    tell_ends(flow);
}

#[inline(never)]
fn tell_ends(flow: &Flow) {
    info!(
        flow,
        "  to {:i}:{} -> {:i}:{}",
        flow.source.octets(),
        u16::from_be(flow.source_port),
        flow.destination.octets(),
        u16::from_be(flow.destination_port)
    );
}
