//! Backends: each drives one kernel container from plans, and touches nothing outside of it.

pub mod ebpf;
pub mod nftables;

use std::sync::Arc;

use sluice_core::plan::{PlanChange, ServicePlan};
use sluice_sys::bpf::{BpfError, Maps, Missing, Usage};
use sluice_sys::netlink::NetlinkError;

use crate::config::{BackendKind, Settings};
use crate::node::{self, NodeFacts};

/// Why a backend failed.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// nf_tables refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// bpf(2) refused.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// Something that the eBPF backend needs is not there.
    #[error("the eBPF backend cannot run here:\n  {}", list(.0))]
    Missing(Vec<Missing>),
    /// The programs are not part of this sluice.
    #[error("this sluice was built without eBPF: use mode nftables")]
    NotBuilt,
}

fn list(missing: &[Missing]) -> String {
    missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ")
}

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Operations committed.
    pub operations: usize,
    /// Transactions committed; of eBPF, calls of the kernel.
    pub transactions: usize,
}

impl std::ops::AddAssign for Applied {
    fn add_assign(&mut self, other: Applied) {
        self.operations += other.operations;
        self.transactions += other.transactions;
    }
}

/// The backend in force.
pub enum Backend {
    /// Maps of nf_tables.
    Nftables(Box<nftables::Backend>),
    /// Programs at sockets and interfaces.
    Ebpf(Box<ebpf::Backend>),
}

impl Backend {
    /// A backend that has written nothing yet.
    pub fn open(settings: &Settings, facts: &NodeFacts) -> Result<Self, BackendError> {
        Ok(match settings.backend {
            BackendKind::Ebpf => Backend::Ebpf(Box::new(ebpf::Backend::open(settings, facts)?)),
            BackendKind::Nftables | BackendKind::Auto => {
                let (config, view) = (node::nft_config(settings, facts), node::node_view(settings, facts));
                Backend::Nftables(Box::new(nftables::Backend::open(config, view)?))
            }
        })
    }

    /// Makes the kernel hold what the plans say, whatever it holds.
    pub fn full(
        &mut self,
        settings: &Settings,
        facts: &NodeFacts,
        plans: &[Arc<ServicePlan>],
    ) -> Result<Applied, BackendError> {
        Ok(match self {
            Backend::Nftables(backend) => {
                backend.full(node::nft_config(settings, facts), node::node_view(settings, facts), plans)?
            }
            Backend::Ebpf(backend) => backend.full(settings, facts, plans)?,
        })
    }

    /// Applies changed plans.
    pub fn change(&mut self, changes: &[PlanChange]) -> Result<Applied, BackendError> {
        Ok(match self {
            Backend::Nftables(backend) => backend.change(changes)?,
            Backend::Ebpf(backend) => backend.change(changes)?,
        })
    }

    /// Applies a changed node. `None`: only a full pass can.
    pub fn set_node(
        &mut self,
        settings: &Settings,
        facts: &NodeFacts,
    ) -> Result<Option<Applied>, BackendError> {
        match self {
            Backend::Nftables(backend) if !backend.has_config(&node::nft_config(settings, facts)) => Ok(None),
            Backend::Nftables(backend) => Ok(Some(backend.set_node(node::node_view(settings, facts))?)),
            Backend::Ebpf(backend) => Ok(Some(backend.set_node(settings, facts)?)),
        }
    }

    /// Whether something waits to be deleted.
    pub fn has_garbage(&self) -> bool {
        match self {
            Backend::Nftables(backend) => backend.has_garbage(),
            Backend::Ebpf(_) => false,
        }
    }

    /// Deletes what nobody needs.
    pub fn collect_garbage(&mut self) -> Result<Applied, BackendError> {
        match self {
            Backend::Nftables(backend) => Ok(backend.collect_garbage()?),
            Backend::Ebpf(_) => Ok(Applied::default()),
        }
    }

    /// Whether [`Backend::check`] finds anything that nobody else tells.
    pub fn wants_checks(&self) -> bool {
        matches!(self, Backend::Ebpf(_))
    }

    /// Looks for what others did; returns how much had to be repaired.
    pub fn check(&mut self) -> Result<usize, BackendError> {
        match self {
            Backend::Nftables(_) => Ok(0),
            Backend::Ebpf(backend) => Ok(backend.check()?),
        }
    }

    /// The netlink port by which notices of our own changes are known.
    pub fn port(&self) -> Option<u32> {
        match self {
            Backend::Nftables(backend) => Some(backend.port()),
            Backend::Ebpf(_) => None,
        }
    }

    /// How full the maps are that the backend fills.
    pub fn usage(&self) -> Vec<(&'static str, Usage)> {
        match self {
            Backend::Nftables(_) => Vec::new(),
            Backend::Ebpf(backend) => backend.usage(),
        }
    }

    /// The maps of the eBPF backend.
    pub fn maps(&self) -> Option<Maps> {
        match self {
            Backend::Nftables(_) => None,
            Backend::Ebpf(backend) => Some(backend.maps()),
        }
    }
}
