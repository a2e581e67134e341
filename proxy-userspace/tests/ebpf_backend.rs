//! The eBPF backend's driver against the real kernel: in namespaces, a bpf filesystem and a cgroup
//! of its own.
#![cfg(feature = "ebpf")]
#![expect(clippy::unwrap_used, reason = "integration tests fail by panicking")]

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use sluice::config::{Flags, Settings, resolve};
use sluice::node::Device;
use sluice::service::affinity::Told;
use sluice::service::backend::ebpf::{self, EbpfBackend};
use sluice::service::backend::{Applied, Backend, Checked, Known};
use sluice::service::facts::NodeFacts;
use sluice::service::{conntrack, flows, handover};
use sluice_common::Address;
use sluice_common::flow::{Flow, FlowKey, flag, seen};
use sluice_common::maps::MapName;
use sluice_common::node::{Config, option};
use sluice_common::service::{Group, MemberKey};
use sluice_common::socket::{Peer, SocketKey};
use sluice_core::event::{Change, Event};
use sluice_core::index::Index;
use sluice_core::model::{
    Conditions, EndpointSlice, ObjectName, Service, ServicePort, ServiceType, SliceEndpoint, SlicePort,
    TrafficPolicy,
};
use sluice_core::net::{Family, Protocol};
use sluice_core::plan::{Planner, ServicePlan};
use sluice_skips::{in_namespaces, skip};
use sluice_sys::bpf::{Directory, Layer, Maps};
use sluice_sys::proc::monotonic_nanos;
use sluice_tests::lab::cgroup;

/// Programs at the cgroup.
const SOCKET_PROGRAMS: usize = 8;

struct World {
    settings: Settings,
    facts: NodeFacts,
    index: Index,
    planner: Planner,
    backend: EbpfBackend,
}

/// Runs a test in a place of its own. Without root or cgroup2: a skip that says so.
fn in_a_place(scheduler: &'static str, test: impl FnOnce(&mut World) + Send + 'static) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let Some(cgroups) = cgroup::root() else {
        skip("cgroup2", "no such filesystem can be written");
        return;
    };
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("sluice-backend-{}-{number}", std::process::id());
    let (cgroup, bpffs) = (cgroups.join(&name), std::env::temp_dir().join(&name));
    let (inside, mounted) = (cgroup.clone(), bpffs.clone());
    let kinds = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    let run = || {
        in_namespaces(kinds, move || {
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            std::fs::create_dir(&mounted).unwrap();
            mount(Some("bpf"), &mounted, Some("bpf"), MsFlags::empty(), none).unwrap();
            std::fs::create_dir(&inside).unwrap();
            test(&mut World::new(settings(scheduler, &inside, mounted.join("sluice"))));
        })
    };
    let result = catch_unwind(AssertUnwindSafe(run));
    let _ = umount2(&bpffs, MntFlags::MNT_DETACH);
    let _ = std::fs::remove_dir(&bpffs);
    cgroup::remove(&cgroup);
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn settings(scheduler: &str, cgroup: &std::path::Path, bpffs: PathBuf) -> Settings {
    let config = serde_json::json!({
        "mode": "ebpf", "clusterCIDR": "10.244.0.0/16",
        "sluice": {"scheduler": scheduler, "ebpf": {"cgroupRoot": cgroup, "bpffs": bpffs, "flows": 1024}},
    });
    resolve(serde_json::from_value(config).unwrap(), &Flags::default(), "node-a").unwrap()
}

impl World {
    fn new(settings: Settings) -> World {
        let facts = NodeFacts { interfaces: vec![[192, 0, 2, 1].into()], ..NodeFacts::default() };
        let planner = Planner::new(sluice::service::facts::plan_config(&settings, &facts));
        let backend = EbpfBackend::open(&settings, &facts).unwrap();
        World { settings, facts, index: Index::default(), planner, backend }
    }

    fn put(&mut self, i: usize, endpoints: usize) {
        self.index.apply(Event::Service(Change::Apply(service(i))));
        self.index.apply(Event::Slice(Change::Apply(slice(i, endpoints))));
    }

    fn change(&mut self) -> Applied {
        let dirty = self.index.take_dirty();
        let changes = self.planner.replan(&self.index, dirty.services);
        self.backend.change(&changes).unwrap()
    }

    fn full(&mut self) -> Applied {
        let dirty = self.index.take_dirty();
        self.planner.replan(&self.index, dirty.services);
        let plans: Vec<Arc<ServicePlan>> = self.planner.plans().cloned().collect();
        let done = self.backend.full(&self.settings, &self.facts, &plans, &Known::default()).unwrap();
        assert!(done.refused.is_empty(), "{:?}", done.refused);
        done.applied
    }

    fn capacity(&self, map: MapName) -> (usize, usize) {
        let usage = self.backend.usage();
        let usage = usage.iter().find(|(name, _)| *name == map.name()).unwrap().1;
        let counted = self.backend.maps().get(map).unwrap().usage().unwrap();
        assert_eq!(counted, usage, "what is told of {map}");
        (usage.entries, usage.capacity)
    }
}

fn name(i: usize) -> ObjectName {
    ObjectName::new("default", &format!("svc-{i}"))
}

fn service(i: usize) -> Service {
    let low = [(i / 250) as u8, (i % 250) as u8 + 1];
    let protocol = if i.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp };
    Service {
        name: name(i),
        created: None,
        service_type: ServiceType::LoadBalancer,
        cluster_ips: vec![IpAddr::from([10, 96, low[0], low[1]])],
        ports: vec![ServicePort { name: "p".into(), protocol, port: 80, node_port: 0 }],
        external_ips: vec![],
        load_balancer_ips: vec![IpAddr::from([203, 0, low[0], low[1]])],
        source_ranges: vec!["192.0.2.0/24".parse().unwrap(), "198.51.0.0/16".parse().unwrap()],
        affinity: i.is_multiple_of(3).then_some(10_800),
        internal_policy: TrafficPolicy::Cluster,
        external_policy: if i.is_multiple_of(5) { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
        health_check_node_port: 0,
    }
}

fn slice(i: usize, endpoints: usize) -> EndpointSlice {
    let protocol = if i.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp };
    let endpoint = |e: usize| SliceEndpoint {
        address: IpAddr::from([10, 244, (i % 250) as u8, e as u8 + 1]),
        node: Some(if e.is_multiple_of(2) { "node-a".into() } else { "node-b".into() }),
        conditions: Conditions::default(),
        hints: None,
    };
    EndpointSlice {
        name: ObjectName::new("default", &format!("svc-{i}-4")),
        service: name(i),
        family: Family::V4,
        ports: vec![SlicePort { name: "p".into(), protocol, port: 8080 }],
        endpoints: (0..endpoints).map(endpoint).collect(),
        triggered: None,
    }
}

#[test]
fn what_was_written_is_read_back_as_right_whatever_changed() {
    for scheduler in ["random", "rr", "maglev"] {
        in_a_place(scheduler, |world| {
            for i in 0..30 {
                world.put(i, 5);
            }
            assert!(world.full().operations > 300);
            assert_eq!(world.full(), Applied::default());
            for (i, endpoints) in [(1, 4), (1, 6), (2, 0), (3, 1), (2, 5), (40, 9)] {
                world.put(i, endpoints);
                assert!(world.change().operations > 0);
            }
            world.index.apply(Event::Service(Change::Delete(name(5))));
            assert!(world.change().operations > 0);
            assert_eq!(world.full(), Applied::default());
            for i in 0..41 {
                world.index.apply(Event::Service(Change::Delete(name(i))));
            }
            world.change();
            for map in [
                MapName::Frontends,
                MapName::Groups,
                MapName::Endpoints,
                MapName::Members,
                MapName::Sources,
                MapName::Cursors,
                MapName::Maglev,
            ] {
                assert_eq!(world.capacity(map).0, 0, "{map}");
            }
        });
    }
}

#[test]
fn a_successor_applies_only_the_difference_and_what_others_did_is_undone() {
    in_a_place("random", |world| {
        for i in 0..30 {
            world.put(i, 5);
        }
        world.full();
        let (settings, facts) = (world.settings.clone(), world.facts.clone());
        replace_backend(world, || EbpfBackend::open(&settings, &facts).unwrap());
        // Its programs in the place of the other's, and nothing else.
        assert_eq!(world.full().operations, SOCKET_PROGRAMS);
        let maps = world.backend.maps();
        let groups = maps.get(MapName::Groups).unwrap();
        let (some, _) = groups.values::<u64, Group>().unwrap()[0];
        groups.put_value(&some, &Group { count: 77, reserved: 0 }).unwrap();
        groups.put_value(&1u64, &Group::default()).unwrap();
        let members = maps.get(MapName::Members).unwrap();
        let keys: Vec<u8> = members
            .values::<MemberKey, u32>()
            .unwrap()
            .iter()
            .take(3)
            .flat_map(|(key, _)| sluice_sys::bpf::Plain::bytes(key).to_vec())
            .collect();
        assert_eq!(members.delete_all(&keys).unwrap(), 3);
        assert_eq!(world.full().operations, 5);
        assert_eq!(world.full(), Applied::default());
    });
}

/// The directory is for one at a time.
fn replace_backend(world: &mut World, open: impl FnOnce() -> EbpfBackend) {
    let elsewhere = world.settings.ebpf.bpffs.parent().unwrap().with_extension("spare");
    std::fs::create_dir_all(&elsewhere).unwrap();
    let none: Option<&str> = None;
    mount(Some("bpf"), &elsewhere, Some("bpf"), MsFlags::empty(), none).unwrap();
    let mut spare = world.settings.clone();
    spare.ebpf.bpffs = elsewhere.join("sluice");
    world.backend = EbpfBackend::open(&spare, &world.facts).unwrap();
    world.backend = open();
    umount2(&elsewhere, MntFlags::MNT_DETACH).unwrap();
    std::fs::remove_dir(&elsewhere).unwrap();
}

#[test]
fn maps_grow_with_the_services() {
    in_a_place("random", |world| {
        for i in 0..4_000 {
            world.put(i, 8);
        }
        world.full();
        let (_, before) = world.capacity(MapName::Frontends);
        let (entries, _) = world.capacity(MapName::Endpoints);
        assert!(entries > 32_000, "{entries}");
        for i in 4_000..8_000 {
            world.put(i, 8);
        }
        world.change();
        let (entries, after) = world.capacity(MapName::Frontends);
        assert!(entries * 5 <= after * 4 && after > before, "{entries} of {after}, before {before}");
        let (entries, after) = world.capacity(MapName::Endpoints);
        assert!(entries > 65_536 && after >= 2 * entries, "{entries} of {after}");
        assert_eq!(world.full(), Applied::default());
    });
}

#[test]
fn flows_end_in_time_in_both_tables() {
    in_a_place("random", |world| {
        world.full();
        let (maps, ender, now) = (world.backend.maps(), world.backend.ender().unwrap(), monotonic_nanos());
        let table = |name| maps.get(name).unwrap();
        let key = |port: u16, protocol| FlowKey { source_port: port, protocol, ..FlowKey::default() };
        let (udp, tcp, stream) = (17, 6, seen::PACKET | seen::ESTABLISHED);
        // To port 9, translated to port 8: the other entry comes from there.
        let put = |name, port: u16, protocol, seen, ago: u64| {
            let used = now.saturating_sub(ago * 1_000_000_000);
            let there = Flow { source_port: port, destination_port: 8, seen, used, ..Flow::default() };
            table(name).put_value(&FlowKey { destination_port: 9, ..key(port, protocol) }, &there).unwrap();
            let back = Flow { source_port: 9, destination_port: port, flags: flag::REPLY, ..there };
            table(name).put_value(&FlowKey { destination_port: port, ..key(8, protocol) }, &back).unwrap();
        };
        put(MapName::Flows, 1, udp, seen::PACKET, 10);
        put(MapName::Flows, 2, udp, seen::PACKET, 500);
        put(MapName::Flows, 3, tcp, stream, 5_000);
        put(MapName::Flows, 4, tcp, stream | seen::FIN, 61);
        put(MapName::OldFlows, 5, tcp, stream, 5_000);
        put(MapName::OldFlows, 6, tcp, stream | seen::RST, 61);
        let expired = sluice::service::flows::expire(&maps, &ender).unwrap();
        assert_eq!(expired.ended, 3);
        let left: Vec<_> = expired.left.iter().map(|(name, usage)| (*name, usage.entries)).collect();
        assert_eq!(left, [(MapName::Flows, 4), (MapName::OldFlows, 2)]);
        assert_eq!(table(MapName::Flows).usage().unwrap().entries, 4);
        assert_eq!(sluice::service::flows::expire(&maps, &ender).unwrap().ended, 0);
    });
}

#[test]
fn the_programs_know_how_many_flows_may_have_only_begun() {
    in_a_place("random", |world| {
        world.full();
        let maps = world.backend.maps();
        let config: Config = maps.get(MapName::Config).unwrap().get_value(&0u32).unwrap().unwrap();
        assert_eq!((config.newest, maps.get(MapName::Newest).unwrap().max_entries()), (1_024, 1_025));
    });
}

#[test]
fn interfaces_come_and_go_and_links_are_repaired() {
    in_a_place("random", |world| {
        world.full();
        let added =
            std::process::Command::new("ip").args(["link", "add", "v0", "type", "veth"]).status().unwrap();
        assert!(added.success());
        let index = nix::net::if_::if_nametoindex("v0").unwrap();
        let layer = Some(Layer::Ethernet);
        let device = Device { index, name: "v0".into(), layer, mtu: 1500, ..Device::default() };
        // One that has gone before its programs came, and one that cannot have them.
        let gone = Device { index: 4_000, name: "gone".into(), ..device.clone() };
        let odd = Device { index: 4_001, name: "odd".into(), layer: None, ..device.clone() };
        world.facts.devices = vec![device, gone, odd];
        let applied = world.backend.set_node(&world.settings, &world.facts).unwrap().unwrap();
        assert_eq!(applied.operations, 3 + 2, "three entries, two links");
        assert_eq!(world.capacity(MapName::Interfaces).0, 3);
        assert_eq!(world.backend.check().unwrap(), Checked::Repaired(0));
        let links = world.settings.ebpf.bpffs.join(format!("v{}/links", sluice_common::LAYOUT));
        std::fs::remove_file(links.join("connect6")).unwrap();
        std::fs::remove_file(links.join(format!("ingress-{index}"))).unwrap();
        assert_eq!(world.backend.check().unwrap(), Checked::Repaired(2));
        world.facts.devices.clear();
        let applied = world.backend.set_node(&world.settings, &world.facts).unwrap().unwrap();
        assert_eq!(applied.operations, 3 + 2);
        assert_eq!(world.full(), Applied::default());
    });
}

/// A setting of IPv4 in this thread's network namespace.
fn ipv4(setting: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net/ipv4/conf").join(setting)
}

#[test]
fn lo_takes_what_the_stack_is_to_cut_until_the_programs_are_gone() {
    in_a_place("random", |world| {
        let settings = ["lo/accept_local", "lo/forwarding", "lo/rp_filter"].map(ipv4);
        let found = || settings.clone().map(|path| std::fs::read_to_string(path).unwrap().trim().to_owned());
        let change = |at: usize, value: &str| std::fs::write(&settings[at], value).unwrap();
        let (configured, facts) = (world.settings.clone(), world.facts.clone());
        let directory = Directory::new(&configured.ebpf.bpffs);
        assert_eq!(found()[..2], ["1", "1"]);
        replace_backend(world, || {
            // What the namespace begins with, it has from the machine.
            ebpf::remove(&directory).unwrap();
            (0..3).for_each(|at| change(at, "0"));
            std::fs::write(ipv4("all/rp_filter"), "0").unwrap();
            EbpfBackend::open(&configured, &facts).unwrap()
        });
        world.full();
        assert_eq!(world.backend.check().unwrap(), Checked::Repaired(0));
        change(0, "0");
        std::fs::write(ipv4("all/rp_filter"), "1").unwrap();
        change(2, "1");
        assert_eq!(world.backend.check().unwrap(), Checked::Repaired(2));
        assert_eq!((found(), world.full()), (["1", "1", "2"].map(String::from), Applied::default()));
        // The next daemon has not seen what was before.
        replace_backend(world, || EbpfBackend::open(&configured, &facts).unwrap());
        world.full();
        assert!(ebpf::remove(&directory).unwrap());
        assert_eq!(found(), ["0", "0", "1"]);
        assert!(!ebpf::remove(&directory).unwrap());
    });
}

/// A UDP socket of this thread that the programs have, as the maps say, connected to an endpoint.
fn connected(maps: &Maps) -> UdpSocket {
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(up.success());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect("127.0.0.1:53").unwrap();
    let (mut cookie, mut len) = (0u64, 8);
    let pointer = (&raw mut cookie).cast();
    // SAFETY: the descriptor is open, and pointer and length describe one u64. 57 is SO_COOKIE.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, 57, pointer, &raw mut len) };
    assert_eq!(result, 0);
    put_peer(maps, cookie);
    socket
}

fn put_peer(maps: &Maps, cookie: u64) {
    let address = Address::v4(u32::from_ne_bytes([127, 0, 0, 1]));
    let key = SocketKey { cookie, address, port: 53u16.to_be(), protocol: 17, reserved: 0 };
    maps.get(MapName::Peers).unwrap().put_value(&key, &Peer { group: 0x70, ..Peer::default() }).unwrap();
}

/// Blocking parts run on this thread, which has the namespaces.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn the_programs_of_a_daemon_that_is_at_work_are_not_switched_off() {
    in_a_place("random", |world| {
        world.put(1, 2);
        world.full();
        let maps = world.backend.maps();
        let socket = connected(&maps);
        let bpffs = world.settings.ebpf.bpffs.clone();
        let runtime = runtime();
        let soon = async { tokio::time::timeout(Duration::from_secs(1), handover::from_ebpf(&bpffs)).await };
        assert!(runtime.block_on(soon).is_err(), "it waits");
        let config: Config = maps.get(MapName::Config).unwrap().get_value(&0u32).unwrap().unwrap();
        assert_eq!(config.options & option::DRAINING, 0);
        assert!(maps.get(MapName::Frontends).unwrap().usage().unwrap().entries > 0);
        let (settings, facts) = (world.settings.clone(), world.facts.clone());
        replace_backend(world, || {
            runtime.block_on(handover::from_ebpf(&bpffs));
            assert!(!Directory::new(&bpffs).exists(), "there are no flows to wait for");
            EbpfBackend::open(&settings, &facts).unwrap()
        });
        let error = socket.take_error().unwrap().and_then(|error| error.raw_os_error());
        assert_eq!(error, Some(libc::ECONNABORTED));
    });
}

#[test]
fn sockets_that_are_gone_are_forgotten() {
    in_a_place("random", |world| {
        world.full();
        let maps = world.backend.maps();
        let socket = connected(&maps);
        put_peer(&maps, u64::MAX);
        world.put(1, 1);
        let dirty = world.index.take_dirty();
        let changes = world.planner.replan(&world.index, dirty.services);
        let (mut requests, (sender, receiver)) = (Vec::new(), tokio::sync::mpsc::unbounded_channel());
        conntrack::requests(&changes, &mut requests);
        assert!(!requests.is_empty());
        requests.into_iter().for_each(|request| sender.send(request).unwrap());
        let passes = flows::run(receiver, maps.clone(), world.backend.ender().unwrap(), Told::default());
        let forgotten = async {
            while maps.get(MapName::Peers).unwrap().usage().unwrap().entries > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        runtime().block_on(async {
            tokio::select! {
                () = passes => unreachable!("it ends while requests may come"),
                () = forgotten => {}
                () = tokio::time::sleep(Duration::from_secs(30)) => unreachable!("peers are left"),
            }
        });
        let error = socket.take_error().unwrap().and_then(|error| error.raw_os_error());
        assert_eq!(error, Some(libc::ECONNABORTED));
    });
}
