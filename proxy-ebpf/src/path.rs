//! The order of stages: what is asked of a packet or a system call, one after the other. What the
//! answer is, `stage` decides.
//!
//! A stage says what the next ones need to know, or `Err`: a verdict, with which the way ends.

pub mod egress;
mod error;
mod forward;
pub mod ingress;
pub mod socket;

use aya_ebpf::bindings::__sk_buff;

use crate::node;
use crate::run::{self, Hook, Run, Scratch};
use crate::stage::answer;
use crate::verdict::Verdict;

/// Begins a packet's run; `None`: the daemon has told nothing yet.
#[inline(always)]
fn begin(skb: *mut __sk_buff, hook: Hook) -> Option<(Run<'static>, &'static mut Scratch)> {
    let (Some(config), Some(scratch)) = (node::config(), run::scratch()) else { return None };
    scratch.interface = 0;
    Some((Run { skb, config, hook, bridged: false }, scratch))
}

/// Does what is decided of a packet; returns what its run ends with.
#[inline(always)]
fn end<const L2: u32>(run: &Run<'_>, scratch: &mut Scratch, verdict: Verdict) -> i32 {
    verdict.report(&scratch.packet);
    if let Some(error) = verdict.error()
        && let Some(code) = answer::send::<L2>(run, scratch, error)
    {
        return code;
    }
    verdict.code()
}
