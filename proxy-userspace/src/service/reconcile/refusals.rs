//! What Services ask for and do not get is told once: when it is refused.

use std::sync::Arc;

use sluice_core::model::ObjectName;
use sluice_core::plan::{Budget, Capture, PlanChange, Planner, Refusal, Refused, Role, ServicePlan, Size};
use tracing::warn;

use crate::observe::recorder::Event;

/// How many addresses a line names.
const NAMED: usize = 3;

type Plan = Option<Arc<ServicePlan>>;

/// Logs what a Service is refused since a change, and returns the event for it.
pub(super) fn newly_refused(change: &PlanChange, planner: &Planner, budget: &Budget) -> Option<Event> {
    let service = &change.name;
    if let Some(size) = oversize(&change.new).filter(|_| oversize(&change.old).is_none()) {
        let note = format!(
            "{size} exceed sluice.serviceBudget ({} frontends, {} elements); the last state of the \
             Service stays in force, and its changes are ignored",
            budget.frontends, budget.elements
        );
        warn!(%service, "too large: {note}");
        return Some(Event::service_too_large(service.clone(), note));
    }
    let before = refused(&change.old);
    let new = refused(&change.new).iter().filter(|refused| before.binary_search(refused).is_err());
    let new: Vec<String> = new.map(|refused| words(refused, |capture| planner.owner(capture))).collect();
    let mut note = new.get(..NAMED).unwrap_or(&new).join("; ");
    if new.len() > NAMED {
        note += &format!("; and {} more", new.len() - NAMED);
    }
    (!new.is_empty()).then(|| {
        warn!(%service, refused = new.len(), "refused: {note}");
        Event::address_refused(service.clone(), note)
    })
}

/// What is refused and why; of what another Service has, which one, and what to do about it.
fn words<'a>(refused: &Refused, owner: impl FnOnce(&Capture) -> Option<&'a ObjectName>) -> String {
    let owner = owner(&refused.capture).filter(|_| refused.why == Refusal::Taken);
    let other = if refused.role == Role::NodePort { "node port" } else { "address" };
    match owner {
        Some(owner) => format!("{refused} ({owner}); give one of the two another {other}"),
        None => refused.to_string(),
    }
}

fn oversize(plan: &Plan) -> Option<Size> {
    plan.as_ref()?.oversize
}

fn refused(plan: &Plan) -> &[Refused] {
    plan.as_ref().map_or(&[], |plan| &plan.refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_core::net::{Family, Protocol};

    #[test]
    fn a_refusal_names_the_owner_and_the_remedy() {
        let capture = Capture::Address("10.96.0.7".parse().unwrap(), Protocol::Tcp, 80);
        let taken = |capture, role| Refused { capture, role, why: Refusal::Taken };
        let owner = ObjectName::new("shop", "old");
        let told = words(&taken(capture, Role::ClusterIp), |_| Some(&owner));
        assert!(told.starts_with("ClusterIP ") && told.contains("10.96.0.7:80"), "{told}");
        assert!(told.contains("shop/old") && told.ends_with("another address"), "{told}");
        let node_port = Capture::NodePort(Family::V4, Protocol::Tcp, 30080);
        let told = words(&taken(node_port, Role::NodePort), |_| Some(&owner));
        assert!(told.ends_with("another node port"), "{told}");
        let refused = Refused { capture, role: Role::ExternalIp, why: Refusal::ApiServer };
        assert_eq!(words(&refused, |_| Some(&owner)), refused.to_string());
    }
}
