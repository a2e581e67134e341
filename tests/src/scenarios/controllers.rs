//! The real controllers make EndpointSlices of Pods and Services; traffic follows.

use anyhow::Result;
use serde_json::json;

use super::Scenario;
use super::stage::Stage;
use crate::case::Fails;
use crate::lab::plugin::PodNetwork;
use crate::target::From;

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "deployment", body: deployment, ..TEMPLATE },
    Scenario { name: "traffic-distribution", body: traffic_distribution, ..TEMPLATE },
    Scenario { name: "publish-not-ready-addresses", body: publish_not_ready_addresses, ..TEMPLATE },
];

/// Two nodes of one zone, one of another.
const TEMPLATE: Scenario = Scenario {
    name: "",
    file: file!(),
    needs: &[],
    topology: "
        nodes: {node-a: {zone: zone-1}, node-b: {zone: zone-1}, node-c: {zone: zone-2}}
        pods:
          user: {node: node-a, ip: 10.244.1.10}
          a1: {node: node-a, ip: 10.244.1.11}
          a2: {node: node-a, ip: 10.244.1.12}
          b1: {node: node-b, ip: 10.244.2.11}
          c1: {node: node-c, ip: 10.244.3.11}",
    long: false,
    pod_network: PodNetwork::Lab,
    body: |_| Ok(()),
};

const SERVICE: &str = "
    apiVersion: v1
    kind: Service
    metadata: {name: web}
    spec:
      clusterIP: 10.96.0.10
      selector: {app: web}
      ports: [{port: 80, targetPort: 8080}]";
const WEB: &str = "tcp://10.96.0.10:80";

const DEPLOYMENT: &str = "
    apiVersion: apps/v1
    kind: Deployment
    metadata: {name: web}
    spec:
      replicas: 3
      selector: {matchLabels: {app: web}}
      template:
        metadata: {labels: {app: web}}
        spec:
          terminationGracePeriodSeconds: 600
          containers: [{name: echo, image: echo}]";

/// A Deployment's Pods become ready, unready, terminating and gone.
fn deployment(stage: &mut Stage) -> Result<()> {
    stage.begin_with_controllers()?;
    stage.step("pods without a node: no answers")?;
    stage.lab.apply(SERVICE)?;
    stage.lab.apply(DEPLOYMENT)?;
    let places = ["a1", "a2", "b1"];
    let pods = stage.place_pods("web", &places)?;
    stage.fails("pod/user", WEB, Fails::Refused)?;

    stage.step("all pods are ready")?;
    for (pod, place) in pods.iter().zip(places) {
        stage.report(pod, place, true)?;
    }
    stage.reaches("pod/user", WEB, &["a1", "a2", "b1"])?;

    stage.step("one becomes unready")?;
    let [a1, a2, b1] = pods.as_slice() else { anyhow::bail!("{} pods", pods.len()) };
    stage.report(b1, "b1", false)?;
    stage.reaches("pod/user", WEB, &["a1", "a2"])?;

    stage.step("one terminates: no new connections, the old one lives")?;
    stage.report(a1, "a1", false)?;
    stage.reaches("pod/user", WEB, &["a2"])?;
    let user = From::Pod("user".to_owned());
    stage.lab.agent(&user)?.hold("drained", WEB.parse().map_err(anyhow::Error::msg)?, true)?;
    stage.report(a1, "a1", true)?;
    stage.terminate_pod(a2)?;
    stage.reaches("pod/user", WEB, &["a1"])?;
    stage.held_alive(&user, "drained")?;

    stage.step("no pod is ready: the terminating one serves again")?;
    stage.report(a1, "a1", false)?;
    stage.reaches("pod/user", WEB, &["a2"])?;

    stage.step("it ends: no answers")?;
    stage.end_pod(a2)?;
    stage.fails("pod/user", WEB, Fails::Refused)?;

    stage.step("an unready one recovers")?;
    stage.report(b1, "b1", true)?;
    stage.reaches("pod/user", WEB, &["b1"])?;

    stage.step("the replacement gets a node of the other zone")?;
    let replacement = stage.place_pods("web", &["c1"])?;
    replacement.iter().try_for_each(|pod| stage.report(pod, "c1", true))?;
    stage.reaches("pod/user", WEB, &["b1", "c1"])
}

/// The hints that the controller gives are followed.
fn traffic_distribution(stage: &mut Stage) -> Result<()> {
    stage.begin_with_controllers()?;
    stage.lab.apply(SERVICE)?;
    stage.create_pods(&["a1", "a2", "b1", "c1"], "web")?;
    stage.step("no preference")?;
    stage.reaches("pod/user", WEB, &["a1", "a2", "b1", "c1"])?;
    let prefer = |stage: &Stage, what: Option<&str>| {
        stage.patch("Service", "web", &json!({"spec": {"trafficDistribution": what}}))
    };
    for preference in ["PreferSameZone", "PreferClose"] {
        stage.step(preference)?;
        prefer(stage, Some(preference))?;
        stage.reaches("pod/user", WEB, &["a1", "a2", "b1"])?;
        stage.reaches("host/node-c", WEB, &["c1"])?;
        prefer(stage, None)?;
        stage.reaches("pod/user", WEB, &["a1", "a2", "b1", "c1"])?;
    }
    stage.step("PreferSameNode")?;
    prefer(stage, Some("PreferSameNode"))?;
    stage.reaches("pod/user", WEB, &["a1", "a2"])?;
    stage.reaches("host/node-b", WEB, &["b1"])?;
    stage.step("PreferSameNode, no pod on the node is ready: the same zone, then all")?;
    stage.report("a1", "a1", false)?;
    stage.report("a2", "a2", false)?;
    stage.reaches("pod/user", WEB, &["b1"])?;
    stage.report("b1", "b1", false)?;
    stage.reaches("pod/user", WEB, &["c1"])
}

/// With publishNotReadyAddresses, pods get traffic before they are ready.
fn publish_not_ready_addresses(stage: &mut Stage) -> Result<()> {
    stage.begin_with_controllers()?;
    stage.lab.apply(SERVICE)?;
    stage.create_pods(&["a1", "b1"], "web")?;
    stage.step("one is unready")?;
    stage.report("b1", "b1", false)?;
    stage.reaches("pod/user", WEB, &["a1"])?;
    let publish = |stage: &Stage, on: bool| {
        stage.patch("Service", "web", &json!({"spec": {"publishNotReadyAddresses": on}}))
    };
    stage.step("unready pods are published")?;
    publish(stage, true)?;
    stage.reaches("pod/user", WEB, &["a1", "b1"])?;
    stage.step("terminating ones too")?;
    stage.terminate_pod("a1")?;
    stage.report("b1", "b1", false)?;
    stage.reaches("pod/user", WEB, &["a1", "b1"])?;
    stage.step("unready and terminating pods are not published any more")?;
    publish(stage, false)?;
    stage.reaches("pod/user", WEB, &["a1"])
}
