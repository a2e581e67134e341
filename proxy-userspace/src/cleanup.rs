//! Removes what is ours, and what kube-proxy left, from the kernel.

mod kube_proxy;
mod legacy;
mod names;
mod plan;
mod virtual_servers;

pub(crate) use names::INTERFACE as KUBE_PROXY_LINK;
pub(crate) use virtual_servers::delete_idle;

use std::path::{Path, PathBuf};

use sluice_core::pod_network::TABLE;
use sluice_sys::bpf::Directory;
use sluice_sys::nft::Nft;
use tracing::{info, warn};

use crate::backend::ipvs::LINK;
use crate::backend::{BackendError, ebpf};
use crate::daemon::DaemonError;
use crate::pod_network::{self, RemoveError};

/// Something that was found in the kernel, and whether it could be removed.
#[derive(Debug)]
pub(crate) struct Step {
    /// What was found.
    what: String,
    /// Whether it is gone.
    result: Result<(), StepError>,
}

/// Why something is still there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    /// The kernel refused, or could not be asked.
    #[error(transparent)]
    Netlink(#[from] sluice_sys::netlink::NetlinkError),
    /// An interface is not what its name says, or could not be asked for.
    #[error(transparent)]
    Link(#[from] sluice_sys::dummy::LinkError),
    /// Virtual servers could not be deleted.
    #[error(transparent)]
    Batch(#[from] sluice_sys::netlink::BatchError<sluice_core::ipvs::Op>),
    /// The eBPF programs, or what they need, are still there.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The pod network is still there.
    #[error(transparent)]
    PodNetwork(#[from] RemoveError),
    /// A system call failed.
    #[error(transparent)]
    System(#[from] std::io::Error),
    /// A program failed.
    #[error("{program}: {message}")]
    Program {
        /// The program.
        program: String,
        /// What it said.
        message: String,
    },
    /// No program is there that can do it.
    #[error("nothing leads to them any more, but no program here can delete them; on the node, run: {0}")]
    NoProgram(String),
}

/// Where the eBPF backend keeps its maps and programs, unless something else is said.
pub fn usual_bpffs() -> PathBuf {
    std::env::var_os("SLUICE_BPFFS").map_or_else(|| crate::config::BPFFS.into(), PathBuf::from)
}

/// `sluice cleanup`: removes our table, our eBPF programs and maps and, when asked, kube-proxy's leftovers. A step that
/// fails is told, and the others still run.
pub fn cleanup(with_kube_proxy: bool, bpffs: &Path) -> Result<(), DaemonError> {
    let ours = Nft::open().and_then(|mut nft| nft.delete_table());
    let mut steps = Vec::new();
    match ours {
        Ok(true) => println!("removed table inet sluice"),
        Ok(false) => println!("nothing to remove: there is no table inet sluice"),
        Err(error) if error.errno() == Some(libc::EPERM) => return Err(DaemonError::Capability),
        Err(error) => steps.push(Step { what: "table inet sluice".into(), result: Err(error.into()) }),
    }
    match virtual_servers::remove(&[LINK]) {
        Ok(false) => println!("nothing to remove: there is no interface {LINK}"),
        Ok(true) => println!("removed interface {LINK} and its virtual servers"),
        Err(error) => steps.push(Step { what: "virtual servers".into(), result: Err(error) }),
    }
    match pod_network::remove() {
        Ok(false) => println!("nothing to remove: there is no pod network"),
        Ok(true) => {
            println!("removed the pod network: table inet {TABLE}, VXLAN devices, routes")
        }
        Err(error) => steps.push(Step { what: "the pod network".into(), result: Err(error.into()) }),
    }
    let what = format!("eBPF programs and maps in {}", bpffs.display());
    match ebpf::remove(&Directory::new(bpffs)) {
        Ok(true) => println!("removed {what}"),
        Ok(false) => println!("nothing to remove: there are no {what}"),
        Err(BackendError::Bpf(error)) if error.errno() == Some(libc::EPERM) => {
            return Err(DaemonError::Capability);
        }
        Err(error) => steps.push(Step { what, result: Err(error.into()) }),
    }
    if with_kube_proxy {
        let found = kube_proxy::remove(kube_proxy::Servers::Removed);
        if found.is_empty() {
            println!("nothing to remove: kube-proxy left nothing");
        }
        steps.extend(found);
    }
    let mut failures = Vec::new();
    for Step { what, result } in steps {
        match result {
            Ok(()) => println!("removed {what}"),
            Err(error) => failures.push(format!("{what}: {error}")),
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(DaemonError::Cleanup(failures)) }
}

/// Removes kube-proxy's leftovers when the daemon has taken over from it, except those of IPVS that connections may still
/// need: with `adopts`, virtual servers are this daemon's from now on; without, they are drained.
pub fn take_over(adopts: bool) {
    let servers = if adopts { kube_proxy::Servers::Adopted } else { kube_proxy::Servers::Left };
    for Step { what, result } in kube_proxy::remove(servers) {
        match result {
            Ok(()) => info!("removed what kube-proxy left: {what}"),
            Err(error) => warn!(%error, "cannot remove what kube-proxy left: {what}"),
        }
    }
}
