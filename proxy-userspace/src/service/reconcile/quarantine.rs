//! Services of which the kernel refuses something: what is known of them, and when they are tried
//! again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sluice_core::model::ObjectName;
use sluice_core::nft::quarantine::Before;
use sluice_core::plan::PlanChange;

use crate::service::backend::{Known, Refused};

const FIRST_RETRY: Duration = Duration::from_secs(1);

/// Those Services.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    /// With the kernel's first answer.
    held: BTreeMap<ObjectName, String>,
    /// What may still be in force of those whose changes are not in the kernel yet.
    before: Before,
    retry: Option<(Instant, Duration)>,
}

/// What a full pass changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// Refused from now on, and the kernel's answer.
    pub(super) refused: Vec<(ObjectName, String)>,
    /// Not refused any more.
    pub(super) taken: Vec<ObjectName>,
}

impl Quarantine {
    /// Plans changed. What was in force is remembered until the change is.
    pub(super) fn planned(&mut self, changes: &[PlanChange]) {
        self.before.planned(changes);
    }

    /// The changes that are not to wait for a full pass, and those that are: what the kernel has of
    /// these is not what they change.
    pub(super) fn apart(&self, changes: Vec<PlanChange>) -> (Vec<PlanChange>, Vec<PlanChange>) {
        changes.into_iter().partition(|change| !self.held.contains_key(&change.name))
    }

    /// For a full pass.
    pub(super) fn known(&self) -> Known {
        Known { before: self.before.plans(), suspects: self.held.keys().cloned().collect() }
    }

    /// Everything that changed is in the kernel, but for what is held.
    pub(super) fn done(&mut self) {
        self.before.retain(|name| self.held.contains_key(name));
    }

    /// A full pass ended.
    pub(super) fn full(&mut self, refused: Vec<Refused>, now: Instant, longest: Duration) -> News {
        let mut held = BTreeMap::new();
        for Refused { services, why } in refused {
            for name in services {
                held.entry(name).or_insert_with(|| why.clone());
            }
        }
        let before = std::mem::take(&mut self.held);
        let taken = before.keys().filter(|name| !held.contains_key(*name)).cloned().collect();
        let new = held.iter().filter(|(name, _)| !before.contains_key(*name));
        let news = News { refused: new.map(|(name, why)| (name.clone(), why.clone())).collect(), taken };
        let delay = match self.retry {
            // It came before its time, for another reason.
            Some((at, delay)) if now < at => delay,
            Some((_, delay)) => (delay * 2).min(longest),
            None => FIRST_RETRY,
        };
        self.retry = (!held.is_empty()).then(|| (now + delay, delay));
        self.held = held;
        news
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// When they are tried again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.retry.map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sluice_core::plan::ServicePlan;

    use super::*;

    const LONGEST: Duration = Duration::from_secs(30);

    fn name(text: &str) -> ObjectName {
        ObjectName::new("a", text)
    }

    fn refused(names: &[&str]) -> Vec<Refused> {
        names.iter().map(|text| Refused { services: vec![name(text)], why: "no".into() }).collect()
    }

    #[test]
    fn refused_services_are_reported_once_and_retried_with_growing_delays() {
        let (mut quarantine, mut now) = (Quarantine::default(), Instant::now());
        let news = quarantine.full(refused(&["x", "x"]), now, LONGEST);
        assert_eq!(news, News { refused: vec![(name("x"), "no".into())], taken: vec![] });
        let mut waits = Vec::new();
        for _ in 0..7 {
            let due = quarantine.due().unwrap();
            waits.push((due - now).as_secs());
            now = due;
            assert_eq!(quarantine.full(refused(&["x"]), now, LONGEST), News::default());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        // Passes of other reasons make it no longer, and another Service is told.
        let news = quarantine.full(refused(&["x", "y"]), now + LONGEST / 2, LONGEST);
        assert_eq!(news.refused, [(name("y"), "no".into())]);
        assert_eq!(quarantine.due(), Some(now + LONGEST / 2 + LONGEST));
        let news = quarantine.full(refused(&["y"]), now, LONGEST);
        assert_eq!((news.refused, news.taken), (vec![], vec![name("x")]));
        quarantine.full(Vec::new(), now, LONGEST);
        assert_eq!((quarantine.due(), quarantine.len()), (None, 0));
        quarantine.full(refused(&["x"]), now, LONGEST);
        assert_eq!(quarantine.due(), Some(now + FIRST_RETRY));
    }

    #[test]
    fn what_was_in_force_is_known_for_as_long_as_it_may_be() {
        let mut quarantine = Quarantine::default();
        let plan = |text: &str, ip: &str| {
            let cluster_ips = [ip.parse().unwrap()].into();
            Some(Arc::new(ServicePlan { cluster_ips, ..ServicePlan::nothing(name(text)) }))
        };
        let change = |text, old, new| PlanChange { name: name(text), old, new };
        let changes = |text| {
            let (first, second) = (plan(text, "10.0.0.1"), plan(text, "10.0.0.2"));
            [change(text, first, second.clone()), change(text, second, None), change("new", None, None)]
        };
        quarantine.planned(&changes("x"));
        quarantine.planned(&changes("y"));
        let known = |quarantine: &Quarantine| quarantine.known().before;
        // Each plan on the way may be in force in part.
        let all = |text| [plan(text, "10.0.0.1").unwrap(), plan(text, "10.0.0.2").unwrap()];
        assert_eq!(known(&quarantine), [all("x"), all("y")].concat());
        quarantine.full(refused(&["y"]), Instant::now(), LONGEST);
        quarantine.done();
        assert_eq!(known(&quarantine), all("y"));
        assert_eq!(quarantine.known().suspects, [name("y")].into());
        let (left, held) = quarantine.apart([changes("x"), changes("y")].concat());
        assert!(left.iter().all(|change| change.name != name("y")) && (left.len(), held.len()) == (4, 2));
        quarantine.full(Vec::new(), Instant::now(), LONGEST);
        quarantine.done();
        assert_eq!(known(&quarantine), []);
    }
}
