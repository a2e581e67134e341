//! The metrics page against that of kube-proxy.
//!
//! `metrics.txt` says what kube-proxy's page holds. It cannot rot: where there is a kube-proxy, it
//! is run and its page is compared with the table; and ours is compared with the table always.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use sluice::observe::metrics::{Metrics, family_label};
use sluice_core::net::Family;

use crate::daemons::{Proxy, cluster, in_namespace, page, slice};
use crate::fake_api::ObjectWriter;
use crate::kube_proxy::kube_proxy;

/// Type, label names and bucket bounds of a metric.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Shape {
    kind: String,
    labels: BTreeSet<String>,
    buckets: Vec<String>,
}

type Shapes = BTreeMap<String, Shape>;

/// Whose metrics are compared.
const COMPARED: [&str; 5] = [
    "kubeproxy_",
    "kubernetes_build_info",
    "rest_client_requests_total",
    "rest_client_request_duration_seconds",
    "process_",
];

/// Reads a page of the text format.
fn shapes(page: &str) -> Shapes {
    let mut shapes = Shapes::new();
    for line in page.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            shapes.entry(name.to_owned()).or_default().kind = kind.to_owned();
        }
    }
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (sample, labels) =
            line.split_once('{').unwrap_or((line.split(' ').next().unwrap_or_default(), ""));
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| sample.strip_suffix(suffix));
        let base = base.filter(|base| shapes.get(*base).is_some_and(|shape| shape.kind == "histogram"));
        let Some(shape) = shapes.get_mut(base.unwrap_or(sample)) else { continue };
        for label in labels.rsplit_once('}').map_or("", |(labels, _)| labels).split("\",") {
            let Some((name, value)) = label.split_once("=\"") else { continue };
            let bound = if name == "le" { value.trim_end_matches('"').parse::<f64>().ok() } else { None };
            match bound.map(|bound| bound.to_string()) {
                Some(bound) if shape.buckets.contains(&bound) => {}
                Some(bound) => shape.buckets.push(bound),
                None => drop(shape.labels.insert(name.to_owned())),
            }
        }
    }
    // What is declared and has no sample cannot be compared.
    let sampled = |name: &String| page.lines().any(|line| line.starts_with(name.as_str()));
    shapes.retain(|name, _| COMPARED.iter().any(|prefix| name.starts_with(prefix)) && sampled(name));
    shapes
}

/// The table: shapes, and when each is on the page: `always`, on `failure`, in another `mode`, or
/// from `1.38` on.
fn table() -> BTreeMap<String, (Shape, String)> {
    let rows = include_str!("metrics.txt").lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let row = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let list = |text: &str| text.split(',').filter(|part| *part != "-").map(str::to_owned).collect();
        let labels: Vec<String> = list(columns[3]);
        let labels = labels.into_iter().collect();
        let shape = Shape { kind: columns[2].into(), labels, buckets: list(columns[4]) };
        (columns[0].to_owned(), (shape, columns[1].to_owned()))
    };
    rows.map(row).collect()
}

fn expected(when: &[&str]) -> Shapes {
    let rows = table().into_iter().filter(|(_, (_, at))| when.contains(&at.as_str()));
    rows.map(|(name, (shape, _))| (name, shape)).collect()
}

/// Both as rows of the table, so that the difference can be read and copied.
fn assert_same(found: &Shapes, wanted: &Shapes, log: &str) {
    let mut difference = String::new();
    for name in found.keys().chain(wanted.keys()).collect::<BTreeSet<_>>() {
        if found.get(name) != wanted.get(name) {
            for (side, shape) in [("found ", found.get(name)), ("wanted", wanted.get(name))] {
                let row = shape.map(|shape| {
                    let list = |parts: Vec<&str>| if parts.is_empty() { "-".into() } else { parts.join(",") };
                    let labels = list(shape.labels.iter().map(String::as_str).collect());
                    let buckets = list(shape.buckets.iter().map(String::as_str).collect());
                    format!("{} {labels} {buckets}", shape.kind)
                });
                let _ = writeln!(difference, "{side} {name} {}", row.unwrap_or_else(|| "(none)".into()));
            }
        }
    }
    assert!(difference.is_empty(), "{difference}\n{log}");
}

/// Runs a proxy through all that leaves a trace on its page.
async fn page_of(program: Option<&Path>, arguments: &[&str]) -> (String, String) {
    let api = cluster().await;
    let proxy = match program {
        Some(program) => Proxy::spawn(program, arguments, &api),
        None => Proxy::sluice(arguments, &api),
    };
    let wait = || tokio::time::sleep(Duration::from_millis(200));
    let mut text = String::new();
    // Some have no sample before a busy machine has got round to it.
    let wanted = expected(&["always"]).len();
    for round in 0..300 {
        wait().await;
        // Endpoints that come and go: syncs, latencies and flows to look for.
        api.put(slice(&format!("10.0.0.{}", 1 + round % 200)));
        let answers = [page("127.0.0.1:10256", "/healthz").await, page("127.0.0.1:10256", "/livez").await];
        text = page("127.0.0.1:10249", "/metrics").await.unwrap_or_default();
        if answers.iter().all(Option::is_some) && shapes(&text).len() >= wanted && round > 25 {
            break;
        }
    }
    assert!(text.contains("kubeproxy_network_programming"), "no metrics: {text}\n{}", proxy.log());
    (text, proxy.log())
}

#[test]
fn the_table_agrees_with_a_real_kube_proxy() {
    let Some(program) = kube_proxy() else { return };
    in_namespace(move || async move {
        let arguments = [
            "--proxy-mode=nftables",
            "--conntrack-max-per-core=0",
            "--conntrack-min=0",
            "--cluster-cidr=10.0.0.0/8",
        ];
        let (text, log) = page_of(Some(&program), &arguments).await;
        assert_same(&shapes(&text), &expected(&["always"]), &log);
    });
}

#[test]
fn our_page_holds_what_kube_proxys_does() {
    in_namespace(|| async {
        let (text, log) = page_of(None, &[]).await;
        assert!(text.contains("# TYPE sluice_services gauge\nsluice_services 1\n"), "{text}\n{log}");
        assert_same(&shapes(&text), &expected(&["always", "1.38"]), &log);
    });
}

#[test]
fn failures_are_shown_as_kube_proxy_shows_them() {
    let metrics = Metrics::default();
    for family in Family::BOTH {
        metrics.sync_failures.get_or_create(&family_label(family)).inc();
        metrics.cleanup_failures.get_or_create(&family_label(family)).inc();
    }
    let mut found = shapes(&metrics.page());
    let wanted = expected(&["failure"]);
    found.retain(|name, _| wanted.contains_key(name));
    assert_same(&found, &wanted, "");
}

const DOCUMENT: &str = include_str!("../../../docs/metrics.md");

/// All metrics of the daemon, counters without their `_total`. A metric without a value yet is not
/// on the page, so the names are taken from where they stand.
fn known() -> BTreeSet<String> {
    let literals =
        include_str!("../../src/observe/metrics.rs").split('"').filter(|text| text.starts_with("sluice_"));
    let names = table().into_keys().map(|name| name.trim_end_matches("_total").to_owned());
    names.chain(literals.map(str::to_owned)).collect()
}

#[test]
fn the_documentation_lists_exactly_the_daemons_metrics() {
    let written = DOCUMENT.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let written: BTreeSet<String> =
        written.map(|(name, _)| name.trim_end_matches("_total").to_owned()).collect();
    assert_eq!(written.symmetric_difference(&known()).collect::<Vec<_>>(), [&""; 0]);
}

/// Names of our metrics in a text. What ends with `_` stands for several.
fn metrics_in(text: &str) -> impl Iterator<Item = &str> {
    let of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_name = |name: &&str| ["sluice_", "kubeproxy_"].iter().any(|prefix| name.starts_with(prefix));
    text.split(move |c| !of_name(c)).filter(is_name).filter(|name| !name.ends_with('_'))
}

/// Names of samples, as expressions need them: by the documentation's tables, which the test above
/// compares with the daemon.
fn samples() -> BTreeSet<String> {
    let not_ours: BTreeSet<String> =
        table().into_iter().filter(|(_, (_, when))| when == "mode").map(|(name, _)| name).collect();
    let mut samples = BTreeSet::new();
    for row in DOCUMENT.lines().filter_map(|line| line.strip_prefix("| `")) {
        let mut cells = row.split(" | ");
        let name = cells.next().unwrap().trim_end_matches('`');
        let kind = cells.next().unwrap_or_default();
        let ends: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        if ["counter", "gauge", "histogram"].contains(&kind) && !not_ours.contains(name) {
            // One gauge of kube-proxy has the ending of counters too.
            assert!(kind != "counter" || name.ends_with("_total"), "{name} is a counter");
            samples.extend(ends.iter().map(|end| format!("{name}{end}")));
        }
    }
    samples
}

#[test]
fn alert_rules_use_metrics_that_the_daemon_exports() {
    let (_, rules) = DOCUMENT.split_once("```yaml\n").unwrap();
    let (rules, _) = rules.split_once("```").unwrap();
    let used: BTreeSet<&str> = metrics_in(rules).collect();
    assert!(used.len() > 10, "the alert rules are not found: {used:?}");
    let samples = samples();
    let unknown: Vec<&str> = used.into_iter().filter(|name| !samples.contains(*name)).collect();
    assert_eq!(unknown, [""; 0]);
}

#[test]
fn every_metric_that_the_documentation_mentions_exists() {
    let mut known = samples();
    known.extend(table().into_keys());
    let is_known = |name: &str| known.contains(name) || known.contains(&format!("{name}_count"));
    let unknown: Vec<&str> = metrics_in(DOCUMENT).filter(|name| !is_known(name)).collect();
    assert_eq!(unknown, [""; 0]);
}
