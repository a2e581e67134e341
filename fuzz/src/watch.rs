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
    /// The file that has the input that is being read, for when the process ends with it: nothing else outlives a stack that is
    /// too small.
    copy: Option<File>,
    /// The input that is being read, and how many looks it has taken; nothing between inputs. Time is counted by looks, because a
    /// reader that gets no processor hangs no more than the watcher, which gets none either.
    reading: Mutex<Option<(u32, Vec<u8>)>>,
    over: Mutex<bool>,
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
        set(&self.state.reading, Some((0, input.to_vec())));
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
            let Some((looks, input)) = &mut *reading else { continue };
            *looks += 1;
            if LOOK * *looks > self.limit {
                let written = crate::run::write(&self.file, input);
                // Straight to stderr: what tests print is kept back until their end, which will not come.
                eprintln!("{}: an input takes more than {:?}: {written}", self.target, self.limit);
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
