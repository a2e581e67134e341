//! Rules of routing that lead packets for others' addresses to this host's input hook, by protocol
//! and port.
//!
//! A rule sends what it matches to a table of our own, whose only route says that everything is
//! local. This way a virtual server takes the packets for one port of an address that the host does
//! not have, and all others go on to whoever has it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{IpProtocol, RouteNetlinkMessage};
use sluice_core::net::{Family, Protocol};
use sluice_link::{BatchError, Change, LOOPBACK, Netlink, NetlinkError, Request, request};

/// The table, whose number no other program is known to use, and whom it and the rules belong to
/// (as for other routes of ours).
const TABLE: u32 = 0x5392;
const PROTOCOL: RouteProtocol = RouteProtocol::Other(92);
/// Behind the table of local addresses (0), before all that administrators usually have.
const PRIORITY: u32 = 92;

/// What packets are led here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packets {
    /// Those to an address that another host has,
    pub address: IpAddr,
    /// of a protocol,
    pub protocol: Protocol,
    /// to a port.
    pub port: u16,
}

impl fmt::Display for Packets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, SocketAddr::new(self.address, self.port))
    }
}

/// A change of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleChange {
    /// Leads packets here.
    LeadHere(Packets),
    /// Lets them pass again.
    LetPass(Packets),
}

impl fmt::Display for RuleChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RuleChange::LeadHere(packets) => write!(f, "deliver packets for {packets} locally"),
            RuleChange::LetPass(packets) => write!(f, "stop delivering packets for {packets} locally"),
        }
    }
}

/// The rules of the current network namespace.
pub struct Steering {
    netlink: Netlink,
}

impl Steering {
    /// Opens a connection in the current network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Steering { netlink: Netlink::open()? })
    }

    /// What is led here.
    pub fn led(&mut self) -> Result<Vec<Packets>, NetlinkError> {
        let question = RouteNetlinkMessage::GetRule(RuleMessage::default());
        self.netlink.list_readable("list routing rules", &question, |answer| match answer {
            RouteNetlinkMessage::NewRule(rule) => led_by(&rule),
            _ => None,
        })
    }

    /// Makes everything local in the table. `sources` are the host's addresses, of either family,
    /// that its own processes have towards what is led here; a family without one stays out.
    pub fn deliver(&mut self, sources: [Option<IpAddr>; 2]) -> Result<(), NetlinkError> {
        for source in sources.into_iter().flatten() {
            let mut route = route(Family::of(&source));
            route.attributes.push(RouteAttribute::PrefSource(source.into()));
            let message = RouteNetlinkMessage::NewRoute(route);
            let request = Request::new(message, NLM_F_CREATE | NLM_F_REPLACE);
            self.netlink.apply(vec![request.named("deliver packets to this host")])?;
        }
        Ok(())
    }

    /// Makes the changes, in their order, each with what it is done for. A rule that is there
    /// already, or gone already, is no error. The error has all those that were refused; the others
    /// are done.
    pub fn apply<T: fmt::Display + fmt::Debug>(
        &mut self,
        changes: impl IntoIterator<Item = (T, RuleChange)>,
    ) -> Result<(), BatchError<T>> {
        self.netlink.apply_each(changes.into_iter().map(|(item, change)| (item, requested(change))))
    }

    /// Removes all rules of ours, and the table. Returns whether there were any rules.
    pub fn remove(&mut self) -> Result<bool, NetlinkError> {
        let led = self.led()?;
        let mut changes: Vec<Change> = led.iter().map(|packets| removed(*packets)).collect();
        changes.extend(Family::BOTH.map(|family| {
            let message = RouteNetlinkMessage::DelRoute(route(family));
            let request = Request::new(message, 0).is_done_by(&GONE);
            request.named("stop delivering packets to this host")
        }));
        self.netlink.apply(changes)?;
        Ok(!led.is_empty())
    }
}

/// There is no such rule or route, or no such family.
const GONE: [i32; 4] = [libc::ESRCH, libc::ENOENT, libc::EAFNOSUPPORT, libc::EOPNOTSUPP];

fn removed(packets: Packets) -> Change {
    let change = RuleChange::LetPass(packets);
    requested(change).named(change.to_string())
}

/// What the route is known by.
fn route(family: Family) -> RouteMessage {
    let everything = match family {
        Family::V4 => IpNet::from(Ipv4Net::default()),
        Family::V6 => IpNet::from(Ipv6Net::default()),
    };
    let mut route = request::route(everything, PROTOCOL, RouteType::Local);
    route.header.table = RouteHeader::RT_TABLE_UNSPEC;
    route.header.scope = RouteScope::Host;
    route.attributes = vec![RouteAttribute::Table(TABLE), RouteAttribute::Oif(LOOPBACK)];
    route
}

fn requested(change: RuleChange) -> Request {
    match change {
        RuleChange::LeadHere(packets) => {
            let message = RouteNetlinkMessage::NewRule(rule(packets));
            Request::new(message, NLM_F_CREATE | NLM_F_EXCL).is_done_by(&[libc::EEXIST])
        }
        RuleChange::LetPass(packets) => {
            Request::new(RouteNetlinkMessage::DelRule(rule(packets)), 0).is_done_by(&GONE)
        }
    }
}

fn rule(packets: Packets) -> RuleMessage {
    let Packets { address, protocol, port } = packets;
    let mut rule = RuleMessage::default();
    rule.header.family = address.into();
    rule.header.dst_len = IpNet::from(address).prefix_len();
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Destination(address),
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::Table(TABLE),
        RuleAttribute::Protocol(PROTOCOL),
        RuleAttribute::IpProtocol(IpProtocol::from(protocol.number())),
        RuleAttribute::DestinationPortRange(RulePortRange { start: port, end: port }),
    ];
    rule
}

/// What a rule of ours leads here.
fn led_by(rule: &RuleMessage) -> Option<Packets> {
    let (mut address, mut protocol, mut port) = (None, None, None);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Destination(ip) => address = Some(*ip),
            RuleAttribute::IpProtocol(number) => protocol = protocol_of(u8::from(*number)),
            RuleAttribute::DestinationPortRange(ports) => port = Some(ports.start),
            _ => {}
        }
    }
    let is_ours = rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL))
        && rule.attributes.contains(&RuleAttribute::Table(TABLE));
    is_ours.then_some(Packets { address: address?, protocol: protocol?, port: port? })
}

fn protocol_of(number: u8) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.number() == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_routing_rules_are_recognized() {
        for address in ["10.96.0.1", "fd00::1"] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let packets = Packets { address: address.parse().unwrap(), protocol, port: 53 };
                let ours = rule(packets);
                assert_eq!(led_by(&ours), Some(packets));
                for at in 0..ours.attributes.len() {
                    let mut without = ours.clone();
                    let attribute = without.attributes.remove(at);
                    let is_needed = !matches!(attribute, RuleAttribute::Priority(_));
                    assert_eq!(led_by(&without).is_none(), is_needed, "{attribute:?}");
                }
            }
        }
    }
}
