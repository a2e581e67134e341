//! How large packets of pods may be.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rtnetlink::Handle;
use sluice_core::net::Family;
use sluice_core::pod_network::{Hop, Own, PodNetwork, Transport};

use super::{DEVICE, PassError, kernel};
use crate::addresses::Network;
use crate::config::PodNetworkSettings;

/// What outer packets have in front of inner ones: Ethernet, VXLAN, UDP, and IPv4 or IPv6 (RFC 7348, section 5).
const OVERHEAD_V4: u32 = 14 + 8 + 8 + 20;
const OVERHEAD_V6: u32 = 14 + 8 + 8 + 40;
/// What IPv6 needs (RFC 8200, section 5).
const LEAST_MTU_V6: u32 = 1280;
/// What every host takes in IPv4 (RFC 1122, section 3.3.2).
const LEAST_MTU_V4: u32 = 576;

/// The pods' MTU, and an error if the path to a node allows less than that.
pub(super) async fn of_pods(
    handle: &Handle,
    settings: &PodNetworkSettings,
    own: &Own,
    wanted: &PodNetwork,
    network: &Network,
) -> Result<(u32, Option<PassError>), PassError> {
    if let Some(mtu) = settings.mtu {
        return Ok((mtu, None));
    }
    // A way through our own device is no way to a node.
    let mtu_of = |index| {
        let device = network.devices.iter().find(|device| device.index == index);
        device.filter(|device| device.name != DEVICE).map(|device| device.mtu)
    };
    // As long as this node is alone, what counts is the interface that the others will reach it by.
    let uplink = own.node.addresses.iter().filter_map(|ip| uplink_mtu(network, *ip)).min().unwrap_or(1500);
    let mut least = (uplink, own.node.addresses.first().copied());
    let mut peers: BTreeSet<IpAddr> = wanted.vteps.iter().map(|vtep| vtep.node).collect();
    peers.extend(wanted.routes.iter().filter_map(|route| match route.via {
        Hop::Node(ip) => Some(ip),
        Hop::Vtep(_) => None,
    }));
    for peer in peers {
        if let Some(mtu) = kernel::path_mtu(handle, peer, mtu_of).await?.filter(|mtu| *mtu < least.0) {
            least = (mtu, Some(peer));
        }
    }
    Ok(less_overhead(settings.transport, own, least))
}

/// What is left of a path's MTU for pods.
fn less_overhead(
    transport: Transport,
    own: &Own,
    (path, peer): (u32, Option<IpAddr>),
) -> (u32, Option<PassError>) {
    let overhead = match (transport, own.node.addresses.first()) {
        (Transport::Direct, _) => 0,
        (_, Some(IpAddr::V6(_))) => OVERHEAD_V6,
        _ => OVERHEAD_V4,
    };
    let needed = if own.node.pod_cidr(Family::V6).is_some() { LEAST_MTU_V6 } else { LEAST_MTU_V4 };
    let mtu = path.saturating_sub(overhead);
    let small = (mtu < needed).then_some(PassError::Mtu { path, overhead, needed, peer });
    (mtu.max(needed), small)
}

/// The MTU of the interface that has one of the node's addresses.
fn uplink_mtu(network: &Network, ip: IpAddr) -> Option<u32> {
    let has = |device: &&crate::node::Device| match ip {
        IpAddr::V4(ip) => device.address4 == Some(ip),
        IpAddr::V6(ip) => device.address6 == Some(ip),
    };
    network.devices.iter().find(has).map(|device| device.mtu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_core::model::{Node, ObjectName};

    fn own(address: &str, pod_cidrs: &[&str]) -> Own {
        let node = Node {
            name: ObjectName::cluster_scoped("a"),
            addresses: vec![address.parse().unwrap()],
            pod_cidrs: pod_cidrs.iter().map(|text| text.parse().unwrap()).collect(),
            zone: None,
            eligible: true,
        };
        Own { node, networks: Vec::new() }
    }

    #[test]
    fn tunnels_take_their_part() {
        let of = |transport, address, path| {
            let (mtu, small) = less_overhead(transport, &own(address, &["10.0.0.0/24"]), (path, None));
            assert!(small.is_none(), "{small:?}");
            mtu
        };
        assert_eq!(of(Transport::Vxlan, "192.168.1.1", 1500), 1450);
        assert_eq!(of(Transport::CrossSubnet, "fd00::1", 9000), 8930);
        assert_eq!(of(Transport::Direct, "192.168.1.1", 1500), 1500);
        // IPv4 alone does with less than IPv6.
        assert_eq!(of(Transport::Vxlan, "192.168.1.1", 1280), 1230);
    }

    #[test]
    fn who_makes_the_path_too_small_is_told_and_pods_get_what_they_need() {
        let own = own("192.168.1.1", &["10.0.0.0/24", "fd00::/64"]);
        let peer = "192.168.1.9".parse().unwrap();
        let (mtu, small) = less_overhead(Transport::Vxlan, &own, (1300, Some(peer)));
        assert_eq!(mtu, 1280);
        let told = small.unwrap().to_string();
        assert!(told.contains("path to 192.168.1.9 allows packets of 1300 bytes"), "{told}");
    }
}
