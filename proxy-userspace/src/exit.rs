//! Why a command ended, and with which status.

use std::path::PathBuf;

use sluice_sys::netlink::NetlinkError;
use sluice_sys::node_lock::{Holder, NodeLockError};

use crate::config::ConfigError;
use crate::http::server::ServeError;
use crate::network::InstallError;
use crate::service::backend::BackendError;
use crate::watch::kubernetes::KubernetesError;
use crate::watch::manifests::ManifestsError;

/// Why the daemon ended or could not start, or another command failed.
#[derive(Debug, thiserror::Error)]
pub enum ExitError {
    /// Wrong configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The process lacks a capability.
    #[error(
        "missing capability CAP_NET_ADMIN: run as root, or give the container securityContext.capabilities.add: [NET_ADMIN]"
    )]
    Capability,
    /// The kernel lacks something.
    #[error(
        "the kernel refuses what the nftables backend needs: {0}. It needs Linux 5.13 or later with nf_tables, \
         nf_nat, nf_conntrack and the expressions numgen, fib_inet, masq, reject_inet \
         (modules nf_tables nft_numgen nft_fib_inet nft_masq nft_reject_inet nft_nat nft_ct)"
    )]
    Kernel(#[source] NetlinkError),
    /// The backend cannot be used.
    #[error(transparent)]
    Backend(BackendError),
    /// Sysctls cannot be written.
    #[error(
        "the node could not be prepared: run this privileged, in a container with securityContext.privileged: true:\n  {}",
        .0.join("\n  ")
    )]
    Sysctls(Vec<String>),
    /// The manifest directory cannot be used.
    #[error(transparent)]
    Manifests(#[from] ManifestsError),
    /// The Kubernetes API cannot be used.
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    /// There is no CNI plugin to install.
    #[error("{0}; give its path as sluice.podNetwork.cni.plugin")]
    Plugin(#[from] InstallError),
    /// A listener could not bind, and bindAddressHardFail is set.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Another daemon is at work, or the lock cannot be had.
    #[error(transparent)]
    NotAlone(#[from] NodeLockError),
    /// A daemon is at work on what is to be removed.
    #[error(
        "nothing was removed, because a daemon is running in this network namespace: {0}. Stop it first; \
         sluice cleanup --force breaks its connections"
    )]
    BesideDaemon(Holder),
    /// A signal came before all was done.
    #[error("ended by {0} before everything was done")]
    Interrupted(&'static str),
    /// Something could not be removed.
    #[error("not everything could be removed:\n  {}", .0.join("\n  "))]
    Cleanup(Vec<String>),
    /// The configuration file changed, which a restart takes up.
    #[error("configuration file {} changed: exiting, so that a restart applies the new configuration; rules stay in force", .0.display())]
    ConfigChanged(PathBuf),
    /// detectLocalMode is NodeCIDR, but the Node has none.
    #[error(
        "detectLocalMode is NodeCIDR, but Node {0} got no podCIDRs within five minutes; let \
         kube-controller-manager allocate them, or set another detectLocalMode"
    )]
    NoPodCidrs(String),
    /// A part that runs as long as the process has ended.
    #[error("the {0} ended, which is a bug in sluice; restart it")]
    Ended(&'static str),
    /// A system call failed.
    #[error("{operation}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

impl ExitError {
    /// The exit code, as `sluice --help` lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            ExitError::Config(ConfigError::Read { .. } | ConfigError::Write { .. }) => 3,
            ExitError::Config(_) => 2,
            ExitError::Capability
            | ExitError::Kernel(_)
            | ExitError::Backend(_)
            | ExitError::Sysctls(_)
            | ExitError::Manifests(_)
            | ExitError::Plugin(_)
            | ExitError::NotAlone(_)
            | ExitError::BesideDaemon(_)
            | ExitError::Kubernetes(_) => 3,
            ExitError::Serve(_)
            | ExitError::Ended(_)
            | ExitError::Interrupted(_)
            | ExitError::Cleanup(_)
            | ExitError::ConfigChanged(_)
            | ExitError::NoPodCidrs(_)
            | ExitError::System { .. } => 1,
        }
    }
}
