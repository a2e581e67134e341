//! The service proxy's loop: changes of objects → plan → backend. It alone retries, counts and logs
//! failures.
//!
//! Phases: waiting for the initial lists (nothing is written, nothing withdrawn); then a full pass
//! that adopts what the kernel holds; then incremental steps. Any failure leads to a full pass, and
//! so does notice that somebody else changed our table. A full pass on a slow timer finds silent
//! drift.

mod no_local;
mod publish;
mod quarantine;
mod refusals;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_core::index::Index;
use sluice_core::model::ObjectName;
use sluice_core::plan::{HealthCheck, PlanChange, Planner, ServicePlan};
use sluice_sys::nft::Notice;
use sluice_sys::proc;
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info, warn};

use no_local::NoLocal;

use crate::config::{BackendKind, Settings};
use crate::http::health::{Health, Progress};
use crate::http::syncs::{SyncLog, SyncRecord, remember};
use crate::node::addresses::Network;
use crate::node::repairs::{Repairs, Tally};
use crate::observe::metrics::{Metrics, unix_now};
use crate::observe::recorder::{Event as ApiEvent, Recorder};
use crate::service::backend::{Applied, Backend, BackendError, Checked, Checks, Done};
use crate::service::conntrack;
use crate::service::facts::{self, NodeFacts};
use crate::service::loopback::Listeners;
use crate::state::{Changes, Subscription};
use crate::watch::kubernetes::Peers;
use quarantine::{News, Quarantine};
use turns::{Effects, Turns};

/// Nodes and ServiceCIDRs should be known before the first pass, or it would withdraw what hangs on
/// them; but Services must not wait for them for ever.
const SECONDARY_LISTS: Duration = Duration::from_secs(10);
/// Chains that nobody needs are deleted this long after the last change.
const GARBAGE_DELAY: Duration = Duration::from_secs(2);
/// A full pass at least this often.
const AUDIT_PERIOD: Duration = Duration::from_secs(3600);
/// Where nobody tells that others detached our programs, we look so often.
const CHECK_PERIOD: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// What follows when the kernel refuses something of one Service.
const KEPT: &str = "its last state stays in force where possible, all other Services are served, and the change is tried again";
/// What is told of a change that was refused.
const REFUSED: &str = "the kernel refused a change; old rules stay in force, a full pass follows";
/// What is told of a failed full pass where nobody can say what is in force.
const UNSURE: &str =
    "the kernel refused changes of a full pass: the rules in force may be wrong; another full pass follows";
/// What is told where it cannot be seen whether others did anything.
const UNSEEN: &str =
    "cannot find or repair foreign changes: the rules in force may be wrong; a full pass follows";
/// What the loop listens to.
pub struct Inputs {
    /// Changes that others make to our table.
    pub notices: mpsc::Receiver<Notice>,
    /// Interfaces and addresses, once they have been listed.
    pub network: watch::Receiver<Option<Network>>,
    /// By which addresses this process reaches the API.
    pub api_peers: watch::Receiver<Peers>,
    /// Turns true when the program shall end.
    pub shutdown: watch::Receiver<bool>,
}

/// Whom the loop tells.
pub struct Outputs {
    /// Health of the proxy.
    pub health: Health,
    /// Metrics.
    pub metrics: Metrics,
    /// Frontends for the conntrack task.
    pub conntrack: mpsc::UnboundedSender<conntrack::Request>,
    /// Health-check node ports in force.
    pub health_checks: watch::Sender<BTreeMap<ObjectName, HealthCheck>>,
    /// Node ports that are to be served on loopback.
    pub listeners: watch::Sender<Listeners>,
    /// What is known of the node.
    pub facts: watch::Sender<NodeFacts>,
    /// The last passes.
    pub log: SyncLog,
    /// Events for the API.
    pub recorder: Recorder,
    /// Told the backend's netlink port, if it has one, after the first pass.
    pub started: tokio::sync::oneshot::Sender<Option<u32>>,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    AwaitingLists,
    Full(&'static str),
    Incremental,
}

/// The loop's state.
pub struct Reconciler {
    settings: Settings,
    objects: Subscription,
    planner: Planner,
    backend: Box<dyn Backend>,
    facts: NodeFacts,
    phase: Phase,
    /// The Service that leads to the API servers.
    kubernetes: ObjectName,
    progress: Progress,
    outputs: Outputs,
    started: Option<tokio::sync::oneshot::Sender<Option<u32>>>,
    /// What is told when the kernel has all that changed.
    effects: Effects,
    /// What takes several turns.
    turns: Turns,
    /// Addresses on which node ports answer.
    answering: BTreeSet<IpAddr>,
    no_local: NoLocal,
    lists_complete_at: Option<Instant>,
    /// By which addresses this process reaches the API.
    api_peers: Peers,
    api_peers_changed: bool,
    /// The node's addresses changed.
    node_dirty: bool,
    /// The node's interfaces and addresses have been listed.
    network_known: bool,
    /// What others do to what is ours.
    repairs: Repairs,
    /// Services of which the kernel refuses something.
    quarantine: Quarantine,
    retry_at: Option<Instant>,
    retry_delay: Duration,
    garbage_at: Option<Instant>,
    audit_at: Instant,
    check_at: Instant,
}

impl Reconciler {
    /// A loop that has done nothing yet.
    pub fn new(
        settings: Settings,
        objects: Subscription,
        mut backend: Box<dyn Backend>,
        mut outputs: Outputs,
    ) -> Self {
        let progress = outputs.health.progress();
        backend.report_to(progress.clone());
        let facts = NodeFacts::default();
        let planner = Planner::new(facts::plan_config(&settings, &facts));
        let (unused, _) = tokio::sync::oneshot::channel();
        let started = Some(std::mem::replace(&mut outputs.started, unused));
        Reconciler {
            settings,
            objects,
            planner,
            backend,
            facts,
            phase: Phase::AwaitingLists,
            kubernetes: ObjectName::new("default", "kubernetes"),
            progress,
            outputs,
            started,
            effects: Effects::default(),
            turns: Turns::default(),
            answering: BTreeSet::new(),
            no_local: NoLocal::default(),
            lists_complete_at: None,
            api_peers: Peers::new(),
            api_peers_changed: false,
            node_dirty: false,
            network_known: false,
            repairs: Repairs::default(),
            quarantine: Quarantine::default(),
            retry_at: None,
            retry_delay: FIRST_RETRY,
            garbage_at: None,
            audit_at: Instant::now() + AUDIT_PERIOD,
            check_at: Instant::now() + CHECK_PERIOD,
        }
    }

    /// Runs until told to end. Rules stay.
    pub async fn run(mut self, mut inputs: Inputs) {
        let objects = self.objects.clone();
        loop {
            let wake = self.wake_at();
            tokio::select! {
                biased;
                _ = inputs.shutdown.wait_for(|end| *end) => return self.finish(),
                Some(notice) = inputs.notices.recv() => self.noticed(notice, &mut inputs.notices),
                () = objects.news() => self.received(),
                Ok(()) = inputs.network.changed() => {
                    if let Some(network) = inputs.network.borrow_and_update().clone() {
                        self.facts.interfaces = network.addresses;
                        self.facts.devices = network.devices;
                        self.network_known = true;
                        self.node_dirty = true;
                    }
                }
                Ok(()) = inputs.api_peers.changed() => {
                    self.api_peers = inputs.api_peers.borrow_and_update().clone();
                    self.api_peers_changed = true;
                }
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            self.progress.made();
            tokio::task::block_in_place(|| self.step());
            self.progress.rest();
        }
    }

    /// When something is due that no event announces. Only what `step` would then do may count, or
    /// the loop spins.
    fn wake_at(&self) -> Instant {
        let due = match self.phase {
            Phase::AwaitingLists => self.lists_complete_at.map(|at| at + SECONDARY_LISTS),
            Phase::Full(_) => self.retry_at,
            Phase::Incremental if self.retry_at.is_some() => self.retry_at,
            Phase::Incremental if !self.turns.is_idle() => Some(Instant::now()),
            Phase::Incremental => {
                let check = (self.backend.checks() != Checks::Nothing).then_some(self.check_at);
                let repairs = [self.repairs.due(), self.repairs.line_due()];
                let due = [Some(self.audit_at), self.garbage_at, check, self.quarantine.due()];
                due.into_iter().chain(repairs).flatten().min()
            }
        };
        due.unwrap_or_else(|| Instant::now() + AUDIT_PERIOD)
    }

    /// Something happened to the objects.
    fn received(&mut self) {
        if self.phase != Phase::AwaitingLists {
            self.outputs.health.queued();
        }
        let metrics = &self.outputs.metrics;
        Metrics::for_families(|family| {
            metrics.sync_last_queued.get_or_create(family).set(unix_now());
        });
    }

    fn noticed(&mut self, first: Notice, more: &mut mpsc::Receiver<Notice>) {
        let mut next = Some(first);
        while let Some(notice) = next {
            self.others_did(notice);
            next = more.try_recv().ok();
        }
    }

    fn others_did(&mut self, notice: Notice) {
        let kind = match notice {
            Notice::Changed => "changed",
            Notice::Added => "added",
            Notice::Lost => "lost",
        };
        self.outputs.metrics.foreign_changes.get_or_create(&[("kind", kind.to_owned())]).inc();
        self.repairs.noticed(notice.may_harm(), Instant::now());
    }

    /// Does whatever is due.
    fn step(&mut self) {
        if self.phase == Phase::AwaitingLists && self.lists_are_complete() {
            self.phase = Phase::Full("full");
            self.effects.oldest = self.lists_complete_at;
        }
        if self.phase == Phase::AwaitingLists || self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        if Instant::now() >= self.audit_at && self.phase == Phase::Incremental {
            self.phase = Phase::Full("audit");
        }
        if self.repairs.is_due(Instant::now()) && self.phase == Phase::Incremental {
            self.phase = Phase::Full("repair");
        }
        if self.quarantine.due().is_some_and(|due| due <= Instant::now()) && self.phase == Phase::Incremental
        {
            self.phase = Phase::Full("retry");
        }
        self.retry_at = None;
        let begun = Instant::now();
        let changes = self.plan();
        self.quarantine.planned(&changes);
        if self.retry_at.is_some() {
            // The changed node was refused, and the full pass that follows has these changes, too.
            self.note(&changes);
            self.outputs.health.set_attached(self.backend.is_attached());
            return;
        }
        self.progress.made();
        let result = match self.phase {
            Phase::Full(kind) => self.all(kind, &changes, begun),
            _ => self.incremental(changes, begun),
        };
        match result {
            Ok(()) => {}
            Err(error) if self.backend.is_attached() => self.failed(&error, begun, REFUSED),
            Err(error) => self.failed(&error, begun, UNSURE),
        }
        self.garbage();
        self.check();
        self.outputs.health.set_attached(self.backend.is_attached());
        if let Some(tally) = self.repairs.line(Instant::now()) {
            self.tell_of_others(tally);
        }
    }

    fn lists_are_complete(&mut self) -> bool {
        let (complete, fully, has_nodes) = {
            let index = self.objects.index();
            (index.is_complete(), index.is_fully_listed(), index.has_listed_nodes())
        };
        if !complete {
            return false;
        }
        self.lists_complete_at.get_or_insert_with(Instant::now);
        let all = fully && self.network_known;
        let waited = self.lists_complete_at.is_some_and(|at| at.elapsed() >= SECONDARY_LISTS);
        if waited && !all {
            warn!(
                "Nodes, ServiceCIDRs or interface addresses could not be listed yet: continuing without them"
            );
            if self.settings.backend == BackendKind::Ipvs && !has_nodes {
                warn!(
                    "until Nodes are listed, only ClusterIPs are bound, because other addresses of \
                     Services may belong to other nodes; routing rules deliver packets for the Services' \
                     ports on those addresses locally"
                );
            }
        }
        waited || all
    }

    /// Takes everything that changed into the plans.
    fn plan(&mut self) -> Vec<PlanChange> {
        let objects = self.objects.clone();
        let index = objects.index();
        let (services, node_changed) = self.take_changes(&index);
        let mut changes = Vec::new();
        if node_changed {
            let config = facts::plan_config(&self.settings, &self.facts);
            changes.extend(self.planner.reconfigure(config, &index));
        }
        changes.extend(self.planner.replan(&index, services));
        drop(index);
        if node_changed {
            // Written to the kernel, so events need not wait for it.
            self.node_changed();
        }
        for change in &changes {
            self.no_local.count(change, &self.outputs.metrics);
            if let Some(event) = refusals::newly_refused(change, &self.planner, &self.settings.service_budget)
            {
                self.outputs.recorder.record(event);
            }
        }
        self.publish_health_checks(&changes);
        changes
    }

    /// Takes what changed. Returns the Services that did, and whether the node did.
    fn take_changes(&mut self, index: &Index) -> (BTreeSet<ObjectName>, bool) {
        let Changes { dirty, triggers, oldest } = self.objects.take_changes();
        self.effects.triggers.extend(triggers);
        self.effects.oldest = self.effects.oldest.or(oldest);
        if dirty.services.contains(&self.kubernetes) || std::mem::take(&mut self.api_peers_changed) {
            self.api_servers_changed(index);
        }
        if self.settings.backend == BackendKind::Ipvs && (dirty.nodes || dirty.node || self.node_dirty) {
            self.others_changed(index);
        }
        let node_changed = dirty.node || std::mem::take(&mut self.node_dirty);
        if node_changed {
            // A deleted Node counts as last seen: its rules must not go before its traffic.
            if let Some(node) = index.node(&self.settings.node_name) {
                self.facts.node = Some(node.clone());
            }
            self.facts.service_networks = index.service_networks();
        }
        (dirty.services, node_changed)
    }

    /// Services must not have the addresses of API servers.
    fn api_servers_changed(&mut self, index: &Index) {
        let service = index.service(&self.kubernetes);
        let is_its_own = |ip: &IpAddr| service.is_some_and(|service| service.cluster_ips.contains(ip));
        let mut all = index.tcp_addresses(&self.kubernetes);
        all.extend(self.api_peers.iter().filter(|(ip, _)| !is_its_own(ip)));
        self.node_dirty |= self.facts.api_servers != all;
        self.facts.api_servers = all;
    }

    /// Other nodes may have other addresses. Until they have been listed, any address may be one of
    /// them.
    fn others_changed(&mut self, index: &Index) {
        let Some(nodes) = index.nodes() else { return };
        let (networks, api_servers) = (index.service_networks(), &self.facts.api_servers);
        let others = facts::others(&self.settings.node_name, &nodes, &networks, api_servers);
        self.node_dirty |= self.facts.others != others;
        self.facts.others = others;
    }

    /// The node changed: plans, ruleset and listeners may depend on it.
    fn node_changed(&mut self) {
        self.outputs.health.set_node(self.facts.node.as_ref());
        self.outputs.facts.send_if_modified(|known| {
            let changed = *known != self.facts;
            *known = self.facts.clone();
            changed
        });
        if self.settings.backend == BackendKind::Ebpf {
            let before = std::mem::replace(
                &mut self.answering,
                facts::answering_addresses(&self.settings, &self.facts),
            );
            let lost = before.difference(&self.answering);
            self.effects.flows.extend(lost.map(|address| conntrack::Request::node_ports_of(*address)));
        }
        if self.phase == Phase::Incremental {
            match self.backend.set_node(&self.settings, &self.facts) {
                Ok(Some(applied)) => {
                    self.outputs.metrics.operations.inc_by(applied.operations as u64);
                    self.publish_flows();
                }
                Ok(None) => self.phase = Phase::Full("full"),
                Err(error) => self.failed(&error, Instant::now(), REFUSED),
            }
        }
    }

    fn full(&mut self, kind: &'static str) -> Result<Applied, BackendError> {
        let mut plans: Vec<Arc<ServicePlan>> = self.planner.plans().cloned().collect();
        plans.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let begun = Instant::now();
        let Done { applied, refused } =
            self.backend.full(&self.settings, &self.facts, &plans, &self.quarantine.known())?;
        let news = self.quarantine.full(refused, Instant::now(), self.settings.sync_period);
        self.repairs.done(begun, Instant::now(), applied.operations);
        // Not worth a line each time.
        let is_right = (kind == "audit" && applied.operations == 0) || kind == "retry";
        if !is_right && kind != "repair" && !self.repairs.is_disturbed(begun) {
            info!(
                kind,
                mode = self.settings.backend.name(),
                node_addresses = facts::told_addresses(&self.facts),
                services = plans.len(),
                refused = self.quarantine.len(),
                operations = applied.operations,
                transactions = applied.transactions,
                seconds = begun.elapsed().as_secs_f64(),
                "ruleset in place"
            );
        }
        self.tell_of_refusals(news);
        if kind != "full" && !is_right {
            self.outputs.metrics.repairs.inc();
            self.outputs.metrics.repaired_objects.inc_by(applied.operations as u64);
        }
        self.audit_at = Instant::now() + self.backend.audit_period(&self.settings).unwrap_or(AUDIT_PERIOD);
        self.phase = Phase::Incremental;
        // A full pass holds all objects for a moment; the allocator would keep that memory.
        drop(plans);
        proc::release_free_memory();
        if let Some(started) = self.started.take() {
            let _ = started.send(self.backend.port());
        }
        Ok(applied)
    }

    /// Each Service is told once, and that it is served after all.
    fn tell_of_refusals(&self, news: News) {
        self.outputs.metrics.quarantined.set(self.quarantine.len() as i64);
        for (service, error) in news.refused {
            warn!(%service, error, "the kernel refuses operations of this Service: {KEPT}");
            self.outputs.recorder.record(ApiEvent::kernel_refused(service, format!("{error}: {KEPT}")));
        }
        for service in news.taken {
            info!(%service, "resolved: the kernel accepts all operations of this Service");
        }
    }

    fn succeeded(&mut self, kind: &'static str, applied: Applied, services: usize, begun: Instant) {
        let (seconds, now) = (begun.elapsed().as_secs_f64(), unix_now());
        let from_event = self.effects.oldest.take().map_or(seconds, |at| at.elapsed().as_secs_f64());
        let metrics = &self.outputs.metrics;
        self.retry_delay = FIRST_RETRY;
        self.retry_at = None;
        metrics.operations.inc_by(applied.operations as u64);
        if !self.turns.is_in_work() {
            let put_off = self.turns.put_off();
            self.quarantine.done();
            self.quarantine.planned(put_off);
            metrics.endpoint_changes_pending.set(0);
            metrics.service_changes_pending.set(0);
            self.outputs.health.updated();
            if !put_off.is_empty() {
                self.outputs.health.queued();
            }
        }
        metrics.services.set(self.planner.plans().len() as i64);
        metrics.endpoint_slices.set(self.objects.index().slice_count() as i64);
        for (map, usage) in self.backend.usage() {
            metrics.map_usage(map, usage);
        }
        Metrics::for_families(|family| {
            metrics.sync_duration.get_or_create(family).observe(seconds);
            let by_kind = if kind == "incremental" {
                &metrics.sync_partial_duration
            } else {
                &metrics.sync_full_duration
            };
            by_kind.get_or_create(family).observe(seconds);
            metrics.sync_last.get_or_create(family).set(now);
            for (_, trigger) in &self.effects.triggers {
                let latency = now - *trigger as f64 / 1e9;
                metrics.network_programming.get_or_create(family).observe(latency.max(0.0));
            }
        });
        self.effects.triggers.clear();
        debug!(kind, services, operations = applied.operations, seconds, "synced");
        self.publish_flows();
        self.publish_listeners();
        remember(
            &self.outputs.log,
            SyncRecord {
                kind,
                at: now,
                services,
                operations: applied.operations,
                transactions: applied.transactions,
                seconds_from_event: from_event,
                seconds,
            },
        );
    }

    fn failed(&mut self, error: &BackendError, begun: Instant, words: &str) {
        self.end_turns();
        if !self.repairs.refused(error, begun) {
            error!(%error, retry_ms = self.retry_delay.as_millis() as u64, "{words}");
        }
        let metrics = &self.outputs.metrics;
        metrics.endpoint_changes_pending.set(1);
        metrics.service_changes_pending.set(1);
        Metrics::for_families(|family| {
            metrics.sync_failures.get_or_create(family).inc();
            metrics.sync_duration.get_or_create(family).observe(begun.elapsed().as_secs_f64());
            metrics.sync_last_queued.get_or_create(family).set(unix_now());
        });
        self.outputs.health.queued();
        self.phase = Phase::Full("full");
        self.retry_at = Some(Instant::now() + self.repairs.retry(self.retry_delay, begun));
        self.retry_delay = (self.retry_delay * 2).min(self.settings.sync_period);
    }

    fn garbage(&mut self) {
        // What a Service still has that gets nothing new may be among what nobody else needs.
        let is_busy = self.quarantine.len() > 0 || !self.turns.is_idle();
        if self.phase != Phase::Incremental || is_busy || !self.backend.has_garbage() {
            self.garbage_at = None;
            return;
        }
        let due = *self.garbage_at.get_or_insert_with(|| Instant::now() + GARBAGE_DELAY);
        if Instant::now() < due {
            return;
        }
        self.garbage_at = None;
        if let Err(error) = self.backend.collect_garbage() {
            if !self.repairs.refused(&error, Instant::now()) {
                warn!(%error, "cannot delete unused objects; a full pass follows");
            }
            let metrics = &self.outputs.metrics;
            Metrics::for_families(|family| {
                metrics.cleanup_failures.get_or_create(family).inc();
            });
            self.phase = Phase::Full("full");
            self.retry_at = Some(Instant::now() + self.retry_delay);
        }
    }

    /// Repairs what others took away without a word.
    fn check(&mut self) {
        let checks = self.backend.checks();
        if self.phase != Phase::Incremental || checks == Checks::Nothing || Instant::now() < self.check_at {
            return;
        }
        self.check_at = Instant::now() + CHECK_PERIOD;
        // What the kernel refuses is not there, which nobody else did; it is tried again soon
        // enough.
        if self.quarantine.len() > 0 && checks == Checks::Services {
            return;
        }
        match self.backend.check() {
            Ok(Checked::Repaired(0)) => {}
            Ok(Checked::Differs) => self.others_did(Notice::Changed),
            Ok(Checked::Repaired(repaired)) => {
                warn!(
                    repaired,
                    "another program removed pins, detached programs or changed settings of lo; repaired"
                );
                self.outputs.metrics.repairs.inc();
                self.outputs.metrics.repaired_objects.inc_by(repaired as u64);
            }
            Err(error) => self.failed(&error, Instant::now(), UNSEEN),
        }
    }

    fn tell_of_others(&self, tally: Tally) {
        let what = match self.settings.backend {
            BackendKind::Ipvs => "table inet sluice, virtual servers or their addresses",
            _ => "table inet sluice",
        };
        let Tally { changes, looks, operations, refused, refusal } = tally;
        warn!(
            changes,
            repairs = looks,
            operations,
            refused,
            refusal,
            "another program changed {what}; repaired"
        );
        self.outputs.recorder.record(ApiEvent::changed_by_others(what));
    }
}
