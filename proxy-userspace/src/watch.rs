//! Sources of objects: both feed the same events into the same index.

mod decode;
mod doubt;
#[cfg(test)]
mod fuzz;
mod kinds;
pub mod kubernetes;
pub mod manifests;
mod objects;
mod split;
mod wanted;
mod yaml;

use std::time::Instant;

use sluice_core::event::Event;
use tokio::sync::mpsc;

pub use wanted::{Kinds, Reach};

/// An event and when it was received.
#[derive(Debug)]
pub struct Received {
    /// The event.
    pub event: Event,
    /// When the object had been read.
    pub at: Instant,
}

/// Where sources send events.
pub type Events = mpsc::Sender<Received>;

/// Sends an event; false when nobody listens any more.
pub(crate) async fn send(events: &Events, event: Event) -> bool {
    events.send(Received { event, at: Instant::now() }).await.is_ok()
}
