//! The last passes, for /debug/syncs.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use serde::Serialize;

/// So many are remembered.
const REMEMBERED: usize = 4096;

/// One pass, as shown by /debug/syncs.
#[derive(Clone, Debug, Serialize)]
pub struct SyncRecord {
    /// `full`, `incremental`, `repair` or `audit`.
    pub kind: &'static str,
    /// Unix time of its end.
    pub at: f64,
    /// Services whose plan changed.
    pub services: usize,
    /// Operations committed to the kernel.
    pub operations: usize,
    /// Transactions committed.
    pub transactions: usize,
    /// From the first event that it applied (for the first pass: from the last object of the
    /// initial lists) to the kernel's acknowledgement.
    pub seconds_from_event: f64,
    /// Of this, the time of planning, lowering and committing.
    pub seconds: f64,
}

/// The last passes.
pub type SyncLog = Arc<Mutex<VecDeque<SyncRecord>>>;

/// Adds a pass; the oldest goes when there are too many.
pub fn remember(log: &SyncLog, record: SyncRecord) {
    if let Ok(mut log) = log.lock() {
        if log.len() >= REMEMBERED {
            log.pop_front();
        }
        log.push_back(record);
    }
}
