//! `sluice run`: puts the parts together and keeps them running.

mod ends;
mod preflight;
mod process;
mod servers;
pub mod signals;
mod source;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use sluice_sys::node_lock::NodeLock;
use tokio::sync::{mpsc, watch};
use tracing::info;

use crate::config::{BackendKind, Settings};
use crate::exit::ExitError;
use crate::feature::Context;
use crate::http::health::Health;
use crate::node::{addresses, alone};
use crate::observe::metrics::Metrics;
use crate::observe::recorder::{Event, Recorder};
use crate::service::Shown;
use crate::service::backend::Opened;
use crate::state::State;
use crate::watch::Received;
use crate::watch::kubernetes::Peers;
use crate::{network, service};

use ends::{config_change, last_words, pod_cidrs};
pub use preflight::init;
use servers::servers;
use signals::EndSignals;
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
    network: Option<network::Prepared>,
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
    let network = network::prepare(&settings)?;
    Ok(Started { settings, opened, metrics, events, source, api_peers, recorder, network, _lock: lock })
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
    let Started { settings, opened, metrics, events, source, api_peers, recorder, network, _lock } = started;
    let files = process::open_files();
    let shown =
        Shown { health: Health::new(settings.sync_period), log: Arc::new(Mutex::new(VecDeque::new())) };
    let (network_sender, network_receiver) = watch::channel(None);
    let (shutdown, shutdown_receiver) = watch::channel(false);
    let context = Context {
        settings: settings.clone(),
        metrics: metrics.clone(),
        recorder: recorder.clone(),
        network: network_receiver,
        api_peers,
        files,
        shutdown: shutdown_receiver,
    };
    let state = State::new(&settings, metrics.clone());
    let world = state.world();
    let maps = opened.programs.as_ref().map(|programs| programs.maps.clone());
    let mut pod_network = tokio::spawn(network::run(network, &world, &context, maps));
    let service::Running { mut reconciling, facts } = service::run(opened, &world, &context, shown.clone());
    let mut source = tokio::spawn(source);
    let mut state = tokio::spawn(state.run(events));
    tokio::spawn(addresses::follow(network_sender, settings.backend == BackendKind::Ebpf));
    let pod_cidrs = pod_cidrs(&settings, facts, ends::POD_CIDR_WAIT);
    let (healthz, metrics_page) = servers(&settings, files, (shown.health, metrics, shown.log));
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
