//! The parts that are started with the daemon, each as a task or as a future to wait for.

use std::collections::BTreeSet;
use std::net::IpAddr;

use prometheus_client::metrics::gauge::Gauge;
use sluice_core::nft::TABLE;
use sluice_sys::bpf::{BpfError, Maps, leave_alone};
use sluice_sys::netns;
use sluice_sys::nft::Notice;
use tokio::sync::{mpsc, oneshot, watch};

use crate::affinity::Told;
use crate::config::{BackendKind, Settings};
use crate::events::Recorder;
use crate::exit::ExitError;
use crate::health::{Health, ServeError, Server, debug_router, health_router};
use crate::http::Gate;
use crate::metrics::Metrics;
use crate::node::NodeFacts;
use crate::pod_network::{self, PodNetworkTask};
use crate::reconcile::SyncLog;
use crate::{affinity, cleanup, conntrack, handover, loopback, nft_monitor, optout};

/// The two servers of the node: health, and metrics with what helps to find faults.
pub(super) fn servers(
    settings: &Settings,
    files: u64,
    (health, metrics, log): (Health, Metrics, SyncLog),
) -> (impl Future<Output = Result<(), ServeError>>, impl Future<Output = Result<(), ServeError>>) {
    let server = |address, what, field| {
        let hard_fail = settings.bind_hard_fail;
        Server { address, what, field, hard_fail, gate: Gate::new(files) }
    };
    let healthz = server(settings.healthz_bind, "health", "healthzBindAddress");
    let page = server(settings.metrics_bind, "metrics", "metricsBindAddress");
    let pages = debug_router(metrics.clone(), settings, log);
    (healthz.run(health_router(health, metrics)), page.run(pages))
}

/// Keeps the sockets of pods that opted out away from the programs.
pub(super) async fn leave_opted_out_alone(
    opted_out: watch::Receiver<Option<Vec<IpAddr>>>,
    maps: Maps,
    count: Gauge,
) {
    let write = move |cookies: &BTreeSet<u64>| {
        let changed = leave_alone(&maps, cookies)?;
        count.set(cookies.len() as i64);
        Ok::<usize, BpfError>(changed)
    };
    optout::run(opted_out, netns::others, write).await;
}

/// What the kernel remembers of clients where it tracks their connections.
pub(super) fn follow_conntrack(
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
pub(super) fn serve_loopback(
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

/// The task that keeps the pod network, if that is ours.
pub(super) fn pod_network_task(
    settings: &Settings,
    recorder: &Recorder,
    metrics: &Metrics,
    programs: Option<Maps>,
) -> Result<Option<PodNetworkTask>, ExitError> {
    let Some(pod_network) = &settings.pod_network else { return Ok(None) };
    let plugin = pod_network::plugin(pod_network)?;
    Ok(Some(PodNetworkTask::new(
        pod_network.clone(),
        settings.node_name.clone(),
        plugin,
        recorder.clone(),
        metrics.clone(),
        programs,
    )))
}

/// Keeps the pod network, or, without one, does not end.
pub(super) async fn run_pod_network(task: Option<PodNetworkTask>, inputs: pod_network::Inputs) {
    match task {
        Some(task) => task.run(inputs).await,
        None => std::future::pending().await,
    }
}

/// Once our rules are in force, those of kube-proxy and of the other backend may go; connections
/// keep the translation that they have.
pub(super) async fn after_first_pass(
    started: oneshot::Receiver<Option<u32>>,
    notices: mpsc::Sender<Notice>,
    settings: Settings,
) {
    let Ok(port) = started.await else { return };
    let translated = port.is_none() && handover::keep_translations().await;
    if settings.cleanup_kube_proxy {
        let adopts = settings.backend == BackendKind::Ipvs;
        tokio::task::spawn_blocking(move || cleanup::take_over(adopts));
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
