//! What Services ask for and do not get is told once: when it is refused.

use std::sync::Arc;

use sluice_core::plan::{Budget, PlanChange, Refused, ServicePlan, Size};
use tracing::warn;

use crate::events::Event;

/// How many addresses a line names.
const NAMED: usize = 3;

type Plan = Option<Arc<ServicePlan>>;

/// Logs what a Service is refused since a change, and returns the event for it.
pub(super) fn newly_refused(change: &PlanChange, budget: &Budget) -> Option<Event> {
    let service = &change.name;
    if let Some(size) = oversize(&change.new).filter(|_| oversize(&change.old).is_none()) {
        let note = format!(
            "{size}: that is beyond sluice.serviceBudget ({} frontends, {} elements); what it had stays in force, and changes \
             of it do not count",
            budget.frontends, budget.elements
        );
        warn!(%service, "too large: {note}");
        return Some(Event::service_too_large(service.clone(), note));
    }
    let before = refused(&change.old);
    let new = refused(&change.new).iter().filter(|refused| before.binary_search(refused).is_err());
    let new: Vec<String> = new.map(ToString::to_string).collect();
    let mut note = new.get(..NAMED).unwrap_or(&new).join("; ");
    if new.len() > NAMED {
        note += &format!("; and {} more", new.len() - NAMED);
    }
    (!new.is_empty()).then(|| {
        warn!(%service, refused = new.len(), "left out: {note}");
        Event::address_refused(service.clone(), note)
    })
}

fn oversize(plan: &Plan) -> Option<Size> {
    plan.as_ref()?.oversize
}

fn refused(plan: &Plan) -> &[Refused] {
    plan.as_ref().map_or(&[], |plan| &plan.refused)
}
