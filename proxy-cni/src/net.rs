//! Effects on the network: links, addresses, routes and neighbours, by netlink; no process is
//! started.

mod error;
mod pod;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use nix::net::if_::if_indextoname;
use sluice_link::request::{self, add_address, add_neighbour, delete_address, new_link, up};
use sluice_link::{Change, Mac, Netlink, NetlinkError, netns, read, sysctl};

use crate::spec::{Mode, Route};
use crate::wiring::{Wiring, bridge_mac, network_of};
pub use error::NetError;
pub use pod::{Loopback, PodState, in_namespace};

/// A network namespace that is open.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    path: PathBuf,
}

impl Namespace {
    /// Opens it by the runtime's path.
    pub fn open(path: &Path) -> Result<Self, NetError> {
        let failed = |source| NetError::Namespace { path: path.to_owned(), source };
        let file = netns::open(path).map_err(failed)?;
        if netns::is_own(&file).map_err(failed)? {
            return Err(NetError::OwnNamespace(path.to_owned()));
        }
        Ok(Namespace { file, path: path.to_owned() })
    }
}

/// Wires a pod: makes both ends, and the bridge if there is none. What an earlier try has left is
/// replaced.
pub fn connect(
    wiring: &mut Wiring,
    namespace: &Namespace,
    sysctls: &[(String, String)],
) -> Result<(), NetError> {
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
        other => Ok(other?),
    }
}

/// Names of the host's ends of a network that are there.
pub fn host_links(network: &str) -> Result<Vec<String>, NetError> {
    let mut netlink = Netlink::open()?;
    let links = names(&mut netlink)?.into_iter();
    let own = links.filter(|(name, alias)| is_host_name(name) && network_of(alias) == network);
    Ok(own.map(|(name, _)| name).collect())
}

/// What is wrong with the host's end of a pod, and with the ways to the pod's addresses that go by
/// it.
pub fn host_differences(host: &str, routed: &[IpNet]) -> Result<Vec<String>, NetError> {
    let mut netlink = Netlink::open()?;
    let Some(link) = netlink.link(host)? else {
        return Ok(vec![format!("host interface {host} does not exist")]);
    };
    let mut wrong = Vec::new();
    if !link.header.flags.contains(LinkFlags::Up) {
        wrong.push(format!("host interface {host} is down"));
    }
    let routes = netlink.routes(Some(link.header.index))?;
    let missing = routed.iter().filter(|address| !routes.contains(address));
    wrong.extend(missing.map(|address| format!("there is no route to {address} via {host}")));
    Ok(wrong)
}

/// By which interface packets leave to the pods of these host's ends: the bridge that it is a port
/// of, or the end itself. Ends that are not there are left out.
pub fn ways_out(hosts: &BTreeSet<String>) -> Result<BTreeMap<String, String>, NetError> {
    let mut netlink = Netlink::open()?;
    let mut ways = BTreeMap::new();
    for host in hosts {
        let Some(link) = netlink.link(host)? else { continue };
        let bridge = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Controller(index) => if_indextoname(*index).ok()?.into_string().ok(),
            _ => None,
        });
        ways.insert(host.clone(), bridge.unwrap_or_else(|| host.clone()));
    }
    Ok(ways)
}

/// Names of all links.
pub fn link_names() -> Result<BTreeSet<String>, NetError> {
    Ok(names(&mut Netlink::open()?)?.into_iter().map(|(name, _)| name).collect())
}

/// The names of all links, with their aliases.
fn names(netlink: &mut Netlink) -> Result<Vec<(String, String)>, NetlinkError> {
    let text = |found: Option<&str>| found.unwrap_or_default().to_owned();
    let links = netlink.links()?.into_iter();
    Ok(links.map(|link| (text(read::name(&link)), text(read::alias(&link)))).collect())
}

/// Whether a link is called as the host's ends are.
pub fn is_host_name(name: &str) -> bool {
    let rest = name.strip_prefix(crate::wiring::PREFIX);
    rest.is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The index of the bridge, which has the gateways' addresses. One that this plugin has made is
/// known by its hardware address; of others nothing is changed but that gateways are added.
fn bridge(netlink: &mut Netlink, wiring: &mut Wiring) -> Result<u32, NetError> {
    let mac = bridge_mac(&wiring.bridge);
    let link = match netlink.link(&wiring.bridge)? {
        Some(link) => link,
        None => make_bridge(netlink, wiring, mac)?,
    };
    if read::kind(&link) != Some(&InfoKind::Bridge) {
        return Err(NetError::NoBridge(wiring.bridge.clone()));
    }
    let index = link.header.index;
    let is_ours = read::mac(&link) == Some(&mac);
    if !is_ours {
        wiring.gateway_mac = None;
    }
    let wanted: Vec<IpNet> = wiring.leases.iter().map(|lease| lease.gateway_address()).collect();
    let had = netlink.addresses(index)?;
    let missing = wanted.iter().filter(|address| !had.contains(address));
    let mut changes: Vec<Change> = missing.map(|address| add_address(index, *address)).collect();
    let stale: Vec<IpNet> = had.into_iter().filter(|address| is_stale(address, &wanted, wiring)).collect();
    // Of pod CIDRs that the node had before. Pods of other networks may be on the bridge too.
    if is_ours && !stale.is_empty() && !serves_others(netlink, wiring)? {
        changes.extend(stale.into_iter().map(|address| delete_address(index, address)));
    }
    if !link.header.flags.contains(LinkFlags::Up) {
        if is_ours {
            close(&wiring.bridge)?;
        }
        changes.push(new_link("set the bridge up", up(index), 0));
    }
    netlink.apply(changes)?;
    Ok(index)
}

fn make_bridge(netlink: &mut Netlink, wiring: &Wiring, mac: Mac) -> Result<LinkMessage, NetError> {
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(wiring.bridge.clone()),
        LinkAttribute::Mtu(wiring.mtu),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    match netlink.apply(vec![new_link("create the bridge", link, NLM_F_CREATE | NLM_F_EXCL)]) {
        // Another plugin was faster.
        Err(error) if error.errno() == Some(libc::EEXIST) => {}
        other => other?,
    }
    netlink.link(&wiring.bridge)?.ok_or_else(|| NetError::Gone(wiring.bridge.clone()))
}

/// Whether the bridge should not have an address (any more): no pod has one near it, or can get
/// one.
fn is_stale(address: &IpNet, wanted: &[IpNet], wiring: &Wiring) -> bool {
    let is_link_local = matches!(address.addr(), IpAddr::V6(ip) if ip.is_unicast_link_local());
    let Some(in_use) = &wiring.in_use else { return false };
    !is_link_local && !wanted.contains(address) && !in_use.iter().any(|ip| address.contains(ip))
}

/// Whether there are pods of other networks.
fn serves_others(netlink: &mut Netlink, wiring: &Wiring) -> Result<bool, NetError> {
    let own = network_of(&wiring.alias);
    let is_other = |(name, alias): &(String, String)| is_host_name(name) && network_of(alias) != own;
    Ok(names(netlink)?.iter().any(is_other))
}

/// What a link to pods takes from them: no pod may tell the node where to route, neither by router
/// advertisements (CVE-2020-10749) nor by redirects, nor say in a packet which way it shall go
/// (`accept_source_route`). `send_redirects` would tell a pod that is led back to itself that there
/// is a shorter way.
const CLOSED: [&str; 7] = [
    "net/ipv6/conf/LINK/accept_ra",
    "net/ipv6/conf/LINK/accept_redirects",
    "net/ipv6/conf/LINK/accept_source_route",
    "net/ipv4/conf/LINK/accept_redirects",
    "net/ipv4/conf/LINK/secure_redirects",
    "net/ipv4/conf/LINK/send_redirects",
    "net/ipv4/conf/LINK/accept_source_route",
];

/// Before the link is up.
fn close(link: &str) -> Result<(), NetError> {
    for name in CLOSED {
        match sysctl::write(&name.replace("LINK", link), "0") {
            // No IPv6.
            Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
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
    let mut host = LinkMessage::default();
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
    match netlink.apply(vec![new_link("create the pod's link", host, NLM_F_CREATE | NLM_F_EXCL)]) {
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
    close(&wiring.host)?;
    let mut link = up(host);
    // The kernel takes no alias when it makes a link (rtnl_create_link of net/core/rtnetlink.c).
    link.attributes.push(LinkAttribute::IfAlias(wiring.alias.clone()));
    if is_port {
        // A pod may reach itself by way of a Service.
        let port = InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)]);
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(port),
        ]));
        return Ok(netlink.apply(vec![new_link("set the bridge port up", link, 0)])?);
    }
    let mut changes = vec![new_link("rename the pod's link", link, 0)];
    for lease in &wiring.leases {
        let address = IpNet::from(lease.address.addr());
        changes.push(add_neighbour(host, address.addr(), wiring.pod_mac));
        changes.push(add_route(host, &Route::to(address)));
    }
    Ok(netlink.apply(changes)?)
}

/// Adds a route through a link.
fn add_route(index: u32, route: &Route) -> Change {
    request::add_route(index, &request::Way { to: route.dst, gateway: route.gw, mtu: route.mtu })
}
