//! The signals that end the daemon.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens for SIGTERM and SIGINT from its making on: what comes before it is asked is kept.
pub struct EndSignals {
    term: Signal,
    interrupt: Signal,
}

impl EndSignals {
    /// Has to be called within a runtime.
    pub fn listen() -> std::io::Result<Self> {
        Ok(EndSignals { term: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of them, and returns its name.
    pub async fn received(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
