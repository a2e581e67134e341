//! Which frames are looked at, and at which of the interfaces that they pass.

use aya_ebpf::bindings::__sk_buff;
use sluice_common::node::interface;

use crate::node;
use crate::packet::{ETH_IPV4, ETH_IPV6, load};
use crate::run::{Run, Scratch};
use crate::verdict::Verdict;

/// Packet types, of include/uapi/linux/if_packet.h.
const TO_THIS_HOST: u32 = 0;
const TO_ANOTHER_HOST: u32 = 3;

/// Whether a frame is IPv4, or else IPv6; `None`: it is neither.
#[inline(always)]
pub fn is_v4(skb: *mut __sk_buff) -> Option<bool> {
    // SAFETY: the context is valid, and a plain field of it is read.
    match unsafe { (*skb).protocol as u16 } {
        ETH_IPV4 => Some(true),
        ETH_IPV6 => Some(false),
        _ => None,
    }
}

/// Leaves a frame alone that has a VLAN's tag beside it: it comes by the VLAN's own interface next,
/// without.
#[inline(always)]
pub fn check_tag(run: &Run<'_>) -> Result<(), Verdict> {
    // SAFETY: the context is valid, and a plain field of it is read.
    if unsafe { (*run.skb).vlan_present } != 0 { Err(Verdict::Pass) } else { Ok(()) }
}

/// Leaves a frame alone that comes in and is for a group, or for a bridge that the interface is a
/// port of. Returns whether it is for another hardware address, so that it is a bridge's business
/// where it goes. `bridge`: the last four bytes of the bridge's Ethernet address.
#[inline(always)]
pub fn check_receiver<const L2: u32>(
    run: &Run<'_>,
    scratch: &mut Scratch,
    bridge: u32,
) -> Result<bool, Verdict> {
    // SAFETY: the context is valid, and a plain field of it is read.
    let kind = unsafe { (*run.skb).pkt_type };
    if kind != TO_THIS_HOST && kind != TO_ANOTHER_HOST {
        return Err(Verdict::Pass);
    }
    if scratch.interface & interface::BRIDGE_PORT != 0
        && is_for_bridge::<L2>(run.skb, kind, bridge, &mut scratch.bytes)
    {
        return Err(Verdict::Pass);
    }
    Ok(kind == TO_ANOTHER_HOST)
}

/// Whether a frame that comes in by a port of a bridge is for this node, so that the bridge's own
/// programs see it next: it is for the bridge's Ethernet address, of which `bridge` is the last
/// four bytes, or the port's own, which may be the same. Were it translated here, it would be
/// twice; and it could come from the node's own address, and the stack takes no such packet.
#[inline(always)]
fn is_for_bridge<const L2: u32>(skb: *mut __sk_buff, kind: u32, bridge: u32, bytes: &mut [u32; 32]) -> bool {
    L2 != 0 && (kind == TO_THIS_HOST || load(skb, 2, bytes.as_mut_ptr(), 4) && bytes[0] == bridge)
}

/// Leaves a packet alone that leaves by a port of a bridge: it has left by the bridge before.
#[inline(always)]
pub fn check_port(run: &Run<'_>) -> Result<(), Verdict> {
    let link = node::interface(run.interface());
    let is_port = link.is_some_and(|link| link.flags & interface::BRIDGE_PORT != 0);
    if is_port { Err(Verdict::Pass) } else { Ok(()) }
}

/// Whether a packet that leaves has come in before.
#[inline(always)]
pub fn is_forwarded(run: &Run<'_>) -> bool {
    // SAFETY: the context is valid, and a plain field of it is read.
    unsafe { (*run.skb).ingress_ifindex != 0 }
}
