//! What IPVS holds, as values, and the operations on it. Source of all numbers: linux/ip_vs.h.

use std::fmt;
use std::net::IpAddr;
use std::ops::BitOr;

use crate::net::{Family, Protocol};

/// What packets a virtual server takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServerKey {
    /// Those to an address and a port of a protocol.
    Address(IpAddr, Protocol, u16),
    /// Those of a family that carry a mark other than zero, whatever their destination.
    Mark(Family, u32),
}

impl ServerKey {
    /// The family of the packets.
    pub fn family(&self) -> Family {
        match self {
            ServerKey::Address(address, ..) => Family::of(address),
            ServerKey::Mark(family, _) => *family,
        }
    }

    /// The address, of those that have one.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            ServerKey::Address(address, ..) => Some(*address),
            ServerKey::Mark(..) => None,
        }
    }

    /// Whether it is for datagrams, as marks of ours tell.
    pub fn is_udp(&self) -> bool {
        match self {
            ServerKey::Address(_, protocol, _) => *protocol == Protocol::Udp,
            ServerKey::Mark(_, mark) => super::marks::is_udp(*mark),
        }
    }
}

impl fmt::Display for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerKey::Address(address, protocol, port) => {
                write!(f, "{protocol} {}", std::net::SocketAddr::new(*address, *port))
            }
            ServerKey::Mark(family, mark) => write!(f, "{family} mark {mark:#x}"),
        }
    }
}

/// The name of a scheduler, such as `rr`: the kernel's module is `ip_vs_` and this.
///
/// Zero-padded to one byte less than `IP_VS_SCHEDNAME_MAXLEN`, which counts the final zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SchedulerName([u8; 15]);

/// A text is no name of a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a scheduler's name has 1 to 15 letters, digits, - or _")]
pub struct InvalidSchedulerName;

impl SchedulerName {
    /// Round robin, which every Service has unless something else is said.
    pub const ROUND_ROBIN: SchedulerName = SchedulerName(*b"rr\0\0\0\0\0\0\0\0\0\0\0\0\0");

    /// Maglev hashing of the source address.
    pub const MAGLEV: SchedulerName = SchedulerName(*b"mh\0\0\0\0\0\0\0\0\0\0\0\0\0");
    /// Hashing of the source address.
    pub const SOURCE_HASH: SchedulerName = SchedulerName(*b"sh\0\0\0\0\0\0\0\0\0\0\0\0\0");

    /// Takes a text that can be a name. Whether the kernel has such a scheduler is another
    /// question.
    pub fn new(text: &str) -> Result<Self, InvalidSchedulerName> {
        let mut name = [0; 15];
        let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if text.is_empty() || text.len() > name.len() || !text.bytes().all(is_fit) {
            return Err(InvalidSchedulerName);
        }
        name[..text.len()].copy_from_slice(text.as_bytes());
        Ok(SchedulerName(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        let len = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..len]).unwrap_or_default()
    }
}

impl fmt::Debug for SchedulerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl fmt::Display for SchedulerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Flags of a virtual server (`IP_VS_SVC_F_*`), without those that say something that is told
/// elsewhere: persistent, which is [`Server::persistence`], and hashed, which every server in the
/// kernel is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerFlags(u32);

impl ServerFlags {
    /// No flags.
    pub const NONE: ServerFlags = ServerFlags(0);
    /// Each UDP datagram is scheduled by itself (`IP_VS_SVC_F_ONEPACKET`).
    pub const ONE_PACKET: ServerFlags = ServerFlags(0x4);
    /// `sh` and `mh`: a destination of weight 0 is passed over for another (`IP_VS_SVC_F_SCHED1`).
    pub const HASH_FALLBACK: ServerFlags = ServerFlags(0x8);
    /// `sh` and `mh`: the source's port is hashed with its address (`IP_VS_SVC_F_SCHED2`).
    /// kube-proxy sets it for `mh`.
    pub const HASH_SOURCE_PORT: ServerFlags = ServerFlags(0x10);

    /// `IP_VS_SVC_F_PERSISTENT | IP_VS_SVC_F_HASHED`.
    const ELSEWHERE: u32 = 0x1 | 0x2;

    /// The flags among these bits.
    pub fn from_bits(bits: u32) -> Self {
        ServerFlags(bits & !Self::ELSEWHERE)
    }

    /// The bits.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl BitOr for ServerFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        ServerFlags(self.0 | other.0)
    }
}

/// A virtual server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Server {
    /// What packets it takes.
    pub key: ServerKey,
    /// How it picks a destination for a new connection.
    pub scheduler: SchedulerName,
    /// How it differs from the usual.
    pub flags: ServerFlags,
    /// For how many seconds after its last connection has ended a client is sent to the same
    /// destination. A client is a single address.
    pub persistence: Option<u32>,
}

/// What tells the destinations of a virtual server apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DestinationKey {
    /// Where packets are sent to.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
}

impl fmt::Display for DestinationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// Where a virtual server sends packets to, with their destination translated
/// (`IP_VS_CONN_F_MASQ`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// What tells it apart.
    pub key: DestinationKey,
    /// Its share of new connections, 2³¹−1 at most. With 0 it gets none, and keeps those that it
    /// has. A server all of whose destinations have 0 refuses new connections, like one without
    /// any.
    pub weight: u32,
}

/// How many connections a destination has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Those that are established.
    pub active: u32,
    /// Those that are beginning or ending; all of UDP.
    pub inactive: u32,
}

/// A virtual server that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedServer {
    /// The server.
    pub server: Server,
    /// Writing `server` would change nothing. False if it has what only others set: a persistence
    /// engine, or persistence for whole networks.
    pub is_exact: bool,
    /// Its destinations, in the kernel's order.
    pub destinations: Vec<ObservedDestination>,
}

/// A destination that the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedDestination {
    /// The destination.
    pub destination: Destination,
    /// Writing `destination` would change nothing. False if it has what only others set: another
    /// way of forwarding, or a threshold of connections.
    pub is_exact: bool,
    /// Its connections.
    pub load: Load,
}

/// One change. Each is atomic for packets, and right or wrong by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// Adds a virtual server that is not there.
    AddServer(Server),
    /// Changes scheduler, flags or persistence of a virtual server that is there.
    SetServer(Server),
    /// Deletes a virtual server with its destinations. With `expire_nodest_conn` their connections
    /// end with their next packet.
    DeleteServer(ServerKey),
    /// Adds a destination that is not there.
    AddDestination(ServerKey, Destination),
    /// Changes the weight of a destination that is there.
    SetDestination(ServerKey, Destination),
    /// Deletes a destination, whether it has connections or not. With `expire_nodest_conn` they end
    /// with their next packet, otherwise they hang, and go on if it is added again before they
    /// expire.
    DeleteDestination(ServerKey, DestinationKey),
    /// Makes an address one of the node's, at the dummy link.
    BindAddress(IpAddr),
    /// Takes an address from the dummy link.
    UnbindAddress(IpAddr),
    /// Leads packets for this address and port, which another host has, to this one by a rule of
    /// routing.
    LeadHere(ServerKey),
    /// Lets them pass again.
    LetPass(ServerKey),
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::AddServer(server) => {
                write!(f, "add virtual server {} with scheduler {}", server.key, server.scheduler)
            }
            Op::SetServer(server) => {
                write!(f, "change virtual server {} to scheduler {}", server.key, server.scheduler)
            }
            Op::DeleteServer(key) => write!(f, "delete virtual server {key}"),
            Op::AddDestination(key, to) => {
                write!(f, "add destination {} of weight {} to {key}", to.key, to.weight)
            }
            Op::SetDestination(key, to) => {
                write!(f, "set destination {} of {key} to weight {}", to.key, to.weight)
            }
            Op::DeleteDestination(key, to) => write!(f, "delete destination {to} from {key}"),
            Op::BindAddress(address) => write!(f, "bind address {address}"),
            Op::UnbindAddress(address) => write!(f, "unbind address {address}"),
            Op::LeadHere(key) => write!(f, "deliver packets for {key} locally"),
            Op::LetPass(key) => write!(f, "stop delivering packets for {key} locally"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_schedulers_fit_the_kernel() {
        assert_eq!(SchedulerName::new("rr"), Ok(SchedulerName::ROUND_ROBIN));
        assert_eq!(SchedulerName::ROUND_ROBIN.as_str(), "rr");
        assert_eq!((SchedulerName::MAGLEV.as_str(), SchedulerName::SOURCE_HASH.as_str()), ("mh", "sh"));
        assert_eq!(SchedulerName::new("fifteen-letters").unwrap().as_str(), "fifteen-letters");
        for bad in ["", "sixteen--letters", "r r", "rr\0", "../x"] {
            assert_eq!(SchedulerName::new(bad), Err(InvalidSchedulerName), "{bad}");
        }
    }

    #[test]
    fn flags_leave_out_what_is_told_elsewhere() {
        assert_eq!(ServerFlags::from_bits(0x13), ServerFlags::HASH_SOURCE_PORT);
        assert_eq!((ServerFlags::ONE_PACKET | ServerFlags::HASH_FALLBACK).bits(), 0xc);
    }

    #[test]
    fn operations_name_what_they_change() {
        let key = ServerKey::Address("fd00::1".parse().unwrap(), Protocol::Udp, 53);
        let to = DestinationKey { address: "fd01::2".parse().unwrap(), port: 5353 };
        let op = Op::AddDestination(key, Destination { key: to, weight: 1 });
        assert_eq!(op.to_string(), "add destination [fd01::2]:5353 of weight 1 to udp [fd00::1]:53");
        assert_eq!(
            Op::DeleteServer(ServerKey::Mark(Family::V4, 0x10)).to_string(),
            "delete virtual server IPv4 mark 0x10"
        );
    }
}
