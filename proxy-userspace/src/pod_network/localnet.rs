//! Lets packets from the node's loopback addresses leave to pods that have ports of the node there.
//!
//! What comes from outside with such an address is dropped by the table of the pod network, which has to be there before.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use sluice_cni::net::{self, NetError};
use sluice_cni::spec::BRIDGE;
use sluice_sys::proc::{self, ProcError};

/// Why ports of the node do not answer on loopback.
#[derive(Debug, thiserror::Error)]
pub enum LocalnetError {
    /// Links cannot be asked for.
    #[error("cannot look for the links of pods with ports of the node: {0}")]
    Links(#[from] NetError),
    /// A sysctl cannot be written.
    #[error("cannot let ports of the node answer to 127.0.0.1: {0}")]
    Sysctl(#[from] ProcError),
}

/// Whether the way can be opened at all: a container that is not privileged cannot write to /proc/sys.
pub(super) fn can_open() -> std::io::Result<()> {
    OpenOptions::new().write(true).open(path("default")).map(drop)
}

/// Opens the way to pods, given by the names of their links. Returns those whose link is not there yet.
pub(super) fn open(pods: &BTreeSet<String>) -> Result<BTreeSet<String>, LocalnetError> {
    if pods.is_empty() {
        return Ok(BTreeSet::new());
    }
    let ways = net::ways_out(pods)?;
    for interface in ways.values().collect::<BTreeSet<_>>() {
        set(interface, "1")?;
    }
    Ok(pods.iter().filter(|pod| !ways.contains_key(*pod)).cloned().collect())
}

/// Closes the ways to all pods: nothing drops what comes from outside any more.
pub(super) fn close() -> Result<(), LocalnetError> {
    let pods = net::link_names()?.into_iter().filter(|name| net::is_host_name(name)).collect();
    // A bridge of ours may be without pods.
    let bridge = [BRIDGE.to_owned()];
    for interface in net::ways_out(&pods)?.into_values().chain(pods).chain(bridge).collect::<BTreeSet<_>>() {
        set(&interface, "0")?;
    }
    Ok(())
}

/// An interface that has gone has no way to be opened or closed. Its name may have a dot.
fn set(interface: &str, value: &str) -> Result<(), LocalnetError> {
    match proc::write_if_different(path(interface), value) {
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => Ok(other.map(drop)?),
    }
}

fn path(interface: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv4/conf").join(interface).join("route_localnet")
}
