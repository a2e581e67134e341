//! The loop with a backend that writes down what it is asked for.

use sluice_core::event::{Change, Event};
use sluice_core::kind::Kind;
use sluice_core::model::{Service, ServicePort, ServiceType, TrafficPolicy};
use sluice_core::net::Protocol;
use sluice_core::plan::Capture;

use super::*;
use crate::config::{Flags, resolve};
use crate::service::backend::Known;
use crate::state::World;
use crate::watch::Received;

/// What was asked for, and what is refused next.
#[derive(Default)]
struct Script {
    calls: Vec<String>,
    refuses_node: bool,
    refuses_change: bool,
    /// So many turns a large change takes after it was begun.
    turns: usize,
    /// How many of these are left.
    waiting: usize,
    refuses_turn: bool,
}

#[derive(Clone, Default)]
struct Fake(Arc<std::sync::Mutex<Script>>);

impl Fake {
    fn note(&self, call: String) {
        self.0.lock().unwrap().calls.push(call);
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }
}

impl Backend for Fake {
    fn report_to(&mut self, _: Progress) {}

    fn full(
        &mut self,
        _: &Settings,
        facts: &NodeFacts,
        plans: &[Arc<ServicePlan>],
        _: &Known,
    ) -> Result<Done, BackendError> {
        self.note(format!("full: {} Services, {} addresses", plans.len(), facts.interfaces.len()));
        Ok(Done::default())
    }

    fn change(&mut self, changes: &[PlanChange]) -> Result<Applied, BackendError> {
        self.note(format!("change: {} Services", changes.len()));
        match self.0.lock().unwrap().refuses_change {
            true => Err(BackendError::NoIpvs(vec!["refused".into()])),
            false => Ok(Applied { operations: 1, transactions: 1 }),
        }
    }

    fn begin(&mut self, changes: &[PlanChange]) -> Result<Applied, BackendError> {
        self.note(format!("begin: {} Services", changes.len()));
        let mut script = self.0.lock().unwrap();
        if script.refuses_change {
            return Err(BackendError::NoIpvs(vec!["refused".into()]));
        }
        script.waiting = script.turns;
        Ok(Applied { operations: 1, transactions: 1 })
    }

    fn has_more(&self) -> bool {
        self.0.lock().unwrap().waiting > 0
    }

    fn go_on(&mut self) -> Result<Applied, BackendError> {
        self.note("go on".to_owned());
        let mut script = self.0.lock().unwrap();
        if script.refuses_turn {
            return Err(BackendError::NoIpvs(vec!["refused".into()]));
        }
        script.waiting -= 1;
        Ok(Applied { operations: 10, transactions: 1 })
    }

    fn set_node(&mut self, _: &Settings, facts: &NodeFacts) -> Result<Option<Applied>, BackendError> {
        self.note(format!("node: {} addresses", facts.interfaces.len()));
        match self.0.lock().unwrap().refuses_node {
            true => Err(BackendError::NoIpvs(vec!["refused".into()])),
            false => Ok(Some(Applied { operations: 3, transactions: 1 })),
        }
    }
}

fn reconciler(backend: &Fake) -> (Reconciler, World) {
    let world = World::default();
    let outputs = Outputs {
        health: Health::new(Duration::from_secs(30)),
        metrics: Metrics::default(),
        conntrack: mpsc::unbounded_channel().0,
        health_checks: watch::channel(BTreeMap::new()).0,
        listeners: watch::channel(Listeners::default()).0,
        facts: watch::channel(NodeFacts::default()).0,
        log: SyncLog::default(),
        recorder: Recorder::default(),
        started: tokio::sync::oneshot::channel().0,
    };
    let settings = resolve(Default::default(), &Flags::default(), "node-a").unwrap();
    let objects = world.subscribe(crate::service::interests(&settings));
    (Reconciler::new(settings, objects, Box::new(backend.clone()), outputs), world)
}

fn service(name: &str) -> Event {
    with_ports(name, 1)
}

/// A Service that counts as large by its ports.
fn large() -> Event {
    with_ports("large", 4_000)
}

fn with_ports(name: &str, ports: u16) -> Event {
    let first = name.as_bytes()[0];
    Event::Service(Change::Apply(Service {
        name: ObjectName::new("default", name),
        created: None,
        service_type: ServiceType::ClusterIp,
        cluster_ips: vec![[10, 96, 0, first].into()],
        ports: (0..ports)
            .map(|number| ServicePort {
                name: number.to_string().into(),
                protocol: Protocol::Udp,
                port: u16::from(first) + number,
                node_port: 0,
            })
            .collect(),
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check_node_port: 0,
    }))
}

fn happen(world: &World, events: impl IntoIterator<Item = Event>) {
    let mut batch = events.into_iter().map(|event| Received { event, at: Instant::now() }).collect();
    world.apply(&mut batch, 0);
}

/// All lists, with one Service.
fn lists() -> Vec<Event> {
    let kinds = [Kind::Service, Kind::Slice, Kind::Node, Kind::ServiceCidr];
    let begins = kinds.map(Kind::list_begin);
    let ends = kinds.map(Kind::list_end);
    begins.into_iter().chain([service("a")]).chain(ends).collect()
}

/// A loop after its first full pass.
fn synced(backend: &Fake) -> (Reconciler, World) {
    let (mut reconciler, world) = reconciler(backend);
    happen(&world, lists());
    reconciler.network_known = true;
    reconciler.step();
    assert_eq!(backend.calls(), ["full: 1 Services, 0 addresses"]);
    (reconciler, world)
}

#[test]
fn nothing_is_written_before_services_and_their_slices_are_listed() {
    let backend = Fake::default();
    let (mut reconciler, world) = reconciler(&backend);
    reconciler.network_known = true;
    let mut events = lists();
    let rest = events.split_off(events.len() - 3);
    happen(&world, events);
    reconciler.step();
    assert!(backend.calls().is_empty());
    happen(&world, rest);
    reconciler.step();
    assert_eq!(backend.calls(), ["full: 1 Services, 0 addresses"]);
    reconciler.step();
    assert!(backend.calls().is_empty());
}

#[test]
fn changes_are_applied_once() {
    let backend = Fake::default();
    let (mut reconciler, world) = synced(&backend);
    happen(&world, [service("b"), service("c")]);
    reconciler.step();
    assert_eq!(backend.calls(), ["change: 2 Services"]);
    happen(&world, [service("b")]);
    reconciler.step();
    assert!(backend.calls().is_empty());
}

#[test]
fn what_is_written_for_a_changed_node_is_counted() {
    let backend = Fake::default();
    let (mut reconciler, _) = synced(&backend);
    reconciler.facts.interfaces = vec![[192, 0, 2, 1].into()];
    reconciler.node_dirty = true;
    reconciler.step();
    assert_eq!(backend.calls(), ["node: 1 addresses"]);
    assert_eq!(reconciler.outputs.metrics.operations.get(), 3);
}

/// A full pass came at once, beside the one that the log announced for later.
#[test]
fn a_refused_node_leads_to_one_full_pass_when_the_log_says_so() {
    let backend = Fake::default();
    let (mut reconciler, world) = synced(&backend);
    backend.0.lock().unwrap().refuses_node = true;
    reconciler.facts.interfaces = vec![[192, 0, 2, 1].into()];
    reconciler.node_dirty = true;
    happen(&world, [service("b")]);
    // Longer than any test may take.
    reconciler.retry_delay = Duration::from_secs(3600);
    reconciler.step();
    assert_eq!(backend.calls(), ["node: 1 addresses"]);
    assert!(reconciler.wake_at() > Instant::now());
    reconciler.step();
    assert!(backend.calls().is_empty());
    reconciler.retry_at = Some(Instant::now());
    reconciler.step();
    assert_eq!(backend.calls(), ["full: 2 Services, 1 addresses"]);
    assert_eq!(reconciler.phase, Phase::Incremental);
}

/// The numbers of operations of the passes so far.
fn passes(reconciler: &Reconciler) -> Vec<(&'static str, usize)> {
    let log = reconciler.outputs.log.lock().unwrap();
    log.iter().map(|pass| (pass.kind, pass.operations)).collect()
}

/// From now on the frontends that the conntrack task is told of.
fn tells(reconciler: &mut Reconciler) -> mpsc::UnboundedReceiver<conntrack::Request> {
    let (sender, told) = mpsc::unbounded_channel();
    reconciler.outputs.conntrack = sender;
    told
}

/// The first letters of the Services that were told of, each once in a row; see `with_ports`.
fn told(told: &mut mpsc::UnboundedReceiver<conntrack::Request>) -> String {
    let mut services = Vec::new();
    while let Ok(request) = told.try_recv() {
        let Capture::Address(IpAddr::V4(ip), ..) = request.capture else { panic!("{request:?}") };
        services.push(char::from(ip.octets()[3]));
    }
    services.dedup();
    services.into_iter().collect()
}

#[test]
fn others_do_not_wait_for_a_large_service() {
    let backend = Fake::default();
    let (mut reconciler, world) = synced(&backend);
    let mut flows = tells(&mut reconciler);
    backend.0.lock().unwrap().turns = 2;
    happen(&world, [large(), service("b")]);
    reconciler.step();
    assert_eq!(backend.calls(), ["change: 1 Services", "begin: 1 Services"]);
    assert_eq!((passes(&reconciler), told(&mut flows)), (vec![("full", 0), ("incremental", 1)], "b".into()));
    assert!(reconciler.wake_at() <= Instant::now());
    happen(&world, [service("c")]);
    reconciler.step();
    assert_eq!(backend.calls(), ["change: 1 Services", "go on"]);
    assert_eq!((&passes(&reconciler)[2..], told(&mut flows)), (&[("incremental", 1)][..], "c".into()));
    reconciler.step();
    assert_eq!(backend.calls(), ["go on"]);
    assert_eq!((&passes(&reconciler)[3..], told(&mut flows)), (&[("incremental", 21)][..], "l".into()));
    assert!(reconciler.wake_at() > Instant::now());
    reconciler.step();
    assert!(backend.calls().is_empty());
}

/// They came out of order, and the kernel was told of the last one while the first was in work.
#[test]
fn changes_of_a_large_service_follow_each_other() {
    let backend = Fake::default();
    let (mut reconciler, world) = synced(&backend);
    let mut flows = tells(&mut reconciler);
    backend.0.lock().unwrap().turns = 2;
    happen(&world, [large()]);
    reconciler.step();
    assert_eq!(backend.calls(), ["begin: 1 Services"]);
    // Small by now, but it goes on from what is not there yet.
    for ports in [3_000, 1] {
        happen(&world, [with_ports("large", ports)]);
        reconciler.step();
        assert_eq!(
            (backend.calls(), told(&mut flows)),
            (vec!["go on".into()], if ports == 1 { "l" } else { "" }.into())
        );
    }
    assert_eq!(passes(&reconciler)[1..], [("incremental", 21)]);
    reconciler.step();
    assert_eq!(backend.calls(), ["begin: 1 Services"]);
    assert_eq!(reconciler.quarantine.known().before.len(), 1);
    reconciler.step();
    reconciler.step();
    assert_eq!(backend.calls(), ["go on", "go on"]);
    assert!(reconciler.turns.is_idle() && reconciler.quarantine.known().before.is_empty());
    assert_eq!((&passes(&reconciler)[2..], told(&mut flows)), (&[("incremental", 21)][..], "l".into()));
}

#[test]
fn what_is_refused_of_a_large_service_is_left_to_a_full_pass() {
    let backend = Fake::default();
    let (mut reconciler, world) = synced(&backend);
    backend.0.lock().unwrap().turns = 3;
    backend.0.lock().unwrap().refuses_turn = true;
    reconciler.retry_delay = Duration::ZERO;
    happen(&world, [large()]);
    reconciler.step();
    reconciler.step();
    assert_eq!(backend.calls(), ["begin: 1 Services", "go on"]);
    assert!(reconciler.phase == Phase::Full("full") && reconciler.turns.is_idle());
    assert!(reconciler.effects.oldest.is_some());
    reconciler.step();
    assert_eq!(backend.calls(), ["full: 2 Services, 0 addresses"]);
    assert!(reconciler.phase == Phase::Incremental && reconciler.effects.oldest.is_none());
}

/// The flows of the large Service were forgotten.
#[test]
fn a_refused_change_of_others_forgets_nothing_of_a_large_service() {
    let backend = Fake::default();
    let (mut reconciler, world) = synced(&backend);
    let mut flows = tells(&mut reconciler);
    reconciler.retry_delay = Duration::ZERO;
    backend.0.lock().unwrap().refuses_change = true;
    happen(&world, [large(), service("b")]);
    reconciler.step();
    assert_eq!(backend.calls(), ["change: 1 Services"]);
    assert!(reconciler.turns.is_idle());
    reconciler.step();
    assert_eq!(
        (backend.calls(), told(&mut flows)),
        (vec!["full: 3 Services, 0 addresses".into()], "bl".into())
    );
}

#[test]
fn a_large_change_that_is_refused_at_once_is_told_after_the_full_pass() {
    let backend = Fake::default();
    let (mut reconciler, world) = synced(&backend);
    let mut flows = tells(&mut reconciler);
    reconciler.retry_delay = Duration::ZERO;
    backend.0.lock().unwrap().refuses_change = true;
    happen(&world, [large()]);
    reconciler.step();
    assert_eq!((backend.calls(), told(&mut flows)), (vec!["begin: 1 Services".into()], String::new()));
    reconciler.step();
    assert_eq!(
        (backend.calls(), told(&mut flows)),
        (vec!["full: 2 Services, 0 addresses".into()], "l".into())
    );
}

#[test]
fn a_full_pass_does_what_was_begun_and_what_was_put_off_and_counts_it_as_no_repair() {
    let backend = Fake::default();
    let (mut reconciler, world) = synced(&backend);
    let mut flows = tells(&mut reconciler);
    backend.0.lock().unwrap().turns = 3;
    happen(&world, [large()]);
    reconciler.step();
    happen(&world, [with_ports("large", 1)]);
    reconciler.step();
    assert_eq!(backend.calls(), ["begin: 1 Services", "go on"]);
    reconciler.audit_at = Instant::now();
    reconciler.step();
    assert_eq!(backend.calls(), ["full: 2 Services, 0 addresses"]);
    assert!(reconciler.turns.is_idle());
    assert_eq!(passes(&reconciler)[1..], [("full", 0)]);
    assert_eq!((reconciler.outputs.metrics.repairs.get(), told(&mut flows)), (0, "l".into()));
}

#[test]
fn what_was_begun_and_put_off_is_done_before_the_end() {
    let backend = Fake::default();
    let (mut reconciler, world) = synced(&backend);
    backend.0.lock().unwrap().turns = 2;
    happen(&world, [large()]);
    reconciler.step();
    happen(&world, [with_ports("large", 1)]);
    reconciler.step();
    backend.calls();
    reconciler.finish();
    assert_eq!(backend.calls(), ["go on", "begin: 1 Services", "go on", "go on"]);
}

/// Waits until a backend has been asked for something.
async fn called(backend: &Fake, wanted: &str) {
    let asked = async {
        while !backend.calls().contains(&wanted.to_owned()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asked).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loop_wakes_up_for_whatever_changes_and_ends_when_told() {
    let backend = Fake::default();
    let (reconciler, world) = reconciler(&backend);
    let (network, network_receiver) = watch::channel(None);
    let (shutdown, shutdown_receiver) = watch::channel(false);
    let (_notices, notices) = mpsc::channel(1);
    let (_peers, api_peers) = watch::channel(Peers::new());
    let inputs = Inputs { notices, network: network_receiver, api_peers, shutdown: shutdown_receiver };
    let running = tokio::spawn(reconciler.run(inputs));
    happen(&world, lists());
    network.send_replace(Some(Network::default()));
    called(&backend, "full: 1 Services, 0 addresses").await;
    happen(&world, [service("b")]);
    called(&backend, "change: 1 Services").await;
    let addresses = vec![[192, 0, 2, 1].into()];
    network.send_replace(Some(Network { addresses, ..Network::default() }));
    called(&backend, "node: 1 addresses").await;
    shutdown.send_replace(true);
    running.await.unwrap();
}
