//! Every decision, made once: from Services and endpoints to what each frontend does with each kind
//! of client.
//!
//! Nothing of a kernel is in a plan, and nothing of Kubernetes policy is left to decide after it.

mod budget;
mod claims;
mod eligibility;
mod grants;
mod large;
mod planner;
mod policy;
mod turns;

pub use budget::{Budget, Size};
pub use eligibility::{EndpointLists, Target, eligible};
pub use grants::{Grants, Refusal, Refused};
pub use planner::{PlanChange, Planner};
pub use policy::{Actions, external_actions, internal_actions};
pub use turns::Turns;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::list::List;
use crate::model::{ObjectName, ServicePortName};
use crate::net::{Family, Protocol};

/// Where a packet must be addressed to be captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Capture {
    /// A ClusterIP, external IP or load balancer IP with a port.
    Address(IpAddr, Protocol, u16),
    /// A port on the node's own (chosen) addresses of a family.
    NodePort(Family, Protocol, u16),
}

impl Capture {
    /// The family of the packets captured.
    pub fn family(&self) -> Family {
        match self {
            Capture::Address(ip, ..) => Family::of(ip),
            Capture::NodePort(family, ..) => *family,
        }
    }

    /// The transport protocol.
    pub fn protocol(&self) -> Protocol {
        match self {
            Capture::Address(_, protocol, _) | Capture::NodePort(_, protocol, _) => *protocol,
        }
    }

    /// The destination port.
    pub fn port(&self) -> u16 {
        match self {
            Capture::Address(_, _, port) | Capture::NodePort(_, _, port) => *port,
        }
    }
}

impl fmt::Display for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Capture::Address(ip @ IpAddr::V6(_), protocol, port) => write!(f, "{protocol}://[{ip}]:{port}"),
            Capture::Address(ip, protocol, port) => write!(f, "{protocol}://{ip}:{port}"),
            Capture::NodePort(family, protocol, port) => write!(f, "{protocol}://<node {family}>:{port}"),
        }
    }
}

/// Address and port of an endpoint.
pub type Member = (IpAddr, u16);

/// Which of a service port's two endpoint lists a frontend balances over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// The Cluster list (reference: CE).
    Cluster,
    /// The Local list (reference: LE).
    Local,
}

/// What happens to a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send it to an endpoint of the group, hiding the source address or not. Hairpin connections
    /// are masqueraded in any case.
    Forward {
        /// The endpoint list.
        group: Group,
        /// Whether the endpoint sees a node address instead of the client's.
        masquerade: bool,
    },
    /// Refuse it with an ICMP port unreachable.
    Reject,
    /// Say nothing.
    Drop,
}

/// The role of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `status.loadBalancer.ingress`.
    LoadBalancer,
    /// `spec.ports[].nodePort`.
    NodePort,
}

/// An address or node port that a service port answers on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// What is captured.
    pub capture: Capture,
    /// Its role.
    pub role: Role,
    /// What happens, by the kind of client.
    pub actions: Actions,
    /// Who may connect at all; everybody else is dropped first. `None`: everybody may.
    pub allowed_sources: Option<Arc<[IpNet]>>,
}

/// One service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    /// Identity.
    pub id: ServicePortName,
    /// ClientIP affinity timeout in seconds, shared by all frontends of the service port.
    pub affinity: Option<u32>,
    /// The Cluster endpoint list, sorted; empty when no frontend uses it.
    pub cluster: List<Target>,
    /// The Local endpoint list, sorted; empty when no frontend uses it.
    pub local: List<Target>,
    /// The frontends that this service port won (reference 1.5, conflicts).
    pub frontends: Box<[Frontend]>,
    /// UDP only: all serving endpoints, whatever their readiness or place, sorted; flows to others
    /// are stale.
    pub serving: List<Member>,
    /// iTP=Local with endpoints somewhere but none here.
    pub lacks_local_internal: bool,
    /// eTP=Local with endpoints somewhere but none here.
    pub lacks_local_external: bool,
}

impl PortPlan {
    /// The targets of a group.
    pub fn targets(&self, group: Group) -> &List<Target> {
        match group {
            Group::Cluster => &self.cluster,
            Group::Local => &self.local,
        }
    }

    /// Whether some frontend leads to a group that has endpoints.
    pub fn uses(&self, group: Group) -> bool {
        !self.targets(group).is_empty()
            && self.frontends.iter().any(|frontend| frontend.actions.lead_to(group))
    }
}

/// A health-check node port (reference 5.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port to listen on.
    pub node_port: u16,
    /// For each family that the Service has: the number of distinct local ready endpoint addresses.
    pub local_endpoints: Vec<(Family, usize)>,
}

/// Everything decided about one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePlan {
    /// The Service.
    pub name: ObjectName,
    /// Its service ports, in the order of the spec, IPv4 before IPv6.
    pub ports: Box<[PortPlan]>,
    /// Its ClusterIPs, for the refusal of ports that it does not define.
    pub cluster_ips: Box<[IpAddr]>,
    /// Its health-check node port.
    pub health_check: Option<HealthCheck>,
    /// What it asks for and does not get, sorted.
    pub refused: Box<[Refused]>,
    /// Its size, where that is beyond the budget: the rest of the plan is then of before, or empty.
    pub oversize: Option<Size>,
}

impl ServicePlan {
    /// The plan of a Service of which nothing is served.
    pub fn nothing(name: ObjectName) -> Self {
        ServicePlan {
            name,
            ports: Box::default(),
            cluster_ips: Box::default(),
            health_check: None,
            refused: Box::default(),
            oversize: None,
        }
    }
}

/// How to tell that a packet comes from a pod (reference 3.4).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Detector {
    /// There is no way: no client counts as a pod.
    #[default]
    None,
    /// The source address is in this network.
    Cidr(IpNet),
    /// The packet came in by this interface.
    Interface(String),
    /// The packet came in by an interface whose name starts so.
    InterfacePrefix(String),
}

/// How an endpoint of a group is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Scheduler {
    /// Uniformly at random, as kube-proxy does.
    #[default]
    Random,
    /// In turn, by a counter for each group.
    RoundRobin,
    /// By a hash of the client that moves few clients when endpoints change (eBPF only).
    Maglev,
}

/// What decisions depend on besides the objects themselves.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PlanConfig {
    /// The own node's name.
    pub node_name: String,
    /// The own node's zone.
    pub zone: Option<Arc<str>>,
    /// The own node's primary addresses, for the source range exception of reference 2.5.
    pub node_addresses: Vec<IpAddr>,
    /// Whether IPv4 and IPv6 pods can be told from others.
    pub detects_pods: [bool; 2],
    /// Masquerade all ClusterIP traffic.
    pub masquerade_all: bool,
    /// External IPs of Services lead nowhere: the gate AllowServiceExternalIPs is closed.
    pub ignores_external_ips: bool,
    /// Which addresses Services may have.
    pub grants: Grants,
    /// How large one Service may be.
    pub budget: Budget,
}

impl PlanConfig {
    /// Whether clients of a family can be told to be pods.
    pub fn detects(&self, family: Family) -> bool {
        self.detects_pods[family as usize]
    }
}
