//! The way of ICMP errors about packets that were translated, whichever way they came.

use core::convert::Infallible;

use crate::run::{Run, Scratch};
use crate::stage::source::GOING_ON;
use crate::stage::{related, route, source, translate};
use crate::verdict::Verdict;

/// From an error that was read to where the packet came from that it is about.
#[inline(always)]
pub fn way<const L2: u32>(run: &Run<'_>, scratch: &mut Scratch) -> Result<Infallible, Verdict> {
    let flow = related::flow(run, scratch)?;
    source::check_way_back(run, scratch, GOING_ON)?;
    related::set_ends(scratch, flow);
    let onward = route::of_error(run, scratch)?;
    // As in `forward::send`, a network policy that looks at each packet would have its place here.
    translate::error::<L2>(run, scratch, onward)?;
    Err(route::send::<L2>(run, &mut scratch.fib, onward))
}
