//! The pages of the metrics server (reference 5.4).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};

use super::server::{JSON, TEXT, not_found};
use super::zpages::{Page, flagz, statusz};
use crate::config::Settings;
use crate::config::raw::KubeProxyConfiguration;
use crate::http::syncs::SyncLog;
use crate::observe::metrics::{self, Metrics};

struct Debug {
    metrics: Metrics,
    config: KubeProxyConfiguration,
    mode: &'static str,
    flags: BTreeMap<String, String>,
    started: SystemTime,
    log: SyncLog,
}

/// /metrics, /metrics/slis, /healthz (a ping), /proxyMode, /configz, /statusz, /flagz and
/// /debug/syncs.
pub fn debug_router(metrics: Metrics, settings: &Settings, log: SyncLog) -> Router {
    let mode = settings.backend.name();
    let (config, flags) = (settings.effective.clone(), settings.flags.clone());
    Router::new()
        .route("/metrics", get(metrics_page))
        .route("/metrics/slis", get(slis))
        .route("/healthz", any(|RawQuery(query)| async move { (TEXT, ping(&query.unwrap_or_default())) }))
        .route("/healthz/ping", any(|| async { ([(CONTENT_TYPE, TEXT[0].1)], "ok") }))
        .route("/proxyMode", any(proxy_mode))
        .route("/configz", any(configz))
        .route("/statusz", any(status_page))
        .route("/flagz", any(flag_page))
        .route("/debug/syncs", get(syncs))
        .fallback(not_found)
        .with_state(Arc::new(Debug { metrics, config, mode, flags, started: SystemTime::now(), log }))
}

async fn metrics_page(State(debug): State<Arc<Debug>>) -> Response {
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], debug.metrics.page()).into_response()
}

/// kube-proxy registers no health check with this page, so all it has is the start of the process.
async fn slis(State(debug): State<Arc<Debug>>) -> Response {
    let started = debug.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    let headers = [
        (CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8".to_owned()),
        (HeaderName::from_static("process-start-time-unix"), started.as_secs().to_string()),
    ];
    let body = format!(
        "# HELP process_start_time_seconds [ALPHA] When the process started, in seconds since 1970.\n\
         # TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {}\n",
        started.as_secs_f64()
    );
    (headers, body).into_response()
}

/// That the server answers; nothing about the proxy. `verbose` lists the one check, `exclude`
/// leaves it out.
fn ping(query: &str) -> String {
    let pairs = || query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    if !pairs().any(|(key, _)| key == "verbose") {
        return "ok".into();
    }
    let excluded: Vec<&str> = pairs().filter(|(key, _)| *key == "exclude").map(|(_, value)| value).collect();
    let mut text =
        String::from(if excluded.contains(&"ping") { "[+]ping excluded: ok\n" } else { "[+]ping ok\n" });
    let unknown: Vec<String> =
        excluded.iter().filter(|name| **name != "ping").map(|name| format!("{name:?}")).collect();
    if !unknown.is_empty() {
        let unknown = unknown.join(",");
        text += &format!("warn: some health checks cannot be excluded: no matches for {unknown}\n");
    }
    text + "healthz check passed\n"
}

async fn proxy_mode(State(debug): State<Arc<Debug>>) -> Response {
    (TEXT, debug.mode).into_response()
}

async fn configz(State(debug): State<Arc<Debug>>) -> Response {
    let body = serde_json::json!({"kubeproxy.config.k8s.io": debug.config});
    (JSON, body.to_string()).into_response()
}

async fn status_page(State(debug): State<Arc<Debug>>, headers: HeaderMap) -> Response {
    statusz(debug.started, SystemTime::now()).answer(&headers)
}

async fn flag_page(State(debug): State<Arc<Debug>>, headers: HeaderMap) -> Response {
    let page: Page = flagz(&debug.flags);
    page.answer(&headers)
}

async fn syncs(State(debug): State<Arc<Debug>>) -> Response {
    let log = debug.log.lock().map(|log| log.iter().cloned().collect::<Vec<_>>()).unwrap_or_default();
    (JSON, serde_json::to_string(&log).unwrap_or_default()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ping_understands_verbose_and_exclude() {
        assert_eq!(ping(""), "ok");
        assert_eq!(ping("exclude=other"), "ok");
        assert_eq!(ping("verbose"), "[+]ping ok\nhealthz check passed\n");
        assert_eq!(ping("verbose=1&exclude=ping"), "[+]ping excluded: ok\nhealthz check passed\n");
        assert_eq!(
            ping("exclude=foo&verbose"),
            "[+]ping ok\nwarn: some health checks cannot be excluded: no matches for \"foo\"\nhealthz check passed\n"
        );
    }
}
