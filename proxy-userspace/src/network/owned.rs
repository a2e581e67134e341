//! What the pod network leaves in the kernel and on the disk, for commands that show or remove it
//! without a daemon.

use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

use serde::Serialize;
use sluice_core::net::Family;
use sluice_core::pod_network::{KernelState, PORTS_TABLE, TABLE, Tunnel};
use sluice_sys::netlink::NetlinkError;
use sluice_sys::nft::Nft;

use super::kernel::{self, KernelError, device_name};
use super::localnet::{self, LocalnetError};
use super::ports;
use super::uninstall::{left, withdraw_node};
use crate::feature::{NotRemoved, Owned, Places, Reason, Removal, Section, Seen, Turn, Unseen, has_table};

/// All of it.
pub(crate) fn owned(places: &Places) -> Vec<Box<dyn Owned>> {
    let settings = NodeSettings { run_dir: places.run_dir.clone() };
    vec![Box::new(settings), Box::new(InKernel), Box::new(RuntimeFiles)]
}

/// What the CNI plugin is told of the node.
struct NodeSettings {
    run_dir: PathBuf,
}

impl Owned for NodeSettings {
    fn name(&self) -> String {
        "the node settings for the CNI plugin".to_owned()
    }

    /// No pod starts into a network that is going.
    fn turn(&self) -> Turn {
        Turn::Entrance
    }

    fn remove(&self, _force: bool) -> Result<Removal, NotRemoved> {
        let files = withdraw_node(&self.run_dir)?;
        let line = |path: &PathBuf| format!("{}: the CNI plugin no longer starts pods", path.display());
        Ok(Removal::Gone(files.iter().map(line).collect()))
    }
}

/// Tables, devices and routes.
struct InKernel;

impl Owned for InKernel {
    fn name(&self) -> String {
        "the pod network".to_owned()
    }

    fn turn(&self) -> Turn {
        Turn::Kernel
    }

    fn observe(&self) -> Seen {
        let mut unseen = Vec::new();
        let table = has_table(&TABLE).map(Some).map_err(Reason::from);
        let table = Unseen::note("pod network's table", table, &mut unseen);
        let found = seen().map(Some).map_err(|error| Reason::Other(error.to_string()));
        let (devices, routes) = Unseen::note("pod network", found, &mut unseen).unwrap_or_default();
        let ports_table = Unseen::note("pods' ports", ports_table(), &mut unseen).unwrap_or_default();
        let is_there = table == Some(true) || ports_table || !devices.is_empty() || routes > 0;
        let found = PodNetwork { devices, routes, table, ports_table };
        let section = is_there.then(|| Section::new("podNetwork", &found));
        Seen { section, unseen }
    }

    fn remove(&self, _force: bool) -> Result<Removal, NotRemoved> {
        Ok(match remove()? {
            true => {
                let what = format!("the pod network: table {TABLE}, VXLAN devices, routes");
                Removal::Gone(vec![what])
            }
            false => Removal::Nothing("there is no pod network".to_owned()),
        })
    }
}

/// The plugin, its configuration, and who has which address.
struct RuntimeFiles;

impl Owned for RuntimeFiles {
    fn name(&self) -> String {
        "files for container runtimes".to_owned()
    }

    fn turn(&self) -> Turn {
        Turn::Files
    }

    fn remove(&self, _force: bool) -> Result<Removal, NotRemoved> {
        let left: Vec<String> = left().iter().map(|path| path.display().to_string()).collect();
        if left.is_empty() {
            return Ok(Removal::Gone(Vec::new()));
        }
        let left = left.join(" ");
        Ok(Removal::Kept(format!(
            "because the deletion of pods still needs these files: {left}\n\
             when no pod has an address of this network, or another network has taken over, run: rm -r {left}"
        )))
    }
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodNetwork {
    devices: Vec<SeenTunnel>,
    /// To the pods of other nodes.
    routes: usize,
    /// Whether its table is there, if that could be looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<bool>,
    /// Whether the table of bridges is there, which only pod networks with a bridge have.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ports_table: bool,
}

/// Whether the table of bridges is there; without a right, the other table says so.
fn ports_table() -> Result<Option<bool>, Reason> {
    match has_table(&PORTS_TABLE) {
        Err(error) if ports::lacks_family(&error) || error.errno() == Some(libc::EPERM) => Ok(None),
        other => Ok(other.map(Some)?),
    }
}

/// A VXLAN device.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SeenTunnel {
    name: &'static str,
    vni: u32,
    port: u16,
    mtu: u32,
    up: bool,
    peers: usize,
}

/// Why the pod network could not be removed.
#[derive(Debug, thiserror::Error)]
enum RemoveError {
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
enum SeenError {
    /// The kernel does not tell.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A system call failed.
    #[error("open a route netlink socket: {0}")]
    Open(#[from] std::io::Error),
}

/// The VXLAN devices, and how many routes there are; no right is needed.
fn seen() -> Result<(Vec<SeenTunnel>, usize), SeenError> {
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
fn remove() -> Result<bool, RemoveError> {
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

impl Display for PodNetwork {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "pod network: {} routes to pods of other nodes (ip route show proto 92)", self.routes)?;
        match self.table {
            Some(true) => writeln!(f, "  table {TABLE} (nft list table {TABLE})")?,
            Some(false) => writeln!(f, "  there is no table {TABLE}: no masquerading, no host ports")?,
            None => {}
        }
        if self.ports_table {
            writeln!(f, "  table {PORTS_TABLE} (nft list table {PORTS_TABLE})")?;
        }
        for SeenTunnel { name, vni, port, mtu, up, peers } in &self.devices {
            let state = if *up { "up" } else { "down" };
            writeln!(
                f,
                "  device {name}: {state}, VNI {vni}, UDP port {port}, MTU {mtu}, tunnels to {peers} nodes"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_say_the_same() {
        let device = SeenTunnel { name: "sluice-vxlan0", vni: 1, port: 4789, mtu: 1450, up: true, peers: 4 };
        let network = PodNetwork { devices: vec![device], routes: 4, table: Some(true), ports_table: true };
        let Section { value, text, .. } = Section::new("podNetwork", &network);
        for line in [
            "pod network: 4 routes",
            "table inet sluice-pods",
            "table bridge sluice-pods",
            "sluice-vxlan0: up, VNI 1, UDP port 4789, MTU 1450, tunnels to 4 nodes",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert_eq!(value["devices"][0]["name"], "sluice-vxlan0");
    }
}
