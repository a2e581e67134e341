//! From one backend of sluice to the other: new connections go by the new one at once, and what the
//! old one still holds for connections of before goes when the last of those has ended.

use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use sluice_common::maps::MapName;
use sluice_common::node::{Config, option};
use sluice_core::nft::{self, TABLE};
use sluice_sys::bpf::{BpfError, Directory, Ender, Lock, Maps, View};
use sluice_sys::conntrack::Conntrack;
use sluice_sys::netlink::NetlinkError;
use sluice_sys::nft::Nft;
use tracing::{info, warn};

use crate::node::addresses::{IPVS_LINK, KUBE_PROXY_LINK};
use crate::service::backend::{BackendError, ebpf};
use crate::service::{flows, virtual_servers};

/// Between two looks at the flows of the eBPF backend.
const FLOWS_PERIOD: Duration = Duration::from_secs(30);
/// How long UDP sockets that the eBPF programs have connected may go on: who asks for something
/// (DNS) has an answer by then.
const UDP_GRACE: Duration = Duration::from_secs(15);
/// Between two looks at conntrack.
const CONNTRACK_PERIOD: Duration = Duration::from_secs(3600);

/// After the nftables backend has taken over: the eBPF programs capture nothing new, translate what
/// they did before, and go when that has ended.
pub async fn from_ebpf(bpffs: &Path) {
    let directory = Directory::new(bpffs);
    // Nobody may be at work on the maps, least of all somebody whose Services would vanish from
    // them.
    let Some(_lock) = lock(&directory).await else { return };
    let begun = tokio::task::block_in_place(|| drain(&directory));
    let maps = match begun {
        Ok(maps) => maps,
        // Another layout, or what is left of a removal.
        Err(BpfError::Absent(_)) => return remove(&directory),
        Err(error) => {
            return warn!(%error, "cannot disable the eBPF programs: run sluice cleanup when the node may lose connections");
        }
    };
    info!(bpffs = %bpffs.display(), "eBPF programs take no new connections; they are removed when the last connection has ended");
    tokio::time::sleep(UDP_GRACE).await;
    tokio::task::block_in_place(|| end_sockets(&maps));
    let ender = loop {
        match tokio::task::block_in_place(|| ender(&directory)) {
            Ok(ender) => break ender,
            Err(error) => {
                warn!(%error, "cannot end flows of the eBPF programs; trying again (sluice cleanup ends all of them at once)");
            }
        }
        tokio::time::sleep(FLOWS_PERIOD).await;
    };
    loop {
        if let Err(error) = tokio::task::block_in_place(|| ebpf::open_lo(&maps)) {
            warn!(%error, "IPv4 datagrams of the eBPF programs that are larger than the path MTU are lost: set net.ipv4.conf.lo.accept_local");
        }
        match tokio::task::block_in_place(|| flows::expire(&maps, &ender)) {
            Ok(expired) if expired.is_empty() => return remove(&directory),
            Ok(_) => {}
            Err(error) => {
                warn!(%error, "cannot look for expired flows of the eBPF programs; trying again later")
            }
        }
        tokio::time::sleep(FLOWS_PERIOD).await;
    }
}

/// Waits until no other process is at work on the directory. `None`: nothing is in it, or it cannot
/// be locked.
async fn lock(directory: &Directory) -> Option<Lock> {
    let mut told = false;
    while directory.exists() {
        match tokio::task::block_in_place(|| directory.lock()) {
            Ok(lock) => return directory.exists().then_some(lock),
            Err(error @ BpfError::Busy(_)) => {
                if !std::mem::replace(&mut told, true) {
                    warn!(%error, "cannot disable the eBPF programs yet; trying again until the other sluice has ended");
                }
                tokio::time::sleep(FLOWS_PERIOD).await;
            }
            Err(error) => {
                warn!(%error, "cannot disable the eBPF programs: run sluice cleanup when the node may lose connections");
                return None;
            }
        }
    }
    None
}

/// Switches capturing off.
fn drain(directory: &Directory) -> Result<Maps, BpfError> {
    let View { maps, .. } = View::open(directory)?;
    let map = maps.get(MapName::Config)?;
    let mut config: Config = map.get_value(&0u32)?.unwrap_or_default();
    config.options |= option::DRAINING;
    map.put_value(&0u32, &config)?;
    maps.get(MapName::Frontends)?.clear()?;
    Ok(maps)
}

fn ender(directory: &Directory) -> Result<Ender, BackendError> {
    Ok(Ender::open(ebpf::object()?, directory)?)
}

/// Connected UDP sockets stay with their endpoint whatever becomes of it, because nobody looks any
/// more whether it still serves. So they end, once; their processes connect anew, by the other
/// backend.
fn end_sockets(maps: &Maps) {
    match flows::end_all_sockets(maps) {
        Ok(0) => {}
        Ok(sockets) => info!(sockets, "ended UDP sockets that the eBPF programs had connected"),
        Err(error) => warn!(%error, "cannot end UDP sockets that the eBPF programs had connected"),
    }
}

fn remove(directory: &Directory) {
    match tokio::task::block_in_place(|| ebpf::remove(directory)) {
        Ok(_) => info!(bpffs = %directory.path().display(), "eBPF programs removed"),
        Err(error) => warn!(%error, "cannot remove the eBPF programs: run sluice cleanup"),
    }
}

/// After another backend has taken over from mode ipvs, ours and, with `and_kube_proxy`,
/// kube-proxy's: virtual servers get no new connections, because these are translated before, and
/// go with their last one.
pub async fn from_ipvs(and_kube_proxy: bool, excluded: &[IpNet]) {
    let links = [IPVS_LINK, KUBE_PROXY_LINK];
    let links = if and_kube_proxy { &links[..] } else { &links[..1] };
    let mut told = false;
    loop {
        match tokio::task::block_in_place(|| virtual_servers::delete_idle(links, excluded)) {
            Ok(false) if told => return info!("virtual servers and their links removed"),
            Ok(false) => return,
            Ok(true) if !told => {
                told = true;
                info!(
                    "virtual servers get no new connections; they are removed when the last connection \
                     has ended"
                );
            }
            Ok(true) => {}
            Err(error) => warn!(%error, "cannot remove virtual servers; trying again later"),
        }
        tokio::time::sleep(FLOWS_PERIOD).await;
    }
}

/// After the eBPF backend has taken over, before others' rules are removed: connections that
/// nf_tables or iptables rules translate go on without those rules. Returns whether there is
/// anything to do for them later.
pub async fn keep_translations() -> bool {
    let kept = tokio::task::block_in_place(|| {
        let mut nft = Nft::open()?;
        let exists = nft.has_table(&TABLE)?;
        if !exists && !Conntrack::open()?.has_translated()? {
            return Ok(false);
        }
        nft.commit(&TABLE, &nft::remnant(exists))?;
        Ok::<_, NetlinkError>(true)
    });
    match kept {
        Ok(false) => false,
        Ok(true) => {
            info!(
                "table inet sluice has no rules left; it is removed when the last connection that its \
                 rules translated has ended"
            );
            true
        }
        Err(error) => {
            warn!(%error, "cannot keep connections that nf_tables rules translate: run sluice cleanup");
            false
        }
    }
}

/// Removes the table when no connection is translated any more.
pub async fn until_translations_end() {
    loop {
        let ended = tokio::task::block_in_place(|| {
            if Conntrack::open()?.has_translated()? {
                return Ok(false);
            }
            Nft::open()?.delete(&TABLE)?;
            Ok::<_, NetlinkError>(true)
        });
        match ended {
            Ok(true) => return info!("table inet sluice removed"),
            Ok(false) => {}
            Err(error) => warn!(%error, "cannot remove table inet sluice; trying again later"),
        }
        tokio::time::sleep(CONNTRACK_PERIOD).await;
    }
}
