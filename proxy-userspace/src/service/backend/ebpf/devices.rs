//! Which interfaces get programs, and what the programs know of them. Pure.

use std::collections::BTreeMap;

use sluice_common::node::{Interface, interface};
use sluice_core::ebpf::{address, interface_is_pod};
use sluice_core::plan::Detector;
use sluice_core::pod_network::is_pod_link;
use sluice_sys::bpf;

use crate::node::{Device, ReversePath};

/// Those that get programs.
pub(super) fn attachable(devices: &[Device]) -> Vec<bpf::Device> {
    devices
        .iter()
        .filter(|device| !device.is_port)
        .filter_map(|device| {
            let layer = device.layer?;
            Some(bpf::Device { index: device.index, name: device.name.clone(), layer })
        })
        .collect()
}

/// The entries of the map `INTERFACES`. Packets may leave by any interface, whether it has programs
/// or not. `checks_pods`: packets of our pods have their own addresses.
pub(super) fn interfaces(
    devices: &[Device],
    detectors: &[Detector],
    checks_pods: bool,
) -> BTreeMap<u32, Interface> {
    let macs: BTreeMap<u32, [u8; 6]> =
        devices.iter().filter_map(|device| Some((device.index, device.mac?))).collect();
    let entry = |device: &Device| {
        let bridge = device.bridge.and_then(|index| macs.get(&index));
        let is_placed = device.bridge.is_some() == bridge.is_some();
        let of_pod = checks_pods && is_placed && device.is_veth && is_pod_link(&device.name);
        // Of a pod nothing else comes in; packets do not enter the stack by ports of bridges.
        let filter = if of_pod || bridge.is_some() { ReversePath::Any } else { device.reverse_path };
        let flags = [
            (interface::BRIDGE_PORT, bridge.is_some()),
            (interface::PEER, device.peer_is_elsewhere),
            (interface::PODS, interface_is_pod(detectors, &device.name)),
            (interface::OWN_SOURCES, of_pod),
            (interface::STRICT, filter == ReversePath::Strict),
            (interface::LOOSE, filter == ReversePath::Loose),
        ];
        Interface {
            flags: flags.iter().filter(|(_, set)| *set).fold(0, |flags, (bit, _)| flags | bit),
            bridge: bridge.map(|[_, _, rest @ ..]| u32::from_ne_bytes(*rest)).unwrap_or_default(),
            address4: device.address4.map(|ip| address(ip.into())).unwrap_or_default(),
            address6: device.address6.map(|ip| address(ip.into())).unwrap_or_default(),
        }
    };
    devices.iter().map(|device| (device.index, entry(device))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_sys::bpf::Layer;

    fn devices() -> Vec<Device> {
        let device = |index, name: &str, layer| Device {
            index,
            name: name.into(),
            layer,
            mtu: 1500,
            ..Device::default()
        };
        vec![
            Device { is_port: true, ..device(2, "eth0", Some(Layer::Ethernet)) },
            Device { address4: Some([192, 0, 2, 1].into()), ..device(3, "bond0", Some(Layer::Ethernet)) },
            device(4, "wg0", Some(Layer::Raw)),
            device(5, "ib0", None),
            Device { peer_is_elsewhere: true, ..device(6, "veth1", Some(Layer::Ethernet)) },
        ]
    }

    #[test]
    fn ports_of_bonds_and_unknown_links_get_no_programs() {
        let names: Vec<String> = attachable(&devices()).into_iter().map(|device| device.name).collect();
        assert_eq!(names, ["bond0", "wg0", "veth1"]);
    }

    #[test]
    fn programs_know_cables_pods_and_addresses() {
        let known = interfaces(&devices(), &[Detector::InterfacePrefix("veth".into()), Detector::None], true);
        assert_eq!(known.len(), 5);
        assert_eq!(known[&6].flags, interface::PEER | interface::PODS);
        assert_eq!((known[&3].flags, known[&3].bridge), (0, 0));
        assert_eq!(known[&3].address4, address([192, 0, 2, 1].into()));
        assert_eq!(known[&3].address6, sluice_common::Address::default());
    }

    #[test]
    fn programs_know_the_bridge_of_a_port() {
        let mac = [2, 0, 0xa, 0xb, 0xc, 0xd];
        let bridge = Device { index: 7, mac: Some(mac), ..Device::default() };
        let port = Device { index: 8, bridge: Some(7), mac: Some([2; 6]), ..Device::default() };
        let known = interfaces(&[port, bridge], &[], true);
        assert_eq!((known[&7].flags, known[&7].bridge), (0, 0));
        let last = u32::from_ne_bytes([0xa, 0xb, 0xc, 0xd]);
        assert_eq!((known[&8].flags, known[&8].bridge), (interface::BRIDGE_PORT, last));
    }

    #[test]
    fn links_of_our_pods_are_held_against_their_addresses_and_others_against_rp_filter() {
        let reverse_path = ReversePath::Strict;
        let device =
            |index, name: &str| Device { index, name: name.into(), reverse_path, ..Device::default() };
        let pod = Device { is_veth: true, ..device(2, "sl0123456789ab") };
        let bridged = Device { index: 3, bridge: Some(9), ..pod.clone() };
        let called_so = device(4, "sl0123456789ab");
        let devices = [
            pod,
            bridged,
            called_so,
            Device { is_veth: true, ..device(5, "sl0123456789aB") },
            Device { reverse_path: ReversePath::Loose, ..device(6, "eth0") },
            Device { bridge: Some(9), ..device(7, "tap0") },
            Device { mac: Some([2; 6]), reverse_path: ReversePath::Any, ..device(9, "sluice0") },
        ];
        let flags = |checks| interfaces(&devices, &[], checks).into_values().map(|known| known.flags);
        use interface::{BRIDGE_PORT, LOOSE, OWN_SOURCES, STRICT};
        let checked = [OWN_SOURCES, OWN_SOURCES | BRIDGE_PORT, STRICT, STRICT, LOOSE, BRIDGE_PORT, 0];
        assert_eq!(Vec::from_iter(flags(true)), checked);
        assert_eq!(
            Vec::from_iter(flags(false)),
            [STRICT, BRIDGE_PORT, STRICT, STRICT, LOOSE, BRIDGE_PORT, 0]
        );
    }
}
