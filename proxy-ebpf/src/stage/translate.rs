//! What a packet becomes, now that it is known where it goes.

use super::route::Onward;
use crate::packet::{is, rewrite};
use crate::run::{Hook, Run, Scratch};
use crate::verdict::{Reason, Verdict};

/// Makes a packet what `scratch.flow` says.
#[inline(always)]
pub fn packet<const L2: u32>(run: &Run<'_>, scratch: &Scratch, onward: Onward) -> Result<(), Verdict> {
    let ages = run.hook == Hook::Ingress && is_forwarded(onward);
    let aged = !ages || rewrite::age(run.skb, L2, scratch.packet.is(is::V4));
    if aged && rewrite::translate(run.skb, L2, &scratch.packet, &scratch.flow) {
        Ok(())
    } else {
        Err(Verdict::Drop(Reason::Malformed))
    }
}

/// Makes an ICMP error what `scratch.flow` says, and the packet that it quotes what `scratch.reply`
/// says.
#[inline(always)]
pub fn error<const L2: u32>(run: &Run<'_>, scratch: &Scratch, onward: Onward) -> Result<(), Verdict> {
    let Scratch { packet, inner, flow, reply, .. } = scratch;
    let outer = [&flow.source, &flow.destination];
    let ages = run.hook == Hook::Ingress && is_forwarded(onward);
    if rewrite::translate_error(run.skb, L2, packet, packet.quoted(), inner, reply, outer)
        && (!ages || rewrite::age(run.skb, L2, packet.is(is::V4)))
    {
        Ok(())
    } else {
        Err(Verdict::Drop(Reason::Malformed))
    }
}

/// Whether a packet goes past the stack, which ages what it forwards.
#[inline(always)]
fn is_forwarded(onward: Onward) -> bool {
    matches!(onward, Onward::Forward | Onward::Resolve)
}
