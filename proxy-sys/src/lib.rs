//! Ports to the Linux kernel: eBPF, nf_tables, conntrack, ipset, IPVS, dummy links and rules of
//! routing, iptables, capabilities, modules.
//!
//! Everything here is an effect and nothing here decides. Each port owns its sockets, speaks
//! netlink directly (no process is ever started, but for modprobe) and returns errors that name the
//! operation and the kernel's answer.

pub mod bpf;
pub mod capability;
pub mod conntrack;
pub mod dummy;
#[cfg(test)]
mod fuzz;
pub mod ipset;
pub mod iptables;
pub mod ipvs;
pub mod lo;
pub mod modules;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod node_lock;
pub mod proc;
pub mod sockets;
pub mod steering;
