//! Packet marks that stand for virtual servers.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::group::GroupId;
use crate::plan::{Group, PlanChange, PortPlan, ServicePlan};

/// Which marks are ours: bits 24 to 31 are always the same, bits 14 and 15 zero. By these kube-proxy, kubelet and others ask
/// for masquerading and for drops.
pub(crate) mod server_mark {
    /// Bits that are the same in all.
    pub(crate) const MASK: u32 = 0xff00_c000;
    /// What they are.
    pub(crate) const PREFIX: u32 = 0x5300_0000;
    /// How many marks there are: 14 low bits and 8 high ones.
    pub(crate) const COUNT: u32 = 1 << 22;
}

/// The marks of service ports of eTP=Local, each by its Cluster group.
///
/// A mark is a hash of the group, and the next free one after it where two have the same hash. So a restart gives the same
/// marks again, except to the rare ones of the latter kind.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    by_group: FxHashMap<GroupId, u32>,
    taken: FxHashSet<u32>,
}

impl Marks {
    /// The mark of a service port, by its Cluster group.
    pub fn of(&self, group: &GroupId) -> Option<u32> {
        self.by_group.get(group).copied()
    }

    /// Gives marks to service ports that need them from now on, and takes those of others back.
    pub(crate) fn renew(&mut self, change: &PlanChange) {
        let (old, new) = (needing(change.old.as_deref()), needing(change.new.as_deref()));
        for group in old.difference(&new) {
            if let Some(mark) = self.by_group.remove(group) {
                self.taken.remove(&mark);
            }
        }
        let mut new: Vec<GroupId> = new.into_iter().collect();
        new.sort_unstable();
        for group in new {
            if !self.by_group.contains_key(&group) && self.taken.len() < server_mark::COUNT as usize {
                let mut number = group.number() as u32 >> 1;
                while !self.taken.insert(mark(number)) {
                    number = number.wrapping_add(1);
                }
                self.by_group.insert(group, mark(number));
            }
        }
    }
}

/// Whether a mark can be one of ours.
pub fn is_ours(mark: u32) -> bool {
    mark & server_mark::MASK == server_mark::PREFIX
}

fn mark(number: u32) -> u32 {
    let number = number % server_mark::COUNT;
    server_mark::PREFIX | (number & 0x3fff) | (number >> 14) << 16
}

fn needing(plan: Option<&ServicePlan>) -> FxHashSet<GroupId> {
    let ports = plan.iter().flat_map(|plan| plan.ports.iter());
    ports.filter(|port| port.frontends.iter().any(is_split)).map(cluster_group).collect()
}

/// The group that marks stand for.
pub(crate) fn cluster_group(port: &PortPlan) -> GroupId {
    GroupId::new(&port.id, port.affinity, Group::Cluster)
}

/// Whether this node's processes get other endpoints than others do.
pub(crate) fn is_split(frontend: &crate::plan::Frontend) -> bool {
    group_of(frontend.actions.host).is_some_and(|group| Some(group) != group_of(frontend.actions.other))
}

/// The group that an action forwards to.
pub(crate) fn group_of(action: crate::plan::Action) -> Option<Group> {
    match action {
        crate::plan::Action::Forward { group, .. } => Some(group),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_ours_and_differ() {
        let all: FxHashSet<u32> = (0..100_000).map(mark).collect();
        assert_eq!(all.len(), 100_000);
        assert!(all.iter().all(|mark| mark & server_mark::MASK == server_mark::PREFIX));
        assert_eq!(mark(server_mark::COUNT), mark(0));
        assert_eq!(mark(server_mark::COUNT - 1), 0x53ff_3fff);
    }
}
