//! The socket path: loads through a ClusterIP and straight to its pod, in turns.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sluice_tests::agent::bench::{BenchRequest, Service, Work};
use sluice_tests::lab::Lab;
use sluice_tests::target::From;

use super::{Arguments, NODE, spread};
use crate::passes::await_sync;

pub(super) const TOPOLOGY: &str = r#"{"nodes": {"node-a": {}}, "pods": {
    "user": {"node": "node-a", "ip": "10.244.1.20"}, "server": {"node": "node-a", "ip": "10.244.1.11"}}}"#;

const CLUSTER_IP: &str = "10.96.0.10";
const POD: &str = "10.244.1.11";
/// Loads with the port of their server, their name, and so many at a time.
const LOADS: [(Work, Service, u16, &str, usize); 3] = [
    (Work::Connections, Service::Greet, 9001, "new connections [1/s]", 2),
    (Work::Requests, Service::Echo, 9002, "request latency, median [us]", 1),
    (Work::Stream, Service::Sink, 9003, "throughput [GB/s]", 1),
];
/// What is added to a port for loads that go straight to the pod, so that neither way meets the
/// other's remains.
const DIRECT: u16 = 100;

/// Measures and prints.
pub(super) fn run(arguments: &Arguments, mut lab: Lab) -> Result<()> {
    let server = lab.agent(&From::Pod("server".into()))?;
    for (_, service, port, ..) in LOADS {
        server.serve(service, port)?;
        server.serve(service, port + DIRECT)?;
    }
    lab.apply(&objects())?;
    lab.start_proxy(NODE, &Value::Null)?;
    await_sync(&mut lab, NODE, Duration::from_secs(30), |sync| sync.kind == "full")?;
    println!(
        "socket path, {} turns of {} ms each; median (lowest to highest)",
        arguments.turns, arguments.millis
    );
    println!(
        "{:<30} {:>34} {:>34} {:>22}",
        "", "through the ClusterIP", "straight to the pod", "ratio in each turn"
    );
    for (work, _, port, name, workers) in LOADS {
        let (mut through, mut direct, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for turn in 0..arguments.turns {
            // Whoever comes second finds warmer caches: they take turns at that too.
            let ways = if turn % 2 == 0 { [true, false] } else { [false, true] };
            let mut values = [0.0; 2];
            for service in ways {
                let value = measure(&lab, arguments, work, workers, service, port)?;
                values[usize::from(!service)] = value;
            }
            through.push(values[0]);
            direct.push(values[1]);
            ratios.push(values[0] / values[1]);
        }
        println!(
            "{name:<30} {:>34} {:>34} {:>22}",
            text(spread(&mut through)),
            text(spread(&mut direct)),
            text(spread(&mut ratios))
        );
    }
    Ok(())
}

fn text((median, low, high): (f64, f64, f64)) -> String {
    let digits = if median < 100.0 { 3 } else { 0 };
    format!("{median:.digits$} ({low:.digits$} to {high:.digits$})")
}

fn measure(
    lab: &Lab,
    arguments: &Arguments,
    work: Work,
    workers: usize,
    service: bool,
    port: u16,
) -> Result<f64> {
    sluice_tests::interrupt::sleep(Duration::from_millis(50))?;
    let (address, port) = if service { (CLUSTER_IP, port) } else { (POD, port + DIRECT) };
    let target = format!("tcp://{address}:{port}").parse().map_err(anyhow::Error::msg)?;
    let request =
        BenchRequest { target, work, workers, millis: arguments.millis, pause_micros: 0, patience: None };
    let report = lab.agent(&From::Pod("user".into()))?.bench(request)?;
    ensure!(report.failed == 0, "{} failed: {}", report.failed, report.first_failure.unwrap_or_default());
    let rate = report.done as f64 / report.seconds;
    Ok(match work {
        Work::Connections => rate,
        Work::Requests => report.p50 * 1e6,
        Work::Stream => rate / 1e9,
    })
}

fn objects() -> String {
    let ports: Vec<Value> =
        LOADS.iter().map(|(_, _, port, ..)| json!({"name": format!("p{port}"), "port": port})).collect();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "bench", "namespace": "default"},
        "spec": {"clusterIP": CLUSTER_IP, "clusterIPs": [CLUSTER_IP], "ports": ports}});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "bench-4", "namespace": "default", "labels": {"kubernetes.io/service-name": "bench"}},
        "ports": ports,
        "endpoints": [{"addresses": [POD], "conditions": {"ready": true}, "nodeName": NODE}]});
    format!("{service}\n---\n{slice}\n")
}
