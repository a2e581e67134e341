//! Removes what is ours, and what kube-proxy left, from the kernel.

mod kube_proxy;
mod legacy;
mod names;
mod plan;
mod virtual_servers;

pub(crate) use names::INTERFACE as KUBE_PROXY_LINK;
pub(crate) use virtual_servers::delete_idle;

use std::path::PathBuf;

use sluice_core::pod_network::TABLE;
use sluice_sys::bpf::Directory;
use sluice_sys::nft::Nft;
use tracing::{info, warn};

use crate::alone;
use crate::backend::ipvs::LINK;
use crate::backend::{BackendError, ebpf};
use crate::exit::ExitError;
use crate::output::say;
use crate::pod_network::{self, InstallError, RemoveError};

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
    /// The plugin still knows of the node.
    #[error(transparent)]
    Files(#[from] InstallError),
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
    #[error("they are no longer in use, but no program here can delete them; on the node, run: {0}")]
    NoProgram(String),
}

/// What `sluice cleanup` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Removes what kube-proxy left, too.
    pub kube_proxy: bool,
    /// Goes on although a daemon is at work, which will write some of it again.
    pub force: bool,
    /// Where the eBPF backend keeps its maps and programs.
    pub bpffs: PathBuf,
    /// Where the daemon tells the CNI plugin of the node.
    pub run_dir: PathBuf,
}

impl Options {
    /// Those of `--cleanup`, as kube-proxy has it.
    pub fn of_kube_proxy() -> Self {
        let bpffs =
            std::env::var_os("SLUICE_BPFFS").map_or_else(|| crate::config::BPFFS.into(), PathBuf::from);
        Options { kube_proxy: true, force: false, bpffs, run_dir: sluice_cni::spec::RUN.into() }
    }
}

/// `sluice cleanup`: removes our table, our eBPF programs and maps and, when asked, kube-proxy's
/// leftovers. A step that fails is told, and the others still run. Beside a daemon that is at work
/// nothing is removed, unless forced.
pub fn cleanup(options: &Options) -> Result<(), ExitError> {
    let _lock = match alone::take_or_holder() {
        Ok(Ok(lock)) => Some(lock),
        Ok(Err(holder)) if !options.force => return Err(ExitError::BesideDaemon(holder)),
        Ok(Err(_)) => None,
        Err(error) => {
            say(format_args!("cannot find out whether a daemon is running: {error}"));
            None
        }
    };
    let mut steps = Steps::default();
    // First, so that no pod starts into a network that is going.
    match pod_network::withdraw_node(&options.run_dir) {
        Ok(files) => files.iter().for_each(|path| {
            say(format_args!("removed {}: the CNI plugin no longer starts pods", path.display()));
        }),
        Err(error) => steps.failed("the node settings for the CNI plugin", error.into()),
    }
    remove_tables(&mut steps)?;
    remove_programs(options, &mut steps)?;
    if options.kube_proxy {
        let found = kube_proxy::remove(kube_proxy::Servers::Removed);
        if found.is_empty() {
            say("nothing to remove: kube-proxy left nothing");
        }
        for Step { what, result } in found {
            match result {
                Ok(()) => say(format_args!("removed {what}")),
                Err(error) => steps.failed(&what, error),
            }
        }
    }
    tell_of_files();
    if steps.failures.is_empty() { Ok(()) } else { Err(ExitError::Cleanup(steps.failures)) }
}

/// What could not be done.
#[derive(Default)]
struct Steps {
    failures: Vec<String>,
}

impl Steps {
    fn failed(&mut self, what: &str, error: StepError) {
        self.failures.push(format!("{what}: {error}"));
    }
}

/// Our tables, virtual servers, and the devices and routes of the pod network.
fn remove_tables(steps: &mut Steps) -> Result<(), ExitError> {
    match Nft::open().and_then(|mut nft| nft.delete(&sluice_core::nft::TABLE)) {
        Ok(true) => say("removed table inet sluice"),
        Ok(false) => say("nothing to remove: there is no table inet sluice"),
        Err(error) if error.errno() == Some(libc::EPERM) => return Err(ExitError::Capability),
        Err(error) => steps.failed("table inet sluice", error.into()),
    }
    match virtual_servers::remove(&[LINK]) {
        Ok(false) => say(format_args!("nothing to remove: there is no interface {LINK}")),
        Ok(true) => say(format_args!("removed interface {LINK} and its virtual servers")),
        Err(error) => steps.failed("virtual servers", error),
    }
    match pod_network::remove() {
        Ok(false) => say("nothing to remove: there is no pod network"),
        Ok(true) => say(format_args!("removed the pod network: table {TABLE}, VXLAN devices, routes")),
        Err(error) => steps.failed("the pod network", error.into()),
    }
    Ok(())
}

fn remove_programs(options: &Options, steps: &mut Steps) -> Result<(), ExitError> {
    let directory = Directory::new(&options.bpffs);
    let what = format!("eBPF programs and maps in {}", options.bpffs.display());
    let remove = || {
        // A daemon of another network namespace may be at work on it.
        let _lock = if directory.exists() && !options.force { Some(directory.try_lock()?) } else { None };
        ebpf::remove(&directory)
    };
    match remove() {
        Ok(true) => say(format_args!("removed {what}")),
        Ok(false) => say(format_args!("nothing to remove: there are no {what}")),
        Err(BackendError::Bpf(error)) if error.errno() == Some(libc::EPERM) => {
            return Err(ExitError::Capability);
        }
        Err(error) => steps.failed(&what, error.into()),
    }
    Ok(())
}

/// Says what stays on the disk.
fn tell_of_files() {
    let left: Vec<String> = pod_network::left().iter().map(|path| path.display().to_string()).collect();
    if !left.is_empty() {
        let left = left.join(" ");
        say(format_args!(
            "kept, because the deletion of pods still needs these files: {left}\n\
             when no pod has an address of this network, or another network has taken over, run: rm -r {left}"
        ));
    }
}

/// Removes kube-proxy's leftovers when the daemon has taken over from it, except those of IPVS that
/// connections may still need: with `adopts`, virtual servers are this daemon's from now on;
/// without, they are drained.
pub fn take_over(adopts: bool) {
    let servers = if adopts { kube_proxy::Servers::Adopted } else { kube_proxy::Servers::Left };
    for Step { what, result } in kube_proxy::remove(servers) {
        match result {
            Ok(()) => info!("removed what kube-proxy left: {what}"),
            Err(error) => warn!(%error, "cannot remove what kube-proxy left: {what}"),
        }
    }
}
