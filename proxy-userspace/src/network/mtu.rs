//! How large packets of pods may be.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rtnetlink::Handle;
use sluice_core::net::Family;
use sluice_core::pod_network::{Hop, Own, PodNetwork};

use super::{PassError, kernel};
use crate::config::PodNetworkSettings;
use crate::node::addresses::Network;

/// What outer packets have in front of inner ones: Ethernet, VXLAN, UDP, and IPv4 or IPv6 (RFC
/// 7348, section 5).
const OVERHEAD_V4: u32 = 14 + 8 + 8 + 20;
const OVERHEAD_V6: u32 = 14 + 8 + 8 + 40;
/// What IPv6 needs (RFC 8200, section 5).
const LEAST_MTU_V6: u32 = 1280;
/// What every host takes in IPv4 (RFC 1122, section 3.3.2).
const LEAST_MTU_V4: u32 = 576;

/// A way to other nodes: its MTU, what a tunnel takes of it, and to whom it leads.
#[derive(Clone, Copy, Debug)]
struct Path {
    mtu: u32,
    overhead: u32,
    peer: Option<IpAddr>,
}

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
        let is_ours = |name: &str| kernel::DEVICES.iter().any(|(_, ours)| *ours == name);
        device.filter(|device| !is_ours(&device.name)).map(|device| device.mtu)
    };
    let most = wanted.underlays.iter().map(|family| overhead(*family)).max().unwrap_or(0);
    // As long as this node is alone, what counts is the interface that the others will reach it by.
    let uplink = own.node.addresses.iter().filter_map(|ip| uplink_mtu(network, *ip)).min().unwrap_or(1500);
    let mut paths = vec![Path { mtu: uplink, overhead: most, peer: own.node.addresses.first().copied() }];
    // Pods have one MTU, to whomever they talk: where some nodes are behind a tunnel, others count
    // as if they were too.
    let direct = wanted.routes.iter().filter_map(|route| match route.via {
        Hop::Node(ip) => Some((ip, most)),
        Hop::Vtep(..) | Hop::Nobody => None,
    });
    let peers: BTreeSet<(IpAddr, u32)> =
        wanted.vteps.iter().map(|vtep| (vtep.node, overhead(Family::of(&vtep.node)))).chain(direct).collect();
    for (peer, overhead) in peers {
        let mtu = kernel::path_mtu(handle, peer, mtu_of).await?;
        paths.extend(mtu.map(|mtu| Path { mtu, overhead, peer: Some(peer) }));
    }
    Ok(least(own, &paths))
}

fn overhead(underlay: Family) -> u32 {
    match underlay {
        Family::V4 => OVERHEAD_V4,
        Family::V6 => OVERHEAD_V6,
    }
}

/// What the paths leave for pods.
fn least(own: &Own, paths: &[Path]) -> (u32, Option<PassError>) {
    let needed = if own.node.pod_cidr(Family::V6).is_some() { LEAST_MTU_V6 } else { LEAST_MTU_V4 };
    let left = |path: &Path| path.mtu.saturating_sub(path.overhead);
    let Some(path) = paths.iter().min_by_key(|path| left(path)) else { return (needed, None) };
    let mtu = left(path);
    let small = (mtu < needed).then_some(PassError::Mtu {
        path: path.mtu,
        overhead: path.overhead,
        needed,
        peer: path.peer,
    });
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

    fn path(mtu: u32, overhead: u32, peer: &str) -> Path {
        Path { mtu, overhead, peer: Some(peer.parse().unwrap()) }
    }

    #[test]
    fn each_tunnel_takes_its_part() {
        let own = own("192.168.1.1", &["10.0.0.0/24"]);
        let of = |paths: &[Path]| {
            let (mtu, small) = least(&own, paths);
            assert!(small.is_none(), "{small:?}");
            mtu
        };
        let [v4, v6] = Family::BOTH.map(overhead);
        assert_eq!(of(&[path(1500, v4, "192.168.1.2")]), 1450);
        assert_eq!(of(&[path(9000, v6, "fd00::2")]), 8930);
        assert_eq!(of(&[path(1500, v4, "192.168.1.2"), path(1500, v6, "fd00::3")]), 1430);
        // The wider path is the smaller one when its tunnel takes more.
        assert_eq!(of(&[path(1500, v4, "192.168.1.2"), path(1510, v6, "fd00::3")]), 1440);
        assert_eq!(of(&[path(1500, 0, "192.168.1.1")]), 1500);
        // IPv4 alone does with less than IPv6.
        assert_eq!(of(&[path(1280, v4, "192.168.1.1")]), 1230);
    }

    #[test]
    fn a_node_with_too_small_a_path_is_reported_and_pods_keep_the_minimum_mtu() {
        let own = own("192.168.1.1", &["10.0.0.0/24", "fd00::/64"]);
        let paths = [path(1500, OVERHEAD_V4, "192.168.1.8"), path(1300, OVERHEAD_V4, "192.168.1.9")];
        let (mtu, small) = least(&own, &paths);
        assert_eq!(mtu, 1280);
        let told = small.unwrap().to_string();
        assert!(told.contains("path to 192.168.1.9 has an MTU of 1300 bytes"), "{told}");
    }
}
