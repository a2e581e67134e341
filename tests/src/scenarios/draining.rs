//! A node on its way out, as the cluster autoscaler and load balancers see it.

use anyhow::Result;
use serde_json::json;

use super::Scenario;
use super::stage::Stage;
use crate::case::Fails;
use crate::lab::plugin::PodNetwork;
use crate::target::From;

pub(super) const ALL: &[Scenario] = &[Scenario {
    name: "node-draining",
    file: file!(),
    needs: &[],
    topology: "
        nodes: {node-a: {}, node-b: {}}
        pods:
          a1: {node: node-a, ip: 10.244.1.11}
          a2: {node: node-a, ip: 10.244.1.12}
          b1: {node: node-b, ip: 10.244.2.11}",
    long: false,
    pod_network: PodNetwork::Lab,
    body: node_draining,
}];

const SERVICE: &str = "
    apiVersion: v1
    kind: Service
    metadata: {name: web}
    spec:
      type: LoadBalancer
      externalTrafficPolicy: Local
      healthCheckNodePort: 30999
      clusterIP: 10.96.0.10
      selector: {app: web}
      ports: [{port: 80, targetPort: 8080, nodePort: 30080}]";
const BALANCER: &str = "tcp://203.0.113.10:80";
const NODE_PORT: &str = "tcp://192.168.77.11:30080";
const HEALTHZ: &str = "http://127.0.0.1:10256/healthz";
const LIVEZ: &str = "http://127.0.0.1:10256/livez";
/// What the load balancer asks about the Service, of each node.
const SERVICE_HEALTH: [&str; 2] = ["http://192.168.77.11:30999/", "http://192.168.77.12:30999/"];

fn node_draining(stage: &mut Stage) -> Result<()> {
    stage.begin_with_controllers()?;
    stage.lab.apply(SERVICE)?;
    stage.balance("web", &["203.0.113.10"])?;
    stage.create_pods(&["a1", "a2", "b1"], "web")?;
    stage.step("before")?;
    stage.reaches("client via node-a", BALANCER, &["a1", "a2"])?;
    stage.reaches("client via node-b", BALANCER, &["b1"])?;
    stage.http("node-a", HEALTHZ, 200)?;
    stage.http("node-a", SERVICE_HEALTH[0], 200)?;

    stage.step("the autoscaler marks the node")?;
    let taint = |taints| json!({"spec": {"taints": taints}});
    let mark = json!([{"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"}]);
    stage.patch("Node", "node-a", &taint(mark))?;
    stage.http("node-a", HEALTHZ, 503)?;
    stage.http("node-a", LIVEZ, 200)?;
    stage.http("node-b", HEALTHZ, 200)?;
    stage.reaches("client via node-a", BALANCER, &["a1", "a2"])?;

    stage.step("one pod terminates: the other serves alone")?;
    stage.terminate_pod("a1")?;
    stage.reaches("client via node-a", BALANCER, &["a2"])?;
    stage.http("node-a", SERVICE_HEALTH[0], 200)?;

    stage.step("both terminate: they still serve, and the health check sends the load balancer elsewhere")?;
    stage.lab.agent(&From::Client)?.hold("drained", NODE_PORT.parse().map_err(anyhow::Error::msg)?, true)?;
    stage.terminate_pod("a2")?;
    stage.http("node-a", SERVICE_HEALTH[0], 503)?;
    stage.http("node-b", SERVICE_HEALTH[1], 200)?;
    stage.reaches("client via node-a", BALANCER, &["a1", "a2"])?;
    stage.reaches("client", NODE_PORT, &["a1", "a2"])?;
    stage.reaches("host/node-b", "tcp://10.96.0.10:80", &["b1"])?;
    stage.held_alive(&From::Client, "drained")?;

    stage.step("both have ended: the node does not answer")?;
    stage.end_pod("a1")?;
    stage.end_pod("a2")?;
    stage.fails("client via node-a", BALANCER, Fails::Timeout)?;
    stage.reaches("client via node-b", BALANCER, &["b1"])?;

    stage.step("the mark is removed")?;
    stage.patch("Node", "node-a", &taint(json!(null)))?;
    stage.http("node-a", HEALTHZ, 200)
}
