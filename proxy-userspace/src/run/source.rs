//! Where objects come from: the API, or files.

use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};

use crate::config::{Settings, Source};
use crate::exit::ExitError;
use crate::features;
use crate::observe::metrics::Metrics;
use crate::observe::recorder::{Recorder, Reporter};
use crate::watch::Received;
use crate::watch::kubernetes::{self, Access, Origin, Peers, Scope, Timing, follow_peers};
use crate::watch::manifests::Manifests;

/// Makes the source of objects, as a future to run, and what takes events to where they come from.
pub(super) async fn source(
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
            let scope = Scope { node_name, kinds: features::interests(settings) };
            (Box::pin(kubernetes::run(access, scope, events, metrics, Timing::default())), recorder)
        }
    })
}
