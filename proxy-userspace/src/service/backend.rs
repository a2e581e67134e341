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
use crate::http::health::Progress;
use crate::service::facts::NodeFacts;

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

/// What drives the kernel from plans. What a backend has no use for, it leaves as it is here.
pub trait Backend: Send {
    /// Tells from now on how far long passes get.
    fn report_to(&mut self, progress: Progress);

    /// Makes the kernel hold what the plans say, whatever it holds. What is refused of single
    /// Services is told, and keeps nothing else from being done.
    fn full(
        &mut self,
        settings: &Settings,
        facts: &NodeFacts,
        plans: &[Arc<ServicePlan>],
        known: &Known,
    ) -> Result<Done, BackendError>;

    /// Applies changed plans.
    fn change(&mut self, changes: &[PlanChange]) -> Result<Applied, BackendError>;

    /// Applies changed plans that others need not wait for, or begins to: the rest is done by
    /// [`Backend::go_on`]. What is changed meanwhile is of other Services and frontends.
    fn begin(&mut self, changes: &[PlanChange]) -> Result<Applied, BackendError> {
        self.change(changes)
    }

    /// Whether some of what was begun is not done.
    fn has_more(&self) -> bool {
        false
    }

    /// Goes on with what was begun. A full pass does all of it.
    fn go_on(&mut self) -> Result<Applied, BackendError> {
        Ok(Applied::default())
    }

    /// Applies a changed node: its addresses, networks and interfaces. `None`: only a full pass
    /// can.
    fn set_node(&mut self, settings: &Settings, facts: &NodeFacts) -> Result<Option<Applied>, BackendError>;

    /// Whether something waits to be deleted.
    fn has_garbage(&self) -> bool {
        false
    }

    /// Deletes what nobody needs.
    fn collect_garbage(&mut self) -> Result<Applied, BackendError> {
        Ok(Applied::default())
    }

    /// What [`Backend::check`] looks at that nobody else tells.
    fn checks(&self) -> Checks {
        Checks::Nothing
    }

    /// Looks for what others did.
    fn check(&mut self) -> Result<Checked, BackendError> {
        Ok(Checked::Repaired(0))
    }

    /// Whether the kernel does with packets what is written, as far as is known: programs may be
    /// detached, rules cannot.
    fn is_attached(&self) -> bool {
        true
    }

    /// How often all of it is compared with the kernel, if oftener than usual.
    fn audit_period(&self, settings: &Settings) -> Option<Duration> {
        let _ = settings;
        None
    }

    /// The netlink port by which notices of our own changes are known.
    fn port(&self) -> Option<u32> {
        None
    }

    /// How full the maps are that the backend fills.
    fn usage(&self) -> Vec<(&'static str, Usage)> {
        Vec::new()
    }
}

/// What has to be looked at from time to time, because nobody tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checks {
    /// Nothing.
    Nothing,
    /// What all Services rest on.
    Foundations,
    /// That, and what is there for each Service.
    Services,
}

/// The eBPF programs' maps, and what ends their flows, for others than the backend.
pub struct Programs {
    /// The maps.
    pub maps: Maps,
    /// What ends flows.
    pub ender: Ender,
}

/// A backend that has written nothing yet.
pub struct Opened {
    /// The backend.
    pub backend: Box<dyn Backend>,
    /// In mode ebpf.
    pub programs: Option<Programs>,
}

/// Opens the backend of the settings.
pub fn open(settings: &Settings, facts: &NodeFacts) -> Result<Opened, BackendError> {
    Ok(match settings.backend {
        BackendKind::Ebpf => {
            let backend = ebpf::EbpfBackend::open(settings, facts)?;
            let programs = Programs { maps: backend.maps(), ender: backend.ender()? };
            Opened { backend: Box::new(backend), programs: Some(programs) }
        }
        BackendKind::Ipvs => {
            Opened { backend: Box::new(ipvs::IpvsBackend::open(settings, facts)?), programs: None }
        }
        BackendKind::Nftables | BackendKind::Auto => {
            let backend = nftables::NftablesBackend::open(settings, facts)?;
            Opened { backend: Box::new(backend), programs: None }
        }
    })
}
