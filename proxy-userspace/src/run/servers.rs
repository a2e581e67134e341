//! The servers of the daemon, as futures to wait for.

use crate::config::Settings;
use crate::http::Gate;
use crate::http::debug::debug_router;
use crate::http::health::Health;
use crate::http::server::{ServeError, Server, health_router};
use crate::http::syncs::SyncLog;
use crate::observe::metrics::Metrics;

/// The two servers of the node: health, and metrics with what helps to find faults.
pub(super) fn servers(
    settings: &Settings,
    files: u64,
    (health, metrics, log): (Health, Metrics, SyncLog),
) -> (impl Future<Output = Result<(), ServeError>>, impl Future<Output = Result<(), ServeError>>) {
    let server = |address, what, field| {
        let hard_fail = settings.bind_hard_fail;
        Server { address, what, field, hard_fail, gate: Gate::new(files) }
    };
    let healthz = server(settings.healthz_bind, "health", "healthzBindAddress");
    let page = server(settings.metrics_bind, "metrics", "metricsBindAddress");
    let pages = debug_router(metrics.clone(), settings, log);
    (healthz.run(health_router(health, metrics)), page.run(pages))
}
