//! What the programs know about the node.

use crate::{Address, sizes};

/// The only value of the map `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Cookie of the node's own network namespace (`SO_NETNS_COOKIE`); all others are pods'.
    pub netns: u64,
    /// Bits of [`option`].
    pub options: u32,
    /// One of [`scheduler`].
    pub scheduler: u32,
    /// Source address of masqueraded IPv4 packets on interfaces without one; zero: none.
    pub address4: Address,
    /// The same for IPv6.
    pub address6: Address,
    /// Ports for masqueraded packets, in host order: this many...
    pub ports: u32,
    /// ...of which the first run begins here...
    pub first_begin: u16,
    /// ...and has this many...
    pub first_count: u16,
    /// ...and the second one begins here. None is in `ip_local_port_range` or a node port.
    pub second_begin: u16,
    /// Zero.
    pub reserved: u16,
    /// Seconds after which a UDP flow with packets in one direction only ends.
    pub udp_timeout: u32,
    /// The same with packets in both.
    pub udp_stream_timeout: u32,
    /// Seconds after which a silent TCP connection ends.
    pub tcp_established_timeout: u32,
    /// What the daemon keeps for itself: settings of `lo` before it changed them. Zero: none.
    pub lo_before: u32,
    /// Slots of the ring of `NEWEST`; 0: there is none.
    pub newest: u32,
}

/// Options of [`Config`].
pub mod option {
    /// There is a way to tell IPv4 pods from others.
    pub const DETECTS4: u32 = 1;
    /// The same for IPv6.
    pub const DETECTS6: u32 = 2;
    /// Pods are told by the interface that packets come in by, not by their source's network.
    pub const BY_INTERFACE: u32 = 4;
    /// Node ports of IPv4 loopback addresses answer to this node's processes.
    pub const SERVES_LOOPBACK4: u32 = 8;
    /// Switched off: no new connection is captured, but those of before go on.
    pub const DRAINING: u32 = 0x10;
    /// Node ports of the IPv6 loopback address answer to this node's processes.
    pub const SERVES_LOOPBACK6: u32 = 0x20;
    /// Node ports of IPv4 loopback addresses are refused, whoever listens there.
    pub const REFUSES_LOOPBACK4: u32 = 0x40;
    /// The same of IPv6.
    pub const REFUSES_LOOPBACK6: u32 = 0x80;
}

/// How endpoints are picked.
pub mod scheduler {
    /// Uniformly at random.
    pub const RANDOM: u32 = 0;
    /// In turn.
    pub const ROUND_ROBIN: u32 = 1;
    /// By a hash of client and frontend that moves few clients when endpoints change (Eisenbud et
    /// al., NSDI 2016).
    pub const MAGLEV: u32 = 2;
}

/// Bits of the values of the map `ADDRESSES`, whose keys are this node's own addresses.
pub mod address {
    /// The node has it.
    pub const OWN: u32 = 1;
    /// Node ports answer on it.
    pub const NODE_PORTS: u32 = 2;
}

/// Bits of the values of the map `NETWORKS`, a longest prefix match over addresses. A network has
/// the bits of those around it, too.
pub mod network {
    /// ClusterIPs are allocated from it.
    pub const SERVICES: u32 = 1;
    /// Clients in it are pods.
    pub const PODS: u32 = 2;
}

/// Value of the map `INTERFACES`; its key is the interface's index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Bits of [`interface`].
    pub flags: u32,
    /// With [`interface::BRIDGE_PORT`]: the last four bytes of the bridge's Ethernet address, as a
    /// packet has them.
    pub bridge: u32,
    /// Its first IPv4 address, or zero.
    pub address4: Address,
    /// Its first global IPv6 address, or zero.
    pub address6: Address,
}

/// Flags of [`Interface`].
pub mod interface {
    /// A cable whose other end is in another network namespace, so that packets can be handed there
    /// at once (`bpf_redirect_peer`).
    pub const PEER: u32 = 1;
    /// What comes in by it comes from pods (detectLocalMode BridgeInterface, InterfaceNamePrefix).
    pub const PODS: u32 = 2;
    /// It is a port of a bridge.
    pub const BRIDGE_PORT: u32 = 4;
    /// A link of a pod of ours, which sends with its own addresses only: those of `POD_SOURCES`,
    /// and others that routes lead to by this link. Behind ports of bridges routes say nothing;
    /// there any address passes until all of the pod's are known.
    pub const OWN_SOURCES: u32 = 8;
    /// IPv4 packets that come in by it pass if answers would leave by it, too (`rp_filter` 1).
    pub const STRICT: u32 = 0x10;
    /// IPv4 packets that come in by it pass if there is a way back at all (`rp_filter` 2).
    pub const LOOSE: u32 = 0x20;
}

/// Key of the map `POD_SOURCES`: the pod behind a link has this address. Where there is one with
/// the address zero, all of the pod's are there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodSource {
    /// The pod's address.
    pub address: Address,
    /// The index of the host's end of its link.
    pub interface: u32,
}

/// Value of the map `NAMESPACES`, whose key is the cookie of a network namespace: bits.
pub mod namespace {
    /// Sockets in it are left alone; their packets take the packet path.
    pub const NO_SOCKET_PATH: u32 = 1;
}

sizes!(Config = 80, Interface = 40, PodSource = 20);
