//! The daemon `sluice` and its commands, in rooms: `docs/architecture.md` has the plan.
//!
//! [`run`] puts the parts together. They talk through channels: [`watch`] → events → [`state`],
//! which tells the features what changed. A feature is a room of its own and knows no other:
//! [`service`], the service proxy, and [`network`], the pod network. Decisions are in
//! `sluice-core`; the few that are here are marked "Pure".

pub mod cli;
pub mod config;
pub mod exit;
pub mod feature;
pub mod features;
mod go_number;
pub mod go_yaml;
pub mod http;
pub mod network;
pub mod node;
pub mod observe;
pub mod output;
mod random;
pub mod run;
pub mod service;
pub mod state;
pub mod tools;
pub mod watch;
