//! `cargo xtask demo`: what Sluice does, shown with real packets in a lab of network namespaces.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::json;
use sluice_tests::agent::protocol::{Outcome, ProbeRequest};
use sluice_tests::lab::plugin::PodNetwork;
use sluice_tests::lab::{Lab, LabOptions, prune};
use sluice_tests::proxy::ProxyProgram;
use sluice_tests::target::{From, Target};
use sluice_tests::topology::Topology;

use crate::machine;
use crate::passes::{await_sync, syncs};

/// Arguments of the demo.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Number of connections for each line of the tables
    #[arg(long, default_value_t = 100)]
    connections: usize,
    /// Connect pods with sluice's CNI plugin, and nodes with sluice's VXLAN
    #[arg(long)]
    cni: bool,
}

const NODE: &str = "node-a";
const LIMIT: Duration = Duration::from_secs(10);

/// Runs the demo.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    machine::prepare()?;
    let programs = machine::build()?;
    sluice_tests::interrupt::install()?;
    prune::stale();
    let proxy = ProxyProgram::sluice(&programs.sluice, "nftables")?;
    let pod_network = if arguments.cni { PodNetwork::Sluice } else { PodNetwork::Lab };
    let options = LabOptions { pod_network, ..LabOptions::new(programs.conformance.clone(), proxy) };
    let mut lab = Lab::create(&topology()?, options)?;
    heading(
        "Two nodes, four pods and a client, each in a network namespace of its own; sluice runs on both nodes",
    );
    println!("  node-a 192.168.77.11  pods client-1 10.244.1.20, web-1 10.244.1.11");
    println!("  node-b 192.168.77.12  pods web-2 10.244.2.11, web-3 10.244.2.12");
    println!("  client 192.168.77.100, outside the cluster");
    println!("  objects: examples/services.yaml, examples/endpoints.yaml");
    lab.apply(&example("services.yaml")?)?;
    lab.apply(&example("endpoints.yaml")?)?;
    lab.start_proxies(&json!({}))?;
    await_service(&mut lab, "pod/client-1", "tcp://10.96.0.10:80")?;

    if arguments.cni {
        heading(
            "sluice-cni has connected the pods, and sluice the nodes: devices, routes and forwarding \
             entries of node-a",
        );
        plumbing(&lab)?;
    }

    heading("Which endpoints answer");
    let count = arguments.connections;
    table_head();
    row(&lab, "ClusterIP", "pod/client-1", "tcp://10.96.0.10:80", count)?;
    row(&lab, "ClusterIP, IPv6", "pod/client-1", "tcp://[fd00:10:96::a]:80", count)?;
    row(&lab, "ClusterIP, from the node", "host/node-b", "tcp://10.96.0.10:80", count)?;
    row(&lab, "NodePort on node-a", "client", "tcp://192.168.77.11:30080", count)?;
    row(&lab, "NodePort on node-b", "client", "tcp://192.168.77.12:30080", count)?;
    row(&lab, "ClientIP affinity", "pod/client-1", "tcp://10.96.0.20:80", count)?;
    row(&lab, "UDP", "pod/client-1", "udp://10.96.0.53:53", count)?;
    row(&lab, "no endpoints", "pod/client-1", "tcp://10.96.0.30:80", 3)?;

    heading("Connection tracking on node-a for two of these connections: destination, answering endpoint");
    connections(&lab)?;

    heading(
        "The whole ruleset is a few chains, whatever the number of services (nft list table inet sluice)",
    );
    chains(&lab)?;

    heading(
        "Endpoints change under traffic: web-2 is removed, web-3 is added (examples/endpoints-changed.yaml)",
    );
    change(&mut lab)?;
    table_head();
    row(&lab, "ClusterIP", "pod/client-1", "tcp://10.96.0.10:80", count)?;
    row(&lab, "NodePort on node-b", "client", "tcp://192.168.77.12:30080", count)?;

    heading(
        "kill -9 of sluice on node-a, and traffic continues; then sluice starts again and finds nothing \
         to change",
    );
    lab.kill_proxy(NODE)?;
    table_head();
    row(&lab, "ClusterIP, sluice dead", "pod/client-1", "tcp://10.96.0.10:80", count)?;
    lab.start_proxy(NODE, &json!({}))?;
    let adopted = await_sync(&mut lab, NODE, LIMIT, |sync| sync.kind == "full")?;
    println!("  adopted: {} operations in {:.2} ms", adopted.operations, adopted.seconds_from_event * 1e3);

    heading("nft flush ruleset on node-a: sluice restores the rules");
    flush(&mut lab)?;
    println!("\nNext: README.md says how to run sluice against a cluster; cargo xtask test runs all tests.");
    Ok(())
}

fn topology() -> Result<Topology> {
    Ok(serde_json::from_value(json!({
        "nodes": {"node-a": {"zone": "z1"}, "node-b": {"zone": "z2"}},
        "pods": {
            "client-1": {"node": "node-a", "ip": "10.244.1.20", "ip6": "fd00:10:244:1::20"},
            "web-1": {"node": "node-a", "ip": "10.244.1.11", "ip6": "fd00:10:244:1::11"},
            "web-2": {"node": "node-b", "ip": "10.244.2.11", "ip6": "fd00:10:244:2::11"},
            "web-3": {"node": "node-b", "ip": "10.244.2.12", "ip6": "fd00:10:244:2::12"},
        },
    }))?)
}

fn example(name: &str) -> Result<String> {
    let path = machine::root().join("examples").join(name);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn heading(text: &str) {
    println!("\n== {text}");
}

fn table_head() {
    println!("  {:<26} {:<13} {:<26} {:<34} source seen", "what", "from", "to", "answered by");
}

fn probe(lab: &Lab, from: &str, to: &str, count: usize) -> Result<Vec<Outcome>> {
    let from: From = from.parse().map_err(anyhow::Error::msg)?;
    let dest: Target = to.parse().map_err(anyhow::Error::msg)?;
    let request =
        ProbeRequest { dests: vec![dest], count, interval_ms: 0, parallel: false, stop_at_failure: false };
    Ok(lab.probe(&from, request, None)?.into_iter().map(|attempt| attempt.outcome).collect())
}

/// Prints who answered how often, and which addresses the endpoints saw.
fn row(lab: &Lab, what: &str, from: &str, to: &str, count: usize) -> Result<()> {
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    let mut sources: BTreeMap<String, usize> = BTreeMap::new();
    for outcome in probe(lab, from, to, count)? {
        let who = match &outcome {
            Outcome::Answer(answer) => {
                *sources.entry(answer.peer.to_string()).or_default() += 1;
                answer.pod.clone()
            }
            other => format!("{other:?}").to_lowercase(),
        };
        *answers.entry(who).or_default() += 1;
    }
    let counted: Vec<String> = answers.iter().map(|(who, times)| format!("{who} {times}")).collect();
    let seen: Vec<&str> = sources.keys().map(String::as_str).collect();
    println!("  {what:<26} {from:<13} {to:<26} {:<34} {}", counted.join(", "), seen.join(", "));
    Ok(())
}

fn await_service(lab: &mut Lab, from: &str, to: &str) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    while !matches!(probe(lab, from, to, 1)?.first(), Some(Outcome::Answer(_))) {
        lab.check_proxies()?;
        if Instant::now() > end {
            bail!("{to} does not answer:\n{:?}", lab.proxy_logs(20));
        }
    }
    Ok(())
}

fn plumbing(lab: &Lab) -> Result<()> {
    let line = "ip -br link show type vxlan; ip route show proto 92; bridge fdb show dev sluice-vxlan0; \
                ip -o link show type veth | grep -o 'alias .*'";
    let listed = lab.run(NODE, &["sh", "-c", line].map(str::to_owned))?.stdout;
    listed.lines().for_each(|line| println!("  {}", line.trim()));
    Ok(())
}

fn connections(lab: &Lab) -> Result<()> {
    for (protocol, destination) in [("tcp", "10.96.0.10"), ("tcp", "192.168.77.11")] {
        let argv = ["conntrack", "-L", "-p", protocol, "--orig-dst", destination].map(str::to_owned);
        let listed = lab.run(NODE, &argv)?.stdout;
        if let Some(line) = listed.lines().next() {
            println!("  {}", line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    Ok(())
}

fn chains(lab: &Lab) -> Result<()> {
    let argv = ["nft", "list", "table", "inet", "sluice"].map(str::to_owned);
    let listed = lab.run(NODE, &argv)?.stdout;
    let names: Vec<&str> =
        listed.lines().filter_map(|line| line.trim().strip_prefix("chain ")?.strip_suffix(" {")).collect();
    for some in names.chunks(7) {
        println!("  {}", some.join("  "));
    }
    Ok(())
}

fn change(lab: &mut Lab) -> Result<()> {
    let last = syncs(lab, NODE)?.last().map_or(0.0, |sync| sync.at);
    lab.apply(&example("endpoints-changed.yaml")?)?;
    let sync = await_sync(lab, NODE, LIMIT, |sync| sync.kind == "incremental" && sync.at > last)?;
    println!(
        "  {} operations, {:.3} ms from the object's arrival to the kernel's acknowledgement",
        sync.operations,
        sync.seconds_from_event * 1e3
    );
    Ok(())
}

fn flush(lab: &mut Lab) -> Result<()> {
    let flushed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    lab.run(NODE, &["nft", "flush", "ruleset"].map(str::to_owned))?;
    let sync = await_sync(lab, NODE, LIMIT, |sync| sync.kind == "repair" && sync.operations > 0)?;
    println!(
        "  {} operations, in place {:.1} ms after the flush was asked for",
        sync.operations,
        (sync.at - flushed) * 1e3
    );
    table_head();
    row(lab, "ClusterIP", "pod/client-1", "tcp://10.96.0.10:80", 20)
}
