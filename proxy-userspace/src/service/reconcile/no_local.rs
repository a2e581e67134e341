//! Service ports with a Local policy that have endpoints, but none here: how many there are.

use std::sync::Arc;

use sluice_core::net::Family;
use sluice_core::plan::{PlanChange, ServicePlan};

use crate::observe::metrics::Metrics;

/// By family: of the internal and of the external policy.
#[derive(Default)]
pub(super) struct NoLocal([(i64, i64); 2]);

impl NoLocal {
    /// Takes a change in, and shows the numbers.
    pub(super) fn count(&mut self, change: &PlanChange, metrics: &Metrics) {
        self.add(change.old.as_ref(), -1);
        self.add(change.new.as_ref(), 1);
        for family in Family::BOTH {
            let (internal, external) = self.0[family as usize];
            for (policy, value) in [("internal", internal), ("external", external)] {
                let labels = [("traffic_policy", policy.to_owned()), ("ip_family", family.name().to_owned())];
                metrics.no_local_endpoints.get_or_create(&labels).set(value);
            }
        }
    }

    fn add(&mut self, plan: Option<&Arc<ServicePlan>>, sign: i64) {
        for port in plan.iter().flat_map(|plan| plan.ports.iter()) {
            let total = &mut self.0[port.id.family as usize];
            total.0 += sign * i64::from(port.lacks_local_internal);
            total.1 += sign * i64::from(port.lacks_local_external);
        }
    }
}
