//! Metrics: kube-proxy's names (reference 5.6), and our own with the prefix `sluice_`.
//! docs/metrics.md lists them.

mod process;
mod text;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use sluice_common::counters::Counter as Verdict;
use sluice_core::net::Family;
use sluice_core::pod_network::Dropped;
use sluice_sys::bpf::{Maps, Usage, counters};
use sluice_sys::nft::{Nft, dropped, loopback_refusals};

/// `N` labels of a metric.
type Labels<const N: usize> = [(&'static str, String); N];
type Labelled<const N: usize, M> = prometheus_client::metrics::family::Family<Labels<N>, M>;
type Histograms<const N: usize> =
    prometheus_client::metrics::family::Family<Labels<N>, Histogram, fn() -> Histogram>;
type FloatGauge = Gauge<f64, std::sync::atomic::AtomicU64>;

/// The content type of [`Metrics::page`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// 1 ms doubled, 15 buckets, as kube-proxy has them.
fn doubling() -> Histogram {
    Histogram::new((0..15).map(|n| 0.001 * f64::from(1 << n)))
}

/// kube-proxy's buckets of the network programming latency.
fn programming() -> Histogram {
    let seconds = [0.0, 0.25, 0.5]
        .into_iter()
        .chain((1..60).map(f64::from))
        .chain((60..120).step_by(5).map(f64::from))
        .chain((120..=300).step_by(30).map(f64::from));
    Histogram::new(seconds)
}

/// The buckets that Kubernetes clients have for requests.
fn requests() -> Histogram {
    Histogram::new([0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0])
}

fn histograms<const N: usize>(make: fn() -> Histogram) -> Histograms<N> {
    Histograms::new_with_constructor(make)
}

/// Makes the struct of all metrics and the function that registers them: `field: Type = value,
/// "name", "help";`. The name of a counter goes without its `_total`.
macro_rules! metrics {
    ($($field:ident: $type:ty = $value:expr, $name:literal, $help:literal;)*) => {
        /// All metrics; clones share the values.
        #[derive(Clone)]
        #[expect(missing_docs, reason = "each metric's help text stands where it is registered")]
        pub struct Metrics {
            registry: Arc<Registry>,
            /// The maps of the eBPF backend, whose programs count by themselves.
            maps: Arc<OnceLock<Maps>>,
            /// Set when the ruleset counts what it refuses on loopback.
            counts_refusals: Arc<AtomicBool>,
            /// Set when there is a pod network, whose rules count what they drop.
            counts_drops: Arc<AtomicBool>,
            $(pub $field: $type,)*
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::default();
                $(
                    let $field: $type = $value;
                    registry.register($name, $help, $field.clone());
                )*
                registry.register("kubernetes_build", "The version of this program", build());
                registry.register_collector(Box::new(process::Process));
                Metrics { registry: Arc::new(registry), maps: Arc::default(), counts_refusals: Arc::default(), counts_drops: Arc::default(), $($field,)* }
            }
        }
    };
}

metrics! {
    sync_duration: Histograms<1> = histograms(doubling),
        "kubeproxy_sync_proxy_rules_duration_seconds", "Duration of every sync";
    sync_full_duration: Histograms<1> = histograms(doubling),
        "kubeproxy_sync_full_proxy_rules_duration_seconds", "Duration of full syncs";
    sync_partial_duration: Histograms<1> = histograms(doubling),
        "kubeproxy_sync_partial_proxy_rules_duration_seconds", "Duration of incremental syncs";
    sync_last: Labelled<1, FloatGauge> = Labelled::default(),
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds", "Unix time of the last successful sync";
    sync_last_queued: Labelled<1, FloatGauge> = Labelled::default(),
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "Unix time when a sync was last requested";
    network_programming: Histograms<1> = histograms(programming),
        "kubeproxy_network_programming_duration_seconds",
        "Time from the change of an endpoint in the cluster until its rules are in place on this node";
    endpoint_changes_pending: Gauge = Gauge::default(),
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
        "1 while the kernel lacks changes of endpoints because a pass failed, otherwise 0";
    endpoint_changes: Counter = Counter::default(),
        "kubeproxy_sync_proxy_rules_endpoint_changes", "EndpointSlice notifications";
    service_changes_pending: Gauge = Gauge::default(),
        "kubeproxy_sync_proxy_rules_service_changes_pending",
        "1 while the kernel lacks changes of Services because a pass failed, otherwise 0";
    service_changes: Counter = Counter::default(),
        "kubeproxy_sync_proxy_rules_service_changes", "Service notifications";
    no_local_endpoints: Labelled<2, Gauge> = Labelled::default(),
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "Service ports with traffic policy Local that have endpoints, but none on this node";
    healthz: Labelled<1, Counter> = Labelled::default(), "kubeproxy_proxy_healthz", "Responses of /healthz";
    livez: Labelled<1, Counter> = Labelled::default(), "kubeproxy_proxy_livez", "Responses of /livez";
    sync_failures: Labelled<1, Counter> = Labelled::default(),
        "kubeproxy_sync_proxy_rules_nftables_sync_failures", "Failed transactions";
    cleanup_failures: Labelled<1, Counter> = Labelled::default(),
        "kubeproxy_sync_proxy_rules_nftables_cleanup_failures", "Failed deletions of unused chains";
    loopback_listeners: Labelled<1, Gauge> = Labelled::default(),
        "kubeproxy_nftables_localhost_nodeport_listeners", "Listeners on loopback, one for each TCP node port";
    loopback_listener_failures: Labelled<1, Counter> = Labelled::default(),
        "kubeproxy_nftables_localhost_nodeport_listener_creation_failures",
        "Failures to listen on loopback for a node port";
    loopback_refused: Labelled<2, Counter> = Labelled::default(),
        "kubeproxy_nftables_localhost_nodeport_rejected_packets",
        "Packets to node ports on loopback that were refused";
    conntrack_duration: Histograms<1> = histograms(doubling),
        "kubeproxy_conntrack_reconciler_sync_duration_seconds", "Duration of one pass over the flows of a protocol";
    conntrack_deleted: Labelled<1, Counter> = Labelled::default(),
        "kubeproxy_conntrack_reconciler_deleted_entries", "Stale flows deleted";
    rest_requests: Labelled<3, Counter> = Labelled::default(),
        "rest_client_requests", "Requests to the API server by response code; <error> without a response";
    rest_duration: Histograms<2> = histograms(requests),
        "rest_client_request_duration_seconds", "Time from a request to the head of its response";
    services: Gauge = Gauge::default(), "sluice_services", "Services in the index";
    endpoint_slices: Gauge = Gauge::default(), "sluice_endpoint_slices", "EndpointSlices in the index";
    operations: Counter = Counter::default(),
        "sluice_kernel_operations", "Operations committed to the kernel";
    quarantined: Gauge = Gauge::default(),
        "sluice_refused_services", "Services for which the kernel refuses operations; all others are served";
    repairs: Counter = Counter::default(), "sluice_repairs", "Full passes after foreign changes";
    repaired_objects: Counter = Counter::default(),
        "sluice_repaired_operations", "Operations of full passes after foreign changes";
    foreign_changes: Labelled<1, Counter> = Labelled::default(),
        "sluice_foreign_changes", "Notifications of foreign changes to Sluice's table";
    manifest_errors: Counter = Counter::default(), "sluice_manifest_errors", "Problems reported about manifest files";
    object_problems: Counter = Counter::default(),
        "sluice_object_problems", "Parts of API objects that were left out";
    watch_errors: Labelled<2, Counter> = Labelled::default(),
        "sluice_watch_errors", "Failed lists and watches, by kind of object and reason";
    lists: Labelled<1, Counter> = Labelled::default(), "sluice_lists", "Full lists started, by kind";
    events: Labelled<1, Counter> = Labelled::default(),
        "sluice_events", "Kubernetes Events by outcome: sent, failed, dropped";
    packets: Labelled<1, Counter> = Labelled::default(),
        "sluice_ebpf_packets", "Packets and system calls that the eBPF programs acted on, by verdict";
    map_entries: Labelled<1, Gauge> = Labelled::default(), "sluice_ebpf_map_entries", "Entries of an eBPF map";
    map_capacity: Labelled<1, Gauge> = Labelled::default(),
        "sluice_ebpf_map_capacity", "Largest number of entries of an eBPF map";
    affinity_entries: Labelled<1, Gauge> = Labelled::default(),
        "sluice_affinity_entries", "Clients in the affinity table, of all Services together";
    affinity_capacity: Labelled<1, Gauge> = Labelled::default(),
        "sluice_affinity_capacity", "Largest number of clients in the affinity table";
    affinity_forgotten: Labelled<1, Counter> = Labelled::default(),
        "sluice_affinity_forgotten", "Clients evicted from the affinity table to make room for others";
    flows_expired: Counter = Counter::default(),
        "sluice_ebpf_flows_expired", "Flows ended after their idle timeout";
    sockets_ended: Counter = Counter::default(),
        "sluice_ebpf_sockets_ended", "Connected UDP sockets ended because their endpoint no longer serves";
    opted_out: Gauge = Gauge::default(),
        "sluice_ebpf_opted_out_namespaces", "Network namespaces whose sockets are not translated, because of sluice.socketLB";
    pod_network_routes: Gauge = Gauge::default(),
        "sluice_pod_network_routes", "Routes to the pods of other nodes";
    pod_network_problems: Gauge = Gauge::default(),
        "sluice_pod_network_problems", "Problems that make pods of other nodes unreachable";
    pod_network_mtu: Gauge = Gauge::default(), "sluice_pod_network_mtu_bytes", "MTU of new pods, in bytes";
    pod_network_steps: Counter = Counter::default(),
        "sluice_pod_network_steps", "Changes of the VXLAN device, routes, neighbours and forwarding entries";
    pod_network_dropped: Labelled<1, Counter> = Labelled::default(),
        "sluice_pod_network_dropped_packets", "Packets dropped by guard rules, by reason";
    pod_network_failures: Counter = Counter::default(),
        "sluice_pod_network_failures", "Passes of the pod network that failed";
}

/// The labels that Kubernetes programs give.
fn build() -> Info<Vec<(&'static str, String)>> {
    let platform = match std::env::consts::ARCH {
        "x86_64" => "linux/amd64".to_owned(),
        "aarch64" => "linux/arm64".to_owned(),
        other => format!("linux/{other}"),
    };
    Info::new(vec![
        ("build_date", String::new()),
        ("compiler", "rustc".into()),
        ("git_commit", String::new()),
        ("git_tree_state", String::new()),
        ("git_version", concat!("v", env!("CARGO_PKG_VERSION")).into()),
        ("go_version", String::new()),
        ("major", env!("CARGO_PKG_VERSION_MAJOR").into()),
        ("minor", env!("CARGO_PKG_VERSION_MINOR").into()),
        ("platform", platform),
    ])
}

impl Metrics {
    /// From now on, what the programs of these maps count is on the page.
    pub fn follow(&self, maps: Maps) {
        let _ = self.maps.set(maps);
    }

    /// From now on, what the ruleset refuses on loopback is on the page, and that nobody listens
    /// there yet.
    pub fn count_loopback_refusals(&self) {
        self.counts_refusals.store(true, Ordering::Relaxed);
        Metrics::for_families(|family| {
            self.loopback_listeners.get_or_create(family).set(0);
            self.loopback_listener_failures.get_or_create(family).inc_by(0);
        });
    }

    /// How full a map is.
    pub fn map_usage(&self, map: &str, usage: Usage) {
        let label = [("map", map.to_owned())];
        self.map_entries.get_or_create(&label).set(usage.entries as i64);
        self.map_capacity.get_or_create(&label).set(usage.capacity as i64);
    }

    /// How full a table of clients is.
    pub fn affinity_usage(&self, table: &str, usage: Usage) {
        let label = [("table", table.to_owned())];
        self.affinity_entries.get_or_create(&label).set(usage.entries as i64);
        self.affinity_capacity.get_or_create(&label).set(usage.capacity as i64);
    }

    /// Clients were forgotten to make room for others.
    pub fn clients_forgotten(&self, table: &str, clients: usize) {
        self.affinity_forgotten.get_or_create(&[("table", table.to_owned())]).inc_by(clients as u64);
    }

    fn read_loopback_refusals(&self) {
        if !self.counts_refusals.load(Ordering::Relaxed) {
            return;
        }
        // Without an answer the page shows what was counted before.
        let Ok(counted) = Nft::open().and_then(|mut nft| loopback_refusals(&mut nft)) else { return };
        for (family, protocol, packets) in counted {
            let [family] = family_label(family);
            let labels = [family, ("protocol", protocol.name().to_uppercase())];
            self.loopback_refused.get_or_create(&labels).inner().store(packets, Ordering::Relaxed);
        }
    }

    /// From now on, what the pod network's rules drop is on the page.
    pub fn count_drops(&self) {
        self.counts_drops.store(true, Ordering::Relaxed);
    }

    fn read_drops(&self) {
        if !self.counts_drops.load(Ordering::Relaxed) {
            return;
        }
        let Ok(counted) = Nft::open().and_then(|mut nft| dropped(&mut nft)) else { return };
        // Programs see packets of pods before the rules do.
        let by_programs = self.maps.get().and_then(|maps| counters(maps).ok()).unwrap_or_default();
        let sources = by_programs.iter().find(|(counter, _)| *counter == Verdict::DropPodSource);
        for (reason, mut packets) in counted {
            if reason == Dropped::PodSource {
                packets += sources.map_or(0, |(_, packets)| *packets);
            }
            let label = [("reason", reason.reason().to_owned())];
            self.pod_network_dropped.get_or_create(&label).inner().store(packets, Ordering::Relaxed);
        }
    }

    fn read_counters(&self) {
        let Some(Ok(counted)) = self.maps.get().map(counters) else { return };
        for (counter, count) in counted {
            let label = [("verdict", counter.name().to_owned())];
            self.packets.get_or_create(&label).inner().store(count, Ordering::Relaxed);
        }
    }

    /// The page, in the text format that kube-proxy answers with.
    pub fn page(&self) -> String {
        self.read_counters();
        self.read_loopback_refusals();
        self.read_drops();
        let mut page = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut page, &self.registry);
        text::classic(&page)
    }

    /// Does something once for each IP family: both are always programmed together.
    pub fn for_families(each: impl Fn(&Labels<1>)) {
        for family in Family::BOTH {
            each(&family_label(family));
        }
    }
}

/// The label of a family.
pub fn family_label(family: Family) -> Labels<1> {
    [("ip_family", family.name().to_owned())]
}

/// Now, as Unix seconds.
pub fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_on_the_page_only_where_the_ruleset_decides_about_it() {
        let metrics = Metrics::default();
        let shown = |page: &str| {
            let samples = page.lines().filter(|line| line.starts_with("kubeproxy_nftables_localhost"));
            samples.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(shown(&metrics.page()), Vec::<String>::new());
        metrics.count_loopback_refusals();
        let labels = [("ip_family", "IPv6".to_owned()), ("protocol", "UDP".to_owned())];
        metrics.loopback_refused.get_or_create(&labels).inc();
        let page = shown(&metrics.page());
        for sample in [
            "kubeproxy_nftables_localhost_nodeport_listeners{ip_family=\"IPv4\"} 0",
            "kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total{ip_family=\"IPv6\"} 0",
            "kubeproxy_nftables_localhost_nodeport_rejected_packets_total{ip_family=\"IPv6\",protocol=\"UDP\"} 1",
        ] {
            assert!(page.iter().any(|line| line == sample), "{sample} in {page:?}");
        }
    }
}
