//! A node of its own for each test: a network namespace with cables, addresses, routes and
//! neighbours.
//!
//! | interface | who is there |
//! |---|---|
//! | `uplink` | clients, other nodes, the gateway |
//! | `pod-a` | a pod that is a client |
//! | `pod-b`, `pod-c` | pods that are endpoints |
//! | `pod-d` | an endpoint whose Ethernet address is not known |
//! | `pod-s` | an endpoint behind a device with a small MTU |

use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sluice_sys::lo;

use crate::packets::Mac;

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Both.
pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    fn of(self, v4: &str, v6: &str) -> IpAddr {
        if self == Family::V4 { v4.parse().unwrap() } else { v6.parse().unwrap() }
    }

    /// The node, on its uplink.
    pub(crate) fn node(self) -> IpAddr {
        self.of("192.0.2.1", "2001:db8:1::1")
    }

    /// A client on the uplink's network.
    pub(crate) fn client(self) -> IpAddr {
        self.of("192.0.2.10", "2001:db8:1::10")
    }

    /// Another one behind the gateway.
    pub(crate) fn far_client(self) -> IpAddr {
        self.of("198.51.100.7", "2001:db8:99::7")
    }

    /// A router somewhere behind the gateway.
    pub(crate) fn router(self) -> IpAddr {
        self.of("198.51.100.1", "2001:db8:99::1")
    }

    /// The pod that is a client.
    pub(crate) fn pod(self) -> IpAddr {
        self.of("10.244.0.5", "fd00:244::5")
    }

    /// The first endpoint.
    pub(crate) fn endpoint(self) -> IpAddr {
        self.of("10.244.0.11", "fd00:244::11")
    }

    /// The second one.
    pub(crate) fn second(self) -> IpAddr {
        self.of("10.244.0.12", "fd00:244::12")
    }

    /// One whose Ethernet address is not known.
    pub(crate) fn unresolved(self) -> IpAddr {
        self.of("10.244.0.14", "fd00:244::14")
    }

    /// One behind a device with a small MTU.
    pub(crate) fn small(self) -> IpAddr {
        self.of("10.244.0.13", "fd00:244::13")
    }

    /// One on another node.
    pub(crate) fn remote(self) -> IpAddr {
        self.of("10.244.1.21", "fd00:244:1::21")
    }

    /// One behind a route with a small MTU.
    pub(crate) fn narrow(self) -> IpAddr {
        self.of("10.244.2.22", "fd00:244:2::22")
    }

    /// One that no route leads to.
    pub(crate) fn prohibited(self) -> IpAddr {
        self.of("10.244.3.1", "fd00:244:3::1")
    }

    pub(crate) fn cluster_ip(self) -> IpAddr {
        self.of("10.96.0.10", "fd00:96::10")
    }

    /// Out of the service network, but no Service's.
    pub(crate) fn unallocated(self) -> IpAddr {
        self.of("10.96.0.99", "fd00:96::99")
    }

    pub(crate) fn load_balancer(self) -> IpAddr {
        self.of("203.0.113.5", "2001:db8:203::5")
    }

    pub(crate) fn unspecified(self) -> IpAddr {
        self.of("0.0.0.0", "::")
    }

    pub(crate) fn service_network(self) -> (IpAddr, u32) {
        (self.of("10.96.0.0", "fd00:96::"), if self == Family::V4 { 16 } else { 112 })
    }

    pub(crate) fn pod_network(self) -> (IpAddr, u32) {
        (self.of("10.244.0.0", "fd00:244::"), if self == Family::V4 { 16 } else { 32 })
    }

    /// Length of an IP header.
    pub(crate) fn header(self) -> usize {
        if self == Family::V4 { 20 } else { 40 }
    }
}

/// MTU of `pod-s`.
pub(crate) const SMALL_MTU: u32 = 1280;
/// MTU of the route to [`Family::narrow`].
pub(crate) const NARROW_MTU: u32 = 1400;

/// The interfaces.
pub(crate) const INTERFACES: [&str; 6] = ["uplink", "pod-a", "pod-b", "pod-c", "pod-d", "pod-s"];

/// The node's own Ethernet address on an interface.
pub(crate) fn mac(interface: &str) -> Mac {
    let at = INTERFACES.iter().position(|name| *name == interface).unwrap();
    [2, 0, 0, 0, at as u8, 1]
}

/// The Ethernet address of what is at the other end of a cable: a pod, or a client.
pub(crate) fn peer(interface: &str) -> Mac {
    let at = INTERFACES.iter().position(|name| *name == interface).unwrap();
    [2, 0, 0, 0, at as u8, 2]
}

/// Of the gateway.
pub(crate) const GATEWAY: Mac = [2, 0, 0, 1, 0, 0xfe];
/// Of the other node.
pub(crate) const OTHER_NODE: Mac = [2, 0, 0, 1, 0, 0x14];

fn commands() -> String {
    let show = |mac: Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
    let mut lines = vec!["link set lo up".to_owned()];
    let mut add = |line: String| lines.push(line);
    for name in INTERFACES {
        let mtu = if name == "pod-s" { SMALL_MTU } else { 1500 };
        let (own, other) = (show(mac(name)), show(peer(name)));
        add(format!(
            "link add {name} address {own} mtu {mtu} type veth peer name {name}-x address {other} mtu {mtu}"
        ));
        add(format!("link set {name} up"));
        add(format!("link set {name}-x up"));
    }
    for family in FAMILIES {
        let v6 = family == Family::V6;
        let (bits, host) = if v6 { ("64", "128") } else { ("24", "32") };
        let nodad = if v6 { "nodad" } else { "" };
        add(format!("address add {}/{bits} dev uplink {nodad}", family.node()));
        let (gateway, other_node) =
            if v6 { ("2001:db8:1::fe", "2001:db8:1::20") } else { ("192.0.2.254", "192.0.2.20") };
        let mut neighbour = |address: &str, mac: Mac, interface: &str| {
            add(format!("neighbour add {address} lladdr {} nud permanent dev {interface}", show(mac)));
        };
        neighbour(gateway, GATEWAY, "uplink");
        neighbour(other_node, OTHER_NODE, "uplink");
        neighbour(&family.client().to_string(), peer("uplink"), "uplink");
        neighbour(&family.pod().to_string(), peer("pod-a"), "pod-a");
        neighbour(&family.endpoint().to_string(), peer("pod-b"), "pod-b");
        neighbour(&family.second().to_string(), peer("pod-c"), "pod-c");
        neighbour(&family.small().to_string(), peer("pod-s"), "pod-s");
        let pods = [
            (family.pod(), "pod-a"),
            (family.endpoint(), "pod-b"),
            (family.second(), "pod-c"),
            (family.unresolved(), "pod-d"),
            (family.small(), "pod-s"),
        ];
        for (address, interface) in pods {
            add(format!("route add {address}/{host} dev {interface}"));
        }
        let net =
            if v6 { ["fd00:244:1::/64", "fd00:244:2::/64"] } else { ["10.244.1.0/24", "10.244.2.0/24"] };
        add(format!("route add {} via {other_node} dev uplink", net[0]));
        // bpf_fib_lookup heeds no other MTU of an IPv4 route (ip_mtu_from_fib_result of
        // net/ipv4/route.c).
        add(format!("route add {} via {other_node} dev uplink mtu lock {NARROW_MTU}", net[1]));
        add(format!("route add prohibit {}/{host}", family.prohibited()));
        add(format!("route add default via {gateway} dev uplink"));
    }
    lines.join("\n")
}

/// Makes all this in the calling thread's network namespace, which is new.
pub(crate) fn furnish() {
    for (path, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/accept_dad", "0"),
    ] {
        std::fs::write(format!("/proc/sys/net/{path}"), value).unwrap();
    }
    ip_batch(&commands());
    // As the daemon does.
    lo::opening(lo::Before::default()).and_then(|change| change.make()).unwrap();
    // The kernel enters the routes of IPv6 addresses when it has noticed that the cables are
    // plugged in.
    let IpAddr::V6(own) = Family::V6.node() else { unreachable!("IPv6") };
    let own = format!("{:032x} 80 ", u128::from(own));
    let begin = Instant::now();
    while !std::fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap().contains(&own) {
        assert!(begin.elapsed() < Duration::from_secs(10), "no route to {}", Family::V6.node());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs commands of ip(8) in the calling thread's network namespace.
pub(crate) fn ip_batch(commands: &str) {
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    ip.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success());
}

/// Index of an interface.
pub(crate) fn index(interface: &str) -> u32 {
    nix::net::if_::if_nametoindex(interface).unwrap()
}
