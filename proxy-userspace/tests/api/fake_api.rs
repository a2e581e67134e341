//! A small API server in this process that answers lists, watches and events as the real one (1.36)
//! does.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Writes objects of a cluster: the fake one here, or a real one behind a URL.
pub(crate) trait ObjectWriter {
    /// Creates or replaces an object.
    fn put(&self, object: Value);
    /// Deletes an object.
    fn delete(&self, kind: &str, namespace: &str, name: &str);
}

/// `(kind, namespace, name)`.
type Key = (String, String, String);

#[derive(Default)]
struct Cluster {
    version: u64,
    objects: BTreeMap<Key, Value>,
    /// Version, type, kind and object of each change.
    history: Vec<(u64, &'static str, String, Value)>,
    /// Changes up to this version are forgotten.
    compacted: u64,
    events: Vec<Value>,
    requests: Vec<String>,
    tokens: BTreeSet<String>,
    /// Resources that nobody may read.
    forbidden: BTreeSet<String>,
}

/// The server; clones share it.
#[derive(Clone)]
pub(crate) struct FakeApi {
    cluster: Arc<Mutex<Cluster>>,
    changed: Arc<watch::Sender<u64>>,
    options: Options,
    url: String,
}

/// What the server can.
#[derive(Clone)]
pub(crate) struct Options {
    /// Whether it sends lists as the beginning of a watch.
    pub(crate) streaming: bool,
    /// The pause between bookmarks.
    pub(crate) bookmarks: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options { streaming: true, bookmarks: Duration::from_millis(200) }
    }
}

impl FakeApi {
    pub(crate) async fn start(options: Options) -> FakeApi {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let cluster = Cluster { version: 100, ..Cluster::default() };
        let api = FakeApi {
            cluster: Arc::new(Mutex::new(cluster)),
            changed: Arc::new(watch::channel(0).0),
            options,
            url,
        };
        let router = Router::new().fallback(serve).with_state(api.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        api
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }

    /// Forgets all changes so far: watches from an earlier version get 410.
    pub(crate) fn compact(&self) {
        let mut cluster = self.cluster();
        cluster.version += 1;
        cluster.compacted = cluster.version;
        cluster.history.clear();
    }

    /// From now on only these tokens are known; none means that nobody is asked.
    pub(crate) fn set_tokens(&self, tokens: &[&str]) {
        self.cluster().tokens = tokens.iter().map(|&token| token.into()).collect();
    }

    /// From now on nobody may read these resources.
    pub(crate) fn forbid(&self, resources: &[&str]) {
        self.cluster().forbidden = resources.iter().map(|&resource| resource.into()).collect();
    }

    /// The events that were posted.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.cluster().events.clone()
    }

    /// The paths and queries that were asked for.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.cluster().requests.clone()
    }

    fn change(&self, type_: &'static str, key: Key, mut object: Value) {
        let version = {
            let mut cluster = self.cluster();
            cluster.version += 1;
            let version = cluster.version;
            object["metadata"]["resourceVersion"] = version.to_string().into();
            match type_ {
                "DELETED" => cluster.objects.remove(&key),
                _ => cluster.objects.insert(key.clone(), object.clone()),
            };
            cluster.history.push((version, type_, key.0, object));
            version
        };
        self.changed.send_replace(version);
    }
}

impl ObjectWriter for FakeApi {
    fn put(&self, object: Value) {
        let text =
            |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let key = (text("/kind"), text("/metadata/namespace"), text("/metadata/name"));
        let type_ = if self.cluster().objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        self.change(type_, key, object);
    }

    fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        let object = self.cluster().objects.get(&key).cloned().unwrap();
        self.change("DELETED", key, object);
    }
}

async fn serve(
    State(api): State<FakeApi>,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
    request: Request,
) -> Response {
    let path = request.uri().path().to_owned();
    api.cluster().requests.push(request.uri().to_string());
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let known = {
        let tokens = &api.cluster().tokens;
        tokens.is_empty() || token.and_then(|t| t.strip_prefix("Bearer ")).is_some_and(|t| tokens.contains(t))
    };
    if !known {
        return status(401, "Unauthorized", "Unauthorized");
    }
    if request.method() == Method::POST && path.ends_with("/events") {
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        // Kubernetes' own clients send protobuf.
        api.cluster().events.extend(serde_json::from_slice::<Value>(&body));
        return (StatusCode::CREATED, body).into_response();
    }
    if path.rsplit('/').next().is_some_and(|resource| api.cluster().forbidden.contains(resource)) {
        return status(403, "Forbidden", "forbidden: this account may not list it");
    }
    let kind = match path.rsplit('/').next() {
        Some("services") => "Service",
        Some("endpointslices") => "EndpointSlice",
        Some("nodes") => "Node",
        Some("servicecidrs") => "ServiceCIDR",
        Some("namespaces") => "Namespace",
        Some("pods") => "Pod",
        _ => return status(404, "NotFound", "the server could not find the requested resource"),
    };
    let selected = Selected { kind: kind.into(), query };
    match selected.query.contains_key("watch") {
        true => watch_response(&api, selected),
        false => list_response(&api, &selected),
    }
}

fn status(code: u16, reason: &str, message: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code});
    (StatusCode::from_u16(code).unwrap(), [(header::CONTENT_TYPE, "application/json")], body.to_string())
        .into_response()
}

struct Selected {
    kind: String,
    query: BTreeMap<String, String>,
}

impl Selected {
    fn version(&self) -> &str {
        self.query.get("resourceVersion").map_or("", String::as_str)
    }

    /// Label selectors `!key` and the field selector `metadata.name=name`. Others are taken for
    /// granted.
    fn takes(&self, object: &Value) -> bool {
        let label = self.query.get("labelSelector").and_then(|selector| selector.strip_prefix('!'));
        let field =
            self.query.get("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name="));
        label.is_none_or(|label| object["metadata"]["labels"].get(label).is_none())
            && field.is_none_or(|name| object["metadata"]["name"] == name)
    }
}

fn list_response(api: &FakeApi, selected: &Selected) -> Response {
    let cluster = api.cluster();
    if selected.version().parse::<u64>().is_ok_and(|version| version > cluster.version) {
        return too_large();
    }
    let items: Vec<&Value> = objects(&cluster, selected).collect();
    let body = json!({"kind": format!("{}List", selected.kind), "apiVersion": api_version(&selected.kind),
        "metadata": {"resourceVersion": cluster.version.to_string()}, "items": items});
    ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

fn too_large() -> Response {
    let body = json!({"kind": "Status", "code": 504, "reason": "Timeout", "message": "Too large resource version",
        "details": {"causes": [{"reason": "ResourceVersionTooLarge"}], "retryAfterSeconds": 1}});
    (StatusCode::GATEWAY_TIMEOUT, body.to_string()).into_response()
}

fn objects<'a>(cluster: &'a Cluster, selected: &'a Selected) -> impl Iterator<Item = &'a Value> {
    let of_kind = cluster.objects.iter().filter(|((kind, ..), _)| *kind == selected.kind);
    of_kind.map(|(_, object)| object).filter(|object| selected.takes(object))
}

fn line(type_: &str, object: &Value) -> String {
    json!({"type": type_, "object": object}).to_string() + "\n"
}

/// A watch in progress.
struct Watching {
    api: FakeApi,
    selected: Selected,
    changed: watch::Receiver<u64>,
    sent: u64,
    first: String,
    ends: tokio::time::Instant,
    over: bool,
}

fn watch_response(api: &FakeApi, selected: Selected) -> Response {
    let initial = selected.query.contains_key("sendInitialEvents");
    if initial && !api.options.streaming {
        return status(422, "Invalid", "sendInitialEvents is forbidden for watch unless the gate is enabled");
    }
    let changed = api.changed.subscribe();
    let (mut first, sent, mut over) = (String::new(), api.cluster().version, false);
    {
        let cluster = api.cluster();
        let version: Option<u64> = selected.version().parse().ok().filter(|version| *version > 0);
        match version {
            _ if initial => {
                first.extend(objects(&cluster, &selected).map(|object| line("ADDED", object)));
                first += &bookmark(&selected.kind, cluster.version, true);
            }
            Some(version) if version < cluster.compacted => {
                let gone = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": "too old resource version", "reason": "Expired", "code": 410});
                first = line("ERROR", &gone);
                over = true;
            }
            Some(version) => {
                let later = cluster.history.iter().filter(|(at, _, kind, object)| {
                    *at > version && *kind == selected.kind && selected.takes(object)
                });
                first.extend(later.map(|(_, type_, _, object)| line(type_, object)));
            }
            None => first.extend(objects(&cluster, &selected).map(|object| line("ADDED", object))),
        }
    }
    let seconds = selected.query.get("timeoutSeconds").and_then(|s| s.parse().ok()).unwrap_or(3600);
    let ends = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let watching = Watching { api: api.clone(), selected, changed, sent, first, ends, over };
    let lines = futures::stream::unfold(watching, |mut watching| async move {
        let piece = watching.next().await?;
        Some((Ok::<Bytes, Infallible>(piece.into()), watching))
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response()
}

fn api_version(kind: &str) -> &'static str {
    match kind {
        "EndpointSlice" => "discovery.k8s.io/v1",
        "ServiceCIDR" => "networking.k8s.io/v1",
        _ => "v1",
    }
}

fn bookmark(kind: &str, version: u64, end_of_list: bool) -> String {
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if end_of_list {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    line("BOOKMARK", &json!({"kind": kind, "apiVersion": api_version(kind), "metadata": metadata}))
}

impl Watching {
    async fn next(&mut self) -> Option<String> {
        if !self.first.is_empty() {
            return Some(std::mem::take(&mut self.first));
        }
        if self.over {
            return None;
        }
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(self.ends) => return None,
                () = tokio::time::sleep(self.api.options.bookmarks) => {
                    let version = self.api.cluster().version.max(self.sent);
                    if self.changed.has_changed().unwrap_or(false) {
                        continue;
                    }
                    return Some(bookmark(&self.selected.kind, version, false));
                }
                changed = self.changed.changed() => {
                    changed.ok()?;
                    let piece = self.changes();
                    if !piece.is_empty() {
                        return Some(piece);
                    }
                }
            }
        }
    }

    fn changes(&mut self) -> String {
        self.changed.mark_unchanged();
        let cluster = self.api.cluster();
        let new = cluster.history.iter().filter(|(at, _, kind, object)| {
            *at > self.sent && *kind == self.selected.kind && self.selected.takes(object)
        });
        let piece = new.map(|(_, type_, _, object)| line(type_, object)).collect();
        self.sent = cluster.version;
        piece
    }
}
