//! Stale UDP flows (reference 4): a flow whose endpoint is gone must not stay pinned to it.
//!
//! Level-triggered: requests carry the desired state of a frontend, not what happened to it, so several
//! requests for one frontend merge into the last, and a failed pass is repeated. It runs beside the
//! programming of rules, never before or inside it. Unlike kube-proxy it also ends flows of Services that
//! went empty or away, and its node port test looks at the destination address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_core::net::{Family, Protocol};
use sluice_core::plan::{Capture, PlanChange, ServicePlan};
use sluice_sys::conntrack::{Conntrack, Flow};
use sluice_sys::netlink::NetlinkError;
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use crate::metrics::{Metrics, family_label};
use crate::node::NodeFacts;

/// The state of one UDP frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The frontend.
    pub capture: Capture,
    /// The endpoints that flows may go to; `None` when the frontend is gone.
    pub serving: Option<Serving>,
}

/// A packet that passed the old rules may set up its flow just after a pass, so each request has two.
const SECOND_PASS: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(2);

/// The UDP frontends that changes touch, added to `requests`: those that are gone first, because another Service
/// may have taken one over.
pub fn requests(changes: &[PlanChange], requests: &mut Vec<Request>) {
    for change in changes {
        let new = frontends(change.new.as_ref());
        for (capture, serving) in frontends(change.old.as_ref()) {
            if !new.iter().any(|(c, _)| *c == capture) && !serving.is_empty() {
                requests.push(Request { capture, serving: None });
            }
        }
    }
    for change in changes {
        let new = frontends(change.new.as_ref()).into_iter();
        requests.extend(new.map(|(capture, serving)| Request { capture, serving: Some(serving) }));
    }
}

/// Endpoints that flows of a frontend may go to.
type Serving = Arc<[(IpAddr, u16)]>;
type Served = (Capture, Serving);

fn frontends(plan: Option<&Arc<ServicePlan>>) -> Vec<Served> {
    let mut found = Vec::new();
    for port in plan.iter().flat_map(|plan| plan.ports.iter()) {
        if port.id.protocol == Protocol::Udp {
            let serving: Serving = port.serving.iter().copied().collect();
            found.extend(port.frontends.iter().map(|f| (f.capture, serving.clone())));
        }
    }
    found
}

/// What one pass looks for.
#[derive(Default)]
struct Pass {
    requests: HashMap<Capture, Option<Serving>>,
}

impl Pass {
    /// Whether a flow goes where it must not.
    fn is_stale(&self, flow: &Flow, is_local: impl Fn(&IpAddr) -> bool) -> bool {
        let (address, port) = flow.destination;
        let by_address = Capture::Address(address, Protocol::Udp, port);
        let by_port = Capture::NodePort(Family::of(&address), Protocol::Udp, port);
        let serving = match self.requests.get(&by_address) {
            Some(serving) => serving,
            None => match self.requests.get(&by_port) {
                Some(serving) if is_local(&address) => serving,
                _ => return false,
            },
        };
        let translated = flow.replier != flow.destination;
        match serving {
            // Packets sent before there were endpoints were tracked untranslated: end those too.
            Some(list) if !list.is_empty() => !list.contains(&flow.replier),
            // Without endpoints only translated flows are known to be ours.
            _ => translated,
        }
    }

    fn families(&self) -> impl Iterator<Item = Family> {
        let has = |family| self.requests.keys().any(|capture| capture.family() == family);
        Family::BOTH.into_iter().filter(move |family| has(*family))
    }
}

/// Serves requests until nobody sends any more.
pub async fn run(
    mut requests: mpsc::UnboundedReceiver<Request>,
    facts: watch::Receiver<NodeFacts>,
    metrics: Metrics,
) {
    let mut again: Option<(tokio::time::Instant, Pass)> = None;
    loop {
        let due = again.as_ref().map(|(at, _)| *at);
        let first = tokio::select! {
            request = requests.recv() => match request {
                Some(request) => Some(request),
                None => return,
            },
            () = sleep_until(due) => None,
        };
        let mut pass = match (&first, again.take()) {
            (None, Some((_, pass))) => pass,
            (Some(_), earlier) => earlier.map(|(_, pass)| pass).unwrap_or_default(),
            (None, None) => continue,
        };
        let is_second = first.is_none();
        let mut next = first;
        while let Some(request) = next {
            pass.requests.insert(request.capture, request.serving);
            next = requests.try_recv().ok();
        }
        let facts = facts.borrow().clone();
        let result = tokio::task::block_in_place(|| clean(&pass, &facts, &metrics));
        again = match result {
            Ok(()) if is_second => None,
            Ok(()) => Some((tokio::time::Instant::now() + SECOND_PASS, pass)),
            Err(error) => {
                warn!(%error, "cannot clean UDP flows; trying again");
                Some((tokio::time::Instant::now() + RETRY, pass))
            }
        };
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn clean(pass: &Pass, facts: &NodeFacts, metrics: &Metrics) -> Result<(), NetlinkError> {
    let mut conntrack = Conntrack::open()?;
    for family in pass.families() {
        let begun = Instant::now();
        let is_local = |ip: &IpAddr| facts.interfaces.contains(ip);
        let stale = list(&mut conntrack, family, |flow| pass.is_stale(flow, is_local))?;
        let mut deleted = 0;
        for flow in &stale {
            deleted += u64::from(conntrack.delete(flow)?);
        }
        let label = family_label(family);
        metrics.conntrack_deleted.get_or_create(&label).inc_by(deleted);
        metrics.conntrack_duration.get_or_create(&label).observe(begun.elapsed().as_secs_f64());
        debug!(%family, frontends = pass.requests.len(), deleted, "UDP flows checked");
    }
    Ok(())
}

/// UDP flows of a family; the list begins anew when the table changed in between.
pub(crate) fn list(
    conntrack: &mut Conntrack,
    family: Family,
    keep: impl Fn(&Flow) -> bool,
) -> Result<Vec<Flow>, NetlinkError> {
    const ATTEMPTS: u32 = 5;
    for _ in 1..ATTEMPTS {
        match conntrack.udp_flows(family, &keep) {
            Err(error) if error.errno() == Some(libc::EINTR) => {}
            other => return other,
        }
    }
    conntrack.udp_flows(family, &keep)
}
