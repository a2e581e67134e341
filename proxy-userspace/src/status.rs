//! `sluice status`: what is in the kernel, read from there; no daemon is needed.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::path::Path;

use sluice_common::counters::Counter;
use sluice_sys::bpf::{self, BpfError, Directory, Place, Usage, View, counters};
use sluice_sys::dummy::Link;
use sluice_sys::netlink::NetlinkError;
use sluice_sys::nft::{Nft, Table};

use crate::backend::BackendError;
use crate::backend::ipvs::LINK;
use crate::daemon::DaemonError;
use crate::output;

/// What there is.
#[derive(Debug, Default)]
struct Status {
    nftables: bool,
    ipvs: Option<Ipvs>,
    ebpf: Option<Ebpf>,
}

#[derive(Debug, Default)]
struct Ipvs {
    /// Of the link.
    addresses: usize,
    /// Of the node, others' too.
    servers: usize,
    destinations: usize,
    draining: usize,
}

#[derive(Debug, Default)]
struct Ebpf {
    directory: String,
    maps: Vec<(&'static str, Usage)>,
    counted: Vec<(Counter, u64)>,
    /// Programs by where they are.
    links: BTreeMap<String, Vec<String>>,
}

/// Prints it.
pub fn status(bpffs: &Path) -> Result<(), DaemonError> {
    let status = read(bpffs)?;
    output::print(status).map_err(|source| DaemonError::System { operation: "write to stdout", source })
}

fn read(bpffs: &Path) -> Result<Status, DaemonError> {
    // Without nf_tables there is no table.
    let nftables =
        Nft::open().and_then(|mut nft| nft.has_table(Table::inet(sluice_core::nft::TABLE))).unwrap_or(false);
    let ebpf = match read_ebpf(&Directory::new(bpffs)) {
        Ok(ebpf) => Some(ebpf),
        Err(BpfError::Absent(_)) => None,
        Err(error) if error.errno() == Some(libc::EPERM) => return Err(DaemonError::Capability),
        Err(error) => return Err(DaemonError::Backend(BackendError::Bpf(error))),
    };
    Ok(Status { nftables, ipvs: read_ipvs()?, ebpf })
}

/// `None` without the link. Without IPVS there are no virtual servers.
fn read_ipvs() -> Result<Option<Ipvs>, DaemonError> {
    let failed = |error: NetlinkError| match error.errno() {
        Some(libc::EPERM) => DaemonError::Capability,
        _ => DaemonError::Backend(BackendError::Netlink(error)),
    };
    let link = Link::find(LINK).map_err(|error| DaemonError::Backend(BackendError::Link(error)))?;
    let Some(mut link) = link else { return Ok(None) };
    let addresses = link.addresses().map_err(failed)?.len();
    let servers = match sluice_sys::ipvs::Ipvs::find().map_err(failed)? {
        Some(mut ipvs) => ipvs.dump().map_err(failed)?,
        None => Vec::new(),
    };
    let destinations = || servers.iter().flat_map(|server| &server.destinations);
    let draining = destinations().filter(|held| held.destination.weight == 0).count();
    Ok(Some(Ipvs { addresses, servers: servers.len(), destinations: destinations().count(), draining }))
}

fn read_ebpf(directory: &Directory) -> Result<Ebpf, BpfError> {
    let view = View::open(directory)?;
    let mut ebpf = Ebpf { directory: directory.path().display().to_string(), ..Ebpf::default() };
    for map in view.maps.all() {
        // Of arrays all entries are always there.
        if map.spec().grows() || map.spec().is_lru {
            ebpf.maps.push((map.name(), map.usage()?));
        }
    }
    ebpf.counted = counters(&view.maps)?;
    for link in view.links {
        let place = match link.place {
            Place::Cgroup(number) => format!("cgroup {number}"),
            Place::Interface(index) => {
                bpf::interface_name(index).unwrap_or_else(|| format!("interface {index}"))
            }
            Place::Nowhere => "nowhere (detached, or its interface is gone)".into(),
        };
        ebpf.links.entry(place).or_default().push(link.program);
    }
    Ok(ebpf)
}

impl Display for Status {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if !self.nftables && self.ipvs.is_none() && self.ebpf.is_none() {
            return writeln!(f, "nothing of sluice is in the kernel");
        }
        if self.nftables {
            writeln!(f, "nftables: table inet sluice (nft list table inet sluice)")?;
        }
        if let Some(Ipvs { addresses, servers, destinations, draining }) = &self.ipvs {
            writeln!(f, "ipvs: link {LINK} with {addresses} addresses (ipvsadm -Ln)")?;
            writeln!(
                f,
                "  virtual servers: {servers}, destinations: {destinations}, of which {draining} get no new connections"
            )?;
        }
        let Some(ebpf) = &self.ebpf else { return Ok(()) };
        writeln!(f, "ebpf: {}", ebpf.directory)?;
        writeln!(f, "  entries of maps:")?;
        for (name, Usage { entries, capacity }) in &ebpf.maps {
            writeln!(f, "    {name:<12} {entries:>9} of {capacity}")?;
        }
        writeln!(f, "  counted since the maps exist:")?;
        for (counter, count) in &ebpf.counted {
            writeln!(f, "    {:<26} {count:>12}", counter.name())?;
        }
        writeln!(f, "  programs:")?;
        for (place, programs) in &ebpf.links {
            writeln!(f, "    {place}: {}", programs.join(" "))?;
        }
        if ebpf.links.is_empty() {
            writeln!(f, "    none is attached")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_backends_are_shown_or_that_there_is_none() {
        assert_eq!(Status::default().to_string(), "nothing of sluice is in the kernel\n");
        let ebpf = Ebpf {
            directory: "/b".into(),
            maps: vec![("FLOWS", Usage { entries: 3, capacity: 10 })],
            counted: vec![(Counter::Rejected, 7)],
            links: BTreeMap::from([("eth0".into(), vec!["egress".into(), "ingress".into()])]),
        };
        let ipvs = Ipvs { addresses: 2, servers: 3, destinations: 9, draining: 1 };
        let text = Status { nftables: true, ipvs: Some(ipvs), ebpf: Some(ebpf) }.to_string();
        for line in [
            "nftables: table inet sluice",
            "sluice-ipvs0 with 2 addresses",
            "servers: 3, destinations: 9, of which 1 get no new",
            "ebpf: /b",
            "3 of 10",
            "rejected",
            "    eth0: egress ingress\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
