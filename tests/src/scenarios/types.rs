//! One Service through all its types.

use anyhow::Result;
use serde_json::{Value, json};

use super::Scenario;
use super::stage::{Stage, WITHIN, met};
use crate::case::Fails;
use crate::lab::plugin::PodNetwork;
use crate::objects::Key;

pub(super) const ALL: &[Scenario] = &[Scenario {
    name: "service-types",
    file: file!(),
    needs: &["nft"],
    topology: "
        nodes: {node-a: {}, node-b: {}}
        pods:
          user: {node: node-a, ip: 10.244.1.10}
          a1: {node: node-a, ip: 10.244.1.11}
          b1: {node: node-b, ip: 10.244.2.11}
          other: {node: node-b, ip: 10.244.2.12}",
    long: false,
    pod_network: PodNetwork::Lab,
    body: service_types,
}];

const CLUSTER_IP: &str = "tcp://10.96.0.10:80";
const NODE_PORT: &str = "tcp://192.168.77.11:30080";
const BALANCER: &str = "tcp://203.0.113.10:80";

fn service(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec})
}

fn put(stage: &Stage, spec: Value) -> Result<()> {
    stage.lab.apply_object(&Key::new("Service", None, "web"), &service(spec))
}

/// No rule names one of these any more.
fn forgotten(stage: &mut Stage, texts: &[&str]) -> Result<()> {
    stage.eventually(WITHIN, |stage| {
        let rules = stage.run("node-a", &["nft", "list", "ruleset"])?.stdout;
        let naming = |line: &&str| texts.iter().any(|text| line.contains(text));
        let left: Vec<&str> = rules.lines().filter(naming).collect();
        Ok(met(left.is_empty(), &format!("no rule about {}", texts.join(", ")), || left.join("\n")))
    })
}

fn service_types(stage: &mut Stage) -> Result<()> {
    stage.begin_with_controllers()?;
    stage.create_pods(&["a1", "b1"], "web")?;
    stage.create_pods(&["other"], "other")?;
    growing(stage)?;
    without_address(stage)?;
    selectors(stage)
}

/// ClusterIP, NodePort, LoadBalancer, and back to NodePort.
fn growing(stage: &mut Stage) -> Result<()> {
    let web = json!({"app": "web"});
    let ports = json!([{"port": 80, "targetPort": 8080}]);
    let open = json!([{"port": 80, "targetPort": 8080, "nodePort": 30080}]);
    let both = ["a1", "b1"];
    stage.step("ClusterIP")?;
    put(stage, json!({"type": "ClusterIP", "clusterIP": "10.96.0.10", "selector": web, "ports": ports}))?;
    stage.reaches("pod/user", CLUSTER_IP, &both)?;
    stage.fails("client", NODE_PORT, Fails::Refused)?;
    stage.step("NodePort")?;
    put(stage, json!({"type": "NodePort", "clusterIP": "10.96.0.10", "selector": web, "ports": open}))?;
    stage.reaches("client", NODE_PORT, &both)?;
    stage.reaches("pod/user", CLUSTER_IP, &both)?;
    stage.step("LoadBalancer")?;
    put(stage, json!({"type": "LoadBalancer", "clusterIP": "10.96.0.10", "selector": web, "ports": open}))?;
    stage.balance("web", &["203.0.113.10"])?;
    stage.reaches("client", BALANCER, &both)?;
    stage.reaches("client", NODE_PORT, &both)?;
    stage.reaches("pod/user", CLUSTER_IP, &both)?;
    stage.step("NodePort again: the load balancer's address does not answer")?;
    put(stage, json!({"type": "NodePort", "clusterIP": "10.96.0.10", "selector": web, "ports": open}))?;
    forgotten(stage, &["203.0.113.10"])?;
    stage.fails("client", BALANCER, Fails::Any)?;
    stage.reaches("client", NODE_PORT, &both)
}

/// ExternalName, ClusterIP again, headless.
fn without_address(stage: &mut Stage) -> Result<()> {
    let web = json!({"app": "web"});
    let ports = json!([{"port": 80, "targetPort": 8080}]);
    stage.step("ExternalName: the address and the node port are closed")?;
    put(stage, json!({"type": "ExternalName", "externalName": "example.com"}))?;
    forgotten(stage, &["10.96.0.10", "30080"])?;
    stage.fails("pod/user", CLUSTER_IP, Fails::Any)?;
    stage.fails("client", NODE_PORT, Fails::Refused)?;
    stage.step("ClusterIP again")?;
    put(stage, json!({"type": "ClusterIP", "clusterIP": "10.96.0.10", "selector": web, "ports": ports}))?;
    stage.reaches("pod/user", CLUSTER_IP, &["a1", "b1"])?;
    stage.fails("client", NODE_PORT, Fails::Refused)?;
    stage.step("headless, which the API accepts only for a new Service")?;
    stage.lab.delete(&Key::new("Service", None, "web"))?;
    put(stage, json!({"clusterIP": "None", "selector": web, "ports": ports}))?;
    forgotten(stage, &["10.96.0.10", "10.244.1.11", "10.244.2.11"])?;
    stage.fails("pod/user", CLUSTER_IP, Fails::Any)
}

/// Other pods, and pods that somebody else names.
fn selectors(stage: &mut Stage) -> Result<()> {
    let ports = json!([{"port": 80, "targetPort": 8080}]);
    stage.step("ClusterIP after headless")?;
    stage.lab.delete(&Key::new("Service", None, "web"))?;
    put(stage, json!({"clusterIP": "10.96.0.10", "selector": {"app": "web"}, "ports": ports}))?;
    stage.reaches("pod/user", CLUSTER_IP, &["a1", "b1"])?;
    stage.step("another selector")?;
    put(stage, json!({"clusterIP": "10.96.0.10", "selector": {"app": "other"}, "ports": ports}))?;
    stage.reaches("pod/user", CLUSTER_IP, &["other"])?;
    stage.step("a selector that no pod matches")?;
    put(stage, json!({"clusterIP": "10.96.0.10", "selector": {"app": "nobody"}, "ports": ports}))?;
    stage.fails("pod/user", CLUSTER_IP, Fails::Refused)?;
    stage.step("no selector: EndpointSlices of another writer are used")?;
    put(stage, json!({"clusterIP": "10.96.0.10", "ports": ports}))?;
    stage.lab.apply(
        "
        apiVersion: discovery.k8s.io/v1
        kind: EndpointSlice
        metadata: {name: web-by-hand, labels: {kubernetes.io/service-name: web}}
        addressType: IPv4
        ports: [{name: '', port: 8080, protocol: TCP}]
        endpoints: [{addresses: [10.244.2.11], conditions: {ready: true}}]",
    )?;
    stage.reaches("pod/user", CLUSTER_IP, &["b1"])?;
    stage.step("deleted")?;
    stage.lab.delete(&Key::new("Service", None, "web"))?;
    forgotten(stage, &["10.96.0.10"])?;
    stage.fails("pod/user", CLUSTER_IP, Fails::Any)
}
