//! How cost grows with the number of services: the real daemon, on manifests, in a node of a lab.
//!
//! All times are the daemon's own, from /debug/syncs: of the load, from the last object read to the
//! kernel's acknowledgement; of a change, from the object's arrival at the index to the kernel's
//! acknowledgement.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::json;
use sluice_sys::bpf::{Directory, View};
use sluice_tests::lab::{Lab, LabOptions};
use sluice_tests::proxy::ProxyProgram;
use sluice_tests::target::From;
use sluice_tests::topology::Topology;

use crate::machine;
use crate::passes::{await_sync, get, metric, syncs};

/// Arguments of `bench scale`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Backend: nftables or ebpf
    #[arg(long, default_value = "nftables")]
    proxy: String,
    /// Numbers of Services, comma-separated
    #[arg(long, value_delimiter = ',', default_value = "10000")]
    services: Vec<usize>,
    /// Endpoints of each Service
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    /// Number of changes to measure
    #[arg(long, default_value_t = 300)]
    changes: usize,
    /// File to write the figures to, as JSON: one object, or a list of objects for several numbers
    /// of Services
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Figures {
    services: usize,
    endpoints: usize,
    load_seconds: f64,
    change_seconds_median: f64,
    change_seconds_p99: f64,
    rss_bytes: u64,
    kernel_elements: usize,
    /// Of eBPF maps; the kernel does not tell that of nf_tables.
    kernel_bytes: Option<u64>,
}

/// Services whose slices stand in files of their own, so that one change rewrites one small file.
const CHANGED: usize = 50;
const PER_FILE: usize = 200;
const NODE: &str = "node-a";

/// Measures and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    machine::prepare()?;
    let programs = machine::build()?;
    let mut all = Vec::new();
    println!(
        "{:>9} {:>9} {:>12} {:>14} {:>12} {:>10} {:>16} {:>10}",
        "services",
        "endpoints",
        "load [s]",
        "change p50 [s]",
        "p99 [s]",
        "RSS [MB]",
        "kernel elements",
        "maps [MB]"
    );
    for services in &arguments.services {
        let figures = measure(&programs, arguments, *services)?;
        println!(
            "{:>9} {:>9} {:>12.3} {:>14.6} {:>12.6} {:>10.1} {:>16} {:>10}",
            figures.services,
            figures.endpoints,
            figures.load_seconds,
            figures.change_seconds_median,
            figures.change_seconds_p99,
            figures.rss_bytes as f64 / 1e6,
            figures.kernel_elements,
            figures.kernel_bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{:.1}", bytes as f64 / 1e6))
        );
        all.push(figures);
    }
    if let Some(file) = &arguments.json {
        let text = match &all[..] {
            [one] => serde_json::to_string_pretty(one)?,
            several => serde_json::to_string_pretty(several)?,
        };
        std::fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

fn measure(programs: &machine::Programs, arguments: &Arguments, services: usize) -> Result<Figures> {
    let (endpoints, changes) = (arguments.endpoints, arguments.changes);
    let topology: Topology = serde_json::from_value(json!({"nodes": {NODE: {}}, "pods": {}}))?;
    let proxy = ProxyProgram::sluice(&programs.sluice, &arguments.proxy)?;
    let options = LabOptions::new(programs.conformance.clone(), proxy);
    let mut lab = Lab::create(&topology, options)?;
    let directory = lab.dir().join("manifests");
    write_services(&directory, services, endpoints)?;
    lab.start_proxy(NODE, &json!({}))?;
    let load = await_sync(&mut lab, NODE, Duration::from_secs(600), |sync| sync.kind == "full")?;
    let loaded_at = load.at;
    let mut last = loaded_at;
    for round in 0..changes {
        let service = round % CHANGED.min(services);
        let extra = (round / CHANGED.min(services)).is_multiple_of(2);
        write_slice_file(&directory, service, endpoints + usize::from(extra))?;
        let sync = await_sync(&mut lab, NODE, Duration::from_secs(10), |sync| {
            sync.kind == "incremental" && sync.at > last
        })?;
        last = sync.at;
    }
    let mut times: Vec<f64> = syncs(&lab, NODE)?
        .into_iter()
        .filter(|sync| sync.kind == "incremental" && sync.at > loaded_at)
        .map(|sync| sync.seconds_from_event)
        .collect();
    if times.len() < changes {
        bail!("{} of {changes} changes were seen", times.len());
    }
    times.sort_by(f64::total_cmp);
    let (kernel_elements, kernel_bytes) = match arguments.proxy.as_str() {
        "ebpf" => map_entries(&lab).map(|(entries, bytes)| (entries, Some(bytes)))?,
        _ => (kernel_elements(&lab)?, None),
    };
    Ok(Figures {
        services,
        endpoints,
        load_seconds: load.seconds_from_event,
        change_seconds_median: times[times.len() / 2],
        change_seconds_p99: times[times.len() * 99 / 100],
        rss_bytes: resident(&lab)?,
        kernel_elements,
        kernel_bytes,
    })
}

fn resident(lab: &Lab) -> Result<u64> {
    let bytes = metric(&get(lab, NODE, "/metrics")?, "process_resident_memory_bytes");
    Ok(bytes.context("no process_resident_memory_bytes among the metrics")? as u64)
}

/// Counts the elements that the kernel holds.
fn kernel_elements(lab: &Lab) -> Result<usize> {
    let namespace = lab.namespace(&From::Host(NODE.to_owned()));
    let path = Path::new(sluice_tests::process::NETNS_DIR).join(namespace.name());
    let counting = std::thread::spawn(move || -> Result<usize> {
        let file = std::fs::File::open(path)?;
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
        let observed =
            sluice_sys::nft::observe(&mut sluice_sys::nft::Nft::open()?, &sluice_core::nft::TABLE)?;
        Ok(observed.context("the table is gone")?.elements.len())
    });
    counting.join().map_err(|_| anyhow::anyhow!("counting panicked"))?
}

/// Entries and memory of the pinned maps.
fn map_entries(lab: &Lab) -> Result<(usize, u64)> {
    let view = View::open(&Directory::new(lab.bpffs(NODE)))?;
    let mut total = (0, 0);
    for map in view.maps.all() {
        total.1 += map.memory()?;
        // What the daemon writes; flows are none of it.
        if map.spec().grows() {
            total.0 += map.usage()?.entries;
        }
    }
    Ok(total)
}

pub(super) fn write_services(directory: &Path, services: usize, endpoints: usize) -> Result<()> {
    for service in 0..CHANGED.min(services) {
        write_slice_file(directory, service, endpoints)?;
    }
    for first in (0..services).step_by(PER_FILE) {
        let mut text = String::new();
        for service in first..services.min(first + PER_FILE) {
            write!(text, "{}", service_yaml(service))?;
            if service >= CHANGED {
                write!(text, "{}", slice_yaml(service, endpoints))?;
            }
        }
        std::fs::write(directory.join(format!("bench-{first:06}.yaml")), text)?;
    }
    Ok(())
}

fn write_slice_file(directory: &Path, service: usize, endpoints: usize) -> Result<()> {
    let hidden = directory.join(format!(".slice-{service}"));
    std::fs::write(&hidden, slice_yaml(service, endpoints))?;
    std::fs::rename(hidden, directory.join(format!("slice-{service}.yaml")))?;
    Ok(())
}

/// The ClusterIP of a service.
pub(super) fn cluster_ip(service: usize) -> String {
    format!("10.{}.{}.{}", 97 + service / 62_500, service / 250 % 250, service % 250 + 1)
}

fn service_yaml(service: usize) -> String {
    let ip = cluster_ip(service);
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: svc-{service}, namespace: bench}}\n\
         spec:\n  type: ClusterIP\n  clusterIP: {ip}\n  clusterIPs: [{ip}]\n  \
         ports: [{{name: http, port: 80, targetPort: 8080, protocol: TCP}}]\n"
    )
}

fn slice_yaml(service: usize, endpoints: usize) -> String {
    let mut text = format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: svc-{service}-4, namespace: bench, labels: {{kubernetes.io/service-name: svc-{service}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 8080, protocol: TCP}}]\nendpoints:\n"
    );
    for endpoint in 0..endpoints {
        let n = service * 16 + endpoint;
        let ip = format!("10.{}.{}.{}", 128 + n / 62_500, n / 250 % 250, n % 250 + 1);
        // Writing into a String cannot fail.
        let _ = writeln!(
            text,
            "- {{addresses: [{ip}], conditions: {{ready: true}}, nodeName: node-{}}}",
            n % 100
        );
    }
    text
}
