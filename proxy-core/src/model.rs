//! The domain model: what the proxy needs of each Kubernetes object, already validated and compact.
//!
//! Whoever reads objects (Kubernetes API, manifests) converts them into these types and reports
//! what it had to leave out; nothing here can hold an address that does not parse or a protocol
//! that does not exist.

mod endpoint_slice;
mod node;
mod pod;
mod service;

pub use endpoint_slice::{Conditions, EndpointSlice, Hints, SliceEndpoint, SlicePort};
pub use node::{Node, ServiceCidr};
pub use pod::{Namespace, Pod};
pub use service::{Service, ServicePort, ServiceType, TrafficPolicy};

use std::fmt;
use std::sync::Arc;

use crate::net::{Family, Protocol};

/// Namespace and name of an object, as `namespace/name` (only `name` for cluster-scoped objects).
///
/// One shared string: names are keys in several maps and clones must be cheap.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName(Arc<str>);

impl ObjectName {
    /// A namespaced name.
    pub fn new(namespace: &str, name: &str) -> Self {
        ObjectName(format!("{namespace}/{name}").into())
    }

    /// The name of a cluster-scoped object.
    pub fn cluster_scoped(name: &str) -> Self {
        ObjectName(name.into())
    }

    /// `namespace/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The namespace, empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The name without the namespace.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(_, name)| name)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An object with a name.
pub trait Named {
    /// Its name.
    fn object_name(&self) -> &ObjectName;
}

impl<T: Named> Named for Arc<T> {
    fn object_name(&self) -> &ObjectName {
        (**self).object_name()
    }
}

/// Identity of a service port for one family: what groups, affinity and metrics hang on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePortName {
    /// The Service.
    pub service: ObjectName,
    /// `spec.ports[].name`, possibly empty.
    pub port: Arc<str>,
    /// The protocol is part of the identity: one name may serve TCP and UDP.
    pub protocol: Protocol,
    /// The IP family that this half of the service port serves.
    pub family: Family,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{} {}", self.service, self.port, self.protocol, self.family)
    }
}
