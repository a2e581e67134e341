//! The one owner of the objects: takes events into the index, and tells each part of the daemon
//! what changed for it.
//!
//! A part that needs more than a list of Nodes or addresses reads the index itself
//! ([`Subscription`]). Events wait meanwhile, so a reader keeps it only while it decides, not while
//! it waits for the kernel.

mod own_node;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use sluice_core::event::{Change, Event};
use sluice_core::index::{Dirty, Index};
use sluice_core::model::ObjectName;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::block_in_place;
use tracing::{info, warn};

use crate::config::Settings;
use crate::observe::metrics::{Metrics, unix_now};
use crate::watch::{Kinds, Received};
use own_node::{OwnNode, Told};

/// Events taken together.
const BATCH: usize = 4096;

/// What changed since it was taken the last time.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// What must be planned anew.
    pub dirty: Dirty,
    /// Of which Services endpoints changed, and when, as their controller wrote it, in nanoseconds
    /// since 1970.
    pub triggers: Vec<(ObjectName, i128)>,
    /// When the first event came.
    pub oldest: Option<Instant>,
}

/// The objects, and who reads them. Clones share both.
#[derive(Clone, Default)]
pub struct World(Arc<Shared>);

#[derive(Default)]
struct Shared {
    index: RwLock<Index>,
    readers: Mutex<Readers>,
}

#[derive(Default)]
struct Readers {
    queues: Vec<Arc<Queue>>,
    looks: Vec<Look>,
}

/// What somebody sees of the objects when they have changed.
type Look = Box<dyn Fn(&Index, &Dirty) + Send + Sync>;

/// What changed for one reader.
struct Queue {
    kinds: Kinds,
    /// Only written by who holds the index.
    changes: Mutex<Changes>,
    news: Notify,
}

/// The objects for one reader, and what changed for it. Clones share both.
#[derive(Clone)]
pub struct Subscription {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
}

impl Subscription {
    /// The current objects. No event is taken in while this is held.
    pub fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.shared.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What changed since the last call. Whoever holds [`Subscription::index`] gets all that is in
    /// it.
    pub fn take_changes(&self) -> Changes {
        std::mem::take(&mut *locked(&self.queue.changes))
    }

    /// Waits until events of its kinds have come since the last call, whether they changed anything
    /// or not.
    pub async fn news(&self) {
        self.queue.news.notified().await;
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// For a reader that decides by the whole index, and learns what changed in these kinds from
    /// now on.
    pub fn subscribe(&self, kinds: Kinds) -> Subscription {
        let queue = Arc::new(Queue { kinds, changes: Mutex::default(), news: Notify::new() });
        locked(&self.0.readers).queues.push(queue.clone());
        Subscription { shared: self.0.clone(), queue }
    }

    /// For a reader that needs no index, but something that is made of it: what `look` returns
    /// after a change, if it is another value. As it is made while events are taken in, it waits
    /// for no other reader.
    pub fn follow<T: Default + PartialEq + Send + Sync + 'static>(
        &self,
        look: impl Fn(&Index, &Dirty) -> Option<T> + Send + Sync + 'static,
    ) -> watch::Receiver<T> {
        let (sender, receiver) = watch::channel(T::default());
        let publish = move |index: &Index, dirty: &Dirty| {
            let Some(now) = look(index, dirty) else { return };
            sender.send_if_modified(|known| {
                let changed = *known != now;
                *known = now;
                changed
            });
        };
        locked(&self.0.readers).looks.push(Box::new(publish));
        receiver
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.0.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes events in. What happened before `since` says nothing about the speed of this process.
    pub(crate) fn apply(&self, batch: &mut Vec<Received>, since: i128) {
        let mut index = self.0.index.write().unwrap_or_else(PoisonError::into_inner);
        let mut changes = Changes::default();
        let mut kinds = BTreeSet::new();
        for Received { event, at } in batch.drain(..) {
            changes.oldest.get_or_insert(at);
            kinds.insert(event.kind());
            let trigger = match &event {
                Event::Slice(Change::Apply(slice)) => {
                    let at = slice.triggered.filter(|at| *at > since);
                    at.map(|at| (slice.service.clone(), at))
                }
                _ => None,
            };
            if index.apply(event) {
                changes.triggers.extend(trigger);
            }
        }
        changes.dirty = index.take_dirty();
        let readers = locked(&self.0.readers);
        readers.looks.iter().for_each(|look| look(&index, &changes.dirty));
        let woken: Vec<_> =
            readers.queues.iter().filter(|queue| kinds.iter().any(|kind| queue.kinds.has(*kind))).collect();
        if let Some((last, others)) = woken.split_last() {
            others.iter().for_each(|queue| locked(&queue.changes).add(changes.clone()));
            locked(&last.changes).add(changes);
        }
        drop(index);
        woken.iter().for_each(|queue| queue.news.notify_one());
    }
}

/// What keeps the objects.
pub struct State {
    world: World,
    metrics: Metrics,
    node_name: String,
    own_node: OwnNode,
    begun_at_unix_nanos: i128,
}

impl State {
    /// Knows no object yet.
    pub fn new(settings: &Settings, metrics: Metrics) -> Self {
        State {
            world: World::default(),
            metrics,
            node_name: settings.node_name.clone(),
            own_node: OwnNode::new(&settings.source),
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
        self.world.apply(batch, self.begun_at_unix_nanos);
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
    use sluice_core::model::{Namespace, Node, Pod};

    use super::*;
    use crate::watch::Reach;

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

    fn state() -> State {
        State {
            world: World::default(),
            metrics: Metrics::default(),
            node_name: "here".to_owned(),
            own_node: OwnNode::new(&crate::config::Source::Manifests("/m".into())),
            begun_at_unix_nanos: 0,
        }
    }

    fn reads(world: &World, kinds: &[Kind]) -> Subscription {
        world.subscribe(kinds.iter().map(|kind| (*kind, Reach::Cluster)).collect())
    }

    /// Before, the pod network waited until Services had been listed and the kernel had taken the
    /// last change.
    #[test]
    fn what_is_made_of_nodes_is_there_as_soon_as_they_are_known_whatever_services_wait_for() {
        let mut state = state();
        let names = |index: &Index, dirty: &Dirty| {
            let nodes = |nodes: Vec<Node>| nodes.iter().map(|node| node.name.name().to_owned()).collect();
            dirty.nodes.then(|| index.nodes().map(nodes).unwrap_or_default())
        };
        let mut nodes: watch::Receiver<Vec<String>> = state.world().follow(names);
        let reader = reads(&state.world(), &[Kind::Service]);
        state.receive(&mut received([Kind::Node.list_begin(), node("a")]));
        assert!(nodes.borrow_and_update().is_empty());
        state.receive(&mut received([node("b"), Kind::Node.list_end()]));
        assert_eq!(*nodes.borrow_and_update(), ["a", "b"]);
        assert!(!reader.index().is_complete());
        state.receive(&mut received([node("b")]));
        assert!(!nodes.has_changed().unwrap());
    }

    #[test]
    fn each_reader_learns_what_changed_in_its_kinds_whatever_others_take() {
        let mut state = state();
        let world = state.world();
        let (one, other) = (reads(&world, &[Kind::Node]), reads(&world, &[Kind::Node, Kind::Service]));
        let neither = reads(&world, &[Kind::Pod]);
        state.receive(&mut received([node("here")]));
        assert!(one.take_changes().dirty.node);
        state.receive(&mut received([Kind::Service.list_begin()]));
        assert!(one.take_changes().oldest.is_none());
        assert!(other.take_changes().dirty.node && neither.take_changes().oldest.is_none());
        assert_eq!(one.index().has_listed_nodes(), neither.index().has_listed_nodes());
    }

    #[test]
    fn changes_add_up_until_they_are_taken() {
        let mut state = state();
        let world = reads(&state.world(), Kind::ALL);
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
        let mut state = state();
        let opted_out = state.world().follow(|index, dirty| dirty.opted_out.then(|| index.opted_out("here")));
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
    async fn subscribers_get_every_event_and_the_end() {
        let state = state();
        let (sender, events) = mpsc::channel(1);
        let world = reads(&state.world(), &[Kind::Node]);
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
