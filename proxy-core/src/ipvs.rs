//! Lowering a plan to IP virtual servers.
//!
//! The kernel's words (virtual server, destination, scheduler) live here and in `sluice-sys`, nowhere else.

mod object;

pub use object::{
    Destination, DestinationKey, InvalidSchedulerName, Load, ObservedDestination, ObservedServer, Op,
    SchedulerName, Server, ServerFlags, ServerKey,
};
