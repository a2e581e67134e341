//! `sluice run`: puts the parts together and keeps them running.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use prometheus_client::metrics::gauge::Gauge;
use sluice_core::nft::TABLE;
use sluice_link::sysctl;
use sluice_sys::bpf::{BpfError, Directory, Maps, leave_alone};
use sluice_sys::nft::{Nft, Notice};
use sluice_sys::node_lock::NodeLock;
use sluice_sys::{capability, netns, proc};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use crate::affinity::Told;
use crate::backend::{Backend, BackendError, ebpf, ipvs};
use crate::config::{BackendKind, DetectLocal, Settings, Source};
use crate::events::{Event, Recorder, Reporter};
use crate::exit::ExitError;
use crate::health::{Health, ServeError, Server, debug_router, health_router, run_service_health};
use crate::http::Gate;
use crate::metrics::Metrics;
use crate::node::NodeFacts;
use crate::pod_network::{self, PodNetworkTask};
use crate::reconcile::{Inputs, Outputs, Reconciler, SyncLog};
use crate::signals::EndSignals;
use crate::sysctls::{Left, Setting};
use crate::watch::Received;
use crate::watch::kubernetes::{self, Access, Origin, Peers, Scope, Timing, follow_peers};
use crate::watch::manifests::Manifests;
use crate::{
    addresses, affinity, alone, cleanup, config, conntrack, flows, handover, loopback, nft_monitor, optout,
    sysctls,
};

/// Objects on their way to the index.
const EVENT_QUEUE: usize = 4096;
/// The limit of open files that processes usually start with.
const USUAL_FILES: u64 = 1024;
/// How long the end of the process waits for the event that tells of it.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(2);

/// Checks that this process may and the kernel can do what the nftables backend needs.
fn preflight() -> Result<(), ExitError> {
    let probe = || Nft::open()?.probe();
    probe().map_err(|error| match error.errno() {
        Some(libc::EPERM) => ExitError::Capability,
        _ => ExitError::Kernel(error),
    })
}

/// Opens the backend that is asked for, after a check that it can do everything that it will have
/// to. Decides what is left to be decided.
fn open_backend(settings: &mut Settings) -> Result<Backend, ExitError> {
    if capability::has_net_admin() == Some(false) {
        return Err(ExitError::Capability);
    }
    if matches!(settings.backend, BackendKind::Ebpf | BackendKind::Auto) {
        match open_ebpf(settings) {
            Ok(backend) => return Ok(backend),
            Err(error) if settings.backend == BackendKind::Auto && is_lack(&error) => {
                info!("mode auto: the backend is nftables: {error}");
                settings.backend = BackendKind::Nftables;
            }
            Err(error) => return Err(ExitError::Backend(error)),
        }
    }
    preflight()?;
    Backend::open(settings, &NodeFacts::default()).map_err(ExitError::Backend)
}

/// Whether the machine, or this program, lacks something that it will lack at the next start too.
/// Anything else, like another daemon that is still at work or memory that is short, passes; with
/// another backend meanwhile, connections would go from one to the other and back.
fn is_lack(error: &BackendError) -> bool {
    matches!(error, BackendError::Missing(_) | BackendError::NotBuilt)
}

/// To open it is to load the programs. What is missing is looked for when that fails, and in mode
/// auto before the first time, because there is no way back once the programs have been chosen.
fn open_ebpf(settings: &mut Settings) -> Result<Backend, BackendError> {
    if settings.backend == BackendKind::Auto && !Directory::new(&settings.ebpf.bpffs).exists() {
        nothing_missing(settings)?;
    }
    let wanted = std::mem::replace(&mut settings.backend, BackendKind::Ebpf);
    let opened = Backend::open(settings, &NodeFacts::default());
    if let Err(error) = &opened {
        settings.backend = wanted;
        if !passes(error) {
            nothing_missing(settings)?;
        }
    }
    opened
}

/// Whether an error says nothing about what the machine can do.
fn passes(error: &BackendError) -> bool {
    match error {
        BackendError::Bpf(BpfError::Busy(_)) => true,
        BackendError::Bpf(error) => matches!(error.errno(), Some(libc::ENOMEM)),
        _ => false,
    }
}

fn nothing_missing(settings: &Settings) -> Result<(), BackendError> {
    let missing = ebpf::missing(settings)?;
    if missing.is_empty() { Ok(()) } else { Err(BackendError::Missing(missing)) }
}

/// What needs full privileges: the node's sysctls. Afterwards CAP_NET_ADMIN is enough.
pub fn init(settings: &Settings) -> Result<(), ExitError> {
    if capability::has_net_admin() == Some(false) {
        return Err(ExitError::Capability);
    }
    if settings.backend == BackendKind::Ebpf {
        nothing_missing(settings).map_err(ExitError::Backend)?;
    } else {
        // This loads the modules too, without which there are no sysctls of connection tracking.
        preflight()?;
    }
    if settings.backend == BackendKind::Ipvs {
        ipvs::prepare(settings).map_err(ExitError::Backend)?;
    }
    let written = sysctls::conntrack(&settings.conntrack, sysctls::cpus()).into_iter().map(Setting::write);
    let failed: Vec<String> = written.filter_map(Result::err).map(|error| error.to_string()).collect();
    if !failed.is_empty() {
        return Err(ExitError::Sysctls(failed));
    }
    info!("the node is prepared");
    Ok(())
}

/// What the daemon has before it begins its work.
struct Started {
    settings: Settings,
    backend: Backend,
    metrics: Metrics,
    events: mpsc::Receiver<Received>,
    source: BoxFuture<'static, ()>,
    api_peers: watch::Receiver<Peers>,
    recorder: Recorder,
    pod_network: Option<PodNetworkTask>,
    /// Kept for as long as this daemon works.
    _lock: Option<NodeLock>,
}

/// Makes everything that can fail. Programs, if there are any, are loaded and see no packet yet.
async fn start(mut settings: Settings) -> Result<Started, ExitError> {
    let lock = alone::wait().await?;
    let opening = tokio::task::spawn_blocking(move || {
        let opened = open_backend(&mut settings)?;
        prepare_process(&settings);
        Ok::<_, ExitError>((settings, opened))
    });
    let (settings, backend) = opening.await.map_err(|_| ExitError::Ended("start"))??;
    let metrics = Metrics::default();
    let (sender, events) = mpsc::channel::<Received>(EVENT_QUEUE);
    let (peers, api_peers) = watch::channel(Peers::new());
    let (source, recorder) = source(&settings, sender, metrics.clone(), peers).await?;
    let pod_network = pod_network_task(&settings, &recorder, &metrics, backend.maps())?;
    Ok(Started { settings, backend, metrics, events, source, api_peers, recorder, pod_network, _lock: lock })
}

/// Runs until SIGTERM or SIGINT. Rules stay in force.
pub async fn run(settings: Settings, mut signals: EndSignals) -> Result<(), ExitError> {
    tell_start(&settings);
    let started = tokio::select! {
        biased;
        signal = signals.received() => {
            info!(signal, "ending before anything was changed");
            return Ok(());
        }
        started = start(settings) => started?,
    };
    let Started {
        settings,
        backend,
        metrics,
        events: event_receiver,
        source,
        api_peers,
        recorder,
        pod_network,
        _lock,
    } = started;
    let files = open_files();
    let health = Health::new(settings.sync_period);

    let (notices, notice_receiver) = mpsc::channel(16);
    let (network_sender, network_receiver) = watch::channel(None);
    let (shutdown, shutdown_receiver) = watch::channel(false);
    let (conntrack_sender, conntrack_receiver) = mpsc::unbounded_channel();
    let (check_sender, check_receiver) = watch::channel(BTreeMap::new());
    let (listener_sender, listener_receiver) = watch::channel(Default::default());
    let (facts_sender, facts_receiver) = watch::channel(Default::default());
    let (nodes_sender, nodes_receiver) = watch::channel(None);
    let (opted_out_sender, opted_out_receiver) = watch::channel(None);
    let (started, started_receiver) = oneshot::channel();
    let log = Arc::new(Mutex::new(VecDeque::new()));
    let outputs = Outputs {
        health: health.clone(),
        metrics: metrics.clone(),
        conntrack: conntrack_sender,
        health_checks: check_sender,
        listeners: listener_sender,
        facts: facts_sender,
        nodes: nodes_sender,
        opted_out: opted_out_sender,
        log: log.clone(),
        recorder: recorder.clone(),
        started,
    };
    let (maps, ender) = (backend.maps(), backend.ender().map_err(ExitError::Backend)?);
    let reconciler = Reconciler::new(settings.clone(), backend, outputs);
    let inputs = Inputs {
        events: event_receiver,
        notices: notice_receiver,
        network: network_receiver,
        api_peers,
        shutdown: shutdown_receiver,
    };
    if let Some(maps) = maps.clone() {
        tokio::spawn(leave_opted_out_alone(opted_out_receiver, maps, metrics.opted_out.clone()));
    }
    let mut source = tokio::spawn(source);
    let of_pods = pod_network::Inputs { nodes: nodes_receiver, network: network_sender.subscribe() };
    let mut pod_network = tokio::spawn(run_pod_network(pod_network, of_pods));
    tokio::spawn(addresses::follow(network_sender, settings.backend == BackendKind::Ebpf));
    let told = Told { metrics: metrics.clone(), recorder: recorder.clone() };
    match maps.zip(ender) {
        Some((maps, ender)) => {
            metrics.follow(maps.clone());
            tokio::spawn(flows::run(conntrack_receiver, maps, ender, told));
        }
        None => follow_conntrack(&settings, conntrack_receiver, facts_receiver.clone(), told),
    }
    let service_health = (settings.clone(), check_receiver, facts_receiver.clone());
    tokio::spawn(run_service_health(service_health, (health.clone(), Gate::new(files)), recorder.clone()));
    serve_loopback(&settings, (listener_receiver, facts_receiver.clone()), &metrics);
    tokio::spawn(after_first_pass(started_receiver, notices, settings.clone()));
    let pod_cidrs = pod_cidrs(&settings, facts_receiver.clone(), POD_CIDR_WAIT);
    let (healthz, metrics_page) = servers(&settings, files, (health, metrics, log));
    let mut reconciling = tokio::spawn(reconciler.run(inputs));
    recorder.record(Event::starting());
    if settings.default_mode {
        recorder.record(Event::default_mode());
    }
    tokio::select! {
        signal = signals.received() => {
            info!(signal, "ending; rules stay in force");
            let _ = shutdown.send(true);
            let _ = reconciling.await;
            Ok(())
        }
        result = healthz => last_words(result, &recorder, Event::no_health_server).await,
        result = metrics_page => last_words(result, &recorder, Event::no_metrics_server).await,
        error = pod_cidrs => Err(error),
        error = config_change(&settings) => Err(error),
        _ = &mut reconciling => Err(ExitError::Ended("reconcile loop")),
        _ = &mut source => Err(ExitError::Ended("source of objects")),
        _ = &mut pod_network => Err(ExitError::Ended("pod network")),
    }
}

/// Keeps the pod network, or, without one, does not end.
async fn run_pod_network(task: Option<PodNetworkTask>, inputs: pod_network::Inputs) {
    match task {
        Some(task) => task.run(inputs).await,
        None => std::future::pending().await,
    }
}

/// The two servers of the node: health, and metrics with what helps to find faults.
fn servers(
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

/// The first line: which program, with which configuration.
fn tell_start(settings: &Settings) {
    let listener = |address: Option<std::net::SocketAddr>| {
        address.map_or_else(|| "off".to_owned(), |address| address.to_string())
    };
    let config = settings.config_file.as_ref().map(|file| file.path.display().to_string());
    info!(
        version = env!("CARGO_PKG_VERSION"),
        mode = settings.backend.name(),
        node = settings.node_name,
        objects = %settings.source,
        config = config.as_deref().unwrap_or("flags"),
        healthz = listener(settings.healthz_bind),
        metrics = listener(settings.metrics_bind),
        "sluice starts"
    );
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

/// The task that keeps the pod network, if that is ours.
fn pod_network_task(
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

/// Tells the cluster why the process ends, if it can be told at once.
async fn last_words(
    result: Result<(), ServeError>,
    recorder: &Recorder,
    event: fn(String) -> Event,
) -> Result<(), ExitError> {
    if let Err(error) = &result {
        recorder.record(event(error.to_string()));
        recorder.flush(LAST_WORDS).await;
    }
    result.map_err(ExitError::from)
}

/// Makes the source of objects, as a future to run, and what takes events to where they come from.
async fn source(
    settings: &Settings,
    events: mpsc::Sender<Received>,
    metrics: Metrics,
    peers: watch::Sender<Peers>,
) -> Result<(BoxFuture<'static, ()>, Recorder), ExitError> {
    Ok(match &settings.source {
        Source::Manifests(directory) => {
            let manifests = Manifests::new(directory.clone(), events, metrics)?;
            (Box::pin(manifests.run()), Recorder::default())
        }
        Source::Kubernetes { kubeconfig, master } => {
            let origin = Origin { kubeconfig: kubeconfig.clone(), master: master.clone() };
            let access = Access::new(origin).await?;
            let node_name = settings.node_name.clone();
            let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let reporter =
                Reporter { node_name: node_name.clone(), host_name: host_name.trim().to_lowercase() };
            tokio::spawn(follow_peers(access.clone(), peers));
            let recorder = Recorder::new(access.clone(), reporter, metrics.clone());
            let pods = matches!(settings.backend, BackendKind::Ebpf | BackendKind::Auto);
            let all_nodes = settings.pod_network.is_some() || settings.backend == BackendKind::Ipvs;
            let scope = Scope { node_name, pods, all_nodes };
            (Box::pin(kubernetes::run(access, scope, events, metrics, Timing::default())), recorder)
        }
    })
}

const POD_CIDR_WAIT: Duration = Duration::from_secs(300);

/// In mode NodeCIDR, returns when the Node has had no podCIDRs for too long since the start.
async fn pod_cidrs(settings: &Settings, mut facts: watch::Receiver<NodeFacts>, wait: Duration) -> ExitError {
    let there = |facts: &NodeFacts| facts.node.as_ref().is_some_and(|node| !node.pod_cidrs.is_empty());
    if settings.detect_local != DetectLocal::NodeCidr
        || matches!(tokio::time::timeout(wait, facts.wait_for(there)).await, Ok(Ok(_)))
    {
        return std::future::pending().await;
    }
    ExitError::NoPodCidrs(settings.node_name.clone())
}

/// Returns when the configuration file changes.
async fn config_change(settings: &Settings) -> ExitError {
    if let Some(file) = &settings.config_file {
        let path = &file.path;
        match config::changed(file).await {
            Ok(()) => return ExitError::ConfigChanged(path.clone()),
            Err(error) => {
                warn!(%error, path = %path.display(), "cannot watch the configuration file for changes")
            }
        }
    }
    std::future::pending().await
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
        tokio::task::spawn_blocking(move || cleanup::take_over(adopts));
    }
    match port {
        Some(port) => {
            nft_monitor::follow(TABLE, port, notices);
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

/// Settings of the process and the node's connection tracking (reference 3.6). Failures are told,
/// not fatal: in a container /proc/sys may be read-only, and the proxy works without them.
fn prepare_process(settings: &Settings) {
    const OOM: &str = "/proc/self/oom_score_adj";
    let mut left = Left::default();
    let oom = settings.oom_score_adj;
    left.note(OOM, oom.into(), sysctl::write_if_different(OOM.into(), &oom.to_string()));
    for setting in sysctls::conntrack(&settings.conntrack, sysctls::cpus()) {
        left.note(setting.path, setting.value, setting.write());
    }
    if !left.forbidden.is_empty() {
        info!(
            "going on without settings that this process may not write: {}. A privileged container can: see --init-only \
             (deploy/components/node-sysctls)",
            left.forbidden.join(", ")
        );
    }
    for error in left.failed {
        warn!(%error, "cannot write a setting");
    }
}

/// How many files may be open: as many as ever may. Each connection of a client is one, and one
/// that is carried from loopback to an endpoint two; the rest of the daemon must not go short of
/// them.
fn open_files() -> u64 {
    proc::raise_open_files().unwrap_or_else(|error| {
        warn!(%error, "cannot raise the limit of open files");
        USUAL_FILES
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_core::model::{Node, ObjectName};

    fn settings(mode: &str) -> Settings {
        let config =
            config::raw::KubeProxyConfiguration { detect_local_mode: mode.into(), ..Default::default() };
        config::resolve(config, &config::Flags::default(), "n1").unwrap()
    }

    #[tokio::test]
    async fn a_node_without_pod_cidrs_is_given_up_in_mode_node_cidr_only() {
        let soon = Duration::from_millis(20);
        let (sender, facts) = watch::channel(NodeFacts::default());
        let error = pod_cidrs(&settings("NodeCIDR"), facts.clone(), soon).await;
        assert!(error.to_string().contains("Node n1 got no podCIDRs"), "{error}");
        let ends = |settings: Settings, facts| async move {
            tokio::time::timeout(5 * soon, pod_cidrs(&settings, facts, soon)).await.is_ok()
        };
        assert!(!ends(settings("ClusterCIDR"), facts.clone()).await);
        let node = Node {
            name: ObjectName::cluster_scoped("n1"),
            addresses: vec![],
            pod_cidrs: vec!["10.1.0.0/24".parse().unwrap()],
            zone: None,
            eligible: true,
        };
        sender.send_modify(|facts| facts.node = Some(node));
        assert!(!ends(settings("NodeCIDR"), facts).await);
    }

    #[test]
    fn only_what_the_machine_lacks_leads_to_another_backend() {
        let busy = BackendError::Bpf(BpfError::Busy("/b".into()));
        let no_memory = BackendError::Bpf(BpfError::System {
            operation: "create map".into(),
            source: std::io::Error::from_raw_os_error(libc::ENOMEM),
        });
        assert!(passes(&busy) && !is_lack(&busy));
        assert!(passes(&no_memory) && !is_lack(&no_memory));
        let refused = BackendError::Bpf(BpfError::Object("x".into()));
        assert!(!passes(&refused) && !is_lack(&refused));
        assert!(is_lack(&BackendError::Missing(vec![])) && is_lack(&BackendError::NotBuilt));
        assert_eq!(ExitError::Backend(busy).exit_code(), 3);
    }
}
