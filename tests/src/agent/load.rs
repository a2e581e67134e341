//! Load: new connections at a steady rate until it is stopped, and what became of them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::dial::{PATIENCE, attempt};
use super::lock;
use super::protocol::{LoadRequest, LoadStatus, Outcome};

/// Connections under way at once.
const WORKERS: usize = 16;
/// Failures that are described; the others are only counted.
const DESCRIBED: usize = 20;

/// A running load.
#[derive(Debug, Clone)]
pub struct Load(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    request: LoadRequest,
    begun: Instant,
    /// Connections begun so far
    turns: AtomicU64,
    ended: AtomicBool,
    status: Mutex<LoadStatus>,
}

impl Load {
    /// Begins. It ends by itself when its time is over.
    #[must_use]
    pub fn start(request: LoadRequest) -> Self {
        let load = Self(Arc::new(Shared {
            request,
            begun: Instant::now(),
            turns: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            status: Mutex::default(),
        }));
        for _ in 0..WORKERS {
            let shared = Arc::clone(&load.0);
            thread::spawn(move || while shared.turn() {});
        }
        load
    }

    /// Opens no further connection; those under way are still counted.
    pub fn stop(&self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }

    /// How it fares.
    #[must_use]
    pub fn status(&self) -> LoadStatus {
        lock(&self.0.status).clone()
    }
}

impl Shared {
    /// One connection at its time. Whether there is another.
    fn turn(&self) -> bool {
        let number = self.turns.fetch_add(1, Ordering::Relaxed);
        let due = Duration::from_micros(number.saturating_mul(1_000_000 / self.request.per_second.max(1)));
        thread::sleep(due.saturating_sub(self.begun.elapsed()));
        if due > Duration::from_secs(self.request.seconds) || self.ended.load(Ordering::Relaxed) {
            return false;
        }
        let targets = self.request.targets.len().max(1);
        let index = usize::try_from(number).unwrap_or_default() % targets;
        let Some(target) = self.request.targets.get(index) else { return false };
        lock(&self.status).under_way += 1;
        let begun = Instant::now();
        let outcome = attempt(*target, self.request.patience.unwrap_or(PATIENCE));
        let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut status = lock(&self.status);
        status.under_way -= 1;
        status.opened += 1;
        status.slowest_ms = status.slowest_ms.max(took);
        match outcome {
            Outcome::Answer(answer) => *status.answers.entry(answer.pod).or_default() += 1,
            failure => {
                status.failed += 1;
                if status.failures.len() < DESCRIBED {
                    let at = (begun - self.begun).as_secs_f64();
                    status.failures.push(format!("{at:.2} s: {target}: {failure:?} after {took} ms"));
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_counted_and_described() {
        let targets = vec!["tcp://127.0.0.1:1".parse().unwrap()];
        let request = LoadRequest { targets, per_second: 100, seconds: 60, patience: None };
        let load = Load::start(request);
        let end = Instant::now() + Duration::from_secs(10);
        while load.status().opened < 30 && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(load.0.begun.elapsed() > Duration::from_millis(250), "faster than asked");
        load.stop();
        while load.status().under_way > 0 && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
        let status = load.status();
        assert!(status.opened >= 30 && status.failed == status.opened, "{status:?}");
        assert_eq!(status.failures.len(), DESCRIBED);
        assert!(status.failures[0].contains("Refused"), "{:?}", status.failures);
    }
}
