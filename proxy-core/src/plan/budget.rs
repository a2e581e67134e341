//! How large one Service may be. Ports times addresses and ports times endpoints are products that
//! a small object can make enormous, and all Services of a node share its one proxy and its
//! kernel's memory.

use std::fmt;

use rustc_hash::FxHashSet;

use crate::index::Index;
use crate::model::Service;
use crate::net::{Family, Protocol};

/// What one Service may have at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Frontends: ports times addresses.
    pub frontends: usize,
    /// Frontends and, for each port, endpoints.
    pub elements: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { frontends: 10_000, elements: 250_000 }
    }
}

/// What one Service asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Frontends.
    pub frontends: usize,
    /// Frontends and endpoints.
    pub elements: usize,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} frontends (ports x addresses) and {} elements with endpoints",
            self.frontends, self.elements
        )
    }
}

impl Size {
    /// Counts without planning: what is counted may be too large to plan. Endpoints that two slices
    /// have count twice.
    pub(super) fn of(index: &Index, service: &Service) -> Size {
        let of_family = |family: Family| {
            let external = service.external_ips.iter().chain(&service.load_balancer_ips);
            usize::from(service.cluster_ip(family).is_some())
                * (1 + external.filter(|ip| Family::of(ip) == family).count())
        };
        let addresses: usize = Family::BOTH.map(of_family).iter().sum();
        let node_ports = service.ports.iter().filter(|port| port.node_port != 0).count();
        let frontends = service.ports.len() * addresses + node_ports * service.cluster_ips.len();
        let known: FxHashSet<(&str, Protocol)> =
            service.ports.iter().map(|port| (&*port.name, port.protocol)).collect();
        let endpoints: usize = index
            .slices(&service.name)
            .map(|slice| {
                let ports = slice.ports.iter().filter(|port| known.contains(&(&*port.name, port.protocol)));
                ports.count() * slice.endpoints.len()
            })
            .sum();
        Size { frontends, elements: frontends + endpoints }
    }

    /// Whether a Service of this size is served.
    pub(super) fn is_within(&self, budget: &Budget) -> bool {
        self.frontends <= budget.frontends && self.elements <= budget.elements
    }
}
