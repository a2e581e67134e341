//! Bursts: as many connections as go through, with pauses in which their flows become silent for
//! long enough to be ended, by client ports that come again and again. Whoever ends flows must not
//! end one that has just begun.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::agent::bench::{BenchReport, BenchRequest, Service, Work};
use crate::interrupt;
use crate::lab::{Lab, LabOptions};
use crate::target::{From, Target};
use crate::topology::Topology;

/// How much.
#[derive(Debug, Clone, Copy, clap::Args)]
// Commands that have these have a group of this name, too.
#[group(skip)]
pub struct Arguments {
    /// Least number of connections
    #[arg(long, default_value_t = 500_000)]
    pub connections: u64,
    /// Least number of connections between two pauses
    #[arg(long, default_value_t = 500_000)]
    pub round: u64,
}

const TOPOLOGY: &str =
    r#"{"nodes": {"node-a": {}}, "pods": {"server": {"node": "node-a", "ip": "10.244.1.11"}}}"#;
const NODE: &str = "node-a";
const TARGET: &str = "tcp://192.168.77.11:30080";
const SERVER_PORT: u16 = 9_001;
/// Client ports: 6,000 numbers. Linux connects from the even ones, one after the other.
const PORTS: &str = "net/ipv4/ip_local_port_range";
const CLIENT_PORTS: &str = "40000 45999";
/// Timestamps of all the client's connections by one clock. A connection's port for masquerading
/// was another client port's just before, and is in TIME_WAIT at the server, which takes a SYN only
/// if it is younger than what came from there. With an offset for each connection, as they usually
/// have, every other SYN would be sent again a second later.
const ONE_CLOCK: (&str, &str) = ("net/ipv4/tcp_timestamps", "2");
/// The node's processes have most ports, so that few are left for masquerading and these, too, come
/// again.
const NODE_PORTS: &str = "1024 61000";
/// Connections at a time.
const WORKERS: usize = 4;
/// A first segment that is lost is sent again after 1, 3 and 7 s: what gets through at all gets
/// through in this time, also where others keep the machine busy.
const PATIENCE: Duration = Duration::from_secs(12);
/// Between two passes of the daemon over the flow table, and how long a connection that is over
/// stays in it after that. The first pass tells when the others are.
const PASSES: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(60);
/// A round begins with a burst. Then nobody says anything until just before the pass that ends its
/// flows: while the daemon looks for those and ends them, the client begins them anew, one after
/// the other.
const BURST: Duration = Duration::from_secs(10);
const BEFORE_PASS: Duration = Duration::from_millis(400);
/// Then bursts follow one after the other, for so long at least.
const RUN: Duration = Duration::from_secs(2);
const AFTER_PASS: Duration = Duration::from_secs(10);
/// How long the proxy may take to serve.
const START: Duration = Duration::from_secs(120);
/// How long the bursts behind a pause may take. A machine that is too busy for them says so, and
/// has seen fewer.
const ROUND: Duration = Duration::from_secs(600);
/// Enough of them to know.
const FAILURES: u64 = 20;
const METRICS: &str = "http://127.0.0.1:10249/metrics";
/// Flows that passes have ended.
const EXPIRED: &str = "sluice_ebpf_flows_expired_total ";
/// Entries of the flow table, which are counted with each pass.
const COUNTED: &str = "sluice_ebpf_map_entries{map=\"FLOWS\"} ";
/// How exactly the time of a pass is known.
const LOOK: Duration = Duration::from_millis(100);

/// Runs it and prints what became of the connections; fails if one of them failed, or if there was
/// nothing to see.
pub fn run(options: LabOptions, arguments: Arguments) -> Result<()> {
    let topology: Topology = serde_json::from_str(TOPOLOGY)?;
    let mut lab = Lab::create(&topology, options)?;
    lab.agent(&From::Pod("server".into()))?.serve(Service::Greet, SERVER_PORT)?;
    lab.agent(&client()?)?.sysctl(&[ONE_CLOCK, (PORTS, CLIENT_PORTS)])?;
    lab.agent(&From::Host(NODE.into()))?.sysctl(&[(PORTS, NODE_PORTS)])?;
    lab.apply(&objects())?;
    lab.start_proxy(NODE, &Value::Null)?;
    lab.await_first_syncs()?;
    let started = Instant::now();
    while burst(&lab, Duration::from_millis(50))?.done == 0 {
        lab.check_proxies()?;
        ensure!(started.elapsed() < START, "no connection succeeds");
    }
    let pass = a_pass(&lab)?;
    let (mut done, mut failed) = (0, 0);
    for round in 1..=u32::try_from(arguments.connections.div_ceil(arguments.round.max(1)))? {
        let before = metric(&lab, EXPIRED)?;
        let (good, bad) = one_round(&mut lab, pass, arguments.round, round)?;
        (done, failed) = (done + good, failed + bad);
        if failed >= FAILURES {
            break;
        }
        if let (Some(before), Some(now)) = (before, metric(&lab, EXPIRED)?) {
            let ended = now.saturating_sub(before);
            println!("round {round}: the daemon has ended {ended} flows");
            ensure!(ended > 0, "the daemon has ended no flow, so the test shows nothing");
        }
    }
    println!("{failed} failed of {} connections in {:.0} s", done + failed, started.elapsed().as_secs_f64());
    ensure!(failed == 0, "{failed} connections failed");
    Ok(())
}

/// A burst, a pause, and bursts until there were so many connections; those that were answered and
/// that were not. The daemon's passes count from `pass`.
fn one_round(lab: &mut Lab, pass: Instant, connections: u64, round: u32) -> Result<(u64, u64)> {
    let first = burst(lab, BURST)?;
    tell(round, "first burst", &first);
    let silent = pass.elapsed() + SILENCE + Duration::from_secs(1);
    let next = PASSES * u32::try_from(silent.as_secs() / PASSES.as_secs() + 1)?;
    interrupt::sleep((next - BEFORE_PASS).saturating_sub(pass.elapsed()))?;
    let (mut done, mut failed) = (first.done, first.failed);
    while done + failed < connections || pass.elapsed() < next + AFTER_PASS {
        if failed >= FAILURES {
            break;
        }
        if pass.elapsed() > next + ROUND {
            println!("round {round}: the machine is too busy for {connections} connections in {ROUND:?}");
            break;
        }
        lab.check_proxies()?;
        let run = burst(lab, RUN)?;
        tell(round, "pause over", &run);
        (done, failed) = (done + run.done, failed + run.failed);
    }
    Ok((done, failed))
}

/// Waits for a pass of the daemon, which counts the flows that there are more of now. Other proxies
/// than the eBPF one have none; whatever they do is not timed.
fn a_pass(lab: &Lab) -> Result<Instant> {
    let Some(before) = metric(lab, COUNTED)? else { return Ok(Instant::now()) };
    let begun = Instant::now();
    burst(lab, Duration::from_millis(50))?;
    while metric(lab, COUNTED)? == Some(before) {
        ensure!(begun.elapsed() < 2 * PASSES, "the daemon makes no pass over the flow table");
        interrupt::sleep(LOOK)?;
    }
    Ok(Instant::now())
}

/// A metric of the daemon, if it has it.
fn metric(lab: &Lab, name: &str) -> Result<Option<u64>> {
    let page = lab.agent(&From::Host(NODE.into()))?.http_get(METRICS)?.body;
    let value = page.lines().find_map(|line| line.strip_prefix(name));
    value.map(|value| value.parse().with_context(|| format!("{name}{value}"))).transpose()
}

fn tell(round: u32, when: &str, report: &BenchReport) {
    let BenchReport { done, failed, seconds, first_failure, .. } = report;
    let why = first_failure.as_deref().unwrap_or_default();
    println!("round {round}, {when}: {failed} failed of {} in {seconds:.1} s {why}", done + failed);
}

fn client() -> Result<From> {
    "client".parse().map_err(anyhow::Error::msg)
}

fn burst(lab: &Lab, time: Duration) -> Result<BenchReport> {
    let target: Target = TARGET.parse().map_err(anyhow::Error::msg)?;
    let millis = u64::try_from(time.as_millis())?;
    let request = BenchRequest {
        target,
        work: Work::Connections,
        workers: WORKERS,
        millis,
        pause_micros: 0,
        patience: Some(PATIENCE),
    };
    lab.agent(&client()?)?.bench(request).context("the client")
}

fn objects() -> String {
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "bursts", "namespace": "default"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
            "ports": [{"port": 80, "nodePort": 30_080}]}});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "bursts-4", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "bursts"}},
        "ports": [{"name": "", "port": SERVER_PORT, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.244.1.11"], "conditions": {"ready": true}, "nodeName": NODE}]});
    format!("{service}\n---\n{slice}\n")
}
