//! Services, and the booleans that kube-proxy derives from them (reference 1.3).

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::ObjectName;
use crate::net::{Family, Protocol};

/// `spec.type`, of the Services that are proxied at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceType {
    /// `ClusterIP`.
    ClusterIp,
    /// `NodePort`.
    NodePort,
    /// `LoadBalancer`.
    LoadBalancer,
}

/// `spec.internalTrafficPolicy` or `spec.externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TrafficPolicy {
    /// All endpoints of the cluster.
    #[default]
    Cluster,
    /// Only endpoints of this node.
    Local,
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The join key to the slices' port names, possibly empty.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port on ClusterIP, external IPs and load balancer IPs.
    pub port: u16,
    /// The node port, 0 when there is none. Honoured whatever the Service's type.
    pub node_port: u16,
}

/// A Service that this proxy serves: not headless, not ExternalName, not delegated to another
/// proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.creationTimestamp` in Unix seconds; the oldest Service wins a contested frontend.
    pub created: Option<i64>,
    /// `spec.type`.
    pub service_type: ServiceType,
    /// At most one ClusterIP for each family (reference 1.2).
    pub cluster_ips: Vec<IpAddr>,
    /// The service ports.
    pub ports: Vec<ServicePort>,
    /// `spec.externalIPs`, both families.
    pub external_ips: Vec<IpAddr>,
    /// Load balancer ingress addresses with ipMode VIP, both families.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`, both families, as listed; [`Family::nobody`] where
    /// what is listed for a family cannot be read.
    pub source_ranges: Vec<IpNet>,
    /// ClientIP affinity with its timeout in seconds.
    pub affinity: Option<u32>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy` as written; see [`Service::effective_external_policy`].
    pub external_policy: TrafficPolicy,
    /// `spec.healthCheckNodePort`, 0 when there is none.
    pub health_check_node_port: u16,
}

impl Service {
    /// The ClusterIP of a family; without one the Service has no service ports in that family.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|ip| Family::of(ip) == family)
    }

    /// externalTrafficPolicy, counting `Local` only where the API gives it a meaning: LoadBalancer,
    /// NodePort, or ClusterIP with external IPs.
    pub fn effective_external_policy(&self) -> TrafficPolicy {
        match self.service_type {
            ServiceType::NodePort | ServiceType::LoadBalancer => self.external_policy,
            ServiceType::ClusterIp if !self.external_ips.is_empty() => self.external_policy,
            ServiceType::ClusterIp => TrafficPolicy::Cluster,
        }
    }

    /// Whether a port can be reached other than by its ClusterIP, in a family.
    pub fn externally_accessible(&self, port: &ServicePort, family: Family) -> bool {
        port.node_port != 0
            || self.load_balancer_ips.iter().any(|ip| Family::of(ip) == family)
            || self.external_ips.iter().any(|ip| Family::of(ip) == family)
    }

    /// Whether the Cluster endpoint list is needed. Also for eTP=Local, where inside clients use
    /// it.
    pub fn uses_cluster_endpoints(&self, port: &ServicePort, family: Family) -> bool {
        self.internal_policy == TrafficPolicy::Cluster || self.externally_accessible(port, family)
    }

    /// Whether the Local endpoint list is needed.
    pub fn uses_local_endpoints(&self, port: &ServicePort, family: Family) -> bool {
        self.internal_policy == TrafficPolicy::Local
            || (self.effective_external_policy() == TrafficPolicy::Local
                && self.externally_accessible(port, family))
    }

    /// The source ranges in force for a family: none when the list has no entry of that family or
    /// when one of them allows everything.
    pub fn effective_source_ranges(&self, family: Family) -> Vec<IpNet> {
        let ranges: Vec<IpNet> =
            self.source_ranges.iter().copied().filter(|net| Family::of_net(net) == family).collect();
        if ranges.iter().any(|net| net.prefix_len() == 0) {
            return Vec::new();
        }
        IpNet::aggregate(&ranges)
    }

    /// The health-check node port, only of a LoadBalancer with eTP=Local.
    pub fn health_check_port(&self) -> Option<u16> {
        (self.service_type == ServiceType::LoadBalancer
            && self.external_policy == TrafficPolicy::Local
            && self.health_check_node_port != 0)
            .then_some(self.health_check_node_port)
    }
}
