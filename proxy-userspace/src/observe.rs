//! What is told of the daemon's work: its log, metrics, and Kubernetes Events.

pub mod logging;
pub mod metrics;
pub mod recorder;
