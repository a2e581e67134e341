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

use sluice_core::event::Event;
use sluice_core::model::{Namespace, Pod};
use tokio::task::JoinSet;

pub use access::{Access, Origin};
pub use pace::Timing;
pub use peer::{Peers, follow as follow_peers};
pub(crate) use request::Requests;

use self::follow::{Follower, Kind, Shared};
use super::Events;
use super::convert::{
    convert_endpoint_slice, convert_namespace, convert_node, convert_pod, convert_service,
    convert_service_cidr,
};
use super::objects::{self, AnyObject};
use crate::metrics::Metrics;

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

/// What is watched beside Services, EndpointSlices and ServiceCIDRs.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The own Node.
    pub node_name: String,
    /// Also the Pods of that Node, and Namespaces: only the eBPF backend has a socket path that
    /// they could leave, and users of the others need not permit it.
    pub pods: bool,
    /// All Nodes, not only the own one: the pod network leads to each.
    pub all_nodes: bool,
}

/// Watches everything until nobody listens any more.
pub async fn run(access: Access, scope: Scope, events: Events, metrics: Metrics, timing: Timing) {
    let Scope { node_name, pods, all_nodes } = scope;
    let requests = Requests::new(access, metrics.clone(), timing.answer);
    let shared = Shared { requests, events, metrics, timing: Arc::new(timing) };
    let services = Kind {
        name: "Service",
        path: "/api/v1/services",
        selectors: "&labelSelector=%21service.kubernetes.io%2Fservice-proxy-name\
                    &fieldSelector=spec.clusterIP%21%3DNone"
            .into(),
        namespaced: true,
        convert: convert_service,
        event: Event::Service,
    };
    let slices = Kind {
        name: "EndpointSlice",
        path: "/apis/discovery.k8s.io/v1/endpointslices",
        selectors: "&labelSelector=%21service.kubernetes.io%2Fheadless".into(),
        namespaced: true,
        convert: convert_endpoint_slice,
        event: Event::Slice,
    };
    let node = Kind {
        name: "Node",
        path: "/api/v1/nodes",
        // Node names are host names: nothing in them needs escaping.
        selectors: if all_nodes {
            String::new()
        } else {
            format!("&fieldSelector=metadata.name%3D{node_name}")
        },
        namespaced: false,
        convert: convert_node,
        event: Event::Node,
    };
    let cidrs = Kind {
        name: "ServiceCIDR",
        path: "/apis/networking.k8s.io/v1/servicecidrs",
        selectors: String::new(),
        namespaced: false,
        convert: convert_service_cidr,
        event: Event::ServiceCidr,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(Follower::new(services, shared.clone()).run());
    tasks.spawn(Follower::new(slices, shared.clone()).run());
    tasks.spawn(Follower::new(node, shared.clone()).run());
    tasks.spawn(Follower::new(cidrs, shared.clone()).run());
    if pods {
        tasks.spawn(Follower::new(namespaces(), shared.clone()).run());
        tasks.spawn(Follower::new(pods_of(&node_name), shared).run());
    }
    // Each ends only when nobody listens any more, or by a panic: the others alone would follow
    // half of the cluster.
    tasks.join_next().await;
}

fn namespaces() -> Kind<AnyObject, Namespace> {
    Kind {
        name: "Namespace",
        path: "/api/v1/namespaces",
        selectors: String::new(),
        namespaced: false,
        convert: convert_namespace,
        event: Event::Namespace,
    }
}

/// The pods of a node that have not ended.
fn pods_of(node_name: &str) -> Kind<objects::Pod, Pod> {
    Kind {
        name: "Pod",
        path: "/api/v1/pods",
        selectors: format!(
            "&fieldSelector=spec.nodeName%3D{node_name}%2Cstatus.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed"
        ),
        namespaced: true,
        convert: convert_pod,
        event: Event::Pod,
    }
}
