//! An element that the kernel refuses concerns the Service that needs it, and no other.

#![expect(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/objects.rs"]
mod objects;
#[path = "support/universe.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod universe;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use sluice_core::event::{Change, Event};
use sluice_core::index::Index;
use sluice_core::lang::nftables::{ElementId, Op};
use sluice_core::model::{ObjectName, Service};
use sluice_core::net::Protocol::Tcp;
use sluice_core::nft::quarantine::{Failure, Outcome};
use sluice_core::nft::{Ledger, NftConfig, NodeView, Scheduler, SetKind};
use sluice_core::plan::{PlanChange, PlanConfig, Planner, ServicePlan};

use kernel::Kernel;
use objects::{endpoint, name, port, service, slice};
use universe::{DETECTS, any_event, cases};

type Plans = Vec<Arc<ServicePlan>>;

struct World {
    index: Index,
    planner: Planner,
    config: NftConfig,
    ledger: Ledger,
    kernel: Kernel,
}

impl World {
    fn new(scheduler: Scheduler) -> Self {
        let config = NftConfig { scheduler, ..NftConfig::default() };
        let plan = PlanConfig { node_name: "here".into(), detects_pods: DETECTS, ..PlanConfig::default() };
        World {
            index: Index::default(),
            planner: Planner::new(plan),
            ledger: Ledger::new(config.clone(), NodeView::default()),
            config,
            kernel: Kernel::default(),
        }
    }

    fn plan(&mut self, events: &[Event]) -> Vec<PlanChange> {
        for event in events {
            self.index.apply(event.clone());
        }
        let dirty = self.index.take_dirty();
        self.planner.replan(&self.index, dirty.services)
    }

    fn plans(&self) -> Plans {
        let mut plans: Plans = self.planner.plans().cloned().collect();
        plans.sort_by(|a, b| a.name.cmp(&b.name));
        plans
    }

    /// What a fresh start with these plans writes.
    fn fresh(&self, plans: &[Arc<ServicePlan>]) -> Kernel {
        let mut ledger = Ledger::new(self.config.clone(), NodeView::default());
        let mut kernel = Kernel::default();
        kernel.commit(&ledger.create_skeleton()).expect("the skeleton");
        let change = |plan: &Arc<ServicePlan>| PlanChange {
            name: plan.name.clone(),
            old: None,
            new: Some(plan.clone()),
        };
        kernel.commit(&ledger.change(&plans.iter().map(change).collect::<Vec<_>>())).expect("Services");
        kernel.commit(&ledger.finish_load()).expect("the end of the load");
        kernel
    }

    /// A full pass, as a driver does it whose transaction is refused. Returns the Services that
    /// were refused.
    fn full(
        &mut self,
        before: &[Arc<ServicePlan>],
        suspects: &BTreeSet<ObjectName>,
    ) -> BTreeSet<Vec<ObjectName>> {
        let ops = self.ledger.reconcile(&self.plans(), self.kernel.observe());
        let parted = self.ledger.part(ops, &self.plans(), before);
        let kernel = &mut self.kernel;
        let commit = |ops: &[Op]| kernel.commit(ops).map_err(Failure::<String, ()>::Refused);
        match parted.commit(suspects, commit).expect("the kernel answers") {
            Outcome::Done(refused) => refused.into_iter().map(|refused| refused.services).collect(),
            Outcome::GaveUp(why) => panic!("{why}"),
        }
    }
}

/// Values by element; of groups, the members in any order.
fn told(kernel: &Kernel) -> BTreeMap<String, Vec<String>> {
    let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (id, value) in &kernel.elements {
        let key = match id.key.first_chunk::<8>() {
            Some(group) if SetKind::Endpoints.is(id.set) => format!("{} {group:?}", id.set.name()),
            _ => format!("{id:?}"),
        };
        told.entry(key).or_default().push(format!("{value:?}"));
    }
    told.values_mut().for_each(|values| values.sort());
    told
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    proptest::collection::vec(any_event(), 1..12)
}

fn live(scheduler: Scheduler, first: &[Event], second: &[Event], seed: usize) -> Result<(), TestCaseError> {
    let mut world = World::new(scheduler);
    world.plan(first);
    world.kernel = world.fresh(&world.plans());
    let had = told(&world.kernel);
    let changes = world.plan(second);
    let before: Plans = changes.iter().filter_map(|change| change.old.clone()).collect();
    let plans = world.plans();
    // Somebody's own element that is new.
    let wanted = world.fresh(&plans);
    let mut ledger = Ledger::new(world.config.clone(), NodeView::default());
    let new = ledger.reconcile(&plans, world.kernel.observe()).into_iter().filter_map(|op| match op {
        Op::AddElement(element) => Some(element.id),
        _ => None,
    });
    let is_own = |id: &ElementId| [SetKind::Services, SetKind::Endpoints].iter().any(|kind| kind.is(id.set));
    let new: Vec<ElementId> = new.filter(is_own).collect();
    if new.is_empty() {
        return Ok(());
    }
    let id = new[seed % new.len()];
    let without = |victim: &ObjectName| -> Plans {
        plans.iter().filter(|plan| plan.name != *victim).cloned().collect()
    };
    let victim = plans.iter().map(|plan| &plan.name);
    let victim = victim.clone().find(|name| !world.fresh(&without(name)).elements.contains_key(&id));
    let victim = victim.expect("somebody's element").clone();
    world.kernel.refuses.insert(id);

    let refused = world.full(&before, &BTreeSet::new());
    let of_victim = BTreeSet::from([vec![victim.clone()]]);
    prop_assert_eq!(&refused, &of_victim);
    let (now, others) = (told(&world.kernel), told(&world.fresh(&without(&victim))));
    for (what, values) in &others {
        prop_assert_eq!(now.get(what), Some(values), "{} of others", what);
    }
    // What the victim had stays, but for what somebody else has now, or what others had too.
    let old: Plans = before.iter().filter(|plan| plan.name == victim).cloned().collect();
    for what in told(&world.fresh(&old)).keys().filter(|what| !others.contains_key(*what)) {
        prop_assert_eq!(now.get(what), had.get(what), "{} of the victim", what);
    }
    // It is tried again, and refused by itself, which changes nothing.
    let same = world.kernel.clone();
    prop_assert_eq!(world.full(&before, &BTreeSet::from([victim])), of_victim);
    prop_assert_eq!(&world.kernel, &same);
    world.kernel.refuses.clear();
    prop_assert_eq!(world.full(&[], &BTreeSet::new()), BTreeSet::new());
    world.kernel.same_as(&wanted).map_err(TestCaseError::fail)
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn one_refused_element_keeps_one_service_where_it_was(
        first in events(), second in events(), seed in any::<usize>(),
    ) {
        live(Scheduler::Random, &first, &second, seed)?;
    }

    #[test]
    fn the_same_with_chains_of_services(first in events(), second in events(), seed in any::<usize>()) {
        live(Scheduler::RoundRobin, &first, &second, seed)?;
    }
}

/// A group that shrinks and moves: its slots are one Service's, in whatever order they are.
#[test]
fn a_refused_service_keeps_all_of_its_old_endpoints() {
    let web = |port_number| Service {
        ports: vec![port("http", Tcp, port_number, 0)],
        ..service("s1", "172.30.0.1")
    };
    let of = |hosts: &[u8]| {
        let endpoints = hosts.iter().map(|host| endpoint(&format!("10.0.0.{host}"), "")).collect();
        Event::Slice(Change::Apply(slice("a4", "s1", ("http", Tcp, 8080), endpoints)))
    };
    let mut world = World::new(Scheduler::Random);
    world.plan(&[Event::Service(Change::Apply(web(80))), of(&[1, 2, 3, 4])]);
    world.kernel = world.fresh(&world.plans());
    let had = world.kernel.elements.clone();
    let changes = world.plan(&[Event::Service(Change::Apply(web(81))), of(&[4, 5])]);
    let before: Plans = changes.iter().filter_map(|change| change.old.clone()).collect();
    let wanted = world.fresh(&world.plans());
    let is_new = |id: &&ElementId| SetKind::Services.is(id.set) && !had.contains_key(id);
    let new = wanted.elements.keys().find(is_new).expect("the new port");
    world.kernel.refuses.insert(*new);
    assert_eq!(world.full(&before, &BTreeSet::new()), BTreeSet::from([vec![name("s1")]]));
    for (id, value) in &had {
        assert_eq!(world.kernel.elements.get(id), Some(value), "{id:?}");
    }
}
