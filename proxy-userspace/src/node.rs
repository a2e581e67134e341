//! What several features need of the node: its interfaces, what others do to tables, the lock that
//! keeps a second daemon out, sysctls.

pub mod addresses;
pub(crate) mod alone;
pub mod nft_monitor;
pub(crate) mod repairs;
pub(crate) mod sysctls;

use std::net::{Ipv4Addr, Ipv6Addr};

use sluice_sys::bpf::Layer;

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What its packets begin with; `None` where programs for packets are of no use.
    pub layer: Option<Layer>,
    /// Its largest packet, link header not counted.
    pub mtu: u32,
    /// Part of a bond or team, whose packets come again by that.
    pub is_port: bool,
    /// A cable (veth, netkit) whose other end is in another network namespace, and belongs to one
    /// host alone: a cable on which this node has an address of a network may lead to a switch.
    pub peer_is_elsewhere: bool,
    /// One end of a pair of veth devices, wherever the other one is.
    pub is_veth: bool,
    /// What `rp_filter` keeps out there.
    pub reverse_path: ReversePath,
    /// Its Ethernet address, if it has one.
    pub mac: Option<[u8; 6]>,
    /// The index of the bridge whose port it is.
    pub bridge: Option<u32>,
    /// Its first IPv4 address.
    pub address4: Option<Ipv4Addr>,
    /// Its first global IPv6 address.
    pub address6: Option<Ipv6Addr>,
}

/// Which IPv4 packets `rp_filter` keeps out of the stack that come in by an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReversePath {
    /// None, or it depends on what programs cannot see.
    #[default]
    Any,
    /// Those whose answers would go nowhere.
    Loose,
    /// Those whose answers would leave by another one.
    Strict,
}
