//! From the plan of one Service to its elements and to the shared objects that it needs.

use std::net::IpAddr;

use ipnet::IpNet;

use super::classes::{ClassChain, IdTable, MasqueradeRule, Pick, round_robin_chain, round_robin_name};
use super::sets::SetKind;
use super::skeleton::Refusal;
use super::timeouts::rounded;
use super::{Balancer, NftConfig};
use crate::group::{GroupId, LOCAL_BIT, Member, Parts};
use crate::ipvs::{Marks, Others};
use crate::lang::nftables::{Bytes, Chain, Element, ElementId, Key, Value, Verdict};
use crate::net::{Family, Protocol};
use crate::plan::{Action, Actions, Capture, Frontend, Group, PortPlan, Scheduler, ServicePlan, Target};

impl GroupId {
    /// As in registers: two 32-bit words in host order, the one with the Local bit first.
    pub fn bytes(self) -> [u8; 8] {
        words(self.number())
    }

    /// The same behind a word of padding; see the class chains for why it is needed.
    pub(super) fn padded_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[4..].copy_from_slice(&self.bytes());
        bytes
    }

    /// The id of two words in host order.
    pub fn from_bytes(bytes: &[u8]) -> Option<GroupId> {
        let (low, high) = bytes.split_first_chunk::<4>()?;
        let high: [u8; 4] = high.try_into().ok()?;
        let number = u64::from(u32::from_ne_bytes(high)) << 32 | u64::from(u32::from_ne_bytes(*low));
        Some(GroupId::from_number(number))
    }

    /// The mask that clears the Local bit.
    pub(super) fn without_local_bit_mask() -> [u8; 8] {
        words(!LOCAL_BIT)
    }
}

fn words(number: u64) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&(number as u32).to_ne_bytes());
    bytes[4..].copy_from_slice(&((number >> 32) as u32).to_ne_bytes());
    bytes
}

/// An object that several Services may need; it exists while anybody needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shared {
    /// A class chain.
    Chain(ClassChain),
    /// A hairpin element or a ClusterIP.
    Element(Element),
    /// A prefix length of source ranges.
    PrefixLength(Family, u8),
}

/// What one Service needs in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Lowered {
    /// Its own elements, sorted, each key once.
    pub elements: Vec<Element>,
    /// Its own chains (scheduler `rr`).
    pub chains: Vec<Chain>,
    /// Shared objects, with repetitions.
    pub shared: Vec<Shared>,
}

/// Lowers the plan of a Service. `parts` gives what is to be lowered of the endpoints of a group.
pub fn lower(
    plan: &ServicePlan,
    config: &NftConfig,
    others: &Others,
    parts: &Parts<'_>,
    marks: &Marks,
) -> Lowered {
    let mut out = Lowered::default();
    for ip in &plan.cluster_ips {
        let set = SetKind::ClusterIps.set(Family::of(ip));
        out.shared.push(Shared::Element(Element::new(set, address_key(ip), Value::None)));
    }
    if let (Some(health), Balancer::Ipvs) = (&plan.health_check, config.balancer) {
        for family in Family::BOTH {
            let key = Key::new(&protocol_bytes(Protocol::Tcp)).with(&port_bytes(health.node_port));
            let set = SetKind::HealthPorts.set(family);
            out.shared.push(Shared::Element(Element::new(set, key, Value::None)));
        }
    }
    for port in &plan.ports {
        Lowering { port, config, marks, out: &mut out }.run(parts);
        // With IPVS all these addresses are the node's own, so their other ports must be closed
        // like those of ClusterIPs; but not before it is known that they are no other node's.
        if config.balancer == Balancer::Ipvs && others.listed {
            out.shared.extend(port.frontends.iter().filter_map(closed_ports));
        }
    }
    out.elements.sort_unstable_by_key(|e| e.id);
    out.elements.dedup_by_key(|e| e.id);
    out
}

/// What closes the other ports of a frontend's address.
fn closed_ports(frontend: &Frontend) -> Option<Shared> {
    let Capture::Address(ip, ..) = &frontend.capture else { return None };
    let set = SetKind::ClusterIps.set(Family::of(ip));
    Some(Shared::Element(Element::new(set, address_key(ip), Value::None)))
}

struct Lowering<'a> {
    port: &'a PortPlan,
    config: &'a NftConfig,
    marks: &'a Marks,
    out: &'a mut Lowered,
}

impl Lowering<'_> {
    fn run(&mut self, parts: &Parts<'_>) {
        for group in [Group::Cluster, Group::Local] {
            if self.port.uses(group) {
                let part = parts(self.group_id(group), self.port.targets(group));
                self.hairpin(&part.local);
                if self.config.balancer == Balancer::Ruleset {
                    self.group(group, &part.slots);
                }
            }
        }
        let port = self.port;
        for frontend in &port.frontends {
            self.frontend(frontend);
        }
    }

    fn family(&self) -> Family {
        self.port.id.family
    }

    fn group_id(&self, group: Group) -> GroupId {
        GroupId::new(&self.port.id, self.port.affinity, group)
    }

    fn own(&mut self, kind: SetKind, key: Key, value: Value) {
        self.out.elements.push(Element::new(kind.set(self.port.id.family), key, value));
    }

    fn group(&mut self, group: Group, slots: &[(u32, Member)]) {
        let id = self.group_id(group);
        for (slot, (ip, port)) in slots {
            let key = Key::new(&id.bytes()).with(&slot.to_ne_bytes());
            self.own(SetKind::Endpoints, key, endpoint_value(ip, *port));
            if self.port.affinity.is_some() {
                let key = Key::new(&id.bytes()).with(&ip_bytes(ip)).with(&port_bytes(*port));
                let copy = Bytes::new(&[0; 4]).with(&ip_bytes(ip)).with(&port_bytes(*port));
                self.own(SetKind::Members, key, Value::Data(copy));
            }
        }
        if self.config.scheduler == Scheduler::RoundRobin {
            let (family, size) = (self.family(), self.port.targets(group).len() as u32);
            self.out.chains.push(round_robin_chain(id, family, size, self.port.affinity));
            let goto = Verdict::Goto(round_robin_name(id, family));
            self.own(SetKind::Groups, Key::new(&id.bytes()), Value::Verdict(goto));
        }
    }

    fn hairpin(&mut self, local: &[Target]) {
        let protocol = self.port.id.protocol;
        for target in local {
            let ip = ip_bytes(&target.address);
            let key = Key::new(&ip).with(&ip).with(&protocol_bytes(protocol)).with(&port_bytes(target.port));
            let set = SetKind::Hairpin.set(self.family());
            self.out.shared.push(Shared::Element(Element::new(set, key, Value::None)));
        }
    }

    fn frontend(&mut self, frontend: &Frontend) {
        let table = match frontend.capture {
            Capture::Address(..) => IdTable::Services,
            Capture::NodePort(..) => IdTable::NodePorts,
        };
        let key = capture_key(&frontend.capture);
        let loopback = self.config.loopback[self.family() as usize];
        if table == IdTable::NodePorts && loopback.refuses(frontend.capture.protocol()) {
            self.own(SetKind::LoopbackRefusals, key, Value::None);
        }
        if let Some(ranges) = &frontend.allowed_sources {
            self.source_ranges(key, ranges);
        }
        let Actions { pod, host, other } = frontend.actions;
        if let Some(refusal) = refusal(other) {
            let value = Bytes::new(&[0; 4]).with(&refusal.bytes());
            self.own(no_endpoints_set(table), key, Value::Data(value));
        }
        match (pod, host, other) {
            (
                Action::Forward { group, masquerade: for_pod },
                Action::Forward { group: same, masquerade: for_host },
                Action::Forward { group: same_too, masquerade: for_other },
            ) if group == same && group == same_too => {
                let rule = masquerade_rule(for_pod, for_host || for_other);
                let class = self.class(SetKind::Entries, table, group, false, rule);
                self.forward(table, key, group, [class, NO_CLASS, NO_CLASS]);
            }
            (_, Action::Forward { .. }, _) => self.local_policy(table, key, frontend.actions),
            _ => {}
        }
    }

    /// eTP=Local: one entry chain for all such frontends tells pods and this node from the others,
    /// and has set the mark where it is due.
    fn local_policy(&mut self, table: IdTable, key: Key, actions: Actions) {
        if self.config.balancer == Balancer::Ipvs {
            self.forward(table, key, Group::Local, [table.local_policy_class(), NO_CLASS, NO_CLASS]);
            return;
        }
        let never = MasqueradeRule::Never;
        let inside = self.class(SetKind::Classes, table, Group::Cluster, true, never);
        let outside = match actions.other {
            Action::Forward { group, .. } => self.class(SetKind::Classes, table, group, false, never),
            Action::Reject | Action::Drop => NO_CLASS,
        };
        self.forward(table, key, Group::Local, [table.local_policy_class(), outside, inside]);
    }

    fn forward(&mut self, table: IdTable, key: Key, group: Group, classes: [[u8; 8]; 3]) {
        let mut value = match self.config.balancer {
            Balancer::Ruleset => Bytes::new(&self.group_id(group).padded_bytes()),
            Balancer::Ipvs => {
                let mark = self.marks.of(&self.group_id(Group::Cluster)).unwrap_or_default();
                Bytes::new(&[0; 4]).with(&mark.to_ne_bytes()).with(&[0; 4])
            }
        };
        for class in classes {
            value = value.with(&class);
        }
        self.out.elements.push(Element::new(table.frontends(self.port.id.family), key, Value::Data(value)));
    }

    /// Asks for a class chain and gives the number that leads to it.
    fn class(
        &mut self,
        from: SetKind,
        table: IdTable,
        group: Group,
        short: bool,
        masquerade: MasqueradeRule,
    ) -> [u8; 8] {
        let pick = match self.config.scheduler {
            _ if self.config.balancer == Balancer::Ipvs => Pick::ByServer,
            Scheduler::RoundRobin => Pick::ByGroup,
            // nf_tables has no Maglev; settings that ask for it are refused long before.
            Scheduler::Random | Scheduler::Maglev => {
                let affinity = self.port.affinity.map(rounded);
                Pick::Random { size: self.port.targets(group).len() as u32, affinity }
            }
        };
        let class = ClassChain { family: self.family(), table, short, masquerade, pick };
        let set = from.set(self.family());
        let goto = Value::Verdict(Verdict::Goto(class.name()));
        self.out.shared.push(Shared::Chain(class));
        self.out.shared.push(Shared::Element(Element::new(set, Key::new(&class.bytes()), goto)));
        class.bytes()
    }

    fn source_ranges(&mut self, key: Key, ranges: &[IpNet]) {
        self.own(SetKind::Filtered, key, Value::None);
        for net in ranges {
            let length = net.prefix_len();
            let key = key.with(&ip_bytes(&net.network())).with(&u32::from(length).to_ne_bytes());
            self.own(SetKind::AllowedSources, key, Value::None);
            self.out.shared.push(Shared::PrefixLength(self.family(), length));
        }
    }
}

/// A class that leads nowhere.
const NO_CLASS: [u8; 8] = [0; 8];

fn refusal(other: Action) -> Option<Refusal> {
    match other {
        Action::Reject => Some(Refusal::Reject),
        Action::Drop => Some(Refusal::Drop),
        Action::Forward { .. } => None,
    }
}

fn masquerade_rule(pods: bool, others: bool) -> MasqueradeRule {
    match (pods, others) {
        (true, _) => MasqueradeRule::Always,
        (false, true) => MasqueradeRule::NotPods,
        (false, false) => MasqueradeRule::Never,
    }
}

fn no_endpoints_set(table: IdTable) -> SetKind {
    match table {
        IdTable::Services => SetKind::NoEndpoints,
        IdTable::NodePorts => SetKind::NodePortNoEndpoints,
    }
}

pub(super) fn address_key(ip: &IpAddr) -> Key {
    Key::new(&ip_bytes(ip))
}

/// The element by which nobody gets to an address, with IPVS.
pub(crate) fn close_address(ip: &IpAddr) -> Element {
    Element::new(SetKind::Closed.set(Family::of(ip)), address_key(ip), Value::None)
}

/// The address, if it is such an element.
pub(crate) fn closed_address(id: &ElementId) -> Option<IpAddr> {
    match (SetKind::Closed.family_of(id.set)?, &*id.key) {
        (Family::V4, bytes) => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        (Family::V6, bytes) => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

fn capture_key(capture: &Capture) -> Key {
    let key = match capture {
        Capture::Address(ip, ..) => address_key(ip),
        Capture::NodePort(..) => Key::empty(),
    };
    key.with(&protocol_bytes(capture.protocol())).with(&port_bytes(capture.port()))
}

/// A slot's endpoint as the kernel holds it.
fn endpoint_value(ip: &IpAddr, port: u16) -> Value {
    Value::Data(Bytes::new(&ip_bytes(ip)).with(&port_bytes(port)))
}

/// Reads a slot's endpoint back.
pub(super) fn parse_endpoint(family: Family, data: &[u8]) -> Option<(IpAddr, u16)> {
    let port = |bytes: &[u8]| Some(u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]));
    match family {
        Family::V4 => {
            let (ip, rest) = data.split_first_chunk::<4>()?;
            Some((IpAddr::from(*ip), port(rest)?))
        }
        Family::V6 => {
            let (ip, rest) = data.split_first_chunk::<16>()?;
            Some((IpAddr::from(*ip), port(rest)?))
        }
    }
}

fn ip_bytes(ip: &IpAddr) -> Bytes<16> {
    match ip {
        IpAddr::V4(ip) => Bytes::new(&ip.octets()),
        IpAddr::V6(ip) => Bytes::new(&ip.octets()),
    }
}

/// One byte, padded to a register.
fn protocol_bytes(protocol: Protocol) -> [u8; 4] {
    [protocol.number(), 0, 0, 0]
}

/// Two bytes in network order, padded to a register.
fn port_bytes(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}
