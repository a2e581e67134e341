//! Which addresses a Service may have besides its ClusterIPs, and why it does not get others.
//! kube-proxy gives every address to who writes it down.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Capture, Role};
use crate::model::Service;
use crate::net::Protocol;

/// What nobody gets as external IP or load balancer IP.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Grants {
    /// Only addresses of these networks are given; `None`: all are.
    pub networks: Option<Vec<IpNet>>,
    /// Networks out of which ClusterIPs are allocated: an address of these is its Service's own or
    /// nobody's.
    pub service_networks: Vec<IpNet>,
    /// Where API servers listen: whoever had one of these would cut nodes off the cluster, and no
    /// change could reach them.
    pub api_servers: BTreeSet<(IpAddr, u16)>,
}

/// Why a frontend is not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// It is in none of the networks that are permitted.
    NotPermitted,
    /// It is in a network of ClusterIPs, and not the Service's own.
    ServiceNetwork,
    /// An API server listens there.
    ApiServer,
    /// Another Service has it.
    Taken,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::NotPermitted => "it is not in a network of sluice.externalAddressCIDRs",
            Refusal::ServiceNetwork => "it is in a ServiceCIDR, and is not this Service's own ClusterIP",
            Refusal::ApiServer => "an API server listens there",
            Refusal::Taken => "another Service has it, which has this ClusterIP or is older",
        })
    }
}

/// A frontend that a Service asks for and does not get.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Refused {
    /// What it would capture.
    pub capture: Capture,
    /// What it would be.
    pub role: Role,
    /// Why it is not.
    pub why: Refusal,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.role {
            Role::ClusterIp => "ClusterIP",
            Role::ExternalIp => "external IP",
            Role::LoadBalancer => "load balancer IP",
            Role::NodePort => "node port",
        };
        write!(f, "{role} {}: {}", self.capture, self.why)
    }
}

impl Grants {
    /// Why a Service does not get an external IP or load balancer IP with a port.
    pub fn refusal(&self, service: &Service, ip: IpAddr, protocol: Protocol, port: u16) -> Option<Refusal> {
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip));
        if self.networks.as_deref().is_some_and(|nets| !within(nets)) {
            Some(Refusal::NotPermitted)
        } else if within(&self.service_networks) && !service.cluster_ips.contains(&ip) {
            Some(Refusal::ServiceNetwork)
        } else if protocol == Protocol::Tcp && self.api_servers.contains(&(ip, port)) {
            Some(Refusal::ApiServer)
        } else {
            None
        }
    }
}
