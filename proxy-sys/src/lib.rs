//! Ports to the Linux kernel: nf_tables and conntrack netlink, sysctls, capabilities.
//!
//! Everything here is an effect and nothing here decides. Each port owns its sockets, speaks netlink
//! directly (no process is ever started) and returns errors that name the operation and the kernel's answer.

pub mod capability;
pub mod conntrack;
pub mod netlink;
pub mod nft;
pub mod proc;
