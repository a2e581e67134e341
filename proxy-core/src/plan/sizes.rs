//! Which changes are applied first: those of large Services take longer, and nobody else has to
//! wait for them.

use rustc_hash::FxHashSet;

use super::{Capture, PlanChange, ServicePlan};
use crate::model::ObjectName;

/// From so many frontends and endpoints on, before and after a change, a Service is large.
const LARGE: usize = 4_000;

/// Parts changes into those of other Services and those of large ones, each in the same order. A
/// Service whose frontends a large one had or gets goes with it, so that each frontend moves at
/// once.
pub fn large_last(changes: Vec<PlanChange>) -> [Vec<PlanChange>; 2] {
    parted(changes, LARGE)
}

fn parted(changes: Vec<PlanChange>, large_from: usize) -> [Vec<PlanChange>; 2] {
    let is_large = |change: &PlanChange| both(change).map(size).sum::<usize>() >= large_from;
    let (mut large, mut others): (Vec<usize>, Vec<usize>) =
        (0..changes.len()).partition(|at| is_large(&changes[*at]));
    if large.is_empty() || others.is_empty() {
        return if large.is_empty() { [changes, Vec::new()] } else { [Vec::new(), changes] };
    }
    let (mut names, mut captures) = (FxHashSet::<&ObjectName>::default(), FxHashSet::default());
    let mut new = large.clone();
    while !new.is_empty() {
        for at in &new {
            names.insert(&changes[*at].name);
            captures.extend(both(&changes[*at]).flat_map(captured));
        }
        let belongs = |at: &usize| {
            let change = &changes[*at];
            names.contains(&change.name) || both(change).flat_map(captured).any(|c| captures.contains(&c))
        };
        (new, others) = others.into_iter().partition(belongs);
        large.extend(&new);
    }
    let large: FxHashSet<usize> = large.into_iter().collect();
    let mut parts = [Vec::new(), Vec::new()];
    for (at, change) in changes.into_iter().enumerate() {
        parts[usize::from(large.contains(&at))].push(change);
    }
    parts
}

fn both(change: &PlanChange) -> impl Iterator<Item = &ServicePlan> {
    change.old.as_deref().into_iter().chain(change.new.as_deref())
}

fn size(plan: &ServicePlan) -> usize {
    plan.ports.iter().map(|port| port.frontends.len() + port.cluster.len() + port.local.len()).sum()
}

fn captured(plan: &ServicePlan) -> impl Iterator<Item = Capture> {
    plan.ports.iter().flat_map(|port| port.frontends.iter().map(|frontend| frontend.capture))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use super::*;
    use crate::model::ServicePortName;
    use crate::net::{Family, Protocol};
    use crate::plan::{Action, Actions, Frontend, PortPlan, Role};

    /// A plan with one frontend for each of these ports of an address.
    fn plan(name: &str, ports: impl IntoIterator<Item = u16>) -> Arc<ServicePlan> {
        let name = ObjectName::new("default", name);
        let id = ServicePortName {
            service: name.clone(),
            port: "".into(),
            protocol: Protocol::Tcp,
            family: Family::V4,
        };
        let drop = Actions { pod: Action::Drop, host: Action::Drop, other: Action::Drop };
        let frontend = |port| Frontend {
            capture: Capture::Address(IpAddr::from([192, 0, 2, 1]), Protocol::Tcp, port),
            role: Role::ExternalIp,
            actions: drop,
            allowed_sources: None,
        };
        let port = PortPlan {
            id,
            affinity: None,
            cluster: [].into(),
            local: [].into(),
            frontends: ports.into_iter().map(frontend).collect(),
            serving: [].into(),
            lacks_local_internal: false,
            lacks_local_external: false,
        };
        Arc::new(ServicePlan { ports: [port].into(), ..ServicePlan::nothing(name) })
    }

    fn change(old: Option<Arc<ServicePlan>>, new: Option<Arc<ServicePlan>>) -> PlanChange {
        let name = old.iter().chain(&new).next().expect("one of both").name.clone();
        PlanChange { name, old, new }
    }

    fn names(changes: &[PlanChange]) -> Vec<&str> {
        changes.iter().map(|change| change.name.name()).collect()
    }

    #[test]
    fn large_services_come_last_with_those_that_get_or_had_their_frontends() {
        let large = change(Some(plan("large", 1..4)), Some(plan("large", 2..5)));
        let gets = change(None, Some(plan("gets", [1])));
        let had = change(Some(plan("had", [4, 9])), None);
        let gets_of_that = change(None, Some(plan("then", [9])));
        let apart = change(None, Some(plan("apart", [10])));
        let all = vec![gets_of_that, apart.clone(), gets, large.clone(), had];
        let [others, rest] = parted(all.clone(), 6);
        assert_eq!((names(&others), names(&rest)), (vec!["apart"], vec!["then", "gets", "large", "had"]));
        assert_eq!(parted(all.clone(), 7), [all, vec![]]);
        assert_eq!(parted(vec![large.clone()], 6), [vec![], vec![large.clone()]]);
        // The changes of one Service stay together.
        let more = change(Some(plan("large", 2..5)), Some(plan("large", [30])));
        let [others, rest] = parted(vec![large, apart, more], 6);
        assert_eq!((names(&others), names(&rest)), (vec!["apart"], vec!["large", "large"]));
    }
}
