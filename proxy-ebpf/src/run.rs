//! What one run of a packet program has: where it runs, and its memory.

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup};
use sluice_common::flow::{Flow, FlowKey};
use sluice_common::node::{Config, PodSource};
use sluice_common::service::FrontendKey;

use crate::maps::SCRATCH;
use crate::packet::Packet;

/// Where a packet program is attached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that come in by an interface.
    Ingress,
    /// Packets that leave by it.
    Egress,
}

/// What a run knows besides its packet.
pub struct Run<'a> {
    /// The packet, as the kernel has it.
    pub skb: *mut __sk_buff,
    /// The node's settings.
    pub config: &'a Config,
    /// Where it is.
    pub hook: Hook,
    /// It is a bridge's business where the packet goes.
    pub bridged: bool,
}

impl Run<'_> {
    /// The index of the interface that the program runs at.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        // SAFETY: the context is valid while the program runs, and a plain field of it is read.
        unsafe { (*self.skb).ifindex }
    }
}

/// What a run remembers: eBPF's stack of 512 bytes is too small for it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Scratch {
    /// The packet.
    pub packet: Packet,
    /// The packet inside an ICMP error.
    pub inner: Packet,
    /// Key of the flow's other entry, or of a fragment.
    pub key: FlowKey,
    /// The flow in the packet's direction.
    pub flow: Flow,
    /// The flow's other entry.
    pub reply: Flow,
    /// A frontend's key.
    pub frontend: FrontendKey,
    /// Flags of the interface that it came in by; zero on the way out.
    pub interface: u32,
    /// Whose source is looked for.
    pub source: PodSource,
    /// Arguments of a route lookup.
    pub fib: bpf_fib_lookup,
    /// Bytes of headers.
    pub bytes: [u32; 32],
    /// Limits how many ICMP errors this CPU makes: when the second began...
    pub icmp_since: u64,
    /// ...how many refusals since...
    pub refusals: u64,
    /// ...and how many errors about sizes and times, which go on when refusals are too many.
    pub others: u64,
}

/// This CPU's scratch memory. Packet programs run with bottom halves off, so no other packet's run
/// comes between.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: one run at a time on a CPU, which takes it once.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}
