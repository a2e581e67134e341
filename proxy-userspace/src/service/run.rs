//! Starts the service proxy: the loop, and the tasks that it tells of what it did.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use prometheus_client::metrics::gauge::Gauge;
use sluice_core::nft::TABLE;
use sluice_sys::bpf::{BpfError, Maps, leave_alone};
use sluice_sys::netns;
use sluice_sys::nft::Notice;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::affinity::Told;
use super::backend::{Opened, Programs};
use super::facts::NodeFacts;
use super::reconcile::{Inputs, Outputs, Reconciler};
use super::{affinity, conntrack, flows, handover, health_checks, kube_proxy, loopback, optout};
use crate::config::{BackendKind, Settings};
use crate::feature::Context;
use crate::http::Gate;
use crate::http::health::Health;
use crate::http::syncs::SyncLog;
use crate::node::nft_monitor;
use crate::observe::metrics::Metrics;
use crate::state::World;

/// What the pages of the daemon show of the service proxy.
#[derive(Clone)]
pub struct Shown {
    /// Whether it keeps up.
    pub health: Health,
    /// The last passes.
    pub log: SyncLog,
}

/// The service proxy at work.
pub struct Running {
    /// Ends when the daemon is told to end.
    pub reconciling: JoinHandle<()>,
    /// What it knows of the node.
    pub facts: watch::Receiver<NodeFacts>,
}

/// Starts all tasks. To be called before the first event comes.
pub fn run(opened: Opened, world: &World, context: &Context, shown: Shown) -> Running {
    let Context { settings, metrics, recorder, .. } = context;
    let Opened { backend, programs } = opened;
    let (notices, notice_receiver) = mpsc::channel(16);
    let (conntrack_sender, conntrack_receiver) = mpsc::unbounded_channel();
    let (check_sender, check_receiver) = watch::channel(BTreeMap::new());
    let (listener_sender, listener_receiver) = watch::channel(Default::default());
    let (facts_sender, facts) = watch::channel(Default::default());
    let (started, started_receiver) = oneshot::channel();
    let outputs = Outputs {
        health: shown.health.clone(),
        metrics: metrics.clone(),
        conntrack: conntrack_sender,
        health_checks: check_sender,
        listeners: listener_sender,
        facts: facts_sender,
        log: shown.log,
        recorder: recorder.clone(),
        started,
    };
    let objects = world.subscribe(super::interests(settings));
    let reconciler = Reconciler::new(settings.clone(), objects, backend, outputs);
    let inputs = Inputs {
        notices: notice_receiver,
        network: context.network.clone(),
        api_peers: context.api_peers.clone(),
        shutdown: context.shutdown.clone(),
    };
    let told = Told { metrics: metrics.clone(), recorder: recorder.clone() };
    match programs {
        Some(Programs { maps, ender }) => {
            let name = settings.node_name.clone();
            let opted_out = world.follow(move |index, dirty| dirty.opted_out.then(|| index.opted_out(&name)));
            tokio::spawn(leave_opted_out_alone(opted_out, maps.clone(), metrics.opted_out.clone()));
            metrics.follow(maps.clone());
            tokio::spawn(flows::run(conntrack_receiver, maps, ender, told));
        }
        None => follow_conntrack(settings, conntrack_receiver, facts.clone(), told),
    }
    let checks = (settings.clone(), check_receiver, facts.clone());
    let answers = (shown.health, Gate::new(context.files));
    tokio::spawn(health_checks::run(checks, answers, recorder.clone()));
    serve_loopback(settings, (listener_receiver, facts.clone()), metrics);
    tokio::spawn(after_first_pass(started_receiver, notices, settings.clone()));
    Running { reconciling: tokio::spawn(reconciler.run(inputs)), facts }
}

/// Keeps the sockets of pods that opted out away from the programs.
async fn leave_opted_out_alone(opted_out: watch::Receiver<Option<Vec<IpAddr>>>, maps: Maps, count: Gauge) {
    let write = move |cookies: &BTreeSet<u64>| {
        let changed = leave_alone(&maps, cookies)?;
        count.set(cookies.len() as i64);
        Ok::<usize, BpfError>(changed)
    };
    optout::run(opted_out, netns::others, write).await;
}

/// What the kernel remembers of clients where it tracks their connections.
fn follow_conntrack(
    settings: &Settings,
    requests: mpsc::UnboundedReceiver<conntrack::Request>,
    facts: watch::Receiver<NodeFacts>,
    told: Told,
) {
    tokio::spawn(conntrack::run(requests, (settings.clone(), facts), told.metrics.clone()));
    if settings.backend == BackendKind::Nftables {
        tokio::spawn(affinity::room::keep(told.metrics.clone()));
        tokio::spawn(affinity::follow(told));
    }
}

/// Node ports on loopback, unless programs or the local stack see to them.
fn serve_loopback(
    settings: &Settings,
    listeners: (watch::Receiver<loopback::Listeners>, watch::Receiver<NodeFacts>),
    metrics: &Metrics,
) {
    if settings.backend == BackendKind::Ebpf || !settings.node_port_addresses.decides_loopback {
        return;
    }
    metrics.count_loopback_refusals();
    tokio::spawn(loopback::run(listeners, settings.sync_period, metrics.clone()));
}

/// Once our rules are in force, those of kube-proxy and of the other backend may go; connections
/// keep the translation that they have.
async fn after_first_pass(
    started: oneshot::Receiver<Option<u32>>,
    notices: mpsc::Sender<Notice>,
    settings: Settings,
) {
    let Ok(port) = started.await else { return };
    let translated = port.is_none() && handover::keep_translations().await;
    if settings.cleanup_kube_proxy {
        let adopts = settings.backend == BackendKind::Ipvs;
        tokio::task::spawn_blocking(move || kube_proxy::take_over(adopts));
    }
    match port {
        Some(port) => {
            nft_monitor::follow(&TABLE, port, notices);
            tokio::join!(handover::from_ebpf(&settings.ebpf.bpffs), from_ipvs(&settings));
        }
        None if translated => {
            tokio::join!(handover::until_translations_end(), from_ipvs(&settings));
        }
        None => from_ipvs(&settings).await,
    }
}

/// What another backend leaves of mode ipvs, ours and kube-proxy's.
async fn from_ipvs(settings: &Settings) {
    if settings.backend != BackendKind::Ipvs {
        handover::from_ipvs(settings.cleanup_kube_proxy, &settings.ipvs.exclude).await;
    }
}
