//! What of the endpoints of Services a change touches, and all that is lowered of them then: the
//! rest of a large Service stays in the maps as it is.

use rustc_hash::FxHashMap;

use super::lower::{Endpoints, serves, serving};
use crate::group::{Edit, GroupId, Member, Slots, member};
use crate::list::List;
use crate::net::Protocol;
use crate::plan::{Group, PlanChange, PortPlan, ServicePlan, Target};

/// What a change touches of what is there before and after it.
#[derive(Default)]
pub(super) struct Edits {
    groups: FxHashMap<GroupId, Edit>,
    /// Who may keep flows of UDP, before and after, by Cluster groups.
    serving: FxHashMap<GroupId, [Vec<Member>; 2]>,
}

impl Edits {
    /// Those of a change, with the slots of before it.
    pub(super) fn of(change: &PlanChange, slots: &Slots) -> Self {
        let (old, mut new) = (udp_ports(change.old.as_deref()), udp_ports(change.new.as_deref()));
        let both = old.into_iter().filter_map(|(id, old)| Some((id, old, new.remove(&id)?)));
        // With more or fewer ports of one name than before, all is lowered.
        let serving = both
            .filter(|(_, old, new)| old.len() == new.len())
            .map(|(id, old, new)| (id, touched(&old, &new)))
            .collect();
        Edits { groups: slots.edits(change), serving }
    }

    /// For the slots.
    pub(super) fn groups(&self) -> &FxHashMap<GroupId, Edit> {
        &self.groups
    }
}

/// The UDP ports of a plan by their Cluster groups. Manifests may give several ports of a Service
/// one name, and with it one group.
fn udp_ports(plan: Option<&ServicePlan>) -> FxHashMap<GroupId, Vec<&PortPlan>> {
    let mut found: FxHashMap<GroupId, Vec<&PortPlan>> = FxHashMap::default();
    let ports = plan.into_iter().flat_map(|plan| plan.ports.iter());
    for port in ports.filter(|port| port.id.protocol == Protocol::Udp) {
        found.entry(GroupId::new(&port.id, port.affinity, Group::Cluster)).or_default().push(port);
    }
    found
}

/// Who of those that a change touches may keep flows before it, and after it.
fn touched(old: &[&PortPlan], new: &[&PortPlan]) -> [Vec<Member>; 2] {
    let mut members: Vec<Member> = Vec::new();
    for (old, new) in old.iter().zip(new) {
        let (gone, came) = old.serving.difference(&new.serving);
        members.extend(gone.into_iter().chain(came));
        for group in [Group::Cluster, Group::Local] {
            let (gone, came) = old.targets(group).difference(new.targets(group));
            members.extend(gone.iter().chain(&came).map(member));
        }
    }
    members.sort_unstable();
    members.dedup();
    [old, new].map(|ports| {
        let may_keep = |wanted: &Member| ports.iter().any(|port| serves(port, *wanted));
        members.iter().copied().filter(may_keep).collect()
    })
}

/// Before or after a change.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Before,
    After,
}

/// What is lowered of the endpoints on one side of a change.
pub(super) struct Touched<'a> {
    pub(super) edits: &'a Edits,
    pub(super) side: Side,
    /// The slots on this side.
    pub(super) slots: &'a Slots,
}

impl Endpoints for Touched<'_> {
    fn slots(&self, id: GroupId, targets: &List<Target>) -> Vec<(u32, Member)> {
        match (self.edits.groups.get(&id), self.side) {
            (Some(edit), Side::Before) => edit.before.slots.clone(),
            (Some(edit), Side::After) => edit.after.slots.clone(),
            (None, _) => self.slots.whole(id, targets).slots,
        }
    }

    fn order(&self, id: GroupId, targets: &List<Target>) -> Vec<Member> {
        self.slots.of(id, targets)
    }

    fn serving(&self, id: GroupId, port: &PortPlan) -> Vec<Member> {
        match (self.edits.serving.get(&id), self.side) {
            (Some([before, _]), Side::Before) => before.clone(),
            (Some([_, after]), Side::After) => after.clone(),
            (None, _) => serving(port).collect(),
        }
    }
}
