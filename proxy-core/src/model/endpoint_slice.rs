//! EndpointSlices (reference 1.4).

use std::net::IpAddr;
use std::sync::Arc;

use super::ObjectName;
use crate::net::{Family, Protocol};

/// Conditions of an endpoint, after the API's defaults for absent ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conditions {
    /// Absent means true.
    pub ready: bool,
    /// Absent means true, whatever `ready` says.
    pub serving: bool,
    /// Absent means false.
    pub terminating: bool,
}

impl Default for Conditions {
    fn default() -> Self {
        Conditions { ready: true, serving: true, terminating: false }
    }
}

/// Topology hints of an endpoint; both lists may be empty.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Hints {
    /// `hints.forZones[].name`.
    pub zones: Vec<Arc<str>>,
    /// `hints.forNodes[].name`.
    pub nodes: Vec<Arc<str>>,
}

/// One entry of `endpoints`, with the first of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// `addresses[0]`; the API gives further ones no meaning.
    pub address: IpAddr,
    /// `nodeName`; `None` counts as remote.
    pub node: Option<Arc<str>>,
    /// Conditions.
    pub conditions: Conditions,
    /// Hints; boxed, because few clusters use them and there may be 100,000 endpoints.
    pub hints: Option<Box<Hints>>,
}

/// One entry of `ports`. Entries without a name or number are left out by the reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The join key to the Service's port names, possibly empty.
    pub name: Arc<str>,
    /// The protocol, part of the join key.
    pub protocol: Protocol,
    /// The port that the endpoints listen on.
    pub port: u16,
}

/// An EndpointSlice that belongs to a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub name: ObjectName,
    /// The Service of the label `kubernetes.io/service-name`, in the slice's namespace.
    pub service: ObjectName,
    /// `addressType`.
    pub family: Family,
    /// The ports that every endpoint of this slice has.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`, in Unix nanoseconds.
    pub triggered: Option<i128>,
}
