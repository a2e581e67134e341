//! The nftables backend against the real kernel, each test in a network namespace of its own.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "integration tests fail by panicking")]

use std::net::IpAddr;

use sluice_core::event::{Change, Event};
use sluice_core::index::Index;
use sluice_core::lang::nftables::{Bytes, ChainName, Element, ElementId, Key, Op, Value};
use sluice_core::loopback::Loopback;
use sluice_core::model::{
    Conditions, EndpointSlice, ObjectName, Service, ServicePort, ServiceType, SliceEndpoint, SlicePort,
    TrafficPolicy,
};
use sluice_core::net::{Family, Protocol};
use sluice_core::nft::{Ledger, NftConfig, NodeView, Scheduler, SetKind, TABLE};
use sluice_core::plan::{Detector, PlanConfig, Planner};
use sluice_core::pod_network::{self, HostPort, PodRules};
use sluice_sys::bpf::Usage;
use sluice_sys::nft::{
    Monitor, Nft, Notice, forget, is_full, loopback_refusals, observe, read_and_count, remembered,
    without_present,
};

/// Runs a test in a fresh network namespace. Without root: a skip that says so.
fn in_netns(test: impl FnOnce() + Send + 'static) {
    sluice_skips::in_namespaces(nix::sched::CloneFlags::CLONE_NEWNET, test);
}

fn name(i: usize) -> ObjectName {
    ObjectName::new("default", &format!("svc-{i}"))
}

fn service(i: usize, affinity: Option<u32>) -> Service {
    let ip = IpAddr::from([10, 96, (i / 250) as u8, (i % 250) as u8 + 1]);
    let ip6: IpAddr = format!("fd00:10:96::{:x}", i + 1).parse().unwrap();
    Service {
        name: name(i),
        created: None,
        service_type: ServiceType::LoadBalancer,
        cluster_ips: vec![ip, ip6],
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: 30000 + i as u16,
        }],
        external_ips: vec![],
        load_balancer_ips: vec![IpAddr::from([203, 0, 113, (i % 250) as u8 + 1])],
        source_ranges: vec!["192.0.2.0/24".parse().unwrap(), "198.51.0.0/16".parse().unwrap()],
        affinity,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: if i.is_multiple_of(2) { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
        health_check_node_port: 0,
    }
}

fn slice(i: usize, family: Family, endpoints: usize) -> EndpointSlice {
    let address = |e: usize| match family {
        Family::V4 => IpAddr::from([10, 244, (i % 250) as u8, e as u8 + 1]),
        Family::V6 => format!("fd00:10:244:{:x}::{:x}", i % 250, e + 1).parse().unwrap(),
    };
    EndpointSlice {
        name: ObjectName::new("default", &format!("svc-{i}-{family}")),
        service: name(i),
        family,
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: (0..endpoints)
            .map(|e| SliceEndpoint {
                address: address(e),
                node: Some(if e % 2 == 0 { "node-a".into() } else { "node-b".into() }),
                conditions: Conditions::default(),
                hints: None,
            })
            .collect(),
        triggered: None,
    }
}

struct World {
    index: Index,
    planner: Planner,
    ledger: Ledger,
    nft: Nft,
}

fn config(scheduler: Scheduler) -> NftConfig {
    NftConfig {
        detectors: [
            Detector::Cidr("10.244.0.0/16".parse().unwrap()),
            Detector::Cidr("fd00:10:244::/48".parse().unwrap()),
        ],
        scheduler,
        ..NftConfig::default()
    }
}

fn node() -> NodeView {
    NodeView {
        node_port_addresses: vec!["192.168.77.11".parse().unwrap(), "fd00:77::11".parse().unwrap()],
        service_networks: vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        ..NodeView::default()
    }
}

impl World {
    fn new(scheduler: Scheduler) -> World {
        let planner = Planner::new(PlanConfig {
            node_name: "node-a".into(),
            detects_pods: [true, true],
            ..PlanConfig::default()
        });
        let ledger = Ledger::new(config(scheduler), node());
        World { index: Index::default(), planner, ledger, nft: Nft::open().unwrap() }
    }

    fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> Vec<Op> {
        for event in events {
            self.index.apply(event);
        }
        let dirty = self.index.take_dirty();
        let changes = self.planner.replan(&self.index, dirty.services);
        self.ledger.change(&changes)
    }

    fn load(&mut self, services: usize, endpoints: usize) {
        let mut ops = self.ledger.create_skeleton();
        for i in 0..services {
            let affinity = i.is_multiple_of(3).then_some(10800);
            ops.extend(self.apply([
                Event::Service(Change::Apply(service(i, affinity))),
                Event::Slice(Change::Apply(slice(i, Family::V4, endpoints))),
                Event::Slice(Change::Apply(slice(i, Family::V6, endpoints))),
            ]));
        }
        ops.extend(self.ledger.finish_load());
        self.nft.commit(&TABLE, &ops).unwrap();
    }

    fn collect(&mut self) {
        while self.ledger.has_retired() {
            let ops = self.ledger.delete_retired();
            self.nft.commit(&TABLE, &ops).unwrap();
        }
    }

    fn drift(&mut self) -> Vec<Op> {
        let plans: Vec<_> = self.planner.plans().cloned().collect();
        let observed = observe(&mut self.nft, &TABLE).unwrap().expect("the table exists");
        let ops = self.ledger.reconcile(&plans, observed);
        assert!(!self.ledger.has_retired(), "chains that nobody needs: {:?}", self.ledger.delete_retired());
        without_present(&mut self.nft, &TABLE, ops).unwrap()
    }
}

#[test]
fn what_was_written_is_read_back_as_right() {
    for scheduler in [Scheduler::Random, Scheduler::RoundRobin] {
        in_netns(move || {
            let mut world = World::new(scheduler);
            world.load(20, 5);
            assert_eq!(world.drift(), []);
        });
    }
}

#[test]
fn changes_end_where_a_fresh_load_would() {
    for scheduler in [Scheduler::Random, Scheduler::RoundRobin] {
        in_netns(move || {
            let mut world = World::new(scheduler);
            world.load(20, 5);
            for (i, endpoints) in [(1, 4), (1, 6), (2, 0), (3, 1), (2, 5), (4, 9)] {
                let ops = world.apply([Event::Slice(Change::Apply(slice(i, Family::V4, endpoints)))]);
                world.nft.commit(&TABLE, &ops).unwrap();
            }
            let ops = world.apply([Event::Service(Change::Delete(name(5)))]);
            world.nft.commit(&TABLE, &ops).unwrap();
            let ops = world.apply([Event::Service(Change::Apply(service(6, Some(2))))]);
            world.nft.commit(&TABLE, &ops).unwrap();
            world.collect();
            assert_eq!(world.drift(), []);
        });
    }
}

#[test]
fn a_restarted_daemon_applies_only_the_difference() {
    in_netns(|| {
        let mut world = World::new(Scheduler::Random);
        world.load(20, 5);
        // The slots are no longer in sorted order after this.
        let mut shrunk = slice(1, Family::V4, 5);
        shrunk.endpoints.remove(0);
        let ops = world.apply([Event::Slice(Change::Apply(shrunk))]);
        world.nft.commit(&TABLE, &ops).unwrap();
        world.ledger = Ledger::new(config(Scheduler::Random), node());
        world.ledger.restore_slots(&Default::default());
        let plans: Vec<_> = world.planner.plans().cloned().collect();
        let observed = observe(&mut world.nft, &TABLE).unwrap().unwrap();
        assert_eq!(world.ledger.reconcile(&plans, observed), []);
        // While the daemon was away one Service went and one endpoint came.
        world.index.apply(Event::Service(Change::Delete(name(7))));
        world.index.apply(Event::Slice(Change::Apply(slice(8, Family::V4, 6))));
        let dirty = world.index.take_dirty();
        world.planner.replan(&world.index, dirty.services);
        let plans: Vec<_> = world.planner.plans().cloned().collect();
        let observed = observe(&mut world.nft, &TABLE).unwrap().unwrap();
        let ops = world.ledger.reconcile(&plans, observed);
        assert!(!ops.is_empty() && ops.len() < 60, "{} operations", ops.len());
        world.nft.commit(&TABLE, &ops).unwrap();
        world.collect();
        assert_eq!(world.drift(), []);
    });
}

#[test]
fn a_failed_transaction_changes_nothing_and_says_why() {
    in_netns(|| {
        let mut world = World::new(Scheduler::Random);
        world.load(3, 2);
        let ops = world.apply([Event::Slice(Change::Apply(slice(1, Family::V4, 3)))]);
        let mut broken = ops.clone();
        let missing = ElementId { set: SetKind::ClusterIps.set(Family::V4), key: Key::new(&[9; 4]) };
        broken.push(Op::DeleteElement(missing));
        let error = world.nft.commit(&TABLE, &broken).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOENT));
        assert!(error.to_string().contains("delete elements from 09090909 of cluster_ips4"), "{error}");
        world.nft.commit(&TABLE, &ops).unwrap();
        world.collect();
        assert_eq!(world.drift(), []);
    });
}

#[test]
fn clients_that_are_remembered_are_counted_in_both_ways() {
    in_netns(|| {
        let mut nft = Nft::open().unwrap();
        assert_eq!(remembered(&mut nft, Family::V4).unwrap(), None);
        let mut world = World::new(Scheduler::Random);
        let skeleton = world.ledger.create_skeleton();
        world.nft.commit(&TABLE, &skeleton).unwrap();
        let clients: u32 = 3_000;
        let set = SetKind::Affinity.set(Family::V6);
        let client = |number: u32| {
            let key = Key::new(&[&[1; 8][..], &[0; 12], &number.to_be_bytes()].concat());
            Op::AddElement(Element { id: ElementId { set, key }, value: Value::Data(Bytes::new(&[7; 20])) })
        };
        world.nft.commit(&TABLE, &(0..clients).map(client).collect::<Vec<_>>()).unwrap();
        for (family, entries) in [(Family::V4, 0), (Family::V6, clients as usize)] {
            let usage = Usage { entries, capacity: 1 << 20 };
            assert_eq!(remembered(&mut world.nft, family).unwrap(), Some(usage));
            // What kernels need that do not tell.
            assert_eq!(read_and_count(&mut world.nft, family).unwrap(), entries);
        }
    });
}

/// A set with room for a hundred clients, and so many of them.
fn small_set(world: &mut World, family: Family, clients: u8) {
    let mut skeleton = world.ledger.create_skeleton();
    for op in &mut skeleton {
        if let Op::AddSet(spec) = op
            && spec.dynamic
        {
            spec.size = 100;
        }
    }
    world.nft.commit(&TABLE, &skeleton).unwrap();
    let value = Value::Data(Bytes::new(match family {
        Family::V4 => &[7; 8],
        Family::V6 => &[7; 20],
    }));
    let client = |n| Op::AddElement(Element { id: client(family, n), value });
    world.nft.commit(&TABLE, &(0..clients).map(client).collect::<Vec<_>>()).unwrap();
}

fn client(family: Family, number: u8) -> ElementId {
    let key = match family {
        Family::V4 => Key::new(&[&[1; 8][..], &[10, 0, 0, number]].concat()),
        Family::V6 => Key::new(&[&[1; 8][..], &[0; 15], &[number]].concat()),
    };
    ElementId { set: SetKind::Affinity.set(family), key }
}

#[test]
fn a_set_of_clients_is_seen_to_be_full_and_some_are_forgotten() {
    for family in Family::BOTH {
        in_netns(move || {
            let mut world = World::new(Scheduler::Random);
            small_set(&mut world, family, 99);
            let mut nft = Nft::open().unwrap();
            assert!(!is_full(&mut nft, family).unwrap());
            assert_eq!(remembered(&mut nft, family).unwrap().unwrap().entries, 99, "a look leaves nothing");
            let value = Value::Data(Bytes::new(&vec![7; if family == Family::V4 { 8 } else { 20 }]));
            world.nft.commit(&TABLE, &[Op::AddElement(Element { id: client(family, 99), value })]).unwrap();
            assert!(is_full(&mut nft, family).unwrap());
            // Some of them have ended by themselves meanwhile.
            let gone: Vec<Key> = (36..164).map(|n| client(family, n).key).collect();
            assert_eq!(forget(&mut nft, family, &gone).unwrap(), 64);
            let usage = Usage { entries: 36, capacity: 100 };
            assert_eq!(remembered(&mut nft, family).unwrap(), Some(usage));
            assert!(!is_full(&mut nft, family).unwrap());
        });
    }
}

#[test]
fn changes_of_remembered_clients_are_not_reported() {
    in_netns(|| {
        let mut world = World::new(Scheduler::Random);
        small_set(&mut world, Family::V4, 50);
        let mut monitor = Monitor::open(&TABLE, world.nft.port()).unwrap();
        let mut other = Nft::open().unwrap();
        assert_eq!(forget(&mut other, Family::V4, &[client(Family::V4, 1).key]).unwrap(), 1);
        // The first that is told is what comes after it.
        let id = ElementId { set: SetKind::ClusterIps.set(Family::V4), key: Key::new(&[9; 4]) };
        other.commit(&TABLE, &[Op::AddElement(Element { id, value: Value::None })]).unwrap();
        assert_eq!(monitor.wait().unwrap(), Notice::Added);
    });
}

/// A node port of each protocol on loopback, which the ruleset refuses; the local stack would
/// answer for none of them.
#[test]
fn node_ports_on_loopback_are_refused_and_counted() {
    in_netns(|| {
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.unwrap().success());
        let mut world = World::new(Scheduler::Random);
        let loopback = [Loopback::Refused, Loopback::Served];
        world.ledger = Ledger::new(NftConfig { loopback, ..config(Scheduler::Random) }, node());
        let mut both = service(0, None);
        let dns = ServicePort { name: "dns".into(), protocol: Protocol::Udp, ..both.ports[0].clone() };
        both.ports.push(dns);
        let mut ops = world.ledger.create_skeleton();
        ops.extend(world.apply([Event::Service(Change::Apply(both))]));
        ops.extend(world.ledger.finish_load());
        world.nft.commit(&TABLE, &ops).unwrap();
        assert_eq!(world.drift(), []);
        let listeners = ["127.0.0.1:30000", "127.0.0.1:30001", "[::1]:30000"];
        let _open = listeners.map(|at| std::net::TcpListener::bind(at).unwrap());
        let tcp = |at| std::net::TcpStream::connect(at).is_ok();
        assert!(!tcp("127.0.0.1:30000"), "a node port, whoever listens there");
        assert!(tcp("127.0.0.1:30001") && tcp("[::1]:30000"), "none, and one that is served");
        for (from, to) in [("127.0.0.1:0", "127.5.0.1:30000"), ("[::1]:0", "[::1]:30000")] {
            let socket = std::net::UdpSocket::bind(from).unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
            socket.send(b"x").unwrap();
            let error = socket.recv(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{to}");
        }
        let (v4, v6) = (Family::V4, Family::V6);
        let (tcp, udp, sctp) = (Protocol::Tcp, Protocol::Udp, Protocol::Sctp);
        let mut counted = loopback_refusals(&mut world.nft).unwrap();
        // A first segment is sent again when the refusal comes while the kernel still sends it.
        assert!(counted[0].2 >= 1, "{counted:?}");
        counted[0].2 = 1;
        let expected = [(v4, tcp, 1), (v4, udp, 1), (v4, sctp, 0), (v6, tcp, 0), (v6, udp, 1), (v6, sctp, 0)];
        assert_eq!(counted, expected);
        assert_eq!(world.drift(), [], "counters are no drift");
    });
}

/// A pod's port of the node with the number of a node port, and one with another number.
#[test]
fn node_ports_come_before_ports_that_lead_to_pods_on_loopback_too() {
    in_netns(|| {
        let ip = |arguments: &[&str]| {
            assert!(std::process::Command::new("ip").args(arguments).status().unwrap().success());
        };
        ip(&["link", "set", "lo", "up"]);
        ip(&["address", "add", "10.244.0.77/32", "dev", "lo"]);
        for loopback in [Loopback::Served, Loopback::LocalStack] {
            let mut world = World::new(Scheduler::Random);
            world.nft.delete(&TABLE).unwrap();
            let config = NftConfig { loopback: [loopback; 2], ..config(Scheduler::Random) };
            world.ledger = Ledger::new(config, node());
            world.load(1, 2);
            assert_eq!(world.drift(), []);
            let host_port = |port| HostPort {
                protocol: Protocol::Tcp,
                port,
                host: None,
                pod: "10.244.0.77".parse().unwrap(),
                pod_port: 8080,
            };
            let host_ports = vec![host_port(30000), host_port(30001)];
            let rules = PodRules { host_ports, from_loopback: true, ..PodRules::default() };
            world.nft.commit(&pod_network::TABLE, &rules.replace()).unwrap();
            let [pod, on_loopback] = ["10.244.0.77:8080", "127.0.0.1:30000"].map(|at| {
                let listener = std::net::TcpListener::bind(at).unwrap();
                listener.set_nonblocking(true).unwrap();
                listener
            });
            let answers = |at: &str| {
                let _open = std::net::TcpStream::connect(at).unwrap();
                [&pod, &on_loopback].map(|listener| listener.accept().is_ok())
            };
            let is_pods = loopback == Loopback::LocalStack;
            assert_eq!(answers("127.0.0.1:30000"), [is_pods, !is_pods], "{loopback:?}");
            assert_eq!(answers("127.0.0.1:30001"), [true, false], "{loopback:?}");
        }
    });
}

/// The uplink lets packets for 127.0.0.0/8 in, so that nothing but the rules keeps a neighbour out.
#[test]
fn the_guard_keeps_neighbours_from_loopback_where_the_kernel_would_not() {
    in_netns(|| {
        let shell = |line: &str| {
            assert!(
                std::process::Command::new("sh").args(["-ec", line]).status().unwrap().success(),
                "{line}"
            );
        };
        let neighbour = format!("sluice-guard-{}", std::process::id());
        shell(&format!(
            "ip netns add {neighbour}; ip link set lo up
             ip link add uplink type veth peer name eth0 netns {neighbour}
             ip address add 192.168.77.11/24 dev uplink; ip link set uplink up
             echo 1 >/proc/sys/net/ipv4/conf/uplink/route_localnet
             ip netns exec {neighbour} sh -ec '
                 ip address add 192.168.77.2/24 dev eth0; ip link set eth0 up
                 echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
                 ip route flush table local 127.0.0.0/8; ip route flush table local 127.0.0.1
                 ip route replace 127.0.0.1 via 192.168.77.11 dev eth0'"
        ));
        let listener = std::net::UdpSocket::bind("127.0.0.1:9999").unwrap();
        listener.set_read_timeout(Some(std::time::Duration::from_secs(2))).unwrap();
        let arrives = || {
            shell(&format!("ip netns exec {neighbour} bash -c 'echo neighbour >/dev/udp/127.0.0.1/9999'"));
            listener.recv(&mut [0; 16]).is_ok()
        };
        let mut nft = Nft::open().unwrap();
        nft.commit(&pod_network::TABLE, &PodRules::default().replace()).unwrap();
        let guarded = arrives();
        nft.commit(&pod_network::TABLE, &[Op::SetRules(ChainName::new("loopback-guard"), Vec::new())])
            .unwrap();
        let unguarded = arrives();
        shell(&format!("ip netns del {neighbour}"));
        assert_eq!((guarded, unguarded), (false, true));
    });
}

#[test]
fn the_probe_passes_here_and_leaves_nothing() {
    in_netns(|| {
        let mut nft = Nft::open().unwrap();
        nft.probe(&TABLE, &sluice_core::nft::probe()).unwrap();
        assert!(observe(&mut nft, &TABLE).unwrap().is_none());
        assert!(!nft.delete(&TABLE).unwrap());
    });
}

#[test]
fn foreign_changes_of_table_and_chains_are_undone() {
    in_netns(|| {
        let long = "x".repeat(90);
        for damage in [
            vec!["add", "table", "inet", "sluice", "{ flags dormant; }"],
            vec!["chain", "inet", "sluice", "filter-forward", "{ policy drop; }"],
            vec!["add", "chain", "inet", "sluice", &long],
        ] {
            let mut world = World::new(Scheduler::Random);
            world.nft.delete(&TABLE).unwrap();
            world.load(3, 2);
            let Ok(status) = std::process::Command::new("nft").args(&damage).status() else {
                sluice_skips::skip("nft", "the program is not installed");
                return;
            };
            assert!(status.success(), "{damage:?}");
            let ops = world.drift();
            assert!(!ops.is_empty(), "{damage:?} goes unnoticed");
            world.nft.commit(&TABLE, &ops).unwrap();
            assert_eq!(world.drift(), [], "{damage:?}");
        }
    });
}

#[test]
fn a_large_load_fits() {
    in_netns(|| {
        let mut world = World::new(Scheduler::Random);
        world.load(400, 20);
        assert_eq!(world.drift(), []);
    });
}
