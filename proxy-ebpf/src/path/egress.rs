//! The way of packets that leave by an interface: what processes of this node have sent, and what
//! other parts of the stack forward.

use core::convert::Infallible;

use aya_ebpf::bindings::__sk_buff;

use super::{error, forward};
use crate::packet::parse::parse;
use crate::packet::{fragments, is};
use crate::run::{Hook, Run, Scratch};
use crate::stage::{client, endpoint, flow, frame, route, service};
use crate::verdict::{Refusal, Verdict};

/// A packet's whole way. `L2`: length of the Ethernet header.
#[inline(always)]
pub fn run<const L2: u32>(skb: *mut __sk_buff) -> i32 {
    let Some((mut run, scratch)) = super::begin(skb, Hook::Egress) else { return Verdict::Pass.code() };
    let Err(verdict) = way::<L2>(&mut run, scratch);
    super::end::<L2>(&run, scratch, verdict)
}

#[inline(always)]
fn way<const L2: u32>(run: &mut Run<'_>, scratch: &mut Scratch) -> Result<Infallible, Verdict> {
    let Some(v4) = frame::is_v4(run.skb) else { return Err(Verdict::Pass) };
    frame::check_tag(run)?;
    if !parse(run.skb, L2, v4, &mut scratch.bytes, &mut scratch.packet) {
        return Err(Verdict::Pass);
    }
    if frame::is_forwarded(run) {
        service::check_allocated(run, &scratch.packet)?;
        return Err(Verdict::Pass);
    }
    fragments::begin(&scratch.packet);
    if scratch.packet.is(is::ICMP_ERROR) {
        frame::check_port(run)?;
        return error::way::<L2>(run, scratch);
    }
    let found = if continues(run, scratch)? { None } else { begin(run, scratch)? };
    forward::send::<L2>(run, scratch, found)
}

/// Whether the packet belongs to a flow.
#[inline(always)]
fn continues(run: &Run<'_>, scratch: &mut Scratch) -> Result<bool, Verdict> {
    let Some(flow) = flow::of(&scratch.packet) else { return Ok(false) };
    frame::check_port(run)?;
    flow::continues(run, scratch, flow)
}

/// Begins a flow with the packet.
#[inline(always)]
fn begin(run: &Run<'_>, scratch: &mut Scratch) -> Result<Option<route::Route>, Verdict> {
    if !flow::may_begin(&scratch.packet) {
        return Err(Verdict::Pass);
    }
    service::check_new(run, &scratch.packet)?;
    let Some(frontend) = service::of(scratch) else {
        if service::is_undefined_port(scratch) {
            return Err(Verdict::Refuse(Refusal::NoPort));
        }
        // It may have been translated already: a redirected packet comes by here once more.
        service::check_allocated(run, &scratch.packet)?;
        return Err(Verdict::Pass);
    };
    service::check_range(scratch, &frontend)?;
    let what = client::action(run, &scratch.packet, &frontend);
    service::check_action(what)?;
    scratch.flow = flow::straight(&scratch.packet);
    let masquerade = endpoint::set(run, scratch, &frontend, what)?;
    forward::begin(run, scratch, masquerade)
}
