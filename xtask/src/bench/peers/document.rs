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
            "{} was stopped at {} Services: {}\n",
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

/// How many times as much as ours each peer needs, as a table.
fn ratios(figures: &Figures) -> String {
    let proxies = figures.proxies();
    let Some((ours, peers)) = proxies.split_first() else { return String::new() };
    let mut text = format!(
        "A ratio is the median of kube-proxy divided by the median of {}:\n\
         2.0 means that kube-proxy needs twice as much.\n\n| what | Services | {} |\n|---|---|{}\n",
        name(ours),
        names(peers).join(" | "),
        "---|".repeat(peers.len())
    );
    for (metric, what) in [
        ("load_seconds", "full load, from the start of the process"),
        ("load_rules_seconds", "full load, the rules alone"),
        ("change_seconds", "one change"),
        ("memory_bytes", "resident memory after the changes"),
    ] {
        let ratio = |peer: &String, size| {
            let own = figures.spread(ours, size, metric)?;
            figures.spread(peer, size, metric).map(|other| format!("{:.1}", other.median / own.median))
        };
        for size in figures.sizes() {
            let row: Vec<Option<String>> = peers.iter().map(|peer| ratio(peer, size)).collect();
            if row.iter().any(Option::is_some) {
                let cells: Vec<&str> = row.iter().map(|cell| cell.as_deref().unwrap_or("–")).collect();
                let _ = writeln!(text, "| {what} | {size} | {} |", cells.join(" | "));
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
        "{} cores of {}, {:.0} GB, Linux {}; {} endpoints for each Service.\n\
         Figures are medians, with the lowest and the highest sample in brackets.\n",
        machine.cores,
        machine.cpu,
        machine.memory_bytes as f64 / 1e9,
        machine.kernel,
        figures.endpoints
    )
}

const HEAD: &str = "# Benchmarks

This page compares Sluice with the real kube-proxy vKUBERNETES: how long a full load and one change
take, how much memory a proxy needs, what traffic through a Service costs, and what a restart
interrupts. It is for those who decide between the two, and for developers who look for regressions.

Both proxies follow the same kube-apiserver on the same machine, in turns. The command below printed
every figure. With `--json FILE` it also writes every sample, and
`cargo xtask bench --from FILE --docs` generates this page from that file.

## How it is measured

- **Full load**: the API server holds all objects before the proxy starts. The measurement ends at
  the time that the proxy's own metric `kubeproxy_sync_proxy_rules_last_timestamp_seconds` for IPv4
  shows. After that, the proxy's Service must answer.
- **One change**: the endpoint of one Service among all others is replaced. The clock starts before
  the request is sent to the API. A client in a pod opens a connection every half millisecond. The
  clock stops at the first connection that the new endpoint answers. So the time includes the API
  server's own work.
- **Memory**: VmRSS and VmHWM of the process.
- **Traffic**: a client pod and a server pod on one node. In the same turn, each load also runs
  straight to the pod. Loads through a node port, in runs that have them, come from a client outside
  the node (another network namespace).
  - New connections: two at a time, closed by the server at once.
  - Requests: 64 bytes in each direction.
  - Throughput: one connection.
- **Restart**: SIGKILL and a new start, while two clients open a connection every millisecond.
";

fn head(kubernetes: &str) -> String {
    HEAD.replace("KUBERNETES", kubernetes)
}

/// Writes `docs/benchmarks.md` and its plots.
pub(super) fn write(figures: &Figures) -> Result<()> {
    let docs = root().join("docs");
    let head = head(&figures.kubernetes);
    let mut text = format!("{head}\n## This run\n\n```\n{}\n```\n\n{}\n", figures.command, machine(figures));
    for (file, heading) in plot::write(figures, &docs.join("benchmarks"))? {
        let _ = writeln!(text, "![{heading}](benchmarks/{file})\n");
    }
    text += &format!("## Ratios\n\n{}\n## Tables\n\n{}", ratios(figures), tables(figures));
    let path = docs.join("benchmarks.md");
    std::fs::write(&path, text.trim_end().to_owned() + "\n")
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::peers::figures::Machine;

    #[test]
    fn the_page_begins_with_todays_text() {
        let page = std::fs::read_to_string(root().join("docs/benchmarks.md")).unwrap();
        let (_, rest) = page.split_once("kube-proxy v").unwrap();
        let (version, _) = rest.split_once(':').unwrap();
        assert!(page.starts_with(&head(version)), "docs/benchmarks.md is of another text than HEAD");
    }

    #[test]
    fn ratios_divide_the_peers_medians_by_ours() {
        let machine = Machine { cpu: "any".to_owned(), cores: 2, memory_bytes: 1, kernel: "6.1".to_owned() };
        let mut figures = Figures {
            machine,
            command: "cargo xtask bench".to_owned(),
            kubernetes: "1.36.3".to_owned(),
            endpoints: 10,
            results: std::collections::BTreeMap::new(),
            given_up: Vec::new(),
        };
        for (proxy, samples) in [("nftables", [1.0, 2.0, 9.0]), ("kube-proxy-nftables", [5.0, 6.0, 7.0])] {
            samples.iter().for_each(|sample| figures.add(proxy, 1000, "change_seconds", *sample));
        }
        figures.add("kube-proxy-iptables", 10, "load_seconds", 1.0);
        let text = ratios(&figures);
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ")).collect();
        let head = "| what | Services | kube-proxy nftables | kube-proxy iptables |";
        assert_eq!(rows, [head, "| one change | 1000 | 3.0 | – |"]);
    }
}
