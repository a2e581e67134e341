//! Effects on the network: links, addresses, routes and neighbours, by netlink; no process is started.

mod netlink;
mod pod;

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};

use crate::spec::Mode;
use crate::wiring::{Mac, Wiring, bridge_mac, is_of_network};
use netlink::{Change, add_address, add_neighbour, add_route, delete_address, new_link};
pub use netlink::{NetError, Netlink};
pub use pod::{PodState, in_namespace};

/// A network namespace that is open.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    path: PathBuf,
}

impl Namespace {
    /// Opens it by the runtime's path.
    pub fn open(path: &Path) -> Result<Self, NetError> {
        let file =
            File::open(path).map_err(|source| NetError::Namespace { path: path.to_owned(), source })?;
        Ok(Namespace { file, path: path.to_owned() })
    }
}

/// Wires a pod: makes both ends, and the bridge if there is none. What an earlier try has left is replaced.
pub fn connect(wiring: &Wiring, namespace: &Namespace, sysctls: &[(String, String)]) -> Result<(), NetError> {
    let mut netlink = Netlink::open()?;
    let bridge = match wiring.mode {
        Mode::Bridge => Some(bridge(&mut netlink, wiring)?),
        Mode::Routed => None,
    };
    disconnect_with(&mut netlink, &wiring.host)?;
    let host = veth(&mut netlink, wiring, namespace, bridge)?;
    let done = settle(&mut netlink, wiring, host, bridge.is_some())
        .and_then(|()| pod::settle(wiring, namespace, sysctls));
    if done.is_err() {
        // Never half a network. What was wrong before counts more than what is wrong with this.
        drop(disconnect_with(&mut netlink, &wiring.host));
    }
    done
}

/// Removes the host's end, and with it the pod's. It is no error if there is none.
pub fn disconnect(host: &str) -> Result<(), NetError> {
    disconnect_with(&mut Netlink::open()?, host)
}

fn disconnect_with(netlink: &mut Netlink, host: &str) -> Result<(), NetError> {
    let Some(index) = netlink.index(host)? else { return Ok(()) };
    match netlink.delete_link(index) {
        // With its other end, or by somebody else.
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// Names of the host's ends of a network that are there.
pub fn host_links(network: &str) -> Result<Vec<String>, NetError> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?.into_iter();
    let own = links.filter(|(name, alias)| is_host_name(name) && is_of_network(alias, network));
    Ok(own.map(|(name, _)| name).collect())
}

/// Whether a link is called as the host's ends are.
pub fn is_host_name(name: &str) -> bool {
    let rest = name.strip_prefix(crate::wiring::PREFIX);
    rest.is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The index of the bridge, which has the gateways' addresses, and no others.
fn bridge(netlink: &mut Netlink, wiring: &Wiring) -> Result<u32, NetError> {
    let gateway = wiring.bridge_gateway().unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let mac = bridge_mac(&wiring.bridge, gateway);
    let link = match netlink.link(&wiring.bridge)? {
        Some(link) => link,
        None => make_bridge(netlink, wiring, mac)?,
    };
    let index = link.header.index;
    let wanted: Vec<IpNet> = wiring.leases.iter().map(|lease| lease.gateway_address()).collect();
    let had = netlink.addresses(index)?;
    let missing = wanted.iter().filter(|address| !had.contains(address));
    let mut changes: Vec<Change> = missing.map(|address| add_address(index, *address)).collect();
    // Of pod CIDRs that the node had before.
    let stale = had.iter().filter(|address| is_stale(address, &wanted));
    changes.extend(stale.map(|address| delete_address(index, *address)));
    if !link.header.flags.contains(LinkFlags::Up)
        || !link.attributes.contains(&LinkAttribute::Address(mac.to_vec()))
    {
        let mut link = up();
        link.header.index = index;
        link.attributes = vec![LinkAttribute::Address(mac.to_vec())];
        changes.push(new_link("set the bridge up", link, 0));
    }
    netlink.apply(changes)?;
    Ok(index)
}

fn make_bridge(netlink: &mut Netlink, wiring: &Wiring, mac: Mac) -> Result<LinkMessage, NetError> {
    let mut link = up();
    link.attributes = vec![
        LinkAttribute::IfName(wiring.bridge.clone()),
        LinkAttribute::Mtu(wiring.mtu),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    match netlink.apply(vec![new_link("make the bridge", link, NLM_F_CREATE | NLM_F_EXCL)]) {
        // Another plugin was faster.
        Err(error) if error.errno() == Some(libc::EEXIST) => {}
        other => other?,
    }
    netlink.link(&wiring.bridge)?.ok_or_else(|| NetError::Gone(wiring.bridge.clone()))
}

/// Whether the bridge should not have an address (any more). One of a family that this pod has none of may be another pod's
/// gateway.
fn is_stale(address: &IpNet, wanted: &[IpNet]) -> bool {
    let is_link_local = matches!(address.addr(), IpAddr::V6(ip) if ip.is_unicast_link_local());
    let is_of_family = wanted.iter().any(|other| other.addr().is_ipv4() == address.addr().is_ipv4());
    !is_link_local && is_of_family && !wanted.contains(address)
}

fn up() -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link
}

/// Makes both ends at once, the pod's in its namespace. Returns the index of the host's.
fn veth(
    netlink: &mut Netlink,
    wiring: &Wiring,
    namespace: &Namespace,
    bridge: Option<u32>,
) -> Result<u32, NetError> {
    let mut pod = LinkMessage::default();
    pod.attributes = vec![
        LinkAttribute::IfName(wiring.pod.clone()),
        LinkAttribute::Mtu(wiring.mtu),
        LinkAttribute::Address(wiring.pod_mac.to_vec()),
        LinkAttribute::NetNsFd(namespace.file.as_raw_fd()),
    ];
    let mut host = up();
    host.attributes = vec![
        LinkAttribute::IfName(wiring.host.clone()),
        LinkAttribute::Mtu(wiring.mtu),
        LinkAttribute::Address(wiring.host_mac.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(pod))),
        ]),
    ];
    host.attributes.extend(bridge.map(LinkAttribute::Controller));
    match netlink.apply(vec![new_link("make the pod's link", host, NLM_F_CREATE | NLM_F_EXCL)]) {
        Err(error) if error.errno() == Some(libc::EEXIST) => {
            return Err(NetError::Exists {
                interface: wiring.pod.clone(),
                namespace: namespace.path.clone(),
            });
        }
        other => other?,
    }
    netlink.index(&wiring.host)?.ok_or_else(|| NetError::Gone(wiring.host.clone()))
}

/// The host's side: the port of the bridge, or the way to the pod.
fn settle(netlink: &mut Netlink, wiring: &Wiring, host: u32, is_port: bool) -> Result<(), NetError> {
    let mut link = LinkMessage::default();
    link.header.index = host;
    // The kernel takes no alias when it makes a link (rtnl_create_link of net/core/rtnetlink.c).
    link.attributes.push(LinkAttribute::IfAlias(wiring.alias.clone()));
    if is_port {
        // A pod may reach itself by way of a Service.
        let port = InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)]);
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(port),
        ]));
        return netlink.apply(vec![new_link("set the bridge's port up", link, 0)]);
    }
    let mut changes = vec![new_link("name the pod's link", link, 0)];
    for lease in &wiring.leases {
        let address = IpNet::from(lease.address.addr());
        changes.push(add_neighbour(host, address.addr(), wiring.pod_mac));
        changes.push(add_route(host, address, None));
    }
    netlink.apply(changes)
}

/// Writes a file below `/proc/sys`, of the network namespace that this thread is in.
fn write_sysctl(name: &str, value: &str) -> Result<(), NetError> {
    let path = PathBuf::from("/proc/sys").join(name.replace('.', "/"));
    std::fs::write(&path, value).map_err(|source: io::Error| NetError::Sysctl { path, source })
}
