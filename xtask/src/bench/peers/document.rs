//! What the benchmark prints at its end, and `docs/benchmarks.md`.

use std::fmt::Write;

use anyhow::{Context, Result};

use super::figures::{Figures, Spread};
use super::plot;
use crate::machine::root;

/// How a figure is written.
#[derive(Debug, Clone, Copy)]
enum Unit {
    Seconds,
    Bytes,
    PerSecond,
    BytesPerSecond,
    Count,
}

/// Metric, its heading, its unit.
const TABLES: [(&str, &str, Unit); 26] = [
    ("load_seconds", "Full load: start of the process to everything in place", Unit::Seconds),
    (
        "load_rules_seconds",
        "Full load, the rules alone (sync_full_proxy_rules_duration_seconds)",
        Unit::Seconds,
    ),
    ("change_seconds", "One change: request to the API until the new endpoint answers", Unit::Seconds),
    ("memory_after_load_bytes", "Resident memory after the load", Unit::Bytes),
    ("memory_bytes", "Resident memory after the changes", Unit::Bytes),
    ("memory_peak_bytes", "Resident memory at its highest", Unit::Bytes),
    ("connections_per_second_service", "New connections through the ClusterIP", Unit::PerSecond),
    ("connections_per_second_direct", "New connections straight to the pod", Unit::PerSecond),
    ("connections_p50_seconds_service", "A new connection through the ClusterIP, median", Unit::Seconds),
    ("connections_p50_seconds_direct", "A new connection straight to the pod, median", Unit::Seconds),
    ("connections_p99_seconds_service", "A new connection through the ClusterIP, p99", Unit::Seconds),
    ("connections_p99_seconds_direct", "A new connection straight to the pod, p99", Unit::Seconds),
    (
        "connections_per_second_node_port",
        "New connections through a node port, from outside",
        Unit::PerSecond,
    ),
    (
        "connections_per_second_outside_direct",
        "New connections straight to the pod, from outside",
        Unit::PerSecond,
    ),
    (
        "connections_p50_seconds_node_port",
        "A new connection through a node port, from outside, median",
        Unit::Seconds,
    ),
    ("connections_failed_node_port", "Failed connections during the loads through a node port", Unit::Count),
    (
        "requests_p50_seconds_service",
        "A request in an open connection through the ClusterIP, median",
        Unit::Seconds,
    ),
    (
        "requests_p50_seconds_direct",
        "A request in an open connection straight to the pod, median",
        Unit::Seconds,
    ),
    (
        "requests_p99_seconds_service",
        "A request in an open connection through the ClusterIP, p99",
        Unit::Seconds,
    ),
    (
        "requests_p99_seconds_direct",
        "A request in an open connection straight to the pod, p99",
        Unit::Seconds,
    ),
    ("stream_per_second_service", "Throughput of one connection through the ClusterIP", Unit::BytesPerSecond),
    ("stream_per_second_direct", "Throughput of one connection straight to the pod", Unit::BytesPerSecond),
    ("connections_failed_service", "Failed connections during the loads through the ClusterIP", Unit::Count),
    ("restart_seconds", "Restart after SIGKILL: start of the process to its first sync", Unit::Seconds),
    ("restart_failed_connections", "Connections that failed during the restart", Unit::Count),
    ("restart_connections", "Connections that succeeded during the restart", Unit::Count),
];

impl Unit {
    fn text(self, value: f64) -> String {
        match self {
            Unit::Seconds if value >= 1.0 => format!("{value:.2} s"),
            Unit::Seconds if value >= 1e-3 => format!("{:.2} ms", value * 1e3),
            Unit::Seconds => format!("{:.1} µs", value * 1e6),
            Unit::Bytes => format!("{:.1} MB", value / 1e6),
            Unit::PerSecond => format!("{value:.0}/s"),
            Unit::BytesPerSecond => format!("{:.2} GB/s", value / 1e9),
            Unit::Count => format!("{value:.0}"),
        }
    }

    fn cell(self, spread: Option<Spread>) -> String {
        spread.map_or_else(
            || "–".to_owned(),
            |spread| {
                let Spread { median, min, max } = spread;
                format!("{} ({} to {})", self.text(median), self.text(min), self.text(max))
            },
        )
    }
}

/// The tables, as Markdown.
fn tables(figures: &Figures) -> String {
    let mut text = String::new();
    let proxies = figures.proxies();
    for (metric, heading, unit) in TABLES {
        let rows: Vec<usize> = figures
            .sizes()
            .into_iter()
            .filter(|size| proxies.iter().any(|proxy| figures.spread(proxy, *size, metric).is_some()))
            .collect();
        if rows.is_empty() {
            continue;
        }
        // Writing into a String cannot fail.
        let _ = writeln!(text, "### {heading}\n\n| Services | {} |", names(&proxies).join(" | "));
        let _ = writeln!(text, "|---|{}", "---|".repeat(proxies.len()));
        for size in rows {
            let cells: Vec<String> =
                proxies.iter().map(|proxy| unit.cell(figures.spread(proxy, size, metric))).collect();
            let _ = writeln!(text, "| {size} | {} |", cells.join(" | "));
        }
        text.push('\n');
    }
    for given_up in &figures.given_up {
        let _ = writeln!(
            text,
            "{} was given up on at {} services: {}\n",
            name(&given_up.proxy),
            given_up.services,
            given_up.reason.lines().next().unwrap_or_default()
        );
    }
    text
}

/// What a proxy is called in tables and plots.
pub(super) fn name(proxy: &str) -> String {
    if proxy.starts_with("kube-proxy") {
        proxy.replacen("kube-proxy-", "kube-proxy ", 1)
    } else {
        format!("sluice {proxy}")
    }
}

fn names(proxies: &[String]) -> Vec<String> {
    proxies.iter().map(|proxy| name(proxy)).collect()
}

/// How many times less than each peer ours needs, by number of Services.
fn ratios(figures: &Figures) -> String {
    let mut text = String::new();
    let proxies = figures.proxies();
    let Some((ours, peers)) = proxies.split_first() else { return text };
    for (metric, what) in [
        ("load_seconds", "full load, from the start of the process"),
        ("load_rules_seconds", "full load, the rules alone"),
        ("change_seconds", "one change"),
        ("memory_bytes", "resident memory"),
    ] {
        for size in figures.sizes() {
            for peer in peers {
                let (own, other) = (figures.spread(ours, size, metric), figures.spread(peer, size, metric));
                if let (Some(own), Some(other)) = (own, other) {
                    let factor = other.median / own.median;
                    let _ = writeln!(
                        text,
                        "- {size} services, {what}: {} needs {factor:.1} times as much as {}",
                        name(peer),
                        name(ours)
                    );
                }
            }
        }
    }
    text
}

/// Everything as text.
pub(super) fn summary(figures: &Figures) -> String {
    format!("\n{}\n{}{}", machine(figures), tables(figures), ratios(figures))
}

fn machine(figures: &Figures) -> String {
    let machine = &figures.machine;
    format!(
        "{} cores of {}, {:.0} GB, Linux {}; {} endpoints each. Medians, with the lowest and the highest sample.\n",
        machine.cores,
        machine.cpu,
        machine.memory_bytes as f64 / 1e9,
        machine.kernel,
        figures.endpoints
    )
}

const HEAD: &str = "# Benchmarks

Sluice and the real kube-proxy vKUBERNETES follow the same kube-apiserver on the same machine, in turns. Every figure
below was printed by the command that is named; its `--json FILE` has every sample, and `cargo xtask bench --from FILE --docs` makes this
page of it.

How it is measured:

- **Full load**: the API server holds everything before the proxy starts. The end is the proxy's own
  `kubeproxy_sync_proxy_rules_last_timestamp_seconds` for IPv4, after which its Service must answer.
- **One change**: the endpoint of a Service among all others is replaced. The clock starts before the request to the API is
  sent; a client in a pod opens a connection every half millisecond; the clock stops at the first one that the new
  endpoint answers. So it includes the API server's own work.
- **Memory**: VmRSS and VmHWM of the process.
- **Traffic**: a client pod and a server pod on one node; each load is also run straight to the pod, in the same turn; the
  client of the node port is another machine (namespace). New
  connections: two at a time, closed by the server at once. Requests: 64 bytes to and fro. Throughput: one connection.
- **Restart**: SIGKILL and a new start while two clients open a connection every millisecond.
";

/// Writes `docs/benchmarks.md` and its plots.
pub(super) fn write(figures: &Figures) -> Result<()> {
    let docs = root().join("docs");
    let head = HEAD.replace("KUBERNETES", &figures.kubernetes);
    let mut text = format!("{head}\n## This run\n\n```\n{}\n```\n\n{}\n", figures.command, machine(figures));
    for (file, heading) in plot::write(figures, &docs.join("benchmarks"))? {
        let _ = writeln!(text, "![{heading}](benchmarks/{file})\n");
    }
    text += &format!("## Ratios\n\n{}\n## Tables\n\n{}", ratios(figures), tables(figures));
    let path = docs.join("benchmarks.md");
    std::fs::write(&path, text.trim_end().to_owned() + "\n")
        .with_context(|| format!("cannot write {}", path.display()))
}
