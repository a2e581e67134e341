//! Endpoint groups as backends hold them: an identity that needs no memory, and which slot each endpoint has.

use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use sha2::{Digest, Sha256};

use crate::model::ServicePortName;
use crate::plan::{Group, PlanChange, ServicePlan, Target};
use crate::slots::arrange;

/// Identity of a group in the kernel: 63 bits of a SHA-256 over the service port's identity and affinity
/// timeout, and one bit for Cluster or Local.
///
/// A hash, because it needs no memory over restarts; a strong one, because Services of different tenants
/// must not be able to collide on purpose. The timeout is in it so that a changed timeout starts afresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(u64);

/// The bit of a group id that says Local.
pub(crate) const LOCAL_BIT: u64 = 1;

impl GroupId {
    /// The id of a service port's group.
    pub fn new(id: &ServicePortName, affinity: Option<u32>, group: Group) -> Self {
        let mut hash = Sha256::new();
        for part in [id.service.as_str(), &id.port, id.protocol.name(), id.family.name()] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        hash.update(affinity.unwrap_or(0).to_be_bytes());
        let digest = hash.finalize();
        let number = digest.iter().take(8).fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        let local = if group == Group::Local { LOCAL_BIT } else { 0 };
        GroupId(number & !LOCAL_BIT | local)
    }

    /// The id as a number.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The id of a number that a kernel holds.
    pub(crate) fn from_number(number: u64) -> Self {
        GroupId(number)
    }
}

/// Address and port of an endpoint in a slot.
pub type Member = (IpAddr, u16);

/// Gives the members of a group in the order of their slots.
pub type SlotOrder<'a> = dyn Fn(GroupId, &[Target]) -> Vec<Member> + 'a;

/// Which slots the endpoints of all groups have. Only orders that are not the sorted one take memory.
#[derive(Default)]
pub(crate) struct Slots {
    unsorted: FxHashMap<GroupId, Box<[Member]>>,
}

impl Slots {
    /// The members of a group in the order of their slots.
    pub(crate) fn of(&self, id: GroupId, targets: &[Target]) -> Vec<Member> {
        match self.unsorted.get(&id) {
            Some(slots) => slots.to_vec(),
            None => members(targets),
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.unsorted.clear();
    }

    /// Takes over the slots of a group as a kernel holds them, in any order. With a hole they are ignored: the
    /// order says nothing about the slots then.
    pub(crate) fn adopt(&mut self, id: GroupId, mut read: Vec<(u32, Member)>) {
        read.sort_unstable();
        if read.iter().enumerate().all(|(at, (slot, _))| at == *slot as usize) {
            self.unsorted.insert(id, read.into_iter().map(|(_, member)| member).collect());
        }
    }

    /// Forgets the groups of which no plan knows.
    pub(crate) fn retain(&mut self, plans: &[Arc<ServicePlan>]) {
        let known: FxHashSet<GroupId> = plans.iter().flat_map(|p| groups(Some(p)).into_keys()).collect();
        self.unsorted.retain(|id, _| known.contains(id));
    }

    /// Keeps surviving endpoints in their slots.
    pub(crate) fn renew(&mut self, change: &PlanChange) {
        let before = groups(change.old.as_ref());
        let after = groups(change.new.as_ref());
        let mut renewed = Vec::new();
        for (id, targets) in &after {
            let previous = match before.get(id) {
                Some(old) => self.of(*id, old),
                None => self.unsorted.get(id).map(|s| s.to_vec()).unwrap_or_default(),
            };
            let sorted = members(targets);
            let slots = arrange(&previous, &sorted);
            renewed.push((*id, (slots != sorted).then_some(slots)));
        }
        for id in before.keys() {
            self.unsorted.remove(id);
        }
        for (id, slots) in renewed {
            match slots {
                Some(slots) => self.unsorted.insert(id, slots.into()),
                None => self.unsorted.remove(&id),
            };
        }
    }
}

/// The groups of a plan that have endpoints.
pub(crate) fn groups(plan: Option<&Arc<ServicePlan>>) -> FxHashMap<GroupId, &[Target]> {
    let mut found = FxHashMap::default();
    for port in plan.iter().flat_map(|plan| plan.ports.iter()) {
        for group in [Group::Cluster, Group::Local] {
            if !port.targets(group).is_empty() {
                let id = GroupId::new(&port.id, port.affinity, group);
                found.insert(id, port.targets(group));
            }
        }
    }
    found
}

fn members(targets: &[Target]) -> Vec<Member> {
    targets.iter().map(|t| (t.address, t.port)).collect()
}
