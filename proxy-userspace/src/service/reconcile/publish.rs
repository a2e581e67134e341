//! What others are told of plans and objects.

use std::sync::Arc;

use sluice_core::plan::{PlanChange, ServicePlan};

use super::Reconciler;
use crate::service::facts;

impl Reconciler {
    /// Flows are looked at when what they may do is in the kernel.
    pub(super) fn publish_flows(&mut self) {
        for request in self.effects.flows.drain(..) {
            let _ = self.outputs.conntrack.send(request);
        }
    }

    /// Each success is told, changes or not: what could not be opened is tried again.
    pub(super) fn publish_listeners(&mut self) {
        let changes = std::mem::take(&mut self.effects.listeners);
        self.outputs.listeners.send_if_modified(|all| {
            for (at, backends) in changes {
                match backends {
                    Some(backends) => all.insert(at, backends),
                    None => all.remove(&at),
                };
            }
            facts::listens_on_loopback(&self.settings).contains(&true)
        });
    }

    /// What health-check node ports answer.
    pub(super) fn publish_health_checks(&self, changes: &[PlanChange]) {
        let check = |plan: &Option<Arc<ServicePlan>>| plan.as_ref().and_then(|p| p.health_check.clone());
        let concerned = changes.iter().filter(|change| check(&change.old) != check(&change.new));
        let concerned: Vec<&PlanChange> = concerned.collect();
        if concerned.is_empty() {
            return;
        }
        self.outputs.health_checks.send_modify(|all| {
            for change in concerned {
                match check(&change.new) {
                    Some(health_check) => all.insert(change.name.clone(), health_check),
                    None => all.remove(&change.name),
                };
            }
        });
    }
}
