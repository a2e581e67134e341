//! A kernel that refuses single updates: who is concerned keeps a state between two operations of
//! its own, and nobody else misses anything.

use std::collections::BTreeMap;

use sluice_core::ebpf::Apart;
use sluice_core::model::{ObjectName, ServicePortName};
use sluice_core::net::Family;
use sluice_core::nft::quarantine::{Before, Failure, Outcome};

use super::*;

/// What the kernel refuses.
type Refuses = dyn Fn(&EntryId) -> bool;

struct Refusing {
    run: Run,
    /// Plans of before that may be in force, as the daemon's quarantine knows them.
    before: Before,
}

impl Refusing {
    fn new() -> Self {
        Refusing { run: Run::with_large_from(0, Scheduler::Random), before: Before::default() }
    }

    /// A full pass. Returns who was refused something.
    fn pass(&mut self, events: &[Event], refuses: &Refuses) -> BTreeSet<ObjectName> {
        self.before.planned(&self.run.plan(events));
        let (run, before) = (&mut self.run, self.before.plans());
        let (plans, observed) = (run.plans(), run.maps.observe());
        let apart = Apart::new(&plans, &before, &observed);
        let ops = run.ledger.reconcile(&plans, observed);
        let mut end = run.maps.clone();
        ops.iter().for_each(|op| end.apply(op));
        let allowed = allowed(&run.view(), &View::new(&end, run.scheduler));
        let outcome: Result<Outcome<()>, ()> =
            apart.commit(&ops, |part| commit(run, part, refuses, &allowed));
        let Ok(Outcome::Done(all)) = outcome else { panic!("gave up: {outcome:?}") };
        let refused: BTreeSet<ObjectName> = all.into_iter().flat_map(|refused| refused.services).collect();
        self.others_are_served(&end, &refused);
        self.before.retain(|name| refused.contains(name));
        refused
    }

    /// Who is not refused anything has all that it asks for.
    fn others_are_served(&self, end: &Maps, refused: &BTreeSet<ObjectName>) {
        let (now, end) = (self.run.view(), View::new(end, self.run.scheduler));
        for plan in self.run.plans().iter().filter(|plan| !refused.contains(&plan.name)) {
            let ids = plan.ports.iter().map(|port| GroupId::new(&port.id, port.affinity, Group::Cluster));
            let groups: BTreeSet<u64> = ids.map(|id| group_number(&id, Group::Cluster)).collect();
            for (key, frontend) in end.frontends.iter().filter(|(_, f)| groups.contains(&f.group)) {
                assert_eq!(now.frontends.get(key), Some(frontend), "{}", plan.name);
                for list in [list::CLUSTER, list::LOCAL] {
                    let group = frontend.group | list;
                    assert_eq!(now.endpoints(group), end.endpoints(group), "{}", plan.name);
                }
            }
        }
    }
}

/// One call: all before the refused update is done, as with the kernel.
fn commit(
    run: &mut Run,
    part: &[Op],
    refuses: &Refuses,
    allowed: &BTreeMap<Lookup, BTreeSet<maps::Outcome>>,
) -> Result<(), Failure<(), ()>> {
    for op in part {
        match op {
            Op::Put(entry) if refuses(&entry.id()) => return Err(Failure::Refused(())),
            Op::Put(entry) => drop(run.maps.entries.insert(entry.id(), entry.clone())),
            Op::Delete(id) => drop(run.maps.entries.remove(id)),
        }
        let now = run.view();
        for ((key, who, source), allowed) in allowed {
            let outcomes = now.outcomes(key, *who, address(ip(source)));
            assert!(outcomes.is_subset(allowed), "{key:?} {who:?} {source} after {op:?}: {outcomes:?}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn no_lookup_fails_whatever_is_refused_and_in_the_end_all_is_right(
        history in proptest::collection::vec(proptest::collection::vec(any_event(), 1..4), 1..8),
        seed in any::<u64>(),
        one_of in 4u64..30,
    ) {
        let mut refusing = Refusing::new();
        for events in &history {
            refusing.pass(events, &move |id| chance(seed, id).is_multiple_of(one_of));
        }
        prop_assert_eq!(refusing.pass(&[], &|_| false), BTreeSet::new());
        refusing.run.check();
    }
}

fn web(text: &str, last: u8, external: &str) -> Event {
    let service = Service {
        ports: vec![port("http", Tcp, 80, 0)],
        external_ips: ips(external),
        ..service(text, &format!("172.30.0.{last}"))
    };
    Event::Service(Change::Apply(service))
}

fn at(text: &str, of: &str, hosts: &[u8]) -> Event {
    let endpoints = hosts.iter().map(|host| endpoint(&format!("10.0.0.{host}"), "")).collect();
    Event::Slice(Change::Apply(slice(text, of, ("http", Tcp, 8080), endpoints)))
}

/// The group of a Service's port.
fn group(of: &str) -> u64 {
    let id = ServicePortName { service: name(of), port: "http".into(), protocol: Tcp, family: Family::V4 };
    group_number(&GroupId::new(&id, None, Group::Cluster), Group::Cluster)
}

#[test]
fn a_service_with_a_refused_slot_keeps_its_endpoints_and_others_are_updated() {
    let mut refusing = Refusing::new();
    let all = [
        web("s1", 1, ""),
        web("s2", 2, ""),
        web("s3", 3, ""),
        at("a4", "s1", &[1]),
        at("b4", "s2", &[2]),
        at("c4", "s3", &[3]),
    ];
    assert_eq!(refusing.pass(&all, &|_| false), BTreeSet::new());
    let bad = group("s2");
    let refuses =
        move |id: &EntryId| matches!(id, EntryId::Endpoint(key) if key.group == bad && key.slot == 1);
    let more = [
        at("a4", "s1", &[1, 11]),
        at("b4", "s2", &[2, 12]),
        at("c4", "s3", &[3, 13]),
        web("s4", 4, ""),
        at("d4", "s4", &[4]),
    ];
    assert_eq!(refusing.pass(&more, &refuses), [name("s2")].into());
    let view = refusing.run.view();
    let count = |of| view.endpoints(group(of)).len();
    assert_eq!(["s1", "s2", "s3", "s4"].map(count), [2, 1, 2, 1]);
    // The others go on changing, also while it is refused.
    assert_eq!(refusing.pass(&[at("a4", "s1", &[11])], &refuses), [name("s2")].into());
    assert_eq!(refusing.run.view().endpoints(group("s1")).len(), 1);
    assert_eq!(refusing.pass(&[], &|_| false), BTreeSet::new());
    refusing.run.check();
}

/// The address of a Service that goes is to be another one's, which is refused: it leads where it
/// did for as long.
#[test]
fn an_address_that_cannot_be_taken_over_keeps_the_endpoints_that_it_leads_to() {
    let mut refusing = Refusing::new();
    let old = [web("s1", 1, "192.0.2.1"), at("a4", "s1", &[1]), web("s3", 3, ""), at("c4", "s3", &[3])];
    assert_eq!(refusing.pass(&old, &|_| false), BTreeSet::new());
    let bad = group("s2");
    let refuses = move |id: &EntryId| matches!(id, EntryId::Group(group) if *group == bad);
    let moved = [
        Event::Service(Change::Delete(name("s1"))),
        web("s2", 2, "192.0.2.1"),
        at("b4", "s2", &[2]),
        at("c4", "s3", &[13]),
    ];
    assert_eq!(refusing.pass(&moved, &refuses), [name("s1"), name("s2")].into());
    let view = refusing.run.view();
    let key = |last: u8| FrontendKey {
        address: Address::v4(u32::from_ne_bytes([192, 0, 2, last])),
        port: 80u16.to_be(),
        protocol: 6,
        kind: 0,
    };
    assert_eq!(view.frontends[&key(1)].group, group("s1"));
    assert_eq!((view.endpoints(group("s1")).len(), view.endpoints(group("s3")).len()), (1, 1));
    assert_eq!(refusing.pass(&[], &|_| false), BTreeSet::new());
    assert_eq!(refusing.run.view().frontends[&key(1)].group, group("s2"));
    refusing.run.check();
}

/// It is refused the mark of its ClusterIP, gets its frontend all the same, and is to lose it:
/// nobody may find neither.
#[test]
fn entries_of_a_partly_refused_service_are_removed_with_it() {
    let mut refusing = Refusing::new();
    let refuses = |id: &EntryId| matches!(id, EntryId::Frontend(key) if key.port == 0);
    let none = Event::Service(Change::Apply(service("s1", "172.30.0.1")));
    let other = |events: &[Event], refusing: &mut Refusing| refusing.pass(events, &refuses);
    assert_eq!(other(std::slice::from_ref(&none), &mut refusing), [name("s1")].into());
    assert_eq!(other(&[web("s1", 1, "")], &mut refusing), [name("s1")].into());
    assert_eq!(other(&[none], &mut refusing), [name("s1")].into());
    assert_eq!(refusing.pass(&[], &|_| false), BTreeSet::new());
    refusing.run.check();
}

/// A map that is full, of which no larger one can be made: Services that go leave the room for
/// those that come, however many.
#[test]
fn a_map_that_is_full_of_what_is_to_go_gets_room() {
    const ROOM: usize = 300;
    let mut run = Run::with_large_from(0, Scheduler::Random);
    let all = |from: u16, kept: Option<&str>| -> Vec<Event> {
        let each = |number: u16| {
            let of = format!("s{number}");
            let service =
                Service { ports: vec![port("http", Tcp, 80, 0)], ..service(&of, &address_of(number)) };
            [Event::Service(Change::Apply(service)), at(&format!("a{number}-4"), &of, &[1])]
        };
        let gone = |number: u16| Event::Service(Change::Delete(name(&format!("s{number}"))));
        let old = (0..from).filter(|number| kept != Some(format!("s{number}").as_str()));
        old.map(gone).chain((from..from + ROOM as u16).flat_map(each)).collect()
    };
    let mut pass = |events: &[Event]| {
        run.plan(events);
        let (plans, observed) = (run.plans(), run.maps.observe());
        let apart = Apart::new(&plans, &[], &observed);
        let ops = run.ledger.reconcile(&plans, observed);
        let entries = &mut run.maps.entries;
        let outcome: Result<Outcome<()>, ()> = apart.commit(&ops, |part| {
            for op in part {
                match op {
                    Op::Put(entry @ Entry::Endpoint(..)) if !entries.contains_key(&entry.id()) => {
                        if entries.keys().filter(|id| matches!(id, EntryId::Endpoint(_))).count() >= ROOM {
                            return Err(Failure::Refused(()));
                        }
                        entries.insert(entry.id(), entry.clone());
                    }
                    Op::Put(entry) => drop(entries.insert(entry.id(), entry.clone())),
                    Op::Delete(id) => drop(entries.remove(id)),
                }
            }
            Ok(())
        });
        (outcome, run.view())
    };
    assert_eq!(pass(&all(0, None)).0, Ok(Outcome::Done(vec![])));
    // One stays, and its address goes nowhere.
    let (outcome, view) = pass(&all(ROOM as u16, Some("s7")));
    assert_eq!(outcome, Ok(Outcome::GaveUp(())));
    assert_eq!(view.endpoints(group("s7")).len(), 1);
    assert_eq!(view.frontends.values().filter(|frontend| frontend.group == group("s8")).count(), 0);
    let (outcome, view) = pass(&[]);
    let Ok(Outcome::Done(refused)) = outcome else { panic!("there is room: {outcome:?}") };
    assert_eq!(refused.len(), 1, "one more than there is room for");
    assert_eq!(view.endpoints(group("s7")).len(), 1);
}

fn address_of(number: u16) -> String {
    format!("172.30.{}.{}", 1 + number / 200, 1 + number % 200)
}

/// A Service is refused twice, so what it got in between is no plan's any more. Ports of its
/// ClusterIP that are not defined get nothing other than they did, and no port that was goes before
/// they do.
#[test]
fn without_the_mark_of_a_cluster_ip_its_frontends_stay() {
    let mut refusing = Refusing::new();
    let service = |ip: &str, ports| Event::Service(Change::Apply(Service { ports, ..service("s1", ip) }));
    let refuses = |id: &EntryId| matches!(id, EntryId::Frontend(key) if key.port == 0);
    for event in [
        service("172.30.0.9", vec![]),
        service("172.30.0.1", vec![port("alt", Tcp, 80, 0)]),
        service("172.30.0.1", vec![port("http", Tcp, 8080, 0)]),
    ] {
        assert_eq!(refusing.pass(&[event], &refuses), [name("s1")].into());
    }
    assert_eq!(refusing.pass(&[], &|_| false), BTreeSet::new());
    refusing.run.check();
}
