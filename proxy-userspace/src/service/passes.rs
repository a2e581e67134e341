//! When to look through all flows of the node, and for what: a pass costs time for each flow there
//! is, and may be asked for by each change of a Service.
//!
//! A request has two passes: one soon, and one [`SECOND_PASS`] after it came, because a packet that
//! passed the old rules may set up its flow just after the first. Passes begin at least
//! [`INTERVAL`] apart, and take a quarter of the time at most. So what is kept is what came within
//! the last seconds, however many changes there are.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// From a request to its second pass, at least.
const SECOND_PASS: Duration = Duration::from_secs(1);
/// Between the beginnings of two passes, at least.
const INTERVAL: Duration = Duration::from_secs(1);
/// So many times its own time lies between the beginning of a pass and the next.
const SHARE: u32 = 4;
/// After a pass that failed.
const RETRY: Duration = Duration::from_secs(2);

/// Requests that passes have to be made for; of two with one key the later one counts.
#[derive(Debug)]
pub(crate) struct Passes<K, V> {
    requests: HashMap<K, (V, Instant)>,
    /// Whether one of them has had no pass.
    is_new: bool,
    not_before: Option<Instant>,
}

impl<K, V> Default for Passes<K, V> {
    fn default() -> Self {
        Passes { requests: HashMap::new(), is_new: false, not_before: None }
    }
}

impl<K: Eq + Hash, V> Passes<K, V> {
    /// Takes a request.
    pub(crate) fn ask(&mut self, key: K, value: V, now: Instant) {
        self.requests.insert(key, (value, now));
        self.is_new = true;
    }

    /// When the next pass is due, if any.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let second = self.requests.values().map(|(_, came)| *came + SECOND_PASS).min()?;
        let due = if self.is_new { now } else { second };
        Some(self.not_before.map_or(due, |not_before| due.max(not_before)))
    }

    /// Whether one is due.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due(now).is_some_and(|due| due <= now)
    }

    /// What to look for with a key.
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.requests.get(key).map(|(value, _)| value)
    }

    /// All keys of what to look for.
    pub(crate) fn keys(&self) -> impl ExactSizeIterator<Item = &K> {
        self.requests.keys()
    }

    /// Whether nothing is left after a pass that begins now.
    pub(crate) fn is_last(&self, now: Instant) -> bool {
        self.requests.values().all(|(_, came)| *came + SECOND_PASS <= now)
    }

    /// A pass has ended.
    pub(crate) fn done(&mut self, begun: Instant, ended: Instant) {
        self.requests.retain(|_, (_, came)| *came + SECOND_PASS > begun);
        self.is_new = false;
        self.not_before = Some(begun + INTERVAL.max((ended - begun) * SHARE));
    }

    /// A pass has failed: everything is to be done again.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.is_new = true;
        self.not_before = Some(now + RETRY);
    }
}

/// Sleeps until a pass is due; for ever if none is.
pub(crate) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENTH: Duration = Duration::from_millis(100);

    /// Looks whenever it is due, each time for so long; when the passes began.
    fn run(passes: &mut Passes<u32, ()>, from: Instant, to: Instant, taking: Duration) -> Vec<Instant> {
        let (mut begun, mut now) = (Vec::new(), from);
        while let Some(due) = passes.due(now).filter(|due| *due < to) {
            begun.push(due);
            now = due + taking;
            passes.done(due, now);
        }
        begun
    }

    #[test]
    fn a_request_has_a_pass_at_once_and_one_a_second_later() {
        let (mut passes, start) = (Passes::default(), Instant::now());
        assert_eq!(passes.due(start), None);
        passes.ask(1, (), start);
        assert!(!passes.is_last(start));
        let begun = run(&mut passes, start, start + 60 * INTERVAL, TENTH);
        assert_eq!(begun, [start, start + SECOND_PASS]);
        assert!(passes.is_last(start + SECOND_PASS));
    }

    #[test]
    fn under_steady_changes_only_those_of_the_last_seconds_are_kept() {
        let (mut passes, start) = (Passes::default(), Instant::now());
        let (mut now, mut begun, mut most) = (start, Vec::new(), 0);
        for change in 0..36_000 {
            passes.ask(change, (), now);
            most = most.max(passes.keys().len());
            begun.extend(run(&mut passes, now, now + TENTH, Duration::from_millis(5)));
            now += TENTH;
        }
        assert!(most <= 30, "{most} are kept");
        assert!(begun.windows(2).all(|two| two[1] - two[0] >= INTERVAL));
        assert!(begun.len() > 3500, "{} passes", begun.len());
        run(&mut passes, now, now + 60 * INTERVAL, TENTH);
        assert_eq!(passes.keys().len(), 0);
    }

    #[test]
    fn passes_that_take_long_come_less_often() {
        let (mut passes, start) = (Passes::default(), Instant::now());
        passes.ask(1, (), start);
        let begun = run(&mut passes, start, start + 600 * INTERVAL, 3 * INTERVAL);
        assert_eq!(begun, [start, start + 12 * INTERVAL]);
    }

    #[test]
    fn nothing_is_lost_when_a_pass_fails() {
        let (mut passes, start) = (Passes::default(), Instant::now());
        passes.ask(1, (), start);
        passes.failed(start + 2 * SECOND_PASS);
        assert_eq!(passes.due(start + 2 * SECOND_PASS), Some(start + 2 * SECOND_PASS + RETRY));
        assert_eq!(passes.keys().len(), 1);
    }
}
