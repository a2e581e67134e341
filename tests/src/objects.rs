//! Kubernetes objects as files: what a case applies, and the Node and ServiceCIDR objects of the
//! lab itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use crate::address::{NodeAddresses, SERVICE_CIDRS};
use crate::cluster::Cluster;
use crate::topology::Topology;

/// The identity of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// `Service`, `EndpointSlice`, …
    pub kind: String,
    /// The namespace; empty for cluster-wide objects
    pub namespace: String,
    /// The name
    pub name: String,
}

impl Key {
    /// The key of an object; the namespace is `default` where none is given.
    #[must_use]
    pub fn new(kind: &str, namespace: Option<&str>, name: &str) -> Self {
        let cluster_wide =
            matches!(kind, "Node" | "ServiceCIDR" | "Namespace" | "ClusterRole" | "ClusterRoleBinding");
        let namespace = if cluster_wide { "" } else { namespace.unwrap_or("default") };
        Self { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The file name: `kind-namespace-name.yaml`.
    #[must_use]
    pub fn file_name(&self) -> String {
        let Self { kind, namespace, name } = self;
        let kind = kind.to_lowercase();
        if namespace.is_empty() {
            format!("{kind}-{name}.yaml")
        } else {
            format!("{kind}-{namespace}-{name}.yaml")
        }
    }
}

/// Reads the objects of a multi-document YAML text; kinds ending in `List` are taken apart.
pub fn parse(text: &str) -> Result<Vec<(Key, Value)>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| anyhow!("{error}"))?;
    let mut objects = Vec::new();
    for document in documents {
        let items = document.get("items").and_then(Value::as_array).cloned();
        let is_list = document.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List"));
        match (document, items) {
            (Value::Null, _) => {}
            (_, Some(items)) if is_list => {
                for item in items {
                    objects.push(keyed(item)?);
                }
            }
            (document, _) => objects.push(keyed(document)?),
        }
    }
    Ok(objects)
}

fn keyed(object: Value) -> Result<(Key, Value)> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let (Some(kind), Some(name)) = (text("/kind"), text("/metadata/name")) else {
        bail!("an object without kind or metadata.name: {object}");
    };
    ensure!(text("/apiVersion").is_some(), "{kind} {name} has no apiVersion");
    ensure!(!name.contains('/'), "{kind} {name:?}: not a name");
    Ok((Key::new(kind, text("/metadata/namespace"), name), object))
}

/// A directory with one file for each object, as `--manifests` reads it.
#[derive(Debug)]
pub struct Manifests {
    dir: PathBuf,
}

impl Manifests {
    /// Creates the directory.
    pub fn create(dir: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes an object; whoever watches sees either the old file or the whole new one.
    pub fn put(&self, key: &Key, object: &Value) -> Result<()> {
        let name = key.file_name();
        let temporary = self.dir.join(format!(".{name}.new"));
        // JSON is YAML, and leaves no doubt about what is a string.
        std::fs::write(&temporary, serde_json::to_string_pretty(object)? + "\n")?;
        std::fs::rename(&temporary, self.dir.join(&name)).with_context(|| format!("writing {name}"))
    }

    /// Has whoever watches read all files again, as when a volume of a ConfigMap is exchanged.
    pub fn exchange(&self) -> Result<()> {
        let [new, old] = ["..data.new", "..data"].map(|name| self.dir.join(name));
        std::fs::write(&new, "").context("replacing the files")?;
        std::fs::rename(new, old).context("replacing the files")
    }

    /// Removes an object, which must be there.
    pub fn remove(&self, key: &Key) -> Result<()> {
        let path = self.dir.join(key.file_name());
        std::fs::remove_file(&path)
            .with_context(|| format!("deleting {} {}: no such object", key.kind, key.name))
    }
}

/// Where the objects of a lab are, and its proxies get them from.
#[derive(Debug)]
pub enum Objects {
    /// Files in a directory
    Files(Manifests),
    /// A real API server
    Api(Rc<Cluster>),
}

impl Objects {
    /// Creates or replaces an object.
    pub fn put(&self, key: &Key, object: &Value) -> Result<()> {
        match self {
            Self::Files(manifests) => manifests.put(key, object),
            // The API server has made it from its flags, and it cannot be replaced.
            Self::Api(..) if key.kind == "ServiceCIDR" && key.name == "kubernetes" => Ok(()),
            Self::Api(cluster) => cluster.api().put(key, object),
        }
    }

    /// Removes an object, which must be there.
    pub fn remove(&self, key: &Key) -> Result<()> {
        match self {
            Self::Files(manifests) => manifests.remove(key),
            Self::Api(cluster) => cluster.api().delete(key),
        }
    }
}

/// The objects that every lab has: its Nodes and the default ServiceCIDR.
#[must_use]
pub fn of_the_lab(topology: &Topology) -> Vec<(Key, Value)> {
    let nodes = topology.nodes.iter().filter_map(|(name, spec)| {
        let addresses = NodeAddresses::of(name)?;
        Some((Key::new("Node", None, name), node(name, spec.zone.as_deref(), &addresses)))
    });
    let cidr = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": SERVICE_CIDRS},
        "status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2025-01-01T00:00:00Z",
            "reason": "", "message": "Kubernetes Service CIDR is ready"}]},
    });
    nodes.chain([(Key::new("ServiceCIDR", None, "kubernetes"), cidr)]).collect()
}

fn node(name: &str, zone: Option<&str>, addresses: &NodeAddresses) -> Value {
    let mut labels = BTreeMap::from([("kubernetes.io/hostname", name)]);
    if let Some(zone) = zone {
        labels.insert("topology.kubernetes.io/zone", zone);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"podCIDR": addresses.pod_cidr[0], "podCIDRs": addresses.pod_cidr},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": addresses.eth0[0]},
                {"type": "InternalIP", "address": addresses.eth0[1]},
                {"type": "Hostname", "address": name},
            ],
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady",
                "lastTransitionTime": "2025-01-01T00:00:00Z", "lastHeartbeatTime": "2025-01-01T00:00:00Z"}],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists() {
        let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n---\napiVersion: v1\nkind: List\nitems:\n\
                    - {apiVersion: v1, kind: Service, metadata: {name: dns, namespace: kube-system}}\n";
        let files: Vec<_> = parse(text).unwrap().iter().map(|(key, _)| key.file_name()).collect();
        assert_eq!(files, ["service-default-web.yaml", "service-kube-system-dns.yaml"]);
        assert!(parse("kind: Service\n").is_err());
        assert!(parse("kind: [\n").is_err());
    }

    #[test]
    fn strings_stay_strings() {
        let objects =
            parse("apiVersion: v1\nkind: Service\nmetadata: {name: web, labels: {a: '', b: '1'}}\n").unwrap();
        assert_eq!(objects[0].1["metadata"]["labels"], json!({"a": "", "b": "1"}));
    }
}
