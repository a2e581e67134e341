//! What each feature offers, so that the daemon and its commands need to know of none in
//! particular.
//!
//! A feature is a room with a door, such as `service.rs`. The door gives:
//!
//! - `interests`: the kinds of objects that it reads. Only these are watched, and only these wake
//!   it.
//! - `run`: starts its tasks. They read the objects from a `World`, and work with a [`Context`].
//! - `owned`: all that it leaves on the node, each of which can be looked at and removed. What a
//!   feature reports without a daemon is what these things look like.
//!
//! `crate::features` is the list of features.

mod look;

pub(crate) use look::{NO_BPF, Reason, has_table};

use std::error::Error;
use std::fmt::Display;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use crate::config::Settings;
use crate::node::addresses::Network;
use crate::observe::metrics::Metrics;
use crate::observe::recorder::Recorder;
use crate::watch::Kinds;
use crate::watch::kubernetes::Peers;

/// A feature, as those see it who walk all of them.
pub struct Feature {
    /// Which objects it reads.
    pub(crate) interests: fn(&Settings) -> Kinds,
    /// What it leaves on the node.
    pub(crate) owned: fn(&Places) -> Vec<Box<dyn Owned>>,
}

/// What the tasks of any feature work with.
#[derive(Clone)]
pub struct Context {
    /// Settings of the daemon.
    pub settings: Settings,
    /// Metrics.
    pub metrics: Metrics,
    /// Events for the API.
    pub recorder: Recorder,
    /// Interfaces and addresses, once they have been listed.
    pub network: watch::Receiver<Option<Network>>,
    /// By which addresses this process reaches the API.
    pub api_peers: watch::Receiver<Peers>,
    /// How many files this process may open.
    pub files: u64,
    /// Turns true when the program shall end.
    pub shutdown: watch::Receiver<bool>,
}

/// Where features leave things, as far as somebody chooses that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The eBPF maps and programs.
    pub bpffs: PathBuf,
    /// What the daemon tells the CNI plugin of the node.
    pub run_dir: PathBuf,
}

/// When something goes, where everything goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Turn {
    /// First: nothing new begins to use what goes next.
    Entrance,
    /// Tables, links and routes.
    Kernel,
    /// Programs, which serve what others do not.
    Programs,
    /// Last: what is not in the kernel.
    Files,
}

/// Something that a feature leaves in the kernel or on the disk.
pub(crate) trait Owned {
    /// What it is, where it could not be removed.
    fn name(&self) -> String;

    /// When it goes.
    fn turn(&self) -> Turn;

    /// Looks at it, and needs no daemon: what `sluice status` shows. By itself, nothing.
    fn observe(&self) -> Seen {
        Seen::default()
    }

    /// Removes it; by `force` even if somebody is at work on it.
    fn remove(&self, force: bool) -> Result<Removal, NotRemoved>;
}

/// What became of something that was to be removed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// All of this is gone.
    Gone(Vec<String>),
    /// Why there was nothing to remove.
    Nothing(String),
    /// Why it is kept, and what to do.
    Kept(String),
}

/// Why something is still there.
#[derive(Debug)]
pub(crate) enum NotRemoved {
    /// Without CAP_NET_ADMIN nothing else can be removed either.
    Right,
    /// Any other reason.
    Because(Box<dyn Error>),
}

impl<E: Error + 'static> From<E> for NotRemoved {
    fn from(error: E) -> Self {
        NotRemoved::Because(error.into())
    }
}

/// What was seen of something.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// What there is, if it is there.
    pub(crate) section: Option<Section>,
    /// What could not be looked at.
    pub(crate) unseen: Vec<Unseen>,
}

impl Seen {
    /// What was found of a part.
    pub(crate) fn of(part: &'static str, found: Result<Option<Section>, Reason>) -> Seen {
        let mut unseen = Vec::new();
        let section = Unseen::note(part, found, &mut unseen);
        Seen { section, unseen }
    }
}

/// A part of a report.
#[derive(Debug, Default)]
pub(crate) struct Section {
    /// Its field in JSON, such as `podNetwork`.
    pub(crate) field: &'static str,
    /// The value of this field.
    pub(crate) value: Value,
    /// The same for people: whole lines.
    pub(crate) text: String,
    /// Whether it is as no daemon of this version writes it.
    pub(crate) altered: bool,
}

impl Section {
    /// Something that is as it should be, as far as can be seen.
    pub(crate) fn new(field: &'static str, content: &(impl Serialize + Display)) -> Section {
        // Structs of numbers and names have a value.
        let value = serde_json::to_value(content).unwrap_or_default();
        Section { field, value, text: content.to_string(), altered: false }
    }
}

/// A part that could not be looked at.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Unseen {
    pub(crate) part: &'static str,
    pub(crate) reason: String,
    /// Whether a right is all that lacks.
    #[serde(skip)]
    pub(crate) is_right: bool,
}

impl Unseen {
    /// What was found of a part; notes why it could not be looked at.
    pub(crate) fn note<T>(
        part: &'static str,
        found: Result<Option<T>, Reason>,
        unseen: &mut Vec<Unseen>,
    ) -> Option<T> {
        found.unwrap_or_else(|reason| {
            let (reason, is_right) = match reason {
                Reason::Right(text) => (text.to_owned(), true),
                Reason::Other(text) => (text, false),
            };
            unseen.push(Unseen { part, reason, is_right });
            None
        })
    }
}
