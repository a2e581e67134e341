//! Addresses for a command: ranges of the configuration or of the node, and what is written down.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use sluice_link::Mac;

use super::Given;
use crate::ipam::{AllocationError, allocate};
use crate::net;
use crate::node_file::NodeFile;
use crate::spec::{Attachment, CniError, Code, Dns, Environment, Ipam, NetConf, PortMapping, Range, Route};
use crate::store::{HostPorts, Store, StoreError, boot_id};

/// Where nothing says how large packets may be.
const USUAL_MTU: u32 = 1500;

/// Addresses of a network.
pub(super) struct Addresses {
    sets: Vec<Vec<Range>>,
    reserved: BTreeSet<IpAddr>,
    routes: Vec<Route>,
    mtu: u32,
    store: Store,
}

/// Addresses that are asked for: by capability, by `CNI_ARGS` (`IP`), or by `args.cni.ips`.
pub(super) fn requested(environment: &Environment, config: &NetConf) -> Result<Vec<IpAddr>, CniError> {
    let of_arguments = config.asked_ips.iter().map(String::as_str);
    let of_environment = environment.arguments.get("IP").map(|text| text.split(',')).into_iter().flatten();
    let texts = config.capabilities.ips.iter().map(String::as_str).chain(of_environment).chain(of_arguments);
    let mut found = BTreeSet::new();
    for text in texts.filter(|text| !text.is_empty()) {
        let address = text.parse::<IpAddr>().or_else(|_| text.parse::<IpNet>().map(|net| net.addr()));
        found.insert(address.map_err(|_| {
            CniError::new(Code::InvalidConfig, format!("ips: {text:?} is not an IP address"))
        })?);
    }
    Ok(found.into_iter().collect())
}

impl Addresses {
    /// With ranges to take addresses from.
    pub(super) fn of(config: &NetConf) -> Result<Self, CniError> {
        let mut addresses = Addresses::without_ranges(config)?;
        if addresses.sets.is_empty() {
            let node = node_file(&config.run)?;
            addresses.sets = node.pod_cidrs.into_iter().map(|cidr| vec![Range::of(cidr)]).collect();
            if config.mtu.is_none() {
                addresses.mtu = node.mtu;
            }
        }
        Ok(addresses)
    }

    /// To look at what is written down, and to give back: that needs nothing of the node.
    pub(super) fn without_ranges(config: &NetConf) -> Result<Self, CniError> {
        let Ipam::Own { sets, reserved, routes } = &config.ipam else {
            return Err(CniError::new(
                Code::InvalidConfig,
                "ipam.type: another plugin manages the addresses",
            ));
        };
        Ok(Addresses {
            sets: sets.clone(),
            reserved: reserved.iter().copied().collect(),
            routes: routes.clone(),
            mtu: config.mtu.unwrap_or(USUAL_MTU),
            store: store(config)?,
        })
    }

    /// Gives addresses to a pod, and says which MTU goes with them.
    pub(super) fn give(
        &mut self,
        whose: &Attachment,
        requested: &[IpAddr],
        mappings: &[PortMapping],
        mac: Option<Mac>,
    ) -> Result<Given, CniError> {
        let leases = allocate(&self.sets, &self.reserved, self.store.leases(), requested, whose);
        let leases = leases.map_err(|error| {
            let code = match error {
                AllocationError::Outside(..) => Code::InvalidConfig,
                _ => Code::NoAddress,
            };
            CniError::new(code, error.to_string())
        })?;
        let addresses: Vec<IpAddr> = leases.iter().map(|lease| lease.address.addr()).collect();
        self.store.give(whose, &addresses, host_ports(whose, &addresses, mappings), mac)?;
        Ok(Given {
            leases,
            routes: self.routes.clone(),
            mtu: self.mtu,
            dns: Dns::default(),
            in_use: Some(self.in_use()),
        })
    }

    /// Whether ADD would find an address (STATUS).
    pub(super) fn can_give(&self) -> Result<(), CniError> {
        let nobody = Attachment { container: String::new(), interface: String::new() };
        match allocate(&self.sets, &self.reserved, self.store.leases(), &[], &nobody) {
            Ok(_) => Ok(()),
            Err(error) => Err(CniError::new(Code::NotAvailable, error.to_string())),
        }
    }

    /// What pods have, and what the next ones may get.
    fn in_use(&self) -> BTreeSet<IpAddr> {
        let next = self.sets.iter().flatten().map(|range| range.subnet.addr());
        self.store.leases().held.keys().copied().chain(next).collect()
    }

    /// What somebody has.
    pub(super) fn held(&self, whose: &Attachment) -> BTreeSet<IpAddr> {
        let held = self.store.leases().held.iter().filter(|(_, holder)| *holder == whose);
        held.map(|(address, _)| *address).collect()
    }
}

/// Everything that is written down of a network. A damaged file counts for nothing while no pod is
/// there; where links cannot be listed there may be some.
pub(super) fn store(config: &NetConf) -> Result<Store, StoreError> {
    let is_unused = || net::host_links(&config.name).is_ok_and(|links| links.is_empty());
    Store::open_or_begin(&config.data, &config.name, &boot_id()?, is_unused)
}

/// What to write down of ports of the node.
pub(super) fn host_ports(
    whose: &Attachment,
    addresses: &[IpAddr],
    mappings: &[PortMapping],
) -> Option<HostPorts> {
    let ports =
        || HostPorts { holder: whose.clone(), addresses: addresses.to_vec(), mappings: mappings.to_vec() };
    (!mappings.is_empty()).then(ports)
}

/// The MTU that the daemon has found, if it has.
pub(super) fn node_mtu(config: &NetConf) -> u32 {
    node_file(&config.run).map_or(USUAL_MTU, |node| node.mtu)
}

fn node_file(run: &Path) -> Result<NodeFile, CniError> {
    let place = NodeFile::path(run);
    let text = std::fs::read(&place).map_err(|error| {
        CniError::new(
            Code::TryAgainLater,
            format!(
                "{}: {error}: sluice has not written this node's pod CIDRs yet; check that it is running \
                 with the pod network enabled, or set ipam.ranges",
                place.display()
            ),
        )
    })?;
    let node: NodeFile = serde_json::from_slice(&text)
        .map_err(|error| CniError::new(Code::Io, format!("{}: {error}", place.display())))?;
    if node.pod_cidrs.is_empty() {
        let text = format!("{}: this node has no pod CIDR yet", place.display());
        return Err(CniError::new(Code::TryAgainLater, text));
    }
    Ok(node)
}
