//! What a kubeconfig says, read as client-go reads it (tools/clientcmd, rest and transport of 0.36
//! and 0.37): which entries count, which field wins, and what is refused. Pure but for the files
//! that it names.

use std::path::{Path, PathBuf};

use axum::http::{HeaderValue, Uri};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::config::{AuthInfo, Cluster, ExecConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Map, Value, json};

use super::proxy::{self, Proxy};
use super::token::Authorization;
use crate::go_yaml;

/// What is wrong, and where. Values are never shown: some are secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Wrong {
    /// The field, as a path.
    pub(super) field: String,
    /// The reason, and what to do.
    pub(super) reason: String,
}

impl Wrong {
    fn new(field: impl Into<String>, reason: impl Into<String>) -> Wrong {
        Wrong { field: field.into(), reason: reason.into() }
    }
}

/// The server and the credentials that count.
pub(super) struct Chosen {
    pub(super) server: Uri,
    /// Certificates (DER) of those who may sign the server's; none for those of the system.
    pub(super) roots: Option<Vec<Vec<u8>>>,
    pub(super) insecure: bool,
    pub(super) server_name: Option<String>,
    pub(super) proxy: Option<Proxy>,
    /// Client certificate, plugin, and whom to impersonate.
    pub(super) user: AuthInfo,
    pub(super) authorization: Authorization,
}

/// A mapping and its path.
#[derive(Clone)]
struct Fields<'a> {
    path: String,
    map: Option<&'a Map<String, Value>>,
    directory: &'a Path,
}

impl<'a> Fields<'a> {
    fn at(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// A field that is there and not null.
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.and_then(|map| map.get(name)).filter(|value| !value.is_null())
    }

    /// A text that is not empty.
    fn text(&self, name: &str) -> Result<Option<&'a str>, Wrong> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(_) => Err(Wrong::new(self.at(name), "is not a string; put its value in quotes")),
        }
    }

    fn flag(&self, name: &str) -> Result<bool, Wrong> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(Wrong::new(self.at(name), "is neither true nor false")),
        }
    }

    fn list(&self, name: &str) -> Result<&'a [Value], Wrong> {
        match self.get(name) {
            None => Ok(&[]),
            Some(Value::Array(items)) => Ok(items),
            Some(_) => Err(Wrong::new(self.at(name), "is not a list")),
        }
    }

    /// A path; a relative one starts where the kubeconfig is.
    fn file(&self, name: &str) -> Result<Option<PathBuf>, Wrong> {
        Ok(self.text(name)?.map(|path| self.directory.join(path)))
    }

    /// The entry of a list with a name. The name may stand only once.
    fn named(&self, list: &str, name: &str, inner: &str) -> Result<Option<Fields<'a>>, Wrong> {
        let mut found = None;
        for (i, entry) in self.list(list)?.iter().enumerate() {
            let path = format!("{}[{i}]", self.at(list));
            let Value::Object(map) = entry else { return Err(Wrong::new(path, "is not a mapping")) };
            let entry = Fields { path, map: Some(map), directory: self.directory };
            if entry.text("name")?.unwrap_or_default() != name {
                continue;
            }
            if found.is_some() {
                return Err(Wrong::new(entry.at("name"), format!("{name:?} is defined twice; remove one")));
            }
            let map = match entry.get(inner) {
                None => None,
                Some(Value::Object(map)) => Some(map),
                Some(_) => return Err(Wrong::new(entry.at(inner), "is not a mapping")),
            };
            found = Some(Fields { path: entry.at(inner), map, directory: self.directory });
        }
        Ok(found)
    }

    /// The bytes of a PEM: from a field of base64, or from the file that another names.
    fn pem(&self, file: &str) -> Result<Option<(String, Vec<u8>)>, Wrong> {
        let data = format!("{file}-data");
        match (self.text(&data)?, self.file(file)?) {
            (Some(_), Some(_)) => {
                let reason = format!("is set together with {file}; client-go refuses that, so remove one");
                Err(Wrong::new(self.at(&data), reason))
            }
            (Some(text), None) => {
                let bare: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
                let bytes = STANDARD.decode(bare).map_err(|_| {
                    Wrong::new(
                        self.at(&data),
                        format!("is not base64; encode the PEM, or name its file with {file}"),
                    )
                })?;
                Ok(Some((self.at(&data), bytes)))
            }
            (None, Some(path)) => {
                let bytes = std::fs::read(&path).map_err(|error| {
                    Wrong::new(self.at(file), format!("cannot read {}: {error}", path.display()))
                })?;
                Ok(Some((format!("{} {}", self.at(file), path.display()), bytes)))
            }
            (None, None) => Ok(None),
        }
    }
}

/// Reads a kubeconfig. `master` replaces its server, and then the name that the certificate has to
/// have.
pub(super) fn choose(text: &str, directory: &Path, master: Option<&Uri>) -> Result<Chosen, Wrong> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // Of several documents the first counts.
    let value = go_yaml::first_document(text)
        .map_err(|wrong| {
            Wrong::new(format!("line {}", wrong.line), format!("not valid YAML: {}", wrong.reason))
        })?
        .value;
    let map = match &value {
        Value::Object(map) => map,
        Value::Null => return Err(Wrong::new("text", "the file is empty; write a kubeconfig to it")),
        _ => return Err(Wrong::new("text", "the file is not a mapping, so this is not a kubeconfig")),
    };
    let root = Fields { path: String::new(), map: Some(map), directory };
    for (field, only) in [("kind", "Config"), ("apiVersion", "v1")] {
        if root.text(field)?.is_some_and(|found| found != only) {
            return Err(Wrong::new(field, format!("is not {only}, so this is not a kubeconfig")));
        }
    }
    let (cluster, user) = current(&root, master.is_some())?;
    let (server, server_name) = match master {
        Some(url) => (url.clone(), None),
        None => {
            let field = cluster.at("server");
            let text = cluster.text("server")?.ok_or_else(|| {
                Wrong::new(&field, "is not set; write the API server's URL there, or give --master URL")
            })?;
            let server = server_url(text, "http").map_err(|reason| Wrong::new(&field, reason))?;
            (server, cluster.text("tls-server-name")?.map(str::to_owned))
        }
    };
    let insecure = cluster.flag("insecure-skip-tls-verify")?;
    let roots = roots(&cluster, insecure)?;
    let proxy = cluster.text("proxy-url")?.map(proxy::of_kubeconfig).transpose();
    let proxy = proxy.map_err(|unusable| Wrong::new(cluster.at(unusable.source), unusable.reason))?;
    let authorization = authorization(&user)?;
    let user = auth_info(&user, &cluster, authorization.is_some())?;
    let chosen = Chosen { server, roots, insecure, server_name, proxy, user, authorization };
    Ok(if chosen.server.scheme_str() == Some("https") { chosen } else { in_the_clear(chosen) })
}

/// Without TLS nobody is told who we are, and nobody is checked (`IsConfigTransportTLS` in
/// clientcmd's `ClientConfig`). Whom to impersonate is no secret, and is sent.
fn in_the_clear(chosen: Chosen) -> Chosen {
    let AuthInfo { impersonate, impersonate_uid, impersonate_groups, impersonate_user_extra, .. } =
        chosen.user;
    let user = AuthInfo {
        impersonate,
        impersonate_uid,
        impersonate_groups,
        impersonate_user_extra,
        ..AuthInfo::default()
    };
    Chosen {
        roots: None,
        insecure: false,
        server_name: None,
        user,
        authorization: Authorization::None,
        ..chosen
    }
}

/// Cluster and user of the current context. A user that is not there is nobody.
fn current<'a>(root: &Fields<'a>, has_master: bool) -> Result<(Fields<'a>, Fields<'a>), Wrong> {
    let nothing = |path: &str| Fields { path: path.into(), map: None, directory: root.directory };
    let Some(name) = root.text("current-context")? else {
        if has_master {
            return Ok((nothing("cluster"), nothing("user")));
        }
        return Err(Wrong::new("current-context", "is not set; name one of the contexts"));
    };
    let context = root.named("contexts", name, "context")?;
    let context = context.ok_or_else(|| {
        Wrong::new(
            "current-context",
            format!("{name:?} is none of the contexts; add it, or name one of them"),
        )
    })?;
    let cluster_name = context.text("cluster")?.unwrap_or_default();
    let cluster = match root.named("clusters", cluster_name, "cluster")? {
        Some(cluster) => cluster,
        None if has_master => nothing("cluster"),
        None => {
            let reason = format!("{cluster_name:?} is none of the clusters; add it, or name one of them");
            return Err(Wrong::new(context.at("cluster"), reason));
        }
    };
    let user_name = context.text("user")?.unwrap_or_default();
    let user = root.named("users", user_name, "user")?.unwrap_or_else(|| nothing("user"));
    Ok((cluster, user))
}

/// The URL of a server; one without a scheme has only host and port.
pub(super) fn server_url(text: &str, otherwise: &str) -> Result<Uri, String> {
    let shape = || "is not a URL such as https://HOST:PORT".to_owned();
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
        None if text.strip_suffix('/').unwrap_or(text).contains('/') => {
            return Err("must be a URL or HOST:PORT; put https:// before it".into());
        }
        None => (otherwise.to_owned(), text),
    };
    if scheme != "http" && scheme != "https" {
        return Err("has a scheme that is neither http nor https".into());
    }
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let uri: Uri = format!("{scheme}://{rest}").parse().map_err(|_| shape())?;
    let authority = uri.authority().ok_or_else(shape)?;
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(shape());
    }
    Ok(uri)
}

fn roots(cluster: &Fields<'_>, insecure: bool) -> Result<Option<Vec<Vec<u8>>>, Wrong> {
    let Some((field, pem)) = cluster.pem("certificate-authority")? else { return Ok(None) };
    if insecure {
        let reason = "is set together with a certificate authority; client-go refuses that, so remove one";
        return Err(Wrong::new(cluster.at("insecure-skip-tls-verify"), reason));
    }
    certificates(&pem).map(Some).map_err(|reason| Wrong::new(field, reason))
}

/// The certificates (DER) of a PEM, at least one.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found.into_iter().map(|der| der.to_vec()).collect()),
        _ => Err("holds no certificate in PEM form (BEGIN CERTIFICATE)".into()),
    }
}

/// What is sent as `Authorization` by TLS: a file's token before a token, and neither beside a user
/// name.
fn authorization(user: &Fields<'_>) -> Result<Authorization, Wrong> {
    let (token, file) = (user.text("token")?, user.file("tokenFile")?);
    let (name, password) = (user.text("username")?, user.text("password")?);
    if (token.is_some() || file.is_some()) && (name.is_some() || password.is_some()) {
        let reason = "is set together with a token; client-go refuses that, so remove one";
        return Err(Wrong::new(user.at(if name.is_some() { "username" } else { "password" }), reason));
    }
    let invalid = |field| Wrong::new(user.at(field), "has characters that are not allowed in an HTTP header");
    let token =
        token.map(|token| Authorization::bearer(token).ok_or_else(|| invalid("token"))).transpose()?;
    if let Some(path) = file {
        return Authorization::file(path, token).map_err(|reason| Wrong::new(user.at("tokenFile"), reason));
    }
    if let Some(token) = token {
        return Ok(Authorization::Fixed(token));
    }
    let Some(name) = name else { return Ok(Authorization::None) };
    let pair = STANDARD.encode(format!("{name}:{}", password.unwrap_or_default()));
    let mut header = HeaderValue::try_from(format!("Basic {pair}")).map_err(|_| invalid("username"))?;
    header.set_sensitive(true);
    Ok(Authorization::Fixed(header))
}

fn auth_info(user: &Fields<'_>, cluster: &Fields<'_>, authorized: bool) -> Result<AuthInfo, Wrong> {
    if user.get("auth-provider").is_some() {
        let reason = "is not supported, nor is it by Kubernetes 1.26 and later; use exec or tokenFile";
        return Err(Wrong::new(user.at("auth-provider"), reason));
    }
    let mut fields = Map::new();
    for name in ["as", "as-uid", "as-groups", "as-user-extra"] {
        // What is empty is as good as not there, as for client-go.
        let is_empty = |value: &Value| {
            matches!(value, Value::String(text) if text.is_empty())
                || matches!(value, Value::Array(items) if items.is_empty())
                || matches!(value, Value::Object(map) if map.is_empty())
        };
        if let Some(value) = user.get(name).filter(|value| !is_empty(value)) {
            fields.insert(name.into(), value.clone());
        }
    }
    if !fields.is_empty() && user.text("as")?.is_none() {
        return Err(Wrong::new(
            user.at("as"),
            "is not set, but other fields of impersonation are; set it, or remove them",
        ));
    }
    if let Some((certificate, key)) = identity(user)? {
        fields.insert("client-certificate-data".into(), STANDARD.encode(certificate).into());
        fields.insert("client-key-data".into(), STANDARD.encode(key).into());
    }
    let mut info: AuthInfo = serde_json::from_value(Value::Object(fields)).map_err(|_| {
        Wrong::new(
            user.at("as"),
            "cannot be read; as-groups is a list of strings, as-user-extra has lists of strings",
        )
    })?;
    // A plugin is not asked where a token or a password is given.
    if !authorized && user.get("exec").is_some() {
        info.exec = Some(exec(user, cluster)?);
    }
    Ok(info)
}

/// PEMs of a certificate and of its private key.
type Identity = (Vec<u8>, Vec<u8>);

/// The client certificate and its key. A key alone is of no use and means nothing.
fn identity(user: &Fields<'_>) -> Result<Option<Identity>, Wrong> {
    let Some((field, certificate)) = user.pem("client-certificate")? else { return Ok(None) };
    certificates(&certificate).map_err(|reason| Wrong::new(field, reason))?;
    let Some((field, key)) = user.pem("client-key")? else {
        return Err(Wrong::new(
            user.at("client-key"),
            "is not set, but a client certificate is; add its key",
        ));
    };
    if PrivateKeyDer::from_pem_slice(&key).is_err() {
        return Err(Wrong::new(field, "holds no private key in PEM form"));
    }
    Ok(Some((certificate, key)))
}

fn exec(user: &Fields<'_>, cluster: &Fields<'_>) -> Result<ExecConfig, Wrong> {
    let path = user.at("exec");
    let Some(Value::Object(map)) = user.get("exec") else { return Err(Wrong::new(path, "is not a mapping")) };
    let exec = Fields { path, map: Some(map), directory: user.directory };
    let command = exec.text("command")?.ok_or_else(|| Wrong::new(exec.at("command"), "is not set"))?;
    let version = exec.text("apiVersion")?;
    let known = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];
    if !version.is_some_and(|version| known.contains(&version)) {
        return Err(Wrong::new(exec.at("apiVersion"), format!("is none of {}", known.join(" and "))));
    }
    if version == Some(known[0]) && exec.text("interactiveMode")?.is_none() {
        return Err(Wrong::new(exec.at("interactiveMode"), "is not set; write Never"));
    }
    let mut config: ExecConfig = serde_json::from_value(Value::Object(map.clone())).map_err(|_| {
        Wrong::new(
            exec.path.clone(),
            "cannot be read; args is a list of strings, env a list of name and value",
        )
    })?;
    if command.contains('/') {
        config.command = Some(user.directory.join(command).to_string_lossy().into_owned());
    }
    if config.provide_cluster_info {
        config.cluster = Some(cluster_info(cluster)?);
    }
    Ok(config)
}

/// What a plugin is told of the cluster.
fn cluster_info(cluster: &Fields<'_>) -> Result<kube::config::ExecAuthCluster, Wrong> {
    let wrong = |_| Wrong::new(cluster.path.clone(), "cannot be read");
    let mut fields = cluster.map.cloned().unwrap_or_default();
    if let Some((_, pem)) = cluster.pem("certificate-authority")? {
        fields.remove("certificate-authority");
        fields.insert("certificate-authority-data".into(), json!(STANDARD.encode(pem)));
    }
    let cluster: Cluster = serde_json::from_value(Value::Object(fields)).map_err(wrong)?;
    kube::config::ExecAuthCluster::try_from(&cluster)
        .map_err(|_| Wrong::new("cluster", "cannot be passed to the plugin"))
}

#[cfg(test)]
#[path = "kubeconfig_tests.rs"]
mod tests;
