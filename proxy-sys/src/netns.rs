//! Other network namespaces, as eBPF programs and their addresses tell them apart.

use std::net::IpAddr;

use sluice_link::netns::{all, in_each};

use crate::bpf::{BpfError, netns_cookie};

/// A network namespace, as seen from inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// By which the socket programs know it.
    pub cookie: u64,
    /// The addresses of its interfaces.
    pub addresses: Vec<IpAddr>,
}

/// Looks into all network namespaces but the own. Those that cannot be entered, or that just end,
/// are passed over.
pub fn others() -> Result<Vec<Namespace>, BpfError> {
    let own = netns_cookie()?;
    let found = in_each(all(), look)
        .map_err(|source| BpfError::System { operation: "enter other network namespaces".into(), source })?;
    Ok(found.into_iter().flatten().flatten().filter(|namespace| namespace.cookie != own).collect())
}

/// The namespace that this thread is in.
fn look() -> Option<Namespace> {
    let cookie = netns_cookie().ok()?;
    let interfaces = nix::ifaddrs::getifaddrs().ok()?;
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
    });
    Some(Namespace { cookie, addresses: addresses.collect() })
}
