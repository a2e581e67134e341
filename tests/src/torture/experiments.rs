//! The experiments of each network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::agent::trial::{Datagram, Socket, What};
use crate::target::From;

use super::judged::Judged;
use super::settings::{Kind, SERVICES, Setting};

/// One experiment.
pub(super) struct Experiment {
    pub(super) name: String,
    pub(super) v6: bool,
    /// It is one of the few that CI runs.
    pub(super) short: bool,
    /// Who asks.
    pub(super) from: From,
    /// What is run where before.
    pub(super) before: Option<(From, String)>,
    /// What is done, one after the other.
    pub(super) tries: Vec<What>,
    /// How long each answer is awaited.
    pub(super) wait: Duration,
    /// The proxy is killed and started again between two tries.
    pub(super) restarts: bool,
    /// What of it counts.
    pub(super) judged: Judged,
}

/// How a Service is addressed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Frontend {
    NodePort,
    External,
    ClusterIp,
    /// The endpoint itself.
    Direct,
}

impl Frontend {
    pub(super) fn of(self, service: &str, v6: bool) -> SocketAddr {
        let number = SERVICES.iter().find(|known| known.name == service).map_or(0, |known| known.number);
        // The decimal digits, as they are written.
        let digits = number / 10 * 16 + number % 10;
        let ip = |v4: [u8; 3], six: [u16; 4]| -> IpAddr {
            let [a, b, c] = v4;
            match v6 {
                false => Ipv4Addr::new(a, b, c, u8::try_from(number).unwrap_or(0)).into(),
                true => Ipv6Addr::new(six[0], six[1], six[2], 0, 0, 0, 0, digits).into(),
            }
        };
        match self {
            Self::External => SocketAddr::new(ip([198, 51, 100], [0x2001, 0xdb8, 0x51, 0]), 80),
            Self::ClusterIp => SocketAddr::new(ip([10, 96, 0], [0xfd00, 0x10, 0x96, 0]), 80),
            Self::NodePort => SocketAddr::new(of_node_a(v6), 30_000 + number),
            Self::Direct => SocketAddr::new(of_p1(v6), 8080),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::NodePort => "node-port",
            Self::External => "external",
            Self::ClusterIp => "cluster-ip",
            Self::Direct => "direct",
        }
    }
}

fn of_node_a(v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 0x11).into()
    } else {
        Ipv4Addr::new(192, 168, 77, 11).into()
    }
}

fn of_p1(v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 0x10).into()
    } else {
        Ipv4Addr::new(10, 244, 1, 10).into()
    }
}

/// A question of a size and an answer of a size, which routers may cut.
pub(super) fn asked(to: SocketAddr, bytes: usize, answer: usize) -> Datagram {
    Datagram { to, bytes, answer, whole: false }
}

const WAIT: Duration = Duration::from_millis(700);
const PODS: [&str; 2] = ["pod/p2", "pod/p1"];
const INSIDE: [&str; 3] = ["pod/p2", "host/node-a", "pod/p1"];
const OUTSIDE: [Frontend; 2] = [Frontend::NodePort, Frontend::External];

/// The experiments of a network.
pub(super) fn of(setting: &Setting) -> Vec<Experiment> {
    let mut list = List { setting: setting.name, all: Vec::new() };
    for v6 in [false, true] {
        match setting.kind {
            Kind::Plain => {
                sizes(&mut list, v6, [(100, 100), (8_000, 8_000)]);
                orders(&mut list, v6);
                refusals(&mut list, v6);
                shared_ports(&mut list, v6);
                one_socket(&mut list, v6, "one-socket", &INSIDE);
                streams(&mut list, v6);
                unsummed(&mut list, v6);
                traces(&mut list, v6);
                interleaved(&mut list, v6);
                affinity(&mut list, v6);
            }
            Kind::NarrowUplink => {
                sizes(&mut list, v6, [(100, 1_420), (100, 8_000)]);
                streams(&mut list, v6);
            }
            Kind::NarrowPods => {
                sizes(&mut list, v6, [(1_420, 100), (8_000, 100)]);
                orders(&mut list, v6);
                streams(&mut list, v6);
            }
            Kind::TwoNetworks => sizes(&mut list, v6, [(100, 100), (2_000, 2_000)]),
            Kind::Moving => moving(&mut list, v6),
            Kind::Bridge => {
                sizes(&mut list, v6, [(100, 100), (8_000, 8_000)]);
                streams(&mut list, v6);
                from_inside(&mut list, v6, &PODS, Judged::BySender);
            }
            Kind::NoOffload => {
                sizes(&mut list, v6, [(100, 100), (1_400, 1_400)]);
                streams(&mut list, v6);
                refusals(&mut list, v6);
            }
            Kind::Routed => {
                sizes(&mut list, v6, [(100, 100), (2_000, 2_000)]);
                streams(&mut list, v6);
            }
            Kind::OptedOut => {
                from_inside(&mut list, v6, &INSIDE[..1], Judged::Answered);
                one_socket(&mut list, v6, "one-socket-by-packets", &INSIDE[..1]);
            }
            Kind::Strict => {
                sizes(&mut list, v6, [(100, 100), (2_000, 2_000)]);
                one_socket(&mut list, v6, "one-socket", &INSIDE);
                from_inside(&mut list, v6, &PODS, Judged::BySender);
            }
            Kind::Renamed => renamed(&mut list, v6),
        }
    }
    list.all
}

struct List {
    setting: &'static str,
    all: Vec<Experiment>,
}

impl List {
    fn add(&mut self, v6: bool, name: &str, from: From, tries: Vec<What>) -> &mut Experiment {
        let family = if v6 { "v6" } else { "v4" };
        let name = format!("{}/{family}/{name}", self.setting);
        let experiment = Experiment {
            name,
            v6,
            short: false,
            from,
            before: None,
            tries,
            wait: WAIT,
            restarts: false,
            judged: Judged::Answered,
        };
        self.all.push(experiment);
        let last = self.all.len() - 1;
        &mut self.all[last]
    }
}

/// Questions and answers of sizes, three tries each.
fn sizes(list: &mut List, v6: bool, sizes: [(usize, usize); 2]) {
    for service in ["loc", "one", "rem", "hst"] {
        for frontend in OUTSIDE {
            for (bytes, answer) in sizes {
                for whole in [false, true] {
                    let send = Datagram { whole, ..asked(frontend.of(service, v6), bytes, answer) };
                    let what = What::Datagrams { socket: Socket::Plain, sends: vec![send] };
                    let cut = if whole { "whole" } else { "may-cut" };
                    let name = format!("udp/{service}/{}/{bytes}-{answer}/{cut}", frontend.name());
                    let short = frontend == Frontend::NodePort && !whole && !v6;
                    let added = list.add(v6, &name, From::Client, vec![what; 3]);
                    added.short = short;
                    if whole || v6 {
                        // Senders learn of a smaller MTU by what gets lost.
                        added.judged = Judged::Learned;
                    }
                }
            }
        }
    }
}

/// Parts in all kinds of orders.
fn orders(list: &mut List, v6: bool) {
    let orders: [(&str, &[usize], u64); 6] = [
        ("in-order", &[0, 1, 2, 3], 0),
        ("in-order-slowly", &[0, 1, 2, 3], 10),
        ("reversed", &[3, 2, 1, 0], 0),
        ("reversed-slowly", &[3, 2, 1, 0], 10),
        ("two-swapped", &[1, 0, 2, 3], 0),
        ("last-first", &[3, 0, 1, 2], 0),
    ];
    for service in ["loc", "one", "rem", "hst"] {
        for frontend in OUTSIDE {
            for (name, order, gap_ms) in orders {
                let to = frontend.of(service, v6);
                let what = What::Parts { to, bytes: 4_000, each: 1_024, order: order.to_vec(), gap_ms };
                let name = format!("parts/{service}/{}/{name}", frontend.name());
                let short = service == "one" && frontend == Frontend::External;
                list.add(v6, &name, From::Client, vec![what; 2]).short = short;
            }
        }
    }
}

/// What nobody serves.
fn refusals(list: &mut List, v6: bool) {
    for frontend in OUTSIDE {
        let send = asked(frontend.of("non", v6), 100, 100);
        let what = What::Datagrams { socket: Socket::Connected, sends: vec![send; 2] };
        list.add(v6, &format!("udp/non/{}", frontend.name()), From::Client, vec![what]).judged =
            Judged::Refused;
    }
}

/// A Service and its endpoint, from one port.
fn shared_ports(list: &mut List, v6: bool) {
    let direct = Frontend::Direct.of("", v6);
    for (port, service) in [(51_000, "loc"), (51_100, "one")] {
        for frontend in OUTSIDE {
            let to = frontend.of(service, v6);
            for (name, order) in [("service-first", [to, direct]), ("endpoint-first", [direct, to])] {
                let sends = order.into_iter().cycle().take(4).map(|to| asked(to, 100, 100)).collect();
                let what = What::Datagrams { socket: Socket::Plain, sends };
                let path = format!("{service}/{}/{name}", frontend.name());
                list.add(v6, &format!("shared-port/udp/{path}"), From::Client, vec![what]).short = !v6;
                let port =
                    port + u16::from(frontend == Frontend::External) + 10 * u16::from(name.starts_with('e'));
                let what = What::Streams { port, to: order.to_vec(), bytes: 100, last: false };
                let added = list.add(v6, &format!("shared-port/tcp/{path}"), From::Client, vec![what]);
                added.wait = Duration::from_millis(2_500);
                added.short = !v6 && service == "loc";
            }
        }
    }
}

/// One socket that talks to several frontends of one endpoint.
fn one_socket(list: &mut List, v6: bool, called: &str, places: &[&str]) {
    let to = [Frontend::ClusterIp, Frontend::External, Frontend::NodePort, Frontend::Direct];
    for from in places {
        let place = || from.parse().unwrap_or(From::Client);
        for (name, kind) in [("plain", Socket::Plain), ("mapped", Socket::Mapped)] {
            if kind == Socket::Mapped && v6 {
                continue;
            }
            for (of, frontends) in
                [("services", &to[..2]), ("and-node-port", &to[..3]), ("and-endpoint", &to[..])]
            {
                let all = frontends.iter().map(|frontend| asked(frontend.of("one", v6), 100, 100));
                let sends: Vec<_> = all.cycle().take(frontends.len() * 2).collect();
                if kind == Socket::Plain {
                    let what = What::AtOnce(sends.clone());
                    let name = format!("{called}/{from}/at-once/{of}");
                    list.add(v6, &name, place(), vec![what]).judged = Judged::BySender;
                }
                let what = What::Datagrams { socket: kind, sends };
                // Whom the endpoint sees is another matter: on the socket path nobody is
                // masqueraded.
                list.add(v6, &format!("{called}/{from}/{name}/{of}"), place(), vec![what]).judged =
                    Judged::BySender;
            }
        }
    }
}

/// Datagrams without a checksum, which IPv4 allows.
fn unsummed(list: &mut List, v6: bool) {
    if v6 {
        return;
    }
    for service in ["loc", "one", "rem", "hst"] {
        for frontend in OUTSIDE {
            let sends = [100, 3_000].map(|bytes| asked(frontend.of(service, v6), bytes, 100)).to_vec();
            let what = What::Datagrams { socket: Socket::Unsummed, sends };
            let name = format!("unsummed/{service}/{}", frontend.name());
            list.add(v6, &name, From::Client, vec![what]);
        }
    }
}

/// Datagrams whose time is up on their way.
fn traces(list: &mut List, v6: bool) {
    for service in ["loc", "one", "rem", "hst"] {
        for frontend in OUTSIDE {
            let what = What::Traced { to: frontend.of(service, v6), hops: 4 };
            let name = format!("traced/{service}/{}", frontend.name());
            list.add(v6, &name, From::Client, vec![what]).judged = Judged::LastAnswered;
        }
    }
}

/// Two clients' datagrams in parts, by turns.
fn interleaved(list: &mut List, v6: bool) {
    let from = if v6 { ["fd00:77::100", "fd00:77::102"] } else { ["192.168.77.100", "192.168.77.102"] };
    let from: Vec<IpAddr> = from.iter().filter_map(|address| address.parse().ok()).collect();
    for service in ["loc", "one", "rem", "hst"] {
        for frontend in OUTSIDE {
            let to = frontend.of(service, v6);
            for (alike, name) in [(false, "two-clients"), (true, "two-clients-alike")] {
                let what = What::Interleaved { from: from.clone(), alike, to, bytes: 4_000, each: 1_024 };
                let name = format!("parts/{service}/{}/{name}", frontend.name());
                list.add(v6, &name, From::Client, vec![what; 2]);
            }
        }
    }
}

/// One endpoint for a client, also when the proxy is started anew.
fn affinity(list: &mut List, v6: bool) {
    for frontend in OUTSIDE {
        let sends = vec![asked(frontend.of("aff", v6), 100, 100)];
        let what = What::Datagrams { socket: Socket::Plain, sends };
        let name = format!("affinity-over-restarts/{}", frontend.name());
        let added = list.add(v6, &name, From::Client, vec![what; 4]);
        (added.restarts, added.judged) = (true, Judged::OneEndpoint);
    }
}

/// Pods as clients, one of them of itself.
fn from_inside(list: &mut List, v6: bool, pods: &[&str], judged: Judged) {
    let frontends = [Frontend::ClusterIp, Frontend::External, Frontend::NodePort];
    for (number, from) in pods.iter().enumerate() {
        let place = || from.parse().unwrap_or(From::Client);
        for (at, service) in ["loc", "one", "rem", "hst"].into_iter().enumerate() {
            for (which, frontend) in frontends.into_iter().enumerate() {
                let to = frontend.of(service, v6);
                let what = What::Datagrams { socket: Socket::Plain, sends: vec![asked(to, 100, 2_000); 2] };
                let path = format!("{from}/{service}/{}", frontend.name());
                list.add(v6, &format!("inside/udp/{path}"), place(), vec![what]).judged = judged;
                let port = u16::try_from(53_000 + number * 100 + at * 10 + which).unwrap_or(0);
                let what = What::Streams { port, to: vec![to], bytes: 100_000, last: false };
                let added = list.add(v6, &format!("inside/tcp/{path}"), place(), vec![what]);
                (added.wait, added.judged) = (Duration::from_secs(3), judged);
            }
        }
    }
}

/// Interfaces get other names, and with that lose their routes for a moment.
fn renamed(list: &mut List, v6: bool) {
    let ask = |list: &mut List, when: &str, before: Option<&str>| {
        for (number, service) in ["loc", "one", "rem", "hst"].into_iter().enumerate() {
            let to = Frontend::NodePort.of(service, v6);
            let what = What::Datagrams { socket: Socket::Plain, sends: vec![asked(to, 100, 100)] };
            let added = list.add(v6, &format!("{when}/{service}"), From::Client, vec![what; 15]);
            (added.wait, added.judged) = (Duration::from_millis(400), Judged::Recovers);
            let script = before.filter(|_| number == 0 && !v6);
            added.before = script.map(|script| (From::Host("node-a".to_owned()), script.to_owned()));
        }
    };
    if !v6 {
        ask(list, "before", None);
    }
    ask(list, "pods-link", Some(RENAME_POD));
    if v6 {
        return;
    }
    ask(list, "uplink", Some(RENAME_UPLINK));
}

const RENAME_POD: &str = "ip link set veth0 down; ip link set veth0 name pod0; ip link set pod0 up; \
     ip addr replace 10.244.1.1/32 dev pod0; ip -6 addr replace fd00:10:244:1::1/128 dev pod0 nodad; \
     ip route replace 10.244.1.10 dev pod0; ip -6 route replace fd00:10:244:1::10 dev pod0";
const RENAME_UPLINK: &str = "ip link set eth0 down; ip link set eth0 name up0; ip link set up0 up; \
     ip -6 addr replace fd00:77::11/64 dev up0 nodad; ip route replace default via 192.168.77.100; \
     ip -6 route replace default via fd00:77::100; ip route replace 10.244.2.0/24 via 192.168.77.12; \
     ip -6 route replace fd00:10:244:2::/64 via fd00:77::12";

/// Long streams.
fn streams(list: &mut List, v6: bool) {
    for (port, service) in [(52_000, "loc"), (52_001, "one"), (52_002, "rem"), (52_003, "hst")] {
        for (at, frontend) in OUTSIDE.into_iter().enumerate() {
            let port = port + 10 * u16::try_from(at).unwrap_or(0);
            for (port, last) in [(port, false), (port + 100, true)] {
                let to = vec![frontend.of(service, v6)];
                let what = What::Streams { port, to, bytes: 300_000, last };
                let end = if last { "/half-closed" } else { "" };
                let name = format!("tcp/{service}/{}/300000{end}", frontend.name());
                list.add(v6, &name, From::Client, vec![what]).wait = Duration::from_secs(3);
            }
        }
    }
}

/// The other node has another Ethernet address from now on, and does not say so: it knows ours for
/// good.
fn moving(list: &mut List, v6: bool) {
    let to = Frontend::NodePort.of("rem", v6);
    let what = What::Datagrams { socket: Socket::Plain, sends: vec![asked(to, 100, 100)] };
    list.add(v6, "before", From::Client, vec![what.clone()]).short = true;
    let own = of_node_a(v6);
    let script = format!(
        "mac=$(ip neigh show {own} dev eth0 | sed 's/.*lladdr \\([^ ]*\\).*/\\1/'); \
         ip link set eth0 address 02:00:00:00:77:{}; ip neigh replace {own} lladdr $mac nud permanent dev eth0",
        if v6 { "06" } else { "04" }
    );
    let moved = list.add(v6, "after", From::Client, vec![what; 25]);
    moved.before = Some((From::Host("node-b".to_owned()), script));
    moved.judged = Judged::Recovers;
    moved.wait = Duration::from_millis(400);
    moved.short = !v6;
}
