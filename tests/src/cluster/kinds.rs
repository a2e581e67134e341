//! Where the API keeps objects of each kind that tests write.

use anyhow::{Result, anyhow};

use crate::objects::Key;

/// Kind, path of its API group and version, plural.
const KINDS: [(&str, &str, &str); 16] = [
    ("Namespace", "/api/v1", "namespaces"),
    ("Node", "/api/v1", "nodes"),
    ("Pod", "/api/v1", "pods"),
    ("Service", "/api/v1", "services"),
    ("Secret", "/api/v1", "secrets"),
    ("ServiceAccount", "/api/v1", "serviceaccounts"),
    ("ConfigMap", "/api/v1", "configmaps"),
    ("Deployment", "/apis/apps/v1", "deployments"),
    ("ReplicaSet", "/apis/apps/v1", "replicasets"),
    ("EndpointSlice", "/apis/discovery.k8s.io/v1", "endpointslices"),
    ("Event", "/apis/events.k8s.io/v1", "events"),
    ("ServiceCIDR", "/apis/networking.k8s.io/v1", "servicecidrs"),
    ("ClusterRole", "/apis/rbac.authorization.k8s.io/v1", "clusterroles"),
    ("ClusterRoleBinding", "/apis/rbac.authorization.k8s.io/v1", "clusterrolebindings"),
    ("Role", "/apis/rbac.authorization.k8s.io/v1", "roles"),
    ("RoleBinding", "/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
];

/// The path of the collection that an object belongs to.
pub(super) fn collection(key: &Key) -> Result<String> {
    let (_, group, plural) = KINDS
        .iter()
        .find(|(kind, ..)| *kind == key.kind)
        .ok_or_else(|| anyhow!("the lab cannot write objects of kind {}", key.kind))?;
    Ok(if key.namespace.is_empty() {
        format!("{group}/{plural}")
    } else {
        format!("{group}/namespaces/{}/{plural}", key.namespace)
    })
}

/// The path of an object.
pub(super) fn object(key: &Key) -> Result<String> {
    Ok(format!("{}/{}", collection(key)?, key.name))
}

/// The path of all objects of a kind, in every namespace.
pub(super) fn everywhere(kind: &str) -> Result<String> {
    collection(&Key { kind: kind.to_owned(), namespace: String::new(), name: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let slice = Key::new("EndpointSlice", None, "web-1");
        assert_eq!(
            object(&slice).unwrap(),
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/web-1"
        );
        assert_eq!(object(&Key::new("Node", None, "node-a")).unwrap(), "/api/v1/nodes/node-a");
        assert_eq!(everywhere("Service").unwrap(), "/api/v1/services");
        assert!(everywhere("Teapot").is_err());
    }
}
