//! The HTTP servers, and the pages of the health server.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::SystemTime;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use tokio::net::{TcpListener, TcpSocket};
use tracing::{error, info};

use super::{Health, Report};
use crate::metrics::Metrics;

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

/// Listens. The IPv4 wildcard listens on both families, as in kube-proxy (reference 5.2).
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let dual = address.ip() == IpAddr::from([0, 0, 0, 0]);
    let listen = |address: SocketAddr| {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(128)
    };
    if dual && let Ok(listener) = listen(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port())) {
        return Ok(listener);
    }
    listen(address)
}

/// Serves a router on an address, or nothing without one. A failure to bind is retried, or returned when `hard_fail` is set.
pub async fn serve(
    address: Option<SocketAddr>,
    what: &'static str,
    field: &'static str,
    hard_fail: bool,
    router: Router,
) -> Result<(), ServeError> {
    let Some(address) = address else {
        info!(what, "not served");
        return std::future::pending().await;
    };
    loop {
        match bind(address) {
            Ok(listener) => {
                if let Err(error) = axum::serve(listener, router.clone()).await {
                    error!(%address, what, %error, "server ended; starting it again");
                }
            }
            Err(source) => {
                let failure = ServeError { address, what, field, source };
                if hard_fail {
                    return Err(failure);
                }
                error!("{failure}; trying again in 5 s");
            }
        }
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    }
}

/// /healthz and /livez.
pub fn health_router(health: Health, metrics: Metrics) -> Router {
    let healthz = |State((health, metrics)): State<(Health, Metrics)>| async move {
        let report = health.report(SystemTime::now(), true);
        metrics.healthz.get_or_create(&[("code", code(&report).as_str().to_owned())]).inc();
        answer(&report)
    };
    let livez = |State((health, metrics)): State<(Health, Metrics)>| async move {
        let report = health.report(SystemTime::now(), false);
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
