//! What the pod network has in the kernel, for commands that show or remove it without a daemon.

use serde::Serialize;
use sluice_core::net::Family;
use sluice_core::pod_network::{KernelState, PORTS_TABLE, TABLE, Tunnel};
use sluice_sys::netlink::NetlinkError;
use sluice_sys::nft::Nft;

use super::kernel::{self, KernelError, device_name};
use super::localnet::{self, LocalnetError};
use super::ports;

/// A VXLAN device.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SeenTunnel {
    pub(crate) name: &'static str,
    pub(crate) vni: u32,
    pub(crate) port: u16,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) peers: usize,
}

/// Why the pod network could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Of the device or the routes.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Packets from loopback can still leave to pods.
    #[error(transparent)]
    Localnet(#[from] LocalnetError),
    /// Of the rules.
    #[error("table {TABLE}: {0}")]
    Rules(#[from] NetlinkError),
    /// A system call failed.
    #[error("open a route netlink socket: {0}")]
    Open(#[from] std::io::Error),
}

/// Why it cannot be said what there is.
#[derive(Debug, thiserror::Error)]
pub enum SeenError {
    /// The kernel does not tell.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A system call failed.
    #[error("open a route netlink socket: {0}")]
    Open(#[from] std::io::Error),
}

/// The VXLAN devices, and how many routes there are; no right is needed.
pub(crate) fn seen() -> Result<(Vec<SeenTunnel>, usize), SeenError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let state = runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok::<KernelState, SeenError>(kernel::observe(&handle).await?.state)
    })?;
    let device = |(family, tunnel): (&Family, &Tunnel)| SeenTunnel {
        name: device_name(*family),
        vni: tunnel.device.vni,
        port: tunnel.device.port,
        mtu: tunnel.device.mtu,
        up: tunnel.up,
        peers: tunnel.forwarding.len(),
    };
    Ok((state.tunnels.iter().map(device).collect(), state.routes.len()))
}

/// Removes rules, routes and the VXLAN devices. Pods keep their links and addresses. Returns
/// whether there was anything.
pub fn remove() -> Result<bool, RemoveError> {
    // As long as the rules are there that drop what comes in by it.
    localnet::close()?;
    let mut nft = Nft::open()?;
    let had_rules = nft.delete(&TABLE)?;
    let had_ports = match nft.delete(&PORTS_TABLE) {
        Err(error) if ports::lacks_family(&error) => false,
        other => other?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let had_device = runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok::<bool, RemoveError>(kernel::remove(&handle).await?)
    })?;
    Ok(had_rules || had_ports || had_device)
}
