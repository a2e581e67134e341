//! Watches a cluster with the daemon's own watch, and keeps what it tells as the index does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sluice::config::{Flags, resolve};
use sluice::features;
use sluice::observe::metrics::Metrics;
use sluice::watch::Received;
use sluice::watch::kubernetes::{self, Access, Origin, Scope, Timing};
use sluice_core::event::{Change, Event};
use tokio::sync::mpsc;

/// Services by name, with their first port.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) services: BTreeMap<String, u16>,
    /// Services that were withdrawn, ever.
    pub(crate) withdrawn: Vec<String>,
    /// Services whose state could not be read.
    pub(crate) kept: Vec<String>,
    pub(crate) lists: usize,
    listing: Option<BTreeSet<String>>,
}

impl Told {
    fn take(&mut self, change: Change<sluice_core::model::Service>) {
        match change {
            Change::ListBegin => self.listing = Some(BTreeSet::new()),
            Change::Apply(service) => {
                let name = service.name.name().to_owned();
                self.listing.get_or_insert_default().insert(name.clone());
                self.services.insert(name, service.ports.first().map_or(0, |port| port.port));
            }
            Change::Keep(name) => {
                let name = name.name().to_owned();
                self.listing.get_or_insert_default().insert(name.clone());
                self.kept.push(name);
            }
            Change::Delete(name) => {
                self.services.remove(name.name());
                self.withdrawn.push(name.name().to_owned());
            }
            Change::ListEnd => {
                let seen = self.listing.take().unwrap();
                let gone = self.services.keys().filter(|name| !seen.contains(*name)).cloned();
                self.withdrawn.extend(gone.collect::<Vec<_>>());
                self.services.retain(|name, _| seen.contains(name));
                self.lists += 1;
            }
        }
    }
}

/// A running watch.
pub(crate) struct Observer {
    told: Arc<Mutex<Told>>,
    pub(crate) metrics: Metrics,
    pub(crate) directory: PathBuf,
}

/// Timing for tests: the same behaviour, sooner.
pub(crate) fn quick() -> Timing {
    Timing {
        answer: Duration::from_millis(1500),
        list_idle: Duration::from_millis(1000),
        watch_idle: Duration::from_millis(1200),
        watch: Duration::from_secs(60),
        first_retry: Duration::from_millis(20),
        last_retry: Duration::from_millis(300),
        relist_spread: Duration::from_millis(50),
    }
}

impl Observer {
    /// Watches a server, with the token `secret` in a file next to the kubeconfig.
    pub(crate) async fn start(url: &str, timing: Timing) -> Observer {
        let directory = scratch_directory();
        let kubeconfig = write_kubeconfig(&directory, url, "secret");
        let origin = Origin { kubeconfig: Some(kubeconfig), master: None };
        Observer::follow(Access::new(origin).await.unwrap(), directory, timing)
    }

    /// Watches by an access; the directory goes when this is dropped.
    pub(crate) fn follow(access: Access, directory: PathBuf, timing: Timing) -> Observer {
        let (sender, mut receiver) = mpsc::channel::<Received>(256);
        let metrics = Metrics::default();
        let settings = resolve(Default::default(), &Flags::default(), "node-a").unwrap();
        let scope = Scope { node_name: "node-a".into(), kinds: features::interests(&settings) };
        tokio::spawn(kubernetes::run(access, scope, sender, metrics.clone(), timing));
        let told = Arc::new(Mutex::new(Told::default()));
        let keep = told.clone();
        tokio::spawn(async move {
            while let Some(received) = receiver.recv().await {
                if let Event::Service(change) = received.event {
                    keep.lock().unwrap().take(change);
                }
            }
        });
        Observer { told, metrics, directory }
    }

    pub(crate) fn told(&self) -> Told {
        self.told.lock().unwrap().clone()
    }

    /// Waits until something is so.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&Told) -> bool) -> Told {
        for _ in 0..1500 {
            let told = self.told();
            if wanted(&told) {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never {what}: {:?}", self.told());
    }

    /// Waits until exactly these services are known.
    pub(crate) async fn until_services(&self, services: &[(&str, u16)]) -> Told {
        let wanted: BTreeMap<String, u16> = services.iter().map(|(n, p)| ((*n).to_owned(), *p)).collect();
        self.until(&format!("{services:?}"), |told| told.services == wanted && told.lists > 0).await
    }

    /// The value of a failure counter of Services.
    pub(crate) fn failures(&self, reason: &str) -> u64 {
        let prefix = format!("sluice_watch_errors_total{{kind=\"Service\",reason=\"{reason}\"}} ");
        let page = self.metrics.page();
        let value = page.lines().find_map(|line| line.strip_prefix(&prefix));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// Waits until a kind of failure has been counted.
    pub(crate) async fn until_failed(&self, reason: &str) {
        self.until(&format!("counted {reason}"), |_| self.failures(reason) > 0).await;
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A new directory for this test.
pub(crate) fn scratch_directory() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("sluice-watch-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let directory = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

/// Writes a kubeconfig and its token file.
pub(crate) fn write_kubeconfig(directory: &Path, url: &str, token: &str) -> PathBuf {
    // With the newline that `echo` leaves.
    std::fs::write(directory.join("token"), format!("{token}\n")).unwrap();
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "c", "cluster": {"server": url, "insecure-skip-tls-verify": true}}],
        "users": [{"name": "u", "user": {"tokenFile": directory.join("token")}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    });
    let path = directory.join("kubeconfig");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

/// A Service of one port.
pub(crate) fn service(name: &str, port: impl Into<Value>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": port.into()}]},
    })
}
