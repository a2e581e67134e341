//! The planner: keeps the plan of each Service and makes anew only what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::budget::Size;
use super::claims::{Claimant, Claims};
use super::eligibility::{Class, eligible};
use super::large::Large;
use super::policy::{external_actions, internal_actions};
use super::{
    Capture, EndpointLists, Frontend, HealthCheck, Member, PlanConfig, PortPlan, Refusal, Refused, Role,
    ServicePlan,
};
use crate::index::{Endpoint, Index};
use crate::list::List;
use crate::model::{ObjectName, Service, ServicePort, ServicePortName};
use crate::net::{Family, Protocol};

/// What became of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanChange {
    /// The Service.
    pub name: ObjectName,
    /// Its plan before.
    pub old: Option<Arc<ServicePlan>>,
    /// Its plan now.
    pub new: Option<Arc<ServicePlan>>,
}

impl PlanChange {
    /// One change for each Service: from its first old plan to its last new one.
    pub fn merged(changes: &[PlanChange]) -> Vec<PlanChange> {
        let mut at: FxHashMap<&ObjectName, usize> = FxHashMap::default();
        let mut merged: Vec<PlanChange> = Vec::with_capacity(changes.len());
        for change in changes {
            match at.get(&change.name) {
                Some(earlier) => merged[*earlier].new = change.new.clone(),
                None => {
                    at.insert(&change.name, merged.len());
                    merged.push(change.clone());
                }
            }
        }
        merged
    }
}

/// Services with so many endpoints, each counted for each slice and port, are planned by the slices
/// that change. To make those of smaller ones anew costs less than it would to keep what that
/// takes.
const LARGE: usize = 1000;

/// Gives the lists of a service port that uses Cluster endpoints, and Local ones, or not; and who
/// serves.
type ListsOf<'a> = dyn FnMut(&ServicePortName, bool, bool) -> (EndpointLists, List<Member>) + 'a;

/// The plans of all Services.
pub struct Planner {
    config: PlanConfig,
    plans: FxHashMap<ObjectName, Arc<ServicePlan>>,
    claims: Claims,
    claimed: FxHashMap<ObjectName, (i64, Box<[Claimed]>)>,
    large: FxHashMap<ObjectName, Large>,
    large_from: usize,
}

/// A frontend, and whether it is claimed as something else than a ClusterIP.
type Claimed = (Capture, bool);

impl Planner {
    /// A planner without plans.
    pub fn new(config: PlanConfig) -> Self {
        Planner::with_large_from(LARGE, config)
    }

    /// The same, to which Services are large from another number of endpoints on. Plans do not
    /// depend on it.
    pub fn with_large_from(large_from: usize, config: PlanConfig) -> Self {
        Planner {
            config,
            plans: FxHashMap::default(),
            claims: Claims::default(),
            claimed: FxHashMap::default(),
            large: FxHashMap::default(),
            large_from,
        }
    }

    /// The configuration in force.
    pub fn config(&self) -> &PlanConfig {
        &self.config
    }

    /// The plan of a Service.
    pub fn plan(&self, name: &ObjectName) -> Option<&Arc<ServicePlan>> {
        self.plans.get(name)
    }

    /// All plans, in no particular order.
    pub fn plans(&self) -> impl ExactSizeIterator<Item = &Arc<ServicePlan>> {
        self.plans.values()
    }

    /// The Service that has a frontend which may be contested.
    pub fn owner(&self, capture: &Capture) -> Option<&ObjectName> {
        self.claims.owner(capture)
    }

    /// Puts a new configuration in force and plans everything anew; returns what changed by it.
    pub fn reconfigure(&mut self, config: PlanConfig, index: &Index) -> Vec<PlanChange> {
        if config == self.config {
            return Vec::new();
        }
        // What is kept of endpoints says where they are as seen from this node.
        if (&config.node_name, &config.zone) != (&self.config.node_name, &self.config.zone) {
            self.large.clear();
        }
        self.config = config;
        let all = index.services().map(|s| s.name.clone()).collect();
        self.replan(index, all)
    }

    /// Plans some Services anew, and those that win or lose a frontend by it; returns real changes
    /// only, sorted by name.
    pub fn replan(&mut self, index: &Index, services: BTreeSet<ObjectName>) -> Vec<PlanChange> {
        let mut affected = services.clone();
        let mut sizes: FxHashMap<&ObjectName, Size> = FxHashMap::default();
        for name in &services {
            let service = index.service(name);
            let size = service.map(|service| Size::of(index, service));
            sizes.extend(size.map(|size| (name, size)));
            // One that is too large keeps what it had.
            if size.is_none_or(|size| size.is_within(&self.config.budget)) {
                self.renew_claims(service, name, &mut affected);
            }
        }
        let mut changes = Vec::new();
        for name in affected {
            // Who only wins or loses a frontend is as large as before.
            let size = sizes.get(&name).copied();
            let oversize = match services.contains(&name) {
                true => size.filter(|size| !size.is_within(&self.config.budget)),
                false => self.plans.get(&name).and_then(|plan| plan.oversize),
            };
            let mut large = self.large.remove(&name);
            let new = index.service(&name).map(|service| match oversize {
                None => {
                    let endpoints = size.map(|size| size.elements - size.frontends);
                    if endpoints.is_some_and(|endpoints| endpoints < self.large_from) {
                        large = None;
                    } else if endpoints.is_some() {
                        large.get_or_insert_default();
                    }
                    self.plan_service(index, service, large.as_mut())
                }
                Some(size) => self.plan_oversize(service, size),
            });
            if let Some(large) = large.filter(|_| new.is_some()) {
                self.large.insert(name.clone(), large);
            }
            let old = self.plans.get(&name);
            if old.map(Arc::as_ref) == new.as_ref() {
                continue;
            }
            let new = new.map(Arc::new);
            let old = match &new {
                Some(plan) => self.plans.insert(name.clone(), plan.clone()),
                None => self.plans.remove(&name),
            };
            changes.push(PlanChange { name, old, new });
        }
        changes
    }

    fn renew_claims(
        &mut self,
        service: Option<&Service>,
        name: &ObjectName,
        affected: &mut BTreeSet<ObjectName>,
    ) {
        let captured = |service| {
            let wanted = captures(service, &self.config).wanted.into_iter();
            wanted.map(|(capture, claim)| (capture, claim.role != Role::ClusterIp)).collect()
        };
        let wanted: Option<(i64, Box<[Claimed]>)> =
            service.map(|s| (s.created.unwrap_or(i64::MAX), captured(s)));
        let had = self.claimed.get(name);
        if had == wanted.as_ref() {
            return;
        }
        let claimant = |created, is_other_than_cluster_ip| Claimant {
            is_other_than_cluster_ip,
            created,
            service: name.clone(),
        };
        if let Some((created, old)) = self.claimed.remove(name) {
            let kept = wanted.as_ref().filter(|(now, _)| *now == created).map(|(_, list)| list);
            for claimed in old.iter().filter(|c| kept.is_none_or(|list| list.binary_search(c).is_err())) {
                affected.extend(self.claims.remove(&claimed.0, &claimant(created, claimed.1)));
            }
        }
        if let Some((created, list)) = wanted {
            for (capture, is_other) in &list {
                affected.extend(self.claims.add(*capture, claimant(created, *is_other)));
            }
            self.claimed.insert(name.clone(), (created, list));
        }
    }

    fn plan_oversize(&self, service: &Service, size: Size) -> ServicePlan {
        let before = self.plans.get(&service.name).map(|plan| ServicePlan::clone(plan));
        let plan = before.unwrap_or_else(|| ServicePlan::nothing(service.name.clone()));
        ServicePlan { oversize: Some(size), ..plan }
    }

    /// `large`: what is kept of a large Service.
    fn plan_service(&self, index: &Index, service: &Service, mut large: Option<&mut Large>) -> ServicePlan {
        if let Some(large) = &mut large {
            large.renew(index, &port_ids(service), &self.config);
        }
        let Wanted { wanted, mut refused } = captures(service, &self.config);
        let is_mine = |capture: &Capture| self.claims.owner(capture) == Some(&service.name);
        let taken = wanted.iter().filter(|(capture, _)| !is_mine(capture));
        refused.extend(taken.map(|(capture, claim)| Refused {
            capture: *capture,
            role: claim.role,
            why: Refusal::Taken,
        }));
        let mut mine: FxHashMap<(usize, Family), Vec<(&Capture, &Claim)>> = FxHashMap::default();
        for (capture, claim) in wanted.iter().filter(|(capture, _)| is_mine(capture)) {
            mine.entry((claim.port, capture.family())).or_default().push((capture, claim));
        }
        let mut ports = Vec::new();
        let mut lists = |id: &ServicePortName, uses_cluster, uses_local| match &mut large {
            Some(large) => large.lists(id, uses_cluster, uses_local),
            None => {
                let endpoints = index.endpoints(id);
                let lists = eligible(&endpoints, uses_cluster, uses_local, &self.config);
                (lists, serving(&endpoints, id.protocol))
            }
        };
        for (at, port) in service.ports.iter().enumerate() {
            for family in Family::BOTH {
                if service.cluster_ip(family).is_some() {
                    let mine = mine.remove(&(at, family)).unwrap_or_default();
                    ports.push(self.plan_port(&mut lists, service, port, family, mine.into_iter()));
                }
            }
        }
        ServicePlan {
            name: service.name.clone(),
            ports: ports.into(),
            cluster_ips: service.cluster_ips.clone().into(),
            health_check: service.health_check_port().map(|node_port| HealthCheck {
                node_port,
                local_endpoints: self.local_endpoints(index, service, large.as_deref()),
            }),
            refused: refused.into_iter().collect(),
            oversize: None,
        }
    }

    fn plan_port<'a>(
        &self,
        lists: &mut ListsOf<'_>,
        service: &Service,
        port: &ServicePort,
        family: Family,
        mine: impl Iterator<Item = (&'a Capture, &'a Claim)>,
    ) -> PortPlan {
        let id = port_id(service, port, family);
        let uses_local = service.uses_local_endpoints(port, family);
        let uses_cluster = service.uses_cluster_endpoints(port, family);
        let (lists, serving) = lists(&id, uses_cluster, uses_local);
        let detects = self.config.detects(family);
        let external_policy = service.effective_external_policy();
        let internal = internal_actions(service.internal_policy, &lists, detects, self.config.masquerade_all);
        let external = external_actions(external_policy, &lists, detects);
        let ranges = self.allowed_sources(service, family);
        let frontends = mine
            .map(|(capture, claim)| Frontend {
                capture: *capture,
                role: claim.role,
                actions: if claim.role == Role::ClusterIp { internal } else { external },
                allowed_sources: ranges.clone().filter(|_| claim.filtered),
            })
            .collect();
        let lacks_local = lists.has_any && lists.local.is_empty();
        let is_local_policy = |policy| policy == crate::model::TrafficPolicy::Local;
        PortPlan {
            affinity: service.affinity,
            frontends,
            serving,
            lacks_local_internal: lacks_local && is_local_policy(service.internal_policy),
            lacks_local_external: lacks_local
                && is_local_policy(external_policy)
                && service.externally_accessible(port, family),
            cluster: lists.cluster,
            local: lists.local,
            id,
        }
    }

    /// The networks that may use the load balancer IPs. When they hold this node's own address, the
    /// load balancer IPs themselves are allowed as sources too: a host that owns the VIP uses it as
    /// its source.
    fn allowed_sources(&self, service: &Service, family: Family) -> Option<Arc<[IpNet]>> {
        let mut ranges = service.effective_source_ranges(family);
        if ranges.is_empty() {
            return None;
        }
        let own = self.config.node_addresses.iter().any(|ip| ranges.iter().any(|net| net.contains(ip)));
        if own {
            let vips = service.load_balancer_ips.iter().filter(|ip| Family::of(ip) == family);
            ranges.extend(vips.map(|ip| IpNet::from(*ip)));
            ranges = IpNet::aggregate(&ranges);
        }
        Some(ranges.into())
    }

    fn local_endpoints(
        &self,
        index: &Index,
        service: &Service,
        large: Option<&Large>,
    ) -> Vec<(Family, usize)> {
        let count = |family| {
            let mut ips: BTreeSet<IpAddr> = BTreeSet::new();
            for port in &service.ports {
                let endpoints = index.endpoints(&port_id(service, port, family));
                let here = endpoints.iter().filter(|e| Class::of(e, &self.config).is_ready_here());
                ips.extend(here.map(|e| e.address));
            }
            ips.len()
        };
        let count = |family| large.map_or_else(|| count(family), |large| large.ready_here(family));
        let families = Family::BOTH.into_iter().filter(|f| service.cluster_ip(*f).is_some());
        families.map(|family| (family, count(family))).collect()
    }
}

/// All service ports that have plans.
fn port_ids(service: &Service) -> FxHashSet<ServicePortName> {
    let families = || Family::BOTH.into_iter().filter(|family| service.cluster_ip(*family).is_some());
    let ids = |port| families().map(move |family| port_id(service, port, family));
    service.ports.iter().flat_map(ids).collect()
}

fn port_id(service: &Service, port: &ServicePort, family: Family) -> ServicePortName {
    ServicePortName {
        service: service.name.clone(),
        port: port.name.clone(),
        protocol: port.protocol,
        family,
    }
}

/// How a Service wants a frontend.
struct Claim {
    port: usize,
    role: Role,
    /// Load balancer source ranges apply.
    filtered: bool,
}

/// What a Service asks for.
#[derive(Default)]
struct Wanted {
    wanted: BTreeMap<Capture, Claim>,
    /// What nobody gets.
    refused: BTreeSet<Refused>,
}

impl Wanted {
    fn want(&mut self, capture: Capture, port: usize, role: Role) {
        let filtered = role == Role::LoadBalancer;
        let claim = self.wanted.entry(capture).or_insert(Claim { port, role, filtered });
        claim.filtered |= filtered;
    }
}

/// All frontends that a Service wants, each once. An address that is both an external IP and a load
/// balancer IP keeps its first role and the load balancer's source ranges.
fn captures(service: &Service, config: &PlanConfig) -> Wanted {
    let mut all = Wanted::default();
    let external_ips = service.external_ips.iter().filter(|_| !config.ignores_external_ips);
    let external_ips = external_ips.map(|ip| (*ip, Role::ExternalIp));
    let load_balancer_ips = service.load_balancer_ips.iter().map(|ip| (*ip, Role::LoadBalancer));
    let addresses: Vec<(IpAddr, Role)> = external_ips.chain(load_balancer_ips).collect();
    for (at, port) in service.ports.iter().enumerate() {
        for family in Family::BOTH {
            let Some(cluster_ip) = service.cluster_ip(family) else { continue };
            let address = |ip| Capture::Address(ip, port.protocol, port.port);
            all.want(address(cluster_ip), at, Role::ClusterIp);
            for (ip, role) in addresses.iter().copied().filter(|(ip, _)| Family::of(ip) == family) {
                match config.grants.refusal(service, ip, port.protocol, port.port) {
                    Some(why) => {
                        all.refused.insert(Refused { capture: address(ip), role, why });
                    }
                    None => all.want(address(ip), at, role),
                }
            }
            if port.node_port != 0 {
                all.want(Capture::NodePort(family, port.protocol, port.node_port), at, Role::NodePort);
            }
        }
    }
    all
}

fn serving(endpoints: &[Endpoint<'_>], protocol: Protocol) -> List<Member> {
    let udp = endpoints.iter().filter(|_| protocol == Protocol::Udp);
    udp.filter(|e| e.conditions.serving).map(|e| (e.address, e.port)).collect()
}
