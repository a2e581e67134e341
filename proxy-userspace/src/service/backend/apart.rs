//! Committing what the kernel takes when it refuses something of a single Service.

use std::collections::BTreeSet;
use std::sync::Arc;

use sluice_core::lang::nftables::Op;
use sluice_core::model::ObjectName;
use sluice_core::nft::Ledger;
use sluice_core::nft::quarantine::{self, Failure, Outcome};
use sluice_core::plan::ServicePlan;
use sluice_sys::netlink::NetlinkError;
use sluice_sys::nft::Nft;

use super::Applied;
use crate::http::health::Progress;

/// What a full pass has to know besides the plans, lest one Service keep the others from the
/// kernel.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Plans of before that may still be in force.
    pub before: Vec<Arc<ServicePlan>>,
    /// Services of which something was refused.
    pub suspects: BTreeSet<ObjectName>,
}

/// Services of which the kernel refuses something, and its answer.
pub type Refused = quarantine::Refused<String>;

/// What a full pass did, and what it could not do.
#[derive(Debug, Default)]
pub struct Done {
    /// What was done.
    pub applied: Applied,
    /// What was refused; all else is in force.
    pub refused: Vec<Refused>,
}

impl From<Applied> for Done {
    fn from(applied: Applied) -> Self {
        Done { applied, refused: Vec::new() }
    }
}

/// Whether the kernel refuses what was asked for, and not because the table is another one than was
/// read: then somebody has changed it since, and it has to be read again.
pub(super) fn is_refusal(error: &NetlinkError) -> bool {
    let is_of_another_table = matches!(error.errno(), Some(libc::ENOENT | libc::EEXIST));
    matches!(error, NetlinkError::Refused { .. }) && !is_of_another_table
}

/// Commits operations that the ledger's reconciliation gave. Those that are refused of single
/// Services are left out.
pub(super) fn commit_apart(
    nft: &mut Nft,
    ledger: &Ledger,
    ops: Vec<Op>,
    plans: &[Arc<ServicePlan>],
    known: &Known,
    progress: &Progress,
) -> Result<Done, NetlinkError> {
    // What is refused makes other things missing.
    let (mut applied, mut lacks) = (Applied::default(), false);
    let parted = ledger.part(ops, plans, &known.before);
    let outcome = parted.commit(&known.suspects, |ops| {
        let answer = super::nftables::commit(nft, ops, progress);
        applied += answer.map_err(|error| {
            lacks |= is_refusal(&error);
            match error {
                NetlinkError::Refused { .. } if lacks => Failure::Refused(error),
                _ => Failure::Unknown(error),
            }
        })?;
        Ok(())
    })?;
    let told = |refused: quarantine::Refused<NetlinkError>| Refused {
        services: refused.services,
        why: refused.why.to_string(),
    };
    match outcome {
        Outcome::Done(refused) => Ok(Done { applied, refused: refused.into_iter().map(told).collect() }),
        Outcome::GaveUp(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_another_table_reads_it_again() {
        let refused = |errno| NetlinkError::Refused {
            operation: String::new(),
            source: std::io::Error::from_raw_os_error(errno),
            detail: None,
        };
        assert!([libc::ENOMEM, libc::EINVAL, libc::ENFILE, libc::ENOSPC].map(refused).iter().all(is_refusal));
        assert!(![libc::ENOENT, libc::EEXIST].map(refused).iter().any(is_refusal));
        assert!(!is_refusal(&NetlinkError::Lost { operation: "" }));
    }
}
