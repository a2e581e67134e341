//! A model of the maps and of the programs that look them up.

use std::collections::{BTreeMap, BTreeSet};

use sluice_common::Address;
use sluice_common::service::{
    Endpoint, EndpointKey, Frontend, FrontendKey, MemberKey, SOURCE_PREFIX, action, flag, list,
};
use sluice_core::ebpf::{Entry, EntryId, MapKind, Op};
use sluice_core::plan::Scheduler;

/// The maps.
#[derive(Clone, Default, Debug, PartialEq)]
pub(crate) struct Maps {
    /// Their entries.
    pub(crate) entries: BTreeMap<EntryId, Entry>,
}

impl Maps {
    /// One update. Those without an effect fail: they would cost system calls, and reset cursors.
    pub(crate) fn apply(&mut self, op: &Op) {
        match op {
            Op::Put(entry) => {
                let before = self.entries.insert(entry.id(), entry.clone());
                assert_ne!(before.as_ref(), Some(entry), "written twice");
            }
            Op::Delete(id) => {
                assert!(self.entries.remove(id).is_some(), "{id:?} is not there");
            }
        }
    }

    /// What reading the maps gives. A longest prefix match gives back what stands behind the
    /// prefix, too.
    pub(crate) fn observe(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self.entries.values().cloned().collect();
        for entry in &mut entries {
            if let Entry::Source(length, key) = entry {
                let bits = u128::from_be_bytes(key.source.octets()) | !prefix(*length);
                key.source = Address::from_octets(bits.to_be_bytes());
            }
        }
        entries
    }

    /// The number of entries in a map.
    pub(crate) fn count(&self, map: MapKind) -> usize {
        self.entries.keys().filter(|id| id.map() == map).count()
    }

    /// The maps without the order of slots.
    pub(crate) fn without_slots(&self, scheduler: Scheduler) -> (BTreeMap<EntryId, Entry>, View) {
        let ordered = |id: &EntryId| matches!(id, EntryId::Endpoint(_) | EntryId::Maglev(_));
        let rest = self.entries.iter().filter(|(id, _)| !ordered(id));
        (rest.map(|(id, entry)| (*id, entry.clone())).collect(), View::new(self, scheduler))
    }

    fn endpoint(&self, group: u64, slot: u32) -> Endpoint {
        let key = EndpointKey { group, slot, reserved: 0 };
        match self.entries.get(&EntryId::Endpoint(key)) {
            Some(Entry::Endpoint(_, endpoint)) => *endpoint,
            _ => panic!("no endpoint in slot {slot} of {group:x}"),
        }
    }
}

/// The bits of a client's address that a prefix of this length has.
pub(crate) fn prefix(length: u32) -> u128 {
    u128::MAX.checked_shl(128 + SOURCE_PREFIX - length).unwrap_or(0)
}

/// Who connects, the byte of a frontend that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// A pod.
    Pod,
    /// A process of this node.
    Host,
    /// Somebody else.
    Other,
}

/// What a frontend says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Decision {
    /// It is none of the proxy's business.
    Pass,
    /// It is refused.
    Reject,
    /// It is dropped.
    Drop,
    /// An endpoint of this group, masqueraded or not.
    Forward(u64, bool),
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// It is not forwarded.
    Refused(Decision),
    /// It is forwarded, masqueraded or not.
    Endpoint(Endpoint, bool),
}

/// What programs make of the maps.
#[derive(Clone, Default, Debug, PartialEq)]
pub(crate) struct View {
    /// All frontends and marks.
    pub(crate) frontends: BTreeMap<FrontendKey, Frontend>,
    /// The endpoints that each group leads to; with Maglev as often as its table has them.
    groups: BTreeMap<u64, Vec<Endpoint>>,
    sources: BTreeMap<FrontendKey, Vec<(u32, Address)>>,
    members: BTreeSet<MemberKey>,
}

impl View {
    /// Reads the maps; fails where a group is not complete.
    pub(crate) fn new(maps: &Maps, scheduler: Scheduler) -> Self {
        let mut view = View::default();
        for entry in maps.entries.values() {
            match entry {
                Entry::Frontend(key, frontend) => {
                    view.frontends.insert(*key, *frontend);
                }
                Entry::Group(group, size) => {
                    view.groups.insert(*group, picks(maps, *group, size.count, scheduler));
                }
                Entry::Source(length, key) => {
                    let bits = length - SOURCE_PREFIX;
                    view.sources.entry(key.frontend).or_default().push((bits, key.source));
                }
                Entry::Member(key) => {
                    view.members.insert(*key);
                }
                _ => {}
            }
        }
        view
    }

    /// What a frontend says to a client.
    pub(crate) fn decide(&self, key: &FrontendKey, who: Who, source: Address) -> Decision {
        let mark = FrontendKey { address: key.address, port: 0, protocol: 0, kind: 0 };
        let marked = || if key.kind == 0 { self.frontends.get(&mark) } else { None };
        let Some(frontend) = self.frontends.get(key).or_else(marked) else { return Decision::Pass };
        if frontend.flags & flag::FILTERED != 0 && !self.may(key, source) {
            return Decision::Drop;
        }
        let code = match who {
            Who::Pod => frontend.pod,
            Who::Host => frontend.host,
            Who::Other => frontend.other,
        };
        assert_eq!(frontend.group & list::MASK, 0);
        let masquerade = code & action::MASQUERADE != 0;
        match code & !action::MASQUERADE {
            action::REJECT => Decision::Reject,
            action::DROP => Decision::Drop,
            action::CLUSTER => Decision::Forward(frontend.group | list::CLUSTER, masquerade),
            action::LOCAL => Decision::Forward(frontend.group | list::LOCAL, masquerade),
            other => panic!("no action: {other}"),
        }
    }

    /// Whether the networks of a frontend hold a client.
    pub(crate) fn may(&self, key: &FrontendKey, source: Address) -> bool {
        self.sources.get(key).into_iter().flatten().any(|(bits, net)| {
            let differ = u128::from_be_bytes(net.octets()) ^ u128::from_be_bytes(source.octets());
            differ.leading_zeros() >= *bits
        })
    }

    /// The endpoints of a group, none if it is not there.
    pub(crate) fn endpoints(&self, group: u64) -> BTreeSet<Endpoint> {
        self.groups.get(&group).into_iter().flatten().copied().collect()
    }

    /// All that may become of a connection; fails where a lookup does.
    pub(crate) fn outcomes(&self, key: &FrontendKey, who: Who, source: Address) -> BTreeSet<Outcome> {
        let decision = self.decide(key, who, source);
        let Decision::Forward(group, masquerade) = decision else {
            return BTreeSet::from([Outcome::Refused(decision)]);
        };
        let endpoints = self.endpoints(group);
        assert!(!endpoints.is_empty(), "{key:?} leads to {group:x}, which is not there");
        for Endpoint { address, port, .. } in &endpoints {
            let member = |group| MemberKey { group, address: *address, port: *port, reserved: [0; 3] };
            if self.frontends[key].affinity != 0 {
                assert!(self.members.contains(&member(group)), "no member of {group:x}");
            }
            if key.protocol == 17 {
                let serving = member(group & !list::MASK | list::SERVING);
                assert!(self.members.contains(&serving), "a flow would be stale from the start");
            }
        }
        endpoints.into_iter().map(|endpoint| Outcome::Endpoint(endpoint, masquerade)).collect()
    }
}

fn picks(maps: &Maps, group: u64, count: u32, scheduler: Scheduler) -> Vec<Endpoint> {
    assert_ne!(count, 0, "an empty group");
    let in_order: Vec<Endpoint> = (0..count).map(|slot| maps.endpoint(group, slot)).collect();
    let mut found = in_order.clone();
    found.sort_unstable();
    match scheduler {
        Scheduler::Random => {}
        Scheduler::RoundRobin => {
            assert!(maps.entries.contains_key(&EntryId::Cursor(group)), "no cursor of {group:x}");
        }
        Scheduler::Maglev => {
            let Some(Entry::Maglev(_, table)) = maps.entries.get(&EntryId::Maglev(group)) else {
                panic!("no table of {group:x}");
            };
            // A slot that is not there yet counts as the remainder.
            found.extend(table.slots.iter().map(|slot| in_order[usize::from(*slot) % in_order.len()]));
        }
    }
    found
}
