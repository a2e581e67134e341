//! Pods and Namespaces: the fields that are read, and what they say of the socket path.

use std::sync::Arc;

use serde::Deserialize;
use sluice_core::event::Change;
use sluice_core::model::{Namespace, ObjectName, Pod};

use super::{Converted, address, object_name};
use crate::watch::objects::{AnyObject, Metadata, or_default};

const SOCKET_LB: &str = "sluice.socketLB";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PodObject {
    #[serde(deserialize_with = "or_default")]
    metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    spec: PodSpec,
    #[serde(deserialize_with = "or_default")]
    status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    #[serde(deserialize_with = "or_default")]
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs", deserialize_with = "or_default")]
    pod_ips: Vec<PodIp>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    #[serde(deserialize_with = "or_default")]
    ip: String,
}

/// Converts a Pod; one without a network namespace of its own, or that has ended, becomes a
/// deletion.
pub(super) fn convert_pod(object: &PodObject) -> Converted<Pod> {
    let name = object_name(&object.metadata);
    let mut problems = Vec::new();
    let socket_path = socket_path(&object.metadata, &mut problems);
    let is_on_host = object.spec.host_network == Some(true);
    if is_on_host && socket_path == Some(false) {
        problems.push(format!(
            "spec.hostNetwork: the pod shares the node's network namespace, so it cannot leave the socket path by \
             {SOCKET_LB}, which is ignored"
        ));
    }
    // Its addresses may belong to another pod by now.
    let has_ended = matches!(object.status.phase.as_str(), "Succeeded" | "Failed");
    if is_on_host || has_ended {
        return Converted { change: Change::Delete(name), problems };
    }
    let status = &object.status;
    let mut ips = Vec::new();
    for (i, entry) in status.pod_ips.iter().enumerate() {
        ips.extend(address(&format!("status.podIPs[{i}].ip"), &entry.ip, &mut problems));
    }
    if let Some(text) = status.pod_ip.as_deref().filter(|_| status.pod_ips.is_empty()) {
        ips.extend(address("status.podIP", text, &mut problems));
    }
    ips.sort_unstable();
    ips.dedup();
    let node = object.spec.node_name.as_deref().filter(|node| !node.is_empty()).map(Arc::from);
    Converted { change: Change::Apply(Pod { name, node, ips, socket_path }), problems }
}

/// Converts a Namespace, of which nothing but metadata matters.
pub(super) fn convert_namespace(object: &AnyObject) -> Converted<Namespace> {
    let mut problems = Vec::new();
    let name = ObjectName::cluster_scoped(&object.metadata.name);
    let socket_path = socket_path(&object.metadata, &mut problems);
    Converted { change: Change::Apply(Namespace { name, socket_path }), problems }
}

/// What an object's label and annotation say. Where they disagree the packet path is taken, since
/// it serves everybody.
fn socket_path(metadata: &Metadata, problems: &mut Vec<String>) -> Option<bool> {
    let label = switch("labels", metadata.labels.socket_lb.as_deref(), problems);
    let annotation = switch("annotations", metadata.annotations.socket_lb.as_deref(), problems);
    match (label, annotation) {
        (Some(label), Some(annotation)) if label != annotation => {
            problems.push(format!(
                "metadata.labels[{SOCKET_LB}] and metadata.annotations[{SOCKET_LB}] disagree; the socket \
                 path is not used"
            ));
            Some(false)
        }
        (label, annotation) => label.or(annotation),
    }
}

fn switch(place: &str, value: Option<&str>, problems: &mut Vec<String>) -> Option<bool> {
    let value = value?;
    match value.to_ascii_lowercase().as_str() {
        "true" | "enabled" | "on" => Some(true),
        "false" | "disabled" | "off" => Some(false),
        _ => {
            problems.push(format!(
                "metadata.{place}[{SOCKET_LB}]: {value:?} is none of \"false\", \"disabled\", \"off\", \"true\", \
                 \"enabled\" and \"on\"; it is ignored"
            ));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod_with(metadata: Value, spec: Value, status: Value) -> Converted<Pod> {
        let mut object = json!({"metadata": metadata, "spec": spec, "status": status});
        object["metadata"]["name"] = "shell".into();
        object["metadata"]["namespace"] = "mesh".into();
        convert_pod(&serde_json::from_value(object).unwrap())
    }

    fn says(metadata: Value) -> (Option<bool>, Vec<String>) {
        let object = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        let converted = convert_namespace(&object);
        match converted.change {
            Change::Apply(namespace) => (namespace.socket_path, converted.problems),
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn labels_and_annotations_are_read_in_any_case() {
        for place in ["labels", "annotations"] {
            for (text, wanted) in [
                ("false", false),
                ("Disabled", false),
                ("OFF", false),
                ("true", true),
                ("enabled", true),
                ("On", true),
            ] {
                assert_eq!(says(json!({place: {"sluice.socketLB": text}})), (Some(wanted), vec![]));
            }
            assert_eq!(says(json!({place: {"other": "false"}})), (None, vec![]));
            assert_eq!(says(json!({place: null})), (None, vec![]));
        }
    }

    #[test]
    fn any_other_value_is_ignored_and_named_with_those_allowed() {
        let (said, problems) = says(json!({"name": "mesh", "labels": {"sluice.socketLB": "no"}}));
        assert_eq!(said, None);
        assert_eq!(
            problems,
            [
                "metadata.labels[sluice.socketLB]: \"no\" is none of \"false\", \"disabled\", \"off\", \"true\", \
              \"enabled\" and \"on\"; it is ignored"
            ]
        );
        let both = json!({"labels": {"sluice.socketLB": ""}, "annotations": {"sluice.socketLB": "off"}});
        assert_eq!(says(both).0, Some(false));
    }

    #[test]
    fn of_two_that_disagree_the_one_that_leaves_the_path_counts() {
        for (label, annotation) in [("on", "off"), ("off", "on")] {
            let both =
                json!({"labels": {"sluice.socketLB": label}, "annotations": {"sluice.socketLB": annotation}});
            let (said, problems) = says(both);
            assert_eq!((said, problems.len()), (Some(false), 1));
            assert!(problems[0].contains("disagree"), "{problems:?}");
        }
        let both = json!({"labels": {"sluice.socketLB": "on"}, "annotations": {"sluice.socketLB": "true"}});
        assert_eq!(says(both), (Some(true), vec![]));
    }

    #[test]
    fn a_pod_has_all_its_addresses() {
        let status = json!({"phase": "Running", "podIP": "10.0.0.9",
            "podIPs": [{"ip": "fd00::9"}, {"ip": "10.0.0.9"}, {"ip": "ten"}]});
        let converted = pod_with(json!({}), json!({"nodeName": "node-a"}), status);
        let pod = Pod {
            name: ObjectName::new("mesh", "shell"),
            node: Some("node-a".into()),
            ips: vec!["10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap()],
            socket_path: None,
        };
        assert_eq!(converted.change, Change::Apply(pod.clone()));
        assert!(
            converted.problems[0].starts_with("status.podIPs[2].ip: \"ten\""),
            "{:?}",
            converted.problems
        );
        let old = pod_with(json!({}), json!({"nodeName": ""}), json!({"podIP": "10.0.0.9"}));
        let ips = vec!["10.0.0.9".parse().unwrap()];
        assert_eq!(old.change, Change::Apply(Pod { node: None, ips, ..pod }));
    }

    #[test]
    fn pods_that_have_ended_are_gone() {
        for phase in ["Succeeded", "Failed"] {
            let converted = pod_with(json!({}), json!({}), json!({"phase": phase, "podIP": "10.0.0.9"}));
            assert_eq!(converted.change, Change::Delete(ObjectName::new("mesh", "shell")));
        }
    }

    #[test]
    fn a_pod_on_the_host_network_cannot_leave_the_socket_path() {
        let of = |value: &str| {
            let metadata = json!({"annotations": {"sluice.socketLB": value}});
            pod_with(metadata, json!({"hostNetwork": true}), json!({"podIP": "192.168.0.2"}))
        };
        assert_eq!(of("off").change, Change::Delete(ObjectName::new("mesh", "shell")));
        assert!(of("off").problems[0].starts_with("spec.hostNetwork"));
        assert!(of("on").problems.is_empty());
    }
}
