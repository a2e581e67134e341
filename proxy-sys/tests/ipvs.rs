//! The ports of the IPVS backend against the real kernel, each test in a network namespace of its
//! own.
#![expect(clippy::unwrap_used, clippy::panic, reason = "integration tests fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use sluice_core::ipvs::{
    Destination, DestinationKey, ObservedServer, Op, SchedulerName, Server, ServerFlags, ServerKey,
};
use sluice_core::net::{Family, Protocol};
use sluice_skips::{in_namespaces, skip};
use sluice_sys::dummy::{AddressChange, Link, LinkError};
use sluice_sys::ipvs::{Ipvs, IpvsError, Timeouts, sysctls};
use sluice_sys::netlink::BatchError;

/// Runs a test in a fresh network namespace. Without root: a skip that says so.
fn in_netns(test: impl FnOnce() + Send + 'static) {
    in_namespaces(nix::sched::CloneFlags::CLONE_NEWNET, || {
        // Where there is no address at all, no destination is one of a host (EINVAL).
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        test();
    });
}

/// One test after another: the kernel's lists of servers count those of all network namespaces, so
/// that what one adds and deletes makes it tell another a server twice, or not at all.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs a test with the IPVS of a fresh network namespace. Where the kernel has none: a skip that
/// says so.
fn with_ipvs(test: impl FnOnce(Ipvs) + Send + 'static) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    in_netns(|| match Ipvs::open() {
        Ok(ipvs) => test(ipvs),
        Err(IpvsError::Missing(error)) => skip("ipvs", error),
        Err(error) => panic!("{error}"),
    });
}

/// Runs a test with a dummy link in a fresh network namespace. Where the kernel has none: a skip
/// that says so.
fn with_link(test: impl FnOnce(Link) + Send + 'static) {
    in_netns(|| match Link::open("sluice-test0") {
        Ok(link) => test(link),
        Err(LinkError::Missing(error)) => skip("dummy", error),
        Err(error) => panic!("{error}"),
    });
}

/// Tells the first refusal only: all of them would be many.
fn done<T: std::fmt::Debug>(applied: Result<(), BatchError<T>>) {
    if let Err(error) = applied {
        panic!("{error}");
    }
}

fn scheduler(name: &str) -> SchedulerName {
    SchedulerName::new(name).unwrap()
}

fn server(key: ServerKey) -> Server {
    Server { key, scheduler: scheduler("rr"), flags: ServerFlags::NONE, persistence: None }
}

fn at(ip: &str, protocol: Protocol, port: u16) -> ServerKey {
    ServerKey::Address(ip.parse().unwrap(), protocol, port)
}

fn to(ip: &str, port: u16, weight: u32) -> Destination {
    Destination { key: DestinationKey { address: ip.parse().unwrap(), port }, weight }
}

/// Servers with their destinations, as they are written.
type Table = BTreeMap<Server, BTreeSet<Destination>>;

fn table(observed: Vec<ObservedServer>) -> Table {
    let exact = |server: &ObservedServer| {
        server.is_exact && server.destinations.iter().all(|destination| destination.is_exact)
    };
    assert!(observed.iter().all(exact), "{observed:?}");
    let one = |server: ObservedServer| {
        (server.server, server.destinations.into_iter().map(|observed| observed.destination).collect())
    };
    observed.into_iter().map(one).collect()
}

fn adding(table: &Table) -> Vec<Op> {
    let one = |(server, destinations): (&Server, &BTreeSet<Destination>)| {
        let key = server.key;
        let destinations: Vec<Op> = destinations.iter().map(|to| Op::AddDestination(key, *to)).collect();
        std::iter::once(Op::AddServer(*server)).chain(destinations).collect::<Vec<_>>()
    };
    table.iter().flat_map(one).collect()
}

/// One of each kind: both families, all protocols, marks, persistence, flags, weights.
fn variety() -> Table {
    let v4 =
        BTreeSet::from([to("10.244.0.1", 8080, 1), to("10.244.0.1", 8081, 0), to("10.244.1.9", 8080, 65535)]);
    let v6 = BTreeSet::from([to("fd00:10:244::1", 53, 1), to("fd00:10:244::2", 53, 7)]);
    let hashed = Server {
        scheduler: scheduler("mh"),
        flags: ServerFlags::HASH_SOURCE_PORT | ServerFlags::HASH_FALLBACK,
        ..server(at("10.96.0.2", Protocol::Tcp, 443))
    };
    let single = Server { flags: ServerFlags::ONE_PACKET, ..server(at("10.96.0.3", Protocol::Udp, 53)) };
    let held = |key| Server { persistence: Some(10800), ..server(key) };
    Table::from([
        (server(at("10.96.0.1", Protocol::Tcp, 443)), v4.clone()),
        (hashed, v4.clone()),
        (single, v4.clone()),
        (held(at("10.96.0.1", Protocol::Udp, 443)), v4.clone()),
        (server(at("10.96.0.1", Protocol::Sctp, 443)), BTreeSet::new()),
        (held(at("fd00:10:96::1", Protocol::Tcp, 53)), v6.clone()),
        (server(at("fd00:10:96::1", Protocol::Udp, 53)), v6.clone()),
        (held(ServerKey::Mark(Family::V4, 0x4000)), v4),
        (server(ServerKey::Mark(Family::V6, 0x4000)), v6),
    ])
}

fn delete_all(ipvs: &mut Ipvs) {
    let servers = ipvs.servers().unwrap();
    let deletions: Vec<Op> = servers.iter().map(|observed| Op::DeleteServer(observed.server.key)).collect();
    done(ipvs.apply(&deletions));
}

#[test]
fn what_is_written_is_read_back() {
    with_ipvs(|mut ipvs| {
        let written = variety();
        done(ipvs.apply(&adding(&written)));
        assert_eq!(table(ipvs.dump().unwrap()), written);
        let outside = std::process::Command::new("ipvsadm").arg("-Ln").output();
        match outside {
            Ok(output) => println!("{}", String::from_utf8_lossy(&output.stdout)),
            Err(error) => println!("ipvsadm: {error}"),
        }
        delete_all(&mut ipvs);
        assert_eq!(ipvs.dump().unwrap(), vec![]);
        assert_eq!(ipvs.destinations(&at("10.96.0.1", Protocol::Tcp, 443)).unwrap(), vec![]);
    });
}

/// Adds and deletes servers in a network namespace of its own until it is told to end.
fn churn(end: &AtomicBool) {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let mut ipvs = Ipvs::open().unwrap();
    let keys: Vec<ServerKey> =
        (1..=250).map(|host| at(&format!("10.97.0.{host}"), Protocol::Tcp, 80)).collect();
    while !end.load(Ordering::Relaxed) {
        done(ipvs.apply(&keys.iter().map(|key| Op::AddServer(server(*key))).collect::<Vec<_>>()));
        done(ipvs.apply(&keys.iter().map(|key| Op::DeleteServer(*key)).collect::<Vec<_>>()));
    }
}

/// Ends with the test, however that ends.
struct Churn {
    thread: Option<std::thread::JoinHandle<()>>,
    end: Arc<AtomicBool>,
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the other namespace failed");
    }
}

#[test]
fn servers_are_listed_once_while_other_namespaces_change_theirs() {
    with_ipvs(|mut ipvs| {
        let keys: BTreeSet<ServerKey> =
            (0..1000).map(|i| at(&format!("10.96.{}.{}", i / 250, i % 250), Protocol::Tcp, 80)).collect();
        done(ipvs.apply(&keys.iter().map(|key| Op::AddServer(server(*key))).collect::<Vec<_>>()));
        let end = Arc::new(AtomicBool::new(false));
        let other = Churn {
            thread: Some(std::thread::spawn({
                let end = Arc::clone(&end);
                move || churn(&end)
            })),
            end,
        };
        for _ in 0..20 {
            let told: Vec<ServerKey> =
                ipvs.servers().unwrap().into_iter().map(|observed| observed.server.key).collect();
            let distinct: BTreeSet<ServerKey> = told.iter().copied().collect();
            assert_eq!(told.len(), distinct.len(), "{} told", told.len());
            assert!(distinct.is_subset(&keys));
        }
        drop(other);
    });
}

#[test]
fn servers_and_destinations_change_in_place() {
    with_ipvs(|mut ipvs| {
        let key = at("10.96.0.1", Protocol::Tcp, 80);
        let (first, second) = (to("10.244.0.1", 80, 1), to("10.244.0.2", 80, 1));
        let held = Server { persistence: Some(60), scheduler: scheduler("sh"), ..server(key) };
        let add = |to| Op::AddDestination(key, to);
        done(ipvs.apply(&[Op::AddServer(held), add(first), add(second)]));
        let idle = Destination { weight: 0, ..first };
        let change = [
            Op::SetServer(server(key)),
            Op::SetDestination(key, idle),
            Op::DeleteDestination(key, second.key),
            add(to("10.244.0.3", 80, 1)),
        ];
        done(ipvs.apply(&change));
        let expected = Table::from([(server(key), BTreeSet::from([idle, to("10.244.0.3", 80, 1)]))]);
        assert_eq!(table(ipvs.dump().unwrap()), expected);
        done(ipvs.apply(&[Op::DeleteServer(key)]));
        assert_eq!(ipvs.dump().unwrap(), vec![]);
    });
}

#[test]
fn refused_operations_are_named_and_the_others_done() {
    with_ipvs(|mut ipvs| {
        let (key, missing) = (at("10.96.0.1", Protocol::Tcp, 80), at("10.96.0.9", Protocol::Tcp, 80));
        let (there, absent) = (to("10.244.0.1", 80, 1), to("10.244.0.9", 80, 1));
        let unknown = Server { scheduler: scheduler("none-such"), ..server(missing) };
        let ops = [
            (Op::AddServer(server(key)), None),
            (Op::AddServer(server(key)), Some(libc::EEXIST)),
            (Op::AddServer(unknown), Some(libc::ENOENT)),
            (Op::SetServer(server(missing)), Some(libc::ESRCH)),
            (Op::DeleteServer(missing), Some(libc::ESRCH)),
            (Op::AddDestination(key, there), None),
            (Op::AddDestination(key, there), Some(libc::EEXIST)),
            (Op::AddDestination(missing, there), Some(libc::ESRCH)),
            (Op::AddDestination(key, to("224.0.0.1", 80, 1)), Some(libc::EINVAL)),
            (Op::SetDestination(key, absent), Some(libc::ENOENT)),
            (Op::DeleteDestination(key, absent.key), Some(libc::ENOENT)),
            (Op::AddDestination(key, Destination { weight: 1 << 31, ..absent }), Some(libc::ERANGE)),
            (Op::AddDestination(key, to("10.244.0.2", 80, 1)), None),
        ];
        let Err(BatchError::Refused(refusals)) = ipvs.apply(&ops.map(|(op, _)| op)) else {
            panic!("refused")
        };
        let refused: Vec<_> =
            refusals.0.iter().map(|refusal| (refusal.item, refusal.error.errno())).collect();
        let expected: Vec<_> = ops.into_iter().filter(|(_, errno)| errno.is_some()).collect();
        assert_eq!(refused, expected);
        let text = BatchError::from(refusals).to_string();
        assert!(
            text.starts_with("add virtual server tcp 10.96.0.1:80 with scheduler rr: kernel says"),
            "{text}"
        );
        assert!(text.ends_with(", and 9 more were refused"), "{text}");
        let expected = Table::from([(server(key), BTreeSet::from([there, to("10.244.0.2", 80, 1)]))]);
        assert_eq!(table(ipvs.dump().unwrap()), expected);
    });
}

#[test]
fn all_refusals_of_a_large_batch_are_reported() {
    with_ipvs(|mut ipvs| {
        let ops: Vec<Op> = (0..20_000)
            .map(|i| {
                let [a, b, ..] = u16::to_be_bytes(i);
                Op::DeleteServer(at(&format!("10.96.{a}.{b}"), Protocol::Tcp, 80))
            })
            .collect();
        let Err(BatchError::Refused(refusals)) = ipvs.apply(&ops) else { panic!("refused") };
        assert_eq!(refusals.0.into_iter().map(|refusal| refusal.item).collect::<Vec<_>>(), ops);
    });
}

#[test]
fn schedulers_are_tried() {
    with_ipvs(|mut ipvs| {
        for name in ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh"] {
            assert!(ipvs.has_scheduler(scheduler(name)).unwrap(), "{name}");
        }
        assert!(!ipvs.has_scheduler(scheduler("none-such")).unwrap());
        // Somebody was killed in between.
        done(ipvs.apply(&[Op::AddServer(server(at("198.51.100.0", Protocol::Tcp, 20000)))]));
        assert!(ipvs.has_scheduler(scheduler("wlc")).unwrap());
        assert_eq!(ipvs.dump().unwrap(), vec![]);
    });
}

#[test]
fn settings_are_read_back() {
    with_ipvs(|mut ipvs| {
        let info = ipvs.info().unwrap();
        assert_eq!(info.version, (1, 2, 1));
        assert!(info.table_size.is_power_of_two());
        let before = ipvs.timeouts().unwrap();
        assert!(before.tcp > 0 && before.tcp_fin > 0 && before.udp > 0);
        ipvs.set_timeouts(Timeouts { udp: 77, ..Timeouts::default() }).unwrap();
        assert_eq!(ipvs.timeouts().unwrap(), Timeouts { udp: 77, ..before });
        ipvs.set_timeouts(Timeouts::default()).unwrap();
        assert_eq!(ipvs.timeouts().unwrap(), Timeouts { udp: 77, ..before });
        let changed = sysctls::apply(true).unwrap();
        assert!(changed.contains(&("net.ipv4.vs.conntrack", "1")), "{changed:?}");
        assert_eq!(sysctls::apply(true).unwrap(), vec![]);
    });
}

#[test]
fn ten_thousand_servers_with_ten_destinations_each() {
    with_ipvs(|mut ipvs| {
        let mut all = Table::new();
        for i in 0..10_000u32 {
            let [.., a, b] = i.to_be_bytes();
            let destinations = (1..=10).map(|e| to(&format!("10.{e}.{a}.{b}"), 8080, 1)).collect();
            all.insert(server(at(&format!("10.96.{a}.{b}"), Protocol::Tcp, 80)), destinations);
        }
        let ops = adding(&all);
        timed("add 10,000 servers with 100,000 destinations", || done(ipvs.apply(&ops)));
        let observed = timed("dump them", || ipvs.dump().unwrap());
        assert_eq!(table(observed), all);
        let key = at("10.96.0.0", Protocol::Tcp, 80);
        let one = [
            Op::AddDestination(key, to("10.11.0.0", 8080, 1)),
            Op::DeleteDestination(key, to("10.1.0.0", 8080, 1).key),
        ];
        timed("change one", || done(ipvs.apply(&one)));
        let idle: Vec<Op> = all
            .iter()
            .flat_map(|(server, to)| to.iter().map(|to| (server.key, *to)))
            .filter(|(server, _)| *server != key)
            .map(|(server, to)| Op::SetDestination(server, Destination { weight: 0, ..to }))
            .collect();
        timed("give 99,990 destinations weight 0", || done(ipvs.apply(&idle)));
        let deletions: Vec<Op> = all.keys().take(5000).map(|server| Op::DeleteServer(server.key)).collect();
        timed("delete 5,000 servers", || done(ipvs.apply(&deletions)));
        timed("delete the others", || delete_all(&mut ipvs));
        assert_eq!(ipvs.dump().unwrap(), vec![]);
    });
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    println!("{what}: {:.3} s", start.elapsed().as_secs_f64());
    result
}

fn binding(addresses: &BTreeSet<IpAddr>) -> impl Iterator<Item = (IpAddr, AddressChange)> {
    addresses.iter().map(|ip| (*ip, AddressChange::Bind(*ip)))
}

fn unbind(addresses: &BTreeSet<IpAddr>) -> impl Iterator<Item = (IpAddr, AddressChange)> {
    addresses.iter().map(|ip| (*ip, AddressChange::Unbind(*ip)))
}

/// The entries of the tables of local routes.
fn local_routes() -> usize {
    let lines = |family: &str| {
        let output = std::process::Command::new("ip")
            .args([family, "route", "show", "table", "local"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().lines().filter(|line| line.contains("sluice-test0")).count()
    };
    lines("-4") + lines("-6")
}

#[test]
fn addresses_of_the_link_are_the_node_s() {
    with_link(|mut link| {
        assert_eq!(link.addresses().unwrap(), BTreeSet::new());
        let wanted: BTreeSet<IpAddr> =
            ["10.96.0.1", "10.96.0.2", "fd00:10:96::1"].map(|ip| ip.parse().unwrap()).into();
        done(link.apply(binding(&wanted)));
        // Again, as somebody who does not know would.
        done(link.apply(binding(&wanted)));
        let mut again = Link::open("sluice-test0").unwrap();
        assert_eq!(again.index(), link.index());
        assert_eq!(again.addresses().unwrap(), wanted);
        wait_for_routes(3);
        for ip in &wanted {
            // An address that is not the node's cannot be bound to.
            std::net::UdpSocket::bind((*ip, 0)).unwrap();
        }
        let gone = BTreeSet::from(["10.96.0.1".parse().unwrap(), "fd00:10:96::1".parse().unwrap()]);
        done(link.apply(unbind(&gone)));
        done(link.apply(unbind(&gone)));
        assert_eq!(link.addresses().unwrap(), &wanted - &gone);
        wait_for_routes(1);
        let multicast: IpAddr = "ff02::1".parse().unwrap();
        let refused = link.apply(binding(&BTreeSet::from([multicast])));
        let Err(BatchError::Refused(refusals)) = refused else { panic!("refused") };
        assert_eq!(refusals.0.iter().map(|refusal| refusal.item).collect::<Vec<_>>(), [multicast]);
        link.delete().unwrap();
        assert!(Link::find("sluice-test0").unwrap().is_none());
        assert_eq!(local_routes(), 0);
    });
}

/// The kernel makes routes for IPv6 a moment later.
fn wait_for_routes(count: usize) {
    let start = Instant::now();
    while local_routes() != count {
        assert!(start.elapsed().as_secs() < 30, "{} routes instead of {count}", local_routes());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn another_kind_of_link_is_left_alone() {
    in_netns(|| {
        let arguments = ["link", "add", "sluice-test0", "type", "veth", "peer", "name", "other"];
        assert!(std::process::Command::new("ip").args(arguments).status().unwrap().success());
        let Err(error) = Link::open("sluice-test0") else { panic!("no dummy link") };
        assert_eq!(error.to_string(), "interface sluice-test0 is of kind \"veth\", not a dummy link");
        assert!(Link::find("sluice-test1").unwrap().is_none());
    });
}

#[test]
fn ten_thousand_addresses() {
    with_link(|mut link| {
        let of = |text: &dyn Fn(u32) -> String| -> BTreeSet<IpAddr> {
            (0..10_000).map(|i| text(i).parse().unwrap()).collect()
        };
        let v4 = of(&|i| format!("10.96.{}.{}", i / 256, i % 256));
        let v6 = of(&|i| format!("fd00:10:96::{i:x}"));
        timed("bind 10,000 addresses of IPv4", || done(link.apply(binding(&v4))));
        timed("bind 10,000 addresses of IPv6", || done(link.apply(binding(&v6))));
        timed("wait for their routes", || wait_for_routes(20_000));
        let all = timed("list them", || link.addresses().unwrap());
        assert_eq!(all, &v4 | &v6);
        timed("unbind those of IPv4", || done(link.apply(unbind(&v4))));
        timed("bind them again", || done(link.apply(binding(&v4))));
        // Each takes the kernel a look at all routes.
        let few = v6.iter().copied().take(1000).collect();
        timed("unbind 1,000 of IPv6", || done(link.apply(unbind(&few))));
        assert_eq!(link.addresses().unwrap().len(), 19_000);
        timed("delete the link", || link.delete().unwrap());
        assert_eq!(local_routes(), 0);
    });
}

// What becomes of new connections while a destination is being drained.

const FRONTEND: &str = "10.96.0.1";
const ENDPOINTS: [&str; 2] = ["10.244.0.1", "10.244.0.2"];

/// Two endpoints that answer with their number and close, and a network of clients, all of them on
/// the loopback.
fn endpoints() {
    for address in [FRONTEND, ENDPOINTS[0], ENDPOINTS[1], "192.0.2.1/24"] {
        let arguments = ["address", "add", address, "dev", "lo"];
        assert!(std::process::Command::new("ip").args(arguments).status().unwrap().success());
    }
    for (number, address) in ENDPOINTS.iter().enumerate() {
        let listener = TcpListener::bind((*address, 8080)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client may be gone already.
                let _ = stream.and_then(|mut stream| stream.write_all(&[number as u8]));
            }
        });
    }
}

/// Which endpoint answers a client; `None`: the connection is refused.
fn ask(client: &str) -> Option<usize> {
    let (family, none) = (AddressFamily::Inet, SockFlag::empty());
    let socket = socket(family, SockType::Stream, none, None).unwrap();
    setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
    let address = |text: &str| SockaddrIn::from(text.parse::<SocketAddrV4>().unwrap());
    bind(socket.as_raw_fd(), &address(client)).unwrap();
    match connect(socket.as_raw_fd(), &address("10.96.0.1:80")) {
        Ok(()) => {}
        Err(nix::errno::Errno::ECONNREFUSED) => return None,
        Err(error) => panic!("{client}: {error}"),
    }
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    Some(usize::from(answer[0]))
}

fn frontend() -> ServerKey {
    at(FRONTEND, Protocol::Tcp, 80)
}

fn weigh(ipvs: &mut Ipvs, endpoint: usize, weight: u32) {
    done(ipvs.apply(&[Op::SetDestination(frontend(), to(ENDPOINTS[endpoint], 8080, weight))]));
}

/// Makes the virtual server anew, with both endpoints.
fn serve(ipvs: &mut Ipvs, server: Server) {
    delete_all(ipvs);
    let destinations = ENDPOINTS.map(|address| to(address, 8080, 1)).into();
    done(ipvs.apply(&adding(&Table::from([(server, destinations)]))));
}

#[test]
fn schedulers_by_hash_need_a_fallback_for_what_is_being_drained() {
    with_ipvs(|mut ipvs| {
        endpoints();
        sysctls::apply(false).unwrap();
        for name in ["mh", "sh"] {
            if !ipvs.has_scheduler(scheduler(name)).unwrap() {
                skip(&format!("ipvs-{name}"), "the kernel has no such scheduler");
                continue;
            }
            let answers = |ipvs: &mut Ipvs, flags| {
                serve(ipvs, Server { scheduler: scheduler(name), flags, ..server(frontend()) });
                weigh(ipvs, 1, 0);
                (1..=24).map(|client| ask(&format!("192.0.2.{client}:0"))).collect::<BTreeSet<_>>()
            };
            let without = answers(&mut ipvs, ServerFlags::NONE);
            assert_eq!(without, BTreeSet::from([None, Some(0)]), "{name}");
            let with = answers(&mut ipvs, ServerFlags::HASH_FALLBACK);
            assert_eq!(with, BTreeSet::from([Some(0)]), "{name}");
        }
    });
}

#[test]
fn known_clients_and_reused_ports_leave_what_is_being_drained() {
    with_ipvs(|mut ipvs| {
        endpoints();
        sysctls::apply(false).unwrap();
        for (persistence, client) in [(Some(10_800), "192.0.2.7:0"), (None, "192.0.2.8:40000")] {
            serve(&mut ipvs, Server { persistence, ..server(frontend()) });
            let first = ask(client).unwrap();
            weigh(&mut ipvs, first, 0);
            assert_eq!(ask(client), Some(1 - first), "{client}");
        }
    });
}
