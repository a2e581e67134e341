//! What mode ipvs, ours or kube-proxy's, leaves in the kernel: virtual servers, and the link that holds their addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use sluice_core::ipvs::{ObservedServer, Op, ServerKey, is_our_mark};
use sluice_sys::dummy::Link;
use sluice_sys::ipvs::Ipvs;

use super::StepError;
use super::names::INTERFACE;
use crate::backend::ipvs::LINK;

/// Ports out of which node ports are allocated unless the API server is told otherwise. Virtual servers of such ports are
/// taken for those of node ports: nothing else in the kernel tells whose they are.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// Deletes the virtual servers of links that have no connection any more, and then the links. Returns whether any link is
/// left.
pub(crate) fn delete_idle(links: &[&str]) -> Result<bool, StepError> {
    go_through(links, |server| {
        server.destinations.iter().all(|held| held.load.active + held.load.inactive == 0)
    })
}

/// Deletes the virtual servers of links, and the links. Returns whether there were any links.
pub(super) fn remove(links: &[&str]) -> Result<bool, StepError> {
    let exist =
        links.iter().try_fold(false, |any, name| Ok::<_, StepError>(any | Link::find(name)?.is_some()))?;
    if exist {
        go_through(links, |_| true)?;
    }
    Ok(exist)
}

fn go_through(names: &[&str], may_go: impl Fn(&ObservedServer) -> bool) -> Result<bool, StepError> {
    let mut links = Vec::new();
    let mut bound: BTreeSet<IpAddr> = BTreeSet::new();
    for name in names {
        if let Some(mut link) = Link::find(name)? {
            bound.extend(link.addresses()?);
            links.push(link);
        }
    }
    if links.is_empty() {
        return Ok(false);
    }
    if let Some(mut ipvs) = Ipvs::find()? {
        let others = others(names)?;
        let is_theirs = |key: &ServerKey| others.as_ref().is_some_and(|others| is_ours(key, others));
        let ours: Vec<ObservedServer> = ipvs
            .dump()?
            .into_iter()
            .filter(|server| is_ours(&server.server.key, &bound))
            .filter(|server| !is_theirs(&server.server.key) || is_mark(&server.server.key))
            .collect();
        let (idle, busy): (Vec<_>, Vec<_>) = ours.into_iter().partition(may_go);
        let ops: Vec<Op> = idle.iter().map(|server| Op::DeleteServer(server.server.key)).collect();
        ipvs.apply(&ops)?;
        if !busy.is_empty() {
            return Ok(true);
        }
    }
    for link in links {
        link.delete()?;
    }
    Ok(false)
}

/// Addresses of the link of whoever else is there: kube-proxy may have taken over from us, or we from it. `None`: nobody.
fn others(names: &[&str]) -> Result<Option<BTreeSet<IpAddr>>, StepError> {
    let mut others = None;
    for name in [LINK, INTERFACE].iter().filter(|name| !names.contains(name)) {
        if let Some(mut link) = Link::find(name)? {
            others.get_or_insert_with(BTreeSet::new).extend(link.addresses()?);
        }
    }
    Ok(others)
}

/// Only we have such.
fn is_mark(key: &ServerKey) -> bool {
    matches!(key, ServerKey::Mark(..))
}

fn is_ours(key: &ServerKey, bound: &BTreeSet<IpAddr>) -> bool {
    match key {
        ServerKey::Address(ip, _, port) => bound.contains(ip) || NODE_PORTS.contains(port),
        ServerKey::Mark(_, mark) => is_our_mark(*mark),
    }
}
