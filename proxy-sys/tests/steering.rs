//! Rules of routing against the real kernel, in a network namespace of their own.
#![expect(clippy::unwrap_used, reason = "integration tests fail by panicking")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;

use sluice_core::net::Protocol;
use sluice_sys::steering::{Packets, RuleChange, Steering};

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn key(address: &str, protocol: Protocol, port: u16) -> Packets {
    Packets { address: address.parse().unwrap(), protocol, port }
}

fn led(steering: &mut Steering) -> BTreeSet<Packets> {
    steering.led().unwrap().into_iter().collect()
}

#[test]
fn packets_for_one_port_of_another_s_address_are_led_here_and_no_others() {
    sluice_skips::in_namespaces(nix::sched::CloneFlags::CLONE_NEWNET, || {
        for arguments in [
            "link set lo up",
            "link add up0 type veth peer name up1",
            "address add 192.168.77.12/24 dev up0",
            "address add fd00:77::12/64 dev up0 nodad",
            "link set up0 up",
            "link set up1 up",
            "rule add pref 100 to 192.168.77.11 lookup main",
        ] {
            ip(arguments);
        }
        let mut steering = Steering::open().unwrap();
        assert_eq!(led(&mut steering), BTreeSet::new());
        let (web, web6) = (key("192.168.77.11", Protocol::Tcp, 80), key("fd00:77::11", Protocol::Tcp, 80));
        let dns = key("192.168.77.11", Protocol::Udp, 53);
        let own: [Option<IpAddr>; 2] = ["192.168.77.12", "fd00:77::12"].map(|text| text.parse().ok());
        // Both can be done again.
        for _ in 0..2 {
            steering.deliver(own).unwrap();
            steering.apply([web, web6, dns].map(|to| (to, RuleChange::LeadHere(to)))).unwrap();
        }
        assert_eq!(led(&mut steering), BTreeSet::from([web, web6, dns]));
        let way = |to: &str| ip(&format!("route get {to}"));
        for (to, source) in [
            ("192.168.77.11 ipproto tcp dport 80", "192.168.77.12"),
            ("192.168.77.11 ipproto udp dport 53", "192.168.77.12"),
            ("fd00:77::11 ipproto tcp dport 80", "fd00:77::12"),
        ] {
            let told = way(to);
            assert!(told.starts_with("local ") && told.contains(&format!("src {source}")), "{to}: {told}");
        }
        for to in
            ["192.168.77.11", "192.168.77.11 ipproto tcp dport 53", "192.168.77.13 ipproto tcp dport 80"]
        {
            assert!(way(to).contains("dev up0"), "{to}: {}", way(to));
        }
        for _ in 0..2 {
            steering.apply([(dns, RuleChange::LetPass(dns))]).unwrap();
        }
        assert_eq!(led(&mut steering), BTreeSet::from([web, web6]));
        assert!(steering.remove().unwrap());
        assert!(!steering.remove().unwrap());
        assert!(way("192.168.77.11 ipproto tcp dport 80").contains("dev up0"));
        assert!(ip("rule").contains("100:"), "somebody else's rule");
    });
}
