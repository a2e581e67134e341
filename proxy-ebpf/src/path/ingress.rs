//! The way of packets that come in by an interface.

use core::convert::Infallible;

use aya_ebpf::bindings::__sk_buff;

use super::{error, forward};
use crate::node;
use crate::packet::parse::parse;
use crate::packet::{fragments, is};
use crate::run::{Hook, Run, Scratch};
use crate::stage::source::{FIRST, GOING_ON};
use crate::stage::{client, endpoint, flow, frame, route, service, source};
use crate::verdict::{Refusal, Verdict};

/// A packet's whole way. `L2`: length of the Ethernet header.
#[inline(always)]
pub fn run<const L2: u32>(skb: *mut __sk_buff) -> i32 {
    let Some((mut run, scratch)) = super::begin(skb, Hook::Ingress) else { return Verdict::Pass.code() };
    let Err(verdict) = way::<L2>(&mut run, scratch);
    super::end::<L2>(&run, scratch, verdict)
}

#[inline(always)]
fn way<const L2: u32>(run: &mut Run<'_>, scratch: &mut Scratch) -> Result<Infallible, Verdict> {
    let Some(v4) = frame::is_v4(run.skb) else {
        source::check_hidden(run)?;
        return Err(Verdict::Pass);
    };
    let mut bridge = 0;
    if let Some(link) = node::interface(run.interface()) {
        (scratch.interface, bridge) = (link.flags, link.bridge);
        source::check_pod::<L2>(run, scratch, v4)?;
    }
    frame::check_tag(run)?;
    run.bridged = frame::check_receiver::<L2>(run, scratch, bridge)?;
    if !parse(run.skb, L2, v4, &mut scratch.bytes, &mut scratch.packet) {
        return Err(Verdict::Pass);
    }
    fragments::begin(&scratch.packet);
    if scratch.packet.is(is::ICMP_ERROR) {
        return error::way::<L2>(run, scratch);
    }
    let found = if continues(run, scratch)? { None } else { begin(run, scratch)? };
    forward::send::<L2>(run, scratch, found)
}

/// Whether the packet belongs to a flow.
#[inline(always)]
fn continues(run: &Run<'_>, scratch: &mut Scratch) -> Result<bool, Verdict> {
    let Some(flow) = flow::of(&scratch.packet) else { return Ok(false) };
    // From port to port nothing begins, and what the endpoint does not know by its own port there
    // has none.
    if run.bridged && flow::is_straight(flow) {
        return Err(Verdict::Pass);
    }
    source::check_way_back(run, scratch, GOING_ON)?;
    flow::continues(run, scratch, flow)
}

/// Begins a flow with the packet.
#[inline(always)]
fn begin(run: &Run<'_>, scratch: &mut Scratch) -> Result<Option<route::Route>, Verdict> {
    if run.bridged || !flow::may_begin(&scratch.packet) {
        return Err(Verdict::Pass);
    }
    service::check_new(run, &scratch.packet)?;
    if source::is_nobody_outside(&scratch.packet.key.source) {
        return Err(Verdict::Pass);
    }
    let frontend = service::of(scratch);
    let mut what = 0;
    if let Some(frontend) = &frontend {
        source::check_way_back(run, scratch, FIRST)?;
        service::check_range(scratch, frontend)?;
        what = client::action(run, &scratch.packet, frontend);
        service::check_action(what)?;
    } else if service::is_undefined_port(scratch) {
        source::check_way_back(run, scratch, FIRST)?;
        return Err(Verdict::Refuse(Refusal::NoPort));
    } else {
        flow::check_meets_service(scratch)?;
        source::check_way_back(run, scratch, FIRST)?;
    }
    scratch.flow = flow::straight(&scratch.packet);
    let masquerade = match &frontend {
        Some(frontend) => endpoint::set(run, scratch, frontend, what)?,
        None => false,
    };
    forward::begin(run, scratch, masquerade)
}
