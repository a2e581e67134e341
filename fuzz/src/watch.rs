//! Ends the process when one input takes too long: nothing else ends a loop without an end.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use crate::settings::Settings;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// Watches over the inputs of one target.
#[derive(Debug)]
pub struct Watch {
    state: Arc<State>,
    watcher: Option<JoinHandle<()>>,
    copy: PathBuf,
}

#[derive(Debug)]
struct State {
    target: String,
    limit: Duration,
    file: PathBuf,
    /// The file that has the input that is being read, for when the process ends with it: nothing
    /// else outlives a stack that is too small.
    copy: Option<File>,
    /// Nothing between inputs.
    reading: Mutex<Option<Reading>>,
    over: Mutex<bool>,
}

/// The input that is being read, and how many looks it has taken. Time is counted by looks: while
/// the whole process is stopped, as on a machine that sleeps, nobody looks. A reader that others
/// only keep from a processor is given the whole limit, no more.
#[derive(Debug)]
struct Reading {
    looks: u32,
    input: Vec<u8>,
}

impl Reading {
    /// One more look; whether the input has now taken more than the limit.
    fn takes_too_long(&mut self, limit: Duration) -> bool {
        self.looks += 1;
        LOOK * self.looks > limit
    }
}

impl Watch {
    /// Begins to watch over a target.
    pub fn new(target: &str) -> Self {
        Self::with(target, &Settings::of_environment())
    }

    pub(crate) fn with(target: &str, settings: &Settings) -> Self {
        let state = Arc::new(State {
            target: target.to_owned(),
            limit: settings.limit,
            file: settings.files.join(format!("{target}-hangs")),
            copy: std::fs::create_dir_all(&settings.files)
                .and_then(|()| File::create(copy(target, settings)))
                .ok(),
            reading: Mutex::new(None),
            over: Mutex::new(false),
        });
        let watched = state.clone();
        let watcher = Some(std::thread::spawn(move || watched.watch()));
        Watch { state, watcher, copy: copy(target, settings) }
    }

    /// Gives an input to a reader.
    pub fn over<T>(&self, input: &[u8], read: impl FnOnce() -> T) -> T {
        if let Some(copy) = &self.state.copy {
            // Without it there is one thing less to know.
            drop(copy.write_all_at(input, 0).and_then(|()| copy.set_len(input.len() as u64)));
        }
        set(&self.state.reading, Some(Reading { looks: 0, input: input.to_vec() }));
        let result = read();
        set(&self.state.reading, None);
        result
    }
}

fn copy(target: &str, settings: &Settings) -> PathBuf {
    settings.files.join(format!("{target}-ends-the-process"))
}

fn set<T>(mutex: &Mutex<T>, value: T) {
    *mutex.lock().unwrap_or_else(PoisonError::into_inner) = value;
}

impl State {
    fn watch(&self) {
        while !*self.over.lock().unwrap_or_else(PoisonError::into_inner) {
            std::thread::park_timeout(LOOK);
            let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(reading) = &mut *reading else { continue };
            if reading.takes_too_long(self.limit) {
                let written = crate::run::write(&self.file, &reading.input);
                // Straight to stderr: what tests print is kept back until their end, which will not
                // come.
                eprintln!("{}: an input took more than {:?}: {written}", self.target, self.limit);
                std::process::abort();
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        set(&self.state.over, true);
        if let Some(watcher) = self.watcher.take() {
            Thread::unpark(watcher.thread());
            drop(watcher.join());
        }
        drop(std::fs::remove_file(&self.copy));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_takes_too_long_after_as_many_looks_as_the_limit_has() {
        let mut reading = Reading { looks: 0, input: Vec::new() };
        let limit = LOOK * 10;
        assert!((0..10).all(|_| !reading.takes_too_long(limit)));
        assert!(reading.takes_too_long(limit));
    }

    #[test]
    fn the_watcher_looks_at_what_is_read_and_at_nothing_else() {
        let files = std::env::temp_dir().join(format!("sluice-watch-{}", std::process::id()));
        let limit = Duration::from_secs(3600);
        let settings = Settings { inputs: 0, seed: 0, limit, only: None, files: files.clone() };
        let watch = Watch::with("looks", &settings);
        let looks = || watch.state.reading.lock().unwrap().as_ref().map(|reading| reading.looks);
        // However long it takes until it has looked twice.
        watch.over(b"x", || {
            while looks() < Some(2) {
                std::thread::yield_now();
            }
        });
        assert_eq!(looks(), None, "nothing is read");
        drop(watch);
        std::fs::remove_dir_all(files).unwrap();
    }
}
