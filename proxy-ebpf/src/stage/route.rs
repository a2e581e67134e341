//! The way of a translated packet, and sending it there, past the node's own stack.

use aya_ebpf::bindings::{
    __sk_buff, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
    BPF_FIB_LKUP_RET_NO_SRC_ADDR, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS,
    BPF_FIB_LKUP_RET_UNSUPP_LWT, BPF_FIB_LOOKUP_SRC, bpf_fib_lookup, bpf_redir_neigh,
};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup as fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_head,
};
use sluice_common::Address;
use sluice_common::flow::Flow;
use sluice_common::node::interface;

use crate::node;
use crate::packet::{Packet, fragments, is, store};
use crate::run::{Hook, Run, Scratch};
use crate::verdict::{Reason, Verdict};

const EINVAL: i64 = -22;

pub const AF_INET: u8 = 2;
pub const AF_INET6: u8 = 10;

/// Where routes lead a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// By the interface in `fib`.
    Forward,
    /// The same, but the neighbour's Ethernet address is not known yet.
    Resolve,
    /// To this node itself, or where the stack decides.
    Stack,
    /// It is too big for the way.
    TooBig,
    /// Nowhere.
    None,
}

/// How a packet goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Onward {
    /// As it was going: to the next program, or the stack.
    Pass,
    /// By the stack, which cuts it up.
    Cut,
    /// By the interface in `fib`.
    Forward,
    /// The same, but the neighbour's Ethernet address is not known yet.
    Resolve,
}

/// The way of a flow's first packet, which `scratch.fib` has then. It decides by which address of
/// the node the endpoint sees a masqueraded connection.
#[inline(always)]
pub fn of_first(run: &Run<'_>, scratch: &mut Scratch, masquerade: bool) -> Result<Route, Verdict> {
    let Scratch { packet, flow, fib, .. } = scratch;
    let way = if masquerade {
        find_with_source(run.skb, packet, flow, fib)
    } else {
        find(run.skb, packet, flow, fib)
    };
    if way == Route::TooBig && !packet.is(is::MAY_FRAGMENT) {
        return Err(too_big(fib));
    }
    // The stack takes no packet that leaves and would have to turn back to this node itself.
    // Processes that the socket path serves never send one.
    let is_stuck = run.hook == Hook::Egress && way == Route::Stack;
    if way == Route::None || is_stuck {
        return Err(Verdict::Drop(Reason::NoRoute));
    }
    Ok(way)
}

/// How a packet of the flow in `scratch.flow` goes on; by the way that was found for the flow, if
/// one was. Its later parts, if it is the first, take the same way.
#[inline(always)]
pub fn of(run: &Run<'_>, scratch: &mut Scratch, found: Option<Route>) -> Result<Onward, Verdict> {
    let on_its_way = is_on_its_way(run, scratch);
    let way = match found {
        Some(way) => way,
        None if on_its_way || run.bridged => Route::Stack,
        // Its first part went by the stack, which may hold all of them until they are whole.
        None if scratch.packet.is(is::CUT) => Route::TooBig,
        None => find(run.skb, &scratch.packet, &scratch.flow, &mut scratch.fib),
    };
    if way == Route::TooBig && scratch.packet.is(is::MAY_FRAGMENT) {
        scratch.packet.flags |= is::CUT;
    }
    if scratch.packet.is(is::FIRST_FRAGMENT) {
        fragments::remember(&scratch.packet);
    }
    if on_its_way {
        return Ok(Onward::Pass);
    }
    if run.bridged {
        return Err(Verdict::Pass);
    }
    match way {
        Route::Stack if run.hook == Hook::Ingress => Ok(Onward::Pass),
        Route::TooBig if scratch.packet.is(is::CUT) => Ok(Onward::Cut),
        Route::TooBig => Err(too_big(&scratch.fib)),
        Route::Stack | Route::None => Err(Verdict::Drop(Reason::NoRoute)),
        Route::Forward => Ok(Onward::Forward),
        Route::Resolve => Ok(Onward::Resolve),
    }
}

/// How an ICMP error about a packet of a flow goes on, to where `scratch.flow` says. There are no
/// errors about errors.
#[inline(always)]
pub fn of_error(run: &Run<'_>, scratch: &mut Scratch) -> Result<Onward, Verdict> {
    if is_on_its_way(run, scratch) {
        return Ok(Onward::Pass);
    }
    if run.bridged {
        return Err(Verdict::Pass);
    }
    let onward = match find(run.skb, &scratch.packet, &scratch.flow, &mut scratch.fib) {
        Route::Stack => return Ok(Onward::Pass),
        Route::Forward => Onward::Forward,
        Route::Resolve => Onward::Resolve,
        Route::TooBig | Route::None => return Err(Verdict::Drop(Reason::NoRoute)),
    };
    if run.hook == Hook::Ingress && scratch.packet.ttl <= 1 {
        return Err(Verdict::Drop(Reason::NoRoute));
    }
    Ok(onward)
}

/// Whether a packet goes on as it was going: a reply that a process of this node sends, and one
/// between two ports of a bridge.
#[inline(always)]
fn is_on_its_way(run: &Run<'_>, scratch: &Scratch) -> bool {
    let same_way = scratch.flow.destination == scratch.packet.key.destination;
    same_way && (run.bridged || run.hook == Hook::Egress)
}

/// Ends what would be forwarded too often. What leaves by itself was looked at before.
#[inline(always)]
pub fn check_ttl(run: &Run<'_>, scratch: &Scratch, onward: Onward) -> Result<(), Verdict> {
    if onward != Onward::Pass && run.hook == Hook::Ingress && scratch.packet.ttl <= 1 {
        return Err(Verdict::TimeExceeded);
    }
    Ok(())
}

#[inline(always)]
fn too_big(fib: &bpf_fib_lookup) -> Verdict {
    // SAFETY: the route lookup has written the smaller of the two fields of the same size.
    Verdict::TooBig(u32::from(unsafe { fib.__bindgen_anon_1.mtu_result }))
}

/// Looks the way of a translated packet up; leaves it in `fib`.
#[inline(always)]
fn find(skb: *mut __sk_buff, packet: &Packet, to: &Flow, fib: &mut bpf_fib_lookup) -> Route {
    route_of(look_up(skb, packet, to, fib, 0))
}

/// The same, and the address that the kernel would send from by this way: see [`source`].
#[inline(always)]
fn find_with_source(skb: *mut __sk_buff, packet: &Packet, to: &Flow, fib: &mut bpf_fib_lookup) -> Route {
    let mut flags = BPF_FIB_LOOKUP_SRC;
    let mut result = look_up(skb, packet, to, fib, flags);
    if result == EINVAL || result == i64::from(BPF_FIB_LKUP_RET_NO_SRC_ADDR) {
        // Before Linux 6.7, or the kernel has no address of the family.
        flags = 0;
        result = look_up(skb, packet, to, fib, flags);
    }
    let mut route = route_of(result);
    if route == Route::TooBig && packet.is(is::MAY_FRAGMENT) {
        // Of a way that is too narrow the kernel says nothing else.
        let wide = route_of(look_up(skb, packet, to, fib, flags | ANY_SIZE));
        if wide != Route::Forward && wide != Route::Resolve {
            route = wide;
        }
    }
    if flags == 0 {
        fib.__bindgen_anon_3.ipv6_src = [0; 4];
    }
    route
}

/// The source address that [`find_with_source`] found, where its answer was [`Route::Forward`],
/// [`Route::Resolve`], or [`Route::TooBig`] of a packet that may be cut.
#[inline(always)]
pub fn source(fib: &bpf_fib_lookup, v4: bool) -> Option<Address> {
    // SAFETY: plain words.
    match unsafe { fib.__bindgen_anon_3.ipv6_src } {
        [0, 0, 0, 0] => None,
        [word, ..] if v4 => Some(Address::v4(word)),
        words => Some(Address { words }),
    }
}

/// Flag of [`look_up`], not of the helper: whatever the size.
const ANY_SIZE: u32 = 1 << 31;

/// What the helper says. Not inlined: the older verifier counts 512 bytes of stack, its callers'
/// with it.
#[inline(never)]
fn look_up(skb: *mut __sk_buff, packet: &Packet, to: &Flow, fib: &mut bpf_fib_lookup, flags: u32) -> i64 {
    let v4 = packet.is(is::V4);
    // SAFETY: the context is valid, and plain fields of it are read.
    let (ifindex, gso) = unsafe { ((*skb).ifindex, (*skb).gso_size) };
    fib.family = if v4 { AF_INET } else { AF_INET6 };
    fib.l4_protocol = packet.key.protocol as u8;
    // Rules of routing and the kernel's own choice know the sender as it is before its address is
    // translated.
    fib.sport = packet.key.source_port;
    fib.dport = to.destination_port;
    // What will be cut up on the way out is as big as its segments.
    let size = if gso == 0 { packet.length } else { packet.headers + gso };
    // With 0 the helper would take the packet's own size.
    fib.__bindgen_anon_1.tot_len = if flags & ANY_SIZE == 0 { size as u16 } else { 1 };
    fib.__bindgen_anon_2.flowinfo = 0;
    if v4 {
        fib.__bindgen_anon_2.tos = packet.tos as u8 & 0xfc;
        fib.__bindgen_anon_3.ipv6_src = [packet.key.source.word4(), 0, 0, 0];
        fib.__bindgen_anon_4.ipv4_dst = to.destination.word4();
    } else {
        fib.__bindgen_anon_3.ipv6_src = packet.key.source.words;
        fib.__bindgen_anon_4.ipv6_dst = to.destination.words;
    }
    fib.__bindgen_anon_5.tbid = 0;
    fib.ifindex = ifindex;
    // On the way out too: BPF_FIB_LOOKUP_OUTPUT would look for routes by this interface only.
    // SAFETY: `fib` is the structure that the helper asks for.
    unsafe { fib_lookup(skb.cast(), fib, size_of::<bpf_fib_lookup>() as i32, flags & !ANY_SIZE) }
}

#[inline(always)]
fn route_of(result: i64) -> Route {
    match result as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => Route::Forward,
        BPF_FIB_LKUP_RET_NO_NEIGH => Route::Resolve,
        BPF_FIB_LKUP_RET_NOT_FWDED | BPF_FIB_LKUP_RET_FWD_DISABLED | BPF_FIB_LKUP_RET_UNSUPP_LWT => {
            Route::Stack
        }
        BPF_FIB_LKUP_RET_FRAG_NEEDED => Route::TooBig,
        _ => Route::None,
    }
}

/// Gives the packet an Ethernet header if it has none: helpers take no others, and take it off
/// again where there is none on the way out.
#[inline(always)]
fn has_ethernet<const L2: u32>(skb: *mut __sk_buff) -> bool {
    if L2 != 0 {
        return true;
    }
    // SAFETY: the context is valid; the helper checks what it does with the packet.
    let kind = unsafe {
        if bpf_skb_change_head(skb, 14, 0) != 0 {
            return false;
        }
        (*skb).protocol as u16
    };
    store(skb, 12, &kind)
}

/// Index of the interface `lo`, in each network namespace.
const LOOPBACK: u32 = 1;
/// Of include/uapi/linux/bpf.h: BPF_F_INGRESS.
const INWARDS: u64 = 1;

/// Sends a translated packet on.
#[inline(always)]
pub fn send<const L2: u32>(run: &Run<'_>, fib: &mut bpf_fib_lookup, onward: Onward) -> Verdict {
    let sent = match onward {
        Onward::Pass => return Verdict::Pass,
        Onward::Cut => send_cut::<L2>(run.skb),
        Onward::Forward => send_out::<L2>(run.skb, fib, run.hook == Hook::Ingress),
        Onward::Resolve => send_out::<L2>(run.skb, fib, false),
    };
    sent.map_or(Verdict::Drop(Reason::Malformed), Verdict::Sent)
}

/// Hands a packet to the stack, which forwards it in pieces that fit. By `lo`: on the interface
/// that it came in by, the stack takes no packet with the node's own source address, and with
/// strict `rp_filter` none with a Service's. The daemon sees to it that `lo` takes them.
#[inline(always)]
fn send_cut<const L2: u32>(skb: *mut __sk_buff) -> Option<i32> {
    // The Ethernet address of `lo`, twice.
    if !has_ethernet::<L2>(skb) || !store(skb, 0, &[0_u32; 3]) {
        return None;
    }
    // SAFETY: tells the kernel where to send the packet when the program has ended.
    Some(unsafe { bpf_redirect(LOOPBACK, INWARDS) } as i32)
}

/// Sends a packet out by the interface in `fib`; `peer`: straight to the other end of a veth pair,
/// if it is one.
#[inline(always)]
fn send_out<const L2: u32>(skb: *mut __sk_buff, fib: &mut bpf_fib_lookup, peer: bool) -> Option<i32> {
    let out = fib.ifindex;
    if !has_ethernet::<L2>(skb) {
        return None;
    }
    if peer {
        let flags = node::interface(out).map_or(0, |interface| interface.flags);
        let (destination, source) = (fib.dmac, fib.smac);
        if flags & interface::PEER != 0 && store(skb, 0, &destination) && store(skb, 6, &source) {
            // SAFETY: tells the kernel where to send the packet when the program has ended.
            return Some(unsafe { bpf_redirect_peer(out, 0) } as i32);
        }
    }
    // The kernel writes the Ethernet addresses, and asks whether a neighbour that was silent for
    // long still has its own: a lookup of the route says what was known, however old it is.
    let family = u32::from(fib.family);
    // SAFETY: all zeros is an address.
    let mut next = bpf_redir_neigh { nh_family: family, __bindgen_anon_1: unsafe { core::mem::zeroed() } };
    // SAFETY: plain words, of the family that `fib` says.
    unsafe {
        if family == u32::from(AF_INET) {
            next.__bindgen_anon_1.ipv4_nh = fib.__bindgen_anon_4.ipv4_dst;
        } else {
            next.__bindgen_anon_1.ipv6_nh = fib.__bindgen_anon_4.ipv6_dst;
        }
        Some(bpf_redirect_neigh(out, &mut next, size_of::<bpf_redir_neigh>() as i32, 0) as i32)
    }
}
