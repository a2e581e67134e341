//! Looking at the kernel. A part that cannot be looked at keeps no other from being shown.

use std::io;
use std::path::Path;

use sluice_core::lang::nftables::{self, Observed};
use sluice_core::nft::{SetKind, TABLE};
use sluice_core::pod_network::TABLE as PODS;
use sluice_sys::bpf::{self, BpfError, Directory, Place, View, counters};
use sluice_sys::dummy::{Link, LinkError};
use sluice_sys::netlink::NetlinkError;
use sluice_sys::nft::{Nft, observe};
use sluice_sys::node_lock;

use super::{Daemon, Ebpf, Ipvs, PodNetwork, Status, Table, Unseen};
use crate::backend::ipvs::LINK;
use crate::pod_network;

const NO_NET_ADMIN: &str = "missing capability CAP_NET_ADMIN: run as root, or give the container \
                            securityContext.capabilities.add: [NET_ADMIN]";
const NO_BPF: &str =
    "missing capability CAP_BPF: run as root, or give the container securityContext.capabilities.add: [BPF]";

/// Why a part cannot be looked at.
#[derive(Debug)]
enum Reason {
    /// A right is missing, and how to get it.
    Right(&'static str),
    Other(String),
}

impl Reason {
    /// By the number of the system's error.
    fn new(errno: Option<i32>, right: &'static str, error: impl ToString) -> Self {
        match errno {
            Some(libc::EPERM | libc::EACCES) => Reason::Right(right),
            _ => Reason::Other(error.to_string()),
        }
    }
}

impl From<NetlinkError> for Reason {
    fn from(error: NetlinkError) -> Self {
        Reason::new(error.errno(), NO_NET_ADMIN, error)
    }
}

impl From<BpfError> for Reason {
    fn from(error: BpfError) -> Self {
        Reason::new(error.errno(), NO_BPF, error)
    }
}

impl From<LinkError> for Reason {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Netlink(error) => error.into(),
            error => Reason::Other(error.to_string()),
        }
    }
}

/// Looks at everything.
pub(super) fn status(bpffs: &Path) -> Status {
    let mut unseen = Vec::new();
    let daemon = part("daemon", daemon(), &mut unseen);
    let mut status = Status {
        daemon: daemon.unwrap_or_default(),
        bpffs: bpffs.display().to_string(),
        nftables: part("nftables", table(), &mut unseen),
        ipvs: part("ipvs", ipvs(), &mut unseen),
        ebpf: part("ebpf", ebpf(bpffs), &mut unseen),
        pod_network: pod_network(&mut unseen),
        not_looked_at: Vec::new(),
    };
    status.not_looked_at = unseen;
    status
}

/// What was found of a part; notes why it could not be looked at.
fn part<T>(part: &'static str, found: Result<Option<T>, Reason>, unseen: &mut Vec<Unseen>) -> Option<T> {
    found.unwrap_or_else(|reason| {
        let (reason, is_right) = match reason {
            Reason::Right(text) => (text.to_owned(), true),
            Reason::Other(text) => (text, false),
        };
        unseen.push(Unseen { part, reason, is_right });
        None
    })
}

fn daemon() -> Result<Option<Daemon>, Reason> {
    let holder = node_lock::holder().map_err(|error| Reason::Other(error.to_string()))?;
    Ok(holder.map(|holder| Daemon { at_work: true, pid: holder.pid }))
}

/// Whether an error says that this kernel has no nf_tables, so that there is no table either.
fn lacks_nf_tables(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(libc::EINVAL | libc::EPROTONOSUPPORT | libc::EOPNOTSUPP))
}

fn has_table(table: &nftables::Table) -> Result<bool, NetlinkError> {
    match Nft::open().and_then(|mut nft| nft.has_table(table)) {
        Err(error) if lacks_nf_tables(&error) => Ok(false),
        other => other,
    }
}

fn table() -> Result<Option<Table>, Reason> {
    if !has_table(&TABLE)? {
        return Ok(None);
    }
    let observed = observe(&mut Nft::open()?, &TABLE)?;
    // One that is empty is nobody's work.
    Ok(Some(observed.map_or(Table { altered: true, ..Table::default() }, |observed| counted(&observed))))
}

fn counted(observed: &Observed) -> Table {
    let of = |kind: SetKind| observed.elements.keys().filter(|id| kind.is(id.set)).count();
    Table {
        frontends: of(SetKind::Services),
        node_ports: of(SetKind::NodePorts),
        without_endpoints: of(SetKind::NoEndpoints) + of(SetKind::NodePortNoEndpoints),
        altered: observed.altered,
    }
}

/// `None` without the link. Without IPVS there are no virtual servers.
fn ipvs() -> Result<Option<Ipvs>, Reason> {
    let Some(mut link) = Link::find(LINK)? else { return Ok(None) };
    let addresses = link.addresses()?.len();
    let servers = match sluice_sys::ipvs::Ipvs::find()? {
        Some(mut ipvs) => ipvs.dump()?,
        None => Vec::new(),
    };
    let destinations = || servers.iter().flat_map(|server| &server.destinations);
    let draining = destinations().filter(|held| held.destination.weight == 0).count();
    Ok(Some(Ipvs { addresses, servers: servers.len(), destinations: destinations().count(), draining }))
}

fn ebpf(bpffs: &Path) -> Result<Option<Ebpf>, Reason> {
    // Without a directory no right is needed to know that there is nothing.
    match bpffs.metadata() {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => {
            return Err(Reason::new(error.raw_os_error(), NO_BPF, format!("{}: {error}", bpffs.display())));
        }
    }
    let directory = Directory::new(bpffs);
    let view = match View::open(&directory) {
        Ok(view) => view,
        Err(BpfError::Absent(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut ebpf = Ebpf::default();
    for map in view.maps.all() {
        // Of arrays all entries are always there.
        if map.spec().grows() || map.spec().is_lru() {
            ebpf.maps.insert(map.name(), map.usage()?.into());
        }
    }
    let counted = counters(&view.maps)?;
    ebpf.counted = counted.into_iter().map(|(counter, count)| (counter.name(), count)).collect();
    for link in view.links {
        let place = match link.place {
            Place::Cgroup(number) => format!("cgroup {number}"),
            Place::Interface(index) => {
                bpf::interface_name(index).unwrap_or_else(|| format!("interface {index}"))
            }
            Place::Nowhere => "nowhere (detached, or its interface was deleted)".into(),
        };
        ebpf.programs.entry(place).or_default().push(link.program);
    }
    Ok(Some(ebpf))
}

fn pod_network(unseen: &mut Vec<Unseen>) -> Option<PodNetwork> {
    let table = part("pod network's table", has_table(&PODS).map(Some).map_err(Reason::from), unseen);
    let seen = pod_network::seen().map(Some).map_err(|error| Reason::Other(error.to_string()));
    let (devices, routes) = part("pod network", seen, unseen).unwrap_or_default();
    let is_there = table == Some(true) || !devices.is_empty() || routes > 0;
    is_there.then_some(PodNetwork { devices, routes, table })
}
