//! The way of packets whose endpoint is known, whichever way they came.

use core::convert::Infallible;

use crate::run::{Run, Scratch};
use crate::stage::route::Route;
use crate::stage::{flow, masquerade, route, translate};
use crate::verdict::Verdict;

/// Begins the flow in `scratch.flow`. Returns the way of its packets, if it was looked up for this
/// flow.
#[inline(always)]
pub fn begin(run: &Run<'_>, scratch: &mut Scratch, masquerade: bool) -> Result<Option<Route>, Verdict> {
    let way = route::of_first(run, scratch, masquerade)?;
    if masquerade && way != Route::Stack {
        masquerade::set_source(run, scratch)?;
    }
    // A network policy that decides about connections has its place here: a connection that is not
    // allowed leaves nothing in the flow table, only the endpoint that was picked for its client.
    // `scratch.packet.key` has the client, `scratch.flow` the endpoint; `scratch.fib` has the
    // endpoint's interface only if the way is `Forward` or `Resolve`. Other look-ups, such as
    // `source::check_way_back`, must not come between: they write to `fib`.
    Ok(if flow::begin(run, scratch)? { Some(way) } else { None })
}

/// Sends a packet of the flow in `scratch.flow` on; by the way that was found for the flow, if one
/// was.
#[inline(always)]
pub fn send<const L2: u32>(
    run: &Run<'_>,
    scratch: &mut Scratch,
    found: Option<Route>,
) -> Result<Infallible, Verdict> {
    let onward = route::of(run, scratch, found)?;
    route::check_ttl(run, scratch, onward)?;
    // A network policy that looks at each packet has its place here and in `error::way`, before the
    // packet is rewritten: `route::send` hands packets to pods past every program and netfilter
    // hook at the host's end of their links (`bpf_redirect_peer`). Only what goes on by the stack
    // comes by there, as does all that never comes here: connections that the socket path has
    // translated, and those that are no Service's. `scratch.fib` has this packet's interface only
    // if `onward` is `Forward` or `Resolve`.
    translate::packet::<L2>(run, scratch, onward)?;
    Err(route::send::<L2>(run, &mut scratch.fib, onward))
}
