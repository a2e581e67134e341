//! The one owner of the objects: takes events into the index, and tells each part of the daemon
//! what changed for it.
//!
//! A part that needs more than a list of Nodes or addresses reads the index itself
//! ([`World::index`]). Events wait meanwhile, so a reader keeps it only while it decides, not while
//! it waits for the kernel.

mod own_node;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use sluice_core::event::{Change, Event};
use sluice_core::index::{Dirty, Index};
use sluice_core::model::Node;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::block_in_place;
use tracing::{info, warn};

use crate::config::Settings;
use crate::observe::metrics::{Metrics, unix_now};
use crate::watch::Received;
use own_node::{OwnNode, Told};

/// Events taken together.
const BATCH: usize = 4096;

/// What changed since it was taken the last time.
#[derive(Debug, Default)]
pub struct Changes {
    /// What must be planned anew.
    pub dirty: Dirty,
    /// When endpoints changed, as their controller wrote it, in nanoseconds since 1970.
    pub triggers: Vec<i128>,
    /// When the first event came.
    pub oldest: Option<Instant>,
}

/// The objects, and what changed for the service proxy. Clones share both.
#[derive(Clone, Default)]
pub struct World(Arc<Shared>);

#[derive(Default)]
struct Shared {
    index: RwLock<Index>,
    /// Only written by who holds the index.
    changes: Mutex<Changes>,
    news: Notify,
}

impl World {
    /// The current objects. No event is taken in while this is held.
    pub fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.0.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What changed since the last call. Whoever holds [`World::index`] gets all that is in it.
    pub fn take_changes(&self) -> Changes {
        std::mem::take(&mut *self.0.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes events in. What happened before `since` says nothing about the speed of this process.
    pub(crate) fn apply(&self, batch: &mut Vec<Received>, since: i128, look: impl FnOnce(&Index, &Dirty)) {
        let mut index = self.0.index.write().unwrap_or_else(PoisonError::into_inner);
        let mut changes = Changes::default();
        for Received { event, at } in batch.drain(..) {
            changes.oldest.get_or_insert(at);
            let trigger = match &event {
                Event::Slice(Change::Apply(slice)) => slice.triggered,
                _ => None,
            };
            if index.apply(event) {
                changes.triggers.extend(trigger.filter(|at| *at > since));
            }
        }
        changes.dirty = index.take_dirty();
        look(&index, &changes.dirty);
        self.0.changes.lock().unwrap_or_else(PoisonError::into_inner).add(changes);
        drop(index);
        self.0.news.notify_one();
    }

    /// Waits until events have come since the last call, whether they changed anything or not.
    pub async fn news(&self) {
        self.0.news.notified().await;
    }
}

/// All Nodes, once they have been listed.
pub type Nodes = Option<Arc<Vec<Node>>>;

/// What is published of the objects for parts that need no index.
pub struct Published {
    /// For the pod network.
    pub nodes: watch::Sender<Nodes>,
    /// Addresses of this node's pods that leave the socket path, once they are known.
    pub opted_out: watch::Sender<Option<Vec<IpAddr>>>,
}

/// What keeps the objects.
pub struct State {
    world: World,
    published: Published,
    metrics: Metrics,
    node_name: String,
    own_node: OwnNode,
    publishes_nodes: bool,
    begun_at_unix_nanos: i128,
}

impl State {
    /// Knows no object yet.
    pub fn new(settings: &Settings, published: Published, metrics: Metrics) -> Self {
        State {
            world: World::default(),
            published,
            metrics,
            node_name: settings.node_name.clone(),
            own_node: OwnNode::new(&settings.source),
            publishes_nodes: settings.pod_network.is_some(),
            begun_at_unix_nanos: (unix_now() * 1e9) as i128,
        }
    }

    /// The objects, for readers.
    pub fn world(&self) -> World {
        self.world.clone()
    }

    /// Takes events until nobody sends any more.
    pub async fn run(mut self, mut events: mpsc::Receiver<Received>) {
        let mut batch = Vec::with_capacity(64);
        loop {
            let due = self.own_node.due();
            let look = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                count = events.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    // A reader may hold the index for as long as a large plan takes.
                    block_in_place(|| self.receive(&mut batch));
                }
                () = look => {}
            }
            block_in_place(|| self.tell_of_own_node());
        }
    }

    fn receive(&mut self, batch: &mut Vec<Received>) {
        for received in batch.iter() {
            match &received.event {
                Event::Service(Change::Apply(_) | Change::Delete(_)) => {
                    self.metrics.service_changes.inc();
                }
                Event::Slice(Change::Apply(_) | Change::Delete(_)) => {
                    self.metrics.endpoint_changes.inc();
                }
                _ => {}
            }
        }
        self.world.apply(batch, self.begun_at_unix_nanos, |index, dirty| self.publish(index, dirty));
    }

    fn publish(&self, index: &Index, dirty: &Dirty) {
        if dirty.opted_out {
            let now = index.opted_out(&self.node_name);
            self.published.opted_out.send_if_modified(|known| {
                let changed = *known != now;
                *known = now;
                changed
            });
        }
        if dirty.nodes && self.publishes_nodes {
            self.published.nodes.send_replace(index.nodes().map(Arc::new));
        }
    }

    /// Without its Node much of this node does not work, and nothing else says why.
    fn tell_of_own_node(&mut self) {
        let name = self.node_name.as_str();
        let is_missing = {
            let index = self.world.index();
            index.has_listed_nodes() && index.node(name).is_none()
        };
        match self.own_node.look(is_missing, Instant::now()) {
            Some(Told::Missing) => warn!(
                node = name,
                "there is no Node with this name: node ports do not answer on the Node's addresses, endpoints \
                 count as local only if their nodeName is this name, and /healthz returns 503. Values of an \
                 earlier Node with this name stay in force. Set the right name with --hostname-override \
                 (hostnameOverride in the configuration file), or find out why the kubelet has not \
                 registered the Node"
            ),
            Some(Told::There) => info!(node = name, "the Node with this name exists"),
            None => {}
        }
    }
}

impl Changes {
    fn add(&mut self, later: Changes) {
        self.dirty.add(later.dirty);
        self.triggers.extend(later.triggers);
        self.oldest = self.oldest.or(later.oldest);
    }
}

#[cfg(test)]
mod tests {
    use sluice_core::kind::Kind;
    use sluice_core::model::{Namespace, ObjectName, Pod};

    use super::*;

    fn received(events: impl IntoIterator<Item = Event>) -> Vec<Received> {
        events.into_iter().map(|event| Received { event, at: Instant::now() }).collect()
    }

    fn node(name: &str) -> Event {
        Event::Node(Change::Apply(Node {
            name: ObjectName::cluster_scoped(name),
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            zone: None,
            eligible: true,
        }))
    }

    fn state(publishes_nodes: bool) -> (State, watch::Receiver<Nodes>, watch::Receiver<Option<Vec<IpAddr>>>) {
        let (nodes, nodes_receiver) = watch::channel(None);
        let (opted_out, opted_out_receiver) = watch::channel(None);
        let state = State {
            world: World::default(),
            published: Published { nodes, opted_out },
            metrics: Metrics::default(),
            node_name: "here".to_owned(),
            own_node: OwnNode::new(&crate::config::Source::Manifests("/m".into())),
            publishes_nodes,
            begun_at_unix_nanos: 0,
        };
        (state, nodes_receiver, opted_out_receiver)
    }

    /// Before, the pod network waited until Services had been listed and the kernel had taken the
    /// last change.
    #[test]
    fn nodes_are_published_as_soon_as_they_are_known_whatever_services_wait_for() {
        let (mut state, nodes, _) = state(true);
        state.receive(&mut received([Kind::Node.list_begin(), node("a")]));
        assert!(nodes.borrow().is_none());
        state.receive(&mut received([node("b"), Kind::Node.list_end()]));
        let names = |nodes: &[Node]| nodes.iter().map(|node| node.name.name().to_owned()).collect::<Vec<_>>();
        assert_eq!(nodes.borrow().as_deref().map(|nodes| names(nodes)), Some(vec!["a".into(), "b".into()]));
        assert!(!state.world().index().is_complete());
    }

    #[test]
    fn nobody_copies_nodes_for_nobody() {
        let (mut state, nodes, _) = state(false);
        state.receive(&mut received([Kind::Node.list_begin(), node("a"), Kind::Node.list_end()]));
        assert!(nodes.borrow().is_none());
    }

    #[test]
    fn changes_add_up_until_they_are_taken() {
        let (mut state, ..) = state(false);
        let world = state.world();
        let first = received([Kind::Service.deletion(ObjectName::new("x", "unknown")), node("here")]);
        let oldest = first[0].at;
        state.receive(&mut { first });
        state.receive(&mut received([node("other")]));
        let changes = world.take_changes();
        assert!(changes.dirty.node && changes.dirty.nodes && !changes.dirty.opted_out);
        assert_eq!((changes.dirty.services.len(), changes.oldest), (0, Some(oldest)));
        let none = world.take_changes();
        assert_eq!((none.dirty, none.oldest), (Dirty::default(), None));
    }

    #[test]
    fn pods_that_opted_out_are_published_once_both_kinds_are_listed() {
        let (mut state, _, opted_out) = state(false);
        let namespace = Namespace { name: ObjectName::cluster_scoped("quiet"), socket_path: Some(false) };
        let pod = Pod {
            name: ObjectName::new("quiet", "p"),
            node: Some("here".into()),
            ips: vec!["10.1.0.1".parse().unwrap()],
            socket_path: None,
        };
        let namespaces = [
            Kind::Namespace.list_begin(),
            Event::Namespace(Change::Apply(namespace)),
            Kind::Namespace.list_end(),
        ];
        state.receive(&mut received(namespaces));
        assert!(opted_out.borrow().is_none());
        let pods = [Kind::Pod.list_begin(), Event::Pod(Change::Apply(pod)), Kind::Pod.list_end()];
        state.receive(&mut received(pods));
        assert_eq!(*opted_out.borrow(), Some(vec!["10.1.0.1".parse().unwrap()]));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn readers_are_told_of_every_event_and_the_end_of_all() {
        let (state, ..) = state(false);
        let (sender, events) = mpsc::channel(1);
        let world = state.world();
        let running = tokio::spawn(state.run(events));
        for event in [node("here"), node("here")] {
            sender.send(Received { event, at: Instant::now() }).await.unwrap();
            world.news().await;
        }
        assert!(world.index().node("here").is_some());
        drop(sender);
        running.await.unwrap();
    }
}
