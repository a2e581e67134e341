//! Route netlink against the real kernel, each test in a network namespace of its own.
#![expect(clippy::unwrap_used, reason = "integration tests fail by panicking")]

use std::fs::File;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use nix::sched::CloneFlags;
use sluice_link::request::{self, Request, Way};
use sluice_link::{BatchError, LOOPBACK, Netlink, netns};

fn in_netns(test: impl FnOnce() + Send + 'static) {
    sluice_skips::in_namespaces(CloneFlags::CLONE_NEWNET, test);
}

/// Enough that one datagram does not hold them.
fn many() -> impl Iterator<Item = IpNet> {
    (0..3000).map(|i| format!("10.96.{}.{}/32", i / 256, i % 256).parse().unwrap())
}

/// Adds an address that must not be there.
fn add(address: IpNet) -> Request {
    let message = RouteNetlinkMessage::NewAddress(request::address(LOOPBACK, address));
    Request::new(message, NLM_F_CREATE | NLM_F_EXCL)
}

#[test]
fn a_refused_change_keeps_none_of_the_others_from_being_done() {
    in_netns(|| {
        let mut netlink = Netlink::open().unwrap();
        let there: Vec<IpNet> = many().filter(|address| address.to_string().ends_with(".7/32")).collect();
        netlink.apply_each(there.iter().map(|address| (*address, add(*address)))).unwrap();
        let again = |is_done: bool| {
            many().map(move |address| (address, add(address))).map(move |(address, request)| {
                (address, if is_done { request.is_done_by(&[libc::EEXIST]) } else { request })
            })
        };
        let done = netlink.apply_each(again(false));
        let Err(BatchError::Refused(refusals)) = done else { unreachable!("{done:?}") };
        assert_eq!(refusals.0.iter().map(|refusal| refusal.item).collect::<Vec<_>>(), there);
        assert!(refusals.0.iter().all(|refusal| refusal.error.errno() == Some(libc::EEXIST)));
        let mut found = netlink.addresses(LOOPBACK).unwrap();
        found.retain(|address| !address.addr().is_loopback());
        found.sort_unstable();
        assert_eq!(found, many().collect::<Vec<_>>());
        // All of them refused, which is all right.
        netlink.apply_each(again(true)).unwrap();
    });
}

#[test]
fn a_refusal_has_the_kernel_s_words() {
    in_netns(|| {
        let mut netlink = Netlink::open().unwrap();
        let way = Way { to: "10.0.0.0/8".parse().unwrap(), gateway: None, mtu: None };
        let error = netlink.apply(vec![request::add_route(LOOPBACK, &way)]).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENETDOWN));
        let text = error.to_string();
        assert!(text.starts_with("add the route to 10.0.0.0/8: kernel says "), "{text}");
        assert!(text.ends_with(" (Device for nexthop is not up)"), "{text}");
        assert!(netlink.link("nobody").unwrap().is_none());
        // The socket is as good as before.
        assert_eq!(netlink.index("lo").unwrap(), Some(LOOPBACK));
    });
}

#[test]
fn work_in_another_namespace_leaves_this_one_alone() {
    in_netns(|| {
        let own = netns::open("/proc/thread-self/ns/net".as_ref()).unwrap();
        // That of the process, whose first thread has stayed where it was.
        let host = File::open("/proc/self/ns/net").unwrap();
        assert!(netns::is_own(&own).unwrap() && !netns::is_own(&host).unwrap());
        let is_own = || netns::is_own(&host).unwrap();
        assert!(netns::within(&host, is_own).unwrap());
        assert!(!is_own());
        let wrong = File::open("/proc/self/ns/uts").unwrap();
        assert!(netns::within(&wrong, || ()).is_err());
        assert!(netns::open("/proc/self/status".as_ref()).is_err());
    });
}
