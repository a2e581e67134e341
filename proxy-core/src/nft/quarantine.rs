//! What the kernel refuses of one Service keeps no other from it: operations are parted by the
//! Services that need them, and those that are refused are found by halving.
//!
//! What belongs together stays together and in order: all operations of one Service, and those of
//! one object that several need. Whoever is refused keeps what it had in the kernel, because its
//! deletions are among its operations.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::ledger::Ledger;
use super::lower::Shared;
use super::sets::SetKind;
use crate::lang::nftables::{ChainName, ElementId, Op};
use crate::model::ObjectName;
use crate::plan::{PlanChange, PortPlan, ServicePlan};

/// So many operations go into one transaction: the kernel holds its lock while it works one off.
pub const TRANSACTION: usize = 10_000;
/// When more is refused, it is not about single Services.
const GIVE_UP: usize = 256;

/// Operations that are refused together or not at all, and the Services that are concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// Whose they are: one Service's, or those of all that need a shared object.
    pub services: Vec<ObjectName>,
    /// The operations, in order.
    pub ops: Vec<Op>,
}

/// Operations by the Services that need them, each part in the order of first operations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parted {
    /// What all rests on.
    pub base: Vec<Op>,
    /// What several Services may need.
    pub shared: Vec<Unit>,
    /// What one Service needs, or needs no more.
    pub own: Vec<Unit>,
    /// Deletions of what several Services may have needed.
    pub unneeded: Vec<Unit>,
    /// Deletions of what no Service is known to have had.
    pub rest: Vec<Op>,
}

/// The kernel's answer to a transaction.
pub enum Failure<R, E> {
    /// It was refused: nothing of it was done.
    Refused(R),
    /// Nobody knows.
    Unknown(E),
}

/// What became of the operations.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<R> {
    /// All is done but what was refused of these Services.
    Done(Vec<Refused<R>>),
    /// It is not about single Services.
    GaveUp(R),
}

/// Services of which something was refused.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused<R> {
    /// Which: several if it is something that all of them need.
    pub services: Vec<ObjectName>,
    /// Why.
    pub why: R,
}

impl Parted {
    /// Commits all but what is refused of single Services. Those of `suspects` come last and one by
    /// one, so that nothing else has to wait for their refusal.
    pub fn commit<R, E>(
        self,
        suspects: &BTreeSet<ObjectName>,
        mut commit: impl FnMut(&[Op]) -> Result<(), Failure<R, E>>,
    ) -> Result<Outcome<R>, E> {
        let mut all = Vec::new();
        let answer = match commit(&self.base) {
            Ok(()) => stages(self, suspects, &mut all, &mut commit),
            Err(failure) => Err(failure),
        };
        match answer {
            Ok(()) => Ok(Outcome::Done(all)),
            Err(Failure::Refused(why)) => Ok(Outcome::GaveUp(why)),
            Err(Failure::Unknown(error)) => Err(error),
        }
    }
}

fn stages<R, E>(
    parted: Parted,
    suspects: &BTreeSet<ObjectName>,
    all: &mut Vec<Refused<R>>,
    commit: &mut impl FnMut(&[Op]) -> Result<(), Failure<R, E>>,
) -> Result<(), Failure<R, E>> {
    for stage in [parted.shared, parted.own, parted.unneeded] {
        // Whoever lacks something would lead to nowhere, and what the others have stays as it was.
        let lacking: FxHashSet<&ObjectName> = all.iter().flat_map(|refused| &refused.services).collect();
        let is_complete = |unit: &Unit| !unit.services.iter().any(|service| lacking.contains(service));
        let units = stage.into_iter().filter(is_complete).collect();
        isolate(units, suspects, all, commit)?;
    }
    commit(&parted.rest)
}

/// Commits all units but those that are refused.
fn isolate<R, E>(
    units: Vec<Unit>,
    suspects: &BTreeSet<ObjectName>,
    all: &mut Vec<Refused<R>>,
    commit: &mut impl FnMut(&[Op]) -> Result<(), Failure<R, E>>,
) -> Result<(), Failure<R, E>> {
    let is_suspect = |unit: &Unit| matches!(&unit.services[..], [only] if suspects.contains(only));
    let (last, first): (Vec<Unit>, Vec<Unit>) = units.into_iter().partition(is_suspect);
    // The next ones are taken from the end.
    let mut waiting: Vec<Vec<Unit>> = last.into_iter().rev().map(|unit| vec![unit]).collect();
    waiting.extend(batches(first).into_iter().rev());
    while let Some(mut batch) = waiting.pop() {
        let ops: Vec<Op> = batch.iter().flat_map(|unit| unit.ops.iter().cloned()).collect();
        let why = match commit(&ops) {
            Ok(()) => continue,
            Err(Failure::Refused(why)) => why,
            Err(unknown) => return Err(unknown),
        };
        let second = batch.split_off(batch.len() / 2);
        if !batch.is_empty() {
            waiting.extend([second, batch]);
            continue;
        }
        if all.len() >= GIVE_UP {
            return Err(Failure::Refused(why));
        }
        let services = second.into_iter().flat_map(|unit| unit.services).collect();
        all.push(Refused { services, why });
    }
    Ok(())
}

/// Units in transactions of bounded size. A unit is not cut.
fn batches(units: Vec<Unit>) -> Vec<Vec<Unit>> {
    let (mut batches, mut size) = (Vec::<Vec<Unit>>::new(), 0);
    for unit in units {
        let more = unit.ops.len();
        match batches.last_mut() {
            Some(batch) if size + more <= TRANSACTION => {
                batch.push(unit);
                size += more;
            }
            _ => {
                batches.push(vec![unit]);
                size = more;
            }
        }
    }
    batches
}

/// What an operation is about, if Services can need it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Subject {
    Element(ElementId),
    /// The slots of a group, whatever endpoints are in them.
    Group([u8; 8]),
    Chain(ChainName),
}

impl Subject {
    fn of_element(id: ElementId) -> Subject {
        match id.key.first_chunk::<8>() {
            Some(group) if SetKind::Endpoints.is(id.set) => Subject::Group(*group),
            _ => Subject::Element(id),
        }
    }

    fn of(op: &Op) -> Option<Subject> {
        match op {
            Op::AddElement(element) => Some(Subject::of_element(element.id)),
            Op::DeleteElement(id) => Some(Subject::of_element(*id)),
            Op::AddChain(name, _) | Op::SetRules(name, _) => Some(Subject::Chain(*name)),
            Op::DeleteTable | Op::AddTable | Op::AddSet(_) | Op::DeleteChain(_) | Op::EmptySet(_) => None,
        }
    }

    fn of_shared(shared: &Shared) -> Option<Subject> {
        match shared {
            Shared::Chain(class) => Some(Subject::Chain(class.name())),
            Shared::Element(element) => Some(Subject::of_element(element.id)),
            Shared::PrefixLength(..) => None,
        }
    }
}

/// Who needs what is operated on.
#[derive(Default)]
struct Needs<'a> {
    own: FxHashMap<Subject, &'a ObjectName>,
    shared: FxHashMap<Subject, Vec<&'a ObjectName>>,
}

/// Which units there are already.
#[derive(Default)]
struct Places<'a> {
    own: FxHashMap<&'a ObjectName, usize>,
    shared: FxHashMap<Subject, usize>,
}

impl<'a> Places<'a> {
    fn own<'u>(&mut self, owner: &'a ObjectName, units: &'u mut Vec<Unit>) -> &'u mut Vec<Op> {
        let at = *self.own.entry(owner).or_insert_with(|| begin(&[owner], units));
        &mut units[at].ops
    }

    /// A subject is either needed or not.
    fn shared<'u>(
        &mut self,
        subject: Subject,
        all: &[&'a ObjectName],
        units: &'u mut Vec<Unit>,
    ) -> &'u mut Vec<Op> {
        let at = *self.shared.entry(subject).or_insert_with(|| begin(all, units));
        &mut units[at].ops
    }
}

fn begin(services: &[&ObjectName], units: &mut Vec<Unit>) -> usize {
    units.push(Unit { services: services.iter().copied().cloned().collect(), ops: Vec::new() });
    units.len() - 1
}

/// How many plans of one Service are remembered, whose operations are refused while it goes on
/// changing.
const MOST_PLANS: usize = 32;

/// Plans that may be in force, wholly or in part, of Services whose changes are not in the kernel
/// yet: each of them says whose an operation is.
#[derive(Debug, Default)]
pub struct Before(BTreeMap<ObjectName, Vec<Arc<ServicePlan>>>);

impl Before {
    /// Plans changed.
    pub fn planned(&mut self, changes: &[PlanChange]) {
        for (name, old) in changes.iter().filter_map(|change| Some((&change.name, change.old.as_ref()?))) {
            let plans = self.0.entry(name.clone()).or_default();
            if plans.iter().any(|known| has_what_it_has(known, old)) {
                continue;
            }
            if plans.len() == MOST_PLANS {
                // The first one was in force as a whole.
                plans.remove(1);
            }
            plans.push(old.clone());
        }
    }

    /// All of them.
    pub fn plans(&self) -> Vec<Arc<ServicePlan>> {
        self.0.values().flatten().cloned().collect()
    }

    /// What is planned now of all but some Services is in force.
    pub fn retain(&mut self, mut is_kept: impl FnMut(&ObjectName) -> bool) {
        self.0.retain(|name, _| is_kept(name));
    }
}

/// Whether two plans of a Service have the same groups, frontends and addresses: endpoints are
/// found by their group.
fn has_what_it_has(known: &ServicePlan, plan: &ServicePlan) -> bool {
    let same = |(a, b): (&PortPlan, &PortPlan)| {
        a.id == b.id && a.affinity == b.affinity && a.frontends == b.frontends
    };
    known.cluster_ips == plan.cluster_ips
        && known.ports.len() == plan.ports.len()
        && known.ports.iter().zip(&plan.ports).all(same)
}

impl Ledger {
    /// Parts operations of [`Ledger::reconcile`] by the Services that need them: by the plans, and
    /// by the plans of `before` that may still be in force.
    pub fn part(&self, ops: Vec<Op>, plans: &[Arc<ServicePlan>], before: &[Arc<ServicePlan>]) -> Parted {
        let needs = self.needs(&ops, plans, before);
        let mut parted = Parted::default();
        let mut places = Places::default();
        let mut ops = ops.into_iter().peekable();
        while let Some(op) = ops.next() {
            let is_replaced = matches!((&op, ops.peek()),
                (Op::DeleteElement(old), Some(Op::AddElement(new))) if *old == new.id);
            let is_deleted = matches!(op, Op::DeleteElement(_)) && !is_replaced;
            let subject = Subject::of(&op);
            let own = subject.and_then(|subject| needs.own.get(&subject));
            let shared = subject.and_then(|subject| Some((subject, needs.shared.get(&subject)?)));
            let ops = match (own, shared) {
                (Some(owner), _) => places.own(owner, &mut parted.own),
                (None, Some((subject, all))) if is_deleted => {
                    places.shared(subject, all, &mut parted.unneeded)
                }
                (None, Some((subject, all))) => places.shared(subject, all, &mut parted.shared),
                (None, None) if is_deleted => &mut parted.rest,
                (None, None) => &mut parted.base,
            };
            ops.push(op);
        }
        parted
    }

    fn needs<'a>(
        &self,
        ops: &[Op],
        plans: &'a [Arc<ServicePlan>],
        before: &'a [Arc<ServicePlan>],
    ) -> Needs<'a> {
        let concerned: FxHashSet<Subject> = ops.iter().filter_map(Subject::of).collect();
        let mut needs = Needs::default();
        for plan in plans.iter().chain(before) {
            let lowered = self.lower_whole(plan);
            let elements = lowered.elements.iter().map(|element| Subject::of_element(element.id));
            let chains = lowered.chains.iter().map(|chain| Subject::Chain(chain.name));
            for subject in elements.chain(chains).filter(|subject| concerned.contains(subject)) {
                needs.own.entry(subject).or_insert(&plan.name);
            }
            let shared = lowered.shared.iter().filter_map(Subject::of_shared);
            for subject in shared.filter(|subject| concerned.contains(subject)) {
                let all = needs.shared.entry(subject).or_default();
                if !all.contains(&&plan.name) {
                    all.push(&plan.name);
                }
            }
        }
        needs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lang::nftables::Key;
    use crate::net::Family;

    fn op(number: u32) -> Op {
        let set = SetKind::ClusterIps.set(Family::V4);
        Op::DeleteElement(ElementId { set, key: Key::new(&number.to_be_bytes()) })
    }

    fn units(count: u32) -> Vec<Unit> {
        let unit = |number: u32| Unit {
            services: vec![ObjectName::new("a", &number.to_string())],
            ops: vec![op(number), op(number)],
        };
        (0..count).map(unit).collect()
    }

    type Answer = Result<(), Failure<(), ()>>;

    /// Commits where these are refused: what came out, how many transactions were refused, and what
    /// is in force.
    fn run(count: u32, bad: &[u32], suspects: &[u32]) -> (Vec<u32>, bool, usize, Vec<Op>) {
        let bad: Vec<Op> = bad.iter().copied().map(op).collect();
        let suspects = suspects.iter().map(|number| ObjectName::new("a", &number.to_string())).collect();
        let (mut refusals, mut in_force) = (0, Vec::new());
        let parted = Parted { own: units(count), ..Parted::default() };
        let outcome = parted.commit(&suspects, |ops| -> Answer {
            if ops.iter().any(|op| bad.contains(op)) {
                refusals += 1;
                return Err(Failure::Refused(()));
            }
            in_force.extend_from_slice(ops);
            Ok(())
        });
        let number = |refused: Refused<()>| refused.services[0].name().parse().unwrap();
        match outcome.unwrap() {
            Outcome::Done(refused) => (refused.into_iter().map(number).collect(), false, refusals, in_force),
            Outcome::GaveUp(()) => (Vec::new(), true, refusals, in_force),
        }
    }

    #[test]
    fn one_of_a_thousand_is_found_by_halving() {
        let (refused, _, refusals, in_force) = run(1000, &[617], &[]);
        assert_eq!(refused, [617]);
        assert!(refusals <= 11, "{refusals}");
        assert_eq!(in_force.len(), 2 * 999);
    }

    #[test]
    fn a_suspect_costs_one_refusal_and_comes_last() {
        let (refused, _, refusals, in_force) = run(1000, &[3, 617], &[3, 617, 4]);
        assert_eq!(refused, [3, 617]);
        assert_eq!(refusals, 2);
        assert_eq!(in_force.last(), Some(&op(4)));
    }

    #[test]
    fn the_search_gives_up_when_everything_is_refused() {
        let all: Vec<u32> = (0..1000).collect();
        let (_, gave_up, refusals, _) = run(1000, &all, &[]);
        assert!(gave_up && refusals < 600, "{refusals}");
        assert!(!run(200, &all, &[]).1);
    }

    #[test]
    fn services_without_their_shared_operations_change_nothing() {
        let names = |numbers: &[u32]| numbers.iter().map(|n| ObjectName::new("a", &n.to_string())).collect();
        let unit = |numbers: &[u32], number| Unit { services: names(numbers), ops: vec![op(number)] };
        let parted = Parted {
            shared: vec![unit(&[0, 1], 10), unit(&[2, 3], 11)],
            own: units(5),
            unneeded: vec![unit(&[1, 2], 12), unit(&[3, 4], 13), unit(&[2], 14)],
            ..Parted::default()
        };
        let (mut in_force, bad) = (Vec::new(), [op(10), op(4)]);
        let outcome = parted.commit(&BTreeSet::new(), |ops| -> Answer {
            if ops.iter().any(|op| bad.contains(op)) {
                return Err(Failure::Refused(()));
            }
            in_force.extend_from_slice(ops);
            Ok(())
        });
        let refused = |numbers: &[u32]| Refused { services: names(numbers), why: () };
        assert_eq!(outcome, Ok(Outcome::Done(vec![refused(&[0, 1]), refused(&[4])])));
        assert_eq!(in_force, [11, 2, 2, 3, 3, 14].map(op));
    }

    #[test]
    fn transactions_are_bounded_but_units_are_whole() {
        let unit = |count| Unit { services: Vec::new(), ops: vec![op(0); count] };
        let sizes = batches([1, 1, TRANSACTION, 2].map(unit).into());
        assert_eq!(sizes.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 1]);
    }
}
