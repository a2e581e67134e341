//! One virtual server as the kernel should have it by now, and the steps to what is wanted of it.
//!
//! A change costs what changes of the list of endpoints, however long that is.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashSet;

use super::lower::{Wanted, destination};
use super::{Destination, DestinationKey, Load, ObservedServer, Op, Server};
use crate::list::List;
use crate::plan::Target;

/// The kernel's share of new connections; all endpoints have the same.
const WEIGHT: u32 = 1;

/// What the kernel holds of a virtual server.
#[derive(Clone, Debug)]
pub(super) struct Held {
    server: Server,
    /// Destinations with their weights.
    destinations: BTreeMap<DestinationKey, u32>,
    /// Those of weight 0: they are being drained.
    drained: BTreeSet<DestinationKey>,
    /// The endpoints that the destinations were made from: every other destination is being
    /// drained. `None`: the destinations were read from the kernel.
    made: Option<List<Target>>,
}

impl Held {
    /// One that is new, without destinations.
    pub(super) fn new(server: Server) -> Self {
        let (destinations, drained) = (BTreeMap::new(), BTreeSet::new());
        Held { server, destinations, drained, made: Some(List::default()) }
    }

    /// One that the kernel has.
    pub(super) fn observed(observed: ObservedServer) -> Self {
        // What others have set and we never do is written anew: it must not look like ours.
        let mut server = observed.server;
        if !observed.is_exact {
            server.persistence = Some(u32::MAX);
        }
        let weights = observed.destinations.iter().map(|observed| {
            let weight = if observed.is_exact { observed.destination.weight } else { u32::MAX };
            (observed.destination.key, weight)
        });
        let destinations: BTreeMap<DestinationKey, u32> = weights.collect();
        let drained = destinations.iter().filter(|(_, weight)| **weight == 0).map(|(key, _)| *key).collect();
        Held { server, destinations, drained, made: None }
    }

    /// Its settings.
    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// Whether it has no destination.
    pub(super) fn is_empty(&self) -> bool {
        self.destinations.is_empty()
    }

    /// Whether a destination is being drained.
    pub(super) fn is_draining(&self) -> bool {
        !self.drained.is_empty()
    }

    /// Makes it as it is wanted; returns whether something is being drained. What has to wait for
    /// the rest goes to `last`.
    pub(super) fn converge(&mut self, wanted: &Wanted, first: &mut Vec<Op>, last: &mut Vec<Op>) -> bool {
        if self.server != wanted.server {
            self.server = wanted.server;
            first.push(Op::SetServer(wanted.server));
        }
        let keys = |targets: &[Target]| targets.iter().filter_map(destination).collect::<Vec<_>>();
        let (gone, came) = match self.made.replace(wanted.targets.clone()) {
            Some(made) => {
                let (gone, came) = made.difference(&wanted.targets);
                (keys(&gone), keys(&came))
            }
            None => {
                let all = self.destinations.keys().copied().collect();
                (all, wanted.targets.iter().filter_map(destination).collect())
            }
        };
        let stays: FxHashSet<DestinationKey> = came.iter().copied().collect();
        came.into_iter().for_each(|key| self.serve(key, first));
        gone.into_iter().filter(|key| !stays.contains(key)).for_each(|key| self.drain(key, last));
        self.is_draining()
    }

    /// Nobody wants it any more.
    pub(super) fn drain_all(&mut self, last: &mut Vec<Op>) {
        self.made = Some(List::default());
        let all: Vec<DestinationKey> = self.destinations.keys().copied().collect();
        all.into_iter().for_each(|key| self.drain(key, last));
    }

    /// Forgets destinations that have been drained. `load` tells the connections of one; without an
    /// answer it is not in the kernel any more. Returns what deletes the others.
    pub(super) fn forget_drained(&mut self, load: impl Fn(DestinationKey) -> Option<Load>) -> Vec<Op> {
        let mut ops = Vec::new();
        let (server, destinations) = (self.server.key, &mut self.destinations);
        self.drained.retain(|key| {
            let load = load(*key);
            if load.is_some_and(|load| load.active + load.inactive > 0) {
                return true;
            }
            if load.is_some() {
                ops.push(Op::DeleteDestination(server, *key));
            }
            destinations.remove(key);
            false
        });
        ops
    }

    fn serve(&mut self, key: DestinationKey, ops: &mut Vec<Op>) {
        let op = Destination { key, weight: WEIGHT };
        self.drained.remove(&key);
        match self.destinations.insert(key, WEIGHT) {
            None => ops.push(Op::AddDestination(self.server.key, op)),
            Some(WEIGHT) => {}
            Some(_) => ops.push(Op::SetDestination(self.server.key, op)),
        }
    }

    /// Datagrams have no connection to finish: their destinations go at once, and IPVS moves their
    /// clients (`expire_nodest_conn`).
    fn drain(&mut self, key: DestinationKey, ops: &mut Vec<Op>) {
        if self.server.key.is_udp() {
            self.drained.remove(&key);
            if self.destinations.remove(&key).is_some() {
                ops.push(Op::DeleteDestination(self.server.key, key));
            }
        } else if self.destinations.get(&key).is_some_and(|weight| *weight != 0) {
            self.destinations.insert(key, 0);
            self.drained.insert(key);
            ops.push(Op::SetDestination(self.server.key, Destination { key, weight: 0 }));
        }
    }
}
