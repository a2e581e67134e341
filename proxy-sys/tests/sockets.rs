//! Ending sockets in other network namespaces.
#![expect(clippy::unwrap_used, reason = "integration tests fail by panicking")]

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::mpsc;

use nix::sched::CloneFlags;
use nix::sys::socket::getsockopt;
use sluice_skips::skip;
use sluice_sys::sockets::{Connected, destroy_udp};

/// A socket in a network namespace of its own, connected to some place there; told with its cookie.
fn elsewhere(
    work: impl FnOnce(UdpSocket, Connected) + Send + 'static,
) -> Option<std::thread::JoinHandle<()>> {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let made = nix::sched::unshare(CloneFlags::CLONE_NEWNET);
        sender.send(made).unwrap();
        if made.is_err() {
            return;
        }
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect("127.0.0.1:53").unwrap();
        let cookie = cookie(&socket);
        work(socket, Connected { cookie, remote: ("127.0.0.1".parse().unwrap(), 53) });
    });
    match receiver.recv().unwrap() {
        Ok(()) => Some(thread),
        Err(error) => {
            skip("root", format_args!("namespaces cannot be made ({error})"));
            None
        }
    }
}

fn cookie(socket: &UdpSocket) -> u64 {
    let mut cookie = 0u64;
    let mut len = 8;
    let pointer = (&raw mut cookie).cast();
    // SAFETY: the descriptor is open, and pointer and length describe one u64. 57 is SO_COOKIE.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, 57, pointer, &raw mut len) };
    assert_eq!(result, 0);
    cookie
}

#[test]
fn only_the_socket_that_is_meant_ends() {
    let thread = elsewhere(|socket, connected| {
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        other.connect("127.0.0.1:53").unwrap();
        // Another cookie, another place: nothing happens.
        let (address, port) = connected.remote;
        let wrong = [
            Connected { cookie: connected.cookie, remote: (address, port + 1) },
            Connected { cookie: u64::MAX, ..connected },
        ];
        assert!(destroy_udp(&BTreeSet::from(wrong)).unwrap().ended.is_empty());
        let done = destroy_udp(&BTreeSet::from([connected])).unwrap();
        if done.is_unsupported {
            skip("inet-diag-destroy", "the kernel has no CONFIG_INET_DIAG_DESTROY");
            return;
        }
        assert_eq!(done.ended, BTreeSet::from([connected]));
        let error = getsockopt(&socket, nix::sys::socket::sockopt::SocketError).unwrap();
        assert_eq!(error, libc::ECONNABORTED);
        assert_eq!(getsockopt(&other, nix::sys::socket::sockopt::SocketError).unwrap(), 0);
    });
    if let Some(thread) = thread {
        thread.join().unwrap();
    }
}
