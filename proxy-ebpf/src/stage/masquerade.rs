//! Which address and port of the node a masqueraded flow has.

use aya_ebpf::bindings::{__sk_buff, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use sluice_common::flow::{FlowKey, flag};
use sluice_common::node::Config;

use super::route;
use crate::node;
use crate::packet::{is, protocol};
use crate::run::{Run, Scratch};
use crate::verdict::{Reason, Verdict};

/// Gives the flow in `scratch.flow` the address that masqueraded packets have on their way out,
/// which `scratch.fib` has: the one that the kernel chooses for it, or, where the kernel does not
/// tell, the first of the interface, or of the node.
#[inline(always)]
pub fn set_source(run: &Run<'_>, scratch: &mut Scratch) -> Result<(), Verdict> {
    let v4 = scratch.packet.is(is::V4);
    let chosen = route::source(&scratch.fib, v4);
    let Some(own) = chosen.or_else(|| node::first_address(scratch.fib.ifindex, v4, run.config)) else {
        return Err(Verdict::Drop(Reason::NoAddress));
    };
    scratch.flow.source = own;
    scratch.flow.flags = flag::MASQUERADED;
    Ok(())
}

/// One of the ports for masquerading, in network order: any number is that of one.
#[inline(always)]
pub fn port(config: &Config, number: u32) -> u16 {
    if config.ports == 0 {
        return 0;
    }
    let at = number % config.ports;
    let first = u32::from(config.first_count);
    let port = if at < first {
        u32::from(config.first_begin) + at
    } else {
        u32::from(config.second_begin) + (at - first)
    };
    (port as u16).to_be()
}

/// This network namespace, of include/uapi/linux/bpf.h.
const CURRENT_NETNS: u64 = u64::MAX;

/// Whether a socket of this node would get the replies.
#[inline(always)]
pub fn is_taken(skb: *mut __sk_buff, replies: &FlowKey) -> bool {
    // SAFETY: all zeros is a tuple.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size;
    if replies.source.is_v4() {
        tuple.__bindgen_anon_1.ipv4.saddr = replies.source.word4();
        tuple.__bindgen_anon_1.ipv4.daddr = replies.destination.word4();
        tuple.__bindgen_anon_1.ipv4.sport = replies.source_port;
        tuple.__bindgen_anon_1.ipv4.dport = replies.destination_port;
        size = 12;
    } else {
        tuple.__bindgen_anon_1.ipv6.saddr = replies.source.words;
        tuple.__bindgen_anon_1.ipv6.daddr = replies.destination.words;
        tuple.__bindgen_anon_1.ipv6.sport = replies.source_port;
        tuple.__bindgen_anon_1.ipv6.dport = replies.destination_port;
        size = 36;
    }
    // SAFETY: a socket that is found is released at once.
    unsafe {
        if replies.protocol == protocol::TCP {
            let found = bpf_skc_lookup_tcp(skb.cast(), &mut tuple, size, CURRENT_NETNS, 0);
            if found.is_null() {
                return false;
            }
            bpf_sk_release(found.cast());
        } else {
            let found = bpf_sk_lookup_udp(skb.cast(), &mut tuple, size, CURRENT_NETNS, 0);
            if found.is_null() {
                return false;
            }
            bpf_sk_release(found.cast());
        }
    }
    true
}
