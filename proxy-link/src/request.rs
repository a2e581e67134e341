//! Requests, and the messages that they are made of.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::Mac;

/// Asks the kernel to change one thing.
#[derive(Clone, Debug)]
pub struct Request {
    /// What it says.
    pub message: RouteNetlinkMessage,
    /// `NLM_F_*`, but for those that each request has.
    pub flags: u16,
    /// The kernel's errors that say that there is nothing to be done.
    pub is_done_by: &'static [i32],
}

impl Request {
    /// One that may not fail.
    pub fn new(message: RouteNetlinkMessage, flags: u16) -> Self {
        Request { message, flags, is_done_by: &[] }
    }

    /// The same, with errors that are none.
    pub fn is_done_by(self, errors: &'static [i32]) -> Self {
        Request { is_done_by: errors, ..self }
    }

    /// The same, as a change that is called so in errors.
    pub fn named(self, operation: impl Into<String>) -> Change {
        Change { operation: operation.into(), request: self }
    }

    /// As a whole message that asks for an acknowledgement, without a number.
    pub fn acknowledged(self) -> NetlinkMessage<RouteNetlinkMessage> {
        message(self.message, self.flags | NLM_F_ACK, 0)
    }
}

/// A whole message.
pub(crate) fn message(
    message: RouteNetlinkMessage,
    flags: u16,
    sequence: u32,
) -> NetlinkMessage<RouteNetlinkMessage> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    message
}

/// Its bytes.
pub(crate) fn bytes(message: &NetlinkMessage<RouteNetlinkMessage>) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
    message.serialize(&mut bytes);
    bytes
}

/// A request, and what it is called in errors.
#[derive(Clone, Debug)]
pub struct Change {
    /// What is to be done: "add address 10.0.0.1/24".
    pub operation: String,
    /// How to ask for it.
    pub request: Request,
}

fn change(operation: impl Into<String>, message: RouteNetlinkMessage, flags: u16) -> Change {
    Request::new(message, flags).named(operation)
}

/// Makes a link, or changes one.
pub fn new_link(operation: &str, link: LinkMessage, flags: u16) -> Change {
    change(operation, RouteNetlinkMessage::NewLink(link), flags)
}

/// Deletes a link.
pub fn delete_link(index: u32) -> Change {
    change("delete an interface", RouteNetlinkMessage::DelLink(link(index)), 0)
}

/// A link by its index.
pub fn link(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link
}

/// A link by its name.
pub fn link_named(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link
}

/// Sets a link up.
pub fn up(index: u32) -> LinkMessage {
    let mut link = link(index);
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link
}

/// Adds an address that can be used at once: nobody else on the link can have it (IPv6: no
/// duplicate address detection).
pub fn add_address(index: u32, address: IpNet) -> Change {
    let message = RouteNetlinkMessage::NewAddress(broadcasting(index, address));
    change(format!("add address {address}"), message, NLM_F_CREATE | NLM_F_REPLACE)
}

/// Deletes an address, if it is there.
pub fn delete_address(index: u32, address: IpNet) -> Change {
    let message = RouteNetlinkMessage::DelAddress(broadcasting(index, address));
    let request = Request::new(message, 0).is_done_by(&[libc::EADDRNOTAVAIL]);
    request.named(format!("delete address {address}"))
}

/// An address of a link.
pub fn address(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = address.addr().into();
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message
}

fn broadcasting(index: u32, net: IpNet) -> AddressMessage {
    let mut message = address(index, net);
    message.attributes.push(AddressAttribute::Address(net.addr()));
    match net {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
        }
        IpNet::V4(_) => {}
        IpNet::V6(_) => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    message
}

/// A way through a link.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Where it leads to.
    pub to: IpNet,
    /// Who takes the packets; `None`: the addresses are on the link.
    pub gateway: Option<IpAddr>,
    /// The largest packet.
    pub mtu: Option<u32>,
}

/// Adds a route through a link.
pub fn add_route(index: u32, way: &Way) -> Change {
    let Way { to, gateway, mtu } = *way;
    let mut message = route(to, RouteProtocol::Static, RouteType::Unicast);
    message.header.scope = if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
    message.attributes.push(RouteAttribute::Oif(index));
    if to.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(to.addr().into()));
    }
    if let Some(gateway) = gateway {
        // It needs no network of its own on the link.
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    message.attributes.extend(mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    // Never in the place of another pod's, or another network's.
    let add = Request::new(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL);
    // The first network of a pod has the default route.
    let add = if to.prefix_len() == 0 { add.is_done_by(&[libc::EEXIST]) } else { add };
    add.named(format!("add the route to {to}"))
}

/// A route of the main table, without what it leads by.
pub fn route(to: IpNet, protocol: RouteProtocol, kind: RouteType) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = to.addr().into();
    route.header.destination_prefix_length = to.prefix_len();
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = protocol;
    route.header.kind = kind;
    route
}

/// Says for good which hardware address an address has.
pub fn add_neighbour(index: u32, address: IpAddr, mac: Mac) -> Change {
    let message = RouteNetlinkMessage::NewNeighbour(neighbour(index, address, mac));
    change(format!("add neighbour {address}"), message, NLM_F_CREATE | NLM_F_REPLACE)
}

/// Which hardware address an address has.
pub fn neighbour(index: u32, address: IpAddr, mac: Mac) -> NeighbourMessage {
    let mut neighbour = NeighbourMessage::default();
    neighbour.header.family = address.into();
    neighbour.header.ifindex = index;
    neighbour.header.state = NeighbourState::Permanent;
    neighbour.attributes = vec![
        NeighbourAttribute::Destination(address.into()),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    neighbour
}

/// Behind which node a hardware address is, for a link that carries frames in packets.
pub fn forwarding(index: u32, mac: Mac, node: IpAddr) -> NeighbourMessage {
    let mut forwarding = neighbour(index, node, mac);
    forwarding.header.family = AddressFamily::Bridge;
    forwarding.header.flags = NeighbourFlags::Own;
    forwarding
}
