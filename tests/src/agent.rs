//! The runner's end of an agent: a child process that lives in one namespace and opens sockets
//! there on request.
//!
//! Requests and replies are JSON lines with ids, so that several can be under way. The child's end
//! is [`serve`].

pub mod bench;
pub mod dial;
pub mod echo;
pub mod hold;
pub mod http;
pub mod load;
mod parts;
pub mod protocol;
pub mod serve;
pub mod trial;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::interrupt;
use crate::patience;
use crate::process::Namespace;
use crate::target::{Listen, Target};
use bench::{BenchReport, BenchRequest, Service};
use protocol::{
    Attempt, HoldStatus, HttpAnswer, LoadRequest, LoadStatus, ProbeRequest, Reply, ReplyLine, Request,
    RequestLine,
};
use trial::Trial;

/// Replies that callers wait for; `None` once the agent is gone.
type Waiting = Arc<Mutex<Option<HashMap<u64, Sender<Reply>>>>>;

/// A running agent. Dropping it ends the process.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    stdin: Mutex<ChildStdin>,
    waiting: Waiting,
    next: AtomicU64,
    what: String,
}

/// Locks, also when another thread panicked meanwhile: the data are valid at every step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// Starts an agent in a namespace. `program` is a `sluice-conformance` binary.
    pub fn start(program: &Path, namespace: &Namespace) -> Result<Self> {
        let mut command = namespace.command(program)?;
        command.args(["agent", "--patience", &patience::factor().to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child =
            command.spawn().with_context(|| format!("starting the agent {}", program.display()))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the agent has no pipes");
        };
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let replies = Arc::clone(&waiting);
        std::thread::spawn(move || receive(stdout, &replies));
        let what = namespace.name().to_owned();
        Ok(Self { child, stdin: Mutex::new(stdin), waiting, next: AtomicU64::new(1), what })
    }

    /// Sends a request and waits for its reply.
    pub fn call(&self, request: Request, timeout: Duration) -> Result<Reply> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel();
        match lock(&self.waiting).as_mut() {
            Some(waiting) => waiting.insert(id, sender),
            None => bail!("the agent in {} has ended", self.what),
        };
        let mut line = serde_json::to_string(&RequestLine { id, request })?;
        line.push('\n');
        lock(&self.stdin).write_all(line.as_bytes()).context("writing to an agent")?;
        let end = Instant::now() + timeout;
        loop {
            match receiver.recv_timeout(Duration::from_millis(100)) {
                Ok(Reply::Failed { reason }) => bail!("{}: {reason}", self.what),
                Ok(reply) => return Ok(reply),
                Err(RecvTimeoutError::Disconnected) => bail!("the agent in {} has ended", self.what),
                Err(RecvTimeoutError::Timeout) if interrupt::requested() => bail!("interrupted"),
                Err(RecvTimeoutError::Timeout) if Instant::now() > end => {
                    bail!("the agent in {} did not answer within {timeout:?}", self.what)
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Writes kernel settings of the namespace: paths below /proc/sys and values.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        let settings =
            settings.iter().map(|(path, value)| ((*path).to_owned(), (*value).to_owned())).collect();
        self.call(Request::Sysctl { settings }, Duration::from_secs(10)).map(drop)
    }

    /// Starts an echo server that calls itself `name`.
    pub fn listen(&self, listen: Listen, name: &str) -> Result<()> {
        let request = Request::Listen { listen, name: name.to_owned() };
        self.call(request, Duration::from_secs(10)).map(drop)
    }

    /// Opens connections and reports what became of each.
    pub fn probe(&self, request: ProbeRequest) -> Result<Vec<Attempt>> {
        let each = Duration::from_millis(2_500 + request.interval_ms) + patience::stretched(dial::PATIENCE);
        let connections = u32::try_from(request.count * request.dests.len()).unwrap_or(u32::MAX);
        let timeout = each.saturating_mul(connections) + Duration::from_secs(10);
        match self.call(Request::Probe(request), timeout)? {
            Reply::Probe { attempts } => Ok(attempts),
            other => bail!("an unexpected reply: {other:?}"),
        }
    }

    /// Opens a connection (or, for UDP, one socket) that exchanges a line every 50 ms from now on.
    pub fn hold(&self, id: &str, target: Target, connected: bool) -> Result<()> {
        let request = Request::Hold { id: id.to_owned(), target, connected };
        self.call(request, Duration::from_secs(10)).map(drop)
    }

    /// How a held connection fares.
    pub fn held(&self, id: &str) -> Result<HoldStatus> {
        match self.call(Request::Held { id: id.to_owned() }, Duration::from_secs(10))? {
            Reply::Held(status) => Ok(status),
            other => bail!("an unexpected reply: {other:?}"),
        }
    }

    /// Ends a held connection.
    pub fn end_held(&self, id: &str) -> Result<()> {
        self.call(Request::EndHeld { id: id.to_owned() }, Duration::from_secs(10)).map(drop)
    }

    /// Begins to open connections at a steady rate.
    pub fn load(&self, id: &str, load: LoadRequest) -> Result<()> {
        self.call(Request::Load { id: id.to_owned(), load }, Duration::from_secs(10)).map(drop)
    }

    /// How a load fares; with `stop`, it opens no more.
    pub fn loaded(&self, id: &str, stop: bool) -> Result<LoadStatus> {
        match self.call(Request::Loaded { id: id.to_owned(), stop }, Duration::from_secs(10))? {
            Reply::Load(status) => Ok(status),
            other => bail!("an unexpected reply: {other:?}"),
        }
    }

    /// Starts a server for benchmarks.
    pub fn serve(&self, service: Service, port: u16) -> Result<()> {
        self.call(Request::Serve { service, port }, Duration::from_secs(10)).map(drop)
    }

    /// Keeps a benchmark server busy and measures.
    pub fn bench(&self, request: BenchRequest) -> Result<BenchReport> {
        // A kernel that is busy with rules may not let a thread go on for many seconds.
        let timeout = Duration::from_millis(request.millis) + Duration::from_secs(120);
        match self.call(Request::Bench(request), timeout)? {
            Reply::Bench(report) => Ok(report),
            other => bail!("an unexpected reply: {other:?}"),
        }
    }

    /// Waits until `pod` answers at `target`; the Unix time at which the first such connection
    /// began.
    pub fn await_answer(&self, target: Target, pod: &str, limit: Duration) -> Result<f64> {
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let request = Request::AwaitAnswer { target, pod: pod.to_owned(), limit_ms };
        match self.call(request, limit + Duration::from_secs(10))? {
            Reply::Moment(moment) => Ok(moment),
            other => bail!("an unexpected reply: {other:?}"),
        }
    }

    /// Does an experiment; what became of each of its questions.
    pub fn trial(&self, trial: Trial) -> Result<Vec<String>> {
        match self.call(Request::Trial(trial), Duration::from_secs(300))? {
            Reply::Trial(seen) => Ok(seen),
            other => bail!("an unexpected reply: {other:?}"),
        }
    }

    /// Fetches a URL by HTTP GET.
    pub fn http_get(&self, url: &str) -> Result<HttpAnswer> {
        match self.call(Request::HttpGet { url: url.to_owned() }, Duration::from_secs(10))? {
            Reply::Http(answer) => Ok(answer),
            other => bail!("an unexpected reply: {other:?}"),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only when it is gone already, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn receive(stdout: ChildStdout, waiting: &Waiting) {
    for line in BufReader::new(stdout).lines() {
        let Ok(line) = line else { break };
        let Ok(ReplyLine { id, reply }) = serde_json::from_str(&line) else { break };
        let sender = lock(waiting).as_mut().and_then(|waiting| waiting.remove(&id));
        if let Some(sender) = sender {
            // The caller may have given up on it.
            drop(sender.send(reply));
        }
    }
    *lock(waiting) = None;
}
