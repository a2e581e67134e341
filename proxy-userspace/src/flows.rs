//! The flows of the eBPF backend: what conntrack and its cleanup are for other backends.
//!
//! Flows that were silent for too long leave the table every half minute. The table would evict by itself when it is full,
//! but then a flow that lives might go. UDP flows to endpoints that do not serve any more end at once, as in
//! [`crate::conntrack`]: with every request two passes are made, because a packet that passed the old maps may enter its
//! flow just after the first. Which endpoints serve is read from the maps.

mod expiry;
mod stale;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sluice_common::flow::{Flow, FlowKey};
use sluice_common::node::Config;
use sluice_common::service::MemberKey;
use sluice_common::socket::{Peer, Pick, SocketKey};
use sluice_core::net::Family;
use sluice_sys::bpf::{BpfError, Maps, Plain, Usage};
use sluice_sys::netlink::NetlinkError;
use sluice_sys::proc;
use sluice_sys::sockets::{Connected, destroy_udp};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::conntrack::Request;
use crate::metrics::{Metrics, family_label};
use expiry::{Limits, is_over, may_be_over, partner};
use stale::Serving;

/// Between two looks for flows that are over.
const PERIOD: Duration = Duration::from_secs(30);
const SECOND_PASS: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(2);
/// A growing flow table is looked through for both.
const TABLES: [&str; 2] = ["FLOWS", "OLD_FLOWS"];
/// Maps that the programs fill, and that evict by themselves.
const OTHERS: [&str; 5] = ["AFFINITY", "FRAGMENTS", "PEERS", "PICKS", "TCP_PEERS"];

/// Why flows could not be looked through.
#[derive(Debug, thiserror::Error)]
enum FlowError {
    #[error(transparent)]
    Bpf(#[from] BpfError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Serves requests, and ends flows in time, until nobody sends any more.
pub async fn run(mut requests: mpsc::UnboundedReceiver<Request>, maps: Maps, metrics: Metrics) {
    let mut keeper = Keeper { maps, metrics, told_unsupported: false, told_full: false };
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // When the next pass is due, and how many are left.
    let mut due: Option<(tokio::time::Instant, u32)> = None;
    loop {
        let passes = tokio::select! {
            request = requests.recv() => {
                if request.is_none() {
                    return;
                }
                // What they say is in the maps.
                while requests.try_recv().is_ok() {}
                2
            }
            () = sleep_until(due.map(|(at, _)| at)) => due.map_or(0, |(_, passes)| passes),
            _ = ticks.tick() => {
                tokio::task::block_in_place(|| keeper.tick());
                continue;
            }
        };
        due = match tokio::task::block_in_place(|| keeper.end_stale()) {
            Ok(()) if passes <= 1 => None,
            Ok(()) => Some((tokio::time::Instant::now() + SECOND_PASS, passes - 1)),
            Err(error) => {
                warn!(%error, "cannot end stale UDP flows; trying again");
                Some((tokio::time::Instant::now() + RETRY, passes))
            }
        };
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

struct Keeper {
    maps: Maps,
    metrics: Metrics,
    told_unsupported: bool,
    told_full: bool,
}

impl Keeper {
    /// One pass over the UDP flows and sockets.
    fn end_stale(&mut self) -> Result<(), FlowError> {
        let begun = Instant::now();
        let members = self.maps.get("MEMBERS")?;
        let serving: Serving = members.values::<MemberKey, u32>()?.into_iter().map(|(key, _)| key).collect();
        let mut ended = [0u64; 2];
        for name in TABLES {
            let table = self.maps.get(name)?;
            let mut keys = Vec::new();
            table.each(|key, value| {
                if let (Some(key), Some(flow)) = (FlowKey::read(key), Flow::read(value))
                    && serving.ended(&key, &flow)
                {
                    ended[family(&key) as usize] += 1;
                    keys.extend_from_slice(key.bytes());
                    keys.extend_from_slice(partner(&key, &flow).bytes());
                }
            })?;
            table.delete_all(&keys)?;
        }
        let picks = self.maps.get("PICKS")?;
        let mut keys = Vec::new();
        picks.each(|key, value| {
            if Pick::read(value).is_some_and(|pick| serving.ended_pick(&pick)) {
                keys.extend_from_slice(key);
            }
        })?;
        picks.delete_all(&keys)?;
        self.end_sockets(&serving)?;
        for family in Family::BOTH {
            let label = family_label(family);
            self.metrics.conntrack_deleted.get_or_create(&label).inc_by(ended[family as usize]);
            self.metrics.conntrack_duration.get_or_create(&label).observe(begun.elapsed().as_secs_f64());
        }
        debug!(flows = ended.iter().sum::<u64>(), picks = keys.len(), "UDP flows checked");
        Ok(())
    }

    /// Ends sockets that are connected to endpoints that do not serve: nothing else could send their datagrams elsewhere.
    fn end_sockets(&mut self, serving: &Serving) -> Result<(), FlowError> {
        let peers = self.maps.get("PEERS")?;
        let mut sockets: BTreeSet<Connected> = BTreeSet::new();
        peers.each(|key, value| {
            if let (Some(key), Some(peer)) = (SocketKey::read(key), Peer::read(value)) {
                sockets.extend(serving.ended_socket(&key, &peer));
            }
        })?;
        if sockets.is_empty() {
            return Ok(());
        }
        let done = destroy_udp(&sockets)?;
        if done.is_unsupported && !std::mem::replace(&mut self.told_unsupported, true) {
            warn!(
                "the kernel cannot end sockets (CONFIG_INET_DIAG_DESTROY): UDP sockets that are connected to an endpoint that \
                 is gone stay so until their processes connect anew"
            );
        }
        self.metrics.sockets_ended.inc_by(done.ended.len() as u64);
        // Others are not connected, and choose anew by themselves; or were closed.
        let mut keys = Vec::new();
        peers.each(|key, value| {
            if let (Some(socket), Some(peer)) = (SocketKey::read(key), Peer::read(value))
                && serving.ended_socket(&socket, &peer).is_some_and(|socket| done.ended.contains(&socket))
            {
                keys.extend_from_slice(key);
            }
        })?;
        peers.delete_all(&keys)?;
        Ok(())
    }

    /// Ends flows that are over, and counts the others.
    fn tick(&mut self) {
        match expire(&self.maps) {
            Ok(expired) => {
                self.metrics.flows_expired.inc_by(expired.ended as u64);
                for (name, usage) in &expired.left {
                    self.count(name, *usage);
                }
                self.tell_full(&expired);
            }
            Err(error) => warn!(%error, "cannot look for flows that are over; trying again later"),
        }
        for name in OTHERS {
            if let Ok(usage) = self.maps.get(name).and_then(|map| map.usage()) {
                self.count(name, usage);
            }
        }
    }

    fn count(&self, map: &'static str, usage: Usage) {
        self.metrics.map_usage(map, usage);
    }

    fn tell_full(&mut self, expired: &Expired) {
        let flows = expired.left.iter().find(|(name, _)| *name == TABLES[0]);
        let Some((_, usage)) = flows else { return };
        if usage.is_high() && !self.told_full {
            warn!(
                entries = usage.entries,
                capacity = usage.capacity,
                "the flow table is more than 80 % full; when it is full, flows that were silent longest are forgotten \
                 (sluice.ebpf.flows)"
            );
        }
        self.told_full = usage.is_high();
    }
}

/// What a look for flows that are over found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Flows that were ended.
    pub ended: usize,
    /// Both tables, and what is in them now.
    pub left: Vec<(&'static str, Usage)>,
}

impl Expired {
    /// Whether there is no flow any more.
    pub fn is_empty(&self) -> bool {
        self.left.iter().all(|(_, usage)| usage.entries == 0)
    }
}

/// Ends flows that were silent for too long.
pub fn expire(maps: &Maps) -> Result<Expired, BpfError> {
    let config: Config = maps.get("CONFIG")?.get_value(&0u32)?.unwrap_or_default();
    let (limits, now) = (Limits::from(config), proc::monotonic_nanos());
    let mut expired = Expired::default();
    for name in TABLES {
        let table = maps.get(name)?;
        let (mut entries, mut suspects) = (0, Vec::new());
        table.each(|key, value| {
            entries += 1;
            if let (Some(key), Some(flow)) = (FlowKey::read(key), Flow::read(value))
                && may_be_over(&key, &flow, &limits, now)
            {
                suspects.push((key, flow));
            }
        })?;
        let mut keys = Vec::new();
        for (key, flow) in suspects {
            let other_key = partner(&key, &flow);
            let other: Option<Flow> = table.get_value(&other_key)?;
            if is_over(&key, &flow, other.as_ref(), &limits, now) {
                keys.extend_from_slice(key.bytes());
                keys.extend_from_slice(other_key.bytes());
            }
        }
        let deleted = table.delete_all(&keys)?;
        expired.ended += deleted / 2;
        let capacity = table.max_entries() as usize;
        expired.left.push((name, Usage { entries: entries - deleted.min(entries), capacity }));
    }
    Ok(expired)
}

fn family(key: &FlowKey) -> Family {
    if key.destination.is_v4() { Family::V4 } else { Family::V6 }
}
