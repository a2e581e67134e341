//! Pods and Namespaces: who leaves the socket path.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use sluice::config::{BackendKind, Flags, resolve};
use sluice::features::interests;
use sluice::observe::metrics::Metrics;
use sluice::watch::Received;
use sluice::watch::kubernetes::{self, Access, Origin, Scope};
use sluice_core::index::Index;
use tokio::sync::mpsc;

use crate::fake_api::{FakeApi, ObjectWriter, Options};
use crate::observer::{quick, scratch_directory, service, write_kubeconfig};

struct Watched {
    events: mpsc::Receiver<Received>,
    index: Index,
    metrics: Metrics,
    directory: PathBuf,
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Watched {
    async fn start(api: &FakeApi, backend: BackendKind) -> Watched {
        let directory = scratch_directory();
        let kubeconfig = write_kubeconfig(&directory, api.url(), "secret");
        let access = Access::new(Origin { kubeconfig: Some(kubeconfig), master: None }).await.unwrap();
        let (sender, events) = mpsc::channel(256);
        let metrics = Metrics::default();
        let mut settings = resolve(Default::default(), &Flags::default(), "node-a").unwrap();
        settings.backend = backend;
        let kinds = interests(&settings);
        let scope = Scope { node_name: "node-a".into(), kinds };
        tokio::spawn(kubernetes::run(access, scope, sender, metrics.clone(), quick()));
        Watched { events, index: Index::default(), metrics, directory }
    }

    async fn until(&mut self, what: &str, wanted: impl Fn(&Index) -> bool) {
        let patience = Duration::from_secs(30);
        while !wanted(&self.index) {
            let received = tokio::time::timeout(patience, self.events.recv()).await;
            let Ok(Some(Received { event, .. })) = received else { panic!("never {what}") };
            self.index.apply(event);
        }
    }

    async fn until_opted_out(&mut self, addresses: &[&str]) {
        let wanted: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        self.until(&format!("{addresses:?}"), |index| index.opted_out("node-a").as_ref() == Some(&wanted))
            .await;
    }
}

fn namespace(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn pod(namespace: &str, name: &str, ip: &str, annotations: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
        "spec": {"nodeName": "node-a", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_this_node_and_all_namespaces_are_followed() {
    let api = FakeApi::start(Options::default()).await;
    api.put(namespace("mesh", json!({"sluice.socketLB": "disabled"})));
    api.put(pod("mesh", "a", "10.0.0.1", json!({})));
    api.put(pod("shop", "b", "10.0.0.2", json!({})));
    let mut watched = Watched::start(&api, BackendKind::Ebpf).await;
    watched.until_opted_out(&["10.0.0.1"]).await;
    api.put(pod("shop", "b", "10.0.0.2", json!({"sluice.socketLB": "off"})));
    watched.until_opted_out(&["10.0.0.1", "10.0.0.2"]).await;
    api.put(namespace("mesh", json!({})));
    watched.until_opted_out(&["10.0.0.2"]).await;
    api.delete("Pod", "shop", "b");
    watched.until_opted_out(&[]).await;

    let requests = api.requests();
    let pods = requests.iter().find(|request| request.contains("/api/v1/pods?")).unwrap();
    let selector =
        "&fieldSelector=spec.nodeName%3Dnode-a%2Cstatus.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed";
    assert!(pods.contains(selector), "{pods}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_may_not_read_them_loses_nothing_else() {
    let api = FakeApi::start(Options::default()).await;
    api.forbid(&["pods", "namespaces"]);
    api.put(service("web", 80));
    let mut watched = Watched::start(&api, BackendKind::Ebpf).await;
    watched.until("complete", Index::is_fully_listed).await;
    api.put(service("new", 81));
    watched.until("new", |index| index.services().count() == 2).await;
    assert_eq!(watched.index.opted_out("node-a"), None);
    for kind in ["Pod", "Namespace"] {
        // Each is asked for by itself.
        let counted = format!("sluice_watch_errors_total{{kind=\"{kind}\",reason=\"forbidden\"}}");
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !watched.metrics.page().contains(&counted) {
            assert!(std::time::Instant::now() < end, "{}", watched.metrics.page());
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
    // Once it may, it does.
    api.put(pod("mesh", "a", "10.0.0.1", json!({"sluice.socketLB": "false"})));
    api.forbid(&[]);
    watched.until_opted_out(&["10.0.0.1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_ebpf_backend_nobody_asks_for_them() {
    let api = FakeApi::start(Options::default()).await;
    let mut watched = Watched::start(&api, BackendKind::Nftables).await;
    watched.until("complete", Index::is_fully_listed).await;
    let requests = api.requests();
    assert!(!requests.iter().any(|r| r.contains("/pods") || r.contains("/namespaces")), "{requests:?}");
}
