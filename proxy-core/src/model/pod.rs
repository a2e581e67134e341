//! Pods and Namespaces: who keeps out of the socket path.

use std::net::IpAddr;
use std::sync::Arc;

use super::ObjectName;

/// A Pod that has a network namespace of its own, and still runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The pod's name.
    pub name: ObjectName,
    /// `spec.nodeName`. A directory of manifests may hold the pods of other nodes, too.
    pub node: Option<Arc<str>>,
    /// `status.podIPs`, sorted.
    pub ips: Vec<IpAddr>,
    /// `sluice.socketLB`: whether its sockets take the socket path; not set: what its Namespace
    /// says.
    pub socket_path: Option<bool>,
}

/// A Namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// The namespace's name.
    pub name: ObjectName,
    /// `sluice.socketLB`: whether the sockets of its pods take the socket path; not set: they do.
    pub socket_path: Option<bool>,
}
