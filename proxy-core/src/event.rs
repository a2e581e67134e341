//! What sources (Kubernetes API, manifests) tell the index.

use crate::model::{EndpointSlice, Namespace, Node, ObjectName, Pod, Service, ServiceCidr};

/// A change of one kind of object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<T> {
    /// A complete listing begins: what is not applied until [`Change::ListEnd`] is gone. Nothing is
    /// withdrawn before.
    ListBegin,
    /// The object exists and looks like this.
    Apply(T),
    /// The object is gone, or no longer ours to serve.
    Delete(ObjectName),
    /// The object exists, but its new state cannot be read: what was known stays.
    Keep(ObjectName),
    /// The listing that began is complete.
    ListEnd,
}

/// A change of the world that the proxy serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Services.
    Service(Change<Service>),
    /// EndpointSlices.
    Slice(Change<EndpointSlice>),
    /// Nodes.
    Node(Change<Node>),
    /// ServiceCIDRs.
    ServiceCidr(Change<ServiceCidr>),
    /// Pods.
    Pod(Change<Pod>),
    /// Namespaces.
    Namespace(Change<Namespace>),
}
