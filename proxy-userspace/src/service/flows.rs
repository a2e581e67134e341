//! The flows of the eBPF backend: what conntrack and its cleanup are for other backends.
//!
//! Flows that were silent for too long leave the table every half minute. The table would evict by
//! itself when it is full, but then a flow that lives might go. UDP flows to endpoints that do not
//! serve any more, or by frontends that are gone or another Service's, end at once, as in
//! [`super::conntrack`]: with every request two passes are made, because a packet that passed the
//! old maps may enter its flow just after the first. Which endpoints serve what is read from the
//! maps: once to find what must end, and again after that, because meanwhile frontends and flows by
//! them may have come.
//!
//! What is decided here is of a moment ago, and meanwhile the programs go on: so a program in the
//! kernel does the removing, and only of a flow that nobody has used since
//! (`proxy-ebpf/src/stage/flow/claim.rs`).

mod expiry;
mod stale;

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use sluice_common::flow::{Flow, FlowKey};
use sluice_common::maps::MapName;
use sluice_common::node::Config;
use sluice_common::service::MemberKey;
use sluice_common::socket::{Peer, Pick, SocketKey};
use sluice_core::net::{Family, Protocol};
use sluice_sys::bpf::{BpfError, Ender, Map, Maps, Plain, Usage};
use sluice_sys::netlink::NetlinkError;
use sluice_sys::proc;
use sluice_sys::sockets::{Connected, destroy_udp};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::observe::metrics::{Metrics, family_label};
use crate::service::affinity::{Alarm, Told};
use crate::service::conntrack::Request;
use crate::service::passes::{Passes, sleep_until};
use expiry::{Limits, Suspect, is_original, is_over, may_be_over, order, own, pairs};
use stale::{Serving, Suspects};

/// Between two looks for flows that are over.
const PERIOD: Duration = Duration::from_secs(30);
/// The flow table. Programs give keys of it to other flows at any time, so that flows in it are
/// ended by a program, too.
const FLOWS: MapName = MapName::Flows;
/// Both tables, while the flow table gets another size. To the old one nobody adds anything, so
/// that it can be deleted from.
const TABLES: [MapName; 2] = [FLOWS, MapName::OldFlows];
/// Clients that are remembered.
const AFFINITY: MapName = MapName::Affinity;
/// Maps that the programs fill, and that evict by themselves; and two that do not grow.
const OTHERS: [MapName; 7] = [
    AFFINITY,
    MapName::Fragments,
    MapName::Peers,
    MapName::Picks,
    MapName::TcpPeers,
    MapName::Namespaces,
    MapName::PodSources,
];

/// Why flows could not be looked through.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    /// A map could not be read or written.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// Sockets could not be looked for.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Serves requests, and ends flows in time, until nobody sends any more.
pub async fn run(mut requests: mpsc::UnboundedReceiver<Request>, maps: Maps, ender: Ender, told: Told) {
    let mut keeper = Keeper::new(maps, ender, told);
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut passes = Passes::default();
    loop {
        tokio::select! {
            request = requests.recv() => {
                let Some(first) = request else { return };
                // What they say is in the maps.
                let mut concerned = is_of_udp(&first);
                while let Ok(next) = requests.try_recv() {
                    concerned |= is_of_udp(&next);
                }
                if concerned {
                    passes.ask((), (), Instant::now());
                }
            }
            () = sleep_until(passes.due(Instant::now())) => {}
            _ = ticks.tick() => tokio::task::block_in_place(|| keeper.tick()),
        }
        let begun = Instant::now();
        if !passes.is_due(begun) {
            continue;
        }
        match tokio::task::block_in_place(|| keeper.end_stale(passes.is_last(begun))) {
            Ok(()) => passes.done(begun, Instant::now()),
            Err(error) => {
                warn!(%error, "cannot end stale UDP flows; trying again");
                passes.failed(Instant::now());
            }
        }
    }
}

/// What was not translated here left no flow, so connections that began too early need nothing.
fn is_of_udp(request: &Request) -> bool {
    request.capture.protocol() == Protocol::Udp
}

struct Keeper {
    maps: Maps,
    ender: Ender,
    metrics: Metrics,
    told: Told,
    told_unsupported: bool,
    told_unread: bool,
    /// Of maps that become full.
    alarm: Alarm,
}

impl Keeper {
    fn new(maps: Maps, ender: Ender, told: Told) -> Self {
        let (metrics, alarm) = (told.metrics.clone(), Alarm::default());
        Keeper { maps, ender, metrics, told, told_unsupported: false, told_unread: false, alarm }
    }

    /// One pass over the UDP flows and sockets.
    fn end_stale(&mut self, is_last: bool) -> Result<(), FlowError> {
        let begun = Instant::now();
        let mut suspects = self.suspects(&self.serving()?)?;
        if !suspects.is_empty() {
            suspects.retain(&self.serving()?);
        }
        let mut ended = [0u64; 2];
        for (name, flows) in TABLES.into_iter().zip(&suspects.flows) {
            let table = self.maps.get(name)?;
            for (key, flow) in flows {
                let is_gone = match name {
                    FLOWS => end_if(&table, &self.ender, key, |now| stale::is_same_flow(now, flow))?,
                    _ => delete_old(&table, key, flow)? > 0,
                };
                ended[family(key) as usize] += u64::from(is_gone);
            }
        }
        let picks = self.maps.get(MapName::Picks)?;
        let keys: Vec<u8> = suspects.picks.iter().flat_map(|(key, _)| key.bytes().to_vec()).collect();
        picks.delete_all(&keys)?;
        self.end_sockets(&suspects, is_last)?;
        for family in Family::BOTH {
            let label = family_label(family);
            self.metrics.conntrack_deleted.get_or_create(&label).inc_by(ended[family as usize]);
            self.metrics.conntrack_duration.get_or_create(&label).observe(begun.elapsed().as_secs_f64());
        }
        debug!(flows = ended.iter().sum::<u64>(), picks = suspects.picks.len(), "UDP flows checked");
        Ok(())
    }

    /// What must end by what was read before.
    fn suspects(&self, serving: &Serving) -> Result<Suspects, BpfError> {
        let mut found = Suspects::default();
        for (name, flows) in TABLES.into_iter().zip(&mut found.flows) {
            self.maps.get(name)?.each(|key, value| {
                let entry = FlowKey::read(key).zip(Flow::read(value));
                flows.extend(entry.filter(|(key, flow)| serving.ended(key, flow)));
            })?;
            // A flow is ended by its first entry; that of replies counts where the other is gone.
            flows.sort_by_key(|(_, flow)| !is_original(flow));
        }
        self.maps.get(MapName::Picks)?.each(|key, value| {
            let entry = SocketKey::read(key).zip(Pick::read(value));
            found.picks.extend(entry.filter(|(key, pick)| serving.ended_pick(key, pick)));
        })?;
        self.maps.get(MapName::Peers)?.each(|key, value| {
            let entry = SocketKey::read(key).zip(Peer::read(value));
            found.peers.extend(entry.filter(|(key, peer)| serving.ended_socket(key, peer).is_some()));
        })?;
        Ok(found)
    }

    fn serving(&self) -> Result<Serving, BpfError> {
        let members =
            self.maps.get(MapName::Members)?.values::<MemberKey, u32>()?.into_iter().map(|(key, _)| key);
        let frontends = self.maps.get(MapName::Frontends)?.values()?;
        let addresses = self.maps.get(MapName::Addresses)?.values()?;
        let config = self.maps.get(MapName::Config)?.get_value(&0u32)?.unwrap_or_default();
        Ok(Serving::new(members, frontends, addresses, &config))
    }

    /// Ends sockets that are connected to endpoints that do not serve: nothing else could send
    /// their datagrams elsewhere. The last pass also forgets sockets that are not connected, or
    /// were closed: else they would be looked for in all namespaces with every change. An earlier
    /// one does not, because endpoints that just ended may still answer.
    fn end_sockets(&mut self, suspects: &Suspects, is_last: bool) -> Result<(), FlowError> {
        let sockets = &suspects.sockets;
        if sockets.is_empty() {
            return Ok(());
        }
        let done = destroy_udp(sockets)?;
        if done.is_unsupported && !std::mem::replace(&mut self.told_unsupported, true) {
            warn!(
                "the kernel cannot end sockets (CONFIG_INET_DIAG_DESTROY): UDP sockets connected to a \
                 removed endpoint stay connected to it until their processes reconnect"
            );
        }
        if let Some(error) = &done.unread
            && !std::mem::replace(&mut self.told_unread, true)
        {
            warn!(
                error,
                "cannot enter a network namespace: UDP sockets there that are connected to a removed \
                 endpoint stay connected to it until their processes reconnect"
            );
        }
        self.metrics.sockets_ended.inc_by(done.ended.len() as u64);
        // What could not be looked for may be found the next time.
        let forget_others = is_last && done.unread.is_none();
        let is_done =
            |socket: &Connected| done.ended.contains(socket) || forget_others && !done.left.contains(socket);
        let known: HashMap<SocketKey, Peer> = suspects.peers.iter().copied().collect();
        let peers = self.maps.get(MapName::Peers)?;
        let mut keys = Vec::new();
        peers.each(|key, value| {
            if let (Some(socket), Some(peer)) = (SocketKey::read(key), Peer::read(value))
                // Not those that came while we looked.
                && known.get(&socket) == Some(&peer)
                && stale::udp_socket(&socket).is_some_and(|socket| is_done(&socket))
            {
                keys.extend_from_slice(key);
            }
        })?;
        peers.delete_all(&keys)?;
        Ok(())
    }

    /// Ends flows that are over, and counts the others.
    fn tick(&mut self) {
        match expire(&self.maps, &self.ender) {
            Ok(expired) => {
                self.metrics.flows_expired.inc_by(expired.ended as u64);
                for (name, usage) in &expired.left {
                    self.count(*name, *usage);
                }
            }
            Err(error) => warn!(%error, "cannot look for expired flows; trying again later"),
        }
        for name in OTHERS {
            if let Ok(usage) = self.maps.get(name).and_then(|map| map.usage()) {
                self.count(name, usage);
            }
        }
    }

    fn count(&mut self, map: MapName, usage: Usage) {
        self.metrics.map_usage(map.name(), usage);
        let Some(consequence) = when_full(map) else { return };
        if map == AFFINITY {
            self.told.counted(&mut self.alarm, map.name(), usage, consequence);
        } else if self.alarm.rises(map.name(), usage) {
            let Usage { entries, capacity } = usage;
            warn!(
                map = map.name(),
                entries, capacity, "a map is more than 80 % full; when it is full, {consequence}"
            );
        }
    }
}

/// What follows when a map is full. Maps that only the driver fills grow before that; the old flow
/// table only becomes emptier.
fn when_full(map: MapName) -> Option<&'static str> {
    Some(match map {
        MapName::Flows => "flows idle longest are evicted (sluice.ebpf.flows)",
        MapName::Affinity => "the clients idle longest are evicted (sluice.ebpf.flows)",
        MapName::Fragments => "fragments of the oldest datagrams are dropped",
        MapName::Peers => {
            "the sockets connected earliest see the address of their endpoint instead of the Service's"
        }
        MapName::Picks => "UDP sockets idle longest may get another endpoint",
        MapName::Namespaces => "no more pods can leave the socket path",
        MapName::PodSources => {
            "source addresses of further pods on bridges are not checked, and checks for other pods take \
             longer"
        }
        _ => return None,
    })
}

/// Ends all UDP sockets that are connected to an endpoint; returns how many there were.
pub fn end_all_sockets(maps: &Maps) -> Result<usize, FlowError> {
    let peers = maps.get(MapName::Peers)?;
    let mut sockets: BTreeSet<Connected> = BTreeSet::new();
    peers.each(|key, _| sockets.extend(SocketKey::read(key).as_ref().and_then(stale::udp_socket)))?;
    if sockets.is_empty() {
        return Ok(0);
    }
    let done = destroy_udp(&sockets)?;
    if done.is_unsupported {
        warn!("the kernel cannot end sockets (CONFIG_INET_DIAG_DESTROY)");
    }
    if let Some(error) = done.unread {
        warn!(error, "cannot enter a network namespace");
    }
    Ok(done.ended.len())
}

/// What a look for flows that are over found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Flows that were ended.
    pub ended: usize,
    /// Both tables, and what is in them now.
    pub left: Vec<(MapName, Usage)>,
}

impl Expired {
    /// Whether there is no flow any more.
    pub fn is_empty(&self) -> bool {
        self.left.iter().all(|(_, usage)| usage.entries == 0)
    }
}

/// Ends flows that were silent for too long.
pub fn expire(maps: &Maps, ender: &Ender) -> Result<Expired, BpfError> {
    let config: Config = maps.get(MapName::Config)?.get_value(&0u32)?.unwrap_or_default();
    let (limits, now) = (Limits::from(config), proc::monotonic_nanos());
    let flows = maps.get(FLOWS)?;
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
        let mut deleted = 0;
        for Suspect { key, flow, other } in pairs(suspects) {
            let other_key = key.other(&flow);
            let other = match other {
                Some(other) => Some(other),
                None => {
                    let found = match table.get_value(&other_key)? {
                        // It has come along into the table in force without this one.
                        None if name != FLOWS => flows.get_value(&other_key)?,
                        found => found,
                    };
                    own(&key, found)
                }
            };
            if !is_over(&key, &flow, other.as_ref(), &limits, now) {
                continue;
            }
            deleted += match name {
                FLOWS if ender.end(&order(&key, &flow, other.as_ref()))? => 1 + usize::from(other.is_some()),
                FLOWS => 0,
                _ => delete_old(&table, &key, &flow)?,
            };
        }
        expired.ended += deleted.div_ceil(2);
        let capacity = table.max_entries() as usize;
        expired.left.push((name, Usage { entries: entries - deleted.min(entries), capacity }));
    }
    Ok(expired)
}

/// Ends a flow, if it still must be. One that is in use changes now and then, but never often.
fn end_if(
    table: &Map,
    ender: &Ender,
    key: &FlowKey,
    must_end: impl Fn(&Flow) -> bool,
) -> Result<bool, BpfError> {
    const ATTEMPTS: u32 = 5;
    for _ in 0..ATTEMPTS {
        let Some(flow) = table.get_value(key)?.filter(&must_end) else { return Ok(false) };
        let other = own(key, table.get_value(&key.other(&flow))?);
        if ender.end(&order(key, &flow, other.as_ref()))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Ends a flow of the old table, to which nobody adds anything. Returns how many entries it had
/// there.
fn delete_old(table: &Map, key: &FlowKey, flow: &Flow) -> Result<usize, BpfError> {
    let other_key = key.other(flow);
    let other = own(key, table.get_value(&other_key)?);
    let has_other = other.is_some() && table.delete(other_key.bytes())?;
    Ok(usize::from(has_other) + usize::from(table.delete(key.bytes())?))
}

fn family(key: &FlowKey) -> Family {
    if key.destination.is_v4() { Family::V4 } else { Family::V6 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_map_that_programs_fill_it_is_known_what_follows_when_it_is_full() {
        let known = OTHERS.iter().filter(|map| **map != MapName::TcpPeers);
        assert!(known.chain(&[FLOWS]).all(|map| when_full(*map).is_some()));
        assert_eq!(when_full(MapName::OldFlows), None);
    }
}
