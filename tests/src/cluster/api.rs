//! The administrator's client, for tests without async: each call runs to its end on a thread in
//! the control plane's namespace.

use std::fmt::{self, Debug};
use std::fs::File;
use std::future::Future;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail};
use futures::{StreamExt, TryStreamExt, stream};
use http::{Method, Request};
use kube::Client;
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::credentials::{ADMIN_TOKEN, Credentials};
use super::{PORT, kinds};
use crate::objects::Key;
use crate::process::{NETNS_DIR, Namespace};

type Job = Box<dyn FnOnce(&Runtime, &Client) + Send>;

/// Writes and reads objects as the administrator.
pub struct ApiClient {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Debug for ApiClient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ApiClient")
    }
}

impl Drop for ApiClient {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was reported to whoever waited for its answer.
            drop(thread.join());
        }
    }
}

impl ApiClient {
    pub(super) fn start(namespace: &Namespace, credentials: &Credentials) -> Result<Self> {
        let path = Path::new(NETNS_DIR).join(namespace.name());
        let netns = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let mut config = kube::Config::new(format!("https://127.0.0.1:{PORT}").parse()?);
        config.root_cert = Some(vec![credentials.ca_der.clone()]);
        config.auth_info.token = Some(ADMIN_TOKEN.to_owned().into());
        let (jobs, receiver) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::channel();
        let thread = std::thread::Builder::new().name("api-client".into()).spawn(move || {
            match enter(&netns, config) {
                Ok((runtime, client)) => {
                    // Nobody waits any more when this fails; the loop then ends at once.
                    drop(ready.send(Ok(())));
                    receiver.iter().for_each(|job| job(&runtime, &client));
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        started.recv().context("the API client's thread ended")??;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs something asynchronous to its end, with a client, in the control plane's namespace.
    pub fn run<T, F>(&self, make: impl FnOnce(Client) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>>,
    {
        let (answer, receiver) = mpsc::channel();
        let job: Job = Box::new(move |runtime, client| {
            // Nobody waits any more when this fails.
            drop(answer.send(runtime.block_on(make(client.clone()))));
        });
        let jobs = self.jobs.as_ref().context("the API client is closed")?;
        jobs.send(job).map_err(|_| anyhow!("the API client's thread ended"))?;
        receiver.recv().context("the API client's thread ended")?
    }

    /// Whether the API server is ready.
    pub fn ready(&self) -> Result<()> {
        self.run(|client| async move {
            client.request_text(Request::get("/readyz").body(Vec::new())?).await.context("/readyz")?;
            Ok(())
        })
    }

    /// Creates or replaces an object and, where it has one, its status.
    pub fn put(&self, key: &Key, object: &Value) -> Result<()> {
        let (key, object) = (key.clone(), object.clone());
        self.run(|client| async move { put(&client, &key, &object).await })
    }

    /// Creates many objects that are not there yet, `parallel` at a time.
    pub fn create_all(&self, objects: Vec<(Key, Value)>, parallel: usize) -> Result<()> {
        self.run(move |client| async move {
            let creations = objects.into_iter().map(|(key, object)| {
                let client = client.clone();
                async move { create(&client, &key, &object).await }
            });
            stream::iter(creations).buffer_unordered(parallel).try_collect::<()>().await
        })
    }

    /// Merges `patch` (RFC 7386) into an object, or into one of its subresources.
    pub fn patch(&self, key: &Key, subresource: Option<&str>, patch: &Value) -> Result<()> {
        let path = below(kinds::object(key)?, subresource);
        let bytes = serde_json::to_vec(patch)?;
        self.run(|client| async move {
            let what = format!("PATCH {path}");
            let request = Request::builder()
                .method(Method::PATCH)
                .uri(path)
                .header("content-type", "application/merge-patch+json")
                .body(bytes)?;
            client.request::<Value>(request).await.context(what)?;
            Ok(())
        })
    }

    /// Creates what a subresource makes of `body`: `binding`, for example.
    pub fn post(&self, key: &Key, subresource: &str, body: Value) -> Result<Value> {
        let path = below(kinds::object(key)?, Some(subresource));
        self.run(|client| async move { request(&client, Method::POST, &path, Some(&body)).await })
    }

    /// Asks for the end of an object. A Pod on a node stays until its kubelet, which a lab does not
    /// have, confirms.
    pub fn terminate(&self, key: &Key) -> Result<()> {
        let path = kinds::object(key)?;
        self.run(|client| async move { request(&client, Method::DELETE, &path, None).await.map(drop) })
    }

    /// Deletes an object, which must be there.
    pub fn delete(&self, key: &Key) -> Result<()> {
        let path = kinds::object(key)?;
        self.run(|client| async move { delete(&client, &path).await })
    }

    /// Reads an object.
    pub fn get(&self, key: &Key) -> Result<Value> {
        let path = kinds::object(key)?;
        self.run(|client| async move { request(&client, Method::GET, &path, None).await })
    }

    /// All objects of a kind.
    pub fn list(&self, kind: &str) -> Result<Vec<Value>> {
        let path = kinds::everywhere(kind)?;
        self.run(|client| async move { list(&client, &path).await })
    }

    /// Deletes what labs write: Services, EndpointSlices, Pods, workloads, Nodes, ServiceCIDRs; not
    /// the API server's own, which are all called `kubernetes`.
    pub fn empty(&self) -> Result<()> {
        // Owners first, lest a controller makes anew what was deleted.
        const WRITTEN: [&str; 7] =
            ["Deployment", "ReplicaSet", "Pod", "Service", "EndpointSlice", "Node", "ServiceCIDR"];
        self.run(|client| async move {
            for kind in WRITTEN {
                let paths: Vec<String> = list(&client, &kinds::everywhere(kind)?)
                    .await?
                    .iter()
                    .filter_map(|object| key(kind, object))
                    .filter(|key| key.name != "kubernetes")
                    .map(|key| kinds::object(&key))
                    .collect::<Result<_>>()?;
                let deletes = paths.iter().map(|path| async {
                    match delete(&client, path).await {
                        // Its owner was deleted a moment ago.
                        Err(error) if status(&error) == Some(404) => Ok(()),
                        other => other,
                    }
                });
                stream::iter(deletes).buffer_unordered(16).try_collect::<()>().await?;
            }
            Ok(())
        })
    }

    /// A new token of a service account, good for an hour.
    pub fn token_of(&self, namespace: &str, account: &str) -> Result<String> {
        self.token_for(namespace, account, 3600)
    }

    /// A new token of a service account; the API server grants 600 seconds at least.
    pub fn token_for(&self, namespace: &str, account: &str, seconds: u32) -> Result<String> {
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds}});
        let answer = self.post(&Key::new("ServiceAccount", Some(namespace), account), "token", body)?;
        let token = answer.pointer("/status/token").and_then(Value::as_str);
        Ok(token.context("the API server answered without a token")?.to_owned())
    }
}

fn enter(netns: &File, config: kube::Config) -> Result<(Runtime, Client)> {
    setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
    // Only this thread is in the namespace, so every socket must be made on it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = {
        let _guard = runtime.enter();
        Client::try_from(config)?
    };
    Ok((runtime, client))
}

fn below(path: String, subresource: Option<&str>) -> String {
    subresource.map_or_else(|| path.clone(), |name| format!("{path}/{name}"))
}

fn key(kind: &str, object: &Value) -> Option<Key> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    Some(Key::new(kind, text("/metadata/namespace"), text("/metadata/name")?))
}

/// The HTTP status of a failed request.
fn status(error: &anyhow::Error) -> Option<u16> {
    match error.downcast_ref::<kube::Error>()? {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

async fn request(client: &Client, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
    let bytes = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
    let what = format!("{method} {path}");
    let request =
        Request::builder().method(method).uri(path).header("content-type", "application/json").body(bytes)?;
    client.request::<Value>(request).await.map_err(anyhow::Error::from).context(what)
}

async fn list(client: &Client, path: &str) -> Result<Vec<Value>> {
    let mut answer = request(client, Method::GET, path, None).await?;
    match answer.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => Ok(items),
        _ => bail!("{path}: not a list"),
    }
}

async fn delete(client: &Client, path: &str) -> Result<()> {
    request(client, Method::DELETE, &format!("{path}?gracePeriodSeconds=0"), None).await.map(drop)
}

async fn put(client: &Client, key: &Key, object: &Value) -> Result<()> {
    let path = kinds::object(key)?;
    // Not the other way round: a Service that exists is refused for its address, which is taken, by
    // itself.
    match request(client, Method::PUT, &path, Some(object)).await {
        Err(error) if status(&error) == Some(404) => create(client, key, object).await?,
        other => drop(other?),
    }
    if matches!(key.kind.as_str(), "Service" | "Node" | "Pod") {
        put_status(client, &path, object).await?;
    }
    Ok(())
}

async fn create(client: &Client, key: &Key, object: &Value) -> Result<()> {
    let collection = kinds::collection(key)?;
    let created = request(client, Method::POST, &collection, Some(object)).await;
    match created {
        Err(error) if status(&error) == Some(404) && !key.namespace.is_empty() => {
            let namespace =
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": key.namespace}});
            match request(client, Method::POST, "/api/v1/namespaces", Some(&namespace)).await {
                Err(error) if status(&error) != Some(409) => Err(error),
                _ => request(client, Method::POST, &collection, Some(object)).await.map(drop),
            }
        }
        other => other.map(drop),
    }
}

/// Writes the status, also where it is now empty.
async fn put_status(client: &Client, path: &str, object: &Value) -> Result<()> {
    let path = format!("{path}/status");
    let mut current = request(client, Method::GET, &path, None).await?;
    let wanted = object.get("status").cloned().unwrap_or_else(|| json!({"loadBalancer": {}}));
    if current.get("status") == Some(&wanted) {
        return Ok(());
    }
    let Some(fields) = current.as_object_mut() else { bail!("{path}: not an object") };
    fields.insert("status".to_owned(), wanted);
    request(client, Method::PUT, &path, Some(&current)).await.map(drop)
}
