//! An API server that replays: lists as they were given, and changes as they are told.
//!
//! For benchmarks where a real one would take longer than everything that is measured: it knows
//! nothing but four kinds, keeps no history, and takes no writes.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Resources, and what the lists of their objects are called.
const RESOURCES: [(&str, &str, &str); 4] = [
    ("services", "v1", "ServiceList"),
    ("nodes", "v1", "NodeList"),
    ("endpointslices", "discovery.k8s.io/v1", "EndpointSliceList"),
    ("servicecidrs", "networking.k8s.io/v1", "ServiceCIDRList"),
];
/// Changes that a watcher may be behind.
const BACKLOG: usize = 1024;

/// A running server; it runs as long as the process.
#[derive(Debug)]
pub struct Replay {
    address: SocketAddr,
    changes: broadcast::Sender<Change>,
    version: u64,
}

#[derive(Debug, Clone)]
struct Change {
    resource: &'static str,
    line: Bytes,
}

#[derive(Debug)]
struct State {
    lists: HashMap<&'static str, Bytes>,
    node: Bytes,
    changes: broadcast::Sender<Change>,
}

impl Replay {
    /// Serves the objects of each resource (`services`, …) on loopback.
    pub fn start(objects: &HashMap<&'static str, Vec<Value>>) -> Result<Self> {
        let (changes, _) = broadcast::channel(BACKLOG);
        let mut lists = HashMap::new();
        for (resource, version, kind) in RESOURCES {
            let items = objects.get(resource).map(Vec::as_slice).unwrap_or_default();
            let list = json!({"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": items});
            lists.insert(resource, Bytes::from(list.to_string()));
        }
        let node = objects.get("nodes").and_then(|nodes| nodes.first()).context("no node")?.to_string();
        let state = Arc::new(State { lists, node: node.into(), changes: changes.clone() });
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::spawn(move || runtime.block_on(serve(listener, state)));
        Ok(Self { address, changes, version: 1 })
    }

    /// The server's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Tells who watches that an object is now this.
    pub fn modify(&mut self, resource: &str, mut object: Value) -> Result<()> {
        let (resource, ..) = RESOURCES
            .into_iter()
            .find(|(known, ..)| *known == resource)
            .ok_or_else(|| anyhow!("no resource {resource}"))?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let line = json!({"type": "MODIFIED", "object": object}).to_string() + "\n";
        self.changes.send(Change { resource, line: line.into() }).map_err(|_| anyhow!("nobody watches"))?;
        Ok(())
    }
}

async fn serve(listener: std::net::TcpListener, state: Arc<State>) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(connection(stream, Arc::clone(&state)));
    }
}

async fn connection(stream: TcpStream, state: Arc<State>) {
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(answer(&request, &state)) }
    });
    // Clients that are killed are what this is for.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn answer(request: &Request<Incoming>, state: &State) -> Response<Body> {
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    let last = path.rsplit('/').next().unwrap_or_default();
    let resource = RESOURCES.into_iter().map(|(resource, ..)| resource).find(|resource| *resource == last);
    match resource {
        // Events, which nobody reads.
        _ if request.method() == Method::POST => reply(StatusCode::CREATED, whole(Bytes::from_static(b"{}"))),
        // Lists within a watch are new, and clients know how to do without.
        Some(_) if query.contains("sendInitialEvents") => {
            refusal(StatusCode::UNPROCESSABLE_ENTITY, "Invalid")
        }
        Some(resource) if query.contains("watch=") => reply(StatusCode::OK, watch(resource, state)),
        Some(resource) => {
            reply(StatusCode::OK, whole(state.lists.get(resource).cloned().unwrap_or_default()))
        }
        None if path.contains("/nodes/") => reply(StatusCode::OK, whole(state.node.clone())),
        None => refusal(StatusCode::NOT_FOUND, "NotFound"),
    }
}

fn reply(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn refusal(status: StatusCode, reason: &str) -> Response<Body> {
    let text = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": reason, "code": status.as_u16()});
    reply(status, whole(text.to_string().into()))
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).boxed_unsync()
}

/// The changes of a resource from now on.
fn watch(resource: &'static str, state: &State) -> Body {
    let changes = stream::unfold(state.changes.subscribe(), |mut changes| async move {
        let change = changes.recv().await.ok()?;
        Some((change, changes))
    });
    let lines = changes.filter_map(move |change| async move {
        (change.resource == resource).then(|| Ok(Frame::data(change.line)))
    });
    StreamBody::new(lines).boxed_unsync()
}
