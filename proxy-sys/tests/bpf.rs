//! eBPF maps, programs and links against the real kernel. Each test has namespaces, a bpf
//! filesystem and a cgroup of its own.
#![expect(clippy::unwrap_used, reason = "integration tests fail by panicking")]

#[path = "bpf/lab.rs"]
mod lab;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;

use aya::maps::{PerCpuArray, PerCpuValues};
use lab::{Lab, ip};
use sluice_common::Address;
use sluice_common::counters::Counter;
use sluice_common::flow::{Flow, FlowKey};
use sluice_common::maps::MapName;
use sluice_common::node::{Config, PodSource};
use sluice_common::service::{
    Affinity, AffinityKey, Endpoint, EndpointKey, Frontend, FrontendKey, Group, SourceKey, action,
};
use sluice_sys::bpf::{
    BpfError, Cgroup, Device, Directory, Instance, Layer, Map, Place, Plain, PodSources, Sizes, View,
    counters, leave_alone, netns_cookie, probe, set_pod_sources, spec,
};

/// Connections.
const FLOWS: u32 = 512;

/// Entries of the flow table for so many.
fn flow_entries(flows: u32) -> u32 {
    spec(MapName::Flows, Sizes { flows }).entries
}

fn open(here: &Lab) -> Result<Instance, BpfError> {
    open_with(here, FLOWS, true)
}

fn open_with(here: &Lab, flows: u32, tcx: bool) -> Result<Instance, BpfError> {
    open_at(here, here.directory(), flows, tcx)
}

fn open_at(here: &Lab, directory: Directory, flows: u32, tcx: bool) -> Result<Instance, BpfError> {
    Instance::open(sluice_sys::bpf::Options {
        object: here.object,
        directory,
        cgroup: Cgroup::open(&here.cgroup)?,
        sizes: Sizes { flows },
        tcx,
        messages: false,
    })
}

fn devices(names: &[&str]) -> Vec<Device> {
    let device =
        |name: &&str| Device { index: lab::index(name), name: (*name).into(), layer: Layer::Ethernet };
    names.iter().map(device).collect()
}

fn endpoints(count: u32) -> (Vec<u8>, Vec<u8>) {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for slot in 0..count {
        let address = Address::v4((0x0a00_0000 + slot).to_be());
        keys.extend_from_slice(EndpointKey { group: 4, slot, reserved: 0 }.bytes());
        values.extend_from_slice(Endpoint { address, port: 80u16.to_be(), reserved: 0 }.bytes());
    }
    (keys, values)
}

fn entries(map: &Map) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut found = BTreeMap::new();
    map.each(|key, value| assert!(found.insert(key.to_vec(), value.to_vec()).is_none())).unwrap();
    found
}

#[test]
fn many_entries_are_written_read_and_deleted() {
    Lab::run(|here| {
        let mut instance = open(here).unwrap();
        let count = 10_000;
        instance.make_room([(MapName::Endpoints, count as usize)]).unwrap();
        let map = instance.maps().get(MapName::Endpoints).unwrap();
        let (keys, values) = endpoints(count);
        map.put_all(&keys, &values).unwrap();
        let found = entries(&map);
        assert_eq!(found.len(), count as usize);
        for (key, value) in keys.chunks(16).zip(values.chunks(20)) {
            assert_eq!(found[key], value);
        }
        assert_eq!(map.usage().unwrap().entries, count as usize);
        // Some of these are not there.
        let mut doomed = EndpointKey { group: 9, ..EndpointKey::default() }.bytes().to_vec();
        doomed.extend(&keys[..16 * 5000]);
        doomed.extend(EndpointKey { group: 8, ..EndpointKey::default() }.bytes());
        doomed.extend(&keys[16 * 5000..16 * 5001]);
        assert_eq!(map.delete_all(&doomed).unwrap(), 5001);
        assert_eq!(map.clear().unwrap(), count as usize - 5001);
        assert!(entries(&map).is_empty());
    });
}

#[test]
fn prefixes_and_arrays_are_read_like_hashes() {
    Lab::run(|here| {
        let instance = open(here).unwrap();
        let sources = instance.maps().get(MapName::Sources).unwrap();
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for n in 0..9_000u32 {
            keys.extend_from_slice((160 + 128u32).bytes());
            let source = Address::v4(n.to_be());
            keys.extend_from_slice(SourceKey { source, ..SourceKey::default() }.bytes());
            values.extend_from_slice(1u32.bytes());
        }
        sources.put_all(&keys, &values).unwrap();
        assert_eq!(entries(&sources).len(), 9_000);
        assert_eq!(sources.delete_all(&keys[..40 * 8_000]).unwrap(), 8_000);
        assert_eq!(entries(&sources).len(), 1_000);
        let config = instance.maps().get(MapName::Config).unwrap();
        config.put_value(&0u32, &Config { netns: 7, ..Config::default() }).unwrap();
        assert_eq!(config.values::<u32, Config>().unwrap()[0].1.netns, 7);
    });
}

#[test]
fn a_full_map_says_so() {
    Lab::run(|here| {
        let instance = open(here).unwrap();
        let map = instance.maps().get(MapName::Addresses).unwrap();
        let keys: Vec<u8> = (0..map.max_entries() + 1).flat_map(|n| Address::v4(n).octets()).collect();
        let error = map.put_all(&keys, &vec![0; keys.len() / 4]).unwrap_err();
        assert!(error.to_string().starts_with("write to map ADDRESSES, which is full"), "{error}");
    });
}

#[test]
fn a_successor_takes_over_maps_and_links_and_no_other_may_work_beside() {
    Lab::run(|here| {
        here.veth("v0", "v1");
        let mut first = open(here).unwrap();
        first
            .maps()
            .get(MapName::Groups)
            .unwrap()
            .put_value(&4u64, &Group { count: 3, reserved: 0 })
            .unwrap();
        let done = first.attach(devices(&["v0"])).unwrap();
        assert_eq!((done.attached, done.updated, done.removed), (10, 0, 0));
        assert!(done.failures.is_empty(), "{:?}", done.failures);
        let before = here.links();
        assert!(matches!(open(here), Err(BpfError::Busy(_))));
        drop(first);
        assert_eq!(here.links(), before);
        let mut second = open(here).unwrap();
        let group = second.maps().get(MapName::Groups).unwrap().get_value::<u64, Group>(&4).unwrap();
        assert_eq!(group.map(|group| group.count), Some(3));
        let done = second.attach(devices(&["v0"])).unwrap();
        assert_eq!((done.attached, done.updated, done.removed), (0, 10, 0));
        // The same links, with other programs.
        let after = here.links();
        let ids = |links: &[(u32, u32)]| links.iter().map(|link| link.0).collect::<Vec<_>>();
        assert_eq!(ids(&before), ids(&after));
        assert!(before.iter().zip(&after).all(|(old, new)| old.1 != new.1));
        assert_eq!(second.attach(devices(&["v0"])).unwrap().updated, 0);
    });
}

#[test]
fn links_follow_interfaces_and_come_back_when_somebody_takes_them() {
    Lab::run(|here| {
        here.veth("v0", "v1");
        let mut instance = open(here).unwrap();
        instance.attach(devices(&["v0", "v1"])).unwrap();
        let view = View::open(&here.directory()).unwrap();
        let index = lab::index("v0");
        assert_eq!(view.links.iter().filter(|link| link.place == Place::Interface(index)).count(), 2);
        assert_eq!(view.links.len(), 12);
        let done = instance.attach(devices(&["v0"])).unwrap();
        assert_eq!((done.attached, done.removed), (0, 2));
        let links = here.directory().path().join(format!("v{}/links", sluice_common::LAYOUT));
        std::fs::remove_file(links.join("connect4")).unwrap();
        std::fs::remove_file(links.join(format!("egress-{index}"))).unwrap();
        assert_eq!(instance.check_links().unwrap().attached, 2);
        ip("link del v0");
        let done = instance.check_links().unwrap();
        assert!(done.failures.is_empty(), "{:?}", done.failures);
        // Another interface with the same number.
        ip(&format!("link add v0 index {index} type veth peer name v1"));
        assert_eq!(instance.check_links().unwrap().attached, 2);
        assert_eq!(instance.attach(vec![]).unwrap().removed, 2);
    });
}

#[test]
fn programs_for_packets_without_an_ethernet_header_are_loaded_when_an_interface_has_such() {
    Lab::run(|here| {
        here.veth("v0", "v1");
        let mut instance = open(here).unwrap();
        instance.attach(devices(&["v0"])).unwrap();
        assert_eq!(here.loaded("ingress"), 1);
        assert_eq!((here.loaded("ingress_raw"), here.loaded("egress_raw")), (0, 0));
        let mut both = devices(&["v0", "v1"]);
        both[1].layer = Layer::Raw;
        // Somebody took a map's name away; the programs must not get another map.
        let maps = here.directory().path().join(format!("v{}/maps", sluice_common::LAYOUT));
        let groups = instance.maps().get(MapName::Groups).unwrap();
        groups.put_value(&4u64, &Group { count: 3, reserved: 0 }).unwrap();
        std::fs::remove_file(maps.join("GROUPS")).unwrap();
        let done = instance.attach(both.clone()).unwrap();
        assert_eq!((done.attached, done.failures.len()), (2, 0), "{:?}", done.failures);
        assert_eq!((here.loaded("ingress_raw"), here.loaded("egress_raw")), (1, 1));
        // With another map they are replaced together with the others.
        assert_eq!(instance.make_room([(MapName::Endpoints, 100_000)]).unwrap().len(), 1);
        assert_eq!(
            (here.loaded("ingress"), here.loaded("ingress_raw"), here.loaded("egress_raw")),
            (1, 1, 1)
        );
        drop(instance);
        let done = open(here).unwrap().attach(both).unwrap();
        assert_eq!((done.attached, done.updated, done.failures.len()), (0, 12, 0), "{:?}", done.failures);
        assert_eq!((here.loaded("ingress"), here.loaded("ingress_raw")), (1, 1));
        let groups = View::open(&here.directory()).unwrap().maps.get(MapName::Groups).unwrap();
        assert_eq!(groups.get_value::<u64, Group>(&4).unwrap().map(|group| group.count), Some(3));
    });
}

#[test]
fn links_move_to_another_cgroup() {
    Lab::run(|here| {
        let mut instance = open(here).unwrap();
        instance.attach(vec![]).unwrap();
        drop(instance);
        let other = here.cgroup.join("inner");
        std::fs::create_dir(&other).unwrap();
        let moved = Lab { cgroup: other.clone(), ..here.clone() };
        let done = open(&moved).unwrap().attach(vec![]).unwrap();
        assert_eq!((done.attached, done.updated), (8, 0));
        here.directory().remove().unwrap();
        std::fs::remove_dir(other).unwrap();
    });
}

#[test]
fn without_tcx_there_are_filters() {
    Lab::run(|here| {
        here.veth("v0", "v1");
        let mut instance = open_with(here, FLOWS, false).unwrap();
        assert!(!instance.has_tcx());
        let done = instance.attach(devices(&["v0", "v1"])).unwrap();
        assert_eq!((done.attached, done.failures.len()), (12, 0), "{:?}", done.failures);
        assert_eq!(instance.check_links().unwrap().attached, 0);
        drop(instance);
        let mut instance = open_with(here, FLOWS, false).unwrap();
        let done = instance.attach(devices(&["v0", "v1"])).unwrap();
        assert_eq!((done.attached, done.updated), (0, 12));
        let filters = lab::output("tc", "filter show dev v0 ingress");
        assert!(filters.contains("sluice direct-action"), "{filters}");
        assert_eq!(instance.attach(devices(&["v0"])).unwrap().removed, 2);
        here.directory().remove().unwrap();
        let filters = lab::output("tc", "filter show dev v0 ingress");
        assert_eq!(filters, "");
    });
}

fn count(instance: &Instance, counter: Counter) -> u64 {
    let counted = counters(instance.maps()).unwrap();
    counted.into_iter().find(|(known, _)| *known == counter).map_or(0, |(_, count)| count)
}

/// A frontend 10.96.0.1:80 with one endpoint.
fn serve(instance: &Instance, endpoint: Ipv4Addr, port: u16) {
    let maps = instance.maps();
    let config = Config { netns: netns_cookie().unwrap(), ..Config::default() };
    maps.get(MapName::Config).unwrap().put_value(&0u32, &config).unwrap();
    let address = |ip: Ipv4Addr| Address::v4(u32::from_ne_bytes(ip.octets()));
    let key = EndpointKey { group: 4, slot: 0, reserved: 0 };
    let value = Endpoint { address: address(endpoint), port: port.to_be(), reserved: 0 };
    maps.get(MapName::Endpoints).unwrap().put_value(&key, &value).unwrap();
    maps.get(MapName::Groups).unwrap().put_value(&4u64, &Group { count: 1, reserved: 0 }).unwrap();
    let key = FrontendKey {
        address: address(Ipv4Addr::new(10, 96, 0, 1)),
        port: 80u16.to_be(),
        protocol: 6,
        kind: 0,
    };
    let cluster = action::CLUSTER;
    let value = Frontend { group: 4, affinity: 0, pod: cluster, host: cluster, other: cluster, flags: 0 };
    maps.get(MapName::Frontends).unwrap().put_value(&key, &value).unwrap();
}

#[test]
fn maps_grow_while_connections_are_made() {
    Lab::run(|here| {
        ip("link set lo up");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepting = std::thread::spawn(move || listener.incoming().take_while(Result::is_ok).count());
        let mut instance = open(here).unwrap();
        serve(&instance, Ipv4Addr::LOCALHOST, port);
        instance.attach(vec![]).unwrap();
        // Connects again and again until it is told to end, and fails when it cannot once.
        let mut client = here.client("while read -t 0.01 line; [ -z \"$line\" ]; do exec 3<>/dev/tcp/10.96.0.1/80 || exit 1; exec 3>&-; done");
        let translated = || count(&instance, Counter::SocketTranslated);
        assert!(lab::wait(|| translated() > 5));
        let before = here.links();
        for _ in 0..3 {
            let map = instance.maps().get(MapName::Endpoints).unwrap();
            let room = map.max_entries() as usize;
            let resized = instance.make_room([(MapName::Endpoints, room), (MapName::Frontends, 10)]).unwrap();
            assert_eq!(resized.len(), 1);
            assert_eq!((resized[0].map, resized[0].from as usize), (MapName::Endpoints, room));
            assert!(resized[0].to as usize >= room * 2);
        }
        let so_far = count(&instance, Counter::SocketTranslated);
        assert!(lab::wait(|| count(&instance, Counter::SocketTranslated) > so_far + 5));
        lab::tell_end(&mut client);
        let after = here.links();
        assert!(before.iter().zip(&after).all(|(old, new)| old.0 == new.0 && old.1 != new.1));
        drop(accepting);
    });
}

#[test]
fn flows_are_found_in_the_old_table_when_the_size_changes() {
    Lab::run(|here| {
        let key = |n: u16| FlowKey { source_port: n, protocol: 6, ..FlowKey::default() };
        let flow = |group: u64| Flow { group, ..Flow::default() };
        let instance = open(here).unwrap();
        instance.maps().get(MapName::Flows).unwrap().put_value(&key(1), &flow(1)).unwrap();
        drop(instance);
        let instance = open_with(here, 20_480, true).unwrap();
        let (flows, old) =
            (instance.maps().get(MapName::Flows).unwrap(), instance.maps().get(MapName::OldFlows).unwrap());
        assert_eq!((flows.max_entries(), old.max_entries()), (flow_entries(20_480), flow_entries(FLOWS)));
        // Of those that began, too: how many there may be goes by the size.
        assert_eq!(instance.maps().get(MapName::Newest).unwrap().max_entries(), 20_480 / 4 + 1);
        assert_eq!(flows.get_value::<FlowKey, Flow>(&key(1)).unwrap(), None);
        assert_eq!(old.get_value::<FlowKey, Flow>(&key(1)).unwrap(), Some(flow(1)));
        flows.put_value(&key(2), &flow(2)).unwrap();
        drop((instance, flows, old));
        // Smaller again, before the first has ended: both are kept.
        let instance = open_with(here, 1024, true).unwrap();
        let (flows, old) =
            (instance.maps().get(MapName::Flows).unwrap(), instance.maps().get(MapName::OldFlows).unwrap());
        assert_eq!((flows.max_entries(), old.max_entries()), (flow_entries(1024), flow_entries(20_480)));
        assert_eq!(flows.get_value::<FlowKey, Flow>(&key(1)).unwrap(), Some(flow(1)));
        assert_eq!(old.get_value::<FlowKey, Flow>(&key(2)).unwrap(), Some(flow(2)));
        old.clear().unwrap();
        drop((instance, flows, old));
        // Nothing is left in it: its memory is given back.
        let instance = open_with(here, 1024, true).unwrap();
        assert_eq!(instance.maps().get(MapName::OldFlows).unwrap().max_entries(), 64);
    });
}

#[test]
fn what_an_earlier_version_left_goes_on_with_maps_that_it_did_not_have() {
    Lab::run(|here| {
        let key = FlowKey { source_port: 1, protocol: 6, ..FlowKey::default() };
        let flow = Flow { group: 1, ..Flow::default() };
        let instance = open(here).unwrap();
        instance.maps().get(MapName::Flows).unwrap().put_value(&key, &flow).unwrap();
        drop(instance);
        let maps = here.directory().path().join(format!("v{}/maps", sluice_common::LAYOUT));
        for name in ["NEWEST", "COUNTERS"] {
            std::fs::remove_file(maps.join(name)).unwrap();
        }
        // One counter less.
        let few = Counter::ALL.len() as u32 - 1;
        let mut earlier = aya::EbpfLoader::new().map_max_entries("COUNTERS", few).load(here.object).unwrap();
        let counters: &mut PerCpuArray<_, u64> =
            &mut earlier.map_mut("COUNTERS").unwrap().try_into().unwrap();
        let each = PerCpuValues::try_from(vec![7; aya::util::nr_cpus().unwrap()]).unwrap();
        counters.set(Counter::Rejected as u32, each, 0).unwrap();
        earlier.map_mut("COUNTERS").unwrap().pin(maps.join("COUNTERS")).unwrap();
        drop(earlier);
        let instance = open(here).unwrap();
        let found = instance.maps().get(MapName::Flows).unwrap().get_value::<FlowKey, Flow>(&key).unwrap();
        assert_eq!(found, Some(flow));
        assert!(instance.maps().get(MapName::Newest).unwrap().max_entries() > 1);
        assert_eq!(instance.maps().get(MapName::Counters).unwrap().max_entries(), few + 1);
        assert_eq!(count(&instance, Counter::Rejected), 7 * aya::util::nr_cpus().unwrap() as u64);
    });
}

#[test]
fn what_is_remembered_of_clients_survives_another_size() {
    Lab::run(|here| {
        let key = |group| AffinityKey { group, ..AffinityKey::default() };
        let affinity = |instance: &Instance| instance.maps().get(MapName::Affinity).unwrap();
        let instance = open_with(here, 10_000, true).unwrap();
        for group in 0..5_000u64 {
            affinity(&instance).put_value(&key(group), &Affinity::default()).unwrap();
        }
        drop(instance);
        let instance = open_with(here, 20_000, true).unwrap();
        assert_eq!(affinity(&instance).max_entries(), 20_000);
        assert_eq!(affinity(&instance).usage().unwrap().entries, 5_000);
        drop(instance);
        let instance = open_with(here, FLOWS, true).unwrap();
        let usage = affinity(&instance).usage().unwrap();
        assert!(usage.entries > 1_000 && usage.entries <= usage.capacity, "{usage:?}");
    });
}

#[test]
fn a_pin_of_another_kind_is_replaced() {
    Lab::run(|here| {
        let maps = here.directory().path().join(format!("v{}/maps", sluice_common::LAYOUT));
        drop(open(here).unwrap());
        std::fs::rename(maps.join("FLOWS"), maps.join("GROUPS")).unwrap();
        let instance = open(here).unwrap();
        instance.maps().get(MapName::Groups).unwrap().put_value(&4u64, &Group::default()).unwrap();
        assert_eq!(instance.maps().get(MapName::Flows).unwrap().max_entries(), flow_entries(FLOWS));
    });
}

#[test]
fn the_probe_finds_what_is_missing_and_leaves_nothing() {
    Lab::run(|here| {
        let missing = probe(here.object, &here.directory(), &here.cgroup);
        assert!(missing.is_empty(), "{missing:?}");
        assert!(!here.directory().exists());
        let cgroups = std::fs::read_dir(&here.cgroup).unwrap().flatten();
        assert_eq!(cgroups.filter(|entry| entry.path().is_dir()).count(), 0);
        let told = |directory: Directory, cgroup: PathBuf| {
            probe(here.object, &directory, &cgroup).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let elsewhere = told(Directory::new("/proc/none"), "/proc".into());
        assert_eq!(elsewhere.len(), 2, "{elsewhere:?}");
        assert!(elsewhere[0].starts_with("cgroup2: /proc is not a directory of a cgroup2"), "{elsewhere:?}");
        assert!(elsewhere[1].starts_with("bpf filesystem: /proc/none is not on"), "{elsewhere:?}");
        assert!(probe(b"nonsense", &here.directory(), &here.cgroup)[0].feature.contains("programs"));
    });
}

#[test]
fn the_probe_finds_a_cgroup_that_takes_no_programs() {
    Lab::run(|here| {
        // A program that allows no other, as older tools attach them.
        let pin = here.bpffs.join("other");
        let mut other = aya::EbpfLoader::new().btf(None).load(here.object).unwrap();
        let program: &mut aya::programs::CgroupSockAddr =
            other.program_mut("connect4").unwrap().try_into().unwrap();
        program.load().unwrap();
        program.pin(&pin).unwrap();
        let attach = format!("cgroup attach {} connect4 pinned {}", here.cgroup.display(), pin.display());
        lab::output("bpftool", &attach);
        let missing = probe(here.object, &here.directory(), &here.cgroup);
        assert_eq!(missing.len(), 1, "{missing:?}");
        assert!(
            missing[0].to_string().starts_with("programs at sockets (attach program connect4"),
            "{missing:?}"
        );
        lab::output("bpftool", &attach.replace("cgroup attach", "cgroup detach"));
    });
}

#[test]
fn everything_can_be_removed() {
    Lab::run(|here| {
        here.veth("v0", "v1");
        assert!(!here.directory().remove().unwrap());
        let mut instance = open(here).unwrap();
        instance.attach(devices(&["v0"])).unwrap();
        let held = here.links();
        assert_eq!(held.len(), 10);
        drop(instance);
        assert!(here.directory().remove().unwrap());
        assert!(!here.directory().path().exists());
        assert!(matches!(View::open(&here.directory()), Err(BpfError::Absent(_))));
    });
}

#[test]
fn what_others_have_in_the_directory_stays() {
    Lab::run(|here| {
        // The mount point itself, as with `bpffs: /sys/fs/bpf`.
        let root = Directory::new(&here.bpffs);
        let foreign = here.bpffs.join("tc/globals");
        std::fs::create_dir_all(&foreign).unwrap();
        assert!(!root.exists());
        assert!(!root.remove().unwrap());
        let mut instance = open_at(here, root.clone(), FLOWS, true).unwrap();
        std::fs::create_dir_all(here.bpffs.join("v0/links")).unwrap();
        let done = instance.attach(vec![]).unwrap();
        assert_eq!((done.attached, done.removed), (8, 1));
        assert!(root.exists() && foreign.exists() && !here.bpffs.join("v0").exists());
        instance.remove().unwrap();
        assert!(!root.exists() && foreign.exists());
        assert!(!root.remove().unwrap());
    });
}

/// As in a container that sees nothing else of the filesystem.
#[test]
fn a_directory_that_is_mounted_elsewhere_by_itself_is_enough() {
    Lab::run(|here| {
        let (own, seen) = (here.bpffs.join("sluice"), here.bpffs.with_extension("seen"));
        let foreign = here.bpffs.join("cilium");
        for directory in [&own, &seen, &foreign] {
            std::fs::create_dir(directory).unwrap();
        }
        let (none, bind) = (None::<&str>, nix::mount::MsFlags::MS_BIND);
        nix::mount::mount(Some(&own), &seen, none, bind, none).unwrap();
        let directory = Directory::new(&seen);
        let mut instance = open_at(here, directory.clone(), FLOWS, true).unwrap();
        instance.attach(devices(&[])).unwrap();
        assert!(directory.exists() && here.directory().exists());
        // What the container's successor finds, grows and takes over.
        drop(instance);
        open_at(here, directory.clone(), FLOWS, true).unwrap().attach(devices(&[])).unwrap();
        assert!(directory.remove().unwrap());
        assert!(!directory.exists() && !here.directory().exists() && foreign.exists());
        assert!(seen.exists(), "a place of a mount cannot be removed");
        nix::mount::umount2(&seen, nix::mount::MntFlags::MNT_DETACH).unwrap();
        std::fs::remove_dir(&seen).unwrap();
    });
}

#[test]
fn exactly_the_given_addresses_are_behind_links() {
    Lab::run(|here| {
        let instance = open(here).unwrap();
        let maps = instance.maps();
        let held = || {
            let map = maps.get(MapName::PodSources).unwrap();
            map.values::<PodSource, u32>().unwrap().into_iter().map(|(key, _)| key).collect::<BTreeSet<_>>()
        };
        let pod = |numbers: &[u32]| PodSources {
            addresses: numbers.iter().map(|number| Address::v4(*number)).collect(),
            are_all: true,
        };
        let source = |interface, address| PodSource { interface, address };
        let wanted = BTreeMap::from([(3, pod(&[8, 9])), (4, pod(&[1]))]);
        assert_eq!(set_pod_sources(maps, &wanted).unwrap(), 5);
        assert_eq!(set_pod_sources(maps, &wanted).unwrap(), 0);
        assert!(
            held().contains(&source(3, Address::v4(9))) && held().contains(&source(4, Address::default()))
        );
        assert_eq!(set_pod_sources(maps, &BTreeMap::from([(3, pod(&[8]))])).unwrap(), 3);
        assert_eq!(held(), BTreeSet::from([source(3, Address::v4(8)), source(3, Address::default())]));
        assert_eq!(set_pod_sources(maps, &BTreeMap::new()).unwrap(), 2);
        assert!(held().is_empty());
        // As many as the map has room for, then as many others, then more than that.
        let room = maps.get(MapName::PodSources).unwrap().max_entries();
        let many = |numbers: std::ops::Range<u32>| PodSources {
            addresses: numbers.map(Address::v4).collect(),
            are_all: false,
        };
        set_pod_sources(maps, &BTreeMap::from([(3, many(0..room))])).unwrap();
        set_pod_sources(maps, &BTreeMap::from([(4, many(0..room))])).unwrap();
        assert!(held().len() == room as usize && held().iter().all(|source| source.interface == 4));
        set_pod_sources(maps, &BTreeMap::from([(5, many(0..room + 1))])).unwrap_err();
        assert!(held().iter().all(|source| source.interface == 5), "who is gone has no address");
    });
}

#[test]
fn exactly_the_given_namespaces_are_left_alone() {
    Lab::run(|here| {
        let instance = open(here).unwrap();
        let maps = instance.maps();
        let held = || {
            let map = maps.get(MapName::Namespaces).unwrap();
            map.values::<u64, u32>().unwrap().into_iter().collect::<BTreeMap<_, _>>()
        };
        assert_eq!(leave_alone(maps, &BTreeSet::from([1, 2, 3])).unwrap(), 3);
        assert_eq!(held(), BTreeMap::from([(1, 1), (2, 1), (3, 1)]));
        assert_eq!(leave_alone(maps, &BTreeSet::from([2, 4])).unwrap(), 3);
        assert_eq!(held(), BTreeMap::from([(2, 1), (4, 1)]));
        assert_eq!(leave_alone(maps, &BTreeSet::from([2, 4])).unwrap(), 0);
        assert_eq!(leave_alone(maps, &BTreeSet::new()).unwrap(), 2);
        assert!(held().is_empty());
    });
}
