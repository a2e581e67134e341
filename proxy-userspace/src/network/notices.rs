//! Which messages of route netlink mean that the network has to be looked at.

use std::collections::BTreeSet;

use futures::{Stream, StreamExt};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use sluice_cni::net::is_host_name;
use sluice_link::read;

use super::kernel;

/// Waits for a message that may mean that a step is missing. Returns false when there will be none
/// any more.
pub(super) async fn until_of_interest<S>(
    messages: &mut S,
    devices: &kernel::Indices,
    awaited: &BTreeSet<String>,
) -> bool
where
    S: Stream<Item = (NetlinkMessage<RouteNetlinkMessage>, rtnetlink::sys::SocketAddr)> + Unpin,
{
    loop {
        match messages.next().await {
            Some((message, _)) if is_of_interest(&message, devices, awaited) => return true,
            Some(_) => {}
            None => return false,
        }
    }
}

/// Not what pods that come and go, unless their links are waited for, and what neighbours that are
/// asked for, are told about.
fn is_of_interest(
    message: &NetlinkMessage<RouteNetlinkMessage>,
    devices: &kernel::Indices,
    awaited: &BTreeSet<String>,
) -> bool {
    let NetlinkPayload::InnerMessage(message) = &message.payload else { return true };
    match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            !read::name(link).is_some_and(|name| is_host_name(name) && !awaited.contains(name))
        }
        RouteNetlinkMessage::NewNeighbour(neighbour) | RouteNetlinkMessage::DelNeighbour(neighbour) => {
            devices.values().any(|index| *index == neighbour.header.ifindex)
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            route.header.protocol == kernel::PROTOCOL || route.header.destination_prefix_length == 0
        }
        _ => true,
    }
}
