//! The nftables backend's driver: commits what the ledger says, in transactions of bounded size.

use std::sync::Arc;

use sluice_core::lang::nftables::Op;
use sluice_core::nft::{Backlog, Ledger, NftConfig, NodeView, Scheduler, TABLE};
use sluice_core::plan::{PlanChange, ServicePlan};
use sluice_sys::netlink::NetlinkError;
use sluice_sys::nft::{Nft, observe, without_present};

use super::apart::{commit_apart, is_refusal};
use super::{Applied, Backend, BackendError, Done, Known};
use crate::config::Settings;
use crate::http::health::Progress;
use crate::service::facts::{self, NodeFacts};

/// Operations of one transaction, about 20 ms here.
const MAX_OPS: usize = sluice_core::nft::quarantine::TRANSACTION;
/// Services lowered together in a first load.
const LOAD_CHUNK: usize = 500;

/// The backend.
pub struct NftablesBackend {
    nft: Nft,
    ledger: Ledger,
    backlog: Backlog,
    progress: Progress,
}

impl Backend for NftablesBackend {
    fn report_to(&mut self, progress: Progress) {
        self.progress = progress;
    }

    /// Creates the table, or adopts it and applies the difference only.
    fn full(
        &mut self,
        settings: &Settings,
        facts: &NodeFacts,
        plans: &[Arc<ServicePlan>],
        known: &Known,
    ) -> Result<Done, BackendError> {
        self.backlog.all();
        let (config, node) = (facts::nft_config(settings, facts), facts::node_view(settings, facts));
        let Some(ops) = self.difference(&config, &node, plans)? else { return Ok(self.load(plans)?.into()) };
        if known.suspects.is_empty() {
            match self.commit(&ops) {
                Err(error) if is_refusal(&error) => {}
                other => return Ok(other?.into()),
            }
        }
        // Of several transactions the first ones may have been done.
        let ops =
            if ops.len() > MAX_OPS { self.difference(&config, &node, plans)?.unwrap_or(ops) } else { ops };
        Ok(commit_apart(&mut self.nft, &self.ledger, ops, plans, known, &self.progress)?)
    }

    fn change(&mut self, changes: &[PlanChange]) -> Result<Applied, BackendError> {
        let now = self.backlog.pass(self.ledger.change(changes));
        Ok(self.commit(&now)?)
    }

    fn begin(&mut self, changes: &[PlanChange]) -> Result<Applied, BackendError> {
        let now = self.backlog.begin(self.ledger.change(changes));
        Ok(self.commit(&now)?)
    }

    fn has_more(&self) -> bool {
        !self.backlog.is_empty()
    }

    fn go_on(&mut self) -> Result<Applied, BackendError> {
        let ops = self.backlog.go_on();
        Ok(self.commit(&ops)?)
    }

    fn set_node(&mut self, settings: &Settings, facts: &NodeFacts) -> Result<Option<Applied>, BackendError> {
        if *self.ledger.config() != facts::nft_config(settings, facts) {
            return Ok(None);
        }
        let ops = self.ledger.set_node(facts::node_view(settings, facts));
        // Nothing that waits is about the node.
        Ok(Some(self.commit(&ops)?))
    }

    fn has_garbage(&self) -> bool {
        self.ledger.has_retired()
    }

    fn collect_garbage(&mut self) -> Result<Applied, BackendError> {
        let mut applied = Applied::default();
        while self.ledger.has_retired() {
            let ops = self.ledger.delete_retired();
            applied += self.commit(&ops)?;
        }
        Ok(applied)
    }

    fn port(&self) -> Option<u32> {
        Some(self.nft.port())
    }
}

impl NftablesBackend {
    /// A backend that has written nothing yet.
    pub fn open(settings: &Settings, facts: &NodeFacts) -> Result<Self, NetlinkError> {
        let config = facts::nft_config(settings, facts);
        // The chain of a group in turns says how many endpoints there are, so these do not wait.
        let limit = if config.scheduler == Scheduler::RoundRobin { usize::MAX } else { MAX_OPS };
        let ledger = Ledger::new(config, facts::node_view(settings, facts));
        let (backlog, progress) = (Backlog::new(limit), Progress::default());
        Ok(NftablesBackend { nft: Nft::open()?, ledger, backlog, progress })
    }

    /// What is to be done to the table, if there is one.
    fn difference(
        &mut self,
        config: &NftConfig,
        node: &NodeView,
        plans: &[Arc<ServicePlan>],
    ) -> Result<Option<Vec<Op>>, NetlinkError> {
        let observed = observe(&mut self.nft, &TABLE)?;
        self.progress.made();
        if observed.is_none() || self.ledger.config() != config {
            self.ledger = Ledger::new(config.clone(), node.clone());
        } else {
            // The same ledger goes on, because it knows the spare chains; what it would do for a
            // changed node is part of the reconciliation.
            let _ = self.ledger.set_node(node.clone());
        }
        let Some(observed) = observed else { return Ok(None) };
        let ops = without_present(&mut self.nft, &TABLE, self.ledger.reconcile(plans, observed))?;
        self.progress.made();
        Ok(Some(ops))
    }

    fn load(&mut self, plans: &[Arc<ServicePlan>]) -> Result<Applied, NetlinkError> {
        let skeleton = self.ledger.create_skeleton();
        let mut applied = self.commit(&skeleton)?;
        for chunk in plans.chunks(LOAD_CHUNK) {
            let changes: Vec<PlanChange> = chunk
                .iter()
                .map(|plan| PlanChange { name: plan.name.clone(), old: None, new: Some(plan.clone()) })
                .collect();
            applied += self.apply(&changes)?;
        }
        let end = self.ledger.finish_load();
        applied += self.commit(&end)?;
        Ok(applied)
    }

    fn apply(&mut self, changes: &[PlanChange]) -> Result<Applied, NetlinkError> {
        let ops = self.ledger.change(changes);
        self.commit(&ops)
    }

    fn commit(&mut self, ops: &[Op]) -> Result<Applied, NetlinkError> {
        commit(&mut self.nft, ops, &self.progress)
    }
}

/// Commits operations in transactions of bounded size.
pub(super) fn commit(nft: &mut Nft, ops: &[Op], progress: &Progress) -> Result<Applied, NetlinkError> {
    let mut applied = Applied::default();
    for part in transactions(ops, MAX_OPS) {
        nft.commit(&TABLE, part)?;
        progress.made();
        applied += Applied { operations: part.len(), transactions: 1 };
    }
    Ok(applied)
}

/// Cuts operations into transactions. Their order makes cuts safe, except between the removal and
/// the new content of one element, and in the replacement of a whole table.
fn transactions(ops: &[Op], limit: usize) -> Vec<&[Op]> {
    if matches!(ops.first(), Some(Op::DeleteTable)) {
        return vec![ops];
    }
    let mut parts = Vec::new();
    let mut rest = ops;
    while !rest.is_empty() {
        let mut cut = limit.min(rest.len());
        if let (Some(Op::DeleteElement(old)), Some(Op::AddElement(new))) = (rest.get(cut - 1), rest.get(cut))
            && *old == new.id
        {
            cut += 1;
        }
        let (part, tail) = rest.split_at(cut);
        parts.push(part);
        rest = tail;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_core::lang::nftables::{Element, ElementId, Key, Value};
    use sluice_core::net::Family;
    use sluice_core::nft::SetKind;

    fn id(n: u8) -> ElementId {
        ElementId { set: SetKind::ClusterIps.set(Family::V4), key: Key::new(&[n]) }
    }

    #[test]
    fn a_replaced_element_stays_in_one_transaction() {
        let add = |n| Op::AddElement(Element { id: id(n), value: Value::None });
        let ops = [add(1), Op::DeleteElement(id(2)), add(2), add(3), Op::DeleteElement(id(4))];
        let sizes: Vec<usize> = transactions(&ops, 2).iter().map(|part| part.len()).collect();
        assert_eq!(sizes, [3, 2]);
        let replaced = [Op::DeleteTable, Op::AddTable, add(1), add(2)];
        assert_eq!(transactions(&replaced, 2).len(), 1);
        assert!(transactions(&[], 2).is_empty());
    }
}
