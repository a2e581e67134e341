//! The Kubernetes API as a source: against a small API server in this process, and through a proxy
//! that makes faults.
#![expect(clippy::unwrap_used, clippy::panic, reason = "integration tests fail by panicking")]

mod access;
mod crowd;
mod daemons;
mod events;
mod fake_api;
mod faults;
mod health;
#[path = "../support/kube_proxy.rs"]
mod kube_proxy;
mod metrics_page;
mod observer;
mod opt_out;
mod watch;
