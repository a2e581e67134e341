//! The Kubernetes API as a source, against a small API server in this process.
#![expect(clippy::unwrap_used, clippy::panic, reason = "integration tests fail by panicking")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use sluice::metrics::Metrics;
use sluice::watch::{Received, kubernetes};
use sluice_core::event::{Change, Event};
use tokio::sync::{broadcast, mpsc};

/// Objects by resource, selectors seen, and watch events to come.
#[derive(Clone)]
struct Api {
    lists: Arc<Mutex<BTreeMap<String, Vec<Value>>>>,
    selectors: Arc<Mutex<BTreeMap<String, String>>>,
    watches: broadcast::Sender<(String, String)>,
}

impl Api {
    async fn start() -> (Api, kube::Client) {
        let api = Api { lists: Arc::default(), selectors: Arc::default(), watches: broadcast::channel(16).0 };
        let router = Router::new()
            .route("/api/v1/{resource}", get(serve_core))
            .route("/apis/{group}/v1/{resource}", get(serve_group))
            .with_state(api.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        (api, client)
    }

    fn set(&self, resource: &str, objects: Vec<Value>) {
        self.lists.lock().unwrap().insert(resource.into(), objects);
    }

    /// Sends a line on the watch of a resource; an empty line breaks the connection.
    fn send(&self, resource: &str, event: Value) {
        let line = if event.is_null() { String::new() } else { event.to_string() + "\n" };
        self.watches.send((resource.into(), line)).unwrap();
    }
}

type Parameters = Query<BTreeMap<String, String>>;

async fn serve_core(state: State<Api>, Path(resource): Path<String>, query: Parameters) -> Response {
    serve(state, resource, query)
}

async fn serve_group(
    state: State<Api>,
    Path((_, resource)): Path<(String, String)>,
    query: Parameters,
) -> Response {
    serve(state, resource, query)
}

fn serve(State(api): State<Api>, resource: String, Query(query): Parameters) -> Response {
    let selector = |name: &str| query.get(name).cloned().unwrap_or_default();
    if !query.contains_key("watch") {
        let both = format!("{} {}", selector("labelSelector"), selector("fieldSelector"));
        api.selectors.lock().unwrap().insert(resource.clone(), both);
        let items = api.lists.lock().unwrap().get(&resource).cloned().unwrap_or_default();
        let body =
            json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items});
        return body.to_string().into_response();
    }
    let receiver = api.watches.subscribe();
    let lines = futures::stream::unfold((receiver, resource), |(mut receiver, resource)| async move {
        loop {
            let (to, line) = receiver.recv().await.ok()?;
            if to == resource {
                let piece: Result<Bytes, std::io::Error> =
                    if line.is_empty() { Err(std::io::Error::other("reset")) } else { Ok(line.into()) };
                return Some((piece, (receiver, resource)));
            }
        }
    });
    Body::from_stream(lines).into_response()
}

fn service(name: &str, port: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "resourceVersion": "2"},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": port}]},
    })
}

async fn until(
    events: &mut mpsc::Receiver<Received>,
    wanted: impl Fn(&Change<sluice_core::model::Service>) -> bool,
) {
    loop {
        let received = tokio::time::timeout(Duration::from_secs(20), events.recv()).await;
        match received {
            Ok(Some(Received { event: Event::Service(change), .. })) if wanted(&change) => return,
            Ok(Some(_)) => {}
            _ => panic!("no such event"),
        }
    }
}

fn applied(change: &Change<sluice_core::model::Service>, port: u16) -> bool {
    matches!(change, Change::Apply(s) if s.ports.first().is_some_and(|p| p.port == port))
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_watches_broken_objects_and_lost_connections() {
    let (api, client) = Api::start().await;
    api.set("services", vec![service("web", json!(80))]);
    let (sender, mut events) = mpsc::channel(256);
    let metrics = Metrics::default();
    tokio::spawn(kubernetes::run(client, "node-a".into(), sender, metrics.clone()));
    until(&mut events, |change| *change == Change::ListBegin).await;
    until(&mut events, |change| applied(change, 80)).await;
    until(&mut events, |change| *change == Change::ListEnd).await;

    // Selectors of the reference, section 1.1.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let selectors = api.selectors.lock().unwrap().clone();
    assert_eq!(selectors["services"], "!service.kubernetes.io/service-proxy-name spec.clusterIP!=None");
    assert_eq!(selectors["endpointslices"], "!service.kubernetes.io/headless ");
    assert_eq!(selectors["nodes"], " metadata.name=node-a");

    api.send("services", json!({"type": "MODIFIED", "object": service("web", json!(81))}));
    until(&mut events, |change| applied(change, 81)).await;
    // An object that cannot be decoded keeps its last good state.
    api.send("services", json!({"type": "MODIFIED", "object": service("web", json!("many"))}));
    until(&mut events, |change| matches!(change, Change::Keep(name) if name.name() == "web")).await;

    // A lost connection and an expired version lead to a new list; what it does not hold is gone after it only.
    api.set("services", vec![service("web", json!("still broken")), service("new", json!(90))]);
    api.send("services", Value::Null);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let gone = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": "Failure", "message": "too old resource version", "reason": "Expired", "code": 410}});
    let sending = tokio::spawn({
        let api = api.clone();
        async move {
            loop {
                let _ = api.watches.send(("services".into(), gone.to_string() + "\n"));
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    });
    until(&mut events, |change| *change == Change::ListBegin).await;
    sending.abort();
    until(&mut events, |change| matches!(change, Change::Keep(name) if name.name() == "web")).await;
    until(&mut events, |change| applied(change, 90)).await;
    until(&mut events, |change| *change == Change::ListEnd).await;
    let page = metrics.page();
    assert!(page.contains("sluice_watch_errors_total{kind=\"Service\"}"), "{page}");
    assert!(page.contains("sluice_object_problems_total 2"), "{page}");
}
