//! Health: the proxy's own (reference 5.1, 5.2) and that of Services (5.3).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use sluice_core::model::Node;
use sluice_core::net::Family;

/// A loop that works for so long without getting on does not get on by itself.
const STUCK: Duration = Duration::from_secs(60);

/// Whether the loop that programs the kernel gets on with its work. Clones share what they know.
#[derive(Clone, Default)]
pub struct Progress {
    /// When the work in hand got on for the last time; `None` while there is none.
    last: Arc<Mutex<Option<Instant>>>,
}

impl Progress {
    /// Work begins, or has got a step further.
    pub fn made(&self) {
        self.set(Some(Instant::now()));
    }

    /// There is no work.
    pub fn rest(&self) {
        self.set(None);
    }

    fn set(&self, last: Option<Instant>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }

    fn is_stuck(&self, now: Instant) -> bool {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| now.saturating_duration_since(last) >= STUCK)
    }
}

/// Shared health state. Both families are programmed by the same transactions, so they share their
/// times. What is counted is counted by a clock that nobody sets.
#[derive(Clone)]
pub struct Health {
    state: Arc<Mutex<State>>,
    timeout: Duration,
    progress: Progress,
}

#[derive(Default)]
struct State {
    /// For people.
    last_updated: Option<SystemTime>,
    oldest_pending: Option<Instant>,
    node_seen: bool,
    node_eligible: bool,
    is_detached: bool,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// /healthz: whether traffic may be sent to this node.
    Serves,
    /// /livez: whether the process is to be left alone. It is when changes wait because there is
    /// much to do, or because the kernel refuses them: the next process would have to do the same.
    Lives,
}

/// An answer of /healthz or /livez.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Answer 200, else 503.
    pub ok: bool,
    /// The body.
    pub body: Value,
}

/// The same moment by both clocks.
#[derive(Clone, Copy)]
struct Moment {
    wall: SystemTime,
    at: Instant,
}

impl Moment {
    fn now() -> Moment {
        Moment { wall: SystemTime::now(), at: Instant::now() }
    }
}

impl Health {
    /// A change that stays pending for twice the sync period makes the proxy unhealthy.
    pub fn new(sync_period: Duration) -> Self {
        Health { state: Arc::default(), timeout: 2 * sync_period, progress: Progress::default() }
    }

    /// For the loop that programs the kernel.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change waits for the kernel.
    pub fn queued(&self) {
        let mut state = self.state();
        state.oldest_pending.get_or_insert_with(Instant::now);
    }

    /// Everything is in the kernel.
    pub fn updated(&self) {
        let mut state = self.state();
        state.last_updated = Some(SystemTime::now());
        state.oldest_pending = None;
    }

    /// Whether the kernel does with packets what is written there.
    pub fn set_attached(&self, is_attached: bool) {
        self.state().is_detached = !is_attached;
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
        self.healthy_at(Instant::now())
    }

    fn healthy_at(&self, now: Instant) -> bool {
        let state = self.state();
        let keeps_up = |since| now.saturating_duration_since(since) < self.timeout;
        !state.is_detached && state.oldest_pending.is_none_or(keeps_up)
    }

    /// The answer to a question.
    pub fn report(&self, question: Question) -> Report {
        self.report_at(Moment::now(), question)
    }

    fn report_at(&self, now: Moment, question: Question) -> Report {
        let keeps_up = self.healthy_at(now.at);
        let state = self.state();
        let eligible = state.node_seen && state.node_eligible;
        let (healthy, ok) = match question {
            Question::Serves => (keeps_up, keeps_up && eligible),
            Question::Lives => {
                let lives = !self.progress.is_stuck(now.at);
                (lives, lives)
            }
        };
        // Compatibility: a good answer is always up to date.
        let last = if ok { Some(now.wall) } else { state.last_updated };
        let mut body = json!({
            "lastUpdated": timestamp(last.unwrap_or(SystemTime::UNIX_EPOCH)),
            "currentTime": timestamp(now.wall),
            "healthy": healthy,
        });
        if question == Question::Serves {
            body["nodeEligible"] = eligible.into();
        }
        if let Some(updated) = state.last_updated {
            for family in Family::BOTH {
                body["status"][family.name()] =
                    json!({"lastUpdated": timestamp(updated), "healthy": keeps_up});
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

    fn in_seconds(seconds: u64) -> Moment {
        let (now, later) = (Moment::now(), Duration::from_secs(seconds));
        Moment { wall: now.wall + later, at: now.at + later }
    }

    #[test]
    fn before_anything_is_known_the_proxy_lives_but_the_node_is_not_eligible() {
        let health = health();
        assert!(health.report(Question::Lives).ok);
        let report = health.report(Question::Serves);
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
        assert!(health.report_at(in_seconds(59), Question::Serves).ok);
        let report = health.report_at(in_seconds(61), Question::Serves);
        assert!(!report.ok);
        assert_eq!(report.body["status"]["IPv4"]["healthy"], false);
        health.updated();
        assert!(health.report_at(in_seconds(61), Question::Serves).ok);
    }

    #[test]
    fn programs_that_are_detached_turn_health_red_at_once_but_call_for_no_restart() {
        let health = health();
        health.set_node(Some(&node(true)));
        health.updated();
        for is_attached in [false, true] {
            health.set_attached(is_attached);
            assert_eq!(health.report(Question::Serves).ok, is_attached);
            assert!(health.report(Question::Lives).ok);
        }
    }

    #[test]
    fn nobody_sets_the_clock_that_counts() {
        let health = health();
        health.set_node(Some(&node(true)));
        health.queued();
        let hour = Duration::from_secs(3600);
        for wall in [SystemTime::now() + hour, SystemTime::now() - hour] {
            assert!(health.report_at(Moment { wall, ..in_seconds(1) }, Question::Serves).ok);
            assert!(!health.report_at(Moment { wall, ..in_seconds(61) }, Question::Serves).ok);
        }
    }

    #[test]
    fn livez_fails_only_without_progress() {
        let health = health();
        let progress = health.progress();
        assert!(health.report_at(in_seconds(3600), Question::Lives).ok);
        health.updated();
        health.queued();
        let report = health.report_at(in_seconds(61), Question::Lives);
        assert!(report.ok);
        assert_eq!(report.body["healthy"], true);
        assert_eq!(report.body["status"]["IPv6"]["healthy"], false);
        progress.made();
        assert!(health.report_at(in_seconds(59), Question::Lives).ok);
        let report = health.report_at(in_seconds(61), Question::Lives);
        assert!(!report.ok);
        assert_eq!(report.body["healthy"], false);
        progress.rest();
        assert!(health.report_at(in_seconds(61), Question::Lives).ok);
    }

    #[test]
    fn a_node_that_is_to_be_deleted_fails_healthz_but_not_livez() {
        let health = health();
        health.set_node(Some(&node(false)));
        assert!(!health.report(Question::Serves).ok);
        assert!(health.report(Question::Lives).ok);
        assert!(health.report(Question::Lives).body.get("nodeEligible").is_none());
        health.set_node(Some(&node(true)));
        assert!(health.report(Question::Serves).ok);
        // A deleted Node object counts as last seen.
        health.set_node(None);
        assert!(health.report(Question::Serves).ok);
    }

    #[test]
    fn a_good_answer_is_dated_now_a_bad_one_when_it_was_good() {
        let health = health();
        let soon = in_seconds(5);
        health.updated();
        assert_eq!(health.report_at(soon, Question::Lives).body["lastUpdated"], timestamp(soon.wall));
        assert_ne!(health.report_at(soon, Question::Serves).body["lastUpdated"], timestamp(soon.wall));
    }
}
