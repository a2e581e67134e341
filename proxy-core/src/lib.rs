//! Sluice's decisions, pure.
//!
//! Data flows one way through this crate: [`event::Event`] → [`index::Index`] → [`plan::Planner`] →
//! [`nft::lower()`] or [`ebpf::lower()`] → [`diff::diff`].
//!
//! What is lowered to is said in [`lang`], which belongs to no feature; the pod network
//! ([`pod_network`]) uses it too.
//!
//! Invariants:
//! - No I/O, no clock, no async runtime, no logging: the crate's dependencies could not do any of
//!   it.
//! - Policy (traffic policies, readiness, termination, topology, masquerading) is decided once, in
//!   [`plan`]. Lowering code never sees a Service.
//! - One event costs time in proportion to the services that it touches, never to the number of
//!   services.

pub mod diff;
pub mod ebpf;
pub mod event;
pub mod group;
pub mod index;
pub mod ipvs;
pub mod kind;
pub mod lang;
pub mod list;
pub mod loopback;
pub mod model;
pub mod net;

pub mod nft;
pub mod plan;
pub mod pod_network;
pub mod slots;
