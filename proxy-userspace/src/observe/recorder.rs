//! Events for the Kubernetes API (reference 5.5). They are a courtesy to whoever looks: posted from
//! a task of its own, dropped when there are too many, and never waited for but at the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sluice_core::model::ObjectName;
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use crate::observe::metrics::Metrics;
use crate::watch::kubernetes::{Access, Requests};

/// Events on their way; what comes on top is dropped.
const QUEUE: usize = 64;
/// The same event is posted once in this time.
const REPEAT: Duration = Duration::from_secs(300);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// The API refuses longer notes.
const MAX_NOTE_BYTES: usize = 1024;
const CONTROLLER: &str = "kube-proxy";

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Regarding {
    /// The own Node.
    Node,
    /// A Service.
    Service(ObjectName),
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is about.
    pub regarding: Regarding,
    /// Something went wrong.
    pub warning: bool,
    /// Why it is told.
    pub reason: &'static str,
    /// What was being done.
    pub action: &'static str,
    /// More, for people.
    pub note: String,
}

impl Event {
    /// The proxy starts.
    pub fn starting() -> Event {
        Event::of_node(false, "Starting", String::new())
    }

    /// The configuration names no mode, which will mean another one to a later kube-proxy.
    pub fn default_mode() -> Event {
        let note = "mode is not set: the settings of mode iptables are used, and it runs as nftables. From \
                    kube-proxy 1.40 on, the default is nftables: set \"mode: nftables\" or \"mode: iptables\"";
        Event::of_node(true, "KubeProxyDefaultMode", note.to_owned())
    }

    /// The health server cannot listen, and the process ends for it.
    pub fn no_health_server(note: String) -> Event {
        Event::of_node(true, "FailedToStartProxierHealthcheck", note)
    }

    /// The metrics server cannot listen, and the process ends for it.
    pub fn no_metrics_server(note: String) -> Event {
        Event::of_node(true, "FailedToStartMetricServer", note)
    }

    /// A healthCheckNodePort cannot be listened on.
    pub fn no_service_health(service: ObjectName, note: String) -> Event {
        let (reason, regarding) = ("FailedToStartServiceHealthcheck", Regarding::Service(service));
        Event { regarding, warning: true, reason, action: "Listen", note }
    }

    /// A Service asks for addresses that it does not get.
    pub fn address_refused(service: ObjectName, note: String) -> Event {
        let regarding = Regarding::Service(service);
        Event { regarding, warning: true, reason: "AddressRefused", action: "ServeAddress", note }
    }

    /// A Service is too large to be served.
    pub fn service_too_large(service: ObjectName, note: String) -> Event {
        let regarding = Regarding::Service(service);
        Event { regarding, warning: true, reason: "ServiceTooLarge", action: "ServeAddress", note }
    }

    /// The table of clients that are remembered gets full.
    pub fn many_clients(note: String) -> Event {
        let regarding = Regarding::Node;
        Event { regarding, warning: true, reason: "AffinityTableNearlyFull", action: "RememberClients", note }
    }

    /// The kernel refuses what a Service needs.
    pub fn kernel_refused(service: ObjectName, note: String) -> Event {
        let regarding = Regarding::Service(service);
        Event { regarding, warning: true, reason: "KernelRefused", action: "ServeAddress", note }
    }

    /// Something is wrong with the network between pods.
    pub fn pod_network(reason: &'static str, note: String) -> Event {
        Event { regarding: Regarding::Node, warning: true, reason, action: "ConfigurePodNetwork", note }
    }

    /// Others change what is ours. Always the same words, so that it is posted once however often
    /// they do.
    pub fn changed_by_others(what: &str) -> Event {
        let note = format!(
            "another program changed {what}, and Sluice repaired it (metrics sluice_foreign_changes_total \
             and sluice_repairs_total); find the program (nft monitor), and stop it"
        );
        let (reason, action) = ("ChangedByOthers", "RepairRules");
        Event { regarding: Regarding::Node, warning: true, reason, action, note }
    }

    fn of_node(warning: bool, reason: &'static str, note: String) -> Event {
        Event { regarding: Regarding::Node, warning, reason, action: "StartKubeProxy", note }
    }
}

/// Who reports.
#[derive(Clone, Debug)]
pub struct Reporter {
    /// The Node.
    pub node_name: String,
    /// The host's own name.
    pub host_name: String,
}

enum Job {
    Post(Event),
    /// Answered when everything before it is done.
    Flush(oneshot::Sender<()>),
}

/// Takes events; clones share the queue. Without an API server they go nowhere.
#[derive(Clone, Default)]
pub struct Recorder {
    queue: Option<(mpsc::Sender<Job>, Metrics)>,
}

impl Recorder {
    /// Posts to the API.
    pub fn new(access: Access, reporter: Reporter, metrics: Metrics) -> Recorder {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let requests = Requests::new(access, metrics.clone(), ANSWER);
        tokio::spawn(post_all(receiver, requests, reporter, metrics.clone()));
        Recorder { queue: Some((sender, metrics)) }
    }

    /// Takes an event and returns at once.
    pub fn record(&self, event: Event) {
        if let Some((queue, metrics)) = &self.queue
            && queue.try_send(Job::Post(event)).is_err()
        {
            count(metrics, "dropped");
        }
    }

    /// Waits until what was recorded is posted, but no longer than this.
    pub async fn flush(&self, limit: Duration) {
        let Some((queue, _)) = &self.queue else { return };
        let (done, flushed) = oneshot::channel();
        let all = async {
            if queue.send(Job::Flush(done)).await.is_ok() {
                let _ = flushed.await;
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            debug!("events could not be posted in time");
        }
    }
}

fn count(metrics: &Metrics, result: &str) {
    metrics.events.get_or_create(&[("result", result.to_owned())]).inc();
}

async fn post_all(mut jobs: mpsc::Receiver<Job>, requests: Requests, reporter: Reporter, metrics: Metrics) {
    let mut posted: BTreeMap<String, Instant> = BTreeMap::new();
    while let Some(job) = jobs.recv().await {
        let event = match job {
            Job::Post(event) => event,
            Job::Flush(done) => {
                let _ = done.send(());
                continue;
            }
        };
        posted.retain(|_, at| at.elapsed() < REPEAT);
        let key = format!("{event:?}");
        if posted.contains_key(&key) {
            count(&metrics, "dropped");
            continue;
        }
        let (path, body) = request(&event, &reporter, SystemTime::now());
        match requests.post(&path, &body).await {
            Ok(()) => {
                posted.insert(key, Instant::now());
                count(&metrics, "sent");
            }
            Err(error) => {
                count(&metrics, "failed");
                debug!(error, reason = event.reason, "event not posted");
            }
        }
    }
}

/// The path and the object of an event.
fn request(event: &Event, reporter: &Reporter, now: SystemTime) -> (String, Value) {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (regarding, about, namespace) = match &event.regarding {
        // By name only: the health of the Node object is none of ours.
        Regarding::Node => {
            let name = reporter.node_name.as_str();
            (json!({"apiVersion": "v1", "kind": "Node", "name": name}), name, "default")
        }
        Regarding::Service(service) => {
            let (namespace, name) = (service.namespace(), service.name());
            // kube-proxy does not know the object's UID either, and gives its name for it.
            let uid = service.to_string();
            let regarding = json!({"kind": "Service", "namespace": namespace, "name": name, "uid": uid});
            (regarding, name, namespace)
        }
    };
    let mut object = json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": format!("{about}.{:x}", since.as_nanos()), "namespace": namespace},
        "eventTime": micro_time(since),
        "reportingController": CONTROLLER,
        "reportingInstance": format!("{CONTROLLER}-{}", reporter.host_name),
        "action": event.action,
        "reason": event.reason,
        "regarding": regarding,
        "type": if event.warning { "Warning" } else { "Normal" },
    });
    if !event.note.is_empty() {
        let end = event.note.floor_char_boundary(MAX_NOTE_BYTES);
        object["note"] = event.note[..end].into();
    }
    (format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"), object)
}

/// RFC 3339 with microseconds, as the API wants it.
fn micro_time(since: Duration) -> String {
    let micros = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{time:.6}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reporter() -> Reporter {
        Reporter { node_name: "node-a".into(), host_name: "host-a".into() }
    }

    #[test]
    fn an_event_has_the_fields_of_kube_proxys() {
        let now = UNIX_EPOCH + Duration::new(1_795_245_488, 628_938_123);
        let (path, object) = request(&Event::starting(), &reporter(), now);
        assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/default/events");
        let wanted = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": "node-a.18e9fe42a25a804b", "namespace": "default"},
            "eventTime": "2026-11-21T07:18:08.628938Z",
            "reportingController": "kube-proxy", "reportingInstance": "kube-proxy-host-a",
            "action": "StartKubeProxy", "reason": "Starting", "type": "Normal",
            "regarding": {"apiVersion": "v1", "kind": "Node", "name": "node-a"},
        });
        let mut object = object;
        object["metadata"]["name"] = wanted["metadata"]["name"].clone();
        assert_eq!(object, wanted);
    }

    #[test]
    fn names_hold_the_time_and_long_notes_are_cut() {
        let event = Event::no_service_health(ObjectName::new("shop", "web"), "ü".repeat(1000));
        let (path, object) = request(&event, &reporter(), UNIX_EPOCH + Duration::from_nanos(255));
        assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/shop/events");
        assert_eq!(object["metadata"]["name"], "web.ff");
        assert_eq!(object["note"].as_str().map(str::len), Some(MAX_NOTE_BYTES));
        assert_eq!((&object["type"], &object["action"]), (&json!("Warning"), &json!("Listen")));
    }
}
