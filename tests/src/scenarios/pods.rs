//! Pods of the API whose network is a pod of the lab: what a kubelet would report of them.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::stage::Stage;
use crate::address::NodeAddresses;
use crate::objects::Key;

impl Stage {
    /// Creates a Pod with labels for each of these pods of the lab, all of them ready.
    pub(super) fn create_pods(&self, names: &[&str], app: &str) -> Result<()> {
        for name in names {
            let node = &self.lab.topology().pods.get(*name).with_context(|| format!("no pod {name}"))?.node;
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "labels": {"app": app}},
                "spec": {
                    "nodeName": node, "terminationGracePeriodSeconds": 600,
                    "containers": [{"name": "echo", "image": "echo"}],
                },
                "status": self.pod_status(name, true)?,
            });
            self.lab.apply_object(&Key::new("Pod", None, name), &pod)?;
        }
        Ok(())
    }

    /// Says that the Pod called `pod` runs in the lab's pod `place`, and whether it is ready.
    pub(super) fn report(&self, pod: &str, place: &str, ready: bool) -> Result<()> {
        let status = self.pod_status(place, ready)?;
        self.api().patch(&Key::new("Pod", None, pod), Some("status"), &json!({"status": status}))
    }

    fn pod_status(&self, place: &str, ready: bool) -> Result<Value> {
        let spec = self.lab.topology().pods.get(place).with_context(|| format!("no pod {place}"))?;
        let node = NodeAddresses::of(&spec.node).with_context(|| format!("no node {}", spec.node))?;
        let ips: Vec<Value> = spec.addresses().map(|ip| json!({"ip": ip})).collect();
        let ready = if ready { "True" } else { "False" };
        Ok(json!({
            "phase": "Running", "hostIP": node.eth0[0], "hostIPs": [{"ip": node.eth0[0]}],
            "podIP": ips.first().map(|ip| &ip["ip"]), "podIPs": ips,
            "conditions": [{"type": "Ready", "status": ready}, {"type": "ContainersReady", "status": ready}],
        }))
    }

    /// Puts the Pods that a controller made onto the nodes of these pods of the lab, and tells
    /// their names.
    pub(super) fn place_pods(&mut self, app: &str, places: &[&str]) -> Result<Vec<String>> {
        let pods = self.until_some(&format!("Pods of {app}"), |stage| {
            let pods: Vec<String> =
                stage.api().list("Pod")?.iter().filter_map(|pod| unbound(pod, app)).collect();
            Ok((pods.len() >= places.len()).then_some(pods))
        })?;
        ensure!(pods.len() == places.len(), "{} Pods wait for a node, not {}", pods.len(), places.len());
        for (pod, place) in pods.iter().zip(places) {
            let node = &self.lab.topology().pods.get(*place).with_context(|| format!("no pod {place}"))?.node;
            let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
            self.api().post(&Key::new("Pod", None, pod), "binding", binding)?;
        }
        Ok(pods)
    }

    /// Asks for a Pod's end: it stays, terminating, until [`Self::end_pod`].
    pub(super) fn terminate_pod(&self, pod: &str) -> Result<()> {
        self.api().terminate(&Key::new("Pod", None, pod))
    }

    /// Ends a Pod at once.
    pub(super) fn end_pod(&self, pod: &str) -> Result<()> {
        self.lab.delete(&Key::new("Pod", None, pod))
    }
}

/// The name of a Pod of that app which has no node yet.
fn unbound(pod: &Value, app: &str) -> Option<String> {
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str);
    let waits = text("/metadata/labels/app") == Some(app)
        && text("/spec/nodeName").is_none()
        && text("/metadata/deletionTimestamp").is_none();
    if waits { text("/metadata/name").map(str::to_owned) } else { None }
}
