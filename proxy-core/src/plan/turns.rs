//! Which changes are applied at once, and which are put off: those of large Services take many
//! transactions, and nobody else has to wait for them.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{Capture, PlanChange, PortPlan, ServicePlan, Target};
use crate::list::List;
use crate::model::{ObjectName, ServicePortName};

/// From so many frontends and changed endpoints on, the change of a Service is large.
const LARGE: usize = 4_000;

/// Changes that take turns. What the kernel is given of others depends on nothing that is put off:
/// a Service whose frontends a large one had or gets goes with it, so that each frontend moves at
/// once, and so does whatever changes of a Service of which something is put off, or not done yet.
#[derive(Debug)]
pub struct Turns {
    large_from: usize,
    put_off: Vec<PlanChange>,
    /// What changes are tied to by their Services and frontends: what is put off or not done yet.
    ties: Ties,
}

#[derive(Debug, Default)]
struct Ties {
    services: FxHashSet<ObjectName>,
    frontends: FxHashSet<Capture>,
}

impl Default for Turns {
    fn default() -> Self {
        Turns::with_large_from(LARGE)
    }
}

impl Turns {
    /// With another number of frontends and endpoints from which on a change is large.
    pub fn with_large_from(large_from: usize) -> Self {
        Turns { large_from, put_off: Vec::new(), ties: Ties::default() }
    }

    /// The changes that are to be applied at once, in the order that they came in. The others are
    /// put off.
    pub fn take(&mut self, changes: Vec<PlanChange>) -> Vec<PlanChange> {
        let is_large = |change: &PlanChange| is_large(change, self.large_from);
        let mut is_put_off: Vec<bool> =
            changes.iter().map(|change| is_large(change) || self.ties.hold(change)).collect();
        if !is_put_off.contains(&true) {
            return changes;
        }
        let (mut new, mut others): (Vec<usize>, Vec<usize>) =
            (0..changes.len()).partition(|at| is_put_off[*at]);
        while !new.is_empty() {
            for at in new {
                is_put_off[at] = true;
                self.ties.add(&changes[at]);
            }
            (new, others) = others.into_iter().partition(|at| self.ties.hold(&changes[*at]));
        }
        let mut at_once = Vec::new();
        for (change, is_put_off) in changes.into_iter().zip(is_put_off) {
            if is_put_off { self.put_off.push(change) } else { at_once.push(change) }
        }
        self.put_off = PlanChange::merged(&self.put_off);
        at_once
    }

    /// What is put off, one change for each Service.
    pub fn put_off(&self) -> &[PlanChange] {
        &self.put_off
    }

    /// Takes out what is put off, to begin with it. It counts as not done until [`Turns::done`].
    pub fn begin(&mut self) -> Vec<PlanChange> {
        std::mem::take(&mut self.put_off)
    }

    /// What was begun is done.
    pub fn done(&mut self) {
        self.ties = Ties::default();
        self.put_off.iter().for_each(|change| self.ties.add(change));
    }
}

impl Ties {
    fn hold(&self, change: &PlanChange) -> bool {
        self.services.contains(&change.name)
            || (!self.frontends.is_empty()
                && both(change).flat_map(captured).any(|capture| self.frontends.contains(&capture)))
    }

    fn add(&mut self, change: &PlanChange) {
        self.services.insert(change.name.clone());
        self.frontends.extend(both(change).flat_map(captured));
    }
}

fn both(change: &PlanChange) -> impl Iterator<Item = &ServicePlan> {
    change.old.as_deref().into_iter().chain(change.new.as_deref())
}

/// Whether so many frontends or endpoints may change. The endpoints are compared only if there are
/// so many.
fn is_large(change: &PlanChange, from: usize) -> bool {
    let frontends: usize = ports(change).map(|port| port.frontends.len()).sum();
    let endpoints: usize = ports(change).map(|port| port.cluster.len() + port.local.len()).sum();
    frontends + endpoints >= from && (frontends >= from || frontends + changed_endpoints(change) >= from)
}

fn changed_endpoints(change: &PlanChange) -> usize {
    let (nothing, mut count) = (List::default(), 0);
    let (old, mut new) = (by_id(change.old.as_deref()), by_id(change.new.as_deref()));
    let mut compare = |old: Option<&PortPlan>, new: Option<&PortPlan>| {
        for list in [|port| &port.cluster, |port| &port.local] as [fn(&PortPlan) -> &List<Target>; 2] {
            let (gone, came) = old.map_or(&nothing, list).difference(new.map_or(&nothing, list));
            count += gone.len() + came.len();
        }
    };
    for (id, port) in old {
        compare(Some(port), new.remove(id));
    }
    for port in new.into_values() {
        compare(None, Some(port));
    }
    count
}

fn by_id(plan: Option<&ServicePlan>) -> FxHashMap<&ServicePortName, &PortPlan> {
    plan.into_iter().flat_map(|plan| plan.ports.iter()).map(|port| (&port.id, port)).collect()
}

fn ports(change: &PlanChange) -> impl Iterator<Item = &PortPlan> {
    both(change).flat_map(|plan| plan.ports.iter())
}

fn captured(plan: &ServicePlan) -> impl Iterator<Item = Capture> {
    plan.ports.iter().flat_map(|port| port.frontends.iter().map(|frontend| frontend.capture))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use super::*;
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

    #[test]
    fn a_change_of_few_endpoints_is_not_large() {
        let with = |endpoints: std::ops::Range<u8>| {
            let mut plan = ServicePlan::clone(&plan("many", [1]));
            let target = |n| Target { address: [10, 0, 0, n].into(), port: 80, local: false };
            plan.ports[0].cluster = endpoints.map(target).collect::<Vec<_>>().as_slice().into();
            Some(Arc::new(plan))
        };
        let size = |old, new| {
            let change = change(old, new);
            (0..100).take_while(|from| is_large(&change, *from)).last()
        };
        // Two frontends, and what differs of the endpoints.
        assert_eq!(size(with(0..10), with(0..11)), Some(3));
        assert_eq!(size(with(0..10), with(5..20)), Some(17));
        assert_eq!((size(with(0..10), None), size(None, with(0..10))), (Some(11), Some(11)));
    }

    /// The names of the changes that are to be applied at once, and of those that are put off.
    fn parts(turns: &mut Turns, changes: &[&PlanChange]) -> (String, String) {
        let names = |changes: &[PlanChange]| {
            let names: Vec<&str> = changes.iter().map(|change| change.name.name()).collect();
            names.join(" ")
        };
        let at_once = turns.take(changes.iter().map(|change| (*change).clone()).collect());
        (names(&at_once), names(turns.put_off()))
    }

    fn both_parts(at_once: &str, put_off: &str) -> (String, String) {
        (at_once.to_owned(), put_off.to_owned())
    }

    #[test]
    fn large_services_are_put_off_with_those_that_get_or_had_their_frontends() {
        let large = change(Some(plan("large", 1..4)), Some(plan("large", 2..5)));
        let gets = change(None, Some(plan("gets", [1])));
        let had = change(Some(plan("had", [4, 9])), None);
        let gets_of_that = change(None, Some(plan("then", [9])));
        let apart = change(None, Some(plan("apart", [10])));
        let all = [&gets_of_that, &apart, &gets, &large, &had];
        let mut turns = Turns::with_large_from(6);
        assert_eq!(parts(&mut turns, &all), both_parts("apart", "then gets large had"));
        let mut turns = Turns::with_large_from(7);
        assert_eq!(parts(&mut turns, &all), both_parts("then apart gets large had", ""));
    }

    #[test]
    fn what_is_tied_to_a_change_that_is_not_done_is_put_off() {
        let mut turns = Turns::with_large_from(6);
        let large = change(Some(plan("large", 1..4)), Some(plan("large", 2..5)));
        assert_eq!(parts(&mut turns, &[&large]), both_parts("", "large"));
        assert_eq!(turns.begin(), [large]);
        // The same Service, though it is small by now, and one that gets what it had.
        let smaller = change(Some(plan("large", 2..5)), Some(plan("large", [30])));
        let smallest = change(Some(plan("large", [30])), None);
        let gets = change(None, Some(plan("gets", [1])));
        let apart = change(None, Some(plan("apart", [10])));
        assert_eq!(parts(&mut turns, &[&smaller, &apart]), both_parts("apart", "large"));
        assert_eq!(parts(&mut turns, &[&gets, &smallest]), both_parts("", "large gets"));
        turns.done();
        // What is put off is tied still. It is one change for each Service.
        assert_eq!(parts(&mut turns, &[&gets, &apart]), both_parts("apart", "large gets"));
        let merged = change(Some(plan("large", 2..5)), None);
        assert_eq!(turns.begin(), [merged, gets.clone()]);
        turns.done();
        assert_eq!(parts(&mut turns, &[&gets]), both_parts("gets", ""));
    }
}
