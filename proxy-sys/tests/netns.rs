//! What is found in other network namespaces. Everything is in namespaces of its own.
#![expect(clippy::unwrap_used, reason = "integration tests fail by panicking")]

use std::net::IpAddr;
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, unshare};
use sluice_sys::bpf::netns_cookie;
use sluice_sys::netns;

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// A process in a namespace with these addresses, which ends with the guard.
struct Pod {
    cookie: u64,
    process: std::process::Child,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// `None`, with the reason, where namespaces cannot be made.
fn pod(addresses: &'static [&str]) -> Option<Pod> {
    let (tell, told) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            tell.send(Err(error)).unwrap();
            return;
        }
        ip("link set lo up");
        ip("link add eth0 type veth peer name other");
        ip("link set eth0 up");
        for address in addresses {
            ip(&format!("address add {address} dev eth0"));
        }
        let process = Command::new("sleep").arg("60").spawn().unwrap();
        tell.send(Ok((netns_cookie().unwrap(), process))).unwrap();
    });
    match told.recv().unwrap() {
        Ok((cookie, process)) => Some(Pod { cookie, process, thread: Some(thread) }),
        Err(error) => {
            sluice_skips::skip("root", format_args!("namespaces cannot be made ({error})"));
            None
        }
    }
}

#[test]
fn namespaces_of_processes_are_found_with_their_cookies_and_addresses() {
    let Some(first) = pod(&["203.0.113.77/24", "2001:db8:77::1/64"]) else { return };
    let second = pod(&["203.0.113.78/24"]).unwrap();
    let own = netns_cookie().unwrap();
    let found = netns::others().unwrap();
    let of = |cookie: u64| {
        let mut matching = found.iter().filter(|namespace| namespace.cookie == cookie);
        let namespace = matching.next().unwrap();
        assert!(matching.next().is_none(), "each is found once");
        &namespace.addresses
    };
    let has = |cookie: u64, ip: &str| of(cookie).contains(&ip.parse::<IpAddr>().unwrap());
    assert!(has(first.cookie, "203.0.113.77") && has(first.cookie, "2001:db8:77::1"));
    assert!(has(second.cookie, "203.0.113.78") && !has(second.cookie, "203.0.113.77"));
    assert!(!found.iter().any(|namespace| namespace.cookie == own), "the own one is none of the others");
    assert_eq!(netns_cookie().unwrap(), own, "this thread stays where it is");
    let gone = first.cookie;
    drop(first);
    assert!(!netns::others().unwrap().iter().any(|namespace| namespace.cookie == gone));
}
