//! `sluice run`: puts the parts together and keeps them running.

mod ends;
mod parts;
mod preflight;
mod process;
pub mod signals;
mod source;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use sluice_sys::node_lock::NodeLock;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::info;

use crate::config::{BackendKind, Settings};
use crate::exit::ExitError;
use crate::http::Gate;
use crate::http::health::Health;
use crate::network::{self, PodNetworkTask};
use crate::node::{addresses, alone};
use crate::observe::metrics::Metrics;
use crate::observe::recorder::{Event, Recorder};
use crate::service::affinity::Told;
use crate::service::backend::{Opened, Programs};
use crate::service::reconcile::{Inputs, Outputs, Reconciler};
use crate::service::{flows, health_checks};
use crate::state::{Published, State};
use crate::watch::Received;
use crate::watch::kubernetes::Peers;
use signals::EndSignals;

use ends::{config_change, last_words, pod_cidrs};
use parts::{
    after_first_pass, follow_conntrack, leave_opted_out_alone, pod_network_task, run_pod_network,
    serve_loopback, servers,
};
pub use preflight::init;
use source::source;

/// Objects on their way to the index.
const EVENT_QUEUE: usize = 4096;

/// What the daemon has before it begins its work.
struct Started {
    settings: Settings,
    opened: Opened,
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
        let opened = preflight::open_backend(&mut settings)?;
        process::prepare_process(&settings);
        Ok::<_, ExitError>((settings, opened))
    });
    let (settings, opened) = opening.await.map_err(|_| ExitError::Ended("start"))??;
    let metrics = Metrics::default();
    let (sender, events) = mpsc::channel::<Received>(EVENT_QUEUE);
    let (peers, api_peers) = watch::channel(Peers::new());
    let (source, recorder) = source(&settings, sender, metrics.clone(), peers).await?;
    let maps = opened.programs.as_ref().map(|programs| programs.maps.clone());
    let pod_network = pod_network_task(&settings, &recorder, &metrics, maps)?;
    Ok(Started { settings, opened, metrics, events, source, api_peers, recorder, pod_network, _lock: lock })
}

/// Runs until SIGTERM or SIGINT. Rules stay in force.
pub async fn run(settings: Settings, mut signals: EndSignals) -> Result<(), ExitError> {
    process::tell_start(&settings);
    let started = tokio::select! {
        biased;
        signal = signals.received() => {
            info!(signal, "ending; nothing was changed");
            return Ok(());
        }
        started = start(settings) => started?,
    };
    let Started {
        settings,
        opened: Opened { backend, programs },
        metrics,
        events: event_receiver,
        source,
        api_peers,
        recorder,
        pod_network,
        _lock,
    } = started;
    let files = process::open_files();
    let health = Health::new(settings.sync_period);

    let (notices, notice_receiver) = mpsc::channel(16);
    let (network_sender, network_receiver) = watch::channel(None);
    let (shutdown, shutdown_receiver) = watch::channel(false);
    let (conntrack_sender, conntrack_receiver) = mpsc::unbounded_channel();
    let (check_sender, check_receiver) = watch::channel(BTreeMap::new());
    let (listener_sender, listener_receiver) = watch::channel(Default::default());
    let (facts_sender, facts_receiver) = watch::channel(Default::default());
    let (nodes, nodes_receiver) = watch::channel(None);
    let (opted_out, opted_out_receiver) = watch::channel(None);
    let state = State::new(&settings, Published { nodes, opted_out }, metrics.clone());
    let (started, started_receiver) = oneshot::channel();
    let log = Arc::new(Mutex::new(VecDeque::new()));
    let outputs = Outputs {
        health: health.clone(),
        metrics: metrics.clone(),
        conntrack: conntrack_sender,
        health_checks: check_sender,
        listeners: listener_sender,
        facts: facts_sender,
        log: log.clone(),
        recorder: recorder.clone(),
        started,
    };
    let reconciler = Reconciler::new(settings.clone(), state.world(), backend, outputs);
    let inputs = Inputs {
        notices: notice_receiver,
        network: network_receiver,
        api_peers,
        shutdown: shutdown_receiver,
    };
    if let Some(programs) = &programs {
        let maps = programs.maps.clone();
        tokio::spawn(leave_opted_out_alone(opted_out_receiver, maps, metrics.opted_out.clone()));
    }
    let mut source = tokio::spawn(source);
    let mut state = tokio::spawn(state.run(event_receiver));
    let of_pods = network::Inputs { nodes: nodes_receiver, network: network_sender.subscribe() };
    let mut pod_network = tokio::spawn(run_pod_network(pod_network, of_pods));
    tokio::spawn(addresses::follow(network_sender, settings.backend == BackendKind::Ebpf));
    let told = Told { metrics: metrics.clone(), recorder: recorder.clone() };
    match programs {
        Some(Programs { maps, ender }) => {
            metrics.follow(maps.clone());
            tokio::spawn(flows::run(conntrack_receiver, maps, ender, told));
        }
        None => follow_conntrack(&settings, conntrack_receiver, facts_receiver.clone(), told),
    }
    let service_health = (settings.clone(), check_receiver, facts_receiver.clone());
    tokio::spawn(health_checks::run(service_health, (health.clone(), Gate::new(files)), recorder.clone()));
    serve_loopback(&settings, (listener_receiver, facts_receiver.clone()), &metrics);
    tokio::spawn(after_first_pass(started_receiver, notices, settings.clone()));
    let pod_cidrs = pod_cidrs(&settings, facts_receiver.clone(), ends::POD_CIDR_WAIT);
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
        _ = &mut state => Err(ExitError::Ended("keeper of objects")),
        _ = &mut pod_network => Err(ExitError::Ended("pod network")),
    }
}
