//! The programs with maps of their own, and the kernel's way of running one on a packet that never
//! was on a wire.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Mutex;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, PerCpuArray, PerCpuValues};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader, Pod};
use sluice::service::ebpf_object::OBJECT;
use sluice_common::Address;
use sluice_common::counters::Counter;
use sluice_common::flow::{ENDED, Flow, FlowKey, Fragment, FragmentKey, ORDER_AT, Order};
use sluice_common::maps::MapName;
use sluice_common::node::{Config, Interface, PodSource, address, interface, network as prefix, option};
use sluice_common::programs::END_FLOW;
use sluice_common::service::{
    Affinity, AffinityKey, Endpoint, EndpointKey, Frontend, FrontendKey, Group, MaglevTable, MemberKey,
    SOURCE_PREFIX, SourceKey, flag as frontend_flag, kind, list,
};
use sluice_skips::{in_namespaces, skip};
use sluice_sys::bpf::{Sizes, spec};

use crate::network::{self, FAMILIES, Family, INTERFACES, index, mac};
use crate::packets::{Body, Message, Packet};

/// What may be read from and written to maps. All types of `sluice-common` may.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Plain<T>(T);

// SAFETY: only types of sluice-common are wrapped, which have no padding and take any bit pattern,
// and integers.
unsafe impl<T: Copy + 'static> Pod for Plain<T> {}

/// The next program, or the stack.
pub(crate) const NEXT: i32 = -1;
pub(crate) const DROP: i32 = 2;
/// To where a helper said.
pub(crate) const REDIRECT: i32 = 7;

/// Objects that are loaded, for the next test: loading one takes long.
static LOADED: Mutex<Vec<Ebpf>> = Mutex::new(vec![]);

/// Sizes of the maps, which are allocated in full.
const SMALL: [(MapName, u32); 6] = [
    (MapName::OldFlows, 1_024),
    (MapName::Affinity, 1_024),
    (MapName::Fragments, 1_024),
    (MapName::Peers, 64),
    (MapName::TcpPeers, 64),
    (MapName::Picks, 64),
];

/// Connections that the flow table is made for.
pub(crate) const CONNECTIONS: u32 = 1_024;

/// Entries of a map that is made for so many.
pub(crate) fn entries_of(map: MapName) -> u32 {
    spec(map, Sizes { flows: CONNECTIONS }).entries
}

/// Loads the object.
pub(crate) fn load() -> Result<Ebpf, String> {
    let mut loader = EbpfLoader::new();
    for (map, entries) in SMALL {
        loader.map_max_entries(map.name(), entries);
    }
    for map in [MapName::Flows, MapName::Newest] {
        loader.map_max_entries(map.name(), entries_of(map));
    }
    loader.load(OBJECT).map_err(|error| format!("{error:?}"))
}

/// Whether this process may load programs; else says why not.
pub(crate) fn may_load() -> bool {
    match load() {
        Ok(_) => true,
        Err(error) if error.contains("PermissionDenied") => {
            skip("bpf", format_args!("CAP_BPF and CAP_NET_ADMIN ({error})"));
            false
        }
        Err(error) => panic!("{error}"),
    }
}

/// A node with programs.
pub(crate) struct World {
    ebpf: Option<Ebpf>,
}

/// Runs a test on a fresh node. Without root: a skip that says so.
pub(crate) fn on_a_node(test: impl FnOnce(&mut World) + Send + 'static) {
    in_namespaces(nix::sched::CloneFlags::CLONE_NEWNET, move || {
        network::furnish();
        let held = LOADED.lock().unwrap().pop();
        let ebpf = match held {
            Some(ebpf) => ebpf,
            None if !may_load() => return,
            None => {
                let mut ebpf = load().unwrap();
                for (_, program) in ebpf.programs_mut() {
                    if let Ok(program) = <&mut SchedClassifier>::try_from(program) {
                        program.load().unwrap();
                    }
                }
                ebpf
            }
        };
        let mut world = World { ebpf: Some(ebpf) };
        world.reset();
        test(&mut world);
        LOADED.lock().unwrap().extend(world.ebpf.take());
    });
}

/// An address as maps have it.
pub(crate) fn address_of(ip: IpAddr) -> Address {
    let octets = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    Address::from_octets(octets)
}

/// The key of a packet's flow.
pub(crate) fn key_of(packet: &Packet) -> FlowKey {
    let [source_port, destination_port] = packet.ports();
    FlowKey {
        source: address_of(packet.source),
        destination: address_of(packet.destination),
        source_port: source_port.to_be(),
        destination_port: destination_port.to_be(),
        protocol: u32::from(packet.protocol()),
    }
}

/// How a program is run.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) program: &'static str,
    /// The interface that the packet came in or goes out by.
    pub(crate) interface: &'a str,
    /// The interface that a packet that goes out came in by; none: a process of this node sends it.
    pub(crate) from: Option<&'a str>,
    /// Size of the segments that the packet stands for.
    pub(crate) segment: u32,
    /// The packet comes without a sum over all of it. A packet that is made longer or shorter loses
    /// its sum, which the kernel's check does not know.
    pub(crate) unsummed: bool,
}

/// Where packets come in.
pub(crate) const fn ingress(interface: &str) -> At<'_> {
    At { program: "ingress", interface, from: Some(interface), segment: 0, unsummed: false }
}

/// Where packets of the node's own go out.
pub(crate) const fn egress(interface: &str) -> At<'_> {
    At { program: "egress", interface, from: None, segment: 0, unsummed: false }
}

/// `struct bpf_attr` of `BPF_PROG_TEST_RUN`, of include/uapi/linux/bpf.h. The library's call has no
/// flags.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    reserved: u32,
}

const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
/// The packet comes with a sum over all of it, as from a card that computes it; the kernel checks
/// afterwards that the sum is still right.
const CHECKSUM_COMPLETE: u32 = 4;
/// Offsets in `struct __sk_buff`, and its size.
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;
const GSO_SEGS: usize = 164;
const GSO_SIZE: usize = 176;
const CONTEXT: usize = 192;

/// The group of endpoints that most tests use.
pub(crate) const GROUP: u64 = 0x40;
/// The service's port.
pub(crate) const PORT: u16 = 80;
/// Its node port.
pub(crate) const NODE_PORT: u16 = 30_080;
/// The endpoints' port.
pub(crate) const TARGET: u16 = 8_080;

impl World {
    pub(crate) fn ebpf(&mut self) -> &mut Ebpf {
        self.ebpf.as_mut().unwrap()
    }

    /// Runs a program; tells what it returned and what became of the packet. The kernel checks
    /// sums, if it can.
    pub(crate) fn run(&mut self, at: At<'_>, packet: &[u8]) -> (i32, Vec<u8>) {
        match self.try_run(at, packet, if at.unsummed { 0 } else { CHECKSUM_COMPLETE }) {
            Err(libc::EINVAL) => self.try_run(at, packet, 0),
            other => other,
        }
        .unwrap_or_else(|errno| {
            let errno = std::io::Error::from_raw_os_error(errno);
            panic!(
                "BPF_PROG_TEST_RUN: {errno} (bad message: the packet's whole sum is wrong)\n{}",
                show(packet)
            )
        })
    }

    /// The same; with `flags`, and an error number.
    pub(crate) fn try_run(&mut self, at: At<'_>, packet: &[u8], flags: u32) -> Result<(i32, Vec<u8>), i32> {
        let mut context = [0_u8; CONTEXT];
        let mut set = |offset: usize, value: u32| {
            context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        };
        set(IFINDEX, index(at.interface));
        set(INGRESS_IFINDEX, at.from.map_or(0, index));
        if at.segment > 0 {
            set(GSO_SIZE, at.segment);
            set(GSO_SEGS, (packet.len() as u32).div_ceil(at.segment));
        }
        let mut out = vec![0_u8; packet.len() + 256];
        let program: &SchedClassifier = self.ebpf().program(at.program).unwrap().try_into().unwrap();
        let mut attr = TestRun {
            program: program.fd().unwrap().as_fd().as_raw_fd() as u32,
            data_size_in: packet.len() as u32,
            data_size_out: out.len() as u32,
            data_in: packet.as_ptr() as u64,
            data_out: out.as_mut_ptr() as u64,
            repeat: 1,
            context_size_in: CONTEXT as u32,
            context_in: context.as_ptr() as u64,
            flags,
            ..TestRun::default()
        };
        // SAFETY: all buffers live until the call returns, and are as long as it says.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<TestRun>() as u32)
        };
        if result != 0 {
            return Err(std::io::Error::last_os_error().raw_os_error().unwrap());
        }
        out.truncate(attr.data_size_out as usize);
        Ok((attr.result as i32, out))
    }

    /// Runs a program on a packet that must pass or be dropped as it is.
    #[track_caller]
    pub(crate) fn expect_untouched(&mut self, at: At<'_>, packet: &Packet, code: i32) {
        self.expect(at, packet, code, &packet.bytes());
    }

    /// Runs a program on a packet and compares what comes out. Its Ethernet addresses say where it
    /// must go: see [`World::on_its_way`].
    #[track_caller]
    pub(crate) fn expect(&mut self, at: At<'_>, packet: &Packet, code: i32, out: &[u8]) {
        self.expect_bytes(at, &packet.bytes(), code, out);
    }

    /// The same with bytes.
    #[track_caller]
    pub(crate) fn expect_bytes(&mut self, at: At<'_>, packet: &[u8], code: i32, out: &[u8]) {
        let out = if code == REDIRECT { self.on_its_way(at, packet, out) } else { out.to_vec() };
        self.expect_exactly(at, packet, code, &out);
    }

    /// A packet as a program leaves it that sends it on, of a packet as it arrives there. Programs
    /// write the Ethernet addresses of what comes in and goes straight into a pod's namespace. For
    /// all others the kernel does, which asks neighbours again whose addresses are old: they leave
    /// the program with those that they came with.
    pub(crate) fn on_its_way(&mut self, at: At<'_>, packet: &[u8], arrives: &[u8]) -> Vec<u8> {
        let out = INTERFACES.into_iter().find(|name| arrives[6..12] == mac(name));
        let to_peer = at.program == ingress("").program
            && out
                .and_then(|name| self.get::<u32, Interface>("INTERFACES", index(name)))
                .is_some_and(|out| out.flags & interface::PEER != 0);
        let addresses = if to_peer { &arrives[..12] } else { &packet[..12] };
        [addresses, &arrives[12..]].concat()
    }

    /// The same, Ethernet addresses as the program leaves them.
    #[track_caller]
    pub(crate) fn expect_exactly(&mut self, at: At<'_>, packet: &[u8], code: i32, out: &[u8]) {
        let (returned, became) = self.run(at, packet);
        assert_eq!(returned, code, "{}", show(packet));
        if became != out {
            let differ: Vec<_> =
                became.iter().zip(out).enumerate().filter(|(_, (a, b))| a != b).take(20).collect();
            let [packet, became, out] = [packet, &became, out].map(show);
            panic!("in       {packet}\nout      {became}\nexpected {out}\ndiffer at {differ:02x?}");
        }
    }

    fn hash<K: Copy + 'static, V: Copy + 'static>(
        &mut self,
        name: &str,
    ) -> HashMap<&mut aya::maps::MapData, Plain<K>, Plain<V>> {
        HashMap::try_from(self.ebpf().map_mut(name).unwrap()).unwrap()
    }

    fn put<K: Copy + 'static, V: Copy + 'static>(&mut self, name: &str, key: K, value: V) {
        self.hash(name).insert(Plain(key), Plain(value), 0).unwrap();
    }

    fn get<K: Copy + 'static, V: Copy + 'static>(&mut self, name: &str, key: K) -> Option<V> {
        self.hash::<K, V>(name).get(&Plain(key), 0).ok().map(|value| value.0)
    }

    fn clear<K: Copy + 'static, V: Copy + 'static>(&mut self, name: &str) {
        let mut map = self.hash::<K, V>(name);
        let keys: Vec<_> = map.keys().map(Result::unwrap).collect();
        for key in keys {
            map.remove(&key).unwrap();
        }
    }

    fn clear_prefixes<K: Copy + 'static>(&mut self, name: &str) {
        let mut map: LpmTrie<_, Plain<K>, u32> = self.ebpf().map_mut(name).unwrap().try_into().unwrap();
        let keys: Vec<_> = map.keys().map(Result::unwrap).collect();
        for key in keys {
            map.remove(&key).unwrap();
        }
    }

    /// Empties all maps and tells the programs about the node of [`network`].
    pub(crate) fn reset(&mut self) {
        self.wipe();
        self.forget();
        self.clear::<FrontendKey, Frontend>("FRONTENDS");
        self.clear::<u64, Group>("GROUPS");
        self.clear::<EndpointKey, Endpoint>("ENDPOINTS");
        self.clear::<MemberKey, u32>("MEMBERS");
        self.clear::<u64, u32>("CURSORS");
        self.clear::<u64, MaglevTable>("MAGLEV");
        self.clear::<Address, u32>("ADDRESSES");
        self.clear::<u32, Interface>("INTERFACES");
        self.clear::<PodSource, u32>("POD_SOURCES");
        self.clear_prefixes::<SourceKey>("SOURCES");
        self.clear_prefixes::<Address>("NETWORKS");
        self.configure(|_| {});
        for family in FAMILIES {
            self.put("ADDRESSES", address_of(family.node()), address::OWN | address::NODE_PORTS);
            for ((network, bits), what) in
                [(family.service_network(), prefix::SERVICES), (family.pod_network(), prefix::PODS)]
            {
                let bits = if family == Family::V4 { bits + 96 } else { bits };
                self.networks().insert(&Key::new(bits, Plain(address_of(network))), what, 0).unwrap();
            }
        }
        for name in INTERFACES {
            self.interface(name, if name == "uplink" { 0 } else { interface::PEER });
        }
    }

    /// Tells the programs about an interface.
    pub(crate) fn interface(&mut self, name: &str, flags: u32) {
        let own = name == "uplink";
        let mut interface = Interface { flags, ..Interface::default() };
        if own {
            interface.address4 = address_of(Family::V4.node());
            interface.address6 = address_of(Family::V6.node());
        }
        self.put("INTERFACES", index(name), interface);
    }

    /// Makes an interface a port of a bridge that has an Ethernet address.
    pub(crate) fn port_of_bridge(&mut self, name: &str, [_, _, rest @ ..]: [u8; 6]) {
        let flags = interface::PEER | interface::BRIDGE_PORT;
        let interface = Interface { flags, bridge: u32::from_ne_bytes(rest), ..Interface::default() };
        self.put("INTERFACES", index(name), interface);
    }

    /// Adds flags to what programs know of an interface.
    pub(crate) fn flag(&mut self, name: &str, flags: u32) {
        let mut known: Interface = self.get("INTERFACES", index(name)).unwrap();
        known.flags |= flags;
        self.put("INTERFACES", index(name), known);
    }

    /// Says that a pod behind a port has an address; zero: and no other.
    pub(crate) fn pod_source(&mut self, name: &str, address: Address) {
        self.put("POD_SOURCES", PodSource { address, interface: index(name) }, 0_u32);
    }

    fn networks(&mut self) -> LpmTrie<&mut aya::maps::MapData, Plain<Address>, u32> {
        self.ebpf().map_mut("NETWORKS").unwrap().try_into().unwrap()
    }

    /// Empties what the programs write.
    pub(crate) fn forget(&mut self) {
        self.clear::<FlowKey, Flow>("FLOWS");
        self.clear::<FlowKey, Flow>("OLD_FLOWS");
        self.clear::<FragmentKey, Fragment>("FRAGMENTS");
        self.clear::<AffinityKey, Affinity>("AFFINITY");
        let mut counters: PerCpuArray<_, u64> = self.ebpf().map_mut("COUNTERS").unwrap().try_into().unwrap();
        let zeros = vec![0_u64; aya::util::nr_cpus().unwrap()];
        for counter in Counter::ALL {
            counters.set(*counter as u32, PerCpuValues::try_from(zeros.clone()).unwrap(), 0).unwrap();
        }
    }

    /// Empties the memory that the programs have for a packet's way, where they count the errors
    /// that they make.
    fn wipe(&mut self) {
        let Some(aya::maps::Map::PerCpuArray(map)) = self.ebpf().map("SCRATCH") else {
            panic!("a map of each CPU")
        };
        let size = map.info().unwrap().value_size().next_multiple_of(8) as usize;
        let zeros = vec![0_u64; size / 8 * aya::util::nr_cpus().unwrap()];
        let key = 0_u32;
        let attr = [map.fd().as_fd().as_raw_fd() as u64, &raw const key as u64, zeros.as_ptr() as u64, 0];
        // SAFETY: the attributes of BPF_MAP_UPDATE_ELEM, whose buffers live until the call returns.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_ELEM, attr.as_ptr(), size_of_val(&attr) as u32)
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    /// Writes the configuration: a usual one that is changed.
    pub(crate) fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = Config {
            options: option::DETECTS4 | option::DETECTS6,
            address4: address_of(Family::V4.node()),
            address6: address_of(Family::V6.node()),
            ports: 3_000,
            first_begin: 20_000,
            first_count: 2_000,
            second_begin: 60_001,
            udp_timeout: 30,
            udp_stream_timeout: 180,
            tcp_established_timeout: 86_400,
            newest: entries_of(MapName::Newest) - 1,
            ..Config::default()
        };
        change(&mut config);
        let mut map: Array<_, Plain<Config>> = self.ebpf().map_mut("CONFIG").unwrap().try_into().unwrap();
        map.set(0, Plain(config), 0).unwrap();
    }

    /// Writes a frontend.
    pub(crate) fn frontend(&mut self, key: FrontendKey, frontend: Frontend) {
        self.put("FRONTENDS", key, frontend);
    }

    /// Writes a service whose clients all get the same, on all of its addresses and for both
    /// protocols: ports are [`PORT`] and [`NODE_PORT`], and both lists are the same.
    pub(crate) fn service(&mut self, family: Family, what: u8, endpoints: &[IpAddr]) {
        let frontend = Frontend { group: GROUP, affinity: 0, pod: what, host: what, other: what, flags: 0 };
        for protocol in [6, 17] {
            self.frontend(address_key(family.cluster_ip(), PORT, protocol), frontend);
            self.frontend(address_key(family.load_balancer(), PORT, protocol), frontend);
            self.frontend(node_port_key(family, NODE_PORT, protocol), frontend);
        }
        let marker = Frontend { group: 0, flags: frontend_flag::CLUSTER_IP, ..frontend };
        self.frontend(address_key(family.cluster_ip(), 0, 0), marker);
        let endpoints: Vec<_> = endpoints.iter().map(|ip| (*ip, TARGET)).collect();
        self.endpoints(GROUP | list::CLUSTER, &endpoints);
        self.endpoints(GROUP | list::LOCAL, &endpoints);
    }

    /// Writes a list of endpoints, as members too.
    pub(crate) fn endpoints(&mut self, group: u64, endpoints: &[(IpAddr, u16)]) {
        let members: Vec<_> = self.hash::<MemberKey, u32>("MEMBERS").keys().map(Result::unwrap).collect();
        for key in members.into_iter().filter(|key| key.0.group == group) {
            self.hash::<MemberKey, u32>("MEMBERS").remove(&key).unwrap();
        }
        self.put("GROUPS", group, Group { count: endpoints.len() as u32, reserved: 0 });
        for (slot, (ip, port)) in endpoints.iter().enumerate() {
            let (address, port) = (address_of(*ip), port.to_be());
            let key = EndpointKey { group, slot: slot as u32, reserved: 0 };
            self.put("ENDPOINTS", key, Endpoint { address, port, reserved: 0 });
            self.put("MEMBERS", MemberKey { group, address, port, reserved: [0; 3] }, 0_u32);
        }
    }

    /// Lets a network use a filtered frontend.
    pub(crate) fn allow(&mut self, frontend: FrontendKey, network: (IpAddr, u32)) {
        let bits = if network.0.is_ipv4() { network.1 + 96 } else { network.1 };
        let mut map: LpmTrie<_, Plain<SourceKey>, u32> =
            self.ebpf().map_mut("SOURCES").unwrap().try_into().unwrap();
        let data = SourceKey { frontend, source: address_of(network.0) };
        map.insert(&Key::new(SOURCE_PREFIX + bits, Plain(data)), 0, 0).unwrap();
    }

    /// Makes a group take turns.
    pub(crate) fn cursor(&mut self, group: u64) {
        self.put("CURSORS", group, 0_u32);
    }

    /// Writes a group's Maglev table.
    pub(crate) fn maglev(&mut self, group: u64, table: MaglevTable) {
        self.put("MAGLEV", group, table);
    }

    /// The flow of a packet.
    pub(crate) fn flow(&mut self, packet: &Packet) -> Option<Flow> {
        self.get("FLOWS", key_of(packet))
    }

    /// Writes the flow of a packet.
    pub(crate) fn set_flow(&mut self, packet: &Packet, flow: Flow) {
        self.put("FLOWS", key_of(packet), flow);
    }

    /// Drops one entry, as a full table does.
    pub(crate) fn drop_flow(&mut self, packet: &Packet) {
        self.hash::<FlowKey, Flow>("FLOWS").remove(&Plain(key_of(packet))).unwrap();
    }

    /// Runs the program that ends flows for the daemon; returns whether it did.
    pub(crate) fn end_flow(&mut self, order: &Order) -> bool {
        let mut packet = [0; ORDER_AT as usize + size_of::<Order>()];
        // SAFETY: without padding every byte of the order is initialised, and the slice is as long
        // as the order.
        packet[ORDER_AT as usize..].copy_from_slice(unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(order).cast(), size_of::<Order>())
        });
        let (code, _) = self.try_run(At { program: END_FLOW, ..ingress("uplink") }, &packet, 0).unwrap();
        code as u32 == ENDED
    }

    /// Number of entries of the table of before.
    pub(crate) fn old_flows(&mut self) -> usize {
        self.hash::<FlowKey, Flow>("OLD_FLOWS").keys().count()
    }

    /// Moves all flows to the table of before.
    pub(crate) fn retire_flows(&mut self) {
        let all: Vec<_> = self.hash::<FlowKey, Flow>("FLOWS").iter().map(Result::unwrap).collect();
        for (key, flow) in all {
            self.put("OLD_FLOWS", key.0, flow.0);
        }
        self.clear::<FlowKey, Flow>("FLOWS");
    }

    /// Number of entries of the flow table.
    pub(crate) fn flows(&mut self) -> usize {
        self.hash::<FlowKey, Flow>("FLOWS").keys().count()
    }

    /// What is remembered of a client.
    pub(crate) fn affinity(&mut self, client: IpAddr) -> Option<Affinity> {
        self.get("AFFINITY", AffinityKey { group: GROUP, client: address_of(client) })
    }

    /// Writes what is remembered of a client.
    pub(crate) fn set_affinity(&mut self, client: IpAddr, affinity: Affinity) {
        self.put("AFFINITY", AffinityKey { group: GROUP, client: address_of(client) }, affinity);
    }

    /// Number of fragmented packets that are remembered.
    pub(crate) fn fragments(&mut self) -> usize {
        self.hash::<FragmentKey, Fragment>("FRAGMENTS").keys().count()
    }

    /// A counter, of all CPUs together.
    pub(crate) fn counter(&mut self, counter: Counter) -> u64 {
        let map: PerCpuArray<_, u64> = self.ebpf().map_mut("COUNTERS").unwrap().try_into().unwrap();
        map.get(&(counter as u32), 0).unwrap().iter().sum()
    }
}

/// A packet for an error message.
fn show(packet: &[u8]) -> String {
    let shown: String = packet.iter().take(120).map(|byte| format!("{byte:02x} ")).collect();
    format!("({} bytes) {shown}", packet.len())
}

/// The key of a frontend of an address.
pub(crate) fn address_key(ip: IpAddr, port: u16, protocol: u8) -> FrontendKey {
    FrontendKey { address: address_of(ip), port: port.to_be(), protocol, kind: kind::ADDRESS }
}

/// The key of a node port.
pub(crate) fn node_port_key(family: Family, port: u16, protocol: u8) -> FrontendKey {
    FrontendKey { kind: kind::NODE_PORT, ..address_key(family.unspecified(), port, protocol) }
}

/// A time of `CLOCK_MONOTONIC` so many seconds ago. A machine that has just booted has none: waits
/// until there is one.
pub(crate) fn ago(seconds: u64) -> u64 {
    let nanos = seconds * 1_000_000_000;
    let missing = (nanos + 1).saturating_sub(now());
    std::thread::sleep(std::time::Duration::from_nanos(missing));
    now() - nanos
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub(crate) fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes a time to where it is told.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) }, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Runs a program on a packet that the node must answer with an ICMP error.
#[track_caller]
pub(crate) fn expect_answer(
    world: &mut World,
    family: Family,
    mut at: At<'_>,
    packet: &Packet,
    from: IpAddr,
    message: Message,
) {
    at.unsummed = true;
    let quoted = family.header() + 28;
    let mut error = packet.error(from, message, quoted).by(packet.to, packet.from);
    error.identification = 0;
    error.dont_fragment = false;
    error.tos = if family == Family::V4 { 0xc0 } else { 0 };
    if let Body::Icmp(_, quote) = &mut error.body {
        quote.resize(quoted, 0);
    }
    world.expect_exactly(at, &packet.bytes(), REDIRECT, &error.bytes());
}
