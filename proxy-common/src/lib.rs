//! The bytes that sluice shares with its eBPF programs: keys and values of maps, and the meaning of
//! their fields.
//!
//! Every type is `repr(C)`, has no padding and takes any bit pattern, so that it can be read from
//! and written to a map as it is; the assertions at the end of each module hold for both sides. A
//! change of any of them is a new [`LAYOUT`]. Numbers are in host order; ports are in network
//! order, because that is how both packets and `bpf_sock_addr` have them.

#![no_std]

pub mod counters;
pub mod flow;
pub mod maps;
pub mod node;
pub mod service;
pub mod socket;

/// Version of all layouts together. Maps of another version are never reused: the pins of a version
/// have a directory of their own. Words that were zero may get a meaning without a new version
/// where older programs and daemons do no harm with it: after a return to one that does not know
/// [`flow::flag::PASSES`] or [`flow::flag::STRAIGHT`], such flows may have to begin anew, and what
/// `lo` had before ([`node::Config::lo_before`]) is not given back. Nor does a map more, or one of
/// another size: what connections of before are in would be left behind with the version.
pub const LAYOUT: u32 = 1;

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2), in network order.
///
/// One width for both families makes one layout of each map, and an IPv6 socket that connects to a
/// mapped IPv4 address is the same as an IPv4 one. Words and not bytes, because eBPF reads context
/// and packets in words.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// The address in network order, as 32-bit words.
    pub words: [u32; 4],
}

/// The third word of an IPv4 address.
pub const MAPPED: u32 = 0xffff_u32.to_be();

impl Address {
    /// From the four bytes of an IPv4 address as one word in network order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(word: u32) -> Self {
        Self { words: [0, 0, MAPPED, word] }
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED
    }

    /// The IPv4 address as a word in network order.
    #[inline(always)]
    #[must_use]
    pub const fn word4(&self) -> u32 {
        self.words[3]
    }

    /// From bytes in network order.
    #[must_use]
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self {
            words: [
                u32::from_ne_bytes([a, b, c, d]),
                u32::from_ne_bytes([e, f, g, h]),
                u32::from_ne_bytes([i, j, k, l]),
                u32::from_ne_bytes([m, n, o, p]),
            ],
        }
    }

    /// The bytes in network order.
    #[must_use]
    pub const fn octets(&self) -> [u8; 16] {
        let [a, b, c, d] = self.words[0].to_ne_bytes();
        let [e, f, g, h] = self.words[1].to_ne_bytes();
        let [i, j, k, l] = self.words[2].to_ne_bytes();
        let [m, n, o, p] = self.words[3].to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }
}

/// Asserts the size of a type.
macro_rules! sizes {
    ($($type:ty = $size:literal),+ $(,)?) => {
        $(const _: () = assert!(core::mem::size_of::<$type>() == $size);)+
    };
}
pub(crate) use sizes;

sizes!(Address = 16);

/// Names of the programs, as the object file has them.
pub mod programs {
    /// Attached to the cgroup, by `BPF_CGROUP_INET4_CONNECT` and so on.
    pub const SOCKET: [&str; 8] = [
        "connect4",
        "connect6",
        "sendmsg4",
        "sendmsg6",
        "recvmsg4",
        "recvmsg6",
        "getpeername4",
        "getpeername6",
    ];
    /// Attached to interfaces with Ethernet headers: what comes in, what goes out.
    pub const ETHERNET: [&str; 2] = ["ingress", "egress"];
    /// Attached to nothing: the daemon runs it (`BPF_PROG_TEST_RUN`) to end a flow.
    pub const END_FLOW: &str = "end_flow";
    /// Attached to interfaces without (tun, WireGuard, ipip).
    pub const RAW: [&str; 2] = ["ingress_raw", "egress_raw"];
}
