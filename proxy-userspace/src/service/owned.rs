//! What the service proxy leaves in the kernel in any of its modes, for commands that show or
//! remove it without a daemon.

mod ebpf;
mod ipvs;
mod nftables;

use crate::feature::{Owned, Places};

/// All of it. Nothing but the kernel says in which mode a daemon was.
pub(crate) fn owned(places: &Places) -> Vec<Box<dyn Owned>> {
    let programs = ebpf::Programs { bpffs: places.bpffs.clone() };
    vec![Box::new(nftables::Ruleset), Box::new(ipvs::Balancer), Box::new(programs)]
}
