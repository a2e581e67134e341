//! The programs attached to devices whose wire is in this process's hand: those without Ethernet
//! headers, and packets whose checksum the sender leaves to the card.
//!
//! `BPF_PROG_TEST_RUN` knows neither. Clients are behind `wire-a`, endpoints behind `wire-b`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use aya::programs::tc::{SchedClassifierLinkId, qdisc_add_clsact};
use aya::programs::{SchedClassifier, TcAttachType};
use etherparse::checksum::Sum16BitWords;
use sluice_common::service::action;

use crate::network::{FAMILIES, Family, index, ip_batch};
use crate::packets::{ACK, Message, Packet, SYN, tcp, udp};
use crate::world::{PORT, TARGET, World, on_a_node};

/// `struct virtio_net_hdr`, of include/uapi/linux/virtio_net.h.
const VIRTIO_HEADER: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const IFF_TUN: u16 = 1;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// A device, from the side of its wire.
pub(crate) struct Wire(File);

impl Wire {
    /// Makes a device; none: the machine has none of this kind.
    fn new(name: &str) -> Option<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .ok()?;
        let mut request = [0_u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI | IFF_VNET_HDR).to_ne_bytes());
        // SAFETY: the request is as long as `struct ifreq`.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        Some(Self(file))
    }

    /// Sends a packet to the node.
    pub(crate) fn send(&mut self, packet: &Packet, unfinished: bool) {
        let mut header = [0_u8; VIRTIO_HEADER];
        let mut bytes = packet.ip();
        if unfinished {
            let start = bytes.len() - packet.transport().len();
            let offset = if packet.protocol() == 6 { 16 } else { 6 };
            // What the card adds the rest to.
            let pseudo = pseudo_header(packet);
            bytes[start + offset..start + offset + 2].copy_from_slice(&pseudo);
            header[0] = NEEDS_CHECKSUM;
            header[6..8].copy_from_slice(&(start as u16).to_ne_bytes());
            header[8..10].copy_from_slice(&(offset as u16).to_ne_bytes());
        }
        self.0.write_all(&[header.as_slice(), &bytes].concat()).unwrap();
    }

    /// The next packet between two ends that the node sends, from its IP header on.
    pub(crate) fn receive(&mut self, source: IpAddr, destination: IpAddr) -> Vec<u8> {
        let (at, octets) = match (source, destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => (12, [from.octets(), to.octets()].concat()),
            (IpAddr::V6(from), IpAddr::V6(to)) => (8, [from.octets(), to.octets()].concat()),
            _ => unreachable!("one family"),
        };
        let begin = Instant::now();
        let mut buffer = [0_u8; 4096];
        while begin.elapsed() < Duration::from_secs(5) {
            // The kernel handles most packets before it returns from the call that sent them.
            let Ok(length) = self.0.read(&mut buffer) else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            let packet = &buffer[VIRTIO_HEADER..length];
            // The device takes no unfinished checksums.
            assert_eq!(buffer[0], 0);
            if packet[at..].starts_with(&octets) {
                return packet.to_vec();
            }
        }
        panic!("no packet from {source} to {destination}");
    }
}

/// The sum over a packet's pseudo header.
fn pseudo_header(packet: &Packet) -> [u8; 2] {
    let length = packet.transport().len() as u32;
    let mut sum = Sum16BitWords::new().add_4bytes(length.to_be_bytes()).add_2bytes([0, packet.protocol()]);
    let sum = match (packet.source, packet.destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => sum.add_4bytes(from.octets()).add_4bytes(to.octets()),
        (IpAddr::V6(from), IpAddr::V6(to)) => sum.add_16bytes(from.octets()).add_16bytes(to.octets()),
        _ => unreachable!("one family"),
    };
    (!sum.ones_complement()).to_ne_bytes()
}

impl Family {
    pub(crate) fn behind_a(self) -> IpAddr {
        if self == Family::V4 { [198, 18, 0, 2].into() } else { "2001:db8:a::2".parse().unwrap() }
    }

    pub(crate) fn behind_b(self) -> IpAddr {
        if self == Family::V4 { [198, 18, 1, 2].into() } else { "2001:db8:b::2".parse().unwrap() }
    }
}

/// Runs a test on a node with both devices.
pub(crate) fn with_wires(test: fn(&mut World, &mut Wire, &mut Wire, Family)) {
    on_a_node(move |world| {
        let (Some(mut a), Some(mut b)) = (Wire::new("wire-a"), Wire::new("wire-b")) else {
            sluice_skips::skip("tun", "there is no /dev/net/tun");
            return;
        };
        let mut lines = vec!["link set wire-a up".to_owned(), "link set wire-b up".to_owned()];
        for family in FAMILIES {
            lines.push(format!("route add {} dev wire-a", family.behind_a()));
            lines.push(format!("route add {} dev wire-b", family.behind_b()));
        }
        ip_batch(&lines.join("\n"));
        assert!(index("wire-a") != index("wire-b"));
        let links = world.attach(&["wire-a", "wire-b"], ["ingress_raw", "egress_raw"]);
        for family in FAMILIES {
            world.reset();
            test(world, &mut a, &mut b, family);
        }
        world.detach(links);
    });
}

impl World {
    /// Attaches a program for what comes in, and one for what goes out.
    pub(crate) fn attach(
        &mut self,
        interfaces: &[&str],
        programs: [&'static str; 2],
    ) -> Vec<(&'static str, SchedClassifierLinkId)> {
        let mut links = vec![];
        for interface in interfaces {
            // Before Linux 6.6 programs hang on a qdisc; later ones need none.
            let _ = qdisc_add_clsact(interface);
            for (name, kind) in programs.into_iter().zip([TcAttachType::Ingress, TcAttachType::Egress]) {
                let program: &mut SchedClassifier =
                    self.ebpf().program_mut(name).unwrap().try_into().unwrap();
                links.push((name, program.attach(interface, kind).unwrap()));
            }
        }
        links
    }

    pub(crate) fn detach(&mut self, links: Vec<(&'static str, SchedClassifierLinkId)>) {
        for (name, link) in links {
            let program: &mut SchedClassifier = self.ebpf().program_mut(name).unwrap().try_into().unwrap();
            program.detach(link).unwrap();
        }
    }
}

fn from_client(family: Family, protocol: u8) -> Packet {
    let (from, to) = (family.behind_a(), family.cluster_ip());
    if protocol == 6 { tcp(from, 40_000, to, PORT, SYN) } else { udp(from, 40_000, to, PORT) }
}

#[test]
fn packets_take_their_way_whoever_finishes_their_checksums() {
    with_wires(|world, a, b, family| {
        for protocol in [6, 17] {
            for unfinished in [false, true] {
                println!("{family:?} {protocol} {unfinished}");
                world.reset();
                world.service(family, action::CLUSTER, &[family.behind_b()]);
                let first = from_client(family, protocol);
                let arrived =
                    first.clone().between(first.source, family.behind_b()).with_ports(40_000, TARGET).aged(1);
                a.send(&first, unfinished);
                assert_eq!(b.receive(arrived.source, arrived.destination), arrived.ip());
                let reply = arrived.reply().sized(77);
                let back = first.reply().sized(77).aged(1);
                b.send(&reply, unfinished);
                assert_eq!(a.receive(back.source, back.destination), back.ip());
                let (more, more_arrives) =
                    (first.flagged(ACK).sized(1_000), arrived.flagged(ACK).sized(1_000));
                a.send(&more, unfinished);
                assert_eq!(b.receive(more_arrives.source, more_arrives.destination), more_arrives.ip());
            }
        }
    });
}

#[test]
fn refusals_are_right_whoever_finishes_the_checksum_of_what_is_refused() {
    with_wires(|world, a, _, family| {
        world.service(family, action::REJECT, &[]);
        for protocol in [6, 17] {
            for size in [0, 7, 20, 21, 500] {
                for unfinished in [false, true] {
                    println!("{family:?} {protocol} {size} {unfinished}");
                    let refused = from_client(family, protocol).sized(size);
                    a.send(&refused, unfinished);
                    let bytes = a.receive(family.node(), family.behind_a());
                    let (header, quoted) = (family.header(), family.header() + 28);
                    assert_eq!(bytes.len(), header + 8 + quoted);
                    let mut error = refused.error(family.node(), Message::PortUnreachable, quoted);
                    error.identification = 0;
                    error.dont_fragment = false;
                    error.tos = if family == Family::V4 { 0xc0 } else { 0 };
                    // The checksum in the quote may be unfinished or finished over less; all else
                    // is known.
                    let mut quote = refused.ip();
                    quote.resize(quoted, 0);
                    let checksum = header + if protocol == 6 { 16 } else { 6 };
                    let there = header + 8 + checksum;
                    quote[checksum..checksum + 2].copy_from_slice(&bytes[there..there + 2]);
                    error.body = crate::packets::Body::Icmp(Message::PortUnreachable, quote);
                    assert_eq!(bytes, error.ip());
                }
            }
        }
    });
}
