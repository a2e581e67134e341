//! Nodes and ServiceCIDRs.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::ObjectName;
use crate::net::Family;

/// A Node; only the own one matters to the service proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The node's name.
    pub name: ObjectName,
    /// InternalIPs, then ExternalIPs, in the order of the status (reference 7.2).
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone`; an empty label counts as none.
    pub zone: Option<Arc<str>>,
    /// Whether a load balancer may send traffic here: no deletionTimestamp and no taint
    /// `ToBeDeletedByClusterAutoscaler` (reference 5.1).
    pub eligible: bool,
}

impl Node {
    /// The node's primary address of a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|ip| Family::of(ip) == family)
    }

    /// The node's first pod CIDR of a family.
    pub fn pod_cidr(&self, family: Family) -> Option<IpNet> {
        self.pod_cidrs.iter().copied().find(|net| Family::of_net(net) == family)
    }
}

/// A ServiceCIDR: networks out of which ClusterIPs are allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// The object's name.
    pub name: ObjectName,
    /// `spec.cidrs`.
    pub cidrs: Vec<IpNet>,
}
