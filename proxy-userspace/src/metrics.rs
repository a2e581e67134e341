//! Metrics: kube-proxy's names (reference 5.6), and our own with the prefix `sluice_`.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use sluice_core::net::Family;

/// Labels of one pair.
type Label = [(&'static str, String); 1];
type Histograms = Labelled<Label, Histogram, fn() -> Histogram>;
type FloatGauges = Labelled<Label, Gauge<f64, std::sync::atomic::AtomicU64>>;

/// 1 ms doubled, 15 buckets, as kube-proxy has them.
fn doubling() -> Histogram {
    Histogram::new((0..15).map(|n| 0.001 * f64::from(1 << n)))
}

/// kube-proxy's buckets of the network programming latency.
fn programming() -> Histogram {
    let seconds = [0.25, 0.5]
        .into_iter()
        .chain((1..60).map(f64::from))
        .chain((60..120).step_by(5).map(f64::from))
        .chain((120..=300).step_by(30).map(f64::from));
    Histogram::new(seconds)
}

/// All metrics; clones share the values.
#[derive(Clone)]
#[expect(missing_docs, reason = "each metric's help text stands where it is registered")]
pub struct Metrics {
    registry: Arc<Registry>,
    pub sync_duration: Histograms,
    pub sync_full_duration: Histograms,
    pub sync_partial_duration: Histograms,
    pub sync_last: FloatGauges,
    pub sync_last_queued: FloatGauges,
    pub network_programming: Histograms,
    pub endpoint_changes_pending: Gauge,
    pub endpoint_changes: Counter,
    pub service_changes_pending: Gauge,
    pub service_changes: Counter,
    pub no_local_endpoints: Labelled<[(&'static str, String); 2], Gauge>,
    pub healthz: Labelled<Label, Counter>,
    pub livez: Labelled<Label, Counter>,
    pub sync_failures: Labelled<Label, Counter>,
    pub cleanup_failures: Labelled<Label, Counter>,
    pub conntrack_duration: Histograms,
    pub conntrack_deleted: Labelled<Label, Counter>,
    pub services: Gauge,
    pub endpoint_slices: Gauge,
    pub operations: Counter,
    pub repairs: Counter,
    pub repaired_objects: Counter,
    pub manifest_errors: Counter,
    pub object_problems: Counter,
    pub watch_errors: Labelled<Label, Counter>,
    pub lists: Labelled<Label, Counter>,
    resident_memory: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let kube = registry.sub_registry_with_prefix("kubeproxy");
        let histograms = |make: fn() -> Histogram| Histograms::new_with_constructor(make);
        macro_rules! add {
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                kube.register($name, $help, metric.clone());
                metric
            }};
        }
        let sync_duration =
            add!("sync_proxy_rules_duration_seconds", "Duration of every sync", histograms(doubling));
        let sync_full_duration =
            add!("sync_full_proxy_rules_duration_seconds", "Duration of full syncs", histograms(doubling));
        let sync_partial_duration = add!(
            "sync_partial_proxy_rules_duration_seconds",
            "Duration of incremental syncs",
            histograms(doubling)
        );
        let sync_last = add!(
            "sync_proxy_rules_last_timestamp_seconds",
            "Unix time of the last successful sync",
            FloatGauges::default()
        );
        let sync_last_queued = add!(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "Unix time when a sync was last asked for",
            FloatGauges::default()
        );
        let network_programming = add!(
            "network_programming_duration_seconds",
            "From the change of an endpoint in the cluster to its rules in place here",
            histograms(programming)
        );
        let endpoint_changes_pending = add!(
            "sync_proxy_rules_endpoint_changes_pending",
            "Services with endpoint changes that are not in the kernel yet",
            Gauge::default()
        );
        let endpoint_changes =
            add!("sync_proxy_rules_endpoint_changes", "EndpointSlice notifications", Counter::default());
        let service_changes_pending = add!(
            "sync_proxy_rules_service_changes_pending",
            "Services with changes that are not in the kernel yet",
            Gauge::default()
        );
        let service_changes =
            add!("sync_proxy_rules_service_changes", "Service notifications", Counter::default());
        let no_local_endpoints = add!(
            "sync_proxy_rules_no_local_endpoints_total",
            "Service ports with a Local policy that have endpoints, but none here",
            Labelled::default()
        );
        let healthz = add!("proxy_healthz", "Answers of /healthz", Labelled::default());
        let livez = add!("proxy_livez", "Answers of /livez", Labelled::default());
        let sync_failures =
            add!("sync_proxy_rules_nftables_sync_failures", "Failed transactions", Labelled::default());
        let cleanup_failures = add!(
            "sync_proxy_rules_nftables_cleanup_failures",
            "Failed deletions of unused chains",
            Labelled::default()
        );
        let conntrack_duration = add!(
            "conntrack_reconciler_sync_duration_seconds",
            "Duration of one pass over the UDP flows",
            histograms(doubling)
        );
        let conntrack_deleted =
            add!("conntrack_reconciler_deleted_entries", "Stale UDP flows deleted", Labelled::default());
        let kube = registry.sub_registry_with_prefix("sluice");
        macro_rules! add {
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                kube.register($name, $help, metric.clone());
                metric
            }};
        }
        let services = add!("services", "Services in the index", Gauge::default());
        let endpoint_slices = add!("endpoint_slices", "EndpointSlices in the index", Gauge::default());
        let operations = add!("kernel_operations", "Operations committed to the kernel", Counter::default());
        let repairs = add!("repairs", "Full passes after others changed our table", Counter::default());
        let repaired_objects =
            add!("repaired_operations", "Operations that such passes needed", Counter::default());
        let manifest_errors = add!("manifest_errors", "Reports about manifest files", Counter::default());
        let object_problems =
            add!("object_problems", "Parts of API objects that were left out", Counter::default());
        let watch_errors = add!("watch_errors", "Failed lists and watches", Labelled::default());
        let lists = add!("lists", "Complete lists begun", Labelled::default());
        let resident_memory = Gauge::default();
        registry.register(
            "process_resident_memory_bytes",
            "Resident memory size in bytes",
            resident_memory.clone(),
        );
        Metrics {
            registry: Arc::new(registry),
            sync_duration,
            sync_full_duration,
            sync_partial_duration,
            sync_last,
            sync_last_queued,
            network_programming,
            endpoint_changes_pending,
            endpoint_changes,
            service_changes_pending,
            service_changes,
            no_local_endpoints,
            healthz,
            livez,
            sync_failures,
            cleanup_failures,
            conntrack_duration,
            conntrack_deleted,
            services,
            endpoint_slices,
            operations,
            repairs,
            repaired_objects,
            manifest_errors,
            object_problems,
            watch_errors,
            lists,
            resident_memory,
        }
    }
}

impl Metrics {
    /// The text page.
    pub fn page(&self) -> String {
        if let Some(bytes) = sluice_sys::proc::resident_bytes() {
            self.resident_memory.set(bytes as i64);
        }
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// Does something once for each IP family: both are always programmed together.
    pub fn for_families(each: impl Fn(&Label)) {
        for family in Family::BOTH {
            each(&family_label(family));
        }
    }
}

/// The label of a family.
pub fn family_label(family: Family) -> Label {
    [("ip_family", family.name().to_owned())]
}

/// Now, as Unix seconds.
pub fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}
