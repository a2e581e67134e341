//! What ends the daemon, other than signals and failures of its parts.

use std::time::Duration;

use tokio::sync::watch;
use tracing::warn;

use crate::config::{self, DetectLocal, Settings};
use crate::exit::ExitError;
use crate::http::server::ServeError;
use crate::observe::recorder::{Event, Recorder};
use crate::service::facts::NodeFacts;

/// How long the end of the process waits for the event that tells of it.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(2);

pub(super) const POD_CIDR_WAIT: Duration = Duration::from_secs(300);

/// Tells the cluster why the process ends, if it can be told at once.
pub(super) async fn last_words(
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

/// In mode NodeCIDR, returns when the Node has had no podCIDRs for too long since the start.
pub(super) async fn pod_cidrs(
    settings: &Settings,
    mut facts: watch::Receiver<NodeFacts>,
    wait: Duration,
) -> ExitError {
    let there = |facts: &NodeFacts| facts.node.as_ref().is_some_and(|node| !node.pod_cidrs.is_empty());
    if settings.detect_local != DetectLocal::NodeCidr
        || matches!(tokio::time::timeout(wait, facts.wait_for(there)).await, Ok(Ok(_)))
    {
        return std::future::pending().await;
    }
    ExitError::NoPodCidrs(settings.node_name.clone())
}

/// Returns when the configuration file changes.
pub(super) async fn config_change(settings: &Settings) -> ExitError {
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
}
