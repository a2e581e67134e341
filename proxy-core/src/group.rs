//! Endpoint groups as backends hold them: an identity that needs no memory, and which slot each
//! endpoint has.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use sha2::{Digest, Sha256};

use crate::list::List;
use crate::model::ServicePortName;
use crate::plan::{Group, PlanChange, ServicePlan, Target};
use crate::slots::arrange;

/// Identity of a group in the kernel: 63 bits of a SHA-256 over the service port's identity and
/// affinity timeout, and one bit for Cluster or Local.
///
/// A hash, because it needs no memory over restarts; a strong one, because Services of different
/// tenants must not be able to collide on purpose. The timeout is in it so that a changed timeout
/// starts afresh.
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

pub use crate::plan::Member;

/// What of a group is lowered: all of it, or what a change touches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Slots with their members.
    pub slots: Vec<(u32, Member)>,
    /// Endpoints on this node.
    pub local: Vec<Target>,
}

/// Gives what is to be lowered of a group.
pub type Parts<'a> = dyn Fn(GroupId, &List<Target>) -> Part + 'a;

/// Groups of so many members know where each of them is, because to look for one would cost a look
/// at all.
const LARGE: usize = 1000;

/// The members of a group in the order of their slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Order {
    members: Vec<Member>,
    /// Of large groups.
    slots: Option<FxHashMap<Member, u32>>,
}

impl Order {
    fn new(mut members: Vec<Member>, is_large: bool) -> Self {
        members.shrink_to_fit();
        let slots = is_large.then(|| members.iter().copied().zip(0..).collect());
        Order { members, slots }
    }

    /// In which slots some of the members are, in order.
    fn slots_of(&self, wanted: &[Member]) -> Vec<usize> {
        let mut found: Vec<usize> = match &self.slots {
            Some(slots) => wanted.iter().filter_map(|m| slots.get(m)).map(|slot| *slot as usize).collect(),
            None if wanted.is_empty() => Vec::new(),
            None => {
                let is_wanted = |slot: &usize| wanted.binary_search(&self.members[*slot]).is_ok();
                (0..self.members.len()).filter(is_wanted).collect()
            }
        };
        found.sort_unstable();
        found
    }

    /// The order after an edit.
    fn edit(&mut self, edit: &Edit) {
        for (slot, member) in &edit.before.slots {
            // Who went to another slot is entered again below.
            if let Some(slots) = &mut self.slots
                && slots.get(member) == Some(slot)
            {
                slots.remove(member);
            }
        }
        self.members.truncate(edit.len);
        for (slot, member) in &edit.after.slots {
            match self.members.get_mut(*slot as usize) {
                Some(place) => *place = *member,
                None => self.members.push(*member),
            }
            if let Some(slots) = &mut self.slots {
                slots.insert(*member, *slot);
            }
        }
    }
}

/// Which slots the endpoints of all groups have. Small groups take memory only if their order is
/// not the sorted one.
#[derive(Default)]
pub(crate) struct Slots {
    orders: FxHashMap<GroupId, Order>,
}

impl Slots {
    /// The members of a group in the order of their slots.
    pub(crate) fn of(&self, id: GroupId, targets: &List<Target>) -> Vec<Member> {
        match self.orders.get(&id) {
            Some(order) => order.members.clone(),
            None => members(targets),
        }
    }

    /// All of a group.
    pub(crate) fn whole(&self, id: GroupId, targets: &List<Target>) -> Part {
        let slots = (0..).zip(self.of(id, targets)).collect();
        Part { slots, local: on_this_node(targets.iter()) }
    }

    /// What a change of plans touches of the groups that are there before and after it.
    pub(crate) fn edits(&self, change: &PlanChange) -> FxHashMap<GroupId, Edit> {
        let (before, mut after) = (used_groups(change.old.as_ref()), used_groups(change.new.as_ref()));
        let both = before.into_iter().filter_map(|(id, old)| Some((id, old, after.remove(&id)?)));
        // Who is lowered more or less often than before has to be lowered as a whole.
        both.filter(|(_, old, new)| old.users == new.users)
            .map(|(id, old, new)| (id, Edit::between(old.targets, new.targets, self.orders.get(&id))))
            .collect()
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.orders.clear();
    }

    /// Takes over the slots of a group as a kernel holds them, in any order. With a hole they are
    /// ignored: the order says nothing about the slots then.
    pub(crate) fn adopt(&mut self, id: GroupId, mut read: Vec<(u32, Member)>) {
        read.sort_unstable();
        if read.iter().enumerate().all(|(at, (slot, _))| at == *slot as usize) {
            let members = read.into_iter().map(|(_, member)| member).collect();
            self.orders.insert(id, Order::new(members, false));
        }
    }

    /// Forgets the groups of which no plan knows.
    pub(crate) fn retain(&mut self, plans: &[Arc<ServicePlan>]) {
        let known: FxHashSet<GroupId> = plans.iter().flat_map(|p| groups(Some(p)).into_keys()).collect();
        self.orders.retain(|id, _| known.contains(id));
    }

    /// Keeps surviving endpoints in their slots.
    pub(crate) fn renew(&mut self, change: &PlanChange) {
        self.renew_by(change, &self.edits(change));
    }

    /// The same, with what [`Slots::edits`] has told of the change.
    pub(crate) fn renew_by(&mut self, change: &PlanChange, edits: &FxHashMap<GroupId, Edit>) {
        let before = groups(change.old.as_ref());
        let after = groups(change.new.as_ref());
        for id in before.keys().filter(|id| !after.contains_key(id)) {
            self.orders.remove(id);
        }
        for (id, targets) in after {
            let (previous, is_large) = (self.orders.remove(&id), targets.len() >= LARGE);
            let sorted = || before.get(&id).map_or_else(Vec::new, |old| members(old));
            let order = match (edits.get(&id), previous) {
                (Some(edit), Some(mut order)) if order.slots.is_some() == is_large => {
                    order.edit(edit);
                    order
                }
                (Some(edit), previous) => {
                    let mut order = Order::new(previous.map_or_else(sorted, |order| order.members), false);
                    order.edit(edit);
                    Order::new(order.members, is_large)
                }
                (None, previous) => {
                    let previous = previous.map_or_else(sorted, |order| order.members);
                    Order::new(arrange(&previous, &members(targets)), is_large)
                }
            };
            if is_large || !order.members.iter().copied().eq(targets.iter().map(member)) {
                self.orders.insert(id, order);
            }
        }
    }
}

/// What a change of its endpoints does to a group.
#[derive(Clone, Debug, Default)]
pub(crate) struct Edit {
    /// What it touches, before and after.
    pub(crate) before: Part,
    pub(crate) after: Part,
    /// How many endpoints there are afterwards.
    len: usize,
}

impl Edit {
    /// Between two lists. `order`: of the old one, where it is not the sorted one. The result is
    /// that of [`arrange`].
    fn between(old: &List<Target>, new: &List<Target>, order: Option<&Order>) -> Edit {
        let (gone, came) = old.difference(new);
        let (left, arrived) = (without(&gone, &came), without(&came, &gone));
        let at = |slot: usize| match order {
            Some(order) => order.members.get(slot).copied(),
            None => old.get(slot).map(member),
        };
        let leaves = |member: &Member| left.binary_search(member).is_ok();
        let holes: Vec<usize> = match order {
            Some(order) => order.slots_of(&left),
            None => left.iter().filter_map(|m| old.place(m, member)).collect(),
        };
        let beyond = (new.len()..old.len()).filter_map(at);
        let fill = beyond.clone().filter(|member| !leaves(member)).chain(arrived);
        let free = holes.iter().copied().filter(|slot| *slot < new.len()).chain(old.len()..new.len());
        let emptied = holes.iter().copied().filter(|slot| *slot < new.len());
        let touched = emptied.filter_map(|slot| Some((slot, at(slot)?)));
        let numbered = |(slot, member): (usize, Member)| (slot as u32, member);
        Edit {
            after: Part { slots: free.zip(fill).map(numbered).collect(), local: on_this_node(came.iter()) },
            before: Part {
                slots: touched.chain((new.len()..).zip(beyond)).map(numbered).collect(),
                local: on_this_node(gone.iter()),
            },
            len: new.len(),
        }
    }
}

/// The members of a list that are not in another one, sorted.
fn without(list: &[Target], other: &[Target]) -> Vec<Member> {
    let list = list.iter().map(member);
    list.filter(|member| other.binary_search_by_key(member, self::member).is_err()).collect()
}

fn on_this_node<'a>(targets: impl Iterator<Item = &'a Target>) -> Vec<Target> {
    targets.filter(|target| target.local).copied().collect()
}

/// A group of a plan, and how many of its service ports lead there.
struct Used<'a> {
    targets: &'a List<Target>,
    users: usize,
}

fn used_groups(plan: Option<&Arc<ServicePlan>>) -> FxHashMap<GroupId, Used<'_>> {
    let mut found: FxHashMap<GroupId, Used<'_>> = FxHashMap::default();
    for port in plan.iter().flat_map(|plan| plan.ports.iter()) {
        for group in [Group::Cluster, Group::Local] {
            if !port.targets(group).is_empty() {
                let id = GroupId::new(&port.id, port.affinity, group);
                let used = found.entry(id).or_insert(Used { targets: port.targets(group), users: 0 });
                used.users += usize::from(port.uses(group));
            }
        }
    }
    found
}

/// The groups of a plan that have endpoints.
pub(crate) fn groups(plan: Option<&Arc<ServicePlan>>) -> FxHashMap<GroupId, &List<Target>> {
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

fn members(targets: &List<Target>) -> Vec<Member> {
    targets.iter().map(member).collect()
}

pub(crate) fn member(target: &Target) -> Member {
    (target.address, target.port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn targets(numbers: impl IntoIterator<Item = (u8, bool)>) -> List<Target> {
        let target = |(n, local)| Target { address: IpAddr::from([10, 0, 0, n]), port: 80, local };
        numbers.into_iter().map(target).collect()
    }

    fn list() -> impl Strategy<Value = List<Target>> {
        proptest::collection::btree_map(0_u8..30, any::<bool>(), 0..20).prop_map(targets)
    }

    #[test]
    fn one_endpoint_of_many_touches_a_slot_or_two() {
        let target = |n: u32| Target { address: IpAddr::from(n.to_be_bytes()), port: 80, local: false };
        let all: Vec<Target> = (0..10_000).map(target).collect();
        let (all, less): (List<Target>, List<Target>) = (all.iter().copied().collect(), {
            let others = all.iter().enumerate().filter(|(at, _)| *at != 17);
            others.map(|(_, target)| *target).collect()
        });
        let reversed: Vec<Member> = members(&all).into_iter().rev().collect();
        let orders = [false, true].map(|is_large| Order::new(reversed.clone(), is_large));
        for order in [None, Some(&orders[0]), Some(&orders[1])] {
            let edit = Edit::between(&all, &less, order);
            assert_eq!((edit.before.slots.len(), edit.after.slots.len()), (2, 1));
        }
        let edit = Edit::between(&less, &all, None);
        assert_eq!((edit.before.slots.len(), edit.after.slots.len()), (0, 1));
    }

    proptest! {
        #[test]
        fn an_edit_leads_to_the_order_that_all_members_would(
            lists in proptest::collection::vec(list(), 2..6),
            is_large: bool,
        ) {
            let mut order: Option<Order> = None;
            for two in lists.windows(2) {
                let (old, new) = (&two[0], &two[1]);
                let edit = Edit::between(old, new, order.as_ref());
                let mut edited = order.take().unwrap_or_else(|| Order::new(members(old), is_large));
                let before = edited.members.clone();
                let after = arrange(&before, &members(new));
                edited.edit(&edit);
                prop_assert_eq!(&edited, &Order::new(after.clone(), is_large));
                // What it does not touch is the same before and after.
                let touched = |part: &Part, slot| part.slots.iter().any(|(touched, _)| *touched == slot);
                for (slot, member) in (0..).zip(&before) {
                    let kept = after.get(slot as usize) == Some(member);
                    prop_assert!(kept || edit.before.slots.contains(&(slot, *member)));
                }
                for (slot, member) in (0..).zip(&after) {
                    let kept = before.get(slot as usize) == Some(member);
                    prop_assert!(kept && !touched(&edit.before, slot) || edit.after.slots.contains(&(slot, *member)));
                }
                let local = |gone: &[Target], from: &List<Target>| {
                    let mut all = on_this_node(from.iter());
                    all.retain(|target| !gone.contains(target));
                    all
                };
                prop_assert_eq!(local(&edit.before.local, old), local(&edit.after.local, new));
                order = (after != members(new)).then_some(edited);
            }
        }
    }
}
