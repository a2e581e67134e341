//! Packet marks that stand for virtual servers.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::group::GroupId;
use crate::net::Protocol;
use crate::plan::{Group, PlanChange, PortPlan, ServicePlan};

/// Which marks are ours: bits 24 to 31 are always the same, bits 14 and 15 zero. By these
/// kube-proxy, kubelet and others ask for masquerading and for drops. Bit 0 is set for UDP.
pub(crate) mod server_mark {
    /// Bits that are the same in all.
    pub(crate) const MASK: u32 = 0xff00_c000;
    /// What they are.
    pub(crate) const PREFIX: u32 = 0x5300_0000;
    /// How many marks there are of each kind: 13 low bits and 8 high ones.
    pub(crate) const COUNT: u32 = 1 << 21;
    /// What serves datagrams.
    pub(crate) const UDP: u32 = 1;
}

/// The marks of service ports of eTP=Local, each by its Cluster group.
///
/// A mark is a hash of the group, and the next free one after it where two have the same hash. So a
/// restart gives the same marks again, except to the rare ones of the latter kind.
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
        for (group, _) in old.difference(&new) {
            if let Some(mark) = self.by_group.remove(group) {
                self.taken.remove(&mark);
            }
        }
        let mut new: Vec<(GroupId, bool)> = new.into_iter().collect();
        new.sort_unstable();
        for (group, is_udp) in new {
            if !self.by_group.contains_key(&group) && self.taken.len() < server_mark::COUNT as usize {
                let mut number = group.number() as u32 >> 1;
                while !self.taken.insert(mark(number, is_udp)) {
                    number = number.wrapping_add(1);
                }
                self.by_group.insert(group, mark(number, is_udp));
            }
        }
    }
}

/// Whether a mark can be one of ours.
pub fn is_ours(mark: u32) -> bool {
    mark & server_mark::MASK == server_mark::PREFIX
}

/// Whether a mark of ours stands for a virtual server of UDP.
pub(super) fn is_udp(mark: u32) -> bool {
    mark & server_mark::UDP != 0
}

fn mark(number: u32, is_udp: bool) -> u32 {
    let number = number % server_mark::COUNT;
    let kind = if is_udp { server_mark::UDP } else { 0 };
    server_mark::PREFIX | kind | (number & 0x1fff) << 1 | (number >> 13) << 16
}

/// The groups of service ports that need marks, and whether they are of UDP.
fn needing(plan: Option<&ServicePlan>) -> FxHashSet<(GroupId, bool)> {
    let ports = plan.iter().flat_map(|plan| plan.ports.iter());
    let split = ports.filter(|port| port.frontends.iter().any(is_split));
    split.map(|port| (cluster_group(port), port.id.protocol == Protocol::Udp)).collect()
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
        let both = [false, true];
        let all: FxHashSet<u32> =
            (0..100_000).flat_map(|number| both.map(|is_udp| mark(number, is_udp))).collect();
        assert_eq!(all.len(), 200_000);
        assert!(all.iter().all(|mark| mark & server_mark::MASK == server_mark::PREFIX));
        assert_eq!(mark(server_mark::COUNT, false), mark(0, false));
        assert_eq!(mark(server_mark::COUNT - 1, true), 0x53ff_3fff);
        assert!(both.iter().all(|kind| is_udp(mark(7, *kind)) == *kind));
    }
}
