//! Servers on addresses of the configuration, and the pages of the health server.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use tokio::net::TcpListener;
use tracing::{error, info};

use super::health::{Health, Question, Report};
use crate::http::{self, Gate, Wildcard, listen};
use crate::observe::metrics::Metrics;

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {what}: {source}. Free the port, or set {field}")]
pub struct ServeError {
    /// The address.
    pub address: SocketAddr,
    /// What for.
    pub what: &'static str,
    /// The configuration field that sets it.
    pub field: &'static str,
    /// The system's answer.
    #[source]
    pub source: std::io::Error,
}

pub(super) const JSON: [(HeaderName, &str); 2] =
    [(CONTENT_TYPE, "application/json"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
pub(super) const TEXT: [(HeaderName, &str); 2] =
    [(CONTENT_TYPE, "text/plain; charset=utf-8"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];

/// A server on an address of the configuration.
pub struct Server {
    /// Where; without, it is not served.
    pub address: Option<SocketAddr>,
    /// What for.
    pub what: &'static str,
    /// The configuration field that sets the address.
    pub field: &'static str,
    /// A failure to listen is returned; else it is tried again.
    pub hard_fail: bool,
    /// Who may connect.
    pub gate: Gate,
}

/// Listens. The IPv4 wildcard listens on both families, as in kube-proxy (reference 5.2).
fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    if address.ip() == IpAddr::from([0, 0, 0, 0]) {
        let both = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port());
        if let Ok(listener) = listen(both, Wildcard::Both) {
            return Ok(listener);
        }
    }
    listen(address, Wildcard::Both)
}

impl Server {
    /// Serves pages until a failure to listen.
    pub async fn run(self, pages: Router) -> Result<(), ServeError> {
        let Server { address, what, field, hard_fail, gate } = self;
        let Some(address) = address else {
            info!(what, "not served");
            return std::future::pending().await;
        };
        loop {
            match bind(address) {
                Ok(listener) => {
                    http::serve(listener, gate, pages).await;
                    return Ok(());
                }
                Err(source) if hard_fail => return Err(ServeError { address, what, field, source }),
                Err(source) => {
                    error!("{}; trying again in 5 s", ServeError { address, what, field, source });
                }
            }
            tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        }
    }
}

/// /healthz and /livez.
pub fn health_router(health: Health, metrics: Metrics) -> Router {
    let healthz = |State((health, metrics)): State<(Health, Metrics)>| async move {
        let report = health.report(Question::Serves);
        metrics.healthz.get_or_create(&[("code", code(&report).as_str().to_owned())]).inc();
        answer(&report)
    };
    let livez = |State((health, metrics)): State<(Health, Metrics)>| async move {
        let report = health.report(Question::Lives);
        metrics.livez.get_or_create(&[("code", code(&report).as_str().to_owned())]).inc();
        answer(&report)
    };
    let routes = Router::new().route("/healthz", any(healthz)).route("/livez", any(livez));
    routes.fallback(not_found).with_state((health, metrics))
}

fn code(report: &Report) -> StatusCode {
    if report.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn answer(report: &Report) -> Response {
    (code(report), JSON, report.body.to_string()).into_response()
}

/// What Go's server says of paths that it does not know.
pub(super) async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, TEXT, "404 page not found\n").into_response()
}
