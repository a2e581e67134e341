//! Which pods keep out of the socket path.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::net::IpAddr;

use sluice_core::event::{Change, Event};
use sluice_core::index::Index;
use sluice_core::model::{Namespace, ObjectName, Pod};

fn ips(text: &str) -> Vec<IpAddr> {
    text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
}

fn pod(namespace: &str, name: &str, addresses: &str, socket_path: Option<bool>) -> Event {
    let name = ObjectName::new(namespace, name);
    Event::Pod(Change::Apply(Pod { name, node: Some("here".into()), ips: ips(addresses), socket_path }))
}

fn namespace(name: &str, socket_path: Option<bool>) -> Event {
    Event::Namespace(Change::Apply(Namespace { name: ObjectName::cluster_scoped(name), socket_path }))
}

/// An index after a first, empty list of both.
fn listed() -> Index {
    let mut index = Index::default();
    index.apply(Event::Pod(Change::ListEnd));
    index.apply(Event::Namespace(Change::ListEnd));
    index.take_dirty();
    index
}

/// Applies an event; returns the addresses now, or nothing when nobody would ask for them.
fn after(index: &mut Index, event: Event) -> Option<Vec<IpAddr>> {
    index.apply(event);
    let dirty = index.take_dirty();
    assert!(dirty.services.is_empty() && !dirty.node);
    dirty.opted_out.then(|| index.opted_out("here").unwrap())
}

#[test]
fn nothing_is_known_before_both_kinds_are_listed_and_nobody_waits_for_that() {
    let mut index = Index::default();
    index.apply(pod("mesh", "a", "10.0.0.1", Some(false)));
    assert!(index.take_dirty().opted_out);
    index.apply(Event::Namespace(Change::ListEnd));
    assert_eq!(index.opted_out("here"), None);
    index.take_dirty();
    index.apply(Event::Pod(Change::ListEnd));
    assert!(index.take_dirty().opted_out, "the end of the list makes the answer known");
    assert_eq!(index.opted_out("here"), Some(ips("10.0.0.1")));

    let mut index = Index::default();
    for event in [Event::Service(Change::ListEnd), Event::Slice(Change::ListEnd)] {
        index.apply(event);
    }
    assert!(index.is_complete());
    for event in [Event::Node(Change::ListEnd), Event::ServiceCidr(Change::ListEnd)] {
        index.apply(event);
    }
    assert!(index.is_fully_listed());
}

#[test]
fn a_namespace_speaks_for_all_its_pods_and_no_others() {
    let mut index = listed();
    after(&mut index, pod("mesh", "a", "10.0.0.2 fd00::2", None));
    after(&mut index, pod("mesh", "b", "10.0.0.1", None));
    after(&mut index, pod("shop", "a", "10.0.0.3", None));
    assert_eq!(index.opted_out("here"), Some(vec![]));
    let wanted = Some(ips("10.0.0.1 10.0.0.2 fd00::2"));
    assert_eq!(after(&mut index, namespace("mesh", Some(false))), wanted);
    assert_eq!(after(&mut index, namespace("mesh", Some(true))), Some(vec![]));
    assert_eq!(after(&mut index, namespace("mesh", Some(false))), wanted);
    let gone = Event::Namespace(Change::Delete(ObjectName::cluster_scoped("mesh")));
    assert_eq!(after(&mut index, gone), Some(vec![]));
}

#[test]
fn a_pod_wins_over_its_namespace() {
    let mut index = listed();
    after(&mut index, namespace("mesh", Some(false)));
    after(&mut index, namespace("shop", Some(true)));
    after(&mut index, pod("mesh", "stays", "10.0.0.1", Some(true)));
    after(&mut index, pod("shop", "leaves", "10.0.0.2", Some(false)));
    after(&mut index, pod("other", "leaves", "10.0.0.3", Some(false)));
    assert_eq!(index.opted_out("here"), Some(ips("10.0.0.2 10.0.0.3")));
    assert_eq!(
        after(&mut index, pod("mesh", "stays", "10.0.0.1", None)),
        Some(ips("10.0.0.1 10.0.0.2 10.0.0.3"))
    );
}

#[test]
fn pods_of_other_nodes_are_none_of_ours() {
    let mut index = listed();
    let of = |name: &str, node: Option<&str>, address: &str| {
        let name = ObjectName::new("mesh", name);
        let node = node.map(Into::into);
        Event::Pod(Change::Apply(Pod { name, node, ips: ips(address), socket_path: Some(false) }))
    };
    after(&mut index, of("a", Some("there"), "10.0.1.1"));
    after(&mut index, of("b", Some("here"), "10.0.0.1"));
    // Whoever writes a manifest need not say where a pod is.
    after(&mut index, of("c", None, "10.0.0.2"));
    assert_eq!(index.opted_out("here"), Some(ips("10.0.0.1 10.0.0.2")));
}

#[test]
fn what_changes_nothing_tells_nobody() {
    let mut index = listed();
    assert_eq!(after(&mut index, namespace("quiet", None)), None);
    assert_eq!(after(&mut index, namespace("mesh", Some(false))), Some(vec![]));
    assert_eq!(after(&mut index, namespace("mesh", Some(false))), None);
    assert_eq!(after(&mut index, pod("mesh", "a", "10.0.0.1", None)), Some(ips("10.0.0.1")));
    assert_eq!(after(&mut index, pod("mesh", "a", "10.0.0.1", None)), None);
    let gone = |name: &str| Event::Pod(Change::Delete(ObjectName::new("mesh", name)));
    assert_eq!(after(&mut index, gone("b")), None);
    assert_eq!(after(&mut index, gone("a")), Some(vec![]));
}

#[test]
fn a_new_list_forgets_pods_only_at_its_end() {
    let mut index = listed();
    after(&mut index, pod("mesh", "a", "10.0.0.1", Some(false)));
    after(&mut index, pod("mesh", "b", "10.0.0.2", Some(false)));
    assert_eq!(after(&mut index, Event::Pod(Change::ListBegin)), None);
    assert_eq!(after(&mut index, pod("mesh", "b", "10.0.0.2", Some(false))), None);
    assert_eq!(index.opted_out("here"), Some(ips("10.0.0.1 10.0.0.2")));
    assert_eq!(after(&mut index, Event::Pod(Change::ListEnd)), Some(ips("10.0.0.2")));
}
