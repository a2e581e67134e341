//! Objects from the Kubernetes API.
//!
//! While the API is away, the last known objects stay in force; a new list withdraws only what it
//! no longer holds, and only when it is complete.
//!
//! The watch is our own, not that of kube's runtime, which drops broken lines in silence, tries a
//! forgotten version for ever when the server says so in the head of its answer, sets lists no
//! limit of time, and holds a whole list three times over in memory.

mod access;
mod failure;
mod follow;
mod frames;
#[cfg(test)]
mod fuzz;
mod kubeconfig;
mod pace;
mod peer;
mod proxy;
mod request;
mod token;

use std::path::PathBuf;
use std::sync::Arc;

use sluice_core::kind::Kind;
use tokio::task::JoinSet;

pub use access::{Access, Origin};
pub use pace::Timing;
pub use peer::{Peers, follow as follow_peers};
pub(crate) use request::Requests;

use self::follow::{Follower, Shared};
use super::{Events, Kinds, Reach};
use crate::observe::metrics::Metrics;

/// Why the API cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The field and the reason.
        source: kubeconfig::Wrong,
    },
    /// Not running in a pod with a service account.
    #[error("not in a cluster: {0}. Give --kubeconfig FILE, or --manifests DIR to run without a cluster")]
    InCluster(String),
    /// The URL of --master is wrong.
    #[error("--master {url:?} {reason}")]
    Master {
        /// The value.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// No client can be made of what was said.
    #[error("{origin}: cannot create an API client: {reason}")]
    Client {
        /// Who said it.
        origin: String,
        /// What is wrong.
        reason: String,
    },
}

/// What is watched.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The own Node.
    pub node_name: String,
    /// What is read by anybody here.
    pub kinds: Kinds,
}

/// Services of this proxy, with ClusterIPs.
const SERVICES: &str =
    "&labelSelector=%21service.kubernetes.io%2Fservice-proxy-name&fieldSelector=spec.clusterIP%21%3DNone";
/// Slices of Services with ClusterIPs.
const SLICES: &str = "&labelSelector=%21service.kubernetes.io%2Fheadless";
/// Beside a field selector: pods that run or will run.
const NOT_ENDED: &str = "%2Cstatus.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed";

/// Watches everything until nobody listens any more.
pub async fn run(access: Access, scope: Scope, events: Events, metrics: Metrics, timing: Timing) {
    let Scope { node_name, kinds } = scope;
    let requests = Requests::new(access, metrics.clone(), timing.answer);
    let shared = Shared { requests, events, metrics, timing: Arc::new(timing) };
    // Node names are host names: nothing in them needs escaping.
    let of_node = |field: &str| format!("&fieldSelector={field}%3D{node_name}");
    let selectors = |kind, reach| match (kind, reach) {
        (Kind::Service, _) => SERVICES.to_owned(),
        (Kind::Slice, _) => SLICES.to_owned(),
        (Kind::Node, Reach::ThisNode) => of_node("metadata.name"),
        (Kind::Pod, Reach::ThisNode) => of_node("spec.nodeName") + NOT_ENDED,
        _ => String::new(),
    };
    let follow = |(kind, reach)| Follower::new(kind, selectors(kind, reach), shared.clone()).run();
    let mut tasks: JoinSet<()> = kinds.iter().map(follow).collect();
    // Each ends only when nobody listens any more, or by a panic: the others alone would follow
    // half of the cluster.
    tasks.join_next().await;
}
