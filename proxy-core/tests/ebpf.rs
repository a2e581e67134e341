//! What holds for every history of events on eBPF maps: between any two operations each lookup
//! finds what was right before or is right after, and in the end the maps are what a fresh load
//! would make of them.

#![expect(clippy::panic, clippy::expect_used, reason = "tests fail by panicking")]

#[path = "support/large.rs"]
mod large;
#[path = "ebpf/large.rs"]
mod many;
#[path = "support/maps.rs"]
mod maps;
#[path = "support/objects.rs"]
mod objects;
#[path = "ebpf/refused.rs"]
mod refused;
#[path = "support/universe.rs"]
mod universe;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use sluice_common::Address;
use sluice_common::service::{FrontendKey, flag, list};
use sluice_core::ebpf::{Entry, EntryId, Ledger, MapKind, Op, address, group_number};
use sluice_core::event::{Change, Event};
use sluice_core::group::GroupId;
use sluice_core::index::Index;
use sluice_core::model::{EndpointSlice, Service, ServiceType, TrafficPolicy};
use sluice_core::net::Protocol::{Tcp, Udp};
use sluice_core::plan::{Group, PlanChange, PlanConfig, Planner, Scheduler, ServicePlan};

use maps::{Decision, Maps, Outcome, View, Who};
use objects::{endpoint, ip, ips, name, nets, port, service, slice};
use universe::{DETECTS, any_config, any_event, cases, chance};

#[derive(Clone, Debug)]
enum Step {
    /// Several events before the next planning.
    Events(Vec<Event>),
    /// The own node changed.
    Reconfigure(PlanConfig),
    /// The daemon restarts, and has missed something.
    Restart(Vec<Event>),
    /// Somebody has changed the maps.
    Damage(u64),
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    let events = || proptest::collection::vec(any_event(), 1..4);
    let step = prop_oneof![
        12 => events().prop_map(Step::Events),
        2 => any_config().prop_map(Step::Reconfigure),
        2 => events().prop_map(Step::Restart),
        2 => any::<u64>().prop_map(Step::Damage),
    ];
    proptest::collection::vec(step, 1..14)
}

struct Run {
    index: Index,
    planner: Planner,
    scheduler: Scheduler,
    ledger: Ledger,
    maps: Maps,
}

impl Run {
    fn new(scheduler: Scheduler) -> Self {
        Run::with_large_from(usize::MAX, scheduler)
    }

    fn with_large_from(large_from: usize, scheduler: Scheduler) -> Self {
        let config = PlanConfig { node_name: "here".into(), detects_pods: DETECTS, ..PlanConfig::default() };
        Run {
            index: Index::default(),
            planner: Planner::with_large_from(large_from, config),
            scheduler,
            ledger: Ledger::new(scheduler),
            maps: Maps::default(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Events(events) => {
                self.events(events);
            }
            Step::Reconfigure(config) => {
                let changes = self.planner.reconfigure(config.clone(), &self.index);
                let ops = self.ledger.change(&changes);
                self.commit(&ops);
            }
            Step::Restart(events) => {
                self.plan(events);
                self.ledger = Ledger::new(self.scheduler);
                let ops = self.ledger.reconcile(&self.plans(), self.maps.observe());
                self.commit(&ops);
            }
            Step::Damage(seed) => {
                self.damage(*seed);
                if seed % 2 == 0 {
                    self.ledger = Ledger::new(self.scheduler);
                }
                let ops = self.ledger.reconcile(&self.plans(), self.maps.observe());
                ops.iter().for_each(|op| self.maps.apply(op));
            }
        }
        self.check();
    }

    fn plan(&mut self, events: &[Event]) -> Vec<PlanChange> {
        for event in events {
            self.index.apply(event.clone());
        }
        let dirty = self.index.take_dirty();
        self.planner.replan(&self.index, dirty.services)
    }

    fn events(&mut self, events: &[Event]) -> Vec<Op> {
        let changes = self.plan(events);
        let ops = self.ledger.change(&changes);
        self.commit(&ops);
        ops
    }

    fn plans(&self) -> Vec<Arc<ServicePlan>> {
        self.planner.plans().cloned().collect()
    }

    fn view(&self) -> View {
        View::new(&self.maps, self.scheduler)
    }

    /// Applies operations, and looks everything up between any two of them.
    fn commit(&mut self, ops: &[Op]) {
        let before = self.view();
        let mut end = self.maps.clone();
        ops.iter().for_each(|op| end.apply(op));
        let allowed = allowed(&before, &View::new(&end, self.scheduler));
        for op in ops {
            self.maps.apply(op);
            let now = self.view();
            for (lookup, allowed) in &allowed {
                let (key, who, source) = lookup;
                let outcomes = now.outcomes(key, *who, address(ip(source)));
                assert!(
                    outcomes.is_subset(allowed),
                    "{lookup:?} after {op:?} of {ops:#?}: {outcomes:?}, not {allowed:?}"
                );
            }
        }
    }

    fn damage(&mut self, seed: u64) {
        let before: Vec<Entry> = self.maps.entries.values().cloned().collect();
        self.maps.entries.retain(|id, _| !chance(seed, id).is_multiple_of(8));
        for (id, entry) in &mut self.maps.entries {
            if chance(seed, id) % 8 == 1 {
                let other = &before[chance(seed ^ 1, id) as usize % before.len()];
                match (entry, other) {
                    (Entry::Endpoint(_, value), Entry::Endpoint(_, other)) => *value = *other,
                    (Entry::Group(_, value), _) => value.count += 1,
                    (Entry::Frontend(_, value), Entry::Frontend(_, other)) => *value = *other,
                    (Entry::Maglev(_, value), _) => value.slots[7] = 1000,
                    _ => {}
                }
            }
        }
        let strange = |mut entry: Entry| {
            match &mut entry {
                Entry::Member(key) => key.reserved[0] = 1,
                Entry::Source(length, key) => {
                    *length -= 1;
                    let bits = u128::from_be_bytes(key.source.octets()) & maps::prefix(*length);
                    key.source = Address::from_octets(bits.to_be_bytes());
                }
                Entry::Cursor(group) | Entry::Group(group, _) | Entry::Maglev(group, _) => *group ^= 4,
                Entry::Endpoint(key, _) => key.slot += 50,
                Entry::Frontend(key, _) => key.port ^= 0x100,
                _ => {}
            }
            entry
        };
        for entry in before.into_iter().filter(|entry| chance(seed ^ 2, &entry.id()).is_multiple_of(8)) {
            let entry = strange(entry);
            self.maps.entries.entry(entry.id()).or_insert(entry);
        }
    }

    /// Everything that holds after every step.
    fn check(&self) {
        let mut fresh = Maps::default();
        let mut ledger = Ledger::new(self.scheduler);
        for plan in self.plans() {
            let change = PlanChange { name: plan.name.clone(), old: None, new: Some(plan) };
            ledger.change(&[change]).iter().for_each(|op| fresh.apply(op));
        }
        assert_eq!(
            self.maps.without_slots(self.scheduler),
            fresh.without_slots(self.scheduler),
            "not what a fresh load gives"
        );
        for (map, count) in self.ledger.counts() {
            assert_eq!(self.maps.count(map), count, "entries of {}", map.map());
            assert_eq!(ledger.count(map), count, "entries of {} after a fresh load", map.map());
        }
        let mut adopting = Ledger::new(self.scheduler);
        assert_eq!(adopting.reconcile(&self.plans(), self.maps.observe()), [], "a restart has nothing to do");
    }
}

/// A frontend, and who connects to it from where.
type Lookup = (FrontendKey, Who, &'static str);

/// Inside all, some and none of the networks that services allow.
const CLIENTS: [&str; 5] = ["192.0.2.130", "192.0.2.1", "10.9.0.1", "2001:db8:2::7", "203.0.113.77"];

/// What may become of every lookup: what either view says, and any endpoint that a group has in
/// either.
fn allowed(before: &View, after: &View) -> BTreeMap<Lookup, BTreeSet<Outcome>> {
    let mut keys: BTreeSet<FrontendKey> =
        before.frontends.keys().chain(after.frontends.keys()).copied().collect();
    let undefined = keys.iter().map(|key| FrontendKey { port: 9, protocol: 6, ..*key });
    keys.extend(undefined.collect::<Vec<_>>());
    keys.retain(|key| key.port != 0);
    let mut allowed: BTreeMap<Lookup, BTreeSet<Outcome>> = BTreeMap::new();
    for key in keys {
        for who in [Who::Pod, Who::Host, Who::Other] {
            for source in CLIENTS {
                let list = allowed.entry((key, who, source)).or_default();
                let hands = changes_hands(&key, before, after);
                let inside = is_filtered(&key, before)
                    && is_filtered(&key, after)
                    && [before, after].iter().any(|view| view.may(&key, address(ip(source))));
                // Networks come before the frontend and go after it: who is in those of either view
                // may meet for a moment what those meet who are in the other's.
                let meets = |view: &View, client: &str| {
                    client == source || hands || (inside && view.may(&key, address(ip(client))))
                };
                let decisions = [before, after].into_iter().flat_map(|view| {
                    let clients = CLIENTS.iter().filter(move |client| meets(view, client));
                    clients.map(move |client| view.decide(&key, who, address(ip(client))))
                });
                for decision in decisions {
                    match decision {
                        Decision::Forward(group, masquerade) => list.extend(
                            [before, after]
                                .iter()
                                .flat_map(|view| view.endpoints(group))
                                .map(|endpoint| Outcome::Endpoint(endpoint, masquerade)),
                        ),
                        refused => list.extend([Outcome::Refused(refused)]),
                    }
                }
            }
        }
    }
    allowed
}

fn is_filtered(key: &FrontendKey, view: &View) -> bool {
    view.frontends.get(key).is_some_and(|frontend| frontend.flags & flag::FILTERED != 0)
}

/// A frontend that is filtered both before and after, but for different Services: the clients of
/// one may come to the other's endpoints for a moment.
fn changes_hands(key: &FrontendKey, before: &View, after: &View) -> bool {
    let group =
        |view: &View| view.frontends.get(key).filter(|f| f.flags & flag::FILTERED != 0).map(|f| f.group);
    match (group(before), group(after)) {
        (Some(old), Some(new)) => old != new,
        _ => false,
    }
}

fn live(scheduler: Scheduler, history: &[Step]) {
    // Now all Services are large, now none.
    let large_from = if history.len().is_multiple_of(2) { 0 } else { usize::MAX };
    let mut run = Run::with_large_from(large_from, scheduler);
    history.iter().for_each(|step| run.step(step));
}

proptest! {
    #![proptest_config(cases(50))]

    #[test]
    fn no_lookup_ever_fails_with_random_picks(history in history()) {
        live(Scheduler::Random, &history);
    }

    #[test]
    fn no_lookup_ever_fails_with_round_robin(history in history()) {
        live(Scheduler::RoundRobin, &history);
    }

    #[test]
    fn no_lookup_ever_fails_with_maglev(history in history()) {
        live(Scheduler::Maglev, &history);
    }
}

// What the properties above cannot reach, or not say clearly.

fn web() -> Service {
    Service { ports: vec![port("http", Tcp, 80, 30080)], ..service("s1", "172.30.0.1") }
}

fn endpoints(hosts: impl IntoIterator<Item = u8>) -> Event {
    let endpoints = hosts.into_iter().map(|host| endpoint(&format!("10.0.0.{host}"), "")).collect();
    apply_slice(slice("a4", "s1", ("http", Tcp, 8080), endpoints))
}

fn apply_slice(slice: EndpointSlice) -> Event {
    Event::Slice(Change::Apply(slice))
}

fn apply(service: Service) -> Event {
    Event::Service(Change::Apply(service))
}

/// The maps that operations write to, in order.
fn written(ops: &[Op]) -> Vec<(bool, MapKind)> {
    let kind = |op: &Op| match op {
        Op::Put(entry) => (true, entry.map()),
        Op::Delete(id) => (false, id.map()),
    };
    ops.iter().map(kind).collect()
}

#[test]
fn a_change_of_one_endpoint_costs_few_operations() {
    use MapKind::{Endpoints, Groups};
    let mut run = Run::new(Scheduler::Random);
    run.events(&[apply(web()), endpoints(1..=100)]);
    let replaced = run.events(&[endpoints((1..=100).map(|host| if host == 7 { 200 } else { host }))]);
    assert_eq!(written(&replaced), [(true, Endpoints)]);
    let shrunk = run.events(&[endpoints((1..=100).filter(|host| *host != 7))]);
    assert_eq!(written(&shrunk), [(true, Endpoints), (true, Groups), (false, Endpoints)], "{shrunk:?}");
    let grown = run.events(&[endpoints(1..=100)]);
    assert_eq!(written(&grown), [(true, Endpoints), (true, Groups)], "{grown:?}");
    run.check();
}

#[test]
fn a_cursor_is_written_once_and_a_table_with_each_change() {
    use MapKind::{Endpoints, Groups, Maglev};
    for scheduler in [Scheduler::RoundRobin, Scheduler::Maglev] {
        let mut run = Run::new(scheduler);
        run.events(&[apply(web()), endpoints(1..=3)]);
        let ops = run.events(&[endpoints(1..=2)]);
        let expected = match scheduler {
            Scheduler::Maglev => vec![(true, Maglev), (true, Groups), (false, Endpoints)],
            _ => vec![(true, Groups), (false, Endpoints)],
        };
        assert_eq!(written(&ops), expected);
    }
}

#[test]
fn a_service_appears_from_the_back_and_vanishes_from_the_front() {
    use MapKind::{Endpoints, Frontends, Groups, Members, Sources};
    let mut run = Run::new(Scheduler::Random);
    let balancer = Service {
        service_type: ServiceType::LoadBalancer,
        load_balancer_ips: ips("203.0.113.9"),
        source_ranges: nets("192.0.2.0/24"),
        affinity: Some(60),
        ..web()
    };
    run.events(&[endpoints(1..=1)]);
    let there = run.events(&[apply(balancer)]);
    let maps = [Members, Sources, Endpoints, Groups, Frontends, Frontends, Frontends, Frontends];
    assert_eq!(written(&there), maps.map(|map| (true, map)));
    let mark = Op::Put(sluice_core::ebpf::cluster_ip(ip("172.30.0.1")));
    assert_eq!(there.last(), Some(&mark), "the mark comes last");
    let gone = run.events(&[Event::Service(Change::Delete(name("s1")))]);
    let mut maps = maps.map(|map| (false, map));
    maps.reverse();
    assert_eq!(written(&gone), maps);
    assert_eq!(run.maps, Maps::default());
    assert!(run.ledger.counts().all(|(_, count)| count == 0));
}

#[test]
fn endpoints_that_are_not_ready_but_published_may_keep_their_flows() {
    let mut run = Run::new(Scheduler::Random);
    let dns = Service { ports: vec![port("dns", Udp, 53, 0)], ..service("s1", "172.30.0.1") };
    let mut published = endpoint("10.0.0.1", "");
    published.conditions.serving = false;
    run.events(&[apply(dns), apply_slice(slice("a4", "s1", ("dns", Udp, 53), vec![published]))]);
    assert_eq!(run.ledger.count(MapKind::Members), 1);
}

#[test]
fn a_group_has_the_number_of_its_identity_and_list() {
    let mut run = Run::new(Scheduler::Random);
    let local =
        Service { service_type: ServiceType::NodePort, external_policy: TrafficPolicy::Local, ..web() };
    run.events(&[
        apply(local),
        apply_slice(slice("a4", "s1", ("http", Tcp, 8080), vec![endpoint("10.0.0.1", "here")])),
    ]);
    let plan = run.planner.plan(&name("s1")).expect("a plan").clone();
    let number = |group| group_number(&GroupId::new(&plan.ports[0].id, None, group), group);
    assert_eq!(number(Group::Cluster) | list::LOCAL, number(Group::Local));
    assert_eq!(number(Group::Cluster) & list::MASK, list::CLUSTER);
    for group in [Group::Cluster, Group::Local] {
        assert!(run.maps.entries.contains_key(&EntryId::Group(number(group))));
    }
}

#[test]
fn a_restart_in_the_middle_of_a_change_ends_right() {
    let mut run = Run::new(Scheduler::Maglev);
    run.events(&[apply(web()), endpoints(1..=9)]);
    let changes = run.plan(&[endpoints((2..=8).filter(|host| *host != 4))]);
    let ops = run.ledger.change(&changes);
    assert!(ops.len() > 1, "{ops:?} has no middle");
    let start = run.maps.clone();
    for done in 0..ops.len() {
        run.maps = start.clone();
        ops[..done].iter().for_each(|op| run.maps.apply(op));
        run.step(&Step::Restart(Vec::new()));
    }
}
