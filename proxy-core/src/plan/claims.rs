//! Who owns a frontend that several Services want (reference 1.5: kube-proxy's winner is
//! arbitrary).

use rustc_hash::FxHashMap;

use super::Capture;
use crate::model::ObjectName;

/// A Service's claim; the smallest wins: as ClusterIP first, then by creation, the oldest first,
/// then by name. Unknown ages come last. ClusterIPs are allocated; whatever else a tenant writes
/// down, nobody has looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claimant {
    pub(super) is_other_than_cluster_ip: bool,
    pub(super) created: i64,
    pub(super) service: ObjectName,
}

/// Nearly every frontend has one claimant: only contested ones pay for a list.
enum Entry {
    One(Claimant),
    /// Sorted, at least two.
    Many(Vec<Claimant>),
}

/// All claims on frontends.
#[derive(Default)]
pub(super) struct Claims {
    entries: FxHashMap<Capture, Entry>,
}

impl Claims {
    /// The Service that owns a frontend.
    pub(super) fn owner(&self, capture: &Capture) -> Option<&ObjectName> {
        match self.entries.get(capture)? {
            Entry::One(claimant) => Some(&claimant.service),
            Entry::Many(list) => list.first().map(|claimant| &claimant.service),
        }
    }

    /// Adds a claim. Returns the Service that lost the frontend by it.
    pub(super) fn add(&mut self, capture: Capture, claimant: Claimant) -> Option<ObjectName> {
        match self.entries.get_mut(&capture) {
            None => {
                self.entries.insert(capture, Entry::One(claimant));
                None
            }
            Some(entry) => {
                let mut list = match std::mem::replace(entry, Entry::Many(Vec::new())) {
                    Entry::One(other) => vec![other],
                    Entry::Many(list) => list,
                };
                let before = list.first().map(|c| c.service.clone());
                if let Err(at) = list.binary_search(&claimant) {
                    list.insert(at, claimant);
                }
                let lost = before.filter(|name| list.first().is_some_and(|c| c.service != *name));
                *entry = simplest(list);
                lost
            }
        }
    }

    /// Takes a claim back. Returns the Service that owns the frontend now, if that changed.
    pub(super) fn remove(&mut self, capture: &Capture, claimant: &Claimant) -> Option<ObjectName> {
        match self.entries.get_mut(capture)? {
            Entry::One(only) => {
                if only == claimant {
                    self.entries.remove(capture);
                }
                None
            }
            Entry::Many(list) => {
                let was_owner = list.first() == Some(claimant);
                list.retain(|c| c != claimant);
                let heir = list.first().map(|c| c.service.clone()).filter(|_| was_owner);
                if list.len() == 1
                    && let Some(last) = list.pop()
                {
                    self.entries.insert(*capture, Entry::One(last));
                }
                heir
            }
        }
    }
}

fn simplest(mut list: Vec<Claimant>) -> Entry {
    if list.len() == 1
        && let Some(only) = list.pop()
    {
        return Entry::One(only);
    }
    Entry::Many(list)
}
