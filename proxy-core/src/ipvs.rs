//! Lowering a plan to IP virtual servers.
//!
//! Each frontend that forwards is a virtual server by address, protocol and port; a node port is
//! one on each of the node's chosen addresses. Service addresses are the node's own, at a dummy
//! link, because IPVS takes what comes to the input hook. What a virtual server cannot tell, who
//! may connect, who is refused and who is masqueraded, a ruleset decides
//! ([`crate::nft::Balancer::Ipvs`]). Frontends of eTP=Local whose clients do not all get the same
//! endpoints have a second virtual server, by packet mark, for those who are short-circuited to all
//! endpoints.
//!
//! Destinations that are no longer wanted are drained: weight 0, then deleted when they have no
//! connections; those of UDP are deleted at once. So is a virtual server that nobody wants, with
//! its address.
//!
//! An address that another host has is not bound, because that host would be cut off from this one:
//! a rule of routing leads packets for the Service's port to the input hook, and no others. Until
//! it is known who has which, that counts for every address but ClusterIPs.
//!
//! The kernel's words (virtual server, destination, scheduler) live here and in `sluice-sys`,
//! nowhere else.

mod concerned;
mod held;
mod ledger;
mod lower;
mod marks;
mod object;

pub use concerned::concerned;
pub use ledger::{Ledger, Observed, Steps};
pub use lower::{IpvsConfig, NodeView, Others};
pub use marks::Marks;
pub use marks::is_ours as is_our_mark;
pub(crate) use marks::server_mark;
pub use object::{
    Destination, DestinationKey, InvalidSchedulerName, Load, ObservedDestination, ObservedServer, Op,
    SchedulerName, Server, ServerFlags, ServerKey,
};
