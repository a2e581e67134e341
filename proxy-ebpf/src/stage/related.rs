//! ICMP errors about packets that were translated: which flow an error belongs to, and what becomes
//! of its ends.

use sluice_common::flow::{Flow, flag};

use super::flow;
use crate::packet::is;
use crate::packet::parse::parse;
use crate::run::{Run, Scratch};
use crate::verdict::Verdict;

/// Finds the flow that the packet is about that an error quotes; it is about the other direction of
/// that flow. An error about anything else is left alone.
#[inline(always)]
pub fn flow(run: &Run<'_>, scratch: &mut Scratch) -> Result<&'static mut Flow, Verdict> {
    let v4 = scratch.packet.is(is::V4);
    let quoted = scratch.packet.quoted();
    if !parse(run.skb, quoted, v4, &mut scratch.bytes, &mut scratch.inner)
        || !scratch.inner.is(is::PORTS)
        || scratch.inner.is(is::LATER_FRAGMENT)
    {
        return Err(Verdict::Pass);
    }
    let inner = &scratch.inner.key;
    scratch.key.source = inner.destination;
    scratch.key.destination = inner.source;
    scratch.key.source_port = inner.destination_port;
    scratch.key.destination_port = inner.source_port;
    scratch.key.protocol = inner.protocol;
    match flow::find(&scratch.key) {
        Some(flow) if flow.flags & flag::PASSES == 0 => Ok(flow),
        _ => Err(Verdict::Pass),
    }
}

/// Leaves in `scratch.flow` what becomes of the error's own ends, and in `scratch.reply` what
/// becomes of those of the packet that it quotes.
#[inline(always)]
pub fn set_ends(scratch: &mut Scratch, flow: &Flow) {
    // Its receiver sent the quoted packet, as it was before it was translated: the flow's end,
    // turned round.
    scratch.flow = *flow;
    scratch.reply = Flow {
        source: flow.destination,
        destination: flow.source,
        source_port: flow.destination_port,
        destination_port: flow.source_port,
        ..*flow
    };
    // A router's own address stays where the flow keeps its source's.
    if scratch.key.source == scratch.flow.source {
        scratch.flow.source = scratch.packet.key.source;
    }
}
