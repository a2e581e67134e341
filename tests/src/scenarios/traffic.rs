//! Traffic that must not notice anything: new connections at a steady rate, held ones, and a sender
//! of datagrams.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::stage::{Stage, met};
use crate::agent::protocol::LoadRequest;
use crate::case::HeldStep;
use crate::expect;
use crate::interrupt;
use crate::needs;
use crate::objects::Key;
use crate::proxy::ProxyProgram;
use crate::target::{From, Target};

/// A node with the user and a pod, another node with two pods; the client is outside.
pub(super) const TOPOLOGY: &str = "
    nodes: {node-a: {}, node-b: {}}
    pods:
      user: {node: node-a, ip: 10.244.1.10, ip6: 'fd00:10:244:1::10'}
      a1: {node: node-a, ip: 10.244.1.11, ip6: 'fd00:10:244:1::11'}
      b1: {node: node-b, ip: 10.244.2.11, ip6: 'fd00:10:244:2::11'}
      b2: {node: node-b, ip: 10.244.2.12, ip6: 'fd00:10:244:2::12'}";

/// The Service that the traffic goes to.
pub(super) const WEB: &str = "tcp://10.96.0.10:80";
const WEB6: &str = "tcp://[fd00:10:96::a]:80";
pub(super) const WEB_UDP: &str = "udp://10.96.0.10:53";
const NODE_PORT: &str = "tcp://192.168.77.11:30080";
const NODE_PORT6: &str = "tcp://[fd00:77::11]:30080";
/// Texts that the rules of any proxy which serves it have, IPv4 and IPv6.
pub(super) const ADDRESSES: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];

const LOAD: &str = "load";
/// Where loads come from.
const LOADED: [&str; 2] = ["pod/user", "client"];
/// A load ends by itself after so many seconds.
const LIMIT: u64 = 400;
/// Names of held connections, where they begin and what they are to.
const HELD: [(&str, &str, &str); 3] = [
    ("tcp-to-cluster-ip", "pod/user", WEB),
    ("tcp-to-node-port", "client", NODE_PORT),
    ("udp-to-cluster-ip", "pod/user", WEB_UDP),
];
/// Datagrams that may be under way when they are counted.
const UNDER_WAY: u64 = 2;

pub(super) fn place(from: &str) -> Result<From> {
    from.parse().map_err(anyhow::Error::msg)
}

fn targets(texts: &[&str]) -> Result<Vec<Target>> {
    let usable = texts.iter().filter(|text| needs::has_ipv6() || !text.contains('['));
    usable.map(|text| text.parse().map_err(anyhow::Error::msg)).collect()
}

/// A Service with one endpoint, and its slice.
pub(super) fn single(name: &str, address: &str, endpoint: &str) -> [(Key, Value); 2] {
    let slice = format!("{name}-1");
    [
        (
            Key::new("Service", None, name),
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
                "spec": {"clusterIP": address, "ports": [{"port": 80, "targetPort": 8080}]}}),
        ),
        (
            Key::new("EndpointSlice", None, &slice),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": slice, "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
                "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
                "endpoints": [{"addresses": [endpoint], "conditions": {"ready": true}}]}),
        ),
    ]
}

impl Stage {
    /// Writes the Service, and slices with the endpoints `a1` and `b1`.
    pub(super) fn apply_web(&self) -> Result<()> {
        self.lab.apply(
            "
            apiVersion: v1
            kind: Service
            metadata: {name: web}
            spec:
              type: NodePort
              clusterIP: 10.96.0.10
              clusterIPs: [10.96.0.10, 'fd00:10:96::a']
              ipFamilies: [IPv4, IPv6]
              ipFamilyPolicy: RequireDualStack
              ports:
              - {name: http, port: 80, targetPort: 8080, nodePort: 30080}
              - {name: dns, port: 53, targetPort: 8080, protocol: UDP}",
        )?;
        self.point_web_to(&["a1", "b1"])
    }

    /// Makes these pods the endpoints of the Service.
    pub(super) fn point_web_to(&self, pods: &[&str]) -> Result<()> {
        let known = &self.lab.topology().pods;
        let pods = pods.iter().map(|pod| known.get(*pod).with_context(|| format!("no pod {pod}")));
        let pods = pods.collect::<Result<Vec<_>>>()?;
        for (family, v6) in [("IPv4", false), ("IPv6", true)] {
            let addresses =
                pods.iter().flat_map(|pod| pod.addresses()).filter(|address| address.is_ipv6() == v6);
            let endpoints: Vec<Value> =
                addresses.map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
            let name = format!("web-{}", family.to_lowercase());
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "web"}},
                "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 8080, "protocol": "UDP"}],
                "endpoints": endpoints,
            });
            self.lab.apply_object(&Key::new("EndpointSlice", None, &name), &slice)?;
        }
        Ok(())
    }

    /// Begins all traffic, as soon as the Service answers. Each of two loads opens so many
    /// connections in a second.
    pub(super) fn begin_traffic(&mut self, per_second: u64) -> Result<()> {
        self.reaches("pod/user", WEB, &["a1", "b1"])?;
        let inside = [WEB, WEB6, WEB_UDP];
        let outside = [NODE_PORT, NODE_PORT6];
        for target in targets(&[inside.as_slice(), &outside].concat())? {
            let from = if target.port == 30080 { "client" } else { "pod/user" };
            self.reaches(from, &target.to_string(), &["a1", "b1"])?;
        }
        for (id, from, to) in HELD {
            let target: Target = to.parse().map_err(anyhow::Error::msg)?;
            self.lab.agent(&place(from)?)?.hold(id, target, true)?;
        }
        for (from, to) in [("pod/user", inside.as_slice()), ("client", &outside)] {
            let load = LoadRequest { targets: targets(to)?, per_second, seconds: LIMIT, patience: None };
            self.lab.agent(&place(from)?)?.load(LOAD, load)?;
        }
        Ok(())
    }

    /// Lets traffic go on for a time, and fails if it noticed anything up to now.
    pub(super) fn traffic_goes_on(&mut self, time: Duration) -> Result<()> {
        interrupt::sleep(time)?;
        self.lab.check_proxies()?;
        self.check_traffic()?;
        HELD.iter().try_for_each(|(id, from, _)| self.held_alive(&place(from)?, id))
    }

    /// More endpoints and fewer again. Only a proxy that is in charge can do this.
    pub(super) fn change_and_change_back(&mut self) -> Result<()> {
        for endpoints in [["a1", "b1", "b2"].as_slice(), &["a1", "b1"]] {
            self.point_web_to(endpoints)?;
            self.reaches("pod/user", WEB, endpoints)?;
            self.reaches("client", NODE_PORT, endpoints)?;
        }
        self.traffic_goes_on(Duration::from_secs(1))
    }

    /// One proxy in the place of another, in the order of docs/migration.md: both want the same
    /// ports, so the old one ends first.
    pub(super) fn exchange(&mut self, node: &str, from: &ProxyProgram, to: &ProxyProgram) -> Result<()> {
        self.traffic_goes_on(Duration::from_secs(1))?;
        self.lab.stop_program(node, from)?;
        self.traffic_goes_on(Duration::from_secs(1))?;
        self.lab.start_program(node, to, &Value::Null)?;
        self.traffic_goes_on(Duration::from_secs(3))
    }

    /// What changes while a proxy does not run is in force when it runs again.
    pub(super) fn catches_up(&mut self, node: &str, proxy: &ProxyProgram) -> Result<()> {
        self.step("what changed while it was stopped is in force")?;
        self.lab.stop_program(node, proxy)?;
        self.point_web_to(&["a1", "b1", "b2"])?;
        self.lab.start_program(node, proxy, &Value::Null)?;
        self.reaches("pod/user", WEB, &["a1", "b1", "b2"])
    }

    /// How many connections the loads have opened.
    pub(super) fn connections_opened(&self) -> Result<u64> {
        LOADED.iter().map(|from| Ok(self.lab.agent(&place(from)?)?.loaded(LOAD, false)?.opened)).sum()
    }

    /// Ends the loads; fails if anything was noticed, or hardly anything was opened.
    pub(super) fn end_traffic(&mut self) -> Result<()> {
        self.traffic_goes_on(Duration::from_millis(500))?;
        for from in LOADED {
            self.lab.agent(&place(from)?)?.loaded(LOAD, true)?;
            self.eventually(Duration::from_secs(5), |stage| {
                let status = stage.lab.agent(&place(from)?)?.loaded(LOAD, true)?;
                Ok(met(status.under_way == 0, "connections end", || format!("{} last", status.under_way)))
            })?;
        }
        self.check_traffic()?;
        let (id, from, _) = HELD[2];
        self.eventually(Duration::from_secs(1), |stage| {
            let status = stage.lab.agent(&place(from)?)?.held(id)?;
            let lost = status.sent.saturating_sub(status.answered);
            Ok(met(lost <= UNDER_WAY, "every datagram is answered", || format!("{status:?}")))
        })
    }

    /// Ends what is held.
    pub(super) fn end_held(&self) -> Result<()> {
        HELD.iter().try_for_each(|(id, from, _)| self.lab.agent(&place(from)?)?.end_held(id))
    }

    /// Fails if a connection failed up to now.
    fn check_traffic(&self) -> Result<()> {
        for from in LOADED {
            let agent = self.lab.agent(&place(from)?)?;
            let status = agent.loaded(LOAD, false)?;
            ensure!(
                status.opened >= 20,
                "only {} connections from {from}: the machine is too slow",
                status.opened
            );
            met(status.failed == 0, &format!("no connection from {from} fails"), || {
                let (failed, opened, slowest) = (status.failed, status.opened, status.slowest_ms);
                let list = status.failures.join("\n");
                format!("{failed} of {opened} failed (slowest: {slowest} ms); the first:\n{list}")
            })?;
        }
        Ok(())
    }

    /// A held connection must be alive.
    pub(super) fn held_alive(&mut self, from: &From, id: &str) -> Result<()> {
        let step = HeldStep { id: id.to_owned(), alive: true, endpoint: None, within: None };
        self.held(from, Duration::from_secs(2), &step)
    }

    /// A held connection must come to be as the step says.
    pub(super) fn held(&mut self, from: &From, within: Duration, step: &HeldStep) -> Result<()> {
        let datagrams = step.id.starts_with("udp");
        self.eventually(within, |stage| {
            Ok(expect::held(step, datagrams, &stage.lab.agent(from)?.held(&step.id)?))
        })
    }
}
