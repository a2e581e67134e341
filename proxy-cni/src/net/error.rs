//! What goes wrong with a pod's network.

use std::io;
use std::path::PathBuf;

use sluice_link::NetlinkError;
use sluice_link::sysctl::ProcError;

/// Why the network could not be changed, or looked at.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel refused, or the conversation failed.
    #[error("cannot {0}")]
    Netlink(#[from] NetlinkError),
    /// There is no such network namespace, or it cannot be entered.
    #[error("network namespace {}: {source}", .path.display())]
    Namespace {
        /// The runtime's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The pod has such an interface already.
    #[error("interface {interface} already exists in {}", .namespace.display())]
    Exists {
        /// Its name.
        interface: String,
        /// Where.
        namespace: PathBuf,
    },
    /// The runtime named the node's own namespace: the node would lose its network.
    #[error("network namespace {} is the node's own", .0.display())]
    OwnNamespace(PathBuf),
    /// What should be the bridge is something else.
    #[error("interface {0} is not a bridge: set bridge to another name")]
    NoBridge(String),
    /// A link vanished while it was being set up.
    #[error("interface {0} was deleted during its setup")]
    Gone(String),
    /// A sysctl could not be written.
    #[error("cannot {0}")]
    Sysctl(#[from] ProcError),
    /// A thread in the pod's namespace failed.
    #[error("a thread in the pod's network namespace failed")]
    Thread,
}
