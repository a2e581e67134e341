//! Neighbours of packets that are on wires: `BPF_PROG_TEST_RUN` sends nothing on.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use sluice_common::service::action;

use crate::network::{FAMILIES, Family, OTHER_NODE, index, ip_batch, mac, peer};
use crate::packets::udp;
use crate::world::{PORT, on_a_node};

impl Family {
    /// The next hop to [`Family::remote`].
    fn other_node(self) -> &'static str {
        if self == Family::V4 { "192.0.2.20" } else { "2001:db8:1::20" }
    }
}

/// Sends a frame by an interface.
fn send(interface: &str, frame: &[u8]) {
    // SAFETY: the call has no pointers; what it returns is nobody else's.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: all zeros is an address of this kind.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = index(interface) as i32;
    // SAFETY: frame and address live until the call returns, and are as long as it says.
    let sent = unsafe {
        let to = std::ptr::from_ref(&to);
        let size = size_of::<libc::sockaddr_ll>() as u32;
        libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, to.cast(), size)
    };
    assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
}

/// What the kernel knows of a neighbour on the uplink, as ip(8) says it.
fn neighbour(address: &str) -> String {
    let output = Command::new("ip").args(["-o", "neighbour", "show", address, "dev", "uplink"]).output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

#[test]
fn a_neighbour_whose_address_is_old_is_asked_again() {
    on_a_node(|world| {
        let links = world.attach(&["pod-a"], ["ingress", "egress"]);
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.remote()]);
            let old = OTHER_NODE.map(|byte| format!("{byte:02x}")).join(":");
            let address = family.other_node();
            ip_batch(&format!("neighbour replace {address} lladdr {old} nud stale dev uplink"));
            assert!(neighbour(address).contains("STALE"), "{}", neighbour(address));
            let datagram = udp(family.pod(), 40_000, family.cluster_ip(), PORT);
            send("pod-a-x", &datagram.by(peer("pod-a"), mac("pod-a")).bytes());
            // The kernel may handle what a cable brings after the call that sent it.
            let begin = Instant::now();
            while neighbour(address).contains("STALE") {
                assert!(begin.elapsed() < Duration::from_secs(10), "{}", neighbour(address));
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(world.flows(), 2);
            world.reset();
        }
        world.detach(links);
    });
}
