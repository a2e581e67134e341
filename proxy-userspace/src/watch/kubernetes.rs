//! Objects from the Kubernetes API.
//!
//! While the API is away, the last known objects stay in force; a new list withdraws only what it no longer
//! holds, and only when it is complete.

use std::fmt::Debug;
use std::path::PathBuf;

use futures::StreamExt;
use k8s_openapi::api::networking::v1 as networking;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Config, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use sluice_core::event::{Change, Event};
use sluice_core::model::ObjectName;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::convert::{
    Converted, convert_endpoint_slice, convert_node, convert_service, convert_service_cidr,
};
use super::{Events, send};
use crate::metrics::Metrics;

/// Why the API cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {}: {source}. Name a valid file with --kubeconfig", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// Not running in a pod with a service account.
    #[error("not in a cluster: {0}. Give --kubeconfig FILE, or --manifests DIR to run without a cluster")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// The URL of --master is wrong.
    #[error("--master {url:?} is no URL: {reason}")]
    Master {
        /// The value.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// No client can be made of the configuration.
    #[error("cannot make an API client: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// Makes a client from a kubeconfig, or from the pod's service account.
pub async fn client(kubeconfig: Option<&PathBuf>, master: Option<&str>) -> Result<Client, KubernetesError> {
    let master = master.map(|url| {
        let wrong = |error| KubernetesError::Master { url: url.to_owned(), reason: format!("{error}") };
        url.parse::<axum::http::Uri>().map_err(wrong)
    });
    let master = master.transpose()?;
    let mut config = match kubeconfig {
        Some(path) => {
            let fail = |source| KubernetesError::Kubeconfig { path: path.clone(), source: Box::new(source) };
            let file = Kubeconfig::read_from(path).map_err(fail)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(fail)?
        }
        None => match (Config::incluster(), &master) {
            (Ok(config), _) => config,
            // --master alone is enough where the API server asks for no credentials.
            (Err(_), Some(url)) => Config::new(url.clone()),
            (Err(error), None) => return Err(KubernetesError::InCluster(Box::new(error))),
        },
    };
    if let Some(url) = master {
        config.cluster_url = url;
    }
    // A watch is a long silence: only a read timeout longer than the server's own would be harmless.
    config.read_timeout = None;
    Client::try_from(config).map_err(|error| KubernetesError::Client(Box::new(error)))
}

/// Watches everything until nobody listens any more.
pub async fn run(client: Client, node_name: String, events: Events, metrics: Metrics) {
    let services = watcher::Config::default()
        .labels("!service.kubernetes.io/service-proxy-name")
        .fields("spec.clusterIP!=None");
    let slices = watcher::Config::default().labels("!service.kubernetes.io/headless");
    let node = watcher::Config::default().fields(&format!("metadata.name={node_name}"));
    let mut tasks = JoinSet::new();
    let source = Source { client, events, metrics };
    tasks.spawn(source.clone().follow(services, convert_service, Event::Service, true));
    tasks.spawn(source.clone().follow(slices, convert_endpoint_slice, Event::Slice, true));
    tasks.spawn(source.clone().follow(node, convert_node, Event::Node, false));
    let cidrs = watcher::Config::default();
    tasks.spawn(source.follow::<networking::ServiceCIDR, _>(
        cidrs,
        convert_service_cidr,
        Event::ServiceCidr,
        false,
    ));
    while tasks.join_next().await.is_some() {}
}

#[derive(Clone)]
struct Source {
    client: Client,
    events: Events,
    metrics: Metrics,
}

impl Source {
    async fn follow<K, T>(
        self,
        config: watcher::Config,
        convert: fn(&K) -> Converted<T>,
        event: fn(Change<T>) -> Event,
        namespaced: bool,
    ) where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let kind = K::kind(&()).into_owned();
        let api: Api<DeserializeGuard<K>> = Api::all(self.client.clone());
        // "Any" reads lists from the API server's cache: a relist of every node must not reach etcd.
        let stream = watcher(api, config.any_semantic()).default_backoff();
        let mut stream = std::pin::pin!(stream);
        loop {
            let item = tokio::select! {
                item = stream.next() => item,
                () = self.events.closed() => return,
            };
            let change = match item {
                None => return,
                Some(Err(error)) => {
                    self.metrics.watch_errors.get_or_create(&[("kind", kind.clone())]).inc();
                    warn!(kind, %error, "watch failed; what is known stays in force, trying again");
                    continue;
                }
                Some(Ok(watcher::Event::Init)) => {
                    self.metrics.lists.get_or_create(&[("kind", kind.clone())]).inc();
                    Change::ListBegin
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    info!(kind, "list complete");
                    Change::ListEnd
                }
                Some(Ok(watcher::Event::Delete(object))) => Change::Delete(name(&object, namespaced)),
                Some(Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object))) => {
                    self.converted(&kind, &object, convert, namespaced)
                }
            };
            if !send(&self.events, event(change)).await {
                return;
            }
        }
    }

    /// Converts an object; one that cannot be decoded keeps its last good state.
    fn converted<K, T>(
        &self,
        kind: &str,
        object: &DeserializeGuard<K>,
        convert: fn(&K) -> Converted<T>,
        namespaced: bool,
    ) -> Change<T>
    where
        K: Resource<DynamicType = ()>,
    {
        let meta = object.meta();
        let label = || {
            format!(
                "{}/{} (resourceVersion {})",
                meta.namespace.as_deref().unwrap_or_default(),
                meta.name.as_deref().unwrap_or_default(),
                meta.resource_version.as_deref().unwrap_or_default()
            )
        };
        match &object.0 {
            Ok(object) => {
                let converted = convert(object);
                for problem in &converted.problems {
                    self.metrics.object_problems.inc();
                    warn!(kind, object = label(), "{problem}");
                }
                debug!(kind, object = label(), "received");
                converted.change
            }
            Err(error) => {
                self.metrics.object_problems.inc();
                warn!(kind, object = label(), %error, "cannot be decoded; its last good state stays in force");
                Change::Keep(name(object, namespaced))
            }
        }
    }
}

fn name<K: Resource<DynamicType = ()>>(object: &DeserializeGuard<K>, namespaced: bool) -> ObjectName {
    match namespaced {
        true => ObjectName::new(&object.namespace().unwrap_or_default(), &object.name_any()),
        false => ObjectName::cluster_scoped(&object.name_any()),
    }
}
