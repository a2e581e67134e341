//! What mode ipvs, ours or kube-proxy's, leaves in the kernel: virtual servers, and the link that
//! holds their addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_core::ipvs::{ObservedServer, Op, ServerKey, is_our_mark};
use sluice_sys::dummy::Link;
use sluice_sys::ipvs::Ipvs;
use sluice_sys::steering::Steering;

use crate::node::addresses::{IPVS_LINK, KUBE_PROXY_LINK};

/// Ports out of which node ports are allocated unless the API server is told otherwise. Without the
/// objects nothing in the kernel tells whose a virtual server is: those of such ports are taken for
/// those of node ports, and of others, those of addresses of the link.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// Why virtual servers, or their link, are still there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServersError {
    /// The kernel refused, or could not be asked.
    #[error(transparent)]
    Netlink(#[from] sluice_sys::netlink::NetlinkError),
    /// An interface is not what its name says, or could not be asked for.
    #[error(transparent)]
    Link(#[from] sluice_sys::dummy::LinkError),
    /// Virtual servers could not be deleted.
    #[error(transparent)]
    Batch(#[from] sluice_sys::netlink::BatchError<Op>),
    /// A system call failed.
    #[error(transparent)]
    System(#[from] std::io::Error),
}

/// Deletes the virtual servers that have no connection any more, and the links with the last of
/// them; all virtual servers but those in `excluded` networks, as mode ipvs does. Returns whether
/// any link is left.
pub(crate) fn delete_idle(names: &[&str], excluded: &[IpNet]) -> Result<bool, ServersError> {
    let links = found(names)?;
    if links.is_empty() {
        unsteer(names)?;
        return Ok(false);
    }
    let others = others(names)?;
    let is_ours = |key: &ServerKey| match key {
        ServerKey::Address(ip, ..) => {
            !excluded.iter().any(|net| net.contains(ip)) && !is_theirs(key, others.as_ref())
        }
        ServerKey::Mark(_, mark) => is_our_mark(*mark),
    };
    let is_idle = |server: &ObservedServer| {
        server.destinations.iter().all(|held| held.load.active + held.load.inactive == 0)
    };
    if delete_servers(is_ours, is_idle)? {
        return Ok(true);
    }
    delete(names, links)?;
    Ok(false)
}

/// Deletes the virtual servers of links, and the links. Returns whether there were any links.
pub(crate) fn remove(names: &[&str]) -> Result<bool, ServersError> {
    let mut links = found(names)?;
    if links.is_empty() {
        return unsteer(names);
    }
    let mut bound: BTreeSet<IpAddr> = BTreeSet::new();
    for link in &mut links {
        bound.extend(link.addresses()?);
    }
    let others = others(names)?;
    let is_ours = |key: &ServerKey| match key {
        ServerKey::Address(ip, _, port) => bound.contains(ip) || NODE_PORTS.contains(port),
        ServerKey::Mark(_, mark) => is_our_mark(*mark),
    };
    delete_servers(|key| is_ours(key) && !is_theirs(key, others.as_ref()), |_| true)?;
    delete(names, links)?;
    Ok(true)
}

fn found(names: &[&str]) -> Result<Vec<Link>, ServersError> {
    let links = names.iter().map(|name| Ok(Link::find(name)?));
    Ok(links.collect::<Result<Vec<_>, ServersError>>()?.into_iter().flatten().collect())
}

/// Removes the rules that lead packets to our virtual servers of addresses that no link holds. They
/// may have outlived the link. Returns whether there were any.
fn unsteer(names: &[&str]) -> Result<bool, ServersError> {
    Ok(names.contains(&IPVS_LINK) && Steering::open()?.remove()?)
}

fn delete(names: &[&str], links: Vec<Link>) -> Result<(), ServersError> {
    unsteer(names)?;
    links.into_iter().try_for_each(|link| Ok(link.delete()?))
}

/// Deletes those of our virtual servers that may go. Returns whether one may not.
fn delete_servers(
    is_ours: impl Fn(&ServerKey) -> bool,
    may_go: impl Fn(&ObservedServer) -> bool,
) -> Result<bool, ServersError> {
    let Some(mut ipvs) = Ipvs::find()? else { return Ok(false) };
    let ours = ipvs.dump()?.into_iter().filter(|server| is_ours(&server.server.key));
    let (gone, staying): (Vec<_>, Vec<_>) = ours.partition(may_go);
    let ops: Vec<Op> = gone.iter().map(|server| Op::DeleteServer(server.server.key)).collect();
    ipvs.apply(&ops)?;
    Ok(!staying.is_empty())
}

/// Addresses of the link of whoever else is there: kube-proxy may have taken over from us, or we
/// from it. `None`: nobody.
fn others(names: &[&str]) -> Result<Option<BTreeSet<IpAddr>>, ServersError> {
    let mut others = None;
    for name in [IPVS_LINK, KUBE_PROXY_LINK].iter().filter(|name| !names.contains(name)) {
        if let Some(mut link) = Link::find(name)? {
            others.get_or_insert_with(BTreeSet::new).extend(link.addresses()?);
        }
    }
    Ok(others)
}

fn is_theirs(key: &ServerKey, others: Option<&BTreeSet<IpAddr>>) -> bool {
    match key {
        ServerKey::Address(ip, _, port) => {
            others.is_some_and(|others| others.contains(ip) || NODE_PORTS.contains(port))
        }
        // Only we have such.
        ServerKey::Mark(..) => false,
    }
}
