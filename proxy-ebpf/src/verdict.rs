//! What becomes of packets and of system calls.
//!
//! Stages return decisions as values of these types. Only this file counts them, writes messages
//! about them (`sluice.ebpf.debug`), and makes them into the codes that the kernel knows. The
//! codes of helpers that send a packet are passed on as they are ([`Verdict::Sent`]).

use aya_ebpf::helpers::generated::bpf_set_retval;
use aya_log_ebpf::info;
use sluice_common::counters::Counter;
use sluice_common::flow::Flow;

use crate::maps::COUNTERS;
use crate::packet::Packet;
use crate::packet::icmp::Error;

/// What becomes of a packet.
#[derive(Clone, Copy)]
pub enum Verdict {
    /// It goes on as it is now: to the next program, or to the stack.
    Pass,
    /// It ends here.
    Drop(Reason),
    /// It ends here, and its sender is told that nobody is there.
    Refuse(Refusal),
    /// It is bigger than its way takes, which is so many bytes, and its sender is told.
    TooBig(u32),
    /// Its TTL or hop limit is used up, and its sender is told.
    TimeExceeded,
    /// The kernel knows where to send it, and the program must end with this.
    Sent(i32),
}

/// Why a packet ends.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Reason {
    /// A pod does not have its source, as far as the frame was read.
    PodSource,
    /// `rp_filter` keeps it out.
    ReversePath,
    /// No Service has this address of a service network.
    Unallocated,
    /// Source ranges do not have its sender.
    SourceRange,
    /// Local policy, without a local endpoint.
    NoLocalEndpoints,
    /// The group has no endpoint in the slot picked.
    NoEndpoint,
    /// No source address to masquerade with.
    NoAddress,
    /// No source port.
    NoPort,
    /// The flow table refuses an entry, or somebody else is just removing the flow.
    FlowTable,
    /// There is no way to where it goes.
    NoRoute,
    /// It cannot be rewritten.
    Malformed,
}

/// Why nobody is there.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Refusal {
    /// The service port has no endpoints.
    NoEndpoints,
    /// A ClusterIP has no such port.
    NoPort,
}

/// The next program, or the stack: `TC_ACT_UNSPEC` of include/uapi/linux/pkt_cls.h.
const NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
const SHOT: i32 = 2;

impl Verdict {
    /// Counts the decision, and tells of it.
    #[inline(always)]
    pub fn report(self, packet: &Packet) {
        match self {
            Self::Pass | Self::Sent(_) => {}
            Self::Drop(why) => {
                why.tell(packet);
                count(why.counter());
            }
            Self::Refuse(why) => {
                why.tell(packet);
                count(Counter::Rejected);
            }
            Self::TooBig(_) => count(Counter::TooBig),
            Self::TimeExceeded => count(Counter::TimeExceeded),
        }
    }

    /// What the sender is told, if it is.
    #[inline(always)]
    pub fn error(self) -> Option<Error> {
        match self {
            Self::Pass | Self::Sent(_) | Self::Drop(_) => None,
            Self::Refuse(_) => Some(Error::Port),
            Self::TooBig(mtu) => Some(Error::TooBig(mtu)),
            Self::TimeExceeded => Some(Error::Time),
        }
    }

    /// What the program ends with, if the packet is not made into an error.
    #[inline(always)]
    pub fn code(self) -> i32 {
        match self {
            Self::Pass => NEXT,
            Self::Sent(code) => code,
            Self::Drop(_) | Self::Refuse(_) | Self::TooBig(_) | Self::TimeExceeded => SHOT,
        }
    }
}

impl Reason {
    #[inline(always)]
    fn counter(self) -> Counter {
        match self {
            Self::PodSource => Counter::DropPodSource,
            Self::ReversePath => Counter::DropReversePath,
            Self::Unallocated => Counter::DropUnallocated,
            Self::SourceRange => Counter::DropSourceRange,
            Self::NoLocalEndpoints => Counter::DropNoLocalEndpoints,
            Self::NoEndpoint => Counter::DropNoEndpoint,
            Self::NoAddress => Counter::DropNoAddress,
            Self::NoPort => Counter::DropNoPort,
            Self::FlowTable => Counter::DropFlowTable,
            Self::NoRoute => Counter::DropNoRoute,
            Self::Malformed => Counter::DropMalformed,
        }
    }

    #[inline(always)]
    fn tell(self, packet: &Packet) {
        match self {
            // No message: of a frame that was not read, and of failures that no setting causes.
            Self::PodSource | Self::NoEndpoint | Self::FlowTable | Self::Malformed => {}
            Self::ReversePath => tell(packet, "dropped: rp_filter"),
            Self::Unallocated => tell(packet, "dropped: no Service has this address"),
            Self::SourceRange => tell(packet, "dropped: not in loadBalancerSourceRanges"),
            Self::NoLocalEndpoints => tell(packet, "dropped: no local endpoints"),
            Self::NoAddress => tell(packet, "dropped: no address to masquerade with"),
            Self::NoPort => tell(packet, "dropped: no port to masquerade with"),
            Self::NoRoute => tell(packet, "dropped: no route"),
        }
    }
}

impl Refusal {
    #[inline(always)]
    fn tell(self, packet: &Packet) {
        match self {
            Self::NoEndpoints => tell(packet, "refused: no endpoints"),
            Self::NoPort => tell(packet, "refused: no such port of a ClusterIP"),
        }
    }
}

/// What becomes of a system call.
#[derive(Clone, Copy)]
pub enum Call {
    /// It goes on as it is.
    Leave,
    /// It goes on to an endpoint, where it did not go before.
    Translated,
    /// It fails: refused.
    Refuse,
    /// It fails as if nothing came back.
    Drop,
}

/// The system call goes on.
const ALLOW: i32 = 1;
/// It fails.
const DENY: i32 = 0;

const ECONNREFUSED: i32 = 111;
const ETIMEDOUT: i32 = 110;

impl Call {
    /// Counts the decision; returns what the program ends with.
    #[inline(always)]
    pub fn report(self) -> i32 {
        match self {
            Self::Leave => ALLOW,
            Self::Translated => {
                count(Counter::SocketTranslated);
                ALLOW
            }
            Self::Refuse => {
                count(Counter::SocketRefused);
                fail(ECONNREFUSED)
            }
            Self::Drop => {
                count(Counter::SocketDropped);
                fail(ETIMEDOUT)
            }
        }
    }
}

#[inline(always)]
fn fail(error: i32) -> i32 {
    // SAFETY: sets what the system call returns.
    unsafe { bpf_set_retval(-error) };
    DENY
}

/// A flow began.
#[inline(always)]
pub fn flow_began(packet: &Packet, flow: &Flow) {
    // Two messages: a stack of 512 bytes has no room for one.
    tell(packet, "translated");
    tell_ends(flow);
    count(Counter::FlowsBegun);
}

/// A flow that had only begun gave way to a newer one.
#[inline(always)]
pub fn flow_gave_way() {
    count(Counter::FlowsGaveWay);
}

#[inline(always)]
fn count(what: Counter) {
    if let Some(counter) = COUNTERS.get_ptr_mut(what as u32) {
        // SAFETY: the slot is of this CPU, and the map outlives the program.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}

// Messages go through aya-log. The daemon sets `AYA_LOG_LEVEL` before it loads the programs; when
// it is off, which is the rule, the verifier removes all of this.

#[inline(never)]
fn tell(packet: &Packet, what: &'static str) {
    info!(
        packet,
        "{:i}:{} -> {:i}:{} protocol {}: {}",
        packet.key.source.octets(),
        u16::from_be(packet.key.source_port),
        packet.key.destination.octets(),
        u16::from_be(packet.key.destination_port),
        packet.key.protocol,
        what
    );
}

#[inline(never)]
fn tell_ends(flow: &Flow) {
    info!(
        flow,
        "  to {:i}:{} -> {:i}:{}",
        flow.source.octets(),
        u16::from_be(flow.source_port),
        flow.destination.octets(),
        u16::from_be(flow.destination_port)
    );
}
