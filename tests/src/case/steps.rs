//! The steps of a case, and what makes a step impossible in its lab.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::time;
use crate::objects;
use crate::target::{From, Proto, Target};
use crate::topology::Topology;

/// One step.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Open connections and compare
    Probe(ProbeStep),
    /// The same, taking turns over several destinations
    Alternate(ProbeStep),
    /// Create or replace objects
    Apply(String),
    /// Delete objects
    Delete(Vec<DeleteItem>),
    /// Open a connection and keep it busy
    Hold(HoldStep),
    /// One UDP socket that keeps sending
    Sendto(HoldStep),
    /// How a held connection fares
    Held(HeldStep),
    /// SIGKILL the proxy of a node
    Kill(String),
    /// SIGTERM the proxy of a node
    Stop(String),
    /// Start the proxy of a node
    Start(String),
    /// Run a program in a node
    Run(RunStep),
    /// HTTP GET from inside a node
    Http(HttpStep),
    /// What the kernel tracks
    Conntrack(ConntrackStep),
    /// Begin to capture packets
    Capture(CaptureStep),
    /// End a capture and compare
    Captured(CapturedStep),
    /// Let time pass
    Wait(#[serde(deserialize_with = "time::duration")] Duration),
}

/// `probe` and `alternate`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeStep {
    /// Who connects
    pub from: From,
    /// Where to; one for `probe`
    #[serde(deserialize_with = "targets")]
    pub to: Vec<Target>,
    /// The node that the client's packets take
    pub via: Option<String>,
    /// Connections in a try
    pub count: Option<usize>,
    /// Time between two connections
    #[serde(default, deserialize_with = "time::optional")]
    pub interval: Option<Duration>,
    /// Exactly these answer
    pub reaches: Option<Vec<String>>,
    /// None succeeds
    pub fails: Option<Fails>,
    /// Whom the endpoint sees
    pub source: Option<Source>,
    /// All answers from one endpoint
    #[serde(default)]
    pub sticky: bool,
    /// From the one that answered that probe
    pub same_as: Option<String>,
    /// Most used over least used endpoint
    pub spread: Option<f64>,
    /// At least so many endpoints
    pub at_least: Option<usize>,
    /// A name for `same_as`
    pub id: Option<String>,
    /// How long tries go on
    #[serde(default, deserialize_with = "time::optional")]
    pub within: Option<Duration>,
    /// Every try must hold
    #[serde(default)]
    pub always: bool,
}

/// How connections fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fails {
    /// At least one ECONNREFUSED
    Refused,
    /// Nothing comes back
    Timeout,
    /// Either, or anything else
    Any,
}

/// Whom an endpoint sees as its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The sender's own address
    Original,
    /// An address of the node that balanced
    Node,
    /// Whomever
    Any,
}

/// An object to delete.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteItem {
    /// Its kind
    pub kind: String,
    /// Its name
    pub name: String,
    /// Its namespace
    pub namespace: Option<String>,
}

/// `hold` and `sendto`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldStep {
    /// Its name for `held`
    pub id: String,
    /// Who connects
    pub from: From,
    /// Where to
    pub to: Target,
    /// How long opening it is tried
    #[serde(default, deserialize_with = "time::optional")]
    pub within: Option<Duration>,
}

/// `held`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldStep {
    /// The name given by `hold` or `sendto`
    pub id: String,
    /// Whether it must be alive
    #[serde(default = "yes")]
    pub alive: bool,
    /// Who must be answering
    pub endpoint: Option<String>,
    /// How long it is tried
    #[serde(default, deserialize_with = "time::optional")]
    pub within: Option<Duration>,
}

/// `run`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunStep {
    /// The node
    pub node: String,
    /// Program and arguments
    pub argv: Vec<String>,
    /// Its output
    pub expect_stdout: Option<String>,
    /// Its status
    #[serde(default)]
    pub expect_status: i32,
    /// How long the output is tried for
    #[serde(default, deserialize_with = "time::optional")]
    pub within: Option<Duration>,
}

/// `http`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpStep {
    /// The node
    pub node: String,
    /// The URL
    pub url: String,
    /// The status; 200 when not given
    pub status: Option<u16>,
    /// A subset of the body
    pub json: Option<Value>,
    /// Headers that must be there
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// How long it is tried
    #[serde(default, deserialize_with = "time::optional")]
    pub within: Option<Duration>,
}

/// `conntrack`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConntrackStep {
    /// The node
    pub node: String,
    /// The protocol
    pub proto: Proto,
    /// The original destination
    pub orig: SocketAddr,
    /// Whether there is such an entry
    #[serde(default = "yes")]
    pub present: bool,
    /// How long it is tried
    #[serde(default, deserialize_with = "time::optional")]
    pub within: Option<Duration>,
}

/// `capture`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureStep {
    /// The node
    pub node: String,
    /// The link
    #[serde(default = "any_device")]
    pub dev: String,
    /// The filter expression
    #[serde(default)]
    pub filter: String,
    /// Its name for `captured`
    pub id: String,
}

/// `captured`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapturedStep {
    /// The name given by `capture`
    pub id: String,
    /// At least so many packets
    pub min: Option<usize>,
    /// At most so many
    pub max: Option<usize>,
    /// Texts that tcpdump must print
    #[serde(default, deserialize_with = "texts")]
    pub contains: Vec<String>,
}

fn yes() -> bool {
    true
}

fn any_device() -> String {
    "any".to_owned()
}

impl Step {
    /// The word it begins with.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Probe(_) => "probe",
            Self::Alternate(_) => "alternate",
            Self::Apply(_) => "apply",
            Self::Delete(_) => "delete",
            Self::Hold(_) => "hold",
            Self::Sendto(_) => "sendto",
            Self::Held(_) => "held",
            Self::Kill(_) => "kill",
            Self::Stop(_) => "stop",
            Self::Start(_) => "start",
            Self::Run(_) => "run",
            Self::Http(_) => "http",
            Self::Conntrack(_) => "conntrack",
            Self::Capture(_) => "capture",
            Self::Captured(_) => "captured",
            Self::Wait(_) => "wait",
        }
    }

    /// Refuses what the lab does not have. `ids` collects the names that earlier steps gave, with
    /// the kind of step.
    pub(super) fn check(
        &self,
        topology: &Topology,
        ids: &mut BTreeSet<(&'static str, String)>,
    ) -> Result<()> {
        let mut give = |kind: &'static str, id: &str| {
            ensure!(ids.insert((kind, id.to_owned())), "the id {id} is already used");
            Ok(())
        };
        match self {
            Self::Probe(probe) => {
                ensure!(probe.to.len() == 1, "probe takes one destination (alternate takes several)");
                probe.check(topology, ids)
            }
            Self::Alternate(probe) => {
                ensure!(!probe.to.is_empty(), "no destination");
                probe.check(topology, ids)
            }
            Self::Apply(text) => objects::parse(text).map(drop),
            Self::Delete(items) => {
                ensure!(!items.is_empty(), "nothing to delete");
                Ok(())
            }
            Self::Hold(hold) => {
                ensure!(hold.to.proto != Proto::Icmp, "icmp cannot be held");
                topology.check_place(&hold.from)?;
                give("hold", &hold.id)
            }
            Self::Sendto(hold) => {
                ensure!(hold.to.proto == Proto::Udp, "sendto supports only udp");
                topology.check_place(&hold.from)?;
                give("hold", &hold.id)
            }
            Self::Held(held) => {
                ensure!(
                    ids.contains(&("hold", held.id.clone())),
                    "no connection is held with the id {}",
                    held.id
                );
                held.endpoint.as_ref().map_or(Ok(()), |name| topology.check_endpoint(name))
            }
            Self::Kill(node) | Self::Stop(node) | Self::Start(node) => topology.check_node(node),
            Self::Run(run) => {
                ensure!(!run.argv.is_empty(), "an empty argv");
                topology.check_node(&run.node)
            }
            Self::Http(http) => {
                ensure!(http.url.starts_with("http://"), "{} is not an http:// URL", http.url);
                topology.check_node(&http.node)
            }
            Self::Conntrack(conntrack) => {
                ensure!(conntrack.proto != Proto::Icmp, "conntrack supports only tcp, udp and sctp");
                topology.check_node(&conntrack.node)
            }
            Self::Capture(capture) => {
                topology.check_node(&capture.node)?;
                give("capture", &capture.id)
            }
            Self::Captured(captured) => {
                // A capture is over once it was read.
                let there = ids.remove(&("capture", captured.id.clone()));
                ensure!(there, "no capture {} is running", captured.id);
                Ok(())
            }
            Self::Wait(_) => Ok(()),
        }
    }
}

impl ProbeStep {
    fn check(&self, topology: &Topology, ids: &mut BTreeSet<(&'static str, String)>) -> Result<()> {
        topology.check_place(&self.from)?;
        if let Some(via) = &self.via {
            ensure!(self.from == From::Client, "only the client can use via");
            topology.check_node(via)?;
        }
        ensure!(self.count != Some(0), "count must be at least 1");
        self.reaches.iter().flatten().try_for_each(|name| topology.check_endpoint(name))?;
        if self.reaches.as_ref().is_some_and(Vec::is_empty) {
            bail!("reaches is empty: use fails instead");
        }
        let about_answers = self.reaches.is_some()
            || self.source.is_some()
            || self.sticky
            || self.same_as.is_some()
            || self.spread.is_some()
            || self.at_least.is_some();
        ensure!(
            self.fails.is_none() || !about_answers,
            "fails cannot be combined with reaches, source, sticky and similar keys"
        );
        if let Some(other) = &self.same_as {
            ensure!(ids.contains(&("probe", other.clone())), "no earlier probe has the id {other}");
        }
        if let Some(id) = &self.id {
            ensure!(ids.insert(("probe", id.clone())), "the id {id} is already used");
        }
        Ok(())
    }

    /// Connections for each destination in one try.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.count.unwrap_or(if self.fails.is_some() { 4 } else { 40 })
    }
}

/// A list, or a single element without the brackets.
struct OneOrMany<T>(std::marker::PhantomData<T>);

impl<'de, T: Deserialize<'de> + std::str::FromStr<Err: fmt::Display>> Visitor<'de> for OneOrMany<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of strings")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
        text.parse().map(|one| vec![one]).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let mut all = Vec::new();
        while let Some(one) = seq.next_element()? {
            all.push(one);
        }
        Ok(all)
    }
}

fn targets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Target>, D::Error> {
    deserializer.deserialize_any(OneOrMany(std::marker::PhantomData))
}

fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    deserializer.deserialize_any(OneOrMany(std::marker::PhantomData))
}
