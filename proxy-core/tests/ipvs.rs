//! What holds for every history of events with IPVS: every operation fits what the kernel holds,
//! nobody's connections are cut off, and in the end the kernel holds what a fresh load would make
//! of the same objects.

#![expect(clippy::panic, clippy::expect_used, reason = "tests fail by panicking")]

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/large.rs"]
mod large;
#[path = "ipvs/large.rs"]
mod large_services;
#[path = "support/objects.rs"]
mod objects;
#[path = "support/universe.rs"]
mod universe;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use rustc_hash::FxHashMap;
use sluice_core::event::{Change, Event};
use sluice_core::index::Index;
use sluice_core::ipvs::{
    Destination, DestinationKey, IpvsConfig, Ledger, Load, NodeView, Observed, ObservedDestination,
    ObservedServer, Op, Others, SchedulerName, Server, ServerFlags, ServerKey, Steps, concerned,
};
use sluice_core::lang::nftables::{ElementId, Key};
use sluice_core::model::{ServiceType, TrafficPolicy};
use sluice_core::net::Family;
use sluice_core::net::Protocol::{self, Tcp, Udp};
use sluice_core::nft::{self, Balancer, NftConfig, SetKind};
use sluice_core::plan::{Detector, PlanConfig, Planner, ServicePlan};

use kernel::Kernel;
use objects::{endpoint, ip, nets, port, service, slice};
use universe::{DETECTS, any_config, any_event, cases, chance};

/// IPVS and the dummy link.
#[derive(Clone, Default)]
struct Machine {
    servers: BTreeMap<ServerKey, (Server, BTreeMap<DestinationKey, u32>)>,
    addresses: BTreeSet<IpAddr>,
    led: BTreeSet<ServerKey>,
    /// Destinations with connections.
    busy: BTreeSet<(ServerKey, DestinationKey)>,
}

impl Machine {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::AddServer(server) => {
                let new = self.servers.insert(server.key, (*server, BTreeMap::new())).is_none();
                assert!(new, "is there: {op}");
            }
            Op::SetServer(server) => self.servers.get_mut(&server.key).expect("a server").0 = *server,
            Op::DeleteServer(key) => {
                let (_, destinations) =
                    self.servers.remove(key).unwrap_or_else(|| panic!("is not there: {op}"));
                assert!(destinations.is_empty(), "cuts off: {op}");
            }
            Op::AddDestination(key, Destination { key: to, weight }) => {
                let destinations = &mut self.servers.get_mut(key).expect("a server").1;
                assert!(destinations.insert(*to, *weight).is_none(), "is there: {op}");
            }
            Op::SetDestination(key, Destination { key: to, weight }) => {
                let destinations = &mut self.servers.get_mut(key).expect("a server").1;
                assert!(
                    destinations.insert(*to, *weight).is_some_and(|old| old != *weight),
                    "changes nothing: {op}"
                );
            }
            Op::DeleteDestination(key, to) => {
                let removed = self.servers.get_mut(key).expect("a server").1.remove(to);
                assert!(removed.is_some(), "is not there: {op}");
                assert!(key.is_udp() || !self.busy.contains(&(*key, *to)), "cuts off: {op}");
                self.busy.remove(&(*key, *to));
            }
            Op::BindAddress(ip) => assert!(self.addresses.insert(*ip), "is bound: {op}"),
            Op::UnbindAddress(ip) => {
                assert!(self.addresses.remove(ip), "is not bound: {op}");
                let cut = self
                    .busy
                    .iter()
                    // Who is led here goes on.
                    .filter(|(key, _)| !self.led.contains(key))
                    .any(|(key, _)| matches!(key, ServerKey::Address(at, Tcp, _) if at == ip));
                let elsewhere = OWN.iter().chain(&OTHERS).any(|other| objects::ip(other) == *ip);
                assert!(!cut || elsewhere, "cuts off: {op}");
            }
            Op::LeadHere(key) => {
                assert!(self.servers.contains_key(key), "leads to nobody: {op}");
                assert!(self.led.insert(*key), "is led: {op}");
            }
            Op::LetPass(key) => assert!(self.led.remove(key), "is not led: {op}"),
        }
    }

    fn observe(&self) -> Vec<ObservedServer> {
        let load = |key: &ServerKey, to: &DestinationKey| Load {
            active: u32::from(self.busy.contains(&(*key, *to))),
            inactive: 0,
        };
        let of = |(key, (server, destinations)): (&ServerKey, &(Server, BTreeMap<DestinationKey, u32>))| {
            let destinations = destinations.iter().map(|(to, weight)| ObservedDestination {
                destination: Destination { key: *to, weight: *weight },
                is_exact: true,
                load: load(key, to),
            });
            ObservedServer { server: *server, is_exact: true, destinations: destinations.collect() }
        };
        self.servers.iter().map(of).collect()
    }

    fn loads(&self) -> FxHashMap<(ServerKey, DestinationKey), Load> {
        let observed = self.observe().into_iter().flat_map(|server| {
            let key = server.server.key;
            server.destinations.into_iter().map(move |held| ((key, held.destination.key), held.load))
        });
        observed.collect()
    }
}

/// Addresses that the node may have; the last one is a Service's too.
const OWN: [&str; 4] = ["192.168.0.2", "192.168.1.2", "fd00::2", "192.0.2.1"];

/// Addresses that other nodes may have; the last two are a Service's too.
const OTHERS: [&str; 3] = ["192.168.0.3", "192.0.2.1", "192.0.2.2"];

/// Nodes have not been listed.
const UNLISTED: u64 = 1 << (OWN.len() + OTHERS.len());

fn views(seed: u64) -> (NodeView, nft::NodeView) {
    let own: Vec<IpAddr> =
        OWN.iter().enumerate().filter(|(at, _)| seed >> at & 1 == 1).map(|(_, text)| ip(text)).collect();
    let others = OTHERS.iter().enumerate().filter(|(at, _)| seed >> (at + OWN.len()) & 1 == 1);
    let addresses = others.map(|(_, text)| ip(text)).collect();
    let others = if seed & UNLISTED == 0 {
        Others { listed: true, addresses, networks: Vec::new() }
    } else {
        Others::default()
    };
    let of_ruleset =
        nft::NodeView { own_addresses: own.clone(), others: others.clone(), ..nft::NodeView::default() };
    (NodeView { node_port_addresses: own.clone(), own_addresses: own, others }, of_ruleset)
}

fn ledger(view: (NodeView, nft::NodeView)) -> Ledger {
    let config = NftConfig {
        detectors: [Detector::Cidr(nets("10.0.0.0/8")[0]), Detector::None],
        balancer: Balancer::Ipvs,
        match_all_node_addresses: [true, true],
        ..NftConfig::default()
    };
    let ipvs = IpvsConfig {
        scheduler: SchedulerName::ROUND_ROBIN,
        sticky: SchedulerName::MAGLEV,
        exclude: nets("198.18.0.0/15"),
    };
    Ledger::new(ipvs, view.0, nft::Ledger::new(config, view.1))
}

#[derive(Clone, Debug)]
enum Step {
    Events(Vec<Event>),
    Reconfigure(PlanConfig),
    /// The node has other addresses.
    Node(u64),
    /// The daemon restarts, and has missed something.
    Restart(Vec<Event>),
    /// Clients connect and leave.
    Traffic(u64),
    /// What has been drained is deleted.
    Collect,
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    let events = || proptest::collection::vec(any_event(), 1..4);
    let step = prop_oneof![
        12 => events().prop_map(Step::Events),
        2 => any_config().prop_map(Step::Reconfigure),
        2 => any::<u64>().prop_map(Step::Node),
        2 => events().prop_map(Step::Restart),
        4 => any::<u64>().prop_map(Step::Traffic),
        3 => Just(Step::Collect),
    ];
    proptest::collection::vec(step, 1..16)
}

struct Run {
    index: Index,
    planner: Planner,
    view: (NodeView, nft::NodeView),
    ledger: Ledger,
    table: Option<Kernel>,
    machine: Machine,
}

impl Run {
    fn new() -> Self {
        Run::with_large_from(usize::MAX)
    }

    fn with_large_from(large_from: usize) -> Self {
        let config = PlanConfig { node_name: "here".into(), detects_pods: DETECTS, ..PlanConfig::default() };
        let mut run = Run {
            index: Index::default(),
            planner: Planner::with_large_from(large_from, config),
            view: views(0),
            ledger: ledger(views(0)),
            table: None,
            machine: Machine::default(),
        };
        run.reconcile();
        run
    }

    fn plans(&self) -> Vec<Arc<ServicePlan>> {
        let mut plans: Vec<Arc<ServicePlan>> = self.planner.plans().cloned().collect();
        plans.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        plans
    }

    fn apply(&mut self, steps: &Steps) {
        steps.before.iter().for_each(|op| self.machine.apply(op));
        self.table.get_or_insert_default().commit(&steps.ruleset).expect("a ruleset that fits");
        steps.after.iter().chain(&steps.last).for_each(|op| self.machine.apply(op));
        self.table.get_or_insert_default().commit(&steps.closing).expect("a ruleset that fits");
    }

    fn reconcile(&mut self) {
        let observed = Observed {
            servers: self.machine.observe(),
            addresses: self.machine.addresses.iter().copied().collect(),
            led: self.machine.led.iter().copied().collect(),
            table: self.table.as_ref().map(Kernel::observe),
        };
        let (view, of_ruleset) = self.view.clone();
        let steps = self.ledger.reconcile(&self.plans(), observed, view, of_ruleset);
        for op in steps.before.iter().chain(&steps.after) {
            self.check_whose(op);
        }
        self.apply(&steps);
    }

    /// Whoever would be refused can be named.
    fn check_whose(&self, op: &Op) {
        let services = concerned(op, &self.plans(), self.ledger.ruleset().marks());
        match op {
            Op::AddServer(_) | Op::AddDestination(..) => {
                assert_eq!(services.len(), 1, "{op}");
            }
            Op::BindAddress(_) => assert!(!services.is_empty(), "{op}"),
            _ => {}
        }
    }

    fn events(&mut self, events: &[Event]) {
        for event in events {
            self.index.apply(event.clone());
        }
    }

    fn replan(&mut self) -> Vec<sluice_core::plan::PlanChange> {
        let dirty = self.index.take_dirty();
        self.planner.replan(&self.index, dirty.services)
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Events(events) => {
                self.events(events);
                let changes = self.replan();
                let steps = self.ledger.change(&changes);
                self.apply(&steps);
            }
            Step::Reconfigure(config) => {
                let changes = self.planner.reconfigure(config.clone(), &self.index);
                let steps = self.ledger.change(&changes);
                self.apply(&steps);
            }
            Step::Node(seed) => {
                let (is, shall) = (&self.view.0, &views(*seed).0);
                let others_only =
                    is.own_addresses == shall.own_addresses && is.others.listed == shall.others.listed;
                self.view = views(*seed);
                if others_only {
                    let steps = self.ledger.set_others(self.view.0.others.clone(), self.view.1.clone());
                    self.apply(&steps);
                } else {
                    self.reconcile();
                }
            }
            Step::Restart(missed) => {
                self.events(missed);
                self.replan();
                self.ledger = ledger(self.view.clone());
                self.reconcile();
            }
            Step::Traffic(seed) => {
                let all: Vec<_> = self.machine.loads().into_keys().collect();
                self.machine.busy = all.into_iter().filter(|at| chance(*seed, at) % 3 == 0).collect();
            }
            Step::Collect => {
                let steps = self.ledger.delete_drained(&self.machine.loads());
                self.apply(&steps);
            }
        }
        let servers: Vec<Server> = self.machine.servers.values().map(|(server, _)| *server).collect();
        let addresses: Vec<IpAddr> = self.machine.addresses.iter().copied().collect();
        let led: Vec<ServerKey> = self.machine.led.iter().copied().collect();
        assert!(self.ledger.agrees(&servers, &addresses, &led), "after {step:?}");
        let others = &self.view.0.others.addresses;
        assert!(self.machine.addresses.is_disjoint(others), "cuts another node off after {step:?}");
        if !self.view.0.others.listed {
            let cluster_ips: BTreeSet<IpAddr> =
                self.plans().iter().flat_map(|plan| plan.cluster_ips.to_vec()).collect();
            let doubtful = addresses.iter().find(|ip| !cluster_ips.contains(ip));
            assert_eq!(doubtful, None, "bound in doubt after {step:?}");
        }
        for key in self.ledger.draining() {
            let Some(ip) = key.address() else { continue };
            // An address that the node itself had may be gone, and all connections with it.
            let was_own = OWN.contains(&ip.to_string().as_str());
            let comes_here = self.machine.addresses.contains(&ip) || self.machine.led.contains(key);
            assert!(comes_here || was_own, "connections to {key:?} are lost after {step:?}");
        }
        // Ports of the node must not be reached by way of a service's address.
        for ip in &addresses {
            assert!(self.closes(ip), "{ip} is bound and open after {step:?}");
        }
    }

    fn closes(&self, ip: &IpAddr) -> bool {
        let key = match ip {
            IpAddr::V4(ip) => Key::new(&ip.octets()),
            IpAddr::V6(ip) => Key::new(&ip.octets()),
        };
        let has = |kind: SetKind| {
            let id = ElementId { set: kind.set(Family::of(ip)), key };
            self.table.as_ref().is_some_and(|table| table.elements.contains_key(&id))
        };
        has(SetKind::ClusterIps) || has(SetKind::Closed)
    }
}

fn live(history: &[Step]) {
    let mut run = Run::new();
    for step in history {
        run.step(step);
    }
    ends_where_a_fresh_start_does(run);
}

fn ends_where_a_fresh_start_does(mut run: Run) {
    run.machine.busy.clear();
    run.step(&Step::Collect);
    assert_eq!(run.ledger.draining().len(), 0);
    let (machine, table) = (run.machine.clone(), run.table.take().expect("a table"));
    run.machine = Machine::default();
    run.ledger = ledger(run.view.clone());
    run.reconcile();
    assert_eq!(machine.servers, run.machine.servers);
    assert_eq!(machine.addresses, run.machine.addresses);
    assert_eq!(machine.led, run.machine.led);
    table.same_as(&run.table.take().expect("a table")).expect("the same table");
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn every_history_ends_where_a_fresh_start_does(history in history()) {
        live(&history);
    }
}

// What the property cannot say.

fn web(policy: TrafficPolicy) -> Event {
    Event::Service(Change::Apply(sluice_core::model::Service {
        service_type: ServiceType::NodePort,
        ports: vec![port("http", Tcp, 80, 30080)],
        external_policy: policy,
        ..service("web", "172.30.0.1")
    }))
}

fn endpoints(addresses: &[(&str, &str)]) -> Event {
    let endpoints = addresses.iter().map(|(address, node)| endpoint(address, node)).collect();
    Event::Slice(Change::Apply(slice("web-1", "web", ("http", Tcp, 8080), endpoints)))
}

fn key(address: &str, protocol: Protocol, port: u16) -> ServerKey {
    ServerKey::Address(ip(address), protocol, port)
}

fn weights(run: &Run, server: ServerKey) -> Vec<(String, u32)> {
    let (_, destinations) = run.machine.servers.get(&server).expect("a server");
    destinations.iter().map(|(to, weight)| (to.to_string(), *weight)).collect()
}

#[test]
fn node_ports_have_a_virtual_server_on_each_address_and_services_an_address() {
    let mut run = Run::new();
    run.step(&Step::Node(0b0011));
    run.step(&Step::Events(vec![web(TrafficPolicy::Cluster), endpoints(&[("10.0.0.1", "here")])]));
    let keys: Vec<ServerKey> = run.machine.servers.keys().copied().collect();
    let wanted = [key("172.30.0.1", Tcp, 80), key("192.168.0.2", Tcp, 30080), key("192.168.1.2", Tcp, 30080)];
    assert_eq!(keys, wanted);
    assert_eq!(run.machine.addresses, BTreeSet::from([ip("172.30.0.1")]));
    assert_eq!(weights(&run, wanted[0]), [("10.0.0.1:8080".to_owned(), 1)]);
}

#[test]
fn a_busy_destination_is_drained_and_comes_back() {
    let mut run = Run::new();
    let both = [("10.0.0.1", "here"), ("10.0.0.2", "here")];
    run.step(&Step::Events(vec![web(TrafficPolicy::Cluster), endpoints(&both)]));
    let server = key("172.30.0.1", Tcp, 80);
    let gone = DestinationKey { address: ip("10.0.0.1"), port: 8080 };
    run.machine.busy.insert((server, gone));
    run.step(&Step::Events(vec![endpoints(&both[1..])]));
    run.step(&Step::Collect);
    assert_eq!(weights(&run, server), [("10.0.0.1:8080".to_owned(), 0), ("10.0.0.2:8080".to_owned(), 1)]);
    // The service goes while it is being drained: server and address stay for the connection.
    run.step(&Step::Events(vec![Event::Service(Change::Delete(objects::name("web")))]));
    run.step(&Step::Collect);
    assert_eq!(weights(&run, server), [("10.0.0.1:8080".to_owned(), 0)]);
    assert!(run.machine.addresses.contains(&ip("172.30.0.1")));
    run.step(&Step::Events(vec![web(TrafficPolicy::Cluster), endpoints(&both)]));
    assert_eq!(weights(&run, server), [("10.0.0.1:8080".to_owned(), 1), ("10.0.0.2:8080".to_owned(), 1)]);
    assert_eq!(run.ledger.draining().len(), 0);
}

#[test]
fn under_the_local_policy_a_mark_leads_to_all_endpoints() {
    let mut run = Run::new();
    run.step(&Step::Node(0b0001));
    let far = [("10.0.0.1", "here"), ("10.0.0.2", "there")];
    run.step(&Step::Events(vec![web(TrafficPolicy::Local), endpoints(&far)]));
    let marked: Vec<ServerKey> =
        run.machine.servers.keys().copied().filter(|key| matches!(key, ServerKey::Mark(..))).collect();
    assert_eq!(marked.len(), 1);
    assert_eq!(weights(&run, marked[0]).len(), 2);
    assert_eq!(weights(&run, key("192.168.0.2", Tcp, 30080)), [("10.0.0.1:8080".to_owned(), 1)]);
}

#[test]
fn datagrams_by_a_mark_leave_a_destination_at_once() {
    let mut run = Run::new();
    run.step(&Step::Node(0b0001));
    let dns = |addresses: &[(&str, &str)]| {
        let endpoints = addresses.iter().map(|(address, node)| endpoint(address, node)).collect();
        Event::Slice(Change::Apply(slice("dns-1", "dns", ("dns", Udp, 8053), endpoints)))
    };
    let service = Event::Service(Change::Apply(sluice_core::model::Service {
        service_type: ServiceType::NodePort,
        ports: vec![port("dns", Udp, 53, 30053)],
        external_policy: TrafficPolicy::Local,
        ..service("dns", "172.30.0.9")
    }));
    run.step(&Step::Events(vec![service, dns(&[("10.0.0.1", "here"), ("10.0.0.2", "there")])]));
    let is_mark = |key: &&ServerKey| matches!(key, ServerKey::Mark(..));
    let marked = *run.machine.servers.keys().find(is_mark).expect("a virtual server by a mark");
    run.machine.busy.insert((marked, DestinationKey { address: ip("10.0.0.2"), port: 8053 }));
    run.step(&Step::Events(vec![dns(&[("10.0.0.1", "here")])]));
    assert_eq!(weights(&run, marked), [("10.0.0.1:8053".to_owned(), 1)]);
    assert_eq!(run.ledger.draining().len(), 0);
}

#[test]
fn a_frontend_that_was_refused_has_its_server_before_the_ruleset_lets_clients_pass() {
    let mut run = Run::new();
    run.step(&Step::Node(0b0001));
    run.step(&Step::Events(vec![web(TrafficPolicy::Local), endpoints(&[("10.0.0.2", "there")])]));
    run.events(&[endpoints(&[("10.0.0.1", "here"), ("10.0.0.2", "there")])]);
    let changes = run.replan();
    let steps = run.ledger.change(&changes);
    let node_port = key("192.168.0.2", Tcp, 30080);
    let adds = |op: &Op| matches!(op, Op::AddDestination(server, _) if *server == node_port);
    assert!(steps.before.iter().any(adds), "{steps:?}");
    assert!(!steps.ruleset.is_empty());
    run.apply(&steps);
}

#[test]
fn health_checks_are_let_through_to_addresses_of_load_balancers() {
    let mut run = Run::new();
    let service = sluice_core::model::Service {
        service_type: ServiceType::LoadBalancer,
        ports: vec![port("http", Tcp, 80, 30080)],
        external_policy: TrafficPolicy::Local,
        health_check_node_port: 32000,
        ..service("web", "172.30.0.1")
    };
    run.step(&Step::Events(vec![Event::Service(Change::Apply(service))]));
    let health = |run: &Run| {
        let table = run.table.as_ref().expect("a table");
        table.elements.keys().filter(|id| SetKind::HealthPorts.is(id.set)).count()
    };
    assert_eq!(health(&run), 2);
    run.step(&Step::Events(vec![Event::Service(Change::Delete(objects::name("web")))]));
    assert_eq!(health(&run), 0);
}

#[test]
fn addresses_that_the_kernel_takes_from_nobody_are_left_out() {
    let mut run = Run::new();
    let bad = [("10.0.0.1", "here"), ("224.0.1.1", "here"), ("255.255.255.255", "here")];
    run.step(&Step::Events(vec![web(TrafficPolicy::Cluster), endpoints(&bad)]));
    assert_eq!(weights(&run, key("172.30.0.1", Tcp, 80)), [("10.0.0.1:8080".to_owned(), 1)]);
}

#[test]
fn virtual_servers_of_others_stay_in_excluded_networks_only() {
    let mut run = Run::new();
    let server = |address: &str| Server {
        key: key(address, Tcp, 80),
        scheduler: SchedulerName::ROUND_ROBIN,
        flags: ServerFlags::NONE,
        persistence: None,
    };
    for address in ["198.18.0.1", "203.0.113.7"] {
        run.machine.apply(&Op::AddServer(server(address)));
    }
    run.reconcile();
    let left: Vec<ServerKey> = run.machine.servers.keys().copied().collect();
    assert_eq!(left, [key("198.18.0.1", Tcp, 80)]);
}

#[test]
fn a_service_may_be_in_an_excluded_network() {
    let mut run = Run::new();
    let web = Event::Service(Change::Apply(sluice_core::model::Service {
        ports: vec![port("http", Tcp, 80, 0)],
        ..service("web", "198.18.0.7")
    }));
    run.step(&Step::Events(vec![web, endpoints(&[("10.0.0.1", "here")])]));
    let server = key("198.18.0.7", Tcp, 80);
    assert_eq!(weights(&run, server), [("10.0.0.1:8080".to_owned(), 1)]);
    // Nothing is to be done, neither for this ledger nor for the next one.
    run.reconcile();
    run.step(&Step::Restart(vec![endpoints(&[("10.0.0.2", "here")])]));
    assert_eq!(weights(&run, server), [("10.0.0.1:8080".to_owned(), 0), ("10.0.0.2:8080".to_owned(), 1)]);
    run.step(&Step::Events(vec![Event::Service(Change::Delete(objects::name("web")))]));
    run.step(&Step::Collect);
    assert!(run.machine.servers.is_empty());
}

/// Seeds of views in which another node has 192.0.2.1, or nobody has.
const IS_OTHERS: u64 = 1 << (OWN.len() + 1);
const IS_NOBODYS: u64 = 0;

#[test]
fn an_address_of_another_node_is_not_bound_and_its_port_is_led_here() {
    let mut run = Run::new();
    let external = Event::Service(Change::Apply(sluice_core::model::Service {
        ports: vec![port("http", Tcp, 80, 0)],
        external_ips: vec![ip("192.0.2.1")],
        ..service("web", "172.30.0.1")
    }));
    run.step(&Step::Node(IS_OTHERS));
    run.step(&Step::Events(vec![external, endpoints(&[("10.0.0.1", "here")])]));
    let server = key("192.0.2.1", Tcp, 80);
    assert_eq!(run.machine.addresses, BTreeSet::from([ip("172.30.0.1")]));
    assert_eq!(run.machine.led, BTreeSet::from([server]));
    assert_eq!(weights(&run, server), [("10.0.0.1:8080".to_owned(), 1)]);
    // Its other ports are the node's, not closed like those of Services.
    let id = ElementId { set: SetKind::OthersAddresses.set(Family::V4), key: Key::new(&[192, 0, 2, 1]) };
    assert!(run.table.as_ref().is_some_and(|table| table.elements.contains_key(&id)));
    // The node goes, and comes again.
    run.step(&Step::Node(IS_NOBODYS));
    assert!(run.machine.led.is_empty() && run.machine.addresses.contains(&ip("192.0.2.1")));
    run.step(&Step::Node(IS_OTHERS));
    assert_eq!(run.machine.led, BTreeSet::from([server]));
    run.step(&Step::Events(vec![Event::Service(Change::Delete(objects::name("web")))]));
    run.step(&Step::Collect);
    assert!(run.machine.led.is_empty() && run.machine.servers.is_empty());
}

#[test]
fn until_nodes_have_been_listed_nothing_but_cluster_ips_is_bound() {
    let mut run = Run::new();
    let external = sluice_core::model::Service {
        service_type: ServiceType::LoadBalancer,
        ports: vec![port("http", Tcp, 80, 0)],
        external_ips: vec![ip("192.0.2.1")],
        ..service("web", "172.30.0.1")
    };
    let deleted = || Event::Service(Change::Delete(objects::name("web")));
    let external = || Event::Service(Change::Apply(external.clone()));
    let closes = |run: &Run| run.closes(&ip("192.0.2.1"));
    let (server, cluster_ip) = (key("192.0.2.1", Tcp, 80), BTreeSet::from([ip("172.30.0.1")]));
    let both = BTreeSet::from([ip("172.30.0.1"), ip("192.0.2.1")]);
    let led = BTreeSet::from([server]);
    run.step(&Step::Node(UNLISTED));
    run.step(&Step::Events(vec![external(), endpoints(&[("10.0.0.1", "here")])]));
    // Its port works all the same, and its other ports are its owner's.
    assert_eq!((&run.machine.addresses, &run.machine.led), (&cluster_ip, &led));
    assert_eq!(weights(&run, server), [("10.0.0.1:8080".to_owned(), 1)]);
    assert!(!closes(&run));
    // The Service goes while somebody is connected, who stays so.
    run.machine.busy.insert((server, DestinationKey { address: ip("10.0.0.1"), port: 8080 }));
    run.step(&Step::Events(vec![deleted()]));
    // What was the ClusterIP could be anybody's address as well.
    let all = BTreeSet::from([server, key("172.30.0.1", Tcp, 80)]);
    assert_eq!((&run.machine.addresses, &run.machine.led), (&BTreeSet::new(), &all));
    run.step(&Step::Events(vec![external()]));
    assert_eq!((&run.machine.addresses, &run.machine.led), (&cluster_ip, &led));
    // Nodes are listed, and none has the address.
    run.step(&Step::Node(IS_NOBODYS));
    assert_eq!(run.machine.addresses, both);
    assert!(run.machine.led.is_empty() && closes(&run));
    // A process that starts without them does not trust what another one has bound.
    run.view = views(UNLISTED);
    run.step(&Step::Restart(vec![]));
    assert_eq!((&run.machine.addresses, &run.machine.led), (&cluster_ip, &led));
    assert!(!closes(&run));
    run.step(&Step::Node(IS_OTHERS));
    assert_eq!((&run.machine.addresses, &run.machine.led), (&cluster_ip, &led));
}

#[test]
fn what_was_deleted_while_no_daemon_ran_is_unbound_and_its_connections_live() {
    let mut run = Run::new();
    let external = sluice_core::model::Service {
        ports: vec![port("http", Tcp, 80, 0)],
        external_ips: vec![ip("192.0.2.2")],
        ..service("web", "172.30.0.1")
    };
    let (server, pod) = (key("192.0.2.2", Tcp, 80), DestinationKey { address: ip("10.0.0.1"), port: 8080 });
    run.step(&Step::Events(vec![
        Event::Service(Change::Apply(external)),
        endpoints(&[("10.0.0.1", "here")]),
    ]));
    assert!(run.machine.addresses.contains(&ip("192.0.2.2")));
    run.machine.busy.insert((server, pod));
    run.view = views(UNLISTED);
    run.step(&Step::Restart(vec![Event::Service(Change::Delete(objects::name("web")))]));
    assert_eq!((run.machine.addresses.len(), run.machine.led.contains(&server)), (0, true));
    // It turns out to be nobody's: not worth another change.
    run.step(&Step::Node(IS_NOBODYS));
    run.step(&Step::Collect);
    assert_eq!((run.machine.addresses.len(), &run.machine.led), (0, &BTreeSet::from([server])));
    run.machine.busy.clear();
    run.step(&Step::Collect);
    assert!(run.machine.led.is_empty() && run.machine.servers.is_empty());
}

#[test]
fn schedulers_by_hash_take_another_destination_for_one_that_is_being_drained() {
    let of = |scheduler: &str| {
        let mut run = Run::new();
        let ipvs = IpvsConfig {
            scheduler: SchedulerName::new(scheduler).expect("a name"),
            sticky: SchedulerName::SOURCE_HASH,
            exclude: Vec::new(),
        };
        let ruleset = nft::Ledger::new(run.ledger.ruleset().config().clone(), views(1).1);
        run.ledger = Ledger::new(ipvs, views(1).0, ruleset);
        run.view = views(1);
        run.reconcile();
        let sticky = |event| match event {
            Event::Service(Change::Apply(service)) => {
                let affinity = Some(10_800);
                Event::Service(Change::Apply(sluice_core::model::Service { affinity, ..service }))
            }
            other => other,
        };
        let far = endpoints(&[("10.0.0.1", "here"), ("10.0.0.2", "there")]);
        run.step(&Step::Events(vec![sticky(web(TrafficPolicy::Local)), far]));
        let (marked, others): (Vec<Server>, Vec<Server>) = run
            .machine
            .servers
            .values()
            .map(|(server, _)| *server)
            .partition(|server| matches!(server.key, ServerKey::Mark(..)));
        assert_eq!(marked.len(), 1);
        assert_eq!(marked[0].flags, ServerFlags::HASH_FALLBACK);
        others[0].flags
    };
    assert_eq!(of("mh"), ServerFlags::HASH_SOURCE_PORT | ServerFlags::HASH_FALLBACK);
    assert_eq!(of("sh"), ServerFlags::HASH_FALLBACK);
    assert_eq!(of("rr"), ServerFlags::NONE);
}
