//! What a scenario acts on: a lab, its API server, and ways to say what must come true.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use crate::agent::protocol::{Outcome, ProbeRequest};
use crate::case::{Fails, ProbeStep};
use crate::cluster::Cluster;
use crate::cluster::api::ApiClient;
use crate::cluster::tools::Tools;
use crate::expect::{self, Senders, Unmet, Verdict};
use crate::interrupt;
use crate::lab::Lab;
use crate::objects::Key;
use crate::patience;
use crate::process::Finished;
use crate::proxy::ProxyProgram;
use crate::report::Failure;
use crate::target::From;

/// How long a change may take until packets show it: controllers batch what they do, and start
/// slowly.
pub(super) const WITHIN: Duration = Duration::from_secs(15);
/// Between two looks.
const POLL: Duration = Duration::from_millis(100);

/// A scenario under way.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) lab: Lab,
    pub(super) cluster: Rc<Cluster>,
    pub(super) tools: Tools,
    pub(super) sluice: ProxyProgram,
    step: usize,
    words: String,
}

impl Stage {
    pub(super) fn new(lab: Lab, cluster: Rc<Cluster>, tools: Tools, sluice: ProxyProgram) -> Self {
        Self { lab, cluster, tools, sluice, step: 0, words: "preparation".to_owned() }
    }

    pub(super) fn api(&self) -> &ApiClient {
        self.cluster.api()
    }

    /// Begins a step. Proxies must have survived the one before.
    pub(super) fn step(&mut self, words: &str) -> Result<()> {
        self.lab.check_proxies()?;
        self.step += 1;
        words.clone_into(&mut self.words);
        Ok(())
    }

    /// Where it failed, and the ends of the logs.
    pub(super) fn failure(&self, lines: usize) -> Failure {
        let mut logs = self.lab.proxy_logs(lines);
        logs.insert("the API server".to_owned(), self.cluster.log("kube-apiserver"));
        Failure { step: Some(self.step), kind: Some(self.words.clone()), logs, ..Failure::default() }
    }

    /// Looks until it is as demanded or the time is over. Looks at least once.
    pub(super) fn eventually(
        &mut self,
        within: Duration,
        mut look: impl FnMut(&Self) -> Result<Verdict>,
    ) -> Result<()> {
        let within = patience::stretched(within);
        let end = Instant::now() + within;
        loop {
            let Some(mut unmet) = look(self)?.err() else { return Ok(()) };
            self.lab.check_proxies()?;
            if Instant::now() > end {
                unmet.expected += &format!(", within {within:?}");
                return Err(unmet.into());
            }
            interrupt::sleep(POLL)?;
        }
    }

    /// Looks until a value is there.
    pub(super) fn until_some<T>(
        &mut self,
        what: &str,
        look: impl Fn(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let mut found = None;
        self.eventually(WITHIN, |stage| {
            found = look(stage)?;
            Ok(met(found.is_some(), what, || "there is none".to_owned()))
        })?;
        found.with_context(|| format!("no {what}"))
    }

    /// Exactly these endpoints must come to answer, every time.
    pub(super) fn reaches(&mut self, from: &str, to: &str, names: &[&str]) -> Result<()> {
        self.reaches_within(WITHIN, from, to, names)
    }

    /// The same with a bound of its own.
    pub(super) fn reaches_within(
        &mut self,
        within: Duration,
        from: &str,
        to: &str,
        names: &[&str],
    ) -> Result<()> {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.probe(within, &ProbeStep { reaches: Some(names), ..probe_step(from, to)? })
    }

    /// No connection may succeed any more.
    pub(super) fn fails(&mut self, from: &str, to: &str, how: Fails) -> Result<()> {
        self.probe(WITHIN, &ProbeStep { fails: Some(how), ..probe_step(from, to)? })
    }

    fn probe(&mut self, within: Duration, step: &ProbeStep) -> Result<()> {
        let request = ProbeRequest {
            dests: step.to.clone(),
            count: step.connections(),
            interval_ms: 0,
            parallel: step.fails.is_some(),
            stop_at_failure: step.fails.is_none(),
        };
        self.eventually(within, |stage| {
            let attempts = stage.lab.probe(&step.from, request.clone(), step.via.as_deref())?;
            let seen: Vec<Outcome> = attempts.into_iter().map(|attempt| attempt.outcome).collect();
            Ok(expect::probe(step, &Senders::default(), None, &seen).map_err(|mut unmet| {
                let targets: Vec<String> = step.to.iter().map(ToString::to_string).collect();
                unmet.expected = format!("from {} to {}: {}", step.from, targets.join(", "), unmet.expected);
                unmet
            }))
        })
    }

    /// A URL, fetched in a node, must come to answer with this status.
    pub(super) fn http(&mut self, node: &str, url: &str, status: u16) -> Result<()> {
        self.eventually(WITHIN, |stage| {
            let seen = match stage.lab.agent(&From::Host(node.to_owned()))?.http_get(url) {
                Ok(answer) => answer.status.to_string(),
                Err(error) => format!("no answer: {error:#}"),
            };
            Ok(met(seen == status.to_string(), &format!("{url} on {node} returns {status}"), || seen))
        })
    }

    /// Runs a program in a node.
    pub(super) fn run(&self, node: &str, argv: &[&str]) -> Result<Finished> {
        self.lab.run(node, &argv.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    /// Starts the controllers, and sluice in every node.
    pub(super) fn begin_with_controllers(&mut self) -> Result<()> {
        self.cluster.start_controllers()?;
        self.lab.start_proxies(&Value::Null)?;
        self.lab.await_first_syncs()
    }

    /// Merges a change into an object of the default namespace.
    pub(super) fn patch(&self, kind: &str, name: &str, patch: &Value) -> Result<()> {
        self.api().patch(&Key::new(kind, None, name), None, patch)
    }

    /// Tells a Service which addresses its load balancer has.
    pub(super) fn balance(&self, service: &str, addresses: &[&str]) -> Result<()> {
        let ingress: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        let status = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        self.api().patch(&Key::new("Service", None, service), Some("status"), &status)
    }
}

/// A verdict of one condition.
pub(super) fn met(condition: bool, expected: &str, observed: impl FnOnce() -> String) -> Verdict {
    if condition { Ok(()) } else { Err(Unmet { expected: expected.to_owned(), observed: observed() }) }
}

/// `client via node-b` sends through that node.
fn probe_step(from: &str, to: &str) -> Result<ProbeStep> {
    let (from, via) = match from.split_once(" via ") {
        Some((from, via)) => (from, Some(via.to_owned())),
        None => (from, None),
    };
    Ok(ProbeStep {
        from: from.parse().map_err(|error| anyhow!("{error}"))?,
        to: to
            .split(' ')
            .map(str::parse)
            .collect::<Result<_, String>>()
            .map_err(|error| anyhow!("{error}"))?,
        via,
        count: None,
        interval: None,
        reaches: None,
        fails: None,
        source: None,
        sticky: false,
        same_as: None,
        spread: None,
        at_least: None,
        id: None,
        within: None,
        always: false,
    })
}
