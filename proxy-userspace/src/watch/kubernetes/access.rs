//! Access to the API: the address and the credentials, which may change on disk.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::Uri;
use kube::config::AuthInfo;
use kube::{Client, Config};
use tracing::{info, warn};

use super::KubernetesError;
use super::kubeconfig::{self, Chosen, Wrong};
use super::peer;
use super::proxy::Environment;
use super::token::Authorization;

/// Where the API server and the credentials are written down.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// A kubeconfig; without one and without `master` the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The server's URL, over that of the kubeconfig; without a kubeconfig it is sent no
    /// credentials.
    pub master: Option<String>,
}

/// A client that can be made anew from its files. Clones share it.
#[derive(Clone)]
pub struct Access {
    origin: Arc<Origin>,
    current: Arc<Mutex<Current>>,
}

#[derive(Clone)]
pub(super) struct Current {
    pub(super) client: Client,
    /// What each request has as `Authorization`.
    pub(super) authorization: Arc<Authorization>,
    /// The server, as metrics name it.
    pub(super) host: Arc<str>,
    /// Its URL, for the log.
    pub(super) server: String,
    /// Whom it connects to: the server, or the proxy before it. Host and port.
    pub(super) peer: (String, u16),
    /// How often the client has been made anew.
    pub(super) generation: u64,
}

impl Access {
    /// Reads the files.
    pub async fn new(origin: Origin) -> Result<Access, KubernetesError> {
        let current = connect(&origin)?;
        Ok(Access { origin: Arc::new(origin), current: Arc::new(Mutex::new(current)) })
    }

    pub(super) fn current(&self) -> Current {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again, because the server refused what they said. Whoever comes second with
    /// the same client finds it done.
    pub(super) async fn renew(&self, refused: u64) {
        if self.current().generation != refused {
            return;
        }
        match connect(&self.origin) {
            Ok(renewed) => {
                let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
                if current.generation == refused {
                    *current = Current { generation: refused + 1, ..renewed };
                    info!("credentials read again");
                }
            }
            Err(error) => warn!(%error, "cannot read the credentials again; keeping the old ones"),
        }
    }
}

fn connect(origin: &Origin) -> Result<Current, KubernetesError> {
    let chosen = choose(origin, Path::new(SERVICE_ACCOUNT), |name| std::env::var(name).ok())?;
    client(chosen).map_err(|reason| KubernetesError::Client { origin: place(origin), reason })
}

/// The server and the credentials, with the service account of a directory and an environment.
fn choose(
    origin: &Origin,
    account: &Path,
    get: impl Fn(&str) -> Option<String>,
) -> Result<Chosen, KubernetesError> {
    let master = origin.master.as_deref().map(|text| {
        // A user's name and password in it are not for logs.
        let url = text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, host)| format!("…@{host}"));
        let wrong = |reason| KubernetesError::Master { url, reason };
        kubeconfig::server_url(text, "http").map_err(wrong)
    });
    Ok(match (&origin.kubeconfig, master.transpose()?) {
        (Some(path), master) => from_file(path, master.as_ref())?,
        // As for kube-proxy: the pod's token is for the server that the pod is told, and for no
        // other.
        (None, Some(server)) => nobody(server),
        (None, None) => in_cluster(account, get).map_err(KubernetesError::InCluster)?,
    })
}

/// Where the access is described, for messages.
fn place(origin: &Origin) -> String {
    match (&origin.kubeconfig, &origin.master) {
        (Some(path), _) => format!("kubeconfig {}", path.display()),
        (None, Some(_)) => "--master".into(),
        (None, None) => "the service account".into(),
    }
}

fn from_file(path: &Path, master: Option<&Uri>) -> Result<Chosen, KubernetesError> {
    let wrong = |source| KubernetesError::Kubeconfig { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(|error| {
        let reason = format!("cannot be read: {error}; name a readable file with --kubeconfig");
        wrong(Wrong { field: "file".into(), reason })
    })?;
    // Absolute, so that a plugin's command is found wherever it is started.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    kubeconfig::choose(&text, path.parent().unwrap_or(Path::new("/")), master).map_err(wrong)
}

fn nobody(server: Uri) -> Chosen {
    Chosen {
        server,
        roots: None,
        insecure: false,
        server_name: None,
        proxy: None,
        user: AuthInfo::default(),
        authorization: Authorization::None,
    }
}

const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The access that a pod's service account gives.
fn in_cluster(directory: &Path, get: impl Fn(&str) -> Option<String>) -> Result<Chosen, String> {
    let variable = |name: &str| {
        get(name)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| format!("environment variable {name} is not set"))
    };
    let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let server = kubeconfig::server_url(&format!("https://{host}:{port}"), "https").map_err(|reason| {
        format!("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT: the address {reason}")
    })?;
    let authority = directory.join("ca.crt");
    let pem = std::fs::read(&authority);
    let pem = pem.map_err(|error| format!("cannot read {}: {error}", authority.display()))?;
    let roots =
        kubeconfig::certificates(&pem).map_err(|reason| format!("{} {reason}", authority.display()))?;
    let authorization = Authorization::file(directory.join("token"), None)?;
    Ok(Chosen { roots: Some(roots), authorization, ..nobody(server) })
}

/// The server's URL without a user's name and password.
fn told(server: &Uri) -> String {
    let authority = server.authority().map_or("", |authority| authority.as_str());
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{}://{host}{}", server.scheme_str().unwrap_or_default(), server.path().trim_end_matches('/'))
}

fn client(chosen: Chosen) -> Result<Current, String> {
    let secure = chosen.server.scheme_str() == Some("https");
    let proxy = match chosen.proxy {
        Some(proxy) => Some(proxy),
        None => Environment::read(|name| std::env::var(name).ok())
            .proxy_for(&chosen.server)
            .map_err(|unusable| format!("{} {}", unusable.source, unusable.reason))?,
    };
    let server = told(&chosen.server);
    let host = chosen.server.authority().map_or_else(String::new, ToString::to_string);
    let peer = peer::place(proxy.as_ref().map_or(&chosen.server, |proxy| &proxy.uri));
    if let Some(proxy) = &proxy {
        info!(server = %host, proxy = %proxy.place(), said_by = proxy.source, "the API server is reached through a proxy");
    }
    if !secure {
        let credentials =
            if chosen.authorization.is_some() { "are sent unencrypted" } else { "are not sent" };
        warn!(server = %host, "the server's URL is not https: credentials {credentials}");
    }
    if chosen.insecure {
        let has_credentials = chosen.authorization.is_some() || chosen.user.exec.is_some();
        let told = if has_credentials { ", and the credentials are sent to it" } else { "" };
        warn!(
            server = %host,
            "insecure-skip-tls-verify is set: any server that answers is accepted as the API \
             server{told}; set certificate-authority instead"
        );
    }
    let mut config = Config::new(chosen.server);
    // Certificates of the system are looked for only where something may need them.
    let needs_roots = secure || proxy.as_ref().is_some_and(|proxy| proxy.uri.scheme_str() == Some("https"));
    config.root_cert = chosen.roots.or_else(|| (!needs_roots).then(Vec::new));
    config.accept_invalid_certs = chosen.insecure;
    config.tls_server_name = chosen.server_name;
    config.proxy_url = proxy.map(|proxy| proxy.uri);
    config.auth_info = chosen.user;
    // A watch is a long silence: requests have their own limits.
    config.read_timeout = None;
    // Nor must anything be tried again behind our back, uncounted.
    config.default_retry = false;
    let client = Client::try_from(config).map_err(|error| super::failure::without_secrets(&error))?;
    Ok(Current {
        client,
        authorization: Arc::new(chosen.authorization),
        host: host.into(),
        server,
        peer,
        generation: 0,
    })
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
