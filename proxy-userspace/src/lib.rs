//! The daemon `sluice`: sources, reconcile loop, backends, conntrack cleanup, health and metrics.
//!
//! [`run`] puts the parts together. Effects only; every decision is in `sluice-core`. The parts
//! talk through channels: `watch` → events → [`state`], which tells [`reconcile`], [`pod_network`]
//! and [`optout`] what changed; `reconcile` → [`backend`] → kernel, and from `reconcile` to
//! [`conntrack`], [`loopback`], [`health`] and [`metrics`].

pub mod addresses;
pub mod affinity;
mod alone;
pub mod backend;
pub mod cleanup;
pub mod cli;
pub mod config;
pub mod conntrack;
#[cfg(feature = "ebpf")]
pub mod ebpf_object;
pub mod events;
pub mod exit;
pub mod flows;
mod go_number;
pub mod go_yaml;
pub mod handover;
pub mod health;
pub mod http;
pub mod logging;
pub mod loopback;
pub mod metrics;
pub mod nft_monitor;
pub mod node;
pub mod optout;
pub mod output;
mod passes;
pub mod pod_network;
mod random;
pub mod reconcile;
mod repairs;
pub mod run;
pub mod signals;
pub mod state;
pub mod status;
mod sysctls;
pub mod watch;
