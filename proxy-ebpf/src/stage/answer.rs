//! Whether the sender of a packet gets an ICMP error, and from which address.

use aya_ebpf::helpers::generated::bpf_redirect;
use sluice_common::Address;

use super::flow::now;
use crate::node;
use crate::packet::icmp::{self, Error};
use crate::packet::is;
use crate::run::{Hook, Run, Scratch};

/// Errors of a kind that a CPU makes in a second: a flood of packets to where nothing is must not
/// be answered one by one.
const PER_SECOND: u64 = 1_000;
/// Of include/uapi/linux/bpf.h: BPF_F_INGRESS.
const INWARDS: u64 = 1;

/// Turns the packet into an ICMP error about itself and sends it back where it came from: out by
/// the interface that it came in by, or, if a process of this node sent it, in by the one that it
/// was to leave by. Returns what the kernel says to that; `None`: there is no error.
#[inline(always)]
pub fn send<const L2: u32>(run: &Run<'_>, scratch: &mut Scratch, error: Error) -> Option<i32> {
    if !icmp::can_quote::<L2>(&scratch.packet) || is_too_much(scratch, error) {
        return None;
    }
    let (source, direction) = match run.hook {
        Hook::Ingress => (source(run, scratch), 0),
        // The stack takes nothing from outside that claims to be its own.
        Hook::Egress => (scratch.packet.key.destination, INWARDS),
    };
    if !icmp::make::<L2>(run.skb, scratch, error, &source) {
        return None;
    }
    // SAFETY: tells the kernel where to send the packet when the program has ended.
    Some(unsafe { bpf_redirect(run.interface(), direction) } as i32)
}

#[inline(always)]
fn is_too_much(scratch: &mut Scratch, error: Error) -> bool {
    let now = now();
    if now.wrapping_sub(scratch.icmp_since) > 1_000_000_000 {
        scratch.icmp_since = now;
        (scratch.refusals, scratch.others) = (0, 0);
    }
    let made = if matches!(error, Error::Port) { &mut scratch.refusals } else { &mut scratch.others };
    *made += 1;
    *made > PER_SECOND
}

/// The address that the error comes from: the one that was asked, if it is the node's; else that of
/// the interface.
#[inline(always)]
fn source(run: &Run<'_>, scratch: &Scratch) -> Address {
    let asked = scratch.packet.key.destination;
    if node::own_address(&asked) != 0 {
        return asked;
    }
    node::first_address(run.interface(), scratch.packet.is(is::V4), run.config).unwrap_or(asked)
}
