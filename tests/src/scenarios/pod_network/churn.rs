//! What a day leaves behind on a busy node: pods come and go with ports of the node, and Services
//! change.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::scenarios::stage::{Stage, WITHIN, met};

/// Pods of a day, one after the other.
const PODS: u32 = 5000;
/// By then the daemon has allocated what it keeps.
const SETTLED: u32 = 500;
/// Changes of a Service, one for so many pods.
const PODS_PER_CHANGE: u32 = 5;
/// How much more may be resident after the day.
const GROWTH: f64 = 1.2;

pub(super) fn keeps_memory_flat(stage: &mut Stage) -> Result<()> {
    stage.apply_web()?;
    stage.lab.start_proxies(&Value::Null)?;
    stage.reaches_other_node()?;
    let (mut first, mut most) = (0.0, 0.0_f64);
    for pod in 1..=PODS {
        let port =
            |number: u32| json!({"HostPort": host_port(number), "ContainerPort": 8080, "Protocol": "udp"});
        stage.lab.rewire("a1", &json!({"portMappings": [port(pod), port(pod + 1)]}))?;
        if pod % PODS_PER_CHANGE == 0 {
            let external = format!("198.51.100.{}", pod / PODS_PER_CHANGE % 200);
            stage.patch("Service", "web", &json!({"spec": {"externalIPs": [external]}}))?;
        }
        if pod == SETTLED {
            first = resident(stage)?;
        } else if pod > SETTLED && pod % 100 == 0 {
            most = most.max(resident(stage)?);
        }
    }
    println!("resident memory: {first:.1} MiB after {SETTLED} pods, at most {most:.1} MiB until {PODS}");
    ensure!(most <= GROWTH * first, "resident memory grew from {first:.1} to {most:.1} MiB");
    stage.step("host ports lead only to the last pod")?;
    stage.eventually(WITHIN, |stage| {
        let table = stage.shell("nft list table inet sluice-pods")?;
        let ports: BTreeSet<&str> =
            table.split("udp dport ").skip(1).filter_map(|rest| rest.split(' ').next()).collect();
        let expected = [PODS, PODS + 1].map(|pod| host_port(pod).to_string());
        let is_met = ports.into_iter().eq(&expected);
        Ok(met(is_met, &format!("host ports {}", expected.join(", ")), || table))
    })
}

fn host_port(number: u32) -> u32 {
    20_000 + number % 500
}

/// What the daemon of the node holds, in MiB.
fn resident(stage: &Stage) -> Result<f64> {
    let bytes: f64 = stage.metric("process_resident_memory_bytes")?.parse()?;
    Ok(bytes / f64::from(1 << 20))
}
