//! Backends: each drives one kernel container from plans, and touches nothing outside of it.

mod apart;
pub mod ebpf;
pub mod ipvs;
pub mod nftables;

use std::sync::Arc;
use std::time::Duration;

use sluice_core::ipvs::Op;
use sluice_core::plan::{PlanChange, ServicePlan};
use sluice_link::sysctl::ProcError;
use sluice_sys::bpf::{BpfError, Ender, Maps, Missing, Usage};
use sluice_sys::dummy::LinkError;
use sluice_sys::ipvs::IpvsError;
use sluice_sys::lo::LoError;
use sluice_sys::netlink::{BatchError, NetlinkError};

pub use apart::{Done, Known, Refused};

use crate::config::{BackendKind, Settings};
use crate::health::Progress;
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
    /// The interface `lo` refused its settings.
    #[error("settings for datagrams larger than the path MTU: {0}")]
    Lo(#[from] LoError),
    /// IPVS refused, or could not be asked.
    #[error("IPVS: {0}")]
    Ipvs(#[from] IpvsError),
    /// The dummy link could not be looked for, or made.
    #[error("IPVS: {0}")]
    Link(#[from] LinkError),
    /// The IPVS backend cannot run here.
    #[error("the IPVS backend cannot run here:\n  {}", .0.join("\n  "))]
    NoIpvs(Vec<String>),
    /// A sysctl that IPVS needs cannot be set.
    #[error("IPVS: {0}")]
    Sysctl(#[from] ProcError),
    /// IPVS or the dummy link refused operations.
    #[error("IPVS: {0}")]
    Batch(#[from] BatchError<Op>),
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

/// What a look for the work of others found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// So much had to be repaired, and is.
    Repaired(usize),
    /// Something differs, which a full pass has to repair.
    Differs,
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
    /// IP virtual servers, and maps of nf_tables for what those cannot tell.
    Ipvs(Box<ipvs::Backend>),
}

impl Backend {
    /// A backend that has written nothing yet.
    pub fn open(settings: &Settings, facts: &NodeFacts) -> Result<Self, BackendError> {
        Ok(match settings.backend {
            BackendKind::Ebpf => Backend::Ebpf(Box::new(ebpf::Backend::open(settings, facts)?)),
            BackendKind::Ipvs => Backend::Ipvs(Box::new(ipvs::Backend::open(settings, facts)?)),
            BackendKind::Nftables | BackendKind::Auto => {
                let (config, view) = (node::nft_config(settings, facts), node::node_view(settings, facts));
                Backend::Nftables(Box::new(nftables::Backend::open(config, view)?))
            }
        })
    }

    /// Tells how far long passes get.
    pub fn report_to(&mut self, progress: Progress) {
        match self {
            Backend::Nftables(backend) => backend.progress = progress,
            Backend::Ebpf(backend) => backend.progress = progress,
            Backend::Ipvs(backend) => backend.progress = progress,
        }
    }

    /// Makes the kernel hold what the plans say, whatever it holds. What is refused of single
    /// Services is told, and keeps nothing else from being done.
    pub fn full(
        &mut self,
        settings: &Settings,
        facts: &NodeFacts,
        plans: &[Arc<ServicePlan>],
        known: &Known,
    ) -> Result<Done, BackendError> {
        Ok(match self {
            Backend::Nftables(backend) => {
                let (config, view) = (node::nft_config(settings, facts), node::node_view(settings, facts));
                backend.full(config, view, plans, known)?
            }
            Backend::Ebpf(backend) => backend.full(settings, facts, plans, known)?,
            Backend::Ipvs(backend) => backend.full(settings, facts, plans, known)?,
        })
    }

    /// Applies changed plans.
    pub fn change(&mut self, changes: &[PlanChange]) -> Result<Applied, BackendError> {
        Ok(match self {
            Backend::Nftables(backend) => backend.change(changes)?,
            Backend::Ebpf(backend) => backend.change(changes)?,
            Backend::Ipvs(backend) => backend.change(changes)?,
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
            Backend::Ipvs(backend) => backend.set_node(settings, facts),
        }
    }

    /// Whether something waits to be deleted.
    pub fn has_garbage(&self) -> bool {
        match self {
            Backend::Nftables(backend) => backend.has_garbage(),
            Backend::Ebpf(_) => false,
            Backend::Ipvs(backend) => backend.has_garbage(),
        }
    }

    /// Deletes what nobody needs.
    pub fn collect_garbage(&mut self) -> Result<Applied, BackendError> {
        match self {
            Backend::Nftables(backend) => Ok(backend.collect_garbage()?),
            Backend::Ebpf(_) => Ok(Applied::default()),
            Backend::Ipvs(backend) => backend.collect_garbage(),
        }
    }

    /// Whether [`Backend::check`] finds anything that nobody else tells.
    pub fn wants_checks(&self) -> bool {
        matches!(self, Backend::Ebpf(_) | Backend::Ipvs(_))
    }

    /// Whether [`Backend::check`] looks at what is there for Services, and not only at what all of
    /// them rest on.
    pub fn checks_services(&self) -> bool {
        matches!(self, Backend::Ipvs(_))
    }

    /// Whether the kernel does with packets what is written, as far as is known: programs may be
    /// detached, rules cannot.
    pub fn is_attached(&self) -> bool {
        match self {
            Backend::Nftables(_) | Backend::Ipvs(_) => true,
            Backend::Ebpf(backend) => backend.is_attached(),
        }
    }

    /// How often all of it is compared with the kernel, if oftener than usual: nobody tells of
    /// changes of destinations.
    pub fn audit_period(&self, settings: &Settings) -> Option<Duration> {
        matches!(self, Backend::Ipvs(_)).then_some(settings.sync_period)
    }

    /// Looks for what others did.
    pub fn check(&mut self) -> Result<Checked, BackendError> {
        match self {
            Backend::Nftables(_) => Ok(Checked::Repaired(0)),
            Backend::Ebpf(backend) => Ok(Checked::Repaired(backend.check()?)),
            Backend::Ipvs(backend) => {
                Ok(if backend.agrees()? { Checked::Repaired(0) } else { Checked::Differs })
            }
        }
    }

    /// The netlink port by which notices of our own changes are known.
    pub fn port(&self) -> Option<u32> {
        match self {
            Backend::Nftables(backend) => Some(backend.port()),
            Backend::Ebpf(_) => None,
            Backend::Ipvs(backend) => Some(backend.port()),
        }
    }

    /// How full the maps are that the backend fills.
    pub fn usage(&self) -> Vec<(&'static str, Usage)> {
        match self {
            Backend::Nftables(_) | Backend::Ipvs(_) => Vec::new(),
            Backend::Ebpf(backend) => backend.usage(),
        }
    }

    /// The maps of the eBPF backend.
    pub fn maps(&self) -> Option<Maps> {
        match self {
            Backend::Nftables(_) | Backend::Ipvs(_) => None,
            Backend::Ebpf(backend) => Some(backend.maps()),
        }
    }

    /// What ends flows of the eBPF backend.
    pub fn ender(&self) -> Result<Option<Ender>, BackendError> {
        match self {
            Backend::Nftables(_) | Backend::Ipvs(_) => Ok(None),
            Backend::Ebpf(backend) => Ok(Some(backend.ender()?)),
        }
    }
}
