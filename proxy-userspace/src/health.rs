//! Health: the proxy's own (reference 5.1, 5.2) and that of Services (5.3).

mod debug;
mod server;
mod service;
mod zpages;

pub use debug::debug_router;
pub use server::{ServeError, Server, health_router};
pub use service::run as run_service_health;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use sluice_core::model::Node;
use sluice_core::net::Family;

/// Shared health state. Both families are programmed by the same transactions, so they share their times.
#[derive(Clone)]
pub struct Health {
    state: Arc<Mutex<State>>,
    timeout: Duration,
}

#[derive(Default)]
struct State {
    last_updated: Option<SystemTime>,
    oldest_pending: Option<SystemTime>,
    node_seen: bool,
    node_eligible: bool,
}

/// An answer of /healthz or /livez.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Answer 200, else 503.
    pub ok: bool,
    /// The body.
    pub body: Value,
}

impl Health {
    /// A change that stays pending for twice the sync period makes the proxy unhealthy.
    pub fn new(sync_period: Duration) -> Self {
        Health { state: Arc::default(), timeout: 2 * sync_period }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change waits for the kernel.
    pub fn queued(&self) {
        let mut state = self.state();
        state.oldest_pending.get_or_insert_with(SystemTime::now);
    }

    /// Everything is in the kernel.
    pub fn updated(&self) {
        let mut state = self.state();
        state.last_updated = Some(SystemTime::now());
        state.oldest_pending = None;
    }

    /// The own Node is this; a deleted Node counts as last seen.
    pub fn set_node(&self, node: Option<&Node>) {
        if let Some(node) = node {
            let mut state = self.state();
            state.node_seen = true;
            state.node_eligible = node.eligible;
        }
    }

    /// Whether rules keep up with changes.
    pub fn is_healthy(&self) -> bool {
        self.healthy_at(SystemTime::now())
    }

    fn healthy_at(&self, now: SystemTime) -> bool {
        self.state()
            .oldest_pending
            .is_none_or(|since| now.duration_since(since).unwrap_or_default() < self.timeout)
    }

    /// The answer of /healthz (`with_node`) or /livez.
    pub fn report(&self, now: SystemTime, with_node: bool) -> Report {
        let healthy = self.healthy_at(now);
        let state = self.state();
        let eligible = state.node_seen && state.node_eligible;
        let ok = healthy && (eligible || !with_node);
        // Compatibility: a good answer is always up to date.
        let last = if ok { Some(now) } else { state.last_updated };
        let mut body = json!({
            "lastUpdated": timestamp(last.unwrap_or(SystemTime::UNIX_EPOCH)),
            "currentTime": timestamp(now),
            "healthy": healthy,
        });
        if with_node {
            body["nodeEligible"] = eligible.into();
        }
        if let Some(updated) = state.last_updated {
            for family in Family::BOTH {
                body["status"][family.name()] =
                    json!({"lastUpdated": timestamp(updated), "healthy": healthy});
            }
        }
        Report { ok, body }
    }
}

/// RFC 3339 with nanoseconds.
fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map(|time| format!("{time:.9}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_core::model::ObjectName;

    fn node(eligible: bool) -> Node {
        Node {
            name: ObjectName::cluster_scoped("a"),
            addresses: vec![],
            pod_cidrs: vec![],
            zone: None,
            eligible,
        }
    }

    fn health() -> Health {
        Health::new(Duration::from_secs(30))
    }

    #[test]
    fn before_anything_is_known_the_proxy_lives_but_the_node_is_not_eligible() {
        let health = health();
        let now = SystemTime::now();
        assert!(health.report(now, false).ok);
        let report = health.report(now, true);
        assert!(!report.ok);
        assert_eq!(report.body["healthy"], true);
        assert_eq!(report.body["nodeEligible"], false);
        assert!(report.body.get("status").is_none());
    }

    #[test]
    fn a_change_that_waits_too_long_turns_health_red_until_it_is_done() {
        let health = health();
        health.set_node(Some(&node(true)));
        health.updated();
        health.queued();
        let soon = SystemTime::now() + Duration::from_secs(59);
        let late = SystemTime::now() + Duration::from_secs(61);
        assert!(health.report(soon, true).ok);
        let report = health.report(late, true);
        assert!(!report.ok);
        assert_eq!(report.body["status"]["IPv4"]["healthy"], false);
        assert!(!health.report(late, false).ok);
        health.updated();
        assert!(health.report(late, true).ok);
    }

    #[test]
    fn a_node_that_is_to_be_deleted_fails_healthz_but_not_livez() {
        let health = health();
        health.set_node(Some(&node(false)));
        let now = SystemTime::now();
        assert!(!health.report(now, true).ok);
        assert!(health.report(now, false).ok);
        assert!(health.report(now, false).body.get("nodeEligible").is_none());
        health.set_node(Some(&node(true)));
        assert!(health.report(now, true).ok);
        // A deleted Node object counts as last seen.
        health.set_node(None);
        assert!(health.report(now, true).ok);
    }

    #[test]
    fn a_good_answer_is_dated_now_a_bad_one_when_it_was_good() {
        let health = health();
        let now = SystemTime::now() + Duration::from_secs(5);
        health.updated();
        assert_eq!(health.report(now, false).body["lastUpdated"], timestamp(now));
        assert_ne!(health.report(now, true).body["lastUpdated"], timestamp(now));
    }
}
