//! An HTTP proxy in front of an API server that makes faults when it is told to.
//!
//! It listens for HTTP, plain or by TLS, passes requests on (the Authorization header too) over
//! HTTP or HTTPS, and runs in a thread of its own that may enter a network namespace first.

mod answer;
mod server;

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nobody listens, and there are no connections.
    Refuse,
    /// Answers break off after so many bytes, which count from the moment the fault is set.
    ResetAfter(usize),
    /// A pause before each piece of at most so many bytes.
    Slow {
        /// The size of a piece.
        bytes: usize,
        /// The pause.
        pause: Duration,
    },
    /// Connections stay open, and nothing comes. An answer that froze stays so when the fault is
    /// taken away.
    Freeze,
    /// So many requests are answered with this status; they do not reach the server.
    Status {
        /// The code.
        code: u16,
        /// The Retry-After header.
        retry_after: Option<u64>,
        /// How many requests.
        requests: usize,
    },
    /// The events of watches lose their second half; so many of them, one after the other.
    Truncate {
        /// How many pass before.
        after: usize,
        /// How many are cut.
        events: usize,
    },
    /// The events of watches become something that is no JSON; so many of them, one after the
    /// other.
    Corrupt {
        /// How many pass before.
        after: usize,
        /// How many are broken.
        events: usize,
    },
    /// Watches pass bookmarks only.
    OnlyBookmarks,
}

/// A fault, and the requests it strikes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Requests whose path and query contain this; empty for all.
    pub matching: String,
    /// What happens to them.
    pub fault: Fault,
}

/// Where the proxy listens and what it stands before.
#[derive(Clone, Debug)]
pub struct Options {
    /// The API server, `http://` or `https://`. Its certificate is not checked.
    pub upstream: String,
    /// Where to listen.
    pub listen: SocketAddr,
    /// The file of a network namespace to enter.
    pub netns: Option<PathBuf>,
}

/// What the tests set and the connections see.
#[derive(Debug, Default)]
struct Faults {
    rules: Mutex<Vec<Rule>>,
}

impl Faults {
    fn rules(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the rules that strike a request, one after the other, until one answers.
    fn first<T>(&self, request: &str, mut ask: impl FnMut(&mut Fault) -> Option<T>) -> Option<T> {
        let mut rules = self.rules();
        rules.iter_mut().filter(|rule| request.contains(&rule.matching)).find_map(|rule| ask(&mut rule.fault))
    }

    fn refuses(&self) -> bool {
        self.rules().iter().any(|rule| rule.fault == Fault::Refuse)
    }
}

/// What connections are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Signal {
    /// Grows with each change of the rules.
    rules: u64,
    /// Grows when all connections must go.
    resets: u64,
    end: bool,
}

/// A running proxy; it ends when this is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    faults: Arc<Faults>,
    signal: watch::Sender<Signal>,
    thread: Option<JoinHandle<()>>,
}

impl FaultProxy {
    /// Starts the proxy and waits until it listens.
    pub fn start(options: Options) -> anyhow::Result<FaultProxy> {
        let faults = Arc::new(Faults::default());
        let (signal, receiver) = watch::channel(Signal::default());
        let (ready, started) = mpsc::channel();
        let for_thread = faults.clone();
        let thread = std::thread::Builder::new().name("fault-proxy".into()).spawn(move || {
            let failed = ready.clone();
            if let Err(error) = run(options, for_thread, receiver, ready) {
                // Whoever started the proxy may have gone.
                let _ = failed.send(Err(error));
            }
        })?;
        let address = started.recv().context("the proxy's thread ended")??;
        Ok(FaultProxy { address, faults, signal, thread: Some(thread) })
    }

    /// The URL to give to clients.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The same for TLS, which clients with credentials need. The certificate is nobody's.
    pub fn tls_url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Adds a fault for the requests whose path and query contain a text.
    pub fn inject(&self, matching: &str, fault: Fault) {
        self.faults.rules().push(Rule { matching: matching.to_owned(), fault });
        self.signal.send_modify(|signal| signal.rules += 1);
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        self.faults.rules().clear();
        self.signal.send_modify(|signal| signal.rules += 1);
    }

    /// Breaks all connections.
    pub fn reset_connections(&self) {
        self.signal.send_modify(|signal| signal.resets += 1);
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.signal.send_modify(|signal| signal.end = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Started = mpsc::Sender<anyhow::Result<SocketAddr>>;

fn run(
    options: Options,
    faults: Arc<Faults>,
    signal: watch::Receiver<Signal>,
    ready: Started,
) -> anyhow::Result<()> {
    if let Some(path) = &options.netns {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(server::serve(&options, faults, signal, ready));
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests;
