//! The pod's side, in its network namespace.

use ipnet::IpNet;
use netlink_packet_route::link::LinkFlags;
use sluice_link::netns::{self, NetnsError};
use sluice_link::request::{add_address, add_neighbour, new_link, up};
use sluice_link::{LOOPBACK, Netlink, read, sysctl};

use super::{Namespace, NetError, add_route};
use crate::wiring::Wiring;

/// Runs something in a network namespace, on a thread that is used for nothing else.
pub fn in_namespace<T: Send>(
    namespace: &Namespace,
    work: impl FnOnce() -> Result<T, NetError> + Send,
) -> Result<T, NetError> {
    netns::within(&namespace.file, work).unwrap_or_else(|error| {
        Err(match error {
            NetnsError::Enter(source) => NetError::Namespace { path: namespace.path.clone(), source },
            NetnsError::Thread => NetError::Thread,
        })
    })
}

/// Addresses, routes and sysctls.
pub(super) fn settle(
    wiring: &Wiring,
    namespace: &Namespace,
    sysctls: &[(String, String)],
) -> Result<(), NetError> {
    in_namespace(namespace, || {
        let mut netlink = Netlink::open()?;
        let index = netlink.index(&wiring.pod)?.ok_or_else(|| NetError::Gone(wiring.pod.clone()))?;
        if wiring.leases.iter().any(|lease| lease.address.addr().is_ipv6()) {
            // Nobody may have to wait for the link's own address either. Without IPv6 the addresses
            // fail, and say so.
            drop(sysctl::write(&format!("net/ipv6/conf/{}/accept_dad", wiring.pod), "0"));
            drop(sysctl::write(&format!("net/ipv6/conf/{}/disable_ipv6", wiring.pod), "0"));
        }
        let mut changes = vec![new_link("set lo up", up(LOOPBACK), 0)];
        changes.extend(wiring.leases.iter().map(|lease| add_address(index, wiring.pod_address(lease))));
        changes.push(new_link("set the pod's interface up", up(index), 0));
        let known = wiring.gateway_mac.into_iter();
        let gateways =
            known.flat_map(|mac| wiring.leases.iter().map(move |lease| (wiring.gateway(lease), mac)));
        changes.extend(gateways.map(|(gateway, mac)| add_neighbour(index, gateway, mac)));
        changes.extend(wiring.pod_routes().iter().map(|route| add_route(index, route)));
        netlink.apply(changes)?;
        for (name, value) in sysctls {
            sysctl::write(name, value)?;
        }
        Ok(())
    })
}

/// What a pod's interface looks like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodState {
    /// Its MTU.
    pub mtu: Option<u32>,
    /// Its hardware address.
    pub mac: Vec<u8>,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// Where the pod's routes lead, by whichever interface: another network may have the default
    /// route.
    pub routes: Vec<IpNet>,
}

impl PodState {
    /// Looks at an interface in a namespace; `None`: there is none of this name.
    pub fn read(namespace: &Namespace, interface: &str) -> Result<Option<Self>, NetError> {
        in_namespace(namespace, || {
            let mut netlink = Netlink::open()?;
            let Some(link) = netlink.link(interface)? else { return Ok(None) };
            let index = link.header.index;
            let addresses = netlink.addresses(index)?;
            let routes = netlink.routes(None)?;
            let mac = read::mac(&link).unwrap_or_default().to_vec();
            Ok(Some(PodState { mtu: read::mtu(&link), mac, addresses, routes }))
        })
    }
}

/// A pod's interface `lo`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loopback {
    /// Whether it is up.
    pub is_up: bool,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
}

impl Loopback {
    /// Looks at it.
    pub fn read(namespace: &Namespace) -> Result<Self, NetError> {
        in_namespace(namespace, || Loopback::of(&mut Netlink::open()?))
    }

    /// Sets it up or down, and looks at it.
    pub fn set(namespace: &Namespace, is_up: bool) -> Result<Self, NetError> {
        in_namespace(namespace, || {
            let mut netlink = Netlink::open()?;
            let mut link = up(LOOPBACK);
            if !is_up {
                link.header.flags = LinkFlags::empty();
            }
            netlink.apply(vec![new_link(if is_up { "set lo up" } else { "set lo down" }, link, 0)])?;
            Loopback::of(&mut netlink)
        })
    }

    fn of(netlink: &mut Netlink) -> Result<Self, NetError> {
        let link = netlink.link("lo")?.ok_or_else(|| NetError::Gone("lo".to_owned()))?;
        let is_up = link.header.flags.contains(LinkFlags::Up);
        Ok(Loopback { is_up, addresses: netlink.addresses(link.header.index)? })
    }
}
