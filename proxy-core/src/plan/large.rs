//! Large Services: what is kept of their endpoints, so that a change of a slice costs what that
//! slice costs.
//!
//! It is brought up to date by the slices themselves: one that is the same allocation as last time
//! has not changed, so no change can be missed. What an endpoint is told of in several slices is
//! kept of each, and the best one counts. Decisions that depend on all endpoints are made from how
//! many there are of each [`Class`]; only when such a decision turns (hints that count no more, the
//! last ready endpoint gone) is a list made anew from all of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::eligibility::{Class, EndpointLists, Selection, Tally, Target, target};
use super::{Member, PlanConfig};
use crate::index::{Index, merged};
use crate::list::{List, difference};
use crate::model::{EndpointSlice, ObjectName, ServicePortName};
use crate::net::{Family, Protocol};

/// What one slice tells of an endpoint of a service port; in an order that finds all of one
/// endpoint together, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Told {
    member: Member,
    rank: u8,
    class: Class,
    /// The number of the slice.
    slice: u32,
}

/// What is kept of one Service.
#[derive(Default)]
pub(super) struct Large {
    slices: BTreeMap<ObjectName, (u32, Arc<EndpointSlice>)>,
    /// By their numbers.
    names: FxHashMap<u32, ObjectName>,
    /// The number of the next slice.
    next: u32,
    ports: FxHashMap<ServicePortName, Port>,
    ready_here: ReadyHere,
}

/// For each family: the addresses of ready endpoints on this node, and how many service ports have
/// each.
#[derive(Default)]
struct ReadyHere([FxHashMap<IpAddr, u32>; 2]);

/// What is kept of one of its ports.
#[derive(Default)]
struct Port {
    told: List<Told>,
    /// Of the endpoints, each once.
    tally: Tally,
    cluster: Option<Chosen>,
    local: Option<Chosen>,
    /// Of UDP only.
    serving: List<Member>,
}

/// The endpoints that were chosen for a list.
struct Chosen {
    by: Selection,
    targets: List<Target>,
}

/// A slice before and after a change, with its number.
type Changed = (u32, Option<Arc<EndpointSlice>>, Option<Arc<EndpointSlice>>);

/// An endpoint that a change touches: what it was and what it is.
type Touched = (Member, Option<Class>, Option<Class>);

impl Large {
    /// Takes in what changed since the last time. All of `ids` are of one Service.
    pub(super) fn renew(&mut self, index: &Index, ids: &FxHashSet<ServicePortName>, config: &PlanConfig) {
        let Some(service) = ids.iter().next().map(|id| &id.service) else {
            *self = Large::default();
            return;
        };
        let changes = self.take_slices(index, service);
        self.ports.retain(|id, port| {
            let stays = ids.contains(id);
            if !stays {
                port.winners(&self.names)
                    .for_each(|(m, class)| self.ready_here.remove(id.family, m.0, class));
            }
            stays
        });
        for (id, port) in &mut self.ports {
            port.change(id, &changes, &self.names, config, &mut self.ready_here);
        }
        let missing: Vec<&ServicePortName> = ids.iter().filter(|id| !self.ports.contains_key(id)).collect();
        if !missing.is_empty() {
            let all: Vec<Changed> =
                self.slices.values().map(|(number, slice)| (*number, None, Some(slice.clone()))).collect();
            for id in missing {
                let mut port = Port::default();
                port.change(id, &all, &self.names, config, &mut self.ready_here);
                self.ports.insert(id.clone(), port);
            }
        }
        // The names of those that are gone were needed until here.
        for (number, _, new) in changes {
            if new.is_none() {
                self.names.remove(&number);
            }
        }
    }

    /// The endpoint lists of a service port, and who serves.
    pub(super) fn lists(
        &mut self,
        id: &ServicePortName,
        uses_cluster: bool,
        uses_local: bool,
    ) -> (EndpointLists, List<Member>) {
        let Some(port) = self.ports.get_mut(id) else { return Default::default() };
        let (cluster, local) = (port.tally.cluster(), port.tally.local());
        let lists = EndpointLists {
            has_any: port.tally.has_any(uses_cluster, uses_local),
            cluster: port.chosen(uses_cluster.then_some(cluster), &self.names, |port| &mut port.cluster),
            local: port.chosen(uses_local.then_some(local), &self.names, |port| &mut port.local),
        };
        (lists, port.serving.clone())
    }

    /// How many addresses of a family have a ready endpoint on this node.
    pub(super) fn ready_here(&self, family: Family) -> usize {
        self.ready_here.0[family as usize].len()
    }

    /// Takes the slices of now, and returns those that are not what they were.
    fn take_slices(&mut self, index: &Index, service: &ObjectName) -> Vec<Changed> {
        let mut changes: Vec<Changed> = Vec::new();
        let mut new: Vec<Arc<EndpointSlice>> = Vec::new();
        let mut before = self.slices.values().peekable();
        for slice in index.slices(service) {
            // Both are sorted by name. A look at names is needed only where two are not the same.
            while let Some((number, old)) = before.peek() {
                if Arc::ptr_eq(old, slice) || old.name >= slice.name {
                    break;
                }
                changes.push((*number, Some(old.clone()), None));
                before.next();
            }
            match before.peek() {
                Some((_, old)) if Arc::ptr_eq(old, slice) => drop(before.next()),
                Some((number, old)) if old.name == slice.name => {
                    changes.push((*number, Some(old.clone()), Some(slice.clone())));
                    before.next();
                }
                _ => new.push(slice.clone()),
            }
        }
        changes.extend(before.map(|(number, old)| (*number, Some(old.clone()), None)));
        for slice in new {
            while self.names.contains_key(&self.next) {
                self.next = self.next.wrapping_add(1);
            }
            self.names.insert(self.next, slice.name.clone());
            changes.push((self.next, None, Some(slice)));
        }
        for (number, old, new) in &changes {
            match (old, new) {
                (_, Some(slice)) => drop(self.slices.insert(slice.name.clone(), (*number, slice.clone()))),
                (Some(slice), None) => drop(self.slices.remove(&slice.name)),
                (None, None) => {}
            }
        }
        changes
    }
}

impl ReadyHere {
    fn add(&mut self, family: Family, address: IpAddr, class: Class) {
        if class.is_ready_here() {
            *self.0[family as usize].entry(address).or_default() += 1;
        }
    }

    fn remove(&mut self, family: Family, address: IpAddr, class: Class) {
        let counts = &mut self.0[family as usize];
        if class.is_ready_here()
            && let Some(count) = counts.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                counts.remove(&address);
            }
        }
    }
}

impl Port {
    fn change(
        &mut self,
        id: &ServicePortName,
        changes: &[Changed],
        names: &FxHashMap<u32, ObjectName>,
        config: &PlanConfig,
        ready_here: &mut ReadyHere,
    ) {
        let (mut gone, mut came) = (Vec::new(), Vec::new());
        for (number, old, new) in changes {
            let tells = |slice: &Option<Arc<EndpointSlice>>| told(slice.as_deref(), *number, id, config);
            let (old, new) = difference(&tells(old), &tells(new));
            gone.extend(old);
            came.extend(new);
        }
        gone.sort_unstable();
        came.sort_unstable_by_key(|told: &Told| (number_of(told.member), told.rank, told.class, told.slice));
        if self.told.is_empty() {
            self.told = came.into_iter().collect();
            self.begin(id, names, ready_here);
            return;
        }
        let before = std::mem::take(&mut self.told);
        self.told = before.edited(&gone, &came);
        let mut members: Vec<Member> = gone.iter().chain(&came).map(|told| told.member).collect();
        members.sort_unstable();
        members.dedup();
        let counts = |list: &List<Told>, member| best(list.with(member, |told| told.member), names);
        let touched: Vec<Touched> = members
            .into_iter()
            .map(|member| (member, counts(&before, member), counts(&self.told, member)))
            .filter(|(_, was, is)| was != is)
            .collect();
        for ((address, _), was, is) in &touched {
            if let Some(class) = *was {
                self.tally.remove(class);
                ready_here.remove(id.family, *address, class);
            }
            if let Some(class) = *is {
                self.tally.add(class);
                ready_here.add(id.family, *address, class);
            }
        }
        for Chosen { by, targets } in self.cluster.iter_mut().chain(&mut self.local) {
            *targets =
                edited(targets, &touched, |member, class| by.takes(class).then(|| target(member, class)));
        }
        if id.protocol == Protocol::Udp {
            self.serving =
                edited(&self.serving, &touched, |member, class| class.is_serving().then_some(member));
        }
    }

    /// Takes in all that is told of endpoints for the first time.
    fn begin(
        &mut self,
        id: &ServicePortName,
        names: &FxHashMap<u32, ObjectName>,
        ready_here: &mut ReadyHere,
    ) {
        let (mut tally, mut serving) = (Tally::default(), Vec::new());
        for (member, class) in self.winners(names) {
            tally.add(class);
            ready_here.add(id.family, member.0, class);
            serving.extend(Some(member).filter(|_| id.protocol == Protocol::Udp && class.is_serving()));
        }
        (self.tally, self.serving) = (tally, List::from(&serving[..]));
        // Lists of before are of nobody.
        (self.cluster, self.local) = (None, None);
    }

    /// The list of a selection: the one there is, if it was made by the same.
    fn chosen(
        &mut self,
        by: Option<Selection>,
        names: &FxHashMap<u32, ObjectName>,
        place: impl Fn(&mut Port) -> &mut Option<Chosen>,
    ) -> List<Target> {
        let Some(by) = by else { return List::default() };
        if let Some(chosen) = place(self).as_ref().filter(|chosen| chosen.by == by) {
            return chosen.targets.clone();
        }
        let taken = self.winners(names).filter(|(_, class)| by.takes(*class));
        let targets: List<Target> = taken.map(|(member, class)| target(member, class)).collect();
        *place(self) = Some(Chosen { by, targets: targets.clone() });
        targets
    }

    /// Every endpoint once.
    fn winners(&self, names: &FxHashMap<u32, ObjectName>) -> impl Iterator<Item = (Member, Class)> {
        let mut rest = self.told.iter().peekable();
        std::iter::from_fn(move || {
            let first = *rest.next()?;
            if rest.peek().is_none_or(|next| next.member != first.member) {
                return Some((first.member, first.class));
            }
            let others = std::iter::from_fn(|| rest.next_if(|next| next.member == first.member));
            let all: Vec<Told> = std::iter::once(first).chain(others.copied()).collect();
            best(all.iter(), names).map(|class| (first.member, class))
        })
    }
}

/// What counts of what several slices tell of one endpoint: the best, and of equals the first slice
/// by name.
fn best<'a>(told: impl Iterator<Item = &'a Told>, names: &FxHashMap<u32, ObjectName>) -> Option<Class> {
    let mut told = told.peekable();
    let first = told.next()?;
    // Nearly always there is but one.
    if told.peek().is_none_or(|next| next.rank > first.rank) {
        return Some(first.class);
    }
    let equals = std::iter::once(first).chain(told.filter(|other| other.rank == first.rank));
    equals.min_by_key(|told| names.get(&told.slice)).map(|told| told.class)
}

/// What a slice tells of a service port, sorted, each endpoint once.
fn told(slice: Option<&EndpointSlice>, number: u32, id: &ServicePortName, config: &PlanConfig) -> Vec<Told> {
    let Some(slice) = slice.filter(|slice| slice.family == id.family) else { return Vec::new() };
    let ports = slice.ports.iter().filter(|port| port.name == id.port && port.protocol == id.protocol);
    let mut all: Vec<Told> = ports
        .flat_map(|port| slice.endpoints.iter().map(|endpoint| merged(endpoint, port.port)))
        .map(|endpoint| {
            let class = Class::of(&endpoint, config);
            Told { member: (endpoint.address, endpoint.port), rank: class.rank(), class, slice: number }
        })
        .collect();
    // Among equals the first stays the first, and counts.
    all.sort_by_key(|told| (told.member, told.rank));
    all.dedup_by_key(|told| told.member);
    all
}

/// Has the order of endpoints, and is compared much faster.
fn number_of((address, port): Member) -> (u8, u128, u16) {
    match address {
        IpAddr::V4(ip) => (0, u128::from(ip.to_bits()), port),
        IpAddr::V6(ip) => (1, ip.to_bits(), port),
    }
}

/// A list without and with what a change touches of it.
fn edited<T: Copy + Ord>(
    list: &List<T>,
    touched: &[Touched],
    entry: impl Fn(Member, Class) -> Option<T>,
) -> List<T> {
    let (mut gone, mut came) = (Vec::new(), Vec::new());
    for (member, was, is) in touched {
        let [was, is] = [was, is].map(|class| class.and_then(|class| entry(*member, class)));
        if was != is {
            gone.extend(was);
            came.extend(is);
        }
    }
    list.edited(&gone, &came)
}
