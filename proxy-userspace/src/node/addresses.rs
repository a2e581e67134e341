//! The node's interfaces and their addresses, followed through rtnetlink.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecUnspec, InetDevConf, InfoKind, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use rtnetlink::MulticastGroup;
use sluice_link::read;
use sluice_link::sysctl::read_number;
use sluice_sys::bpf::Layer;
use tokio::sync::watch;
use tracing::warn;

use crate::node::{Device, ReversePath};

/// What interfaces and addresses there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Addresses of all interfaces.
    pub addresses: Vec<IpAddr>,
    /// The same with the lengths of their networks' prefixes.
    pub networks: Vec<IpNet>,
    /// All interfaces but the loopback, by index.
    pub devices: Vec<Device>,
    /// There is a link that holds addresses of Services, which are left out: they are local, and
    /// not the node's own.
    pub holds_services: bool,
}

/// How often settings of interfaces are looked at, of which the kernel sends no notices here.
const SETTINGS: Duration = Duration::from_secs(5);

/// Follows all interfaces until nobody listens any more; with `settings` also what is set of them.
pub async fn follow(network: watch::Sender<Option<Network>>, settings: bool) {
    loop {
        if let Err(error) = follow_once(&network, settings).await {
            warn!(%error, "cannot watch interfaces and addresses; trying again");
        }
        tokio::select! {
            () = network.closed() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// Why interfaces cannot be followed.
#[derive(Debug, thiserror::Error)]
enum NetworkError {
    #[error("open a route netlink socket: {0}")]
    Open(#[source] std::io::Error),
    #[error("list interfaces and addresses: {0}")]
    List(#[from] rtnetlink::Error),
}

async fn follow_once(network: &watch::Sender<Option<Network>>, settings: bool) -> Result<(), NetworkError> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut messages) =
        rtnetlink::new_multicast_connection(&groups).map_err(NetworkError::Open)?;
    tokio::spawn(connection);
    loop {
        let (now, hidden) = list(&handle).await?;
        let now = Some(now);
        network.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    None => return Ok(()),
                    Some((message, _)) if is_of(&message, &hidden) => {}
                    Some(_) => break,
                },
                () = tokio::time::sleep(SETTINGS), if settings => break,
                () = network.closed() => return Ok(()),
            }
        }
        // One change often comes with several messages.
        while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(5), messages.next()).await {}
    }
}

/// The link of mode ipvs that holds addresses of Services.
pub const IPVS_LINK: &str = "sluice-ipvs0";
/// The one that kube-proxy has for the same.
pub const KUBE_PROXY_LINK: &str = "kube-ipvs0";
/// The addresses of these links are not the node's own.
const HIDDEN: [&str; 2] = [IPVS_LINK, KUBE_PROXY_LINK];

/// Whether a message tells of an address of such a link.
fn is_of(message: &NetlinkMessage<RouteNetlinkMessage>, hidden: &BTreeSet<u32>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address),
        ) => hidden.contains(&address.header.index),
        _ => false,
    }
}

async fn list(handle: &rtnetlink::Handle) -> Result<(Network, BTreeSet<u32>), rtnetlink::Error> {
    let mut devices = BTreeMap::new();
    let mut hidden = BTreeSet::new();
    let all = AllInterfaces::read();
    let mut links = handle.link().get().execute();
    while let Some(message) = links.try_next().await? {
        match device(&message, all) {
            Some(device) if HIDDEN.contains(&device.name.as_str()) => {
                hidden.insert(device.index);
            }
            Some(device) => {
                devices.insert(device.index, device);
            }
            None => {}
        }
    }
    let (mut addresses, mut networks, mut with_ipv4) = (Vec::new(), Vec::new(), BTreeSet::new());
    let mut answer = handle.address().get().execute();
    while let Some(message) = answer.try_next().await? {
        let Some(ip) = read::address(&message).filter(|_| !hidden.contains(&message.header.index)) else {
            continue;
        };
        addresses.push(ip);
        with_ipv4.extend(ip.is_ipv4().then_some(message.header.index));
        networks.extend(IpNet::new(ip, message.header.prefix_len));
        if let Some(device) = devices.get_mut(&message.header.index) {
            take_address(device, ip, &message);
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    for device in devices.values_mut() {
        // Without an address of its own the kernel makes no difference (`no_addr` of
        // `__fib_validate_source`).
        if device.reverse_path == ReversePath::Loose && !with_ipv4.contains(&device.index) {
            device.reverse_path = ReversePath::Strict;
        }
    }
    let (devices, holds_services) = (devices.into_values().collect(), !hidden.is_empty());
    Ok((Network { addresses, networks, devices, holds_services }, hidden))
}

/// The addresses of an interface.
pub(crate) async fn of_link(handle: &rtnetlink::Handle, index: u32) -> Result<Vec<IpNet>, rtnetlink::Error> {
    let mut found = Vec::new();
    let mut answer = handle.address().get().set_link_index_filter(index).execute();
    while let Some(message) = answer.try_next().await? {
        found.extend(read::network(&message));
    }
    Ok(found)
}

/// What `net.ipv4.conf.all` has beside the settings of each interface.
#[derive(Clone, Copy, Debug, Default)]
struct AllInterfaces {
    rp_filter: i32,
    accept_local: i32,
    src_valid_mark: i32,
}

impl AllInterfaces {
    /// As they are; what cannot be read is 0, as for a kernel without.
    fn read() -> Self {
        let number = |name| {
            let path: std::path::PathBuf = ["/proc/sys/net/ipv4/conf/all", name].iter().collect();
            read_number(&path).ok().and_then(|number| i32::try_from(number).ok()).unwrap_or_default()
        };
        AllInterfaces {
            rp_filter: number("rp_filter"),
            accept_local: number("accept_local"),
            src_valid_mark: number("src_valid_mark"),
        }
    }

    /// The greater setting counts. Where the kernel takes packets from its own addresses, or looks
    /// the way back up by a packet's mark, programs cannot tell what it would do.
    fn reverse_path(self, own: &InetDevConf) -> ReversePath {
        if self.accept_local | self.src_valid_mark | own.accept_local | own.src_vmark != 0 {
            return ReversePath::Any;
        }
        match self.rp_filter.max(own.rp_filter) {
            1 => ReversePath::Strict,
            2 => ReversePath::Loose,
            _ => ReversePath::Any,
        }
    }
}

/// The settings of an interface for IPv4.
fn inet_settings(families: &[AfSpecUnspec]) -> Option<&InetDevConf> {
    families.iter().find_map(|family| match family {
        AfSpecUnspec::Inet(parts) => parts.iter().find_map(|part| match part {
            AfSpecInet::DevConf(settings) => Some(settings),
            _ => None,
        }),
        _ => None,
    })
}

fn device(message: &LinkMessage, all: AllInterfaces) -> Option<Device> {
    if message.header.flags.contains(LinkFlags::Loopback) {
        return None;
    }
    let mut device = Device {
        index: message.header.index,
        layer: layer(message.header.link_layer_type.into()),
        is_port: message.header.flags.contains(LinkFlags::Port),
        ..Device::default()
    };
    let (mut is_cable, mut is_linked_elsewhere, mut controller, mut port) = (false, false, None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::LinkNetNsId(_) => is_linked_elsewhere = true,
            LinkAttribute::Address(bytes) => device.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Controller(index) => controller = Some(*index),
            LinkAttribute::AfSpecUnspec(families) => {
                device.reverse_path =
                    inet_settings(families).map(|own| all.reverse_path(own)).unwrap_or_default();
            }
            LinkAttribute::LinkInfo(infos) => {
                is_cable = infos.iter().any(is_cable_info);
                device.is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                port = infos.iter().find_map(|info| match info {
                    LinkInfo::PortKind(kind) => Some(kind),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    // Others than cables, such as macvlan and vlan, are linked to the interface below them, to
    // which no packet can be handed as if it came out of a cable.
    device.peer_is_elsewhere = is_cable && is_linked_elsewhere;
    device.bridge = controller.filter(|_| port == Some(&InfoPortKind::Bridge));
    // What comes in by a port of anything but a VRF enters the stack by the controller, whose
    // setting counts: by routes, nothing would be behind the port itself.
    if controller.is_some() && port != Some(&InfoPortKind::Vrf) {
        device.reverse_path = ReversePath::Any;
    }
    Some(device)
}

/// Whether it says that an interface is one end of a pair.
fn is_cable_info(info: &LinkInfo) -> bool {
    matches!(info, LinkInfo::Kind(InfoKind::Veth | InfoKind::Netkit))
}

/// What packets of an interface begin with, by its ARPHRD number (linux/if_arp.h); `None` where IP
/// is not at once behind one of these.
fn layer(kind: u16) -> Option<Layer> {
    match kind {
        1 => Some(Layer::Ethernet),
        // PPP, RAWIP, IPv4 and IPv6 tunnels, SIT, GRE of both, and none (tun, WireGuard).
        512 | 519 | 768 | 769 | 776 | 778 | 823 | 0xfffe => Some(Layer::Raw),
        _ => None,
    }
}

/// Whether others than the other end of a cable may be on the same link.
fn is_of_a_network(ip: IpAddr, message: &AddressMessage) -> bool {
    match ip {
        IpAddr::V4(_) => message.header.prefix_len < 32,
        IpAddr::V6(_) => message.header.prefix_len < 128 && message.header.scope != AddressScope::Link,
    }
}

/// The first address of a family that packets to others may come from.
fn take_address(device: &mut Device, ip: IpAddr, message: &AddressMessage) {
    if is_of_a_network(ip, message) {
        device.peer_is_elsewhere = false;
    }
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let unfit = AddressFlags::Secondary
        | AddressFlags::Tentative
        | AddressFlags::Dadfailed
        | AddressFlags::Deprecated;
    if flags.is_some_and(|flags| flags.intersects(unfit)) {
        return;
    }
    match (ip, message.header.scope) {
        (IpAddr::V4(ip), AddressScope::Universe | AddressScope::Site | AddressScope::Link) => {
            device.address4.get_or_insert(ip);
        }
        (IpAddr::V6(ip), AddressScope::Universe | AddressScope::Site) => {
            device.address6.get_or_insert(ip);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device_of(kind: u16, attributes: Vec<LinkAttribute>) -> Option<Device> {
        let mut message = LinkMessage::default();
        message.header.index = 4;
        message.header.link_layer_type = kind.into();
        message.attributes = attributes;
        device(&message, AllInterfaces::default())
    }

    #[test]
    fn a_veth_pair_to_another_namespace_is_recognized() {
        let attributes = || vec![LinkAttribute::IfName("veth1".into()), LinkAttribute::Mtu(1450)];
        let here = device_of(1, attributes()).unwrap();
        assert_eq!((here.index, here.name.as_str(), here.mtu), (4, "veth1", 1450));
        assert_eq!((here.layer, here.peer_is_elsewhere), (Some(Layer::Ethernet), false));
        let elsewhere = |kind: Option<InfoKind>| {
            let mut there = attributes();
            there.push(LinkAttribute::LinkNetNsId(0));
            there.extend(kind.map(|kind| LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])));
            device_of(1, there).unwrap().peer_is_elsewhere
        };
        assert!(elsewhere(Some(InfoKind::Veth)) && elsewhere(Some(InfoKind::Netkit)));
        // Their lower interface is in another namespace.
        assert!(!elsewhere(Some(InfoKind::MacVlan)) && !elsewhere(Some(InfoKind::IpVlan)));
        assert!(!elsewhere(Some(InfoKind::Vlan)) && !elsewhere(None));
        assert_eq!(device_of(0xfffe, vec![]).unwrap().layer, Some(Layer::Raw));
        // InfiniBand.
        assert_eq!(device_of(32, vec![]).unwrap().layer, None);
    }

    #[test]
    fn the_reverse_path_check_follows_rp_filter_unless_another_setting_disables_it() {
        let of = |all: AllInterfaces, change: fn(&mut InetDevConf)| {
            let mut own = InetDevConf::default();
            change(&mut own);
            all.reverse_path(&own)
        };
        let all = |rp_filter| AllInterfaces { rp_filter, ..AllInterfaces::default() };
        use ReversePath::{Any, Loose, Strict};
        assert_eq!([of(all(0), |_| {}), of(all(1), |_| {}), of(all(2), |_| {})], [Any, Strict, Loose]);
        assert_eq!(of(all(0), |own| own.rp_filter = 1), Strict);
        assert_eq!([of(all(1), |own| own.rp_filter = 2), of(all(2), |own| own.rp_filter = 1)], [Loose; 2]);
        assert_eq!(of(all(1), |own| own.accept_local = 1), Any);
        assert_eq!(of(all(1), |own| own.src_vmark = 1), Any);
        assert_eq!(of(AllInterfaces { src_valid_mark: 1, ..all(1) }, |_| {}), Any);
        let mut settings = InetDevConf::default();
        settings.rp_filter = 2;
        let families = vec![AfSpecUnspec::Inet(vec![AfSpecInet::DevConf(settings)])];
        assert_eq!(device_of(1, vec![LinkAttribute::AfSpecUnspec(families)]).unwrap().reverse_path, Loose);
    }

    #[test]
    fn rp_filter_of_a_port_keeps_nothing_out_that_enters_by_its_controller() {
        let of = |port: Option<InfoPortKind>, controller: Option<u32>| {
            let mut settings = InetDevConf::default();
            settings.rp_filter = 1;
            let mut attributes =
                vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![AfSpecInet::DevConf(
                    settings,
                )])])];
            attributes.extend(port.map(|kind| LinkAttribute::LinkInfo(vec![LinkInfo::PortKind(kind)])));
            attributes.extend(controller.map(LinkAttribute::Controller));
            device_of(1, attributes).unwrap().reverse_path
        };
        use ReversePath::{Any, Strict};
        assert_eq!([of(None, None), of(Some(InfoPortKind::Vrf), Some(9))], [Strict; 2]);
        let others = [InfoPortKind::Team, InfoPortKind::Bridge, InfoPortKind::Other("openvswitch".into())];
        for port in others.into_iter().map(Some).chain([None]) {
            assert_eq!(of(port.clone(), Some(9)), Any, "{port:?}");
        }
    }

    #[test]
    fn a_port_of_a_bridge_is_told_from_one_of_a_bond() {
        let port = |kind: InfoPortKind| {
            let infos = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::PortKind(kind)];
            let mac = LinkAttribute::Address(vec![2, 1, 2, 3, 4, 5]);
            let device =
                device_of(1, vec![mac, LinkAttribute::Controller(9), LinkAttribute::LinkInfo(infos)])
                    .unwrap();
            assert_eq!(device.mac, Some([2, 1, 2, 3, 4, 5]));
            device.bridge
        };
        assert_eq!((port(InfoPortKind::Bridge), port(InfoPortKind::Bond)), (Some(9), None));
    }

    #[test]
    fn a_cable_with_an_address_of_a_network_may_lead_to_a_switch() {
        let is_alone = |ip: &str, length, scope| {
            let mut device = Device { peer_is_elsewhere: true, ..Device::default() };
            let mut message = AddressMessage::default();
            (message.header.prefix_len, message.header.scope) = (length, scope);
            take_address(&mut device, ip.parse().unwrap(), &message);
            device.peer_is_elsewhere
        };
        assert!(is_alone("10.244.1.1", 32, AddressScope::Universe));
        assert!(is_alone("fd00::1", 128, AddressScope::Universe));
        assert!(is_alone("fe80::1", 64, AddressScope::Link));
        assert!(!is_alone("172.18.0.2", 16, AddressScope::Universe));
        assert!(!is_alone("fc00:f853::2", 64, AddressScope::Universe));
    }

    #[test]
    fn the_first_usable_address_of_each_family_is_the_device_s() {
        let mut device = Device::default();
        let mut take = |ip: &str, scope, flags| {
            let mut message = AddressMessage::default();
            message.header.scope = scope;
            message.attributes = vec![AddressAttribute::Flags(flags)];
            take_address(&mut device, ip.parse().unwrap(), &message);
        };
        let plain = AddressFlags::Permanent;
        take("10.0.0.9", AddressScope::Universe, AddressFlags::Secondary);
        take("10.0.0.1", AddressScope::Universe, plain);
        take("10.0.0.2", AddressScope::Universe, plain);
        take("fe80::1", AddressScope::Link, plain);
        take("fd00::9", AddressScope::Universe, AddressFlags::Tentative);
        take("fd00::1", AddressScope::Universe, plain);
        assert_eq!(device.address4, Some([10, 0, 0, 1].into()));
        assert_eq!(device.address6.map(|ip| ip.to_string()).as_deref(), Some("fd00::1"));
    }
}
