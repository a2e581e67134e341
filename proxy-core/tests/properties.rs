//! What holds for every history of events: plans depend on the objects only, and the ledger's
//! operations keep a model of the kernel equal to what a fresh load would make of it.

#![expect(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/large.rs"]
mod large;
#[path = "properties/large.rs"]
mod many;
#[path = "support/objects.rs"]
mod objects;
#[path = "properties/turns.rs"]
mod turns;
#[path = "support/universe.rs"]
mod universe;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use sluice_core::event::{Change, Event};
use sluice_core::index::Index;
use sluice_core::lang::nftables::{ChainName, Element, ElementId, Key, Op, SetId, SetValue, Value, Verdict};
use sluice_core::model::{EndpointSlice, Hints, ObjectName, Service, SliceEndpoint};
use sluice_core::net::{Family, Protocol};
use sluice_core::nft::{Backlog, Balancer, Ledger, NftConfig, NodeView, Scheduler, SetKind, sets};
use sluice_core::plan::{Capture, Detector, PlanChange, PlanConfig, Planner, ServicePlan, Turns};

use kernel::Kernel;
use objects::{endpoint, ip, ips, name, nets, port, service, slice};
use universe::{
    DETECTS, SERVICES, SLICES, any_config, any_event, any_service, any_slice, cases, chance, subset,
};

use Protocol::Tcp;

// Histories.

#[derive(Clone, Debug)]
enum Step {
    /// Several events before the next planning.
    Events(Vec<Event>),
    /// A complete list of the Services, with those that could not be read.
    ListServices(Vec<Service>, Vec<&'static str>),
    /// A complete list of the slices.
    ListSlices(Vec<EndpointSlice>, Vec<&'static str>),
    /// The own node changed.
    Reconfigure(PlanConfig),
    /// Node addresses or ServiceCIDRs changed.
    Node(NodeView),
    /// Unused chains are deleted.
    Collect,
    /// The daemon restarts, or repairs what somebody did to the table.
    Adopt(u64),
}

fn any_node() -> impl Strategy<Value = NodeView> {
    (subset(&["192.168.0.2", "192.168.1.2", "fd00:192::2"]), subset(&["172.30.0.0/16", "fd00:172::/112"]))
        .prop_map(|(addresses, networks)| NodeView {
            node_port_addresses: ips(&addresses),
            service_networks: nets(&networks),
            ..NodeView::default()
        })
}

fn any_step() -> impl Strategy<Value = Step> {
    let kept = |names: &'static [&'static str]| proptest::sample::subsequence(names, 0..3);
    prop_oneof![
        12 => proptest::collection::vec(any_event(), 1..4).prop_map(Step::Events),
        1 => (proptest::collection::vec(any_service(), 0..4), kept(&SERVICES))
            .prop_map(|(list, kept)| Step::ListServices(list, kept)),
        1 => (proptest::collection::vec(any_slice(), 0..5), kept(&SLICES))
            .prop_map(|(list, kept)| Step::ListSlices(list, kept)),
        2 => any_config().prop_map(Step::Reconfigure),
        1 => any_node().prop_map(Step::Node),
        2 => Just(Step::Collect),
        2 => any::<u64>().prop_map(Step::Adopt),
    ]
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(any_step(), 1..14)
}

// What objects there should be.

#[derive(Clone, Default)]
struct Objects {
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, EndpointSlice>,
}

impl Objects {
    fn apply(&mut self, event: &Event) {
        match event {
            Event::Service(Change::Apply(s)) => drop(self.services.insert(s.name.clone(), s.clone())),
            Event::Service(Change::Delete(name)) => drop(self.services.remove(name)),
            Event::Slice(Change::Apply(s)) => drop(self.slices.insert(s.name.clone(), s.clone())),
            Event::Slice(Change::Delete(name)) => drop(self.slices.remove(name)),
            _ => {}
        }
    }

    /// All objects as events, in an order that the seed says.
    fn events(&self, seed: u64) -> Vec<Event> {
        let services = self.services.values().cloned().map(|s| Event::Service(Change::Apply(s)));
        let slices = self.slices.values().cloned().map(|s| Event::Slice(Change::Apply(s)));
        let mut events: Vec<Event> = services.chain(slices).collect();
        events.sort_by_key(|event| chance(seed, &format!("{event:?}")));
        events
    }

    /// Plans made from scratch, all at once or (with `one_by_one`) after each event.
    fn plans(&self, config: &PlanConfig, seed: u64, one_by_one: bool) -> Plans {
        let mut index = Index::default();
        let mut planner = Planner::new(config.clone());
        for event in self.events(seed) {
            index.apply(event);
            if one_by_one {
                let dirty = index.take_dirty();
                planner.replan(&index, dirty.services);
            }
        }
        let dirty = index.take_dirty();
        planner.replan(&index, dirty.services);
        plans(&planner)
    }
}

type Plans = BTreeMap<ObjectName, Arc<ServicePlan>>;

fn plans(planner: &Planner) -> Plans {
    planner.plans().map(|plan| (plan.name.clone(), plan.clone())).collect()
}

/// Daemon, kernel and what both should hold.
struct Run {
    objects: Objects,
    index: Index,
    planner: Planner,
    /// The plans as the changes tell them.
    told: Plans,
    config: NftConfig,
    node: NodeView,
    ledger: Ledger,
    /// Changes wait here, unless they are applied at once.
    turns: Option<(Turns, Backlog)>,
    kernel: Kernel,
}

impl Run {
    fn new(config: NftConfig) -> Self {
        Run::with_large_from(usize::MAX, config)
    }

    fn with_large_from(large_from: usize, config: NftConfig) -> Self {
        let node = NodeView::default();
        let mut kernel = Kernel::default();
        let ledger = Ledger::new(config.clone(), node.clone());
        kernel.commit(&ledger.create_skeleton()).expect("the skeleton");
        kernel.commit(&ledger.finish_load()).expect("the end of the load");
        let plan_config =
            PlanConfig { node_name: "here".into(), detects_pods: DETECTS, ..PlanConfig::default() };
        Run {
            objects: Objects::default(),
            index: Index::default(),
            planner: Planner::with_large_from(large_from, plan_config),
            told: Plans::new(),
            config,
            node,
            ledger,
            turns: None,
            kernel,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Events(events) => {
                events.iter().for_each(|event| self.event(event.clone()));
                self.plan();
            }
            Step::ListServices(list, kept) => {
                let before = self.objects.services.clone();
                self.index.apply(Event::Service(Change::ListBegin));
                list.iter().for_each(|s| self.event(Event::Service(Change::Apply(s.clone()))));
                let kept: BTreeSet<ObjectName> = kept.iter().map(|text| name(text)).collect();
                kept.iter().for_each(|n| self.event(Event::Service(Change::Keep(n.clone()))));
                // Nothing is withdrawn yet.
                self.plan();
                self.index.apply(Event::Service(Change::ListEnd));
                let listed = |n: &ObjectName| list.iter().any(|s| s.name == *n);
                self.objects
                    .services
                    .retain(|n, _| listed(n) || (before.contains_key(n) && kept.contains(n)));
                self.plan();
            }
            Step::ListSlices(list, kept) => {
                let before = self.objects.slices.clone();
                self.index.apply(Event::Slice(Change::ListBegin));
                list.iter().for_each(|s| self.event(Event::Slice(Change::Apply(s.clone()))));
                let kept: BTreeSet<ObjectName> = kept.iter().map(|text| name(text)).collect();
                kept.iter().for_each(|n| self.event(Event::Slice(Change::Keep(n.clone()))));
                self.plan();
                self.index.apply(Event::Slice(Change::ListEnd));
                let listed = |n: &ObjectName| list.iter().any(|s| s.name == *n);
                self.objects.slices.retain(|n, _| listed(n) || (before.contains_key(n) && kept.contains(n)));
                self.plan();
            }
            Step::Reconfigure(config) => {
                let changes = self.planner.reconfigure(config.clone(), &self.index);
                self.take(changes);
            }
            Step::Node(node) => {
                self.node = node.clone();
                let ops = self.ledger.set_node(node.clone());
                self.commit(&ops);
            }
            Step::Collect => {
                self.catch_up();
                // One transaction empties chains found in the table, the next deletes.
                for _ in 0..2 {
                    let ops = self.ledger.delete_retired();
                    self.commit(&ops);
                }
                assert!(!self.ledger.has_retired());
                // Class chains may be kept in stock, but neither groups' chains nor other people's.
                let unused = self.kernel.unused_chains();
                let kept = |name: &&ChainName| name.as_str().starts_with("rr") || name.as_str() == "junk";
                assert_eq!(unused.iter().find(kept), None, "unused, but not deleted");
            }
            Step::Adopt(seed) => self.adopt(*seed),
        }
        self.check();
    }

    fn event(&mut self, event: Event) {
        self.objects.apply(&event);
        self.index.apply(event);
    }

    fn plan(&mut self) {
        let dirty = self.index.take_dirty();
        assert!(!dirty.node);
        let changes = self.planner.replan(&self.index, dirty.services);
        self.take(changes);
        self.check();
    }

    fn take(&mut self, changes: Vec<PlanChange>) {
        assert!(changes.is_sorted_by(|a, b| a.name < b.name), "each Service once, sorted by name");
        for change in &changes {
            assert_ne!(change.old, change.new, "a change that is none");
            assert_eq!(self.told.get(&change.name), change.old.as_ref(), "the plan before");
            match &change.new {
                Some(plan) => self.told.insert(change.name.clone(), plan.clone()),
                None => self.told.remove(&change.name),
            };
        }
        let Some((turns, backlog)) = &mut self.turns else {
            let ops = self.ledger.change(&changes);
            return self.commit(&ops);
        };
        // At times others come first, at times not.
        let goes_on = changes.len().is_multiple_of(2);
        let now = backlog.pass(self.ledger.change(&turns.take(changes)));
        self.commit(&now);
        self.check_classes();
        if goes_on {
            self.go_on();
        }
    }

    /// The next transaction of what was begun, or the first of what is put off.
    fn go_on(&mut self) {
        let Some((turns, backlog)) = &mut self.turns else { return };
        let now = match backlog.is_empty() {
            true => backlog.begin(self.ledger.change(&turns.begin())),
            false => backlog.go_on(),
        };
        if backlog.is_empty() {
            turns.done();
        }
        self.commit(&now);
        self.check_classes();
    }

    fn is_in_turns(&self) -> bool {
        self.turns.as_ref().is_some_and(|(turns, backlog)| !backlog.is_empty() || !turns.put_off().is_empty())
    }

    fn catch_up(&mut self) {
        while self.is_in_turns() {
            self.go_on();
        }
    }

    /// No frontend leads to a class that is not there, whatever waits.
    fn check_classes(&self) {
        self.check_source_ranges();
        for (id, value) in &self.kernel.elements {
            let kinds = [SetKind::Services, SetKind::NodePorts];
            let Some(family) = kinds.iter().find_map(|kind| kind.family_of(id.set)) else { continue };
            let Value::Data(data) = value else { continue };
            let Some((_, classes)) = data.as_slice().split_last_chunk::<24>() else { continue };
            for (class, kind) in classes.chunks(8).zip([SetKind::Entries, SetKind::Classes, SetKind::Classes])
            {
                let element = ElementId { set: kind.set(family), key: Key::new(class) };
                let is_there = class == [0; 8] || self.kernel.elements.contains_key(&element);
                assert!(is_there, "{id:?} leads to {element:?}, which is not there");
            }
        }
    }

    fn commit(&mut self, ops: &[Op]) {
        if let Err(why) = self.kernel.commit(ops) {
            panic!("the kernel refuses: {why}");
        }
    }

    fn all_plans(&self) -> Vec<Arc<ServicePlan>> {
        self.told.values().cloned().collect()
    }

    /// The daemon restarts; if the seed says so, somebody has changed the table before.
    fn adopt(&mut self, seed: u64) {
        let waits = self.is_in_turns();
        // What waits is lost.
        if let Some((turns, backlog)) = &mut self.turns {
            turns.begin();
            turns.done();
            backlog.all();
        }
        let damaged = !seed.is_multiple_of(4) || waits;
        if damaged {
            self.damage(seed);
        }
        let mut observed = self.kernel.observe();
        if seed % 16 == 1 {
            observed.altered = true;
        }
        self.ledger = Ledger::new(self.config.clone(), self.node.clone());
        let ops = self.ledger.reconcile(&self.all_plans(), observed);
        assert!(damaged || ops.is_empty(), "nothing was wrong: {ops:?}");
        self.commit(&ops);
    }

    fn damage(&mut self, seed: u64) {
        let kernel = &mut self.kernel;
        let before = kernel.elements.clone();
        kernel.elements.retain(|id, _| !chance(seed, id).is_multiple_of(8));
        for (id, value) in &mut kernel.elements {
            if chance(seed, id) % 8 == 1 {
                let same_set: Vec<&Value> =
                    before.iter().filter(|(other, _)| other.set == id.set).map(|(_, value)| value).collect();
                *value = *same_set[chance(seed ^ 1, id) as usize % same_set.len()];
            }
        }
        for (name, (_, rules)) in &mut kernel.chains {
            match chance(seed, name) % 8 {
                0 => rules.clear(),
                1 => rules.reverse(),
                2 => rules.truncate(1),
                _ => {}
            }
        }
        let used = kernel.references();
        kernel.chains.retain(|name, _| used.contains(name) || !chance(seed ^ 2, name).is_multiple_of(4));
        let junk = ChainName::new("junk");
        kernel.chains.insert(junk, (None, Vec::new()));
        let (set, key) = first_set(SetValue::Verdict);
        kernel.elements.insert(ElementId { set, key }, Value::Verdict(Verdict::Goto(junk)));
        let (set, key) = first_set(SetValue::None);
        kernel.elements.insert(ElementId { set, key }, Value::None);
    }

    /// Everything that holds after every step.
    fn check(&self) {
        if self.is_in_turns() {
            return;
        }
        let config = self.planner.config();
        let fresh = self.objects.plans(config, 0, false);
        assert_eq!(plans(&self.planner), fresh, "plans made anew");
        assert_eq!(self.told, fresh, "plans as the changes tell them");
        self.check_owners();
        let mut right = Kernel::default();
        let ledger = self.load(&mut right);
        if let Err(why) = self.kernel.same_as(&right) {
            panic!("not what a fresh load gives: {why}");
        }
        assert!(!ledger.has_retired());
        let mut adopting = Ledger::new(self.config.clone(), self.node.clone());
        let ops = adopting.reconcile(&self.all_plans(), self.kernel.observe());
        assert_eq!(ops, [], "a restart has nothing to do");
    }

    /// Loads everything into an empty kernel, as a first start does.
    fn load(&self, kernel: &mut Kernel) -> Ledger {
        let mut ledger = Ledger::new(self.config.clone(), self.node.clone());
        kernel.commit(&ledger.create_skeleton()).expect("the skeleton");
        for plan in self.all_plans() {
            let change = PlanChange { name: plan.name.clone(), old: None, new: Some(plan) };
            kernel.commit(&ledger.change(&[change])).expect("one Service");
        }
        kernel.commit(&ledger.finish_load()).expect("the end of the load");
        ledger
    }

    /// No frontend has two owners, and none that is wanted has no owner.
    fn check_owners(&self) {
        let mut owners: BTreeMap<Capture, &ObjectName> = BTreeMap::new();
        for plan in self.told.values() {
            for frontend in plan.ports.iter().flat_map(|port| &port.frontends) {
                let other = owners.insert(frontend.capture, &plan.name);
                assert_eq!(other, None, "{} belongs to {} too", frontend.capture, plan.name);
            }
        }
        for service in self.objects.services.values() {
            for (port, ip) in
                service.ports.iter().flat_map(|p| service.cluster_ips.iter().map(move |ip| (p, ip)))
            {
                let capture = Capture::Address(*ip, port.protocol, port.port);
                assert!(owners.contains_key(&capture), "nobody has {capture}");
                if port.node_port != 0 {
                    let capture = Capture::NodePort(Family::of(ip), port.protocol, port.node_port);
                    assert!(owners.contains_key(&capture), "nobody has {capture}");
                }
            }
        }
    }
}

/// A set of a kind, with a key that fits it and that no Service has.
fn first_set(value: SetValue) -> (SetId, Key) {
    let set = sets(Balancer::Ruleset)
        .into_iter()
        .find(|set| set.spec().value == value && !set.spec().dynamic)
        .expect("such a set");
    (set, Key::new(&vec![9; set.spec().key_len as usize]))
}

fn nft_config(scheduler: Scheduler) -> NftConfig {
    NftConfig {
        detectors: [Detector::Cidr(nets("10.0.0.0/8")[0]), Detector::None],
        scheduler,
        match_all_node_addresses: [false, true],
        ..NftConfig::default()
    }
}

/// Whichever Services count as large.
fn large_from() -> impl Strategy<Value = usize> {
    proptest::sample::select(vec![0, 6, usize::MAX])
}

fn live(scheduler: Scheduler, large_from: usize, history: &[Step]) {
    let mut run = Run::with_large_from(large_from, nft_config(scheduler));
    for step in history {
        run.step(step);
    }
    run.step(&Step::Collect);
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn every_history_ends_where_a_fresh_start_does_with_random_picks(
        history in history(),
        large_from in large_from(),
    ) {
        live(Scheduler::Random, large_from, &history);
    }

    #[test]
    fn every_history_ends_where_a_fresh_start_does_with_round_robin(
        history in history(),
        large_from in large_from(),
    ) {
        live(Scheduler::RoundRobin, large_from, &history);
    }

    #[test]
    fn every_history_ends_where_a_fresh_start_does_though_changes_wait_for_others(
        history in history(),
        large_from in large_from(),
        turns_from in 0..9_usize,
        limit in 1..12_usize,
        round_robin in any::<bool>(),
    ) {
        let scheduler = if round_robin { Scheduler::RoundRobin } else { Scheduler::Random };
        let mut run = Run::with_large_from(large_from, nft_config(scheduler));
        run.turns = Some((Turns::with_large_from(turns_from), Backlog::new(limit)));
        for step in &history {
            run.step(step);
        }
        run.step(&Step::Collect);
    }

    #[test]
    fn the_order_of_objects_does_not_matter(
        services in proptest::collection::vec(any_service(), 0..6),
        slices in proptest::collection::vec(any_slice(), 0..6),
        config in any_config(),
        seeds in any::<(u64, u64)>(),
    ) {
        let mut objects = Objects::default();
        for event in services.into_iter().map(|s| Event::Service(Change::Apply(s))) {
            objects.apply(&event);
        }
        for event in slices.into_iter().map(|s| Event::Slice(Change::Apply(s))) {
            objects.apply(&event);
        }
        let once = objects.plans(&config, seeds.0, false);
        prop_assert_eq!(&once, &objects.plans(&config, seeds.1, true));
        prop_assert_eq!(&once, &objects.plans(&config, seeds.1, false));
    }
}

// What the properties above cannot reach.

fn world() -> (Service, Service, EndpointSlice) {
    let older = Service {
        created: Some(1),
        ports: vec![port("http", Tcp, 80, 0)],
        external_ips: ips("192.0.2.1"),
        ..service("s1", "172.30.0.1")
    };
    let younger =
        Service { created: Some(2), cluster_ips: ips("172.30.0.2"), name: name("s2"), ..older.clone() };
    let hinted = |address: &str, zone: &str| SliceEndpoint {
        hints: Some(Box::new(Hints { zones: vec![zone.into()], nodes: Vec::new() })),
        ..endpoint(address, "")
    };
    let endpoints = vec![hinted("10.0.0.1", "za"), hinted("10.0.0.2", "zb"), hinted("10.0.0.3", "zb")];
    (older, younger, slice("a4", "s2", ("http", Tcp, 8080), endpoints))
}

/// The daemon concatenates the changes of a new configuration and those of events of the same
/// moment: here the node loses its zone, and the owner of a contested address goes.
#[test]
fn a_service_that_changes_twice_at_once_ends_right() {
    let (older, younger, slice) = world();
    let mut run = Run::new(nft_config(Scheduler::Random));
    let plain = run.planner.config().clone();
    run.step(&Step::Reconfigure(PlanConfig { zone: Some("zb".into()), ..plain.clone() }));
    run.step(&Step::Events(vec![
        Event::Service(Change::Apply(older.clone())),
        Event::Service(Change::Apply(younger)),
        Event::Slice(Change::Apply(slice)),
    ]));
    run.event(Event::Service(Change::Delete(older.name)));
    let dirty = run.index.take_dirty();
    let mut changes = run.planner.reconfigure(plain, &run.index);
    changes.extend(run.planner.replan(&run.index, dirty.services));
    for change in &changes {
        match &change.new {
            Some(plan) => run.told.insert(change.name.clone(), plan.clone()),
            None => run.told.remove(&change.name),
        };
    }
    let ops = run.ledger.change(&changes);
    run.commit(&ops);
    run.check();
}

#[test]
fn chains_of_an_older_version_that_lead_to_each_other_can_be_deleted() {
    let mut run = Run::new(nft_config(Scheduler::Random));
    let (first, second) = (ChainName::new("old-a"), ChainName::new("old-b"));
    let to_first = sluice_core::lang::nftables::Rule {
        about: "go on",
        exprs: vec![sluice_core::lang::nftables::Expr::Verdict(Verdict::Goto(first))],
    };
    run.kernel.chains.insert(first, (None, Vec::new()));
    run.kernel.chains.insert(second, (None, vec![to_first]));
    run.ledger = Ledger::new(run.config.clone(), run.node.clone());
    let ops = run.ledger.reconcile(&[], run.kernel.observe());
    run.commit(&ops);
    run.step(&Step::Collect);
}

#[test]
fn a_chain_left_over_by_an_earlier_run_may_be_needed_again() {
    for scheduler in [Scheduler::Random, Scheduler::RoundRobin] {
        let mut run = Run::new(nft_config(scheduler));
        let web = Service { ports: vec![port("http", Tcp, 80, 0)], ..service("s1", "172.30.0.1") };
        let appear = Step::Events(vec![Event::Service(Change::Apply(web))]);
        let endpoints = slice("a4", "s1", ("http", Tcp, 8080), vec![endpoint("10.0.0.1", "")]);
        run.step(&Step::Events(vec![Event::Slice(Change::Apply(endpoints))]));
        run.step(&appear);
        run.step(&Step::Events(vec![Event::Service(Change::Delete(name("s1")))]));
        run.step(&Step::Adopt(0));
        run.step(&appear);
        run.step(&Step::Collect);
    }
}

/// Only manifests can say so: an API server refuses two ports of one name.
#[test]
fn two_ports_of_one_name_share_a_group_that_is_deleted_once() {
    for scheduler in [Scheduler::Random, Scheduler::RoundRobin] {
        let mut run = Run::new(nft_config(scheduler));
        let ports = vec![port("http", Tcp, 80, 0), port("http", Tcp, 8080, 0)];
        let web = Service { ports, ..service("s1", "172.30.0.1") };
        let endpoints = slice("a4", "s1", ("http", Tcp, 8080), vec![endpoint("10.0.0.1", "")]);
        run.step(&Step::Events(vec![
            Event::Service(Change::Apply(web)),
            Event::Slice(Change::Apply(endpoints)),
        ]));
        run.step(&Step::Events(vec![Event::Service(Change::Delete(name("s1")))]));
        run.step(&Step::Collect);
    }
}

#[test]
fn a_change_of_one_endpoint_costs_few_operations() {
    let mut run = Run::new(nft_config(Scheduler::Random));
    let web = Service { ports: vec![port("http", Tcp, 80, 30080)], ..service("s1", "172.30.0.1") };
    let of = |hosts: &[u8]| {
        let endpoints = hosts.iter().map(|host| endpoint(&format!("10.0.0.{host}"), "")).collect();
        Event::Slice(Change::Apply(slice("a4", "s1", ("http", Tcp, 8080), endpoints)))
    };
    let many: Vec<u8> = (1..=100).collect();
    run.step(&Step::Events(vec![Event::Service(Change::Apply(web)), of(&many)]));
    let mut replaced = many.clone();
    replaced[50] = 200;
    run.event(of(&replaced));
    let dirty = run.index.take_dirty();
    let changes = run.planner.replan(&run.index, dirty.services);
    let ops = run.ledger.change(&changes);
    assert_eq!(ops.len(), 2, "one slot is written anew: {ops:?}");
    let old = ops.iter().filter(|op| matches!(op, Op::DeleteElement(_))).count();
    let new = ops.iter().filter(|op| matches!(op, Op::AddElement(Element { .. }))).count();
    assert_eq!((old, new), (1, 1));
}

#[test]
fn unknown_cluster_ips_are_refused_only_at_the_end_of_a_first_load() {
    let node = NodeView {
        node_port_addresses: vec![ip("192.168.0.2")],
        service_networks: nets("172.30.0.0/16"),
        ..NodeView::default()
    };
    let ledger = Ledger::new(nft_config(Scheduler::Random), node);
    let mut kernel = Kernel::default();
    kernel.commit(&ledger.create_skeleton()).expect("the skeleton");
    let rules = |kernel: &Kernel| kernel.chains[&ChainName::new("check-cluster-ips")].1.len();
    assert_eq!(rules(&kernel), 2);
    kernel.commit(&ledger.finish_load()).expect("the end of the load");
    assert_eq!(rules(&kernel), 3);
}

#[test]
fn the_model_kernel_refuses_what_the_kernel_refuses() {
    let mut kernel = Kernel::default();
    let ledger = Ledger::new(nft_config(Scheduler::Random), NodeView::default());
    assert!(kernel.commit(&ledger.finish_load()).is_err(), "no table");
    kernel.commit(&ledger.create_skeleton()).expect("the skeleton");
    let (plain, key) = first_set(SetValue::None);
    let element = Element { id: ElementId { set: plain, key }, value: Value::None };
    let short = ElementId { set: plain, key: Key::new(&[1]) };
    let (map, key) = first_set(SetValue::Verdict);
    let to = |chain: &str| Element {
        id: ElementId { set: map, key },
        value: Value::Verdict(Verdict::Goto(ChainName::new(chain))),
    };
    let unused = ChainName::new("unused");
    kernel.commit(&[Op::AddElement(element)]).expect("an element");
    kernel.commit(&[Op::AddChain(unused, None), Op::AddElement(to("unused"))]).expect("a verdict");
    for (what, ops) in [
        ("an element twice", vec![Op::AddElement(element)]),
        ("an unknown element", vec![Op::DeleteElement(short)]),
        ("a short key", vec![Op::AddElement(Element { id: short, value: Value::None })]),
        (
            "a value of another kind",
            vec![Op::DeleteElement(to("x").id), Op::AddElement(Element { value: Value::None, ..to("x") })],
        ),
        ("a verdict to nowhere", vec![Op::DeleteElement(to("x").id), Op::AddElement(to("x"))]),
        ("a verdict to a base chain", vec![Op::DeleteElement(to("x").id), Op::AddElement(to("nat-output"))]),
        ("a chain in use", vec![Op::DeleteChain(unused)]),
        ("a chain just unused", vec![Op::DeleteElement(to("x").id), Op::DeleteChain(unused)]),
        ("rules of no chain", vec![Op::SetRules(ChainName::new("x"), Vec::new())]),
    ] {
        let before = kernel.clone();
        assert!(kernel.commit(&ops).is_err(), "{what}");
        assert_eq!(kernel, before, "{what}");
    }
}
