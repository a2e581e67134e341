//! Requests to the kernel's routing netlink: questions one after the other, changes together.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::spec::Route;
use crate::wiring::Mac;

/// What the kernel may answer to one request, at most; it makes dumps of parts of 32 kB.
const BUFFER: usize = 64 << 10;

/// Changes in one message: all answers have to fit into the socket's buffer before the first is read.
const TOGETHER: usize = 64;

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
    /// The runtime named the node's own namespace: the node would lose its network.
    #[error("network namespace {} is that of the node itself", .0.display())]
    OwnNamespace(PathBuf),
    /// What should be the bridge is something else.
    #[error("interface {0} is no bridge: name another one as bridge")]
    NoBridge(String),
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

/// A change that is asked for.
#[derive(Debug)]
pub(super) struct Change {
    operation: String,
    request: RouteNetlinkMessage,
    flags: u16,
    /// The kernel's error that says that there is nothing to be done.
    is_done_by: Option<i32>,
}

/// Makes a link, or changes one.
pub(super) fn new_link(operation: &str, link: LinkMessage, flags: u16) -> Change {
    change(operation.to_owned(), RouteNetlinkMessage::NewLink(link), flags)
}

/// Adds an address that can be used at once: nobody else on the link can have it (IPv6: no duplicate address detection).
pub(super) fn add_address(index: u32, address: IpNet) -> Change {
    let message = RouteNetlinkMessage::NewAddress(address_message(index, address));
    change(format!("add address {address}"), message, NLM_F_CREATE | NLM_F_REPLACE)
}

/// Deletes an address, if it is there.
pub(super) fn delete_address(index: u32, address: IpNet) -> Change {
    let message = RouteNetlinkMessage::DelAddress(address_message(index, address));
    let delete = change(format!("delete address {address}"), message, 0);
    Change { is_done_by: Some(libc::EADDRNOTAVAIL), ..delete }
}

/// Adds a route through a link.
pub(super) fn add_route(index: u32, wanted: &Route) -> Change {
    let to = wanted.dst;
    let mut route = RouteMessage::default();
    route.header.address_family = to.addr().into();
    route.header.destination_prefix_length = to.prefix_len();
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.kind = RouteType::Unicast;
    route.header.scope = if wanted.gw.is_some() { RouteScope::Universe } else { RouteScope::Link };
    route.attributes.push(RouteAttribute::Oif(index));
    if to.prefix_len() > 0 {
        route.attributes.push(RouteAttribute::Destination(to.addr().into()));
    }
    if let Some(gateway) = wanted.gw {
        // It needs no network of its own on the link.
        route.header.flags = RouteFlags::Onlink;
        route.attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    route.attributes.extend(wanted.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    let message = RouteNetlinkMessage::NewRoute(route);
    // Never in the place of another pod's, or another network's.
    let add = change(format!("add the route to {to}"), message, NLM_F_CREATE | NLM_F_EXCL);
    // The first network of a pod has the default route.
    Change { is_done_by: (to.prefix_len() == 0).then_some(libc::EEXIST), ..add }
}

/// Says for good which hardware address an address has.
pub(super) fn add_neighbour(index: u32, address: IpAddr, mac: Mac) -> Change {
    let mut neighbour = NeighbourMessage::default();
    neighbour.header.family = address.into();
    neighbour.header.ifindex = index;
    neighbour.header.state = NeighbourState::Permanent;
    neighbour.attributes = vec![
        NeighbourAttribute::Destination(address.into()),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    let message = RouteNetlinkMessage::NewNeighbour(neighbour);
    change(format!("add neighbour {address}"), message, NLM_F_CREATE | NLM_F_REPLACE)
}

fn change(operation: String, request: RouteNetlinkMessage, flags: u16) -> Change {
    Change { operation, request, flags, is_done_by: None }
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
            // Kernels before 4.20 cannot filter; what they send too much is left out here.
            drop(socket.set_netlink_get_strict_chk(true));
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| failed("open a netlink socket", source))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// A request in bytes, with the next number.
    fn numbered(&mut self, request: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
        message.serialize(&mut bytes);
        bytes
    }

    /// Takes what the kernel has sent. `each` is given number and content, and returns whether that was all.
    fn receive(
        &mut self,
        operation: &str,
        mut each: impl FnMut(u32, NetlinkPayload<RouteNetlinkMessage>) -> Result<bool, NetError>,
    ) -> Result<(), NetError> {
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
                if each(answer.header.sequence_number, answer.payload)? {
                    return Ok(());
                }
            }
        }
    }

    /// Sends a question and gives every answer to `each`, until the last one.
    fn ask(
        &mut self,
        operation: &str,
        request: RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<(), NetError> {
        let bytes = self.numbered(request, flags);
        let number = self.sequence;
        self.socket.send(&bytes, 0).map_err(|source| failed(operation, source))?;
        self.receive(operation, |answered, payload| {
            if answered != number {
                return Ok(false);
            }
            match payload {
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(true),
                NetlinkPayload::Error(error) => return Err(failed(operation, error.to_io())),
                NetlinkPayload::InnerMessage(inner) => each(inner),
                _ => {}
            }
            Ok(false)
        })
    }

    /// Asks for changes, many in one message. The kernel makes each for itself, and goes on when one fails: the error is that of
    /// the first that did.
    pub(super) fn apply(&mut self, mut changes: Vec<Change>) -> Result<(), NetError> {
        while changes.len() > TOGETHER {
            let rest = changes.split_off(TOGETHER);
            self.apply_together(std::mem::replace(&mut changes, rest))?;
        }
        self.apply_together(changes)
    }

    fn apply_together(&mut self, changes: Vec<Change>) -> Result<(), NetError> {
        let first = self.sequence + 1;
        let (mut bytes, mut asked) = (Vec::new(), Vec::new());
        for Change { operation, request, flags, is_done_by } in changes {
            bytes.extend(self.numbered(request, flags | NLM_F_ACK));
            asked.push((operation, is_done_by));
        }
        let Some((operation, _)) = asked.first() else { return Ok(()) };
        self.socket.send(&bytes, 0).map_err(|source| failed(operation, source))?;
        let (mut open, mut failure) = (asked.len(), None);
        self.receive(operation, |answered, payload| {
            let place = answered.checked_sub(first).and_then(|place| asked.get(place as usize));
            let (Some((operation, is_done_by)), NetlinkPayload::Error(answer)) = (place, payload) else {
                return Ok(false);
            };
            if answer.code.is_some() {
                let source = answer.to_io();
                if source.raw_os_error() != *is_done_by {
                    failure.get_or_insert(failed(operation, source));
                }
            }
            open -= 1;
            Ok(open == 0)
        })?;
        failure.map_or(Ok(()), Err)
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
        let asked = self.ask(
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
        self.ask("list interfaces", request, NLM_F_DUMP, |answer| {
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

    /// Deletes a link.
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        self.apply(vec![change("delete an interface".to_owned(), RouteNetlinkMessage::DelLink(link), 0)])
    }

    /// The addresses of a link.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<IpNet>, NetError> {
        let mut found = Vec::new();
        let mut message = AddressMessage::default();
        message.header.index = index;
        let request = RouteNetlinkMessage::GetAddress(message);
        self.ask("list addresses", request, NLM_F_DUMP, |answer| {
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

    /// The destinations of the routes through a link, or through any.
    pub fn routes(&mut self, through: Option<u32>) -> Result<Vec<IpNet>, NetError> {
        let mut found = Vec::new();
        let request = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        self.ask("list routes", request, NLM_F_DUMP, |answer| {
            let RouteNetlinkMessage::NewRoute(route) = answer else { return };
            if through.is_some_and(|index| !route.attributes.contains(&RouteAttribute::Oif(index))) {
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
}

fn failed(operation: &str, source: io::Error) -> NetError {
    NetError::Netlink { operation: operation.to_owned(), source }
}

fn address_message(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = address.addr().into();
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
