//! What the benchmark's cluster holds: a node with pods and a Service of its own for each proxy,
//! and the bulk.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sluice_tests::agent::bench::Service;
use sluice_tests::cluster::Cluster;
use sluice_tests::lab::Lab;
use sluice_tests::objects::Key;
use sluice_tests::target::From;
use sluice_tests::topology::Topology;

/// What is added to a port for loads that go straight to the pod: connections that differ in their
/// way only would meet each other's remains there.
pub(super) const DIRECT: u16 = 100;
/// The ports of a node's measured pod, and what serves there.
pub(super) const SERVERS: [(Service, u16); 3] =
    [(Service::Greet, 9001), (Service::Echo, 9002), (Service::Sink, 9003)];

/// The node of the proxy with this place in the order of turns.
pub(super) fn node(place: usize) -> String {
    format!("node-{}", char::from(b'a'.saturating_add(u8::try_from(place).unwrap_or(u8::MAX))))
}

/// A pod of a node: `client`, `one` or `two`.
pub(super) fn pod(place: usize, name: &str) -> String {
    format!("{name}-{place}")
}

fn pod_address(place: usize, name: &str) -> String {
    let host = match name {
        "client" => 20,
        "one" => 11,
        _ => 12,
    };
    format!("10.244.{}.{host}", place + 1)
}

/// The ClusterIP of a node's own Service.
pub(super) fn cluster_ip(place: usize) -> String {
    format!("10.96.0.{}", 10 + place)
}

/// The node port of a node's own Service that leads to the server for new connections.
pub(super) fn node_port(place: usize) -> u16 {
    30_100_u16.saturating_add(u16::try_from(place).unwrap_or(u16::MAX))
}

/// The address of the pod that serves loads.
pub(super) fn direct(place: usize) -> String {
    pod_address(place, "one")
}

/// As many nodes as proxies, each with a client and two servers.
pub(super) fn topology(proxies: usize) -> Result<Topology> {
    let mut nodes = serde_json::Map::new();
    let mut pods = serde_json::Map::new();
    for place in 0..proxies {
        nodes.insert(node(place), json!({}));
        for name in ["client", "one", "two"] {
            pods.insert(pod(place, name), json!({"node": node(place), "ip": pod_address(place, name)}));
        }
    }
    Ok(serde_json::from_value(json!({"nodes": nodes, "pods": pods}))?)
}

/// Starts the servers and writes each node's own Service.
pub(super) fn prepare(lab: &Lab, proxies: usize) -> Result<()> {
    for place in 0..proxies {
        let agent = lab.agent(&From::Pod(pod(place, "one")))?;
        // One client whose connections all get a port of the node's meets the remains of earlier
        // ones at the server, whose clocks do not fit (PAWS, RFC 7323), and waits a second for the
        // next try: no proxy's doing.
        agent.sysctl(&[("net/ipv4/tcp_max_tw_buckets", "0")])?;
        for (service, port) in SERVERS {
            agent.serve(service, port)?;
            agent.serve(service, port + DIRECT)?;
        }
        let mut ports = vec![json!({"name": "p8080", "port": 80, "targetPort": 8080, "protocol": "TCP"})];
        ports.extend(SERVERS.map(|(_, port)| {
            json!({"name": format!("p{port}"), "port": port, "targetPort": port, "protocol": "TCP"})
        }));
        let name = format!("own-{place}");
        let mut service = service(&name, &cluster_ip(place), &json!(ports));
        service["spec"]["type"] = json!("NodePort");
        service["spec"]["ports"][1]["nodePort"] = json!(node_port(place));
        lab.apply_object(&Key::new("Service", None, &name), &service)?;
        let (key, slice) = own_slice(place, "one");
        lab.apply_object(&key, &slice)?;
    }
    Ok(())
}

/// The slice of a node's own Service, with one endpoint: `one` or `two`.
pub(super) fn own_slice(place: usize, endpoint: &str) -> (Key, Value) {
    let ports: Vec<Value> = [8080]
        .into_iter()
        .chain(SERVERS.map(|(_, port)| port))
        .map(|port| json!({"name": format!("p{port}"), "port": port, "protocol": "TCP"}))
        .collect();
    let name = format!("own-{place}");
    let endpoints = [endpoint_at(&pod_address(place, endpoint), &node(place))];
    slice(&name, &json!(ports), &json!(endpoints))
}

/// Writes bulk Services until there are `services` of them, each with its own endpoints, which
/// nobody is.
pub(super) fn fill(cluster: &Cluster, from: usize, services: usize, endpoints: usize) -> Result<()> {
    // The API server is shared by all proxies; a few requests at a time keep its two cores busy.
    const PARALLEL: usize = 32;
    if services > from {
        println!("writing Services {} to {services} with {endpoints} endpoints each", from + 1);
    }
    for chunk in (from..services).collect::<Vec<_>>().chunks(1000) {
        let mut objects = Vec::new();
        for &index in chunk {
            let (service, (key, slice)) = bulk_objects(index, endpoints);
            objects.push((Key::new("Service", None, &bulk_name(index)), service));
            objects.push((key, slice));
        }
        cluster.api().create_all(objects, PARALLEL).context("writing bulk Services")?;
    }
    Ok(())
}

fn bulk_name(index: usize) -> String {
    format!("bulk-{index}")
}

/// The ClusterIP of a bulk Service: 10.96.1.0 and on, because the first addresses are for the
/// nodes' own Services.
pub(in crate::bench) fn bulk_address(index: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0100_u32.saturating_add(u32::try_from(index).unwrap_or(u32::MAX)))
}

/// A bulk Service and its slice.
pub(in crate::bench) fn bulk(index: usize, endpoints: usize) -> (Value, Value) {
    let (service, (_, slice)) = bulk_objects(index, endpoints);
    (service, slice)
}

fn bulk_objects(index: usize, endpoints: usize) -> (Value, (Key, Value)) {
    let ports = json!([{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]);
    let slice_ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
    let members: Vec<Value> = (0..endpoints)
        .map(|member| {
            let number = index * endpoints + member;
            let (high, middle, low) = (number >> 16, (number >> 8) & 0xff, number & 0xff);
            endpoint_at(&format!("10.{}.{middle}.{low}", 128 + high), "elsewhere")
        })
        .collect();
    let name = bulk_name(index);
    let service = service(&name, &bulk_address(index).to_string(), &ports);
    (service, slice(&name, &slice_ports, &json!(members)))
}

fn service(name: &str, address: &str, ports: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ports": ports}})
}

fn slice(service: &str, ports: &Value, endpoints: &Value) -> (Key, Value) {
    let name = format!("{service}-4");
    let object = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "default",
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints});
    (Key::new("EndpointSlice", None, &name), object)
}

fn endpoint_at(address: &str, node: &str) -> Value {
    json!({"addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": node})
}
