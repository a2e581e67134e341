//! The pod network's guards against real packets, in namespaces that are made here and removed
//! again: who may come out of the tunnel, and what pods may say of themselves.
#![expect(clippy::unwrap_used, reason = "integration tests fail by panicking")]

use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use sluice_core::pod_network::{Dropped, PORTS_TABLE, PodPorts, PodRules, Port, Sources, TABLE, TunnelGuard};
use sluice_sys::nft::{Nft, dropped};

/// A node with its uplink, a neighbour on the wire, and two pods.
struct World {
    node: String,
    neighbour: String,
    pods: [String; 2],
}

const LINKS: [&str; 2] = ["sl0000000000a1", "sl0000000000a2"];
const MACS: [&str; 2] = ["02:00:00:00:00:a1", "02:00:00:00:00:a2"];

fn sh(line: &str) -> bool {
    Command::new("sh").args(["-ec", line]).status().unwrap().success()
}

impl World {
    /// `None`, with the reason, where namespaces cannot be made.
    fn new(name: &str) -> Option<World> {
        let of = |what: &str| format!("sluice-{name}-{}-{what}", std::process::id());
        let world = World { node: of("node"), neighbour: of("wire"), pods: [of("p1"), of("p2")] };
        if !sh(&format!("ip netns add {} 2>/dev/null", world.node)) {
            sluice_skips::skip("root", "network namespaces cannot be made");
            return None;
        }
        for other in [&world.neighbour].into_iter().chain(&world.pods) {
            assert!(sh(&format!("ip netns add {other}; ip -n {other} link set lo up")));
        }
        let World { node, neighbour, .. } = &world;
        assert!(sh(&format!(
            "ip -n {node} link set lo up
             ip -n {node} link add uplink type veth peer name eth0 netns {neighbour}
             ip -n {node} address add 192.168.77.11/24 dev uplink; ip -n {node} link set uplink up
             ip -n {neighbour} address add 192.168.77.12/24 dev eth0
             ip -n {neighbour} address add 192.168.77.66/24 dev eth0; ip -n {neighbour} link set eth0 up
             ip -n {neighbour} route add 10.244.1.0/24 via 192.168.77.11
             ip netns exec {node} sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 \
                 net.ipv4.conf.default.rp_filter=0"
        )));
        Some(world)
    }

    /// Pods as mode routed wires them, with 10.244.1.5 and 10.244.1.6.
    fn routed(&self) {
        let World { node, pods, .. } = self;
        for ((pod, link), last) in pods.iter().zip(LINKS).zip([5, 6]) {
            assert!(sh(&format!(
                "ip -n {node} link add {link} type veth peer name eth0 netns {pod}
                 ip -n {node} address add 169.254.1.1/32 dev {link}; ip -n {node} link set {link} up
                 ip -n {node} route add 10.244.1.{last} dev {link}
                 ip -n {pod} address add 10.244.1.{last}/32 dev eth0; ip -n {pod} link set eth0 up
                 ip -n {pod} route add 169.254.1.1 dev eth0; ip -n {pod} route add default via 169.254.1.1"
            )));
        }
    }

    /// Pods as mode bridge wires them.
    fn bridged(&self) {
        let World { node, pods, .. } = self;
        assert!(sh(&format!(
            "ip -n {node} link add sluice0 type bridge; ip -n {node} address add 10.244.1.1/24 dev sluice0
             ip -n {node} address add fd00:1::1/64 dev sluice0 nodad; ip -n {node} link set sluice0 up"
        )));
        for (((pod, link), mac), last) in pods.iter().zip(LINKS).zip(MACS).zip([5, 6]) {
            assert!(sh(&format!(
                "ip -n {node} link add {link} type veth peer name eth0 netns {pod}
                 ip -n {node} link set {link} master sluice0 up
                 ip -n {pod} link set eth0 address {mac} up
                 ip -n {pod} address add 10.244.1.{last}/24 dev eth0
                 ip -n {pod} address add fd00:1::{last}/64 dev eth0 nodad
                 ip -n {pod} route add default via 10.244.1.1"
            )));
        }
    }

    fn drops(&self, reason: Dropped) -> u64 {
        inside(&self.node, move || dropped(&mut Nft::open().unwrap()).unwrap()[&reason])
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for namespace in [&self.node, &self.neighbour].into_iter().chain(&self.pods) {
            sh(&format!("ip netns del {namespace} 2>/dev/null || true"));
        }
    }
}

/// Runs something in a namespace, on a thread of its own.
fn inside<T: Send + 'static>(namespace: &str, what: impl FnOnce() -> T + Send + 'static) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    let thread = std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        what()
    });
    thread.join().unwrap()
}

fn socket(namespace: &str, at: &str) -> UdpSocket {
    let at: SocketAddr = at.parse().unwrap();
    inside(namespace, move || UdpSocket::bind(at).unwrap())
}

/// Whether one datagram gets from one socket to another one.
fn arrives(from: &UdpSocket, data: &[u8], to: &str, at: &UdpSocket) -> bool {
    at.set_nonblocking(true).unwrap();
    while at.recv(&mut [0; 64]).is_ok() {}
    at.set_nonblocking(false).unwrap();
    at.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    // It may be refused at once, by what an ICMP error says of the one before.
    let _ = from.send_to(data, to).or_else(|_| from.send_to(data, to));
    at.recv(&mut [0; 64]).is_ok()
}

/// Whether one of several datagrams gets there: after a link was down, the kernel may let a second
/// pass before it tells the bridge of the carrier (`linkwatch`), and another before it asks again
/// for a hardware address.
fn gets_through(from: &UdpSocket, data: &[u8], to: &str, at: &UdpSocket) -> bool {
    (0..10).any(|_| arrives(from, data, to, at))
}

/// A datagram to port 9999 in a frame to our device, behind a VXLAN header (RFC 7348, section 5).
fn vxlan(vni: u32, source: [u8; 4]) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 33, 0, 1, 0, 0, 64, 17, 0, 0];
    ip.extend(source);
    ip.extend([10, 244, 1, 0]);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let udp = [0x27, 0x0f, 0x27, 0x0f, 0, 13, 0, 0, b'i', b'n', b'n', b'e', b'r'];
    let mut packet = vec![8, 0, 0, 0];
    packet.extend((vni << 8).to_be_bytes());
    packet.extend([2, 0, 0, 0, 0, 0x11, 2, 0, 0, 0, 0, 0x12, 8, 0]);
    packet.extend(ip);
    packet.extend(udp);
    packet
}

fn write(node: &str, rules: PodRules) {
    inside(node, move || {
        Nft::open().unwrap().commit(&TABLE, &rules.replace()).unwrap();
    });
}

fn rules(peers: &[(&str, &str)]) -> PodRules {
    let read = |(node, pods): &(&str, &str)| (node.parse().unwrap(), pods.parse().unwrap());
    let tunnel =
        TunnelGuard { vni: 1, port: 4789, peers: peers.iter().map(read).collect(), checks_inner: true };
    PodRules { tunnel: Some(tunnel), sources: Sources::Own, ..PodRules::default() }
}

#[test]
fn nothing_comes_out_of_the_tunnel_but_pods_of_the_node_that_sent_it() {
    let Some(world) = World::new("tunnel") else { return };
    world.routed();
    let World { node, neighbour, pods } = &world;
    assert!(sh(&format!(
        "ip -n {node} link add sluice-vxlan0 address 02:00:00:00:00:11 type vxlan id 1 dstport 4789 nolearning \
             local 192.168.77.11
         ip -n {node} address add 10.244.1.0/32 dev sluice-vxlan0; ip -n {node} link set sluice-vxlan0 up
         ip -n {node} link add other type vxlan id 2 dstport 4789 nolearning local 192.168.77.11
         ip -n {node} link set other address 02:00:00:00:00:11 up"
    )));
    let inner = socket(node, "10.244.1.0:9999");
    let [peer, stranger] = ["192.168.77.12:5000", "192.168.77.66:5000"].map(|at| socket(neighbour, at));
    let pod = socket(&pods[0], "10.244.1.5:5000");
    let to = "192.168.77.11:4789";
    let (own, of_another) = (vxlan(1, [10, 244, 2, 7]), vxlan(1, [10, 244, 3, 7]));
    // The lab itself lets everything through.
    for (from, what) in [(&peer, &own), (&stranger, &own), (&peer, &of_another), (&pod, &own)] {
        assert!(gets_through(from, what, to, &inner));
    }
    let peers = [("192.168.77.12", "10.244.2.0/24"), ("192.168.77.13", "10.244.3.0/24")];
    write(node, rules(&peers));
    assert!(arrives(&peer, &own, to, &inner), "a node's own pods");
    assert_eq!(world.drops(Dropped::TunnelSource), 0);
    assert!(!arrives(&stranger, &own, to, &inner), "who is no node");
    assert!(!arrives(&peer, &of_another, to, &inner), "pods of another node");
    assert!(!arrives(&peer, &vxlan(1, [203, 0, 113, 12]), to, &inner), "what is no pod");
    assert!(!arrives(&pod, &own, to, &inner), "a pod of this node");
    assert_eq!(world.drops(Dropped::TunnelSource), 4);
    assert!(arrives(&stranger, &vxlan(2, [10, 244, 2, 7]), to, &inner), "VXLAN of others is theirs");
    // A pod's way to another node, where its packets would come from this one.
    let other_node = socket(neighbour, "192.168.77.12:4789");
    assert!(!arrives(&pod, &own, "192.168.77.12:4789", &other_node));
    assert_eq!(world.drops(Dropped::TunnelForwarded), 1);
    assert!(arrives(&pod, b"no VXLAN of ours", "192.168.77.12:4789", &other_node));
    // A node more is one element more, and what was counted stays.
    let (before, now) = (rules(&peers), rules(&[peers[0], peers[1], ("192.168.77.66", "10.244.4.0/24")]));
    let difference = now.difference(&before);
    assert_eq!(difference.len(), 2, "{difference:?}");
    inside(node, move || Nft::open().unwrap().commit(&TABLE, &difference).map(drop)).unwrap();
    assert!(arrives(&stranger, &vxlan(1, [10, 244, 4, 1]), to, &inner));
    assert_eq!(world.drops(Dropped::TunnelSource), 4);
    // What this node forwards for other nodes is theirs; without checks of sources a node may send
    // anything, and nobody else.
    let any = TunnelGuard { checks_inner: false, ..now.tunnel.clone().unwrap() };
    write(node, PodRules { tunnel: Some(any), ..now.clone() });
    assert!(arrives(&peer, &of_another, to, &inner) && !arrives(&pod, &own, to, &inner));
    // Without a tunnel none of its rules is left.
    write(node, PodRules { tunnel: None, ..now });
    assert!(arrives(&stranger, &own, to, &inner));
}

#[test]
fn a_routed_pod_sends_with_its_own_address_only() {
    let Some(world) = World::new("routed") else { return };
    world.routed();
    let World { node, neighbour, pods } = &world;
    assert!(sh(&format!(
        "for ip in 10.244.1.6 10.244.2.7 192.168.77.13 203.0.113.9; do ip -n {} address add $ip/32 dev eth0; done
         ip -n {neighbour} route add 10.244.2.0/24 via 192.168.77.11; ip -n {neighbour} route add 203.0.113.0/24 via 192.168.77.11",
        pods[0]
    )));
    let at = socket(neighbour, "192.168.77.66:9999");
    let sockets = ["10.244.1.5:1", "10.244.1.6:1", "10.244.2.7:1", "192.168.77.13:1", "203.0.113.9:1"]
        .map(|at| socket(&pods[0], at));
    let all = |expected: [bool; 5]| {
        let arrived = sockets.each_ref().map(|from| arrives(from, b"hello", "192.168.77.66:9999", &at));
        assert_eq!(arrived, expected);
    };
    for from in &sockets {
        assert!(gets_through(from, b"hello", "192.168.77.66:9999", &at));
    }
    write(node, rules(&[]));
    all([true, false, false, false, false]);
    assert_eq!(world.drops(Dropped::PodSource), 4);
    write(node, PodRules { sources: Sources::Any, ..rules(&[]) });
    all([true; 5]);
    // Where programs have turned answers back, whose sources are those of Services.
    let pods = ["10.244.0.0/16", "fd00:1::/64"].map(|net| net.parse().unwrap());
    write(node, PodRules { sources: Sources::OwnOf(pods.into()), ..rules(&[]) });
    all([true, false, false, true, true]);
}

fn ports() -> PodPorts {
    let port = |(i, last): (usize, u8)| Port {
        link: LINKS[i].into(),
        mac: [2, 0, 0, 0, 0, [0xa1, 0xa2][i]],
        addresses: [format!("10.244.1.{last}"), format!("fd00:1::{last}")]
            .map(|text| text.parse::<IpAddr>().unwrap())
            .into(),
    };
    PodPorts { ports: [(0, 5), (1, 6)].map(port).into(), checked: None }
}

#[test]
fn pods_on_a_bridge_cannot_use_addresses_of_others() {
    let Some(world) = World::new("bridge") else { return };
    world.bridged();
    let World { node, pods, .. } = &world;
    let [first, second] = pods;
    let node_socket = socket(node, "0.0.0.0:9999");
    let node6 = socket(node, "[::]:9998");
    let victim = socket(second, "0.0.0.0:9999");
    assert!(sh(&format!("ip -n {first} address add 10.244.1.99/24 dev eth0")));
    let [own, forged] = ["10.244.1.5:1", "10.244.1.99:1"].map(|at| socket(first, at));
    let own6 = socket(first, "[fd00:1::5]:1");
    // Whom the node asks for p2's address, while p2 is silent and p1 says that it is his.
    let asks = || {
        assert!(sh(&format!(
            "ip -n {second} link set eth0 down; ip -n {first} address add 10.244.1.6/24 dev eth0
             ip -n {node} neigh flush all; ip netns exec {node} bash -c 'echo hello >/dev/udp/10.244.1.6/9'; sleep 0.5"
        )));
        let output = Command::new("ip").args(["-n", node, "neigh", "show", "10.244.1.6"]).output().unwrap();
        assert!(sh(&format!(
            "ip -n {first} address del 10.244.1.6/24 dev eth0; ip -n {second} link set eth0 up
             ip -n {second} address replace fd00:1::6/64 dev eth0 nodad
             ip -n {second} route replace default via 10.244.1.1; ip -n {node} neigh flush all"
        )));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(gets_through(&forged, b"x", "10.244.1.1:9999", &node_socket));
    let heard = asks();
    assert!(heard.contains(MACS[0]), "{heard}");
    inside(node, || {
        Nft::open().unwrap().commit(&PORTS_TABLE, &ports().replace()).unwrap();
    });
    assert!(sh(&format!("ip -n {node} -6 neigh flush all; ip -n {first} neigh flush all")));
    assert!(gets_through(&own, b"x", "10.244.1.1:9999", &node_socket));
    assert!(gets_through(&own6, b"x", "[fd00:1::1]:9998", &node6), "with neighbour discovery both ways");
    assert!(gets_through(&own, b"x", "10.244.1.6:9999", &victim), "from port to port");
    assert_eq!(world.drops(Dropped::PodClaim), 0);
    assert!(!arrives(&forged, b"x", "10.244.1.1:9999", &node_socket));
    assert!(!arrives(&forged, b"x", "10.244.1.6:9999", &victim));
    assert!(world.drops(Dropped::PodSource) >= 1);
    let heard = asks();
    assert!(!heard.contains(MACS[0]), "{heard}");
    assert!(world.drops(Dropped::PodClaim) >= 1);
    // With the hardware address of the other one.
    assert!(sh(&format!(
        "ip -n {first} link set eth0 down; ip -n {first} link set eth0 address {} up",
        MACS[1]
    )));
    let before = world.drops(Dropped::PodClaim);
    let is_counted = || world.drops(Dropped::PodClaim) > before;
    let arrived = (0..10).any(|_| !is_counted() && arrives(&own, b"x", "10.244.1.1:9999", &node_socket));
    assert!(is_counted() && !arrived, "what has another's hardware address is dropped and counted");
    assert!(!arrives(&own, b"x", "10.244.1.1:9999", &node_socket));
    assert!(sh(&format!(
        "ip -n {first} link set eth0 down; ip -n {first} link set eth0 address {} up",
        MACS[0]
    )));
    assert!(gets_through(&own, b"x", "10.244.1.1:9999", &node_socket));
    // Where programs have turned answers back, sources of no pod pass, with the right hardware
    // address.
    let checked = |nets: &[&str]| PodPorts {
        checked: Some(nets.iter().map(|net| net.parse().unwrap()).collect()),
        ..ports()
    };
    let elsewhere = checked(&["10.244.2.0/24"]);
    let pods = checked(&["10.244.0.0/16", "fd00:1::/64"]);
    let differences = [elsewhere.difference(&ports()), pods.difference(&elsewhere)];
    let passes = differences.map(|ops| {
        inside(node, move || Nft::open().unwrap().commit(&PORTS_TABLE, &ops).map(drop)).unwrap();
        [&forged, &own].map(|from| arrives(from, b"x", "10.244.1.1:9999", &node_socket))
    });
    assert_eq!(passes, [[true, true], [false, true]]);
    inside(node, move || Nft::open().unwrap().commit(&PORTS_TABLE, &ports().replace()).map(drop)).unwrap();
    // Who is gone from the file is nobody's business.
    inside(node, || {
        let none = PodPorts::default();
        Nft::open().unwrap().commit(&PORTS_TABLE, &none.difference(&ports())).unwrap();
    });
    assert!(arrives(&forged, b"x", "10.244.1.1:9999", &node_socket));
}
