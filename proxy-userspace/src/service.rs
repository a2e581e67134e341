//! The service proxy: what Services and EndpointSlices say, in the kernel.
//!
//! `reconcile` plans what changed and has `backend` apply it. From `reconcile` to `conntrack` or
//! `flows`, `loopback` and `health_checks`, channels lead.

pub mod affinity;
pub mod backend;
pub mod conntrack;
#[cfg(feature = "ebpf")]
pub mod ebpf_object;
pub mod facts;
pub mod flows;
pub mod handover;
pub mod health_checks;
pub(crate) mod kube_proxy;
pub mod loopback;
pub mod optout;
mod owned;
mod passes;
pub mod reconcile;
pub(crate) mod virtual_servers;

pub(crate) use owned::owned;
