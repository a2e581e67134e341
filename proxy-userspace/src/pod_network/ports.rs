//! The table of pods on a bridge: who is behind which port, as the plugin has written it down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_cni::spec::Attachment;
use sluice_cni::store::Contents;
use sluice_cni::wiring::host_name;
use sluice_core::pod_network::{PodPorts, Port, TABLE};
use sluice_sys::netlink::NetlinkError;
use sluice_sys::nft::{Nft, Table};
use tracing::warn;

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

    /// Makes the table as it should be; `None`: away with it. With `audits` also looks whether it has gone without a notice.
    pub(super) fn write(
        &mut self,
        nft: &mut Nft,
        wanted: Option<PodPorts>,
        audits: bool,
    ) -> Result<(), NetlinkError> {
        let table = Table::bridge(TABLE);
        if audits && wanted.is_some() && !nft.has_table(table)? {
            self.distrust();
        }
        let known = self.written.as_ref().filter(|_| self.is_trusted);
        let done = match (known, &wanted) {
            (Some(is), shall) if is == shall => return Ok(()),
            (_, None) => nft.delete(table).map(drop),
            (Some(Some(is)), Some(shall)) => nft.commit_to(table, &shall.difference(is)).map(drop),
            (_, Some(shall)) => nft.commit_to(table, &shall.replace()).map(drop),
        };
        match done {
            Ok(()) => {}
            Err(error) if lacks_family(&error) => {
                if wanted.is_some() && !std::mem::replace(&mut self.told, true) {
                    warn!(
                        %error,
                        "pods on the bridge can send with any address: this kernel has no nf_tables for bridges \
                         (CONFIG_NF_TABLES_BRIDGE); use sluice.podNetwork.mode \"routed\""
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

/// The pods whose frames can be told: those whose hardware addresses are written down, with the addresses that they have.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_before_whose_frames_cannot_be_told_are_left_alone() {
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
