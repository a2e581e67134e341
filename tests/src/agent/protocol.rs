//! The lines that runner and agent exchange.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bench::{BenchReport, BenchRequest, Service};
use super::trial::Trial;
use crate::target::{Listen, Target};

/// One request with the id that its reply will carry.
#[derive(Debug, Serialize, Deserialize)]
pub struct RequestLine {
    /// Chosen by the runner
    pub id: u64,
    /// What to do
    pub request: Request,
}

/// One reply.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReplyLine {
    /// The id of the request
    pub id: u64,
    /// What came of it
    pub reply: Reply,
}

/// What an agent can be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Write kernel settings of the namespace
    Sysctl {
        /// Path below /proc/sys, value
        settings: Vec<(String, String)>,
    },
    /// Start an echo server
    Listen {
        /// Protocol and port
        listen: Listen,
        /// The name it answers with
        name: String,
    },
    /// Open connections
    Probe(ProbeRequest),
    /// Do an experiment
    Trial(Trial),
    /// Keep a connection or socket busy
    Hold {
        /// Its name
        id: String,
        /// Where to
        target: Target,
        /// A connection (true) or one unconnected UDP socket (false)
        connected: bool,
    },
    /// Ask how a held connection fares
    Held {
        /// Its name
        id: String,
    },
    /// End a held connection
    EndHeld {
        /// Its name
        id: String,
    },
    /// Open connections until the load is stopped
    Load {
        /// Its name
        id: String,
        /// What to open
        load: LoadRequest,
    },
    /// Ask how a load fares
    Loaded {
        /// Its name
        id: String,
        /// Open no more
        stop: bool,
    },
    /// Start a server for benchmarks
    Serve {
        /// What it does
        service: Service,
        /// Its TCP port
        port: u16,
    },
    /// Keep a benchmark server busy
    Bench(BenchRequest),
    /// Wait until a certain endpoint answers
    AwaitAnswer {
        /// Where to
        target: Target,
        /// Who is to answer
        pod: String,
        /// How long at most
        limit_ms: u64,
    },
    /// HTTP GET
    HttpGet {
        /// An `http://` URL
        url: String,
    },
}

/// Connections to open.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProbeRequest {
    /// Destinations, used in turn
    pub dests: Vec<Target>,
    /// How many connections for each destination
    pub count: usize,
    /// Time between two connections
    pub interval_ms: u64,
    /// All at once rather than one after the other
    pub parallel: bool,
    /// No further connection after one that did not succeed
    pub stop_at_failure: bool,
}

impl ProbeRequest {
    /// One connection to one destination, such as `tcp://10.96.0.10:80`.
    pub fn one(to: &str) -> anyhow::Result<Self> {
        let dests = vec![to.parse().map_err(anyhow::Error::msg)?];
        Ok(Self { dests, count: 1, interval_ms: 0, parallel: false, stop_at_failure: true })
    }
}

/// New connections at a steady rate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoadRequest {
    /// Destinations, used in turn
    pub targets: Vec<Target>,
    /// Connections in a second
    pub per_second: u64,
    /// When it ends by itself
    pub seconds: u64,
    /// How long a connection may take to be made, and its answer; the agent's own patience when not
    /// given
    pub patience: Option<Duration>,
}

/// How a load fares.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadStatus {
    /// Connections that were tried and ended
    pub opened: u64,
    /// Those that have not ended yet
    pub under_way: u64,
    /// Those that were not answered
    pub failed: u64,
    /// The time that the slowest took
    pub slowest_ms: u64,
    /// The first failures
    pub failures: Vec<String>,
    /// Who answered how many
    pub answers: BTreeMap<String, u64>,
}

/// One connection of a probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Index of its destination
    pub dest: usize,
    /// What became of it
    pub outcome: Outcome,
}

/// What became of one connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was answered
    Answer(Answer),
    /// ECONNREFUSED: a RST, an SCTP ABORT or an ICMP port unreachable
    Refused,
    /// Nothing came back
    Timeout,
    /// Something else
    Error(String),
}

/// The line an echo server answers with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The server's name; empty for an ICMP echo reply
    pub pod: String,
    /// Whom the server saw
    pub peer: IpAddr,
    /// The port it saw
    pub peer_port: u16,
    /// The server's own address
    pub local: IpAddr,
    /// The server's own port
    pub local_port: u16,
}

/// How a held connection fares.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldStatus {
    /// Why it ended, if it did
    pub broken: Option<String>,
    /// Lines sent
    pub sent: u64,
    /// Lines answered
    pub answered: u64,
    /// Age of the newest answer
    pub since_answer_ms: Option<u64>,
    /// Who gave it
    pub endpoint: Option<String>,
}

/// The answer to an HTTP request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpAnswer {
    /// The status code
    pub status: u16,
    /// Header lines
    pub headers: Vec<(String, String)>,
    /// The body
    pub body: String,
}

/// What an agent replies.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// It is done
    Done,
    /// The connections of a probe
    Probe {
        /// In the order they were opened
        attempts: Vec<Attempt>,
    },
    /// What became of each question of an experiment
    Trial(Vec<String>),
    /// A held connection
    Held(HoldStatus),
    /// A load
    Load(LoadStatus),
    /// What a benchmark came to
    Bench(BenchReport),
    /// A moment, as Unix seconds
    Moment(f64),
    /// An HTTP answer
    Http(HttpAnswer),
    /// It could not be done
    Failed {
        /// Why
        reason: String,
    },
}
