//! Health-check node ports: one listener for each Service, family and address (reference 5.3).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use sluice_core::model::ObjectName;
use sluice_core::net::Family;
use sluice_core::plan::HealthCheck;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::config::Settings;
use crate::http::health::Health;
use crate::http::{self, Gate, Wildcard, listen};
use crate::observe::recorder::{Event, Recorder};
use crate::service::facts::{NodeFacts, health_check_addresses};

/// What cannot be listened on is tried again after this time, then after twice of it, and so on.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// It is told once in this time.
const REPEAT: Duration = Duration::from_secs(300);

type Checks = BTreeMap<ObjectName, HealthCheck>;

/// What a listener answers for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Listener {
    service: ObjectName,
    family: Family,
    address: SocketAddr,
}

#[derive(Clone)]
struct Context {
    service: ObjectName,
    family: Family,
    checks: watch::Receiver<Checks>,
    health: Health,
}

/// A listener that could not be opened.
struct Refused {
    /// The next try.
    due: Instant,
    /// From then to the one after it.
    delay: Duration,
    /// When it was told.
    told: Instant,
}

impl Refused {
    fn new(now: Instant) -> Refused {
        Refused { due: now + FIRST_RETRY, delay: 2 * FIRST_RETRY, told: now }
    }

    /// It was tried again in vain; whether that is to be told.
    fn again(&mut self, now: Instant) -> bool {
        self.due = now + self.delay;
        self.delay = (2 * self.delay).min(LAST_RETRY);
        let tell = now.duration_since(self.told) >= REPEAT;
        if tell {
            self.told = now;
        }
        tell
    }
}

/// Keeps listeners in step with Services until nobody publishes any more; they share a gate. A
/// listener that cannot be opened is tried again later; others do not suffer from it.
pub async fn run(
    (settings, mut checks, mut facts): (Settings, watch::Receiver<Checks>, watch::Receiver<NodeFacts>),
    (health, gate): (Health, Gate),
    recorder: Recorder,
) {
    let mut open: BTreeMap<Listener, JoinHandle<()>> = BTreeMap::new();
    let mut refused: BTreeMap<Listener, Refused> = BTreeMap::new();
    loop {
        let wanted = wanted(&settings, &checks.borrow_and_update(), &facts.borrow_and_update());
        refused.retain(|listener, _| wanted.contains(listener));
        let closed = close(&mut open, &wanted).await;
        let now = Instant::now();
        for listener in wanted.into_iter().filter(|wanted| !open.contains_key(wanted)).collect::<Vec<_>>() {
            let waits = refused.get(&listener).is_some_and(|refused| now < refused.due);
            if waits && !closed.contains(&listener.address.port()) {
                continue;
            }
            let (service, address) = (&listener.service, listener.address);
            // The IPv6 wildcard must not take the IPv4 port: each family counts its own endpoints.
            match listen(address, Wildcard::Ipv6) {
                Ok(socket) => {
                    info!(%service, %address, "health check open");
                    let context = Context {
                        service: service.clone(),
                        family: listener.family,
                        checks: checks.clone(),
                        health: health.clone(),
                    };
                    let pages = Router::new().fallback(answer).with_state(context);
                    refused.remove(&listener);
                    open.insert(listener, tokio::spawn(http::serve(socket, gate.clone(), pages)));
                }
                Err(error) => {
                    let tell = match refused.get_mut(&listener) {
                        Some(refused) => refused.again(now),
                        None => refused.insert(listener.clone(), Refused::new(now)).is_none(),
                    };
                    if tell {
                        warn!(%service, %address, %error, "cannot open the healthCheckNodePort; trying again");
                        let note = format!("{} cannot listen on {address}: {error}", settings.node_name);
                        recorder.record(Event::no_service_health(service.clone(), note));
                    }
                }
            }
        }
        let due = refused.values().map(|refused| refused.due).min();
        tokio::select! {
            changed = checks.changed() => if changed.is_err() { return },
            changed = facts.changed() => if changed.is_err() { return },
            () = sleep_until(due.unwrap_or(now)), if due.is_some() => {}
        }
    }
}

/// Closes what is not wanted any more, and returns the ports.
async fn close(open: &mut BTreeMap<Listener, JoinHandle<()>>, wanted: &[Listener]) -> BTreeSet<u16> {
    let closing: Vec<Listener> = open.keys().filter(|l| !wanted.contains(l)).cloned().collect();
    for listener in &closing {
        if let Some(task) = open.remove(listener) {
            // The port is free for another Service only when the task is really gone.
            task.abort();
            let _ = task.await;
            info!(service = %listener.service, address = %listener.address, "health check closed");
        }
    }
    closing.iter().map(|listener| listener.address.port()).collect()
}

fn wanted(settings: &Settings, checks: &Checks, facts: &NodeFacts) -> Vec<Listener> {
    let mut wanted = Vec::new();
    for (service, check) in checks {
        for (family, _) in &check.local_endpoints {
            for ip in health_check_addresses(settings, facts, *family) {
                let address = SocketAddr::new(ip, check.node_port);
                wanted.push(Listener { service: service.clone(), family: *family, address });
            }
        }
    }
    wanted
}

#[derive(Serialize)]
struct Body<'a> {
    service: Name<'a>,
    #[serde(rename = "localEndpoints")]
    local_endpoints: usize,
    #[serde(rename = "serviceProxyHealthy")]
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// Any method, any path.
async fn answer(State(context): State<Context>) -> Response {
    let count = {
        let checks = context.checks.borrow();
        let check = checks.get(&context.service);
        check
            .and_then(|check| check.local_endpoints.iter().find(|(family, _)| *family == context.family))
            .map_or(0, |(_, count)| *count)
    };
    let healthy = context.health.is_healthy();
    let code = if healthy && count > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let name = Name { namespace: context.service.namespace(), name: context.service.name() };
    let body = Body { service: name, local_endpoints: count, service_proxy_healthy: healthy };
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    // Writing into a Vec cannot fail.
    let _ = body.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter));
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (HeaderName::from_static("x-load-balancing-endpoint-weight"), HeaderValue::from(count)),
    ];
    (code, headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_ports_are_retried_and_reported_with_growing_delays() {
        let begun = Instant::now();
        let mut refused = Refused::new(begun);
        let (mut tries, mut told) = (Vec::new(), vec![0]);
        while refused.due < begun + Duration::from_secs(700) {
            let now = refused.due;
            tries.push(now.duration_since(begun).as_secs());
            if refused.again(now) {
                told.push(now.duration_since(begun).as_secs());
            }
        }
        assert_eq!(tries[..8], [1, 3, 7, 15, 31, 61, 91, 121]);
        assert_eq!(told, [0, 301, 601]);
    }
}
