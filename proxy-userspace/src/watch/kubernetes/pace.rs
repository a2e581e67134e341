//! When to try again, and when to say so.

use std::time::{Duration, Instant};

/// How long to wait for what.
#[derive(Clone, Debug)]
pub struct Timing {
    /// For the head of an answer. A loaded API server queues requests for up to a minute.
    pub answer: Duration,
    /// For the next bytes of a list.
    pub list_idle: Duration,
    /// For the next bytes of a watch. API servers send a bookmark each minute.
    pub watch_idle: Duration,
    /// The server is asked to end a watch after once to twice this.
    pub watch: Duration,
    /// Before the first new try; each further one waits twice as long.
    pub first_retry: Duration,
    /// The most between two tries.
    pub last_retry: Duration,
    /// A new list waits for up to this, so that not every node of the cluster lists at once.
    pub relist_spread: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            answer: Duration::from_secs(60),
            list_idle: Duration::from_secs(30),
            watch_idle: Duration::from_secs(150),
            watch: Duration::from_secs(300),
            first_retry: Duration::from_millis(250),
            last_retry: Duration::from_secs(10),
            relist_spread: Duration::from_secs(5),
        }
    }
}

/// A random part of a whole, from 0 to just below 1.
pub(super) fn random_part() -> f64 {
    (crate::random::bits() >> 11) as f64 / (1_u64 << 53) as f64
}

/// What is honoured of a Retry-After. API servers ask for seconds; whatever stands before one may
/// ask for a day.
const LONGEST_WISH: Duration = Duration::from_secs(120);

/// Growing pauses between failures.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    first: Duration,
    last: Duration,
}

impl Backoff {
    pub(super) fn new(timing: &Timing) -> Backoff {
        Backoff { next: timing.first_retry, first: timing.first_retry, last: timing.last_retry }
    }

    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }

    /// The next pause: half to all of the present step, or the server's own wish, as far as it is
    /// one that a server may have, and up to half more.
    pub(super) fn pause(&mut self, wish: Option<Duration>, part: f64) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.last);
        let own = step.mul_f64(0.5 + part / 2.0);
        own.max(wish.unwrap_or_default().min(LONGEST_WISH).mul_f64(1.0 + part / 2.0))
    }
}

/// Lets through a few of many messages.
#[derive(Debug)]
pub(super) struct Limit {
    burst: u32,
    every: Duration,
    window: Option<(Instant, u32)>,
}

impl Limit {
    /// At most `burst` messages in each span of `every`.
    pub(super) fn new(burst: u32, every: Duration) -> Limit {
        Limit { burst, every, window: None }
    }

    /// Whether this message may be shown, with the number of those that were not in the span
    /// before.
    pub(super) fn allow(&mut self, now: Instant) -> Option<u32> {
        match &mut self.window {
            Some((begun, count)) if now.duration_since(*begun) < self.every => {
                *count += 1;
                (*count <= self.burst).then_some(0)
            }
            window => {
                let hidden = window.map_or(0, |(_, count)| count.saturating_sub(self.burst));
                *window = Some((now, 1));
                Some(hidden)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_keep_the_servers_wish() {
        let timing = Timing::default();
        let mut backoff = Backoff::new(&timing);
        let pauses: Vec<u128> = (0..8).map(|_| backoff.pause(None, 0.0).as_millis()).collect();
        assert_eq!(pauses, [125, 250, 500, 1000, 2000, 4000, 5000, 5000]);
        assert!(backoff.pause(None, 0.999) <= timing.last_retry);
        let wish = Some(Duration::from_secs(60));
        assert_eq!(backoff.pause(wish, 0.0), Duration::from_secs(60));
        assert_eq!(backoff.pause(wish, 0.5), Duration::from_secs(75));
        backoff.reset();
        assert_eq!(backoff.pause(None, 0.0), timing.first_retry / 2);
    }

    #[test]
    fn random_parts_differ_and_stay_in_range() {
        let parts: Vec<f64> = (0..100).map(|_| random_part()).collect();
        assert!(parts.iter().all(|part| (0.0..1.0).contains(part)));
        assert!(parts.iter().any(|part| *part < 0.5) && parts.iter().any(|part| *part >= 0.5));
    }

    #[test]
    fn a_flood_is_cut_and_counted() {
        let begun = Instant::now();
        let mut limit = Limit::new(2, Duration::from_secs(60));
        let shown: Vec<Option<u32>> = (0..5).map(|_| limit.allow(begun)).collect();
        assert_eq!(shown, [Some(0), Some(0), None, None, None]);
        assert_eq!(limit.allow(begun + Duration::from_secs(61)), Some(3));
    }

    #[test]
    fn no_wish_of_a_server_stops_a_watch_for_long() {
        let mut backoff = Backoff::new(&Timing::default());
        for seconds in [u64::MAX, 86_400] {
            assert!(backoff.pause(Some(Duration::from_secs(seconds)), 0.99) <= LONGEST_WISH * 3 / 2);
        }
    }
}
