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
mod run;
pub(crate) mod virtual_servers;

use sluice_core::kind::Kind;

pub(crate) use owned::owned;
pub use run::{Running, Shown, run};

use crate::config::{BackendKind, Settings};
use crate::watch::{Kinds, Reach};

/// What it reads. Only mode ebpf has a socket path that pods could leave, and users of the other
/// modes need not permit more. Addresses of other nodes matter to mode ipvs.
pub fn interests(settings: &Settings) -> Kinds {
    let nodes = match settings.backend {
        BackendKind::Ipvs => Reach::Cluster,
        _ => Reach::ThisNode,
    };
    let always = [
        (Kind::Service, Reach::Cluster),
        (Kind::Slice, Reach::Cluster),
        (Kind::ServiceCidr, Reach::Cluster),
        (Kind::Node, nodes),
    ];
    let of_pods = [(Kind::Pod, Reach::ThisNode), (Kind::Namespace, Reach::Cluster)];
    let has_socket_path = matches!(settings.backend, BackendKind::Ebpf | BackendKind::Auto);
    always.into_iter().chain(of_pods.into_iter().filter(|_| has_socket_path)).collect()
}
