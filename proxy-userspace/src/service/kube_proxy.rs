//! What kube-proxy leaves in the kernel in any of its modes (reference 7.4): looked for, and
//! removed if there.

mod legacy;
mod names;
mod plan;

use sluice_core::net::Family;
use sluice_sys::dummy::Link;
use sluice_sys::ipset;
use sluice_sys::netlink::uninterrupted;
use sluice_sys::nft::{FAMILIES, Nft};

use tracing::{info, warn};

use crate::node::addresses::KUBE_PROXY_LINK;
use crate::service::virtual_servers::{self, ServersError};
use plan::{TablePlan, plan};

/// How often the ruleset is listed while others change it.
const ATTEMPTS: u32 = 5;

/// Something that was found in the kernel, and whether it could be removed.
#[derive(Debug)]
pub(crate) struct Step {
    /// What was found.
    pub(crate) what: String,
    /// Whether it is gone.
    pub(crate) result: Result<(), StepError>,
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
    Servers(#[from] ServersError),
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

/// What becomes of virtual servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Servers {
    /// They are deleted, with their interface.
    Removed,
    /// They are somebody else's now, so only the interface goes.
    Adopted,
    /// They stay, with their interface.
    Left,
}

/// Removes all of it. Each step is tried, whatever became of those before.
pub(crate) fn remove(servers: Servers) -> Vec<Step> {
    let mut steps = Vec::new();
    collect(&mut steps, "nftables tables of kube-proxy", tables());
    collect(&mut steps, "iptables chains of kube-proxy", chains());
    steps.extend(Family::BOTH.into_iter().filter_map(legacy::remove));
    collect(&mut steps, "IPVS of kube-proxy", interface(servers));
    // Rules use sets, so the rules are gone first.
    collect(&mut steps, "ipsets of kube-proxy", sets());
    steps
}

/// What cannot even be looked for counts as found and not removed.
fn collect(steps: &mut Vec<Step>, what: &str, found: Result<Vec<Step>, StepError>) {
    match found {
        Ok(found) => steps.extend(found),
        Err(error) => steps.push(Step { what: what.to_owned(), result: Err(error) }),
    }
}

fn family_name(family: u8) -> &'static str {
    if family == FAMILIES[0] { "ip" } else { "ip6" }
}

fn tables() -> Result<Vec<Step>, StepError> {
    let mut nft = Nft::open()?;
    let steps = FAMILIES.into_iter().filter_map(|family| {
        let what = format!("table {} {}", family_name(family), names::TABLE);
        match nft.delete_foreign_table(family, names::TABLE) {
            Ok(false) => None,
            Ok(true) => Some(Step { what, result: Ok(()) }),
            Err(error) => Some(Step { what, result: Err(error.into()) }),
        }
    });
    Ok(steps.collect())
}

fn chains() -> Result<Vec<Step>, StepError> {
    let mut nft = Nft::open()?;
    let chains = uninterrupted(ATTEMPTS, || nft.foreign_chains())?;
    let jumps = uninterrupted(ATTEMPTS, || nft.foreign_jumps())?;
    let steps =
        plan(&chains, &jumps).into_iter().map(|((family, table), TablePlan { removals, gone, kept })| {
            let mut what = format!("{gone} iptables chains in table {} {table}", family_name(family));
            if !kept.is_empty() {
                let kept: Vec<String> = kept.into_iter().collect();
                what +=
                    &format!(" (kept, because rules of other programs jump to them: {})", kept.join(", "));
            }
            Step { what, result: nft.remove_foreign(&removals).map_err(StepError::from) }
        });
    Ok(steps.collect())
}

/// The interface tells that there are virtual servers of kube-proxy's, and with its addresses,
/// which.
fn interface(servers: Servers) -> Result<Vec<Step>, StepError> {
    let mut steps = Vec::new();
    if servers == Servers::Left {
        return Ok(steps);
    }
    let Some(link) = Link::find(KUBE_PROXY_LINK)? else { return Ok(steps) };
    let (what, result) = if servers == Servers::Removed {
        (
            "and its virtual servers",
            virtual_servers::remove(&[KUBE_PROXY_LINK]).map(drop).map_err(StepError::from),
        )
    } else {
        ("but not its virtual servers", link.delete().map_err(StepError::from))
    };
    steps.push(Step { what: format!("interface {} {what}", KUBE_PROXY_LINK), result });
    Ok(steps)
}

fn sets() -> Result<Vec<Step>, StepError> {
    let theirs = ipset::names()?.into_iter().filter(|name| names::is_set(name));
    let steps = theirs.map(|name| {
        let result = ipset::destroy(&name).map_err(StepError::from);
        Step { what: format!("ipset {name}"), result }
    });
    Ok(steps.collect())
}

/// Removes kube-proxy's leftovers when the daemon has taken over from it, except those of IPVS that
/// connections may still need: with `adopts`, virtual servers are this daemon's from now on;
/// without, they are drained.
pub(crate) fn take_over(adopts: bool) {
    let servers = if adopts { Servers::Adopted } else { Servers::Left };
    for Step { what, result } in remove(servers) {
        match result {
            Ok(()) => info!("removed what kube-proxy left: {what}"),
            Err(error) => warn!(%error, "cannot remove what kube-proxy left: {what}"),
        }
    }
}
