//! Follows all objects of one kind: lists them, watches them, and finds its way back after any
//! failure.
//!
//! What was told stays in force until a later list is complete without it. A part that cannot be
//! understood never passes silently: an object with a broken field keeps its last state, and after
//! a broken line the watch goes back to the last version that was understood.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use sluice_core::event::Event;
use sluice_core::kind::Kind;
use sluice_core::model::ObjectName;
use tracing::{info, trace, warn};

use super::failure::{Failure, Reason};
use super::frames::{Items, Lines, TooLong};
use super::pace::{Backoff, Limit, Timing, random_part};
use super::request::Requests;
use crate::observe::metrics::Metrics;
use crate::watch::kinds::read_json;
use crate::watch::objects::{AnyObject, Metadata};
use crate::watch::{Events, send};

/// What all kinds share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) requests: Requests,
    pub(super) events: Events,
    pub(super) metrics: Metrics,
    pub(super) timing: Arc<Timing>,
}

/// From where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    List,
    Watch,
}

/// Why a request is over.
pub(super) enum Stop {
    /// Nobody listens any more.
    Closed,
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Stop::Failed(failure)
    }
}

impl From<TooLong> for Stop {
    fn from(_: TooLong) -> Self {
        Stop::Failed(Failure::new(Reason::Malformed, "a line of the answer is too long"))
    }
}

pub(super) struct Follower {
    kind: Kind,
    /// Selectors as query parameters, each with a leading `&`.
    selectors: String,
    shared: Shared,
    next: Next,
    /// The version up to which everything is known; empty before the first list, and after the
    /// server has forgotten it.
    version: String,
    /// What a list must be at least as new as: "0" takes what the server has at hand, "" asks for
    /// the newest.
    list_version: String,
    /// The server sends lists as the beginning of a watch (Kubernetes 1.32 and later).
    streaming: bool,
    lists: u64,
    /// Broken lines in a row, without progress between them.
    malformed: u32,
    backoff: Backoff,
    failures: Limit,
    problems: Limit,
    failing: bool,
}

#[derive(Deserialize)]
struct WatchEvent<'a> {
    #[serde(rename = "type", borrow)]
    kind: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct ListEnvelope {
    metadata: Metadata,
}

const LOG_SPAN: Duration = Duration::from_secs(60);
/// A watch that ended sooner did not work.
const SHORT: Duration = Duration::from_secs(1);

impl Follower {
    pub(super) fn new(kind: Kind, selectors: String, shared: Shared) -> Self {
        let backoff = Backoff::new(&shared.timing);
        Follower {
            kind,
            selectors,
            shared,
            next: Next::List,
            version: String::new(),
            list_version: "0".into(),
            streaming: true,
            lists: 0,
            malformed: 0,
            backoff,
            failures: Limit::new(2, LOG_SPAN),
            problems: Limit::new(20, LOG_SPAN),
            failing: false,
        }
    }

    /// Runs until nobody listens any more.
    pub(super) async fn run(mut self) {
        let closed = self.shared.events.clone();
        tokio::select! {
            () = self.follow() => {}
            () = closed.closed() => {}
        }
    }

    async fn follow(&mut self) {
        loop {
            let begun = Instant::now();
            let was = self.next;
            let result = match was {
                Next::List if self.streaming => self.streamed_list().await,
                Next::List => self.list().await,
                Next::Watch => self.watch().await,
            };
            let result = match result {
                Ok(()) if was == Next::Watch && begun.elapsed() < SHORT => {
                    Err(Stop::Failed(Failure::new(Reason::Reset, "the watch ended at once")))
                }
                other => other,
            };
            let pause = match result {
                // A list is followed by its watch; a watch that has ended is taken up again.
                Ok(()) if was == Next::List => Duration::ZERO,
                Ok(()) => self.shared.timing.first_retry.mul_f64(random_part()),
                Err(Stop::Closed) => return,
                Err(Stop::Failed(failure)) => self.failed(&failure),
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Decides how to go on after a failure, and when.
    fn failed(&mut self, failure: &Failure) -> Duration {
        let labels = [("kind", self.kind.name().to_owned()), ("reason", failure.reason.label().to_owned())];
        self.shared.metrics.watch_errors.get_or_create(&labels).inc();
        let streamed_list = self.next == Next::List && self.streaming;
        match failure.reason {
            Reason::Rejected if streamed_list => {
                info!(
                    kind = self.kind.name(),
                    "the server does not stream lists: requesting them in one response"
                );
                self.streaming = false;
                return Duration::ZERO;
            }
            // Servers before 1.27 take such a request for a plain watch, and never say that the
            // list is complete.
            Reason::Timeout if streamed_list => self.streaming = false,
            // A version that the server does not want to hear of, for whatever reason.
            Reason::Rejected if self.next == Next::Watch => {
                self.next = Next::List;
                self.list_version.clear();
            }
            Reason::Gone => {
                // The server works; whatever the failures before, only the spread of lists is to be
                // waited for. A list that is gone is another matter.
                if self.next == Next::Watch {
                    self.backoff.reset();
                }
                self.next = Next::List;
                self.list_version.clear();
            }
            Reason::Malformed => {
                self.malformed += 1;
                // What is broken in the same place again may be whole in a list.
                if self.malformed > 1 {
                    self.next = Next::List;
                }
            }
            _ => {}
        }
        self.log(failure);
        let pause = self.backoff.pause(failure.retry_after, random_part());
        if self.next == Next::List && self.lists > 0 {
            return pause + self.shared.timing.relist_spread.mul_f64(random_part());
        }
        pause
    }

    fn log(&mut self, failure: &Failure) {
        self.failing = true;
        let (kind, reason, error) = (self.kind.name(), failure.reason.label(), &failure.message);
        if let Some(hidden) = self.failures.allow(Instant::now()) {
            let hidden = Some(hidden).filter(|hidden| *hidden > 0);
            let server = self.shared.requests.server();
            warn!(
                kind,
                reason,
                error,
                server,
                hidden,
                "watch failed; the last known state stays in force, trying again"
            );
        }
    }

    /// Something came that shows that the connection works.
    fn progress(&mut self) {
        self.malformed = 0;
        self.backoff.reset();
        if std::mem::take(&mut self.failing) {
            info!(kind = self.kind.name(), "watch works again");
        }
    }

    async fn tell(&self, event: Event) -> Result<(), Stop> {
        match send(&self.shared.events, event).await {
            true => Ok(()),
            false => Err(Stop::Closed),
        }
    }

    async fn begin_list(&mut self) -> Result<(), Stop> {
        self.shared.metrics.lists.get_or_create(&[("kind", self.kind.name().to_owned())]).inc();
        self.tell(self.kind.list_begin()).await
    }

    async fn end_list(&mut self, version: &str, objects: usize) -> Result<(), Stop> {
        self.version = version.to_owned();
        // A later list must not go back in time.
        self.list_version = self.version.clone();
        self.next = Next::Watch;
        self.lists += 1;
        self.progress();
        info!(kind = self.kind.name(), objects, "list complete");
        self.tell(self.kind.list_end()).await
    }

    /// Gets the list in one answer, and the objects out of it while it comes.
    async fn list(&mut self) -> Result<(), Stop> {
        let matching = if self.list_version.is_empty() { "" } else { "&resourceVersionMatch=NotOlderThan" };
        let (path, selectors, version) = (self.kind.path(), &self.selectors, &self.list_version);
        let url = format!("{path}?resourceVersion={version}{matching}{selectors}");
        let mut answer = self.shared.requests.get(&url).await?;
        self.begin_list().await?;
        let (mut items, mut objects) = (Items::default(), 0);
        while let Some(bytes) = answer.next(self.shared.timing.list_idle).await? {
            items.push(&bytes);
            while let Some(item) = items.next_item()? {
                objects += 1;
                let (event, _) = self.object(&item)?;
                self.tell(event).await?;
            }
        }
        let envelope = items.envelope().and_then(|rest| serde_json::from_slice::<ListEnvelope>(rest).ok());
        let Some(ListEnvelope { metadata }) = envelope.filter(|e| !e.metadata.resource_version.is_empty())
        else {
            return Err(Failure::new(Reason::Malformed, "the list has no end or no resourceVersion").into());
        };
        self.end_list(&metadata.resource_version, objects).await
    }

    /// Watches, beginning with all objects there are.
    async fn streamed_list(&mut self) -> Result<(), Stop> {
        let version = self.list_version.clone();
        self.stream(&version, "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan").await
    }

    async fn watch(&mut self) -> Result<(), Stop> {
        let version = self.version.clone();
        self.stream(&version, "").await
    }

    async fn stream(&mut self, version: &str, more: &str) -> Result<(), Stop> {
        let seconds = self.shared.timing.watch.mul_f64(1.0 + random_part()).as_secs().max(1);
        let (path, selectors) = (self.kind.path(), &self.selectors);
        let url = format!(
            "{path}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={version}\
             {more}{selectors}"
        );
        let mut answer = self.shared.requests.get(&url).await?;
        if self.next == Next::List {
            self.begin_list().await?;
        }
        let (mut lines, mut objects) = (Lines::default(), 0);
        loop {
            let timing = &self.shared.timing;
            let idle = if self.next == Next::List { timing.list_idle } else { timing.watch_idle };
            let Some(bytes) = answer.next(idle).await? else { break };
            lines.push(&bytes);
            while let Some(line) = lines.next_line()? {
                objects += 1;
                self.line(&line, objects).await?;
            }
        }
        match (lines.is_inside(), self.next) {
            (true, _) => Err(Failure::new(Reason::Malformed, "the watch ended inside an event").into()),
            (_, Next::List) => Err(Failure::new(Reason::Reset, "the list ended before its end").into()),
            _ => Ok(()),
        }
    }

    pub(super) async fn line(&mut self, line: &Bytes, objects: usize) -> Result<(), Stop> {
        if line.is_empty() {
            return Ok(());
        }
        let told: WatchEvent<'_> = serde_json::from_slice(line).map_err(malformed)?;
        let object = told.object.get().as_bytes();
        let (event, version) = match told.kind.as_ref() {
            "ERROR" => return Err(Failure::told(object).into()),
            "BOOKMARK" => {
                let AnyObject { metadata } = serde_json::from_slice(object).map_err(malformed)?;
                if self.next == Next::List && metadata.annotations.initial_events_end.is_some() {
                    return self.end_list(&metadata.resource_version, objects - 1).await;
                }
                return self.passed(metadata.resource_version);
            }
            "ADDED" | "MODIFIED" => self.object(object)?,
            "DELETED" => {
                let AnyObject { metadata } = serde_json::from_slice(object).map_err(malformed)?;
                (self.kind.deletion(self.name(&metadata)?), metadata.resource_version)
            }
            other => return Err(Failure::new(Reason::Malformed, format!("event of type {other:?}")).into()),
        };
        self.tell(event).await?;
        self.passed(version)
    }

    /// Everything up to this version is known.
    fn passed(&mut self, version: String) -> Result<(), Stop> {
        if self.next == Next::Watch && !version.is_empty() {
            self.list_version.clone_from(&version);
            self.version = version;
            self.progress();
        }
        Ok(())
    }

    fn name(&self, metadata: &Metadata) -> Result<ObjectName, Failure> {
        if metadata.name.is_empty() {
            return Err(Failure::new(Reason::Malformed, "an object without a name"));
        }
        Ok(self.kind.object(metadata.namespace.as_deref(), &metadata.name))
    }

    /// Converts an object; one with a field that cannot be decoded keeps its last good state.
    fn object(&mut self, json: &[u8]) -> Result<(Event, String), Failure> {
        let AnyObject { metadata } = serde_json::from_slice(json).map_err(malformed)?;
        let (name, kind) = (self.name(&metadata)?, self.kind.name());
        let version = metadata.resource_version;
        match read_json(self.kind, json) {
            Ok(said) => {
                for problem in said.problems {
                    self.problem(&name, &version, &problem);
                }
                trace!(kind, object = %name, version, "received");
                Ok((said.event, version))
            }
            Err(error) => {
                let problem = format!("cannot be decoded, its last valid state stays in force: {error}");
                self.problem(&name, &version, &problem);
                Ok((self.kind.kept(name), version))
            }
        }
    }

    fn problem(&mut self, name: &ObjectName, version: &str, problem: &str) {
        self.shared.metrics.object_problems.inc();
        if let Some(hidden) = self.problems.allow(Instant::now()) {
            let hidden = Some(hidden).filter(|hidden| *hidden > 0);
            warn!(kind = self.kind.name(), object = %name, version, hidden, "{problem}");
        }
    }
}

fn malformed(error: serde_json::Error) -> Failure {
    Failure::new(Reason::Malformed, error.to_string())
}
