//! The ledger: what IPVS, the dummy link and the ruleset should hold, and the steps from one plan
//! to the next.
//!
//! Connections begin between any two operations, and each must find what was right before or what
//! is right after. So:
//! - Virtual servers by mark come before the ruleset sets their mark.
//! - The ruleset comes before the other virtual servers: it refuses what is to be refused before
//!   destinations are drained. Those of frontends that it has refused until now come before it,
//!   because IPVS itself refuses where it has none.
//! - An address is bound, or packets for its port are led here, when its virtual servers are there.
//! - What nobody wants any more goes last: destinations are drained, or deleted if they are of UDP;
//!   a virtual server goes with its last destination, an address with its last virtual server.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::held::Held;
use super::lower::{Claim, Lowered, Wanted, lower};
use super::{DestinationKey, IpvsConfig, Load, NodeView, ObservedServer, Op, Others, Server, ServerKey};
use crate::lang::nftables;
use crate::nft;
use crate::plan::{PlanChange, ServicePlan};

/// What the kernel holds.
#[derive(Debug, Default)]
pub struct Observed {
    /// All virtual servers.
    pub servers: Vec<ObservedServer>,
    /// The addresses of the dummy link.
    pub addresses: Vec<IpAddr>,
    /// What rules of routing lead here.
    pub led: Vec<ServerKey>,
    /// The table; `None` if there is none.
    pub table: Option<nftables::Observed>,
}

/// Operations, to be applied in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// Virtual servers by mark, which are to be there before the ruleset leads to them, and those
    /// whose frontends it refuses no more; where another backend's ruleset is to be replaced, all
    /// others and addresses too.
    pub before: Vec<Op>,
    /// The ruleset.
    pub ruleset: Vec<nftables::Op>,
    /// Virtual servers, then addresses and what is led here.
    pub after: Vec<Op>,
    /// What nobody wants any more.
    pub last: Vec<Op>,
    /// What the ruleset had to keep until then.
    pub closing: Vec<nftables::Op>,
}

/// What the kernel should hold.
pub struct Ledger {
    config: IpvsConfig,
    node: NodeView,
    ruleset: nft::Ledger,
    /// Who wants a virtual server, and how; of several the first counts.
    wanted: FxHashMap<ServerKey, BTreeMap<Claim, Wanted>>,
    held: FxHashMap<ServerKey, Held>,
    /// How many frontends and ClusterIPs have an address.
    addresses: FxHashMap<IpAddr, u32>,
    /// How many Services have a ClusterIP.
    cluster_ips: FxHashMap<IpAddr, u32>,
    bound: FxHashSet<IpAddr>,
    /// What rules of routing lead here.
    led: FxHashSet<ServerKey>,
    /// Addresses that may have to be bound or unbound.
    unsettled: FxHashSet<IpAddr>,
    /// Virtual servers of which something is being drained.
    draining: FxHashSet<ServerKey>,
    /// Addresses that the ruleset closes.
    closed: FxHashSet<IpAddr>,
}

impl Ledger {
    /// A ledger of a kernel that holds nothing.
    pub fn new(config: IpvsConfig, node: NodeView, ruleset: nft::Ledger) -> Self {
        Ledger {
            config,
            node,
            ruleset,
            wanted: FxHashMap::default(),
            held: FxHashMap::default(),
            addresses: FxHashMap::default(),
            cluster_ips: FxHashMap::default(),
            bound: FxHashSet::default(),
            led: FxHashSet::default(),
            unsettled: FxHashSet::default(),
            draining: FxHashSet::default(),
            closed: FxHashSet::default(),
        }
    }

    /// The settings.
    pub fn config(&self) -> &IpvsConfig {
        &self.config
    }

    /// The ruleset.
    pub fn ruleset(&self) -> &nft::Ledger {
        &self.ruleset
    }

    /// The ruleset, to collect its garbage.
    pub fn ruleset_mut(&mut self) -> &mut nft::Ledger {
        &mut self.ruleset
    }

    /// Takes changed plans into account, all in one: a frontend may move from one Service to
    /// another.
    pub fn change(&mut self, changes: &[PlanChange]) -> Steps {
        let changes = PlanChange::merged(changes);
        // By the marks of before.
        let old: Vec<Lowered> =
            changes.iter().filter_map(|change| change.old.as_deref()).map(|plan| self.lower(plan)).collect();
        let ruleset = self.ruleset.change(&changes);
        let mut touched = FxHashSet::default();
        old.iter().for_each(|lowered| self.unclaim(lowered, &mut touched));
        let refused = old.into_iter().flat_map(|lowered| lowered.refused).collect();
        for change in &changes {
            if let Some(plan) = &change.new {
                let lowered = self.lower(plan);
                self.claim(lowered, &mut touched);
            }
        }
        if !self.node.others.listed {
            // An address may have become a ClusterIP, or be none any more: that concerns all its
            // virtual servers.
            let is_unsettled =
                |key: &&ServerKey| key.address().is_some_and(|ip| self.unsettled.contains(&ip));
            touched.extend(self.held.keys().filter(is_unsettled));
        }
        self.steps(touched, &refused, ruleset)
    }

    /// What virtual servers know of the node. A changed one needs [`Ledger::reconcile`].
    pub fn node(&self) -> &NodeView {
        &self.node
    }

    /// Takes into account that others have other addresses, and nothing else of the node has
    /// changed. The first list of them needs [`Ledger::reconcile`].
    pub fn set_others(&mut self, others: Others, of_ruleset: nft::NodeView) -> Steps {
        let before = std::mem::replace(&mut self.node.others, others);
        let ruleset = self.ruleset.set_node(of_ruleset);
        let moved = |ip: &IpAddr| before.have(ip) != self.node.others.have(ip);
        self.unsettled.extend(self.addresses.keys().chain(&self.bound).filter(|ip| moved(ip)));
        let is_moved = |key: &&ServerKey| key.address().is_some_and(|ip| moved(&ip));
        let touched = self.held.keys().filter(is_moved).copied().collect();
        self.steps(touched, &FxHashSet::default(), ruleset)
    }

    /// Steps that turn what the kernel holds into what the plans ask for: none, when it is right.
    /// What others put there is drained like what nobody wants any more, unless it is in an
    /// excluded network.
    pub fn reconcile(
        &mut self,
        plans: &[Arc<ServicePlan>],
        observed: Observed,
        node: NodeView,
        of_ruleset: nft::NodeView,
    ) -> Steps {
        self.node = node;
        // What would be done for a changed node is part of the reconciliation.
        let _ = self.ruleset.set_node(of_ruleset);
        let ruleset = match observed.table {
            Some(table) => self.ruleset.reconcile(plans, table),
            None => {
                let nothing = nftables::Observed { altered: true, ..nftables::Observed::default() };
                let mut ops = self.ruleset.reconcile(plans, nothing);
                ops.retain(|op| *op != nftables::Op::DeleteTable);
                ops
            }
        };
        let mut touched = FxHashSet::default();
        self.held.clear();
        self.draining.clear();
        self.closed.clear();
        self.claim_all(plans, &mut touched);
        for server in observed.servers {
            let key = server.server.key;
            if !self.is_excluded(&key) || self.wanted.contains_key(&key) {
                touched.insert(key);
                self.held.insert(key, Held::observed(server));
            }
        }
        self.bound = observed.addresses.into_iter().collect();
        self.unsettled.extend(&self.bound);
        self.led = observed.led.into_iter().collect();
        touched.extend(&self.led);
        let is_new = ruleset.first() == Some(&nftables::Op::DeleteTable);
        let mut steps = self.steps(touched, &FxHashSet::default(), ruleset);
        if is_new {
            // Until then another backend's ruleset captures connections.
            steps.before.append(&mut steps.after);
        }
        steps
    }

    fn is_excluded(&self, key: &ServerKey) -> bool {
        match key {
            ServerKey::Address(ip, ..) => self.config.exclude.iter().any(|net| net.contains(ip)),
            ServerKey::Mark(_, mark) => !super::marks::is_ours(*mark),
        }
    }

    fn claim_all(&mut self, plans: &[Arc<ServicePlan>], touched: &mut FxHashSet<ServerKey>) {
        self.wanted.clear();
        self.addresses.clear();
        self.cluster_ips.clear();
        for plan in plans {
            let lowered = self.lower(plan);
            self.claim(lowered, touched);
        }
    }

    fn lower(&self, plan: &ServicePlan) -> Lowered {
        lower(plan, &self.config, &self.node, self.ruleset.marks())
    }

    fn claim(&mut self, lowered: Lowered, touched: &mut FxHashSet<ServerKey>) {
        for (claim, wanted) in lowered.servers {
            let key = wanted.server.key;
            self.wanted.entry(key).or_default().insert(claim, wanted);
            touched.insert(key);
        }
        self.unsettled.extend(&lowered.addresses);
        for ip in lowered.addresses {
            *self.addresses.entry(ip).or_default() += 1;
        }
        for ip in lowered.cluster_ips {
            *self.cluster_ips.entry(ip).or_default() += 1;
        }
    }

    fn unclaim(&mut self, lowered: &Lowered, touched: &mut FxHashSet<ServerKey>) {
        for (claim, wanted) in &lowered.servers {
            let key = wanted.server.key;
            if let Some(claims) = self.wanted.get_mut(&key) {
                claims.remove(claim);
                if claims.is_empty() {
                    self.wanted.remove(&key);
                }
            }
            touched.insert(key);
        }
        self.unsettled.extend(&lowered.addresses);
        lowered.addresses.iter().for_each(|ip| discount(&mut self.addresses, ip));
        lowered.cluster_ips.iter().for_each(|ip| discount(&mut self.cluster_ips, ip));
    }

    /// The way from what is held of the touched virtual servers to what is wanted. Those that the
    /// ruleset has `refused` come before it, so that nobody finds none there when it does not
    /// refuse any more.
    fn steps(
        &mut self,
        touched: FxHashSet<ServerKey>,
        refused: &FxHashSet<ServerKey>,
        ruleset: Vec<nftables::Op>,
    ) -> Steps {
        let mut steps = Steps { ruleset, ..Steps::default() };
        let mut touched: Vec<ServerKey> = touched.into_iter().collect();
        touched.sort_unstable();
        let mut last = Vec::new();
        for key in touched.iter().copied() {
            let is_early = matches!(key, ServerKey::Mark(..)) || refused.contains(&key);
            let first = if is_early { &mut steps.before } else { &mut steps.after };
            let wanted = self.wanted.get(&key).and_then(|claims| claims.values().next());
            let held = self.held.get_mut(&key);
            let left = match (wanted, held) {
                (Some(wanted), Some(held)) => held.converge(wanted, first, &mut last),
                (Some(wanted), None) => {
                    let mut new = Held::new(wanted.server);
                    first.push(Op::AddServer(wanted.server));
                    new.converge(wanted, first, &mut last);
                    self.held.insert(key, new);
                    false
                }
                (None, Some(held)) => {
                    held.drain_all(&mut last);
                    if held.is_empty() {
                        self.held.remove(&key);
                        last.push(Op::DeleteServer(key));
                        false
                    } else {
                        true
                    }
                }
                (None, None) => false,
            };
            if left {
                self.draining.insert(key);
            } else {
                self.draining.remove(&key);
            }
        }
        steps.last = last;
        self.lead(&touched, &mut steps);
        self.settle(&mut steps);
        steps
    }

    /// Leads packets for virtual servers with others' addresses here, as long as these are there.
    /// What is being drained is led until its end, also when its address turns out to be nobody's:
    /// it is not bound again, and connections live.
    fn lead(&mut self, touched: &[ServerKey], steps: &mut Steps) {
        for key in touched {
            let Some(ip) = key.address() else { continue };
            let (is_wanted, is_led) = (self.addresses.contains_key(&ip), self.led.contains(key));
            let is_others = self.node.others.have(&ip)
                || self.may_be_others(&ip) && (is_wanted || is_led || self.bound.contains(&ip))
                || is_led && !is_wanted;
            if is_others && !self.node.own_addresses.contains(&ip) && self.held.contains_key(key) {
                if self.led.insert(*key) {
                    steps.after.push(Op::LeadHere(*key));
                }
            } else if self.led.remove(key) {
                steps.last.push(Op::LetPass(*key));
            }
        }
    }

    /// Whether nobody knows yet whose an address is. Until Nodes have been listed, what is no
    /// ClusterIP is treated like an address of others: were it the API server's and bound here,
    /// nobody could list them any more.
    fn may_be_others(&self, ip: &IpAddr) -> bool {
        !self.node.others.listed && !self.cluster_ips.contains_key(ip)
    }

    /// Addresses, when it is known what is being drained.
    fn settle(&mut self, steps: &mut Steps) {
        let drained: FxHashSet<IpAddr> = self.draining.iter().filter_map(ServerKey::address).collect();
        self.rebind(&drained, steps);
        self.close(&drained, steps);
    }

    /// An address that is bound for what is being drained only is closed for everybody else:
    /// otherwise it would lead to the node's own ports.
    fn close(&mut self, drained: &FxHashSet<IpAddr>, steps: &mut Steps) {
        // What the table holds of such is nothing that a plan asks for, so a reconciliation would
        // delete it.
        steps.ruleset.retain(|op| match op {
            nftables::Op::DeleteElement(id) => nft::closed_address(id).is_none_or(|ip| {
                self.closed.insert(ip);
                false
            }),
            _ => true,
        });
        let is_left = |ip: &&IpAddr| self.bound.contains(ip) && !self.addresses.contains_key(ip);
        let wanted: FxHashSet<IpAddr> = drained.iter().filter(is_left).copied().collect();
        for ip in wanted.difference(&self.closed) {
            steps.ruleset.push(nftables::Op::AddElement(nft::close_address(ip)));
        }
        for ip in self.closed.difference(&wanted) {
            let ops = if self.bound.contains(ip) { &mut steps.ruleset } else { &mut steps.closing };
            ops.push(nftables::Op::DeleteElement(nft::close_address(ip).id));
        }
        self.closed = wanted;
    }

    /// Binds and unbinds addresses. Those with virtual servers that are being drained stay, unless
    /// they may be others'.
    fn rebind(&mut self, drained: &FxHashSet<IpAddr>, steps: &mut Steps) {
        let mut unsettled: Vec<IpAddr> = self.unsettled.drain().collect();
        unsettled.sort_unstable();
        for ip in unsettled {
            // Also what others have is unbound at once, if it was bound.
            let is_wanted = self.addresses.contains_key(&ip);
            let is_elsewhere = self.node.own_addresses.contains(&ip)
                || self.node.others.have(&ip)
                || self.may_be_others(&ip);
            if is_wanted && !is_elsewhere {
                if self.bound.insert(ip) {
                    steps.after.push(Op::BindAddress(ip));
                }
            } else if (is_elsewhere || !drained.contains(&ip)) && self.bound.remove(&ip) {
                steps.last.push(Op::UnbindAddress(ip));
            }
        }
    }

    /// Whether rules of routing are to lead anything here.
    pub fn leads(&self) -> bool {
        !self.led.is_empty()
    }

    /// The virtual servers whose destinations are being drained.
    pub fn draining(&self) -> impl ExactSizeIterator<Item = &ServerKey> {
        self.draining.iter()
    }

    /// Deletes what has been drained. `loads` tells the connections of the destinations of a
    /// virtual server; one that is not named there is not in the kernel any more.
    pub fn delete_drained(&mut self, loads: &FxHashMap<(ServerKey, DestinationKey), Load>) -> Steps {
        let mut ops = Vec::new();
        let mut keys: Vec<ServerKey> = self.draining.iter().copied().collect();
        keys.sort_unstable();
        for key in keys.iter().copied() {
            let Some(held) = self.held.get_mut(&key) else { continue };
            let load = |destination| loads.get(&(key, destination)).copied();
            ops.extend(held.forget_drained(load));
            if !held.is_draining() {
                self.draining.remove(&key);
            }
            if held.is_empty() && !self.wanted.contains_key(&key) {
                self.held.remove(&key);
                self.unsettled.extend(key.address());
                ops.push(Op::DeleteServer(key));
            }
        }
        let mut steps = Steps { last: ops, ..Steps::default() };
        self.lead(&keys, &mut steps);
        self.settle(&mut steps);
        steps
    }

    /// Whether the kernel's virtual servers, addresses and rules of routing are those that it
    /// should have. Destinations are not looked at.
    pub fn agrees(&self, servers: &[Server], addresses: &[IpAddr], led: &[ServerKey]) -> bool {
        let is_ours =
            |server: &&Server| !self.is_excluded(&server.key) || self.held.contains_key(&server.key);
        let ours: Vec<&Server> = servers.iter().filter(is_ours).collect();
        ours.len() == self.held.len()
            && ours.iter().all(|s| self.held.get(&s.key).is_some_and(|held| *held.server() == **s))
            && addresses.len() == self.bound.len()
            && addresses.iter().all(|ip| self.bound.contains(ip))
            && led.len() == self.led.len()
            && led.iter().all(|key| self.led.contains(key))
    }
}

fn discount(counts: &mut FxHashMap<IpAddr, u32>, ip: &IpAddr) {
    if let Some(count) = counts.get_mut(ip) {
        *count -= 1;
        if *count == 0 {
            counts.remove(ip);
        }
    }
}
