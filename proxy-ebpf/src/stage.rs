//! Stages: one decision each, about a packet or a system call. `path` has their order.
//!
//! A stage that decides what becomes of a packet says so by a [`Verdict`](crate::verdict::Verdict).
//! What it does beside that is counted by functions of `verdict`, too.

pub mod answer;
pub mod capture;
pub mod client;
pub mod endpoint;
pub mod flow;
pub mod frame;
pub mod masquerade;
pub mod peer;
pub mod related;
pub mod route;
pub mod service;
pub mod source;
pub mod translate;
