//! How long a change of one Service takes while another one, as large as its budget allows, is
//! in work: added, its endpoints exchanged, removed. The real daemon reads manifests in a lab.
//!
//! A change counts from the moment its file is in place until the daemon counts it as programmed
//! (`kubeproxy_network_programming_duration_seconds`, after the kernel's acknowledgement).

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_tests::lab::{Lab, LabOptions};
use sluice_tests::proxy::ProxyProgram;
use sluice_tests::topology::Topology;

use crate::bench::scale::write_services;
use crate::machine;
use crate::passes::{Sync, await_sync, get, metric, syncs};

/// Arguments of `bench tenants`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Backends to measure: nftables, ebpf
    #[arg(long, num_args = 1.., default_values = ["nftables", "ebpf"])]
    proxy: Vec<String>,
    /// Ports of the large Service
    #[arg(long, default_value_t = 1_000)]
    ports: usize,
    /// Addresses of the large Service: its ClusterIP and external IPs
    #[arg(long, default_value_t = 10)]
    addresses: usize,
    /// Endpoints of the large Service, each with all ports
    #[arg(long, default_value_t = 240)]
    endpoints: usize,
    /// Services of others
    #[arg(long, default_value_t = 1_000)]
    services: usize,
    /// Number of times the large Service is added, changed and removed
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

const NODE: &str = "node-a";
/// Endpoints of one EndpointSlice, as the controller of Kubernetes makes them.
const IN_SLICE: usize = 100;
/// Ports of one EndpointSlice, as the API permits.
const PORTS: usize = 100;
const PROGRAMMED: &str = "kubeproxy_network_programming_duration_seconds_count";
const SERVICES: &str = "sluice_services";
/// So long a change of the small Service may take until the measurement fails.
const LIMIT: Duration = Duration::from_secs(120);

/// Measures and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    machine::prepare()?;
    let programs = machine::build()?;
    println!(
        "changes of a small Service beside one of {} ports, {} addresses and {} endpoints, and {} others",
        arguments.ports, arguments.addresses, arguments.endpoints, arguments.services
    );
    println!("{:>9} {:>16} {:>8} {:>11} {:>11}", "mode", "large Service", "changes", "median [s]", "max [s]");
    for proxy in &arguments.proxy {
        let (times, longest) = measure(&programs, arguments, proxy)?;
        for (what, mut times) in times {
            times.sort_unstable();
            let (median, max) = (times[times.len() / 2], times[times.len() - 1]);
            let (median, max) = (median.as_secs_f64(), max.as_secs_f64());
            println!("{proxy:>9} {what:>16} {:>8} {median:>11.3} {max:>11.3}", times.len());
        }
        println!("longest pass: {:.3} s, {} operations", longest.seconds, longest.operations);
    }
    Ok(())
}

/// What is done to the large Service, and how long changes of the small one took meanwhile.
type Times = Vec<(&'static str, Vec<Duration>)>;

fn measure(programs: &machine::Programs, arguments: &Arguments, proxy: &str) -> Result<(Times, Sync)> {
    let topology: Topology = serde_json::from_value(json!({"nodes": {NODE: {}}, "pods": {}}))?;
    let proxy = ProxyProgram::sluice(&programs.sluice, proxy)?;
    let mut lab = Lab::create(&topology, LabOptions::new(programs.conformance.clone(), proxy))?;
    let directory = lab.dir().join("manifests");
    write_services(&directory, arguments.services, 2)?;
    write(&directory, "small.yaml", &service_yaml("small", "10.200.0.1", 1, 0))?;
    lab.start_proxy(NODE, &json!({}))?;
    await_sync(&mut lab, NODE, Duration::from_secs(60), |sync| sync.kind == "full")?;
    let mut small = Small { directory: directory.clone(), changes: 0 };
    let quiet = (0..20).map(|_| small.change(&mut lab)).collect::<Result<Vec<_>>>()?;
    let mut times: Times =
        vec![("absent", quiet), ("added", vec![]), ("changed", vec![]), ("removed", vec![])];
    let before = services(&lab)?;
    for round in 0..arguments.rounds {
        let first = 2 * round * arguments.endpoints;
        write_slices(&directory, arguments, first)?;
        let ports = service_yaml("large", "10.201.0.1", arguments.ports, arguments.addresses - 1);
        write(&directory, "large.yaml", &ports)?;
        times[1].1.extend(small.change_until(&mut lab, |lab| Ok(services(lab)? > before))?);
        write_slices(&directory, arguments, first + arguments.endpoints)?;
        times[2].1.extend(small.change_for(&mut lab, Duration::from_secs(8))?);
        std::fs::remove_file(directory.join("large.yaml"))?;
        times[3].1.extend(small.change_until(&mut lab, |lab| Ok(services(lab)? == before))?);
    }
    let longest = syncs(&lab, NODE)?.into_iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds));
    Ok((times, longest.context("no pass is known")?))
}

/// The Services in force.
fn services(lab: &Lab) -> Result<usize> {
    Ok(metric(&get(lab, NODE, "/metrics")?, SERVICES).unwrap_or_default() as usize)
}

/// The Service that others must not stop.
struct Small {
    directory: std::path::PathBuf,
    changes: usize,
}

impl Small {
    /// Exchanges its endpoint. Returns how long that took.
    fn change(&mut self, lab: &mut Lab) -> Result<Duration> {
        let programmed = |lab: &Lab| Ok::<_, anyhow::Error>(metric(&get(lab, NODE, "/metrics")?, PROGRAMMED));
        let before = programmed(lab)?;
        self.changes += 1;
        let endpoint = format!("10.202.0.{}", 1 + self.changes % 2);
        let text = slice_yaml("small", 0, 0..1, &[endpoint], Some(&jiff::Timestamp::now().to_string()));
        let begun = Instant::now();
        write(&self.directory, "small-slice.yaml", &text)?;
        while programmed(lab)? == before {
            lab.check_proxies()?;
            ensure!(begun.elapsed() < LIMIT, "a change of the small Service is not in force after {LIMIT:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(begun.elapsed())
    }

    /// Changes it until something is so, and once more.
    fn change_until(
        &mut self,
        lab: &mut Lab,
        mut is: impl FnMut(&Lab) -> Result<bool>,
    ) -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        while !is(lab)? {
            times.push(self.change(lab)?);
        }
        times.push(self.change(lab)?);
        Ok(times)
    }

    fn change_for(&mut self, lab: &mut Lab, time: Duration) -> Result<Vec<Duration>> {
        let end = Instant::now() + time;
        self.change_until(lab, |_| Ok(Instant::now() > end))
    }
}

/// All slices of the large Service: groups of ports times groups of endpoints, a file for each.
fn write_slices(directory: &Path, arguments: &Arguments, first: usize) -> Result<()> {
    let address = |n: usize| format!("10.{}.{}.{}", 210 + n / 62_500, n / 250 % 250, n % 250 + 1);
    let endpoints: Vec<String> = (first..first + arguments.endpoints).map(address).collect();
    for port in (0..arguments.ports).step_by(PORTS) {
        for (number, some) in endpoints.chunks(IN_SLICE).enumerate() {
            let ports = port..arguments.ports.min(port + PORTS);
            let number = port / PORTS * 10_000 + number;
            write(
                directory,
                &format!("large-{number}.yaml"),
                &slice_yaml("large", number, ports, some, None),
            )?;
        }
    }
    Ok(())
}

fn write(directory: &Path, name: &str, text: &str) -> Result<()> {
    let hidden = directory.join(format!(".{name}"));
    std::fs::write(&hidden, text)?;
    std::fs::rename(hidden, directory.join(name))?;
    Ok(())
}

fn service_yaml(name: &str, ip: &str, ports: usize, external: usize) -> String {
    let external: Vec<String> = (1..=external).map(|n| format!("198.51.100.{n}")).collect();
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: bench}}\n\
         spec:\n  type: ClusterIP\n  clusterIP: {ip}\n  clusterIPs: [{ip}]\n  \
         externalIPs: [{}]\n  ports:\n",
        external.join(", ")
    );
    for port in 0..ports {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "  - {{name: p{port}, port: {}, protocol: TCP}}", 1_000 + port);
    }
    text
}

fn slice_yaml(
    service: &str,
    number: usize,
    ports: std::ops::Range<usize>,
    endpoints: &[String],
    changed: Option<&str>,
) -> String {
    let annotations = changed
        .map(|time| {
            format!(", annotations: {{endpoints.kubernetes.io/last-change-trigger-time: \"{time}\"}}")
        })
        .unwrap_or_default();
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {service}-{number}, namespace: bench, \
         labels: {{kubernetes.io/service-name: {service}}}{annotations}}}\naddressType: IPv4\nports:\n"
    );
    for port in ports {
        let _ = writeln!(text, "- {{name: p{port}, port: {}, protocol: TCP}}", 1_000 + port);
    }
    text.push_str("endpoints:\n");
    for endpoint in endpoints {
        let _ = writeln!(text, "- {{addresses: [{endpoint}], conditions: {{ready: true}}}}");
    }
    text
}
