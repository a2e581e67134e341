//! What the kernel refuses of one Service keeps no other from it: whose operation is refused gets
//! none of its later ones in this pass, and those of all others are done.
//!
//! The order stays the ledger's, so a Service that stops stops between two operations, where each
//! lookup is right ([`Ledger`](super::Ledger)). Services meet in frontends only, which may go from
//! one to another: one that stays where it was still leads to the endpoints of before, so whoever
//! had it stops too, before its endpoints go. Who does have it is what the map says, not what a
//! plan says.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use sluice_common::Address;
use sluice_common::service::{FrontendKey, SourceKey, list};

use super::entry::{Entry, EntryId, Op, address};
use super::lower::group_number;
use crate::group::GroupId;
use crate::model::ObjectName;
use crate::nft::quarantine::{Failure, Outcome, Refused};
use crate::plan::{Group, ServicePlan};

/// When more is refused, it is not about single Services.
const GIVE_UP: usize = 256;
/// The refusal of those that nobody is told of one by one.
const OF_ALL: usize = usize::MAX;

/// Whose an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Whose {
    Service(ObjectName),
    /// A group that no plan knows, without the bits of its lists.
    Group(u64),
}

/// Keeps the operations of one pass apart.
#[derive(Default)]
pub struct Apart {
    services: FxHashMap<u64, ObjectName>,
    cluster_ips: FxHashMap<Address, Vec<ObjectName>>,
    /// Where frontends lead to in the map.
    held: FxHashMap<FrontendKey, u64>,
    /// The same of ClusterIPs, by these.
    behind: FxHashMap<Address, Vec<u64>>,
    /// Where those will that are written.
    wanted: FxHashMap<FrontendKey, u64>,
    /// Who gets nothing any more, by which refusal.
    stopped: FxHashMap<Whose, usize>,
    /// Networks that were written for frontends that are to be written.
    let_in: Vec<(FrontendKey, EntryId)>,
    /// Frontends that were not written.
    left_out: FxHashSet<FrontendKey>,
}

impl Apart {
    /// For operations that turn what is `observed` into what `plans` ask for. `before`: plans of
    /// before that may still be in force.
    pub fn new(plans: &[Arc<ServicePlan>], before: &[Arc<ServicePlan>], observed: &[Entry]) -> Self {
        let mut apart = Apart::default();
        // What is now counts more than what was.
        for plan in before.iter().chain(plans) {
            for port in &plan.ports {
                let id = GroupId::new(&port.id, port.affinity, Group::Cluster);
                apart.services.insert(group_number(&id, Group::Cluster), plan.name.clone());
            }
            for ip in &plan.cluster_ips {
                apart.cluster_ips.entry(address(*ip)).or_default().push(plan.name.clone());
            }
        }
        apart.held.extend(observed.iter().filter_map(leads));
        for (key, group) in apart.held.iter().filter(|(key, _)| apart.cluster_ips.contains_key(&key.address))
        {
            apart.behind.entry(key.address).or_default().push(*group);
        }
        apart
    }

    /// Commits all operations but those of Services of which one is refused. When more is refused
    /// than single Services explain, nothing is written any more, but whoever lacks nothing still
    /// loses what it has too much: that may be the room that the others wait for.
    pub fn commit<R, E>(
        mut self,
        ops: &[Op],
        mut commit: impl FnMut(&[Op]) -> Result<(), Failure<R, E>>,
    ) -> Result<Outcome<R>, E> {
        let puts = ops.iter().filter_map(|op| if let Op::Put(entry) = op { leads(entry) } else { None });
        self.wanted = puts.collect();
        let (mut all, mut gave_up): (Vec<Refused<R>>, Option<R>) = (Vec::new(), None);
        // The next ones are taken from the end.
        let mut waiting: Vec<&[Op]> = ops.chunk_by(|one, other| kind(one) == kind(other)).collect();
        waiting.reverse();
        while let Some(part) = waiting.pop() {
            if gave_up.is_some() {
                let puts = part.iter().filter(|op| matches!(op, Op::Put(_)));
                puts.for_each(|op| self.leave(op, OF_ALL, &mut all));
            }
            let left: Vec<Op> = part.iter().filter(|op| !self.skips(op, &mut all)).cloned().collect();
            let why = match if left.is_empty() { Ok(()) } else { commit(&left) } {
                Ok(()) => {
                    let networks: Vec<_> = left.iter().filter_map(|op| self.network(op)).collect();
                    self.let_in.extend(networks);
                    continue;
                }
                Err(Failure::Refused(why)) => why,
                Err(Failure::Unknown(error)) => return Err(error),
            };
            if let [_, _, ..] = part {
                let (first, second) = part.split_at(part.len() / 2);
                waiting.extend([second, first]);
                continue;
            }
            if gave_up.is_some() {
                break;
            }
            if all.len() >= GIVE_UP || left.iter().all(|op| self.whose(op).is_empty()) {
                left.iter().for_each(|op| self.leave(op, OF_ALL, &mut all));
                gave_up = Some(why);
                continue;
            }
            all.push(Refused { services: Vec::new(), why });
            let by = all.len() - 1;
            left.iter().for_each(|op| self.leave(op, by, &mut all));
        }
        // A frontend that still is another Service's lets in whom that one does.
        let is_idle = |(frontend, _): &&(FrontendKey, EntryId)| self.left_out.contains(frontend);
        let idle: Vec<Op> = self.let_in.iter().filter(is_idle).map(|(_, id)| Op::Delete(*id)).collect();
        match if idle.is_empty() { Ok(()) } else { commit(&idle) } {
            Ok(()) => Ok(gave_up.map_or(Outcome::Done(all), Outcome::GaveUp)),
            Err(Failure::Refused(why)) => Ok(Outcome::GaveUp(gave_up.unwrap_or(why))),
            Err(Failure::Unknown(error)) => Err(error),
        }
    }

    /// An operation is not done: whose it is gets nothing more.
    fn leave<R>(&mut self, op: &Op, by: usize, all: &mut [Refused<R>]) {
        self.whose(op).into_iter().for_each(|whose| self.stop(whose, by, all));
        self.stop_holder(op, by, all);
    }

    /// The network that an operation lets in, if that is for a frontend that is to be written after
    /// it.
    fn network(&self, op: &Op) -> Option<(FrontendKey, EntryId)> {
        match op {
            Op::Put(entry @ Entry::Source(_, key)) if self.wanted.contains_key(&key.frontend) => {
                Some((key.frontend, entry.id()))
            }
            _ => None,
        }
    }

    /// Whether an operation is left out.
    fn skips<R>(&mut self, op: &Op, all: &mut [Refused<R>]) -> bool {
        let by = self.whose(op).iter().find_map(|whose| self.stopped.get(whose).copied());
        if let Some(by) = by {
            self.stop_holder(op, by, all);
        }
        by.is_some()
    }

    /// Who has a frontend that is not written keeps it, and so all that it leads to. Without the
    /// mark of a ClusterIP all of its frontends stay: what is said of ports that are not defined is
    /// not there to take their place.
    fn stop_holder<R>(&mut self, op: &Op, by: usize, all: &mut [Refused<R>]) {
        let frontend = match op {
            Op::Put(Entry::Frontend(key, _)) | Op::Delete(EntryId::Frontend(key)) => key,
            _ => return,
        };
        self.left_out.insert(*frontend);
        let groups = if is_mark(frontend) {
            self.behind.get(&frontend.address).cloned().unwrap_or_default()
        } else {
            self.held.get(frontend).copied().into_iter().collect()
        };
        groups.into_iter().for_each(|group| self.stop(self.of_group(group), by, all));
    }

    fn stop<R>(&mut self, whose: Whose, by: usize, all: &mut [Refused<R>]) {
        if self.stopped.contains_key(&whose) {
            return;
        }
        if let (Whose::Service(name), Some(refused)) = (&whose, all.get_mut(by)) {
            refused.services.push(name.clone());
        }
        self.stopped.insert(whose, by);
    }

    /// Whose an operation is: of what is written, who wants it; of what is deleted, who had it.
    fn whose(&self, op: &Op) -> Vec<Whose> {
        let id = match op {
            Op::Put(entry) => entry.id(),
            Op::Delete(id) => *id,
        };
        let group = match id {
            EntryId::Member(key) => Some(key.group),
            EntryId::Endpoint(key) => Some(key.group),
            EntryId::Cursor(group) | EntryId::Maglev(group) | EntryId::Group(group) => Some(group),
            EntryId::Frontend(key) if is_mark(&key) => {
                let names = self.cluster_ips.get(&key.address).into_iter().flatten();
                return names.cloned().map(Whose::Service).collect();
            }
            EntryId::Frontend(key) | EntryId::Source(_, SourceKey { frontend: key, .. }) => {
                self.wanted.get(&key).or_else(|| self.held.get(&key)).copied()
            }
            EntryId::Address(_) | EntryId::Network(..) | EntryId::Config => None,
        };
        group.map(|group| self.of_group(group)).into_iter().collect()
    }

    fn of_group(&self, group: u64) -> Whose {
        let group = group & !list::MASK;
        self.services.get(&group).map_or(Whose::Group(group), |name| Whose::Service(name.clone()))
    }
}

/// A frontend, and the group that it leads to.
fn leads(entry: &Entry) -> Option<(FrontendKey, u64)> {
    match entry {
        Entry::Frontend(key, frontend) if !is_mark(key) => Some((*key, frontend.group)),
        _ => None,
    }
}

/// Whether a frontend is the mark of a ClusterIP.
fn is_mark(key: &FrontendKey) -> bool {
    key.port == 0 && key.protocol == 0
}

/// What can be done at once.
fn kind(op: &Op) -> (bool, super::MapKind) {
    match op {
        Op::Put(entry) => (true, entry.map()),
        Op::Delete(id) => (false, id.map()),
    }
}
