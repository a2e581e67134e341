//! What the socket path remembers of sockets.

use crate::service::Endpoint;
use crate::{Address, sizes};

/// Key of the maps `PEERS` and `TCP_PEERS`: a socket, and an endpoint that it talks to without
/// knowing; and of the map `PICKS`: a socket, and a frontend that it talks to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SocketKey {
    /// The socket's cookie (`SO_COOKIE`, socket(7)).
    pub cookie: u64,
    /// The endpoint's or the frontend's address.
    pub address: Address,
    /// Its port, in network order.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u16,
    /// Zero.
    pub reserved: u32,
}

/// Value of the maps `PEERS` and `TCP_PEERS`: what the socket believes to talk to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The frontend's address.
    pub address: Address,
    /// The frontend's port, in network order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
    /// Zero.
    pub reserved2: u32,
    /// Group id without its list of the service port.
    pub group: u64,
}

/// Value of the map `PICKS`: where an unconnected UDP socket's datagrams to a frontend go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pick {
    /// Group id without its list of the service port.
    pub group: u64,
    /// The endpoint; its port may be [`Pick::BY_PACKETS`].
    pub endpoint: Endpoint,
    /// When the socket last sent there: seconds of `CLOCK_MONOTONIC`.
    pub used: u32,
}

impl Pick {
    /// In place of the endpoint's port, which is never 0: these datagrams are left to the packet
    /// path, because the endpoint stands for another frontend in answers to the socket.
    pub const BY_PACKETS: u16 = 0;
}

sizes!(SocketKey = 32, Peer = 32, Pick = 32);
