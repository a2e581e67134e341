//! Links, addresses, routes and neighbours, by route netlink; network namespaces; sysctls. The
//! daemon and the CNI plugin both use it, so it knows neither eBPF nor Services.
//!
//! There is one set of messages: `request` makes requests, and `read` says what is in answers.
//! [`Netlink`] sends them and waits. The daemon also sends them by the crate rtnetlink, which does
//! not wait.

mod error;
#[cfg(test)]
mod fuzz;
pub mod netns;
pub mod read;
pub mod request;
mod socket;
pub mod sysctl;

pub use error::{BatchError, NetlinkError, Refusal, Refusals, uninterrupted};
pub use request::{Change, Request};
pub use socket::Netlink;

/// A hardware address.
pub type Mac = [u8; 6];

/// The index of `lo` in every network namespace (`LOOPBACK_IFINDEX` of include/net/flow.h).
pub const LOOPBACK: u32 = 1;
