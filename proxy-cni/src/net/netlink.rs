//! Requests to the kernel's routing netlink, one after the other.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::wiring::Mac;

/// What the kernel may answer to one request, at most; it makes dumps of parts of 32 kB.
const BUFFER: usize = 64 << 10;

/// Why the network could not be changed, or looked at.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel refused, or the conversation failed.
    #[error("cannot {operation}: {source}")]
    Netlink {
        /// What was tried.
        operation: String,
        /// Why it failed.
        source: io::Error,
    },
    /// There is no such network namespace, or it cannot be entered.
    #[error("network namespace {}: {source}", .path.display())]
    Namespace {
        /// The runtime's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The pod has such an interface already.
    #[error("interface {interface} exists already in {}", .namespace.display())]
    Exists {
        /// Its name.
        interface: String,
        /// Where.
        namespace: PathBuf,
    },
    /// A link vanished while it was being set up.
    #[error("interface {0} was deleted while it was set up")]
    Gone(String),
    /// A sysctl could not be written.
    #[error("cannot write {}: {source}", .path.display())]
    Sysctl {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A thread in the pod's namespace failed.
    #[error("a thread in the pod's network namespace failed")]
    Thread,
}

impl NetError {
    /// The kernel's error number.
    pub fn errno(&self) -> Option<i32> {
        match self {
            NetError::Netlink { source, .. }
            | NetError::Namespace { source, .. }
            | NetError::Sysctl { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// A socket in the network namespace that it was opened in.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens one.
    pub fn open() -> Result<Self, NetError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| failed("open a netlink socket", source))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Sends a request and gives every answer to `each`, until the last one.
    fn converse(
        &mut self,
        operation: &str,
        request: RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<(), NetError> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(|source| failed(operation, source))?;
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            let size = self.socket.recv(&mut buffer, 0).map_err(|source| failed(operation, source))?;
            let mut rest = buffer.get(..size).unwrap_or_default();
            while !rest.is_empty() {
                let odd = |error: String| failed(operation, io::Error::other(error));
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| odd(error.to_string()))?;
                let length = (answer.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(failed(operation, error.to_io())),
                    NetlinkPayload::InnerMessage(inner) => each(inner),
                    _ => {}
                }
            }
        }
    }

    fn change(&mut self, operation: &str, request: RouteNetlinkMessage, flags: u16) -> Result<(), NetError> {
        self.converse(operation, request, flags | NLM_F_ACK, |_| {})
    }

    /// The index of a link, if there is one of this name.
    pub fn index(&mut self, name: &str) -> Result<Option<u32>, NetError> {
        Ok(self.link(name)?.map(|link| link.header.index))
    }

    /// A link, if there is one of this name.
    pub fn link(&mut self, name: &str) -> Result<Option<LinkMessage>, NetError> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let mut found = None;
        let asked = self.converse(
            &format!("look for interface {name}"),
            RouteNetlinkMessage::GetLink(request),
            NLM_F_ACK,
            |answer| {
                if let RouteNetlinkMessage::NewLink(link) = answer {
                    found = Some(link);
                }
            },
        );
        match asked {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            other => other.map(|()| found),
        }
    }

    /// The names of all links, with their aliases.
    pub fn links(&mut self) -> Result<Vec<(String, String)>, NetError> {
        let mut names = Vec::new();
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.converse("list interfaces", request, NLM_F_DUMP, |answer| {
            if let RouteNetlinkMessage::NewLink(link) = answer {
                let mut texts = (String::new(), String::new());
                for attribute in link.attributes {
                    match attribute {
                        LinkAttribute::IfName(name) => texts.0 = name,
                        LinkAttribute::IfAlias(alias) => texts.1 = alias,
                        _ => {}
                    }
                }
                names.push(texts);
            }
        })?;
        Ok(names)
    }

    /// Makes a link, or changes one.
    pub fn new_link(&mut self, operation: &str, link: LinkMessage, flags: u16) -> Result<(), NetError> {
        self.change(operation, RouteNetlinkMessage::NewLink(link), flags)
    }

    /// Deletes a link.
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        self.change("delete an interface", RouteNetlinkMessage::DelLink(link), 0)
    }

    /// The addresses of a link.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<IpNet>, NetError> {
        let mut found = Vec::new();
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.converse("list addresses", request, NLM_F_DUMP, |answer| {
            let RouteNetlinkMessage::NewAddress(message) = answer else { return };
            if message.header.index != index {
                return;
            }
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
            let address = address.or_else(|| {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(ip) => Some(*ip),
                    _ => None,
                })
            });
            found.extend(address.and_then(|ip| IpNet::new(ip, message.header.prefix_len).ok()));
        })?;
        Ok(found)
    }

    /// Adds an address that can be used at once: nobody else on the link can have it (IPv6: no duplicate address detection).
    pub fn add_address(&mut self, index: u32, address: IpNet) -> Result<(), NetError> {
        let message = address_message(index, address);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(&format!("add address {address}"), RouteNetlinkMessage::NewAddress(message), flags)
    }

    /// Deletes an address.
    pub fn delete_address(&mut self, index: u32, address: IpNet) -> Result<(), NetError> {
        let message = RouteNetlinkMessage::DelAddress(address_message(index, address));
        match self.change(&format!("delete address {address}"), message, 0) {
            Err(error) if error.errno() == Some(libc::EADDRNOTAVAIL) => Ok(()),
            other => other,
        }
    }

    /// Adds a route through a link.
    pub fn add_route(
        &mut self,
        index: u32,
        to: IpNet,
        gateway: Option<IpAddr>,
        flags: u16,
    ) -> Result<(), NetError> {
        let mut route = RouteMessage::default();
        route.header.address_family = family(&to.addr());
        route.header.destination_prefix_length = to.prefix_len();
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Static;
        route.header.kind = RouteType::Unicast;
        route.header.scope = if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
        route.attributes.push(RouteAttribute::Oif(index));
        if to.prefix_len() > 0 {
            route.attributes.push(RouteAttribute::Destination(route_address(to.addr())));
        }
        if let Some(gateway) = gateway {
            // It needs no network of its own on the link.
            route.header.flags = RouteFlags::Onlink;
            route.attributes.push(RouteAttribute::Gateway(route_address(gateway)));
        }
        self.change(&format!("add the route to {to}"), RouteNetlinkMessage::NewRoute(route), flags)
    }

    /// The destinations of the routes through a link.
    pub fn routes(&mut self, index: u32) -> Result<Vec<IpNet>, NetError> {
        let mut found = Vec::new();
        let request = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        self.converse("list routes", request, NLM_F_DUMP, |answer| {
            let RouteNetlinkMessage::NewRoute(route) = answer else { return };
            if !route.attributes.contains(&RouteAttribute::Oif(index)) {
                return;
            }
            let to = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
                RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
                _ => None,
            });
            let any = match route.header.address_family {
                AddressFamily::Inet => IpAddr::from([0; 4]),
                _ => IpAddr::from([0; 16]),
            };
            found.extend(IpNet::new(to.unwrap_or(any), route.header.destination_prefix_length).ok());
        })?;
        Ok(found)
    }

    /// Says for good which hardware address an address has.
    pub fn add_neighbour(&mut self, index: u32, address: IpAddr, mac: Mac) -> Result<(), NetError> {
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.family = family(&address);
        neighbour.header.ifindex = index;
        neighbour.header.state = NeighbourState::Permanent;
        let destination = match address {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        };
        neighbour.attributes = vec![
            NeighbourAttribute::Destination(destination),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        let request = RouteNetlinkMessage::NewNeighbour(neighbour);
        self.change(&format!("add neighbour {address}"), request, NLM_F_CREATE | NLM_F_REPLACE)
    }
}

fn failed(operation: &str, source: io::Error) -> NetError {
    NetError::Netlink { operation: operation.to_owned(), source }
}

fn family(address: &IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

fn address_message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(&address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes =
        vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
    match address {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
        }
        IpNet::V4(_) => {}
        IpNet::V6(_) => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    message
}
