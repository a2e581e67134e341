//! The lab itself, with real namespaces and no proxy: who reaches whom, from which address, and
//! that nothing stays.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail the test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use sluice_tests::agent::protocol::{Answer, Outcome, ProbeRequest};
use sluice_tests::capture::Capture;
use sluice_tests::lab::{Lab, LabOptions, cgroup};
use sluice_tests::needs;
use sluice_tests::proxy::ProxyProgram;
use sluice_tests::target::{From, Target};
use sluice_tests::topology::Topology;

const TOPOLOGY: &str = "
nodes: {node-a: {zone: z1}, node-b: {}}
pods:
  web-1: {node: node-a, ip: 10.244.1.11, ip6: 'fd00:10:244:1::11'}
  web-2: {node: node-b, ip: 10.244.2.11, ip6: 'fd00:10:244:2::11', listen: [tcp/9090]}
  web-3: {node: node-b, ip: 10.244.2.12}
hosts: {client: [tcp/9000, udp/9000], node-b: [udp/7000]}
";

fn lab() -> Option<Lab> {
    if !nix::unistd::geteuid().is_root() {
        sluice_skips::skip("root", "labs are network namespaces");
        return None;
    }
    let proxy = ProxyProgram::sluice(Path::new("/bin/true"), "nftables").unwrap();
    let options = LabOptions::new(PathBuf::from(env!("CARGO_BIN_EXE_sluice-conformance")), proxy);
    let topology: Topology = serde_saphyr::from_str(TOPOLOGY).unwrap();
    Some(Lab::create(&topology, options).unwrap())
}

fn one(lab: &Lab, from: &str, to: &str) -> Outcome {
    let dest: Target = to.parse().unwrap();
    let request =
        ProbeRequest { dests: vec![dest], count: 1, interval_ms: 0, parallel: false, stop_at_failure: true };
    let from: From = from.parse().unwrap();
    lab.probe(&from, request, None).unwrap().remove(0).outcome
}

fn answer(lab: &Lab, from: &str, to: &str) -> Answer {
    match one(lab, from, to) {
        Outcome::Answer(answer) => answer,
        other => panic!("{from} to {to}: {other:?}"),
    }
}

#[test]
fn a_capture_misses_nothing_while_tcpdump_has_no_processor() {
    if let Some(lack) = needs::missing("tcpdump").unwrap() {
        return sluice_skips::skip_for(lack);
    }
    let Some(lab) = lab() else { return };
    let node: From = "host/node-a".parse().unwrap();
    let file = lab.dir().join("capture.pcap");
    let capture = Capture::start(&lab.namespace(&node), "veth0", "udp", file).unwrap();
    kill(capture.pid(), Signal::SIGSTOP).unwrap();
    let dest: Target = "udp://10.244.2.12:8080".parse().unwrap();
    let request = ProbeRequest {
        dests: vec![dest],
        count: 200,
        interval_ms: 0,
        parallel: false,
        stop_at_failure: true,
    };
    let attempts = lab.probe(&"pod/web-1".parse().unwrap(), request, None).unwrap();
    assert_eq!(attempts.len(), 200);
    kill(capture.pid(), Signal::SIGCONT).unwrap();
    // A datagram there and one back for each.
    assert_eq!(capture.finish().unwrap().count, 400);
}

#[test]
fn everybody_reaches_pods_with_their_own_address() {
    let Some(lab) = lab() else { return };
    let routes = [
        ("pod/web-1", "tcp://10.244.2.11:9090", "web-2", "10.244.1.11"),
        ("pod/web-1", "tcp://[fd00:10:244:2::11]:9090", "web-2", "fd00:10:244:1::11"),
        ("pod/web-3", "udp://10.244.1.11:8080", "web-1", "10.244.2.12"),
        ("pod/web-2", "udp://[fd00:10:244:1::11]:8080", "web-1", "fd00:10:244:2::11"),
        ("host/node-b", "tcp://10.244.1.11:8080", "web-1", "192.168.77.12"),
        ("host/node-b", "tcp://[fd00:10:244:1::11]:8080", "web-1", "fd00:77::12"),
        ("client", "tcp://10.244.2.12:8080", "web-3", "192.168.77.100"),
        ("client", "udp://[fd00:10:244:1::11]:8080", "web-1", "fd00:77::100"),
        ("pod/web-1", "tcp://192.168.77.100:9000", "client", "10.244.1.11"),
        ("pod/web-2", "udp://[fd00:77::100]:9000", "client", "fd00:10:244:2::11"),
    ];
    for (from, to, who, peer) in routes {
        let answer = answer(&lab, from, to);
        assert_eq!((answer.pod.as_str(), answer.peer.to_string().as_str()), (who, peer), "{from} to {to}");
    }
}

#[test]
fn refused_and_silent_destinations_are_distinguished() {
    let Some(lab) = lab() else { return };
    assert_eq!(one(&lab, "pod/web-1", "tcp://10.244.2.11:8080"), Outcome::Refused);
    assert_eq!(one(&lab, "pod/web-1", "udp://10.244.2.11:8080"), Outcome::Refused);
    // A service address without a proxy goes to the client, which forwards nothing.
    assert_eq!(one(&lab, "pod/web-1", "tcp://10.96.0.10:80"), Outcome::Timeout);
    assert_eq!(one(&lab, "pod/web-1", "udp://[fd00:10:96::a]:53"), Outcome::Timeout);
    assert_eq!(one(&lab, "host/node-a", "icmp://10.96.0.10"), Outcome::Timeout);
    assert!(matches!(one(&lab, "client", "icmp://10.244.2.11"), Outcome::Answer(_)));
    assert!(matches!(one(&lab, "client", "icmp://[fd00:10:244:2::11]"), Outcome::Answer(_)));
    let rules =
        "table inet t { chain c { type filter hook input priority 0; meta l4proto { icmp, udp } reject; }; }";
    let argv = ["nft", rules].map(str::to_owned);
    assert!(lab.run("node-b", &argv).unwrap().status.success());
    assert_eq!(one(&lab, "client", "icmp://192.168.77.12"), Outcome::Refused);
    assert_eq!(one(&lab, "client", "udp://192.168.77.12:7000"), Outcome::Refused);
}

#[test]
fn datagrams_are_answered_from_the_address_they_were_sent_to() {
    let Some(lab) = lab() else { return };
    // The gateway address is not the one that a node would choose for an answer to the client.
    let answer = answer(&lab, "client", "udp://10.244.2.1:7000");
    assert_eq!((answer.pod.as_str(), answer.local.to_string().as_str()), ("node-b", "10.244.2.1"));
}

#[test]
fn the_lab_writes_its_own_objects() {
    let Some(lab) = lab() else { return };
    let files: BTreeSet<String> = std::fs::read_dir(lab.dir().join("manifests"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(
        files,
        ["node-node-a.yaml", "node-node-b.yaml", "servicecidr-kubernetes.yaml"].map(str::to_owned).into()
    );
    let node = std::fs::read_to_string(lab.dir().join("manifests/node-node-a.yaml")).unwrap();
    let node: serde_json::Value = serde_json::from_str(&node).unwrap();
    assert_eq!(node["metadata"]["labels"]["topology.kubernetes.io/zone"], "z1");
    assert_eq!(node["spec"]["podCIDRs"][1], "fd00:10:244:1::/64");
}

#[test]
fn a_dropped_lab_leaves_nothing() {
    let Some(lab) = lab() else { return };
    let dir = lab.dir().to_owned();
    let id = dir.file_name().unwrap().to_str().unwrap().strip_prefix("sluice-lab-").unwrap().to_owned();
    let namespaces = || {
        let output = Command::new("ip").args(["netns", "list"]).output().unwrap();
        let prefix = format!("sl{id}-");
        String::from_utf8(output.stdout).unwrap().lines().filter(|line| line.starts_with(&prefix)).count()
    };
    let cgroup: Option<PathBuf> = cgroup::root().map(|root| root.join(format!("sluice-lab-{id}")));
    assert_eq!(namespaces(), 7);
    // Something that nobody waits for, as a program run in a node may leave behind.
    let argv = ["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"].map(str::to_owned);
    let pid = lab.run("node-a", &argv).unwrap().stdout.trim().to_owned();
    let state = || std::fs::read_to_string(Path::new("/proc").join(&pid).join("stat")).unwrap_or_default();
    // The shell's child becomes setsid and then sleep in its own time.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while !state().contains("(sleep)") && std::time::Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(state().contains("(sleep)"), "{}", state());
    drop(lab);
    assert_eq!(namespaces(), 0);
    assert!(!dir.exists());
    assert!(cgroup.is_none_or(|cgroup| !cgroup.exists()));
    // It may not have been reaped yet.
    assert!(state().is_empty() || state().contains(") Z "), "{}", state());
}
