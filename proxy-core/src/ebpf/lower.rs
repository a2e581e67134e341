//! From the plan of one Service to its entries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sluice_common::service::{
    Endpoint, EndpointKey, Frontend, FrontendKey, Group, MemberKey, SOURCE_PREFIX, SourceKey, action, flag,
    kind, list,
};

use super::entry::{Entry, address, sorted};
use super::maglev::table;
use crate::group::{GroupId, Member};
use crate::list::List;
use crate::net::{Family, Protocol};
use crate::plan::{self, Action, Capture, PortPlan, Scheduler, ServicePlan, Target};

/// What is to be lowered of the endpoints of Services: all of them, or what a change touches.
pub trait Endpoints {
    /// Slots of a group with their members.
    fn slots(&self, id: GroupId, targets: &List<Target>) -> Vec<(u32, Member)>;
    /// All members of a group in the order of their slots. Only a Maglev table depends on all of
    /// them.
    fn order(&self, id: GroupId, targets: &List<Target>) -> Vec<Member>;
    /// Who may keep flows of UDP, of a service port with this Cluster group.
    fn serving(&self, id: GroupId, port: &PortPlan) -> Vec<Member>;
}

/// The entries of one Service, sorted, each key once: all but the marks of its ClusterIPs, which it
/// may share with others.
pub fn lower(plan: &ServicePlan, scheduler: Scheduler, endpoints: &dyn Endpoints) -> Vec<Entry> {
    let mut entries = Vec::new();
    for port in &plan.ports {
        Lowering { port, scheduler, entries: &mut entries }.run(endpoints);
    }
    // Manifests may give two ports of a Service one name, and with it one group.
    sorted(entries)
}

/// The entry that marks an address as a ClusterIP, whose undefined ports refuse.
pub fn cluster_ip(ip: IpAddr) -> Entry {
    let key = FrontendKey { address: address(ip), port: 0, protocol: 0, kind: kind::ADDRESS };
    let refuse = action::REJECT;
    let frontend =
        Frontend { group: 0, affinity: 0, pod: refuse, host: refuse, other: refuse, flags: flag::CLUSTER_IP };
    Entry::Frontend(key, frontend)
}

/// The number of a group in the maps; one of `list::CLUSTER` and `list::LOCAL` is in it.
pub fn group_number(id: &GroupId, group: plan::Group) -> u64 {
    let list = match group {
        plan::Group::Cluster => list::CLUSTER,
        plan::Group::Local => list::LOCAL,
    };
    id.number() & !list::MASK | list
}

struct Lowering<'a> {
    port: &'a PortPlan,
    scheduler: Scheduler,
    entries: &'a mut Vec<Entry>,
}

impl Lowering<'_> {
    fn run(&mut self, endpoints: &dyn Endpoints) {
        for group in [plan::Group::Cluster, plan::Group::Local] {
            if self.port.uses(group) {
                self.group(group, endpoints);
            }
        }
        let port = self.port;
        let id = GroupId::new(&port.id, port.affinity, plan::Group::Cluster);
        let identity = group_number(&id, plan::Group::Cluster);
        if port.id.protocol == Protocol::Udp {
            let serving = endpoints.serving(id, port);
            self.entries.extend(serving.iter().map(|serving| member(identity | list::SERVING, serving)));
        }
        for frontend in &port.frontends {
            self.frontend(identity, frontend);
        }
    }

    fn group(&mut self, which: plan::Group, endpoints: &dyn Endpoints) {
        let id = GroupId::new(&self.port.id, self.port.affinity, which);
        let (group, targets) = (group_number(&id, which), self.port.targets(which));
        for (slot, member) in endpoints.slots(id, targets) {
            let key = EndpointKey { group, slot, reserved: 0 };
            self.entries.push(Entry::Endpoint(key, endpoint(&member)));
            if self.port.affinity.is_some() {
                self.entries.push(self::member(group, &member));
            }
        }
        match self.scheduler {
            Scheduler::Random => {}
            Scheduler::RoundRobin => self.entries.push(Entry::Cursor(group)),
            Scheduler::Maglev => {
                let table = table(&endpoints.order(id, targets));
                self.entries.push(Entry::Maglev(group, table));
            }
        }
        self.entries.push(Entry::Group(group, Group { count: targets.len() as u32, reserved: 0 }));
    }

    fn frontend(&mut self, group: u64, frontend: &plan::Frontend) {
        let key = capture_key(&frontend.capture);
        let flags = if let Some(networks) = &frontend.allowed_sources {
            self.entries.extend(networks.iter().map(|net| source(key, net)));
            flag::FILTERED
        } else {
            0
        };
        let value = Frontend {
            group,
            affinity: self.port.affinity.unwrap_or(0),
            pod: action_code(frontend.actions.pod),
            host: action_code(frontend.actions.host),
            other: action_code(frontend.actions.other),
            flags,
        };
        self.entries.push(Entry::Frontend(key, value));
    }
}

/// Who may keep flows of UDP: endpoints that serve, and those that get new flows now. With
/// `publishNotReadyAddresses` the latter need not serve; their flows would be stale from the first
/// packet on.
pub(super) fn serving(port: &PortPlan) -> impl Iterator<Item = Member> {
    let targets = port.cluster.iter().chain(port.local.iter());
    port.serving.iter().copied().chain(targets.map(crate::group::member))
}

/// Whether an endpoint is among those.
pub(super) fn serves(port: &PortPlan, wanted: Member) -> bool {
    let is_target = |targets: &List<Target>| targets.with(wanted, crate::group::member).next().is_some();
    port.serving.with(wanted, |member| *member).next().is_some()
        || is_target(&port.cluster)
        || is_target(&port.local)
}

fn action_code(what: Action) -> u8 {
    match what {
        Action::Reject => action::REJECT,
        Action::Drop => action::DROP,
        Action::Forward { group, masquerade } => {
            let list = match group {
                plan::Group::Cluster => action::CLUSTER,
                plan::Group::Local => action::LOCAL,
            };
            list | if masquerade { action::MASQUERADE } else { 0 }
        }
    }
}

fn capture_key(capture: &Capture) -> FrontendKey {
    let (ip, kind) = match capture {
        Capture::Address(ip, ..) => (*ip, kind::ADDRESS),
        Capture::NodePort(Family::V4, ..) => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), kind::NODE_PORT),
        Capture::NodePort(Family::V6, ..) => (IpAddr::V6(Ipv6Addr::UNSPECIFIED), kind::NODE_PORT),
    };
    let protocol = capture.protocol().number();
    FrontendKey { address: address(ip), port: capture.port().to_be(), protocol, kind }
}

fn endpoint((ip, port): &Member) -> Endpoint {
    Endpoint { address: address(*ip), port: port.to_be(), reserved: 0 }
}

fn member(group: u64, (ip, port): &Member) -> Entry {
    Entry::Member(MemberKey { group, address: address(*ip), port: port.to_be(), reserved: [0; 3] })
}

fn source(frontend: FrontendKey, net: &IpNet) -> Entry {
    let length = SOURCE_PREFIX + prefix_length(net);
    Entry::Source(length, SourceKey { frontend, source: address(net.network()) })
}

/// The prefix length of a network among all addresses.
pub(super) fn prefix_length(net: &IpNet) -> u32 {
    let family = match net {
        IpNet::V4(_) => 96,
        IpNet::V6(_) => 0,
    };
    family + u32::from(net.prefix_len())
}
