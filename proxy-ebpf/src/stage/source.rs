//! Whether packets that come in are from whom they say. `rp_filter` and the rules of the pod
//! network tell that of what the stack sees; what is translated before does not come there as it
//! was.

use aya_ebpf::bindings::{
    __sk_buff, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
    BPF_FIB_LKUP_RET_UNSUPP_LWT, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup,
};
use aya_ebpf::helpers::generated::bpf_fib_lookup as fib_lookup;
use sluice_common::Address;
use sluice_common::node::{Interface, PodSource, address, interface};

use super::route::{AF_INET, AF_INET6};
use crate::maps::POD_SOURCES;
use crate::node;
use crate::packet::{ETH_SERVICE_VLAN, ETH_VLAN, is, load};
use crate::run::{Run, Scratch};
use crate::verdict::{Reason, Verdict};

/// Of what is neither IPv4 nor IPv6, keeps out what hides IP from here: the stack takes a tag off
/// before programs see a packet, and one behind it, if both are of priority only, after that. A pod
/// needs none. All else is the stack's.
#[inline(always)]
pub fn check_hidden(run: &Run<'_>) -> Result<(), Verdict> {
    // SAFETY: the context is valid, and a plain field of it is read.
    let ether_type = unsafe { (*run.skb).protocol as u16 };
    let hides = ether_type == ETH_VLAN || ether_type == ETH_SERVICE_VLAN;
    if hides && node::interface(run.interface()).is_some_and(is_of_pod) {
        return Err(Verdict::Drop(Reason::PodSource));
    }
    Ok(())
}

#[inline(always)]
fn is_of_pod(link: &Interface) -> bool {
    link.flags & interface::OWN_SOURCES != 0
}

/// Keeps out what a pod sends with an address that is not its own, for whomever it is: the stack
/// takes frames to groups, and those with a tag of priority only.
#[inline(always)]
pub fn check_pod<const L2: u32>(run: &Run<'_>, scratch: &mut Scratch, v4: bool) -> Result<(), Verdict> {
    if scratch.interface & interface::OWN_SOURCES != 0 && !is_own(run.skb, scratch, L2, v4) {
        return Err(Verdict::Drop(Reason::PodSource));
    }
    Ok(())
}

/// Kinds of `rp_filter` that a flow's packets must pass, and that the first ones must.
pub const GOING_ON: u32 = interface::STRICT;
pub const FIRST: u32 = interface::STRICT | interface::LOOSE;

/// Keeps out what `rp_filter` of the interface does, as far as it is of these kinds. A packet for
/// another hardware address does not enter the stack by this interface, but it may by one above it
/// (macvlan), whose programs see it next.
#[inline(always)]
pub fn check_way_back(run: &Run<'_>, scratch: &mut Scratch, kinds: u32) -> Result<(), Verdict> {
    if scratch.interface & kinds == 0 || has_way_back(run.skb, scratch, kinds) {
        return Ok(());
    }
    Err(if run.bridged { Verdict::Pass } else { Verdict::Drop(Reason::ReversePath) })
}

/// Sources that nobody outside of this node can have: the node's own addresses, loopback,
/// multicast, none. The stack drops them.
#[inline(always)]
pub fn is_nobody_outside(source: &Address) -> bool {
    let [a, b, c, d] = source.words;
    let strange = if source.is_v4() {
        let first = u32::from_be(d) >> 24;
        first == 0 || first == 127 || first >= 224
    } else {
        u32::from_be(a) >> 24 == 0xff || (a == 0 && b == 0 && c == 0 && u32::from_be(d) <= 1)
    };
    strange || node::own_address(source) & address::OWN != 0
}

/// Whether a packet of a pod's link has an address of the pod. Nothing is known of it but where its
/// IP header is; those that are for no Service too, because the stack's rules let sources pass that
/// answers have after their translation.
///
/// Addresses that lead no further than the link are for the stack's rules, and so is an address
/// that a pod does not have yet.
#[inline(never)]
fn is_own(skb: *mut __sk_buff, scratch: &mut Scratch, at: u32, v4: bool) -> bool {
    let bytes = &mut scratch.bytes;
    // What cannot be read is nobody's.
    if v4 {
        if !load(skb, at + 12, bytes.as_mut_ptr(), 8) || bytes[0] == 0 {
            return true;
        }
        scratch.source.address = Address::v4(bytes[0]);
    } else {
        if !load(skb, at + 8, bytes.as_mut_ptr(), 32) {
            return true;
        }
        let source = Address { words: [bytes[0], bytes[1], bytes[2], bytes[3]] };
        if is_link_local(bytes[0]) || source == Address::default() {
            return true;
        }
        // On the wire these are nobody's, and they must not be taken for IPv4.
        if source.is_v4() {
            return false;
        }
        scratch.source.address = source;
    }
    // SAFETY: the context is valid, and a plain field of it is read.
    scratch.source.interface = unsafe { (*skb).ifindex };
    if is_listed(&scratch.source) {
        return true;
    }
    if scratch.interface & interface::BRIDGE_PORT != 0 {
        scratch.source.address = Address::default();
        return !is_listed(&scratch.source);
    }
    // A pod that nobody has told of yet.
    let fib = &mut scratch.fib;
    // The other end as routes take it that go by both: these have none for an address of a link or
    // of a group.
    if v4 {
        fib.__bindgen_anon_3.ipv6_src = [bytes[1], 0, 0, 0];
    } else if is_link_local(bytes[4]) || bytes[4] as u8 == 0xff {
        fib.__bindgen_anon_3.ipv6_src = [0; 4];
    } else {
        fib.__bindgen_anon_3.ipv6_src = [bytes[4], bytes[5], bytes[6], bytes[7]];
    }
    let back = look_back(skb, fib, &scratch.source.address, v4, 0);
    back == Back::Unknown || back == Back::Found && fib.ifindex == scratch.source.interface
}

/// fe80::/10 (RFC 4291, section 2.4), by the first word of an address.
#[inline(always)]
fn is_link_local(word: u32) -> bool {
    u32::from_be(word) >> 22 == 0xfe80 >> 6
}

/// Whether it is known that the pod behind a link has an address.
#[inline(always)]
fn is_listed(source: &PodSource) -> bool {
    // SAFETY: as in `node::interface`.
    unsafe { POD_SOURCES.get(source) }.is_some()
}

/// What the kernel knows of the way back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Back {
    /// By the interface in `fib`.
    Found,
    /// There is none, or it is an address of the node.
    None,
    /// It does not tell: it forwards nothing that comes in here, or not by itself.
    Unknown,
}

/// Looks up the way to `source`, from the address in `fib`.
#[inline(always)]
fn look_back(skb: *mut __sk_buff, fib: &mut bpf_fib_lookup, source: &Address, v4: bool, flags: u32) -> Back {
    fib.family = if v4 { AF_INET } else { AF_INET6 };
    (fib.l4_protocol, fib.sport, fib.dport) = (0, 0, 0);
    // Any size: with 0 the helper would take the packet's own.
    fib.__bindgen_anon_1.tot_len = 1;
    fib.__bindgen_anon_2.flowinfo = 0;
    if v4 {
        fib.__bindgen_anon_4.ipv4_dst = source.word4();
    } else {
        fib.__bindgen_anon_4.ipv6_dst = source.words;
    }
    fib.__bindgen_anon_5.tbid = 0;
    // SAFETY: the context is valid, and `fib` is the structure that the helper asks for.
    let result = unsafe {
        fib.ifindex = (*skb).ifindex;
        fib_lookup(skb.cast(), fib, size_of::<bpf_fib_lookup>() as i32, flags)
    };
    if result < 0 {
        return Back::Unknown;
    }
    match result as u32 {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => Back::Found,
        BPF_FIB_LKUP_RET_FWD_DISABLED | BPF_FIB_LKUP_RET_UNSUPP_LWT => Back::Unknown,
        _ => Back::None,
    }
}

/// How often a route of several ways is asked for another one of them.
const WAYS: u32 = 64;

/// Whether `rp_filter` lets an IPv4 packet pass (`__fib_validate_source` of
/// net/ipv4/fib_frontend.c), of the flags in `kinds`.
#[inline(never)]
fn has_way_back(skb: *mut __sk_buff, scratch: &mut Scratch, kinds: u32) -> bool {
    let kinds = scratch.interface & kinds;
    if kinds == 0 || !scratch.packet.is(is::V4) || scratch.interface & interface::BRIDGE_PORT != 0 {
        return true;
    }
    let (source, fib) = (&scratch.packet.key.source, &mut scratch.fib);
    let destination = scratch.packet.key.destination.word4();
    fib.__bindgen_anon_3.ipv6_src = [destination, 0, 0, 0];
    match look_back(skb, fib, source, true, 0) {
        Back::Found => {}
        Back::None => return false,
        Back::Unknown => return true,
    }
    // SAFETY: the context is valid, and a plain field of it is read.
    let own = unsafe { (*skb).ifindex };
    if kinds & interface::STRICT == 0 || fib.ifindex == own {
        return true;
    }
    // It may be one way of several, another of which is by here: `rp_filter` looks at all of them.
    // The helper tells of one, chosen by a hash of both addresses, so others are found with other
    // addresses; if any route to there goes by here at all.
    if look_back(skb, fib, source, true, BPF_FIB_LOOKUP_OUTPUT) != Back::Found {
        return false;
    }
    for other in 1..WAYS {
        fib.__bindgen_anon_3.ipv6_src = [destination ^ other.to_be(), 0, 0, 0];
        if look_back(skb, fib, source, true, 0) == Back::Found && fib.ifindex == own {
            return true;
        }
    }
    false
}
