//! Which interfaces get programs, and what the programs know of them. Pure.

use std::collections::BTreeMap;

use sluice_common::node::{Interface, interface};
use sluice_core::ebpf::{address, interface_is_pod};
use sluice_core::plan::Detector;
use sluice_sys::bpf;

use crate::node::Device;

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

/// The entries of the map `INTERFACES`. Packets may leave by any interface, whether it has programs or not.
pub(super) fn interfaces(devices: &[Device], detectors: &[Detector]) -> BTreeMap<u32, Interface> {
    let macs: BTreeMap<u32, [u8; 6]> =
        devices.iter().filter_map(|device| Some((device.index, device.mac?))).collect();
    let entry = |device: &Device| {
        let bridge = device.bridge.and_then(|index| macs.get(&index));
        let flags = [
            (interface::BRIDGE_PORT, bridge.is_some()),
            (interface::PEER, device.peer_is_elsewhere),
            (interface::PODS, interface_is_pod(detectors, &device.name)),
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
        let known = interfaces(&devices(), &[Detector::InterfacePrefix("veth".into()), Detector::None]);
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
        let known = interfaces(&[port, bridge], &[]);
        assert_eq!((known[&7].flags, known[&7].bridge), (0, 0));
        let last = u32::from_ne_bytes([0xa, 0xb, 0xc, 0xd]);
        assert_eq!((known[&8].flags, known[&8].bridge), (interface::BRIDGE_PORT, last));
    }
}
