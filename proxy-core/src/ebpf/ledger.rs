//! The ledger: what the maps should hold, and the operations that lead from one plan to the next.
//!
//! It keeps only what cannot be derived from the plans: the order of slots where it is not the
//! sorted one, and how many Services have each ClusterIP. Everything else is lowered again when it
//! is needed.
//!
//! Packets pass between any two operations, and each must find what was right before or what is
//! right after. So:
//! - What is looked up late is written first: members, sources, cursors, slots, Maglev tables,
//!   sizes of groups, then frontends, at last the marks of ClusterIPs. It is deleted in the reverse
//!   order.
//! - A group grows by slots and then by its size. It shrinks by writing the endpoints of its last
//!   slots into the holes, then by its size, then by deleting the slots beyond. Until then two
//!   slots may have one endpoint.
//! - A Maglev table is written when all slots that it names exist, and before any is deleted. While
//!   the group is still smaller than that, programs take the remainder of what the table says by
//!   the size.
//! - Networks that may use a frontend are there before it is filtered, and until it is not. While
//!   they change, both old and new ones may. Only where a filtered frontend goes to another Service
//!   in the meantime is that one client too many, for the time between two operations.

use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::edits::{Edits, Side, Touched};
use super::entry::{Entry, MapKind, Op, ip, ordered, sorted};
use super::lower::{cluster_ip, group_number, lower};
use crate::diff::{Delta, diff};
use crate::group::{GroupId, Member, Slots};
use crate::plan::{Group, PlanChange, Scheduler, ServicePlan};

/// What the maps should hold of Services. Operations that it returns are applied in their order,
/// one by one; the comment at the head of the file tells why they have that order.
pub struct Ledger {
    scheduler: Scheduler,
    slots: Slots,
    /// How many Services have each ClusterIP: manifests may give one to several.
    cluster_ips: FxHashMap<IpAddr, u32>,
    counts: [usize; MapKind::ALL.len()],
}

impl Ledger {
    /// A ledger of empty maps.
    pub fn new(scheduler: Scheduler) -> Self {
        Ledger {
            scheduler,
            slots: Slots::default(),
            cluster_ips: FxHashMap::default(),
            counts: [0; MapKind::ALL.len()],
        }
    }

    /// How many entries a map of Services should hold. Maps of the node are not counted here.
    pub fn count(&self, map: MapKind) -> usize {
        self.counts[map as usize]
    }

    /// How many entries each map of Services should hold.
    pub fn counts(&self) -> impl Iterator<Item = (MapKind, usize)> + '_ {
        MapKind::ALL.into_iter().filter(|map| map.is_of_services()).map(|map| (map, self.count(map)))
    }

    /// Takes changed plans into account, all in one: a frontend may move from one Service to
    /// another.
    pub fn change(&mut self, changes: &[PlanChange]) -> Vec<Op> {
        let changes = PlanChange::merged(changes);
        // What a change leaves alone in a large group is not lowered at all.
        let edits: Vec<Edits> = changes.iter().map(|change| Edits::of(change, &self.slots)).collect();
        let each = || changes.iter().zip(&edits);
        let old = each().filter_map(|(change, edits)| Some((change.old.as_deref()?, edits)));
        let old = self.lower_all(old, Side::Before);
        for (change, edits) in each() {
            self.slots.renew_by(change, edits.groups());
        }
        let new = each().filter_map(|(change, edits)| Some((change.new.as_deref()?, edits)));
        let new = self.lower_all(new, Side::After);
        let mut delta = diff(old, new);
        self.count_cluster_ips(&changes, &mut delta);
        for entry in &delta.create {
            self.counts[entry.map() as usize] += 1;
        }
        for entry in &delta.delete {
            let count = &mut self.counts[entry.map() as usize];
            *count = count.saturating_sub(1);
        }
        ordered(delta)
    }

    fn lower_all<'a>(
        &self,
        plans: impl Iterator<Item = (&'a ServicePlan, &'a Edits)>,
        side: Side,
    ) -> Vec<Entry> {
        sorted(plans.flat_map(|(plan, edits)| self.lower(plan, edits, side)).collect())
    }

    fn lower(&self, plan: &ServicePlan, edits: &Edits, side: Side) -> Vec<Entry> {
        lower(plan, self.scheduler, &Touched { edits, side, slots: &self.slots })
    }

    /// Adds the marks of ClusterIPs that the first Service has got or the last one has lost.
    fn count_cluster_ips(&mut self, changes: &[PlanChange], delta: &mut Delta<Entry>) {
        let mut needed: FxHashMap<IpAddr, i32> = FxHashMap::default();
        for change in changes {
            for ip in change.new.iter().flat_map(|plan| &plan.cluster_ips) {
                *needed.entry(*ip).or_default() += 1;
            }
            for ip in change.old.iter().flat_map(|plan| &plan.cluster_ips) {
                *needed.entry(*ip).or_default() -= 1;
            }
        }
        for (ip, by) in needed.into_iter().filter(|(_, by)| *by != 0) {
            let count = self.cluster_ips.entry(ip).or_default();
            let before = *count;
            *count = before.saturating_add_signed(by);
            match (before, *count) {
                (0, 1..) => delta.create.push(cluster_ip(ip)),
                (1.., 0) => {
                    self.cluster_ips.remove(&ip);
                    delta.delete.push(cluster_ip(ip));
                }
                _ => {}
            }
        }
    }

    /// Operations that turn the maps as observed into what the plans ask for: nothing, when they
    /// are right. Entries of the node's maps are left alone.
    ///
    /// The ledger is rebuilt from the plans on the way. Where the maps were right for earlier
    /// plans, the operations are as careful as those of [`Ledger::change`].
    pub fn reconcile(&mut self, plans: &[Arc<ServicePlan>], observed: Vec<Entry>) -> Vec<Op> {
        let mut held: Vec<Entry> = observed.into_iter().map(Entry::canonical).collect();
        held.retain(|entry| entry.map().is_of_services());
        let held = sorted(held);
        *self = Ledger::new(self.scheduler);
        self.adopt_slots(plans, &held);
        let mut wanted = Vec::new();
        for plan in plans {
            self.slots.renew(&PlanChange { name: plan.name.clone(), old: None, new: Some(plan.clone()) });
            wanted.extend(self.lower(plan, &Edits::default(), Side::After));
            for ip in &plan.cluster_ips {
                *self.cluster_ips.entry(*ip).or_default() += 1;
            }
        }
        wanted.extend(self.cluster_ips.keys().map(|ip| cluster_ip(*ip)));
        let wanted = sorted(wanted);
        for entry in &wanted {
            self.counts[entry.map() as usize] += 1;
        }
        ordered(diff(held, wanted))
    }

    /// Takes over the order of slots that the maps hold, so that adoption leaves right endpoints
    /// where they are.
    fn adopt_slots(&mut self, plans: &[Arc<ServicePlan>], held: &[Entry]) {
        let mut read: FxHashMap<u64, Vec<(u32, Member)>> = FxHashMap::default();
        for entry in held {
            if let Entry::Endpoint(key, endpoint) = entry
                && key.reserved == 0
            {
                let member = (ip(endpoint.address), u16::from_be(endpoint.port));
                read.entry(key.group).or_default().push((key.slot, member));
            }
        }
        for port in plans.iter().flat_map(|plan| &plan.ports) {
            for group in [Group::Cluster, Group::Local] {
                let id = GroupId::new(&port.id, port.affinity, group);
                if !port.targets(group).is_empty()
                    && let Some(slots) = read.remove(&group_number(&id, group))
                {
                    self.slots.adopt(id, slots);
                }
            }
        }
    }
}
