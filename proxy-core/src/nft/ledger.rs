//! The ledger: what the kernel should hold, and the operations that lead from one plan to the next.
//!
//! It keeps only what cannot be derived from the plans: the order of slots where it is not the
//! sorted one, and how many Services need each shared object. Everything else is lowered again when
//! it is needed.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::classes::is_round_robin;
use super::lower::{Lowered, Shared, address_key, lower, parse_endpoint};
use super::sets::{SetKind, sets};
use super::skeleton::{NodeView, chains, static_elements};
use super::{Balancer, NftConfig};
use crate::diff::{Delta, diff};
use crate::group::{Edit, GroupId, Member, Part, Parts, Slots};
use crate::ipvs::Marks;
use crate::lang::nftables::{
    Chain, ChainName, Element, Observed, Op, SetId, Value, Wanted, element_ops, sorted,
};
use crate::net::Family;
use crate::plan::{PlanChange, ServicePlan};

/// What a change does to groups that are there before and after it.
type Edits = FxHashMap<GroupId, Edit>;

/// The slots of one group as read back, in any order.
type ReadSlots = Vec<(u32, Member)>;

/// Unused class chains that are kept. A class is likely to be needed again (a group that shrank
/// grows again), and to make one is dear: when a rule that looks a map up comes to a chain, the
/// kernel walks all elements of the map (`nf_tables_bind_set`), 9 ms with 10,000 x 10 and 100 ms
/// with 50,000 x 10.
const SPARE_CLASSES: usize = 256;

/// What the kernel should hold.
pub struct Ledger {
    config: NftConfig,
    node: NodeView,
    slots: Slots,
    /// Marks of virtual servers; none but with IPVS.
    marks: Marks,
    shared: FxHashMap<Shared, u32>,
    /// Chains that nobody needs any more, the longest unused first. They are deleted by a
    /// transaction of their own, later: kernels before 6.2 let a map's reference to a chain go only
    /// after the transaction that removes it.
    retired: Vec<ChainName>,
    /// Chains found in our table that nobody needs.
    foreign: Vec<ChainName>,
    /// Those of them that have no rules any more.
    emptied: Vec<ChainName>,
}

impl Ledger {
    /// A ledger that holds the skeleton only.
    pub fn new(config: NftConfig, node: NodeView) -> Self {
        Ledger {
            config,
            node,
            slots: Slots::default(),
            marks: Marks::default(),
            shared: FxHashMap::default(),
            retired: Vec::new(),
            foreign: Vec::new(),
            emptied: Vec::new(),
        }
    }

    /// The backend's configuration.
    pub fn config(&self) -> &NftConfig {
        &self.config
    }

    /// Operations for a table that does not exist: skeleton first. The refusal of unknown
    /// ClusterIPs comes with [`Ledger::finish_load`], when the services are in.
    pub fn create_skeleton(&self) -> Vec<Op> {
        let empty = NodeView { service_networks: Vec::new(), ..self.node.clone() };
        let mut elements = static_elements();
        elements.extend(self.node_elements());
        Wanted { sets: self.sets(), chains: chains(&self.config, &empty, &[]), elements }.create()
    }

    fn sets(&self) -> Vec<SetId> {
        sets(self.config.balancer)
    }

    /// The marks of virtual servers.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Operations that end a first load.
    pub fn finish_load(&self) -> Vec<Op> {
        self.rules_of(&["check-cluster-ips"])
    }

    /// Takes a changed node into account. The first list of others, with IPVS, needs
    /// [`Ledger::reconcile`].
    pub fn set_node(&mut self, node: NodeView) -> Vec<Op> {
        if node == self.node {
            return Vec::new();
        }
        let before: Vec<Element> = sorted(self.node_elements().collect());
        self.node = node;
        let after: Vec<Element> = sorted(self.node_elements().collect());
        let mut ops = element_ops(diff(before, after));
        ops.extend(self.rules_of(&["check-cluster-ips"]));
        ops
    }

    /// Takes changed plans into account, all in one: a frontend may move from one Service to
    /// another.
    pub fn change(&mut self, changes: &[PlanChange]) -> Vec<Op> {
        let changes = PlanChange::merged(changes);
        // What a change leaves alone in a large group is not lowered at all.
        let edits: Vec<Edits> = changes.iter().map(|change| self.edits(change)).collect();
        let each = || changes.iter().zip(&edits);
        let old = each().filter_map(|(change, edits)| Some((change.old.as_deref()?, edits)));
        let old = self.lower_all(old, |edit| &edit.before);
        for (change, edits) in each() {
            self.renew(change, edits);
        }
        let new = each().filter_map(|(change, edits)| Some((change.new.as_deref()?, edits)));
        let new = self.lower_all(new, |edit| &edit.after);
        self.transition(old, new)
    }

    fn edits(&self, change: &PlanChange) -> Edits {
        match self.config.balancer {
            Balancer::Ruleset => self.slots.edits(change),
            Balancer::Ipvs => Edits::default(),
        }
    }

    fn renew(&mut self, change: &PlanChange, edits: &Edits) {
        match self.config.balancer {
            Balancer::Ruleset => self.slots.renew_by(change, edits),
            Balancer::Ipvs => self.marks.renew(change),
        }
    }

    fn lower_all<'a>(
        &self,
        plans: impl Iterator<Item = (&'a ServicePlan, &'a Edits)>,
        side: impl Fn(&Edit) -> &Part,
    ) -> Lowered {
        let mut all = Lowered::default();
        for (plan, edits) in plans {
            let part = |id, targets: &_| match edits.get(&id) {
                Some(edit) => side(edit).clone(),
                None => self.slots.whole(id, targets),
            };
            let Lowered { elements, chains, shared } = self.lower(plan, &part);
            all.elements.extend(elements);
            all.chains.extend(chains);
            all.shared.extend(shared);
        }
        all.elements = sorted(all.elements);
        all
    }

    /// All that one Service needs.
    pub(super) fn lower_whole(&self, plan: &ServicePlan) -> Lowered {
        self.lower(plan, &|id, targets| self.slots.whole(id, targets))
    }

    fn lower(&self, plan: &ServicePlan, parts: &Parts<'_>) -> Lowered {
        lower(plan, &self.config, &self.node.others, parts, &self.marks)
    }

    fn transition(&mut self, old: Lowered, new: Lowered) -> Vec<Op> {
        let mut ops = Vec::new();
        let mut needed: FxHashMap<Shared, i64> = FxHashMap::default();
        for shared in &new.shared {
            *needed.entry(*shared).or_default() += 1;
        }
        for shared in &old.shared {
            *needed.entry(*shared).or_default() -= 1;
        }
        let (mut appeared, mut vanished) = (Vec::new(), Vec::new());
        for (shared, by) in needed.into_iter().filter(|(_, by)| *by != 0) {
            let count = self.shared.entry(shared).or_default();
            let before = *count;
            *count = before.saturating_add_signed(by as i32);
            match (before, *count) {
                (0, 1..) => appeared.push(shared),
                (1.., 0) => {
                    self.shared.remove(&shared);
                    vanished.push(shared);
                }
                _ => {}
            }
        }
        self.appear(&appeared, &old, &new, &mut ops);
        let mut delta = diff(old.elements, new.elements);
        for shared in &vanished {
            if let Shared::Element(element) = shared {
                delta.delete.push(*element);
            }
        }
        // A length that is needed no more still is until the last element with it is gone.
        let (came, gone) = (lengths(&appeared), lengths(&vanished));
        ops.extend(self.source_filters(&came, &gone));
        // First, because the rest may have to wait, and other Services do not wait for it.
        let shared = appeared.iter().filter_map(|shared| match shared {
            Shared::Element(element) => Some(*element),
            _ => None,
        });
        ops.extend(element_ops(Delta { create: shared.collect(), ..Delta::default() }));
        ops.extend(element_ops(delta));
        ops.extend(self.source_filters(&gone, &[]));
        self.vanish(&vanished, &old.chains, &new.chains);
        ops
    }

    /// Chains that are needed from now on, before anything leads to them.
    fn appear(&mut self, appeared: &[Shared], old: &Lowered, new: &Lowered, ops: &mut Vec<Op>) {
        let classes = appeared.iter().filter_map(|shared| match shared {
            Shared::Chain(class) => Some(class.chain(&self.config)),
            _ => None,
        });
        let own = new.chains.iter().filter(|chain| !old.chains.contains(chain)).cloned();
        let chains: Vec<Chain> = classes.chain(own).collect();
        for chain in chains {
            let before = self.retired.len();
            self.retired.retain(|name| *name != chain.name);
            self.foreign.retain(|name| *name != chain.name);
            self.emptied.retain(|name| *name != chain.name);
            // A spare class chain is as it was left: its name says all of its content.
            if is_round_robin(&chain.name) || before == self.retired.len() {
                ops.push(Op::AddChain(chain.name, None));
                ops.push(Op::SetRules(chain.name, chain.rules));
            }
        }
    }

    fn vanish(&mut self, vanished: &[Shared], old: &[Chain], new: &[Chain]) {
        for shared in vanished {
            if let Shared::Chain(class) = shared {
                self.retired.push(class.name());
            }
        }
        let gone = old.iter().filter(|chain| !new.iter().any(|n| n.name == chain.name));
        self.retired.extend(gone.map(|chain| chain.name));
    }

    /// Whether there are chains to delete.
    pub fn has_retired(&self) -> bool {
        self.expendable() > 0
    }

    /// Operations that delete chains that nobody needs. Call them at least a second after the last
    /// change, and again until [`Ledger::has_retired`] says no: chains found in the table may lead
    /// to each other, so they are emptied by one transaction and deleted by the next.
    pub fn delete_retired(&mut self) -> Vec<Op> {
        if !self.foreign.is_empty() {
            let found = std::mem::take(&mut self.foreign);
            self.emptied.extend(&found);
            return found.into_iter().map(|name| Op::SetRules(name, Vec::new())).collect();
        }
        let mut seen = FxHashSet::default();
        self.retired.retain(|name| seen.insert(*name));
        let (classes, groups): (Vec<ChainName>, Vec<ChainName>) =
            self.retired.drain(..).partition(|name| !is_round_robin(name));
        let surplus = classes.len().saturating_sub(SPARE_CLASSES);
        let emptied = std::mem::take(&mut self.emptied);
        let doomed = emptied.iter().chain(&groups).chain(&classes[..surplus]);
        let ops = doomed.map(|name| Op::DeleteChain(*name)).collect();
        self.retired = classes[surplus..].to_vec();
        ops
    }

    fn expendable(&self) -> usize {
        let groups = self.retired.iter().filter(|name| is_round_robin(name)).count();
        self.foreign.len()
            + self.emptied.len()
            + groups
            + (self.retired.len() - groups).saturating_sub(SPARE_CLASSES)
    }

    fn node_elements(&self) -> impl Iterator<Item = Element> + '_ {
        let own = self.node.own_addresses.iter().map(|ip| (SetKind::OwnAddresses, ip));
        let for_node_ports = self
            .node
            .node_port_addresses
            .iter()
            .filter(|ip| !self.config.match_all_node_addresses[Family::of(ip) as usize])
            .map(|ip| (SetKind::NodePortAddresses, ip));
        let others = self.node.others.addresses.iter().map(|ip| (SetKind::OthersAddresses, ip));
        own.chain(others)
            .chain(for_node_ports)
            .map(|(kind, ip)| Element::new(kind.set(Family::of(ip)), address_key(ip), Value::None))
    }

    fn skeleton_chains(&self) -> Vec<Chain> {
        self.skeleton_chains_with(&[])
    }

    /// The same, with prefix lengths of source ranges that nobody needs any more.
    fn skeleton_chains_with(&self, gone: &[(Family, u8)]) -> Vec<Chain> {
        let mut lengths = lengths(self.shared.keys());
        lengths.extend(gone);
        lengths.sort_unstable();
        chains(&self.config, &self.node, &lengths)
    }

    /// The rules that look at source ranges, of the families in which prefix lengths changed.
    fn source_filters(&self, changed: &[(Family, u8)], gone: &[(Family, u8)]) -> Vec<Op> {
        let families: FxHashSet<Family> = changed.iter().map(|(family, _)| *family).collect();
        let names: Vec<_> = families.into_iter().map(super::skeleton::source_filter_chain).collect();
        if names.is_empty() {
            return Vec::new();
        }
        let chains = self.skeleton_chains_with(gone).into_iter();
        let wanted = chains.filter(|chain| names.contains(&chain.name));
        wanted.map(|chain| Op::SetRules(chain.name, chain.rules)).collect()
    }

    fn rules_of(&self, names: &[&str]) -> Vec<Op> {
        let chains = self.skeleton_chains().into_iter();
        let wanted = chains.filter(|chain| names.contains(&chain.name.as_str()));
        wanted.map(|chain| Op::SetRules(chain.name, chain.rules)).collect()
    }

    /// Forgets everything and takes over the order of slots that the kernel holds, so that adoption
    /// leaves right elements where they are.
    pub fn restore_slots(&mut self, observed: &Observed) {
        self.slots.clear();
        self.marks = Marks::default();
        self.shared.clear();
        self.foreign.clear();
        self.emptied.clear();
        let mut slots: FxHashMap<GroupId, ReadSlots> = FxHashMap::default();
        for (id, value) in &observed.elements {
            let Some(family) = SetKind::Endpoints.family_of(id.set) else { continue };
            let Value::Data(data) = value else { continue };
            let Some((group, slot)) = id.key.split_at_checked(8) else { continue };
            let Some(group) = GroupId::from_bytes(group) else { continue };
            let Ok(slot) = <[u8; 4]>::try_from(slot) else { continue };
            if let Some(endpoint) = parse_endpoint(family, data) {
                slots.entry(group).or_default().push((u32::from_ne_bytes(slot), endpoint));
            }
        }
        for (group, list) in slots {
            self.slots.adopt(group, list);
        }
    }

    /// Operations that turn the table as observed into what the plans ask for: nothing, when it is
    /// right.
    ///
    /// The ledger is rebuilt from the plans on the way.
    pub fn reconcile(&mut self, plans: &[Arc<ServicePlan>], observed: Observed) -> Vec<Op> {
        self.restore_slots(&observed);
        let mut wanted: Vec<Element> = static_elements();
        wanted.extend(self.node_elements());
        let mut wanted_chains: Vec<Chain> = Vec::new();
        self.slots.retain(plans);
        for plan in plans {
            let change = PlanChange { name: plan.name.clone(), old: None, new: Some(plan.clone()) };
            self.renew(&change, &Edits::default());
            let lowered = self.lower_whole(plan);
            for shared in &lowered.shared {
                *self.shared.entry(*shared).or_default() += 1;
            }
            wanted.extend(lowered.elements);
            wanted_chains.extend(lowered.chains);
        }
        for shared in self.shared.keys() {
            match shared {
                Shared::Chain(class) => wanted_chains.push(class.chain(&self.config)),
                Shared::Element(element) => wanted.push(*element),
                Shared::PrefixLength(..) => {}
            }
        }
        wanted_chains.extend(self.skeleton_chains());
        let wanted = Wanted { sets: self.sets(), chains: wanted_chains, elements: wanted };
        if !wanted.fits(&observed) {
            return wanted.replace();
        }
        let names: FxHashSet<ChainName> = wanted.chains.iter().map(|chain| chain.name).collect();
        // Of others than our own spares the rules are unknown.
        let extra = observed.chains.iter().map(|chain| chain.name).filter(|name| !names.contains(name));
        let spares = std::mem::take(&mut self.retired);
        (self.retired, self.foreign) = extra.partition(|name| spares.contains(name));
        wanted.difference(observed)
    }
}

/// The prefix lengths of source ranges among shared objects.
fn lengths<'a>(shared: impl IntoIterator<Item = &'a Shared>) -> Vec<(Family, u8)> {
    let length = |shared: &Shared| match shared {
        Shared::PrefixLength(family, length) => Some((*family, *length)),
        _ => None,
    };
    shared.into_iter().filter_map(length).collect()
}
