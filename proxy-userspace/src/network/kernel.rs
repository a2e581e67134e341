//! The kernel's side of the pod network, by route netlink: the VXLAN devices, routes, neighbours
//! and forwarding entries.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NetlinkPayload};
use netlink_packet_route::link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, LinkVxlan};
use sluice_core::net::Family;
use sluice_core::pod_network::{Device, Hop, KernelState, Mac, Route, Step, Tunnel};
use sluice_link::{Request, read, request};

/// The VXLAN devices, by the family of outer packets.
pub(super) const DEVICES: [(Family, &str); 2] =
    [(Family::V4, "sluice-vxlan0"), (Family::V6, "sluice-vxlan6")];
/// By which our routes are known (`ip route show proto 92`); no routing daemon of
/// /etc/iproute2/rt_protos has it.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(92);

/// Of routes to nobody: a bridge's own route to the same network counts first.
const LAST_METRIC: u32 = u32::MAX - 1;

/// The name of the VXLAN device of a family.
pub fn device_name(family: Family) -> &'static str {
    match family {
        Family::V4 => DEVICES[0].1,
        Family::V6 => DEVICES[1].1,
    }
}

/// The indices of the VXLAN devices.
pub(super) type Indices = BTreeMap<Family, u32>;

/// Why the kernel's state could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}: {source}{hint}")]
pub struct KernelError {
    /// What was tried.
    operation: String,
    /// What to do about it.
    hint: &'static str,
    /// The kernel's answer.
    source: rtnetlink::Error,
}

fn failed(operation: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> KernelError {
    let operation = operation.into();
    |source| KernelError { operation, hint: "", source }
}

/// What to do when something is there already that is not ours.
fn hint(step: &Step, error: &rtnetlink::Error) -> &'static str {
    let exists =
        matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -libc::EEXIST);
    match step {
        Step::AddDevice(_) if exists => {
            "; another VXLAN device has this VNI and port: delete it, or set sluice.podNetwork.vni or port on all nodes"
        }
        Step::AddRoute(_) if exists => {
            "; another program has a route to this network: see ip route, and remove it"
        }
        _ => "",
    }
}

/// Whether the kernel said that there is no such thing.
fn is_missing(error: &rtnetlink::Error) -> bool {
    const GONE: [i32; 4] = [libc::ENODEV, libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL];
    match error {
        rtnetlink::Error::NetlinkError(message) => GONE.iter().any(|errno| message.raw_code() == -errno),
        _ => false,
    }
}

/// What there is of ours, with the indices of the devices.
#[derive(Debug, Default)]
pub(super) struct Observed {
    /// In the words of the core.
    pub state: KernelState,
    /// The devices' indices.
    pub indices: Indices,
    /// A device's name that something else has.
    pub taken: Option<&'static str>,
}

/// Looks at the kernel.
pub(super) async fn observe(handle: &Handle) -> Result<Observed, KernelError> {
    let mut observed = Observed::default();
    for (family, name) in DEVICES {
        let Some(link) = device_link(handle, name).await? else { continue };
        let index = link.header.index;
        observed.indices.insert(family, index);
        let Some(mut device) = device(&link, family) else {
            observed.taken = Some(name);
            continue;
        };
        device.addresses = addresses(handle, index).await?;
        let up = link.header.flags.contains(LinkFlags::Up);
        let (neighbours, forwarding) = neighbours(handle, index).await?;
        if device.local.is_none()
            && let Some((_, node)) = forwarding.first()
        {
            device.underlay = Family::of(node);
        }
        observed.state.tunnels.insert(family, Tunnel { device, up, neighbours, forwarding });
    }
    observed.state.routes = routes(handle, &observed.indices).await?;
    Ok(observed)
}

/// The index of a device, if it is there.
pub(super) async fn device_index(handle: &Handle, family: Family) -> Result<Option<u32>, KernelError> {
    Ok(device_link(handle, device_name(family)).await?.map(|link| link.header.index))
}

async fn device_link(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, KernelError> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(link) => Ok(link),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(failed(format!("look for interface {name}"))(error)),
    }
}

/// A VXLAN device as its link says; `None`: it is of another kind. One without a local address does
/// not say its family: it is IPv6 if the device has settings of that, and else that of its name,
/// unless forwarding entries say another. Earlier versions had one device of one name for both.
fn device(link: &LinkMessage, family: Family) -> Option<Device> {
    let data = read::infos(link).iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    });
    let mut device = Device {
        vni: 0,
        port: 0,
        mac: read::mac(link).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default(),
        underlay: family,
        local: None,
        checksums: true,
        mtu: read::mtu(link).unwrap_or_default(),
        addresses: BTreeSet::new(),
    };
    let mut has_settings6 = false;
    for info in data? {
        match info {
            InfoVxlan::UDPZeroCsumTX(is_on) | InfoVxlan::UDPZeroCsumRX(is_on) => has_settings6 |= *is_on,
            InfoVxlan::Id(vni) => device.vni = *vni,
            InfoVxlan::Port(port) => device.port = *port,
            InfoVxlan::UDPCsum(is_on) => device.checksums = *is_on,
            InfoVxlan::Local(ip) => device.local = Some(IpAddr::V4(*ip)),
            InfoVxlan::Local6(ip) => device.local = Some(IpAddr::V6(*ip)),
            _ => {}
        }
    }
    let unsaid = if has_settings6 { Family::V6 } else { family };
    device.underlay = device.local.map_or(unsaid, |ip| Family::of(&ip));
    Some(device)
}

async fn addresses(handle: &Handle, index: u32) -> Result<BTreeSet<IpAddr>, KernelError> {
    let found = crate::node::addresses::of_link(handle, index).await;
    let found = found.map_err(failed("list addresses"))?.into_iter();
    let is_own = |ip: &IpAddr| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    Ok(found.map(|net| net.addr()).filter(is_own).collect())
}

type Neighbours = BTreeSet<(IpAddr, Mac)>;
type Forwarding = BTreeSet<(Mac, IpAddr)>;

/// What is written down for good; what the kernel has found out by itself is its own.
async fn neighbours(handle: &Handle, index: u32) -> Result<(Neighbours, Forwarding), KernelError> {
    let (mut neighbours, mut forwarding) = (Neighbours::new(), Forwarding::new());
    for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
        let mut list = handle.neighbours().get().set_address_family(family).execute();
        while let Some(message) = list.try_next().await.map_err(failed("list neighbours"))? {
            if message.header.ifindex != index || message.header.state != NeighbourState::Permanent {
                continue;
            }
            let Some((ip, mac)) = entry(&message) else { continue };
            if family == AddressFamily::Bridge {
                forwarding.insert((mac, ip));
            } else {
                neighbours.insert((ip, mac));
            }
        }
    }
    Ok((neighbours, forwarding))
}

fn entry(message: &NeighbourMessage) -> Option<(IpAddr, Mac)> {
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                ip = Some(IpAddr::V4(*address))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                ip = Some(IpAddr::V6(*address))
            }
            // Those of forwarding entries do not say their family.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => ip = address_of(bytes),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some((ip?, mac?))
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

async fn routes(handle: &Handle, devices: &Indices) -> Result<BTreeSet<Route>, KernelError> {
    let mut found = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut asked = RouteMessage::default();
        asked.header.address_family = family;
        let mut list = handle.route().get(asked).execute();
        while let Some(message) = list.try_next().await.map_err(failed("list routes"))? {
            if message.header.protocol == PROTOCOL {
                found.extend(route(&message, devices));
            }
        }
    }
    Ok(found)
}

fn route(message: &RouteMessage, devices: &Indices) -> Option<Route> {
    let (mut to, mut gateway, mut link, mut source) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = read::ip(address),
            RouteAttribute::Gateway(address) => gateway = read::ip(address),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::PrefSource(address) => source = read::ip(address),
            _ => {}
        }
    }
    let to = IpNet::new(to?, message.header.destination_prefix_length).ok()?;
    let device = devices.iter().find(|(_, index)| Some(**index) == link);
    let via = match device {
        _ if message.header.kind == RouteType::Unreachable => Hop::Nobody,
        Some((family, _)) => Hop::Vtep(*family, gateway?),
        None => Hop::Node(gateway?),
    };
    Some(Route { to, via, source })
}

/// Takes a step; `devices` are there. What should go and is gone is no error.
pub(super) async fn take(handle: &Handle, step: &Step, devices: &Indices) -> Result<(), KernelError> {
    let done = match step {
        Step::DeleteAddress(family, ip) => delete_address(handle, devices.get(family), *ip).await,
        _ => match request(step, devices) {
            Some(request) => make(handle, request).await,
            // Its device could not be made, and that is told.
            None => Ok(()),
        },
    };
    let removes = matches!(
        step,
        Step::DeleteDevice(_)
            | Step::DeleteAddress(..)
            | Step::DeleteNeighbour(..)
            | Step::DeleteForwarding(..)
            | Step::DeleteRoute(_)
    );
    match done {
        Err(error) if removes && is_missing(&error) => Ok(()),
        Err(error) => Err(KernelError { operation: describe(step), hint: hint(step, &error), source: error }),
        Ok(()) => Ok(()),
    }
}

/// For errors and the log.
pub(super) fn describe(step: &Step) -> String {
    let name = |family: &Family| device_name(*family);
    match step {
        Step::AddDevice(device) => {
            format!("create {} (VNI {}, UDP port {})", name(&device.underlay), device.vni, device.port)
        }
        Step::DeleteDevice(of) => format!("delete {}", name(of)),
        Step::SetDevice(of, mtu) => format!("set {} up with MTU {mtu}", name(of)),
        Step::AddAddress(of, ip) => format!("add address {ip} to {}", name(of)),
        Step::DeleteAddress(of, ip) => format!("delete address {ip} of {}", name(of)),
        Step::AddNeighbour(of, ip, _) => format!("add neighbour {ip} of {}", name(of)),
        Step::DeleteNeighbour(of, ip, _) => format!("delete neighbour {ip} of {}", name(of)),
        Step::AddForwarding(of, _, node) => {
            format!("add the forwarding entry of node {node} to {}", name(of))
        }
        Step::DeleteForwarding(of, _, node) => {
            format!("delete the forwarding entry of node {node} from {}", name(of))
        }
        Step::AddRoute(route) => format!("add the route to {} via {}", route.to, hop(&route.via)),
        Step::ReplaceRoute(route) => {
            format!("change the route to {} to go via {}", route.to, hop(&route.via))
        }
        Step::DeleteRoute(route) => format!("delete the route to {} via {}", route.to, hop(&route.via)),
    }
}

fn hop(via: &Hop) -> String {
    match via {
        Hop::Node(ip) => ip.to_string(),
        Hop::Nobody => "no next hop (unreachable)".into(),
        Hop::Vtep(family, ip) => format!("{ip} of {}", device_name(*family)),
    }
}

/// Sends a request, and waits for the answer.
async fn make(handle: &Handle, request: Request) -> Result<(), rtnetlink::Error> {
    let mut answers = handle.clone().request(request.acknowledged())?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(rtnetlink::Error::NetlinkError(error));
        }
    }
    Ok(())
}

async fn delete_address(handle: &Handle, device: Option<&u32>, ip: IpAddr) -> Result<(), rtnetlink::Error> {
    let Some(index) = device else { return Ok(()) };
    let mut list = handle.address().get().set_link_index_filter(*index).set_address_filter(ip).execute();
    match list.try_next().await? {
        Some(message) => handle.address().del(message).execute().await,
        None => Ok(()),
    }
}

/// What a step asks the kernel for; `None`: the device that it is about is not there.
fn request(step: &Step, devices: &Indices) -> Option<Request> {
    use RouteNetlinkMessage::{DelNeighbour, DelRoute, NewLink, NewNeighbour, NewRoute, SetLink};
    const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
    const NEW_OR_OTHER: u16 = NLM_F_CREATE | NLM_F_REPLACE;
    let index = |family| devices.get(family).copied();
    let (message, flags) = match step {
        Step::AddDevice(device) => (NewLink(new_device(device)), NEW),
        Step::SetDevice(of, mtu) => {
            let mut link = request::up(index(of)?);
            link.attributes.push(LinkAttribute::Mtu(*mtu));
            (SetLink(link), 0)
        }
        Step::DeleteDevice(of) => return Some(request::delete_link(index(of)?).request),
        Step::AddAddress(of, ip) => return Some(request::add_address(index(of)?, IpNet::from(*ip)).request),
        // It is looked up first, for its prefix.
        Step::DeleteAddress(..) => return None,
        Step::AddNeighbour(of, ip, mac) => {
            return Some(request::add_neighbour(index(of)?, *ip, *mac).request);
        }
        Step::DeleteNeighbour(of, ip, mac) => (DelNeighbour(request::neighbour(index(of)?, *ip, *mac)), 0),
        Step::AddForwarding(of, mac, node) => {
            (NewNeighbour(request::forwarding(index(of)?, *mac, *node)), NEW_OR_OTHER)
        }
        Step::DeleteForwarding(of, mac, node) => {
            (DelNeighbour(request::forwarding(index(of)?, *mac, *node)), 0)
        }
        // A route of somebody else is never replaced: it may be the node's own way to its network.
        Step::AddRoute(route) => (NewRoute(new_route(route, devices)?), NEW),
        Step::ReplaceRoute(route) => (NewRoute(new_route(route, devices)?), NEW_OR_OTHER),
        Step::DeleteRoute(route) => (DelRoute(route_message(route)), 0),
    };
    Some(Request::new(message, flags))
}

fn new_device(device: &Device) -> LinkMessage {
    let name = device_name(device.underlay);
    let builder =
        LinkVxlan::new(name, device.vni).port(device.port).learning(false).udp_csum(device.checksums);
    let zero = !device.checksums;
    let builder = match (device.local, device.underlay) {
        (Some(IpAddr::V4(ip)), _) => builder.local(ip),
        (Some(IpAddr::V6(ip)), _) => builder.local6(ip).udp_zero_csum6_tx(zero).udp_zero_csum6_rx(zero),
        (None, Family::V4) => builder,
        // It says the family, which is IPv4 otherwise.
        (None, Family::V6) => {
            builder.local6(Ipv6Addr::UNSPECIFIED).udp_zero_csum6_tx(zero).udp_zero_csum6_rx(zero)
        }
    };
    builder.address(device.mac.to_vec()).mtu(device.mtu).up().build()
}

fn route_message(route: &Route) -> RouteMessage {
    let is_to_nobody = route.via == Hop::Nobody;
    let kind = if is_to_nobody { RouteType::Unreachable } else { RouteType::Unicast };
    let mut message = request::route(route.to, PROTOCOL, kind);
    message.attributes.push(RouteAttribute::Destination(route.to.network().into()));
    message.attributes.extend(is_to_nobody.then_some(RouteAttribute::Priority(LAST_METRIC)));
    message
}

fn new_route(route: &Route, devices: &Indices) -> Option<RouteMessage> {
    let mut message = route_message(route);
    let gateway = match &route.via {
        Hop::Nobody => None,
        Hop::Node(gateway) => Some(*gateway),
        Hop::Vtep(family, gateway) => {
            // The gateway is in no network of the device.
            message.header.flags |= RouteFlags::Onlink;
            message.attributes.push(RouteAttribute::Oif(*devices.get(family)?));
            Some(*gateway)
        }
    };
    message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    message.attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    Some(message)
}

/// The largest packet on the way to an address: that of the route, if it says so, else of the
/// interface that it leaves by. `None`: there is no way.
pub(super) async fn path_mtu(
    handle: &Handle,
    to: IpAddr,
    device_mtu: impl Fn(u32) -> Option<u32>,
) -> Result<Option<u32>, KernelError> {
    let mut message = RouteMessage::default();
    message.header.address_family = to.into();
    message.header.destination_prefix_length = IpNet::from(to).prefix_len();
    message.attributes.push(RouteAttribute::Destination(to.into()));
    let mut answer = handle.route().get(message).execute();
    let route = match answer.try_next().await {
        Ok(Some(route)) => route,
        Ok(None) => return Ok(None),
        // No route, or one that says so (unreachable, prohibit).
        Err(rtnetlink::Error::NetlinkError(_)) => return Ok(None),
        Err(error) => return Err(failed(format!("look up the route to {to}"))(error)),
    };
    let (mut of_route, mut link) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Metrics(metrics) => {
                of_route = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    let of_link = link.and_then(device_mtu);
    Ok([of_route, of_link].into_iter().flatten().min())
}

/// Deletes the devices and our routes. Returns whether there was anything.
pub(super) async fn remove(handle: &Handle) -> Result<bool, KernelError> {
    let observed = observe(handle).await?;
    let steps = observed.state.steps_to(&KernelState::default());
    for step in &steps {
        take(handle, step, &observed.indices).await?;
    }
    Ok(!steps.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];

    fn wanted(underlay: Family, local: Option<&str>, node: &str) -> KernelState {
        let device = Device {
            vni: 1,
            port: 4789,
            mac: MAC,
            underlay,
            local: local.map(|ip| ip.parse().unwrap()),
            checksums: false,
            mtu: 1400,
            addresses: BTreeSet::new(),
        };
        let forwarding = BTreeSet::from([(OTHER, node.parse().unwrap())]);
        let tunnel = Tunnel { device, up: true, neighbours: BTreeSet::new(), forwarding };
        KernelState { tunnels: BTreeMap::from([(underlay, tunnel)]), routes: BTreeSet::new() }
    }

    /// A device of the first name over IPv6 that says no local address.
    async fn make_old(handle: &Handle, zero: bool, node: Option<Ipv6Addr>) {
        let old = LinkVxlan::new("sluice-vxlan0", 1).port(4789).learning(false).udp_csum(false);
        let old = old.local6(Ipv6Addr::UNSPECIFIED).udp_zero_csum6_tx(zero).udp_zero_csum6_rx(zero);
        handle.link().add(old.address(MAC.to_vec()).mtu(1400).up().build()).execute().await.unwrap();
        let index = device_index(handle, Family::V4).await.unwrap().unwrap();
        if let Some(node) = node {
            let step = Step::AddForwarding(Family::V4, OTHER, node.into());
            take(handle, &step, &Indices::from([(Family::V4, index)])).await.unwrap();
        }
    }

    #[test]
    fn a_device_of_an_earlier_version_without_a_local_address_is_replaced_at_once() {
        let node6: Ipv6Addr = "fd00::2".parse().unwrap();
        let states = [
            wanted(Family::V6, Some("fd00::1"), "fd00::2"),
            wanted(Family::V6, None, "fd00::2"),
            wanted(Family::V4, Some("192.168.77.11"), "192.168.77.12"),
            wanted(Family::V4, None, "192.168.77.12"),
        ];
        for (zero, node) in [(true, Some(node6)), (true, None), (false, Some(node6))] {
            for state in states.clone() {
                let test = move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(async {
                        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
                        tokio::spawn(connection);
                        make_old(&handle, zero, node).await;
                        let observed = observe(&handle).await.unwrap();
                        let mut indices = observed.indices;
                        for step in observed.state.steps_to(&state) {
                            let done = take(&handle, &step, &indices).await;
                            assert!(done.is_ok(), "{zero} {node:?}: {done:?}");
                            if let Step::AddDevice(device) = &step {
                                let index = device_index(&handle, device.underlay).await.unwrap().unwrap();
                                indices.insert(device.underlay, index);
                            }
                        }
                        let now = observe(&handle).await.unwrap().state;
                        assert_eq!(now.steps_to(&state), [], "{zero} {node:?} {now:?}");
                        assert_eq!(now, state);
                    });
                };
                sluice_skips::in_namespaces(nix::sched::CloneFlags::CLONE_NEWNET, test);
            }
        }
    }
}
