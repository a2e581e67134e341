//! From the plan of one Service to its entries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sluice_common::service::{
    Endpoint, EndpointKey, Frontend, FrontendKey, Group, MemberKey, SOURCE_PREFIX, SourceKey, action, flag,
    kind, list,
};

use super::entry::{Entry, address, sorted};
use super::maglev::table;
use crate::group::{GroupId, Member, SlotOrder};
use crate::net::{Family, Protocol};
use crate::plan::{self, Action, Capture, PortPlan, Scheduler, ServicePlan};

/// The entries of one Service, sorted, each key once: all but the marks of its ClusterIPs, which it may share with
/// others. `slots` gives the members of a group in the order of their slots.
pub fn lower(plan: &ServicePlan, scheduler: Scheduler, slots: &SlotOrder<'_>) -> Vec<Entry> {
    let mut entries = Vec::new();
    for port in &plan.ports {
        Lowering { port, scheduler, entries: &mut entries }.run(slots);
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
    fn run(&mut self, slots: &SlotOrder<'_>) {
        for group in [plan::Group::Cluster, plan::Group::Local] {
            if self.port.uses(group) {
                let id = GroupId::new(&self.port.id, self.port.affinity, group);
                let targets = self.port.targets(group);
                self.group(group_number(&id, group), &slots(id, targets));
            }
        }
        let id = GroupId::new(&self.port.id, self.port.affinity, plan::Group::Cluster);
        let identity = group_number(&id, plan::Group::Cluster);
        self.serving(identity | list::SERVING);
        let port = self.port;
        for frontend in &port.frontends {
            self.frontend(identity, frontend);
        }
    }

    fn group(&mut self, group: u64, members: &[Member]) {
        for (slot, member) in (0..).zip(members) {
            let key = EndpointKey { group, slot, reserved: 0 };
            self.entries.push(Entry::Endpoint(key, endpoint(member)));
            if self.port.affinity.is_some() {
                self.entries.push(self::member(group, member));
            }
        }
        match self.scheduler {
            Scheduler::Random => {}
            Scheduler::RoundRobin => self.entries.push(Entry::Cursor(group)),
            Scheduler::Maglev => self.entries.push(Entry::Maglev(group, table(members))),
        }
        self.entries.push(Entry::Group(group, Group { count: members.len() as u32, reserved: 0 }));
    }

    /// Who may keep flows of UDP: endpoints that serve, and those that get new flows now. With
    /// `publishNotReadyAddresses` the latter need not serve; their flows would be stale from the first packet on.
    fn serving(&mut self, group: u64) {
        if self.port.id.protocol != Protocol::Udp {
            return;
        }
        let port = self.port;
        self.entries.extend(port.serving.iter().map(|serving| member(group, serving)));
        let targets = port.cluster.iter().chain(&port.local);
        self.entries.extend(targets.map(|target| member(group, &(target.address, target.port))));
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
