//! The table of pods on a bridge: who is behind which port, as the plugin has written it down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_cni::spec::Attachment;
use sluice_cni::store::Contents;
use sluice_cni::wiring::host_name;
use sluice_core::ebpf::address;
use sluice_core::pod_network::{PORTS_TABLE, PodPorts, Port};
use sluice_sys::bpf::PodSources;
use sluice_sys::netlink::NetlinkError;
use sluice_sys::nft::Nft;
use tracing::warn;

use crate::node::Device;

/// What is known of the table.
#[derive(Default)]
pub(super) struct Ports {
    /// As it was written last. `Some(None)`: there is none.
    written: Option<Option<PodPorts>>,
    /// It is so still, for all that is known.
    is_trusted: bool,
    told: bool,
}

impl Ports {
    /// The next pass writes the table anew.
    pub(super) fn distrust(&mut self) {
        self.is_trusted = false;
    }

    /// As it was written last.
    pub(super) fn written(&self) -> Option<Option<PodPorts>> {
        self.written.clone()
    }

    /// Makes the table as it should be; `None`: away with it. With `audits` also looks whether it
    /// has gone without a notice.
    pub(super) fn write(
        &mut self,
        nft: &mut Nft,
        wanted: Option<PodPorts>,
        audits: bool,
    ) -> Result<(), NetlinkError> {
        let table = &PORTS_TABLE;
        if audits && wanted.is_some() && !nft.has_table(table)? {
            self.distrust();
        }
        let known = self.written.as_ref().filter(|_| self.is_trusted);
        let done = match (known, &wanted) {
            (Some(is), shall) if is == shall => return Ok(()),
            (_, None) => nft.delete(table).map(drop),
            (Some(Some(is)), Some(shall)) => nft.commit(table, &shall.difference(is)).map(drop),
            (_, Some(shall)) => nft.commit(table, &shall.replace()).map(drop),
        };
        match done {
            Ok(()) => {}
            Err(error) if lacks_family(&error) => {
                if wanted.is_some() && !std::mem::replace(&mut self.told, true) {
                    warn!(
                        %error,
                        "pods on the bridge can send from any source address: this kernel has no \
                         nf_tables for bridges (CONFIG_NF_TABLES_BRIDGE); use sluice.podNetwork.mode \
                         \"routed\""
                    );
                }
            }
            Err(error) => {
                // It may not be as we believe.
                self.distrust();
                return Err(error);
            }
        }
        (self.written, self.is_trusted) = (Some(wanted), true);
        Ok(())
    }
}

/// Whether the kernel has no tables for frames that pass bridges.
pub(super) fn lacks_family(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}

/// The pods whose frames can be told: those whose hardware addresses are written down, with the
/// addresses that they have.
pub(super) fn pod_ports(contents: &Contents, network: &str, checked: Option<BTreeSet<IpNet>>) -> PodPorts {
    let mut addresses: BTreeMap<&Attachment, BTreeSet<IpAddr>> = BTreeMap::new();
    for (ip, holder) in &contents.leases.held {
        addresses.entry(holder).or_default().insert(*ip);
    }
    let ports = contents.macs.iter().map(|(holder, mac)| Port {
        link: host_name(network, holder),
        mac: *mac,
        addresses: addresses.get(holder).cloned().unwrap_or_default(),
    });
    PodPorts { ports: ports.collect(), checked }
}

/// What programs at pods' links hold packets against, by the indices of those that are there. On a
/// bridge nobody but the plugin knows who is where, and of pods whose hardware addresses are not
/// written down not even that.
pub(super) fn pod_sources(
    contents: &Contents,
    network: &str,
    devices: &[Device],
) -> BTreeMap<u32, PodSources> {
    let devices: BTreeMap<&str, &Device> =
        devices.iter().filter(|device| device.is_veth).map(|device| (device.name.as_str(), device)).collect();
    let mut sources: BTreeMap<u32, PodSources> = BTreeMap::new();
    for (ip, holder) in &contents.leases.held {
        let Some(device) = devices.get(host_name(network, holder).as_str()) else { continue };
        let pod = sources.entry(device.index).or_default();
        pod.addresses.insert(address(*ip));
        pod.are_all = device.bridge.is_some() && contents.macs.contains_key(holder);
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_know_pods_by_the_links_that_are_there() {
        let [bridged, of_before, routed, gone] =
            ["a", "b", "c", "d"].map(|name| Attachment::new(name, "eth0").unwrap());
        let mut contents = Contents::default();
        contents.macs.insert(bridged.clone(), [2, 0, 0, 0, 0, 1]);
        let held = [
            ("10.244.1.2", &bridged),
            ("fd00::2", &bridged),
            ("10.244.1.3", &of_before),
            ("10.244.1.4", &routed),
            ("10.244.1.5", &gone),
        ];
        for (ip, holder) in held {
            contents.leases.held.insert(ip.parse().unwrap(), holder.clone());
        }
        let device = |index, holder: &Attachment, bridge| Device {
            index,
            name: host_name("pods", holder),
            is_veth: true,
            bridge,
            ..Device::default()
        };
        let devices =
            [device(7, &bridged, Some(3)), device(8, &of_before, Some(3)), device(9, &routed, None)];
        let pod = |texts: &[&str], are_all| PodSources {
            addresses: texts.iter().map(|text| address(text.parse().unwrap())).collect(),
            are_all,
        };
        let expected = [
            (7, pod(&["10.244.1.2", "fd00::2"], true)),
            (8, pod(&["10.244.1.3"], false)),
            (9, pod(&["10.244.1.4"], false)),
        ];
        assert_eq!(pod_sources(&contents, "pods", &devices), BTreeMap::from(expected));
        assert!(pod_sources(&contents, "others", &devices).is_empty());
    }

    #[test]
    fn pods_without_a_recorded_hardware_address_are_not_guarded() {
        let [told, of_before] = ["a", "b"].map(|name| Attachment::new(name, "eth0").unwrap());
        let mut contents = Contents::default();
        contents.macs.insert(told.clone(), [2, 0, 0, 0, 0, 1]);
        for (ip, holder) in [("10.244.1.2", &told), ("fd00::2", &told), ("10.244.1.3", &of_before)] {
            contents.leases.held.insert(ip.parse().unwrap(), holder.clone());
        }
        let PodPorts { ports, .. } = pod_ports(&contents, "pods", None);
        assert_eq!(ports.len(), 1);
        let port = ports.first().unwrap();
        assert_eq!((port.link.as_str(), port.addresses.len()), (host_name("pods", &told).as_str(), 2));
    }

    #[test]
    fn links_are_called_as_the_rules_know_them() {
        let name = host_name("pods", &Attachment::new("a", "eth0").unwrap());
        assert!(name.starts_with(sluice_core::pod_network::POD_LINK_PREFIX) && name.len() == 14, "{name}");
    }
}
