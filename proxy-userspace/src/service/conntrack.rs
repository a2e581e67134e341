//! Stale UDP flows (reference 4): a flow whose endpoint is gone must not stay pinned to it.
//!
//! And attempts at TCP and SCTP connections that passed before there were rules or endpoints.
//! Connection tracking remembers them, untranslated, for two minutes: whoever sends again, or gets
//! the same source port for another attempt, would not be translated either. kube-proxy leaves
//! them.
//!
//! Level-triggered: requests carry the desired state of a frontend, not what happened to it, so
//! several requests for one frontend merge into the last, and a failed pass is repeated. It runs
//! beside the programming of rules, never before or inside it. Unlike kube-proxy it also ends flows
//! of Services that went empty or away, and its node port test looks at the destination address.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use rustc_hash::FxHashSet;
use sluice_core::list::List;
use sluice_core::net::{Family, Protocol};
use sluice_core::plan::{Capture, Member, PlanChange, ServicePlan};
use sluice_sys::conntrack::{Conntrack, Flow};
use sluice_sys::netlink::NetlinkError;
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use crate::config::Settings;
use crate::observe::metrics::{Metrics, family_label};
use crate::service::facts::{NodeFacts, has_node_ports};
use crate::service::passes::{Passes, sleep_until};

/// The state of one frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The frontend.
    pub capture: Capture,
    /// Which of its flows may stay.
    pub state: State,
}

impl Request {
    /// All node ports on an address that the node has lost, or that they do not answer on any more.
    /// Of use in mode ebpf only, whose flows would stay: to such an address nothing comes that
    /// conntrack would translate.
    pub fn node_ports_of(address: IpAddr) -> Self {
        Request { capture: Capture::Address(address, Protocol::Udp, 0), state: State::Gone }
    }
}

/// What decides which flows of a frontend may stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// UDP: those to these endpoints.
    Serving(Serving),
    /// UDP: the frontend is gone.
    Gone,
    /// TCP and SCTP: it leads to endpoints from now on. All may stay, but for vain attempts.
    Opened,
}

/// The frontends that changes touch, added to `requests`: those that are gone first, because
/// another Service may have taken one over.
pub fn requests(changes: &[PlanChange], requests: &mut Vec<Request>) {
    for change in changes {
        let new: FxHashSet<Capture> =
            frontends(change.new.as_ref()).into_iter().map(|(capture, _)| capture).collect();
        for (capture, serving) in frontends(change.old.as_ref()) {
            if !new.contains(&capture) && !serving.is_empty() {
                requests.push(Request { capture, state: State::Gone });
            }
        }
    }
    for change in changes {
        let new = frontends(change.new.as_ref()).into_iter();
        requests.extend(new.map(|(capture, serving)| Request { capture, state: State::Serving(serving) }));
        let before: FxHashSet<Capture> = open_frontends(change.old.as_ref()).collect();
        let opened = open_frontends(change.new.as_ref()).filter(|capture| !before.contains(capture));
        requests.extend(opened.map(|capture| Request { capture, state: State::Opened }));
    }
}

/// The TCP and SCTP frontends that lead to endpoints.
fn open_frontends(plan: Option<&Arc<ServicePlan>>) -> impl Iterator<Item = Capture> {
    let ports = plan.into_iter().flat_map(|plan| plan.ports.iter());
    let frontends = ports.filter(|port| port.id.protocol != Protocol::Udp).flat_map(|p| p.frontends.iter());
    frontends.filter(|frontend| frontend.actions.forwards()).map(|frontend| frontend.capture)
}

/// Endpoints that flows of a frontend may go to, in order.
type Serving = List<Member>;
type Served = (Capture, Serving);

fn frontends(plan: Option<&Arc<ServicePlan>>) -> Vec<Served> {
    let mut found = Vec::new();
    for port in plan.iter().flat_map(|plan| plan.ports.iter()) {
        if port.id.protocol == Protocol::Udp {
            found.extend(port.frontends.iter().map(|f| (f.capture, port.serving.clone())));
        }
    }
    found
}

/// This node's addresses.
struct Own<'a> {
    settings: &'a Settings,
    facts: &'a NodeFacts,
}

impl Own<'_> {
    /// Whether a flow to an address is one of the node port of that number. On addresses without
    /// node ports it is some process's own, unless it was translated: then the address had node
    /// ports when it began.
    fn node_port_of(&self, ip: &IpAddr, translated: bool) -> bool {
        (translated && self.facts.interfaces.contains(ip)) || has_node_ports(self.settings, self.facts, ip)
    }
}

/// Whether a flow goes where it must not.
fn is_stale(passes: &Passes<Capture, State>, flow: &Flow, own: &Own<'_>) -> bool {
    let (address, port) = flow.destination;
    let translated = flow.replier != flow.destination;
    let state = match passes.get(&Capture::Address(address, flow.protocol, port)) {
        Some(state) => state,
        None => match passes.get(&Capture::NodePort(Family::of(&address), flow.protocol, port)) {
            Some(state) if own.node_port_of(&address, translated) => state,
            _ => return false,
        },
    };
    match state {
        // Packets sent before there were endpoints were tracked untranslated: end those too.
        State::Serving(list) if !list.is_empty() => {
            list.with(flow.replier, |member| *member).next().is_none()
        }
        // Without endpoints only translated flows are known to be ours.
        State::Serving(_) | State::Gone => translated,
        State::Opened => flow.is_vain && !translated,
    }
}

/// Serves requests until nobody sends any more.
pub async fn run(
    mut requests: mpsc::UnboundedReceiver<Request>,
    (settings, facts): (Settings, watch::Receiver<NodeFacts>),
    metrics: Metrics,
) {
    let mut passes = Passes::default();
    loop {
        let first = tokio::select! {
            request = requests.recv() => match request {
                Some(request) => Some(request),
                None => return,
            },
            () = sleep_until(passes.due(Instant::now())) => None,
        };
        let mut next = first;
        while let Some(request) = next {
            passes.ask(request.capture, request.state, Instant::now());
            next = requests.try_recv().ok();
        }
        let begun = Instant::now();
        if !passes.is_due(begun) {
            continue;
        }
        let facts = facts.borrow().clone();
        let own = Own { settings: &settings, facts: &facts };
        match tokio::task::block_in_place(|| clean(&passes, &own, &metrics)) {
            Ok(()) => passes.done(begun, Instant::now()),
            Err(error) => {
                warn!(%error, "cannot end stale flows; trying again");
                passes.failed(Instant::now());
            }
        }
    }
}

fn clean(passes: &Passes<Capture, State>, own: &Own<'_>, metrics: &Metrics) -> Result<(), NetlinkError> {
    let mut conntrack = Conntrack::open()?;
    let kinds: BTreeSet<(Family, Protocol)> =
        passes.keys().map(|capture| (capture.family(), capture.protocol())).collect();
    for (family, protocol) in kinds {
        let begun = Instant::now();
        let stale = conntrack.all_flows(family, protocol, |flow| is_stale(passes, flow, own))?;
        let mut deleted = 0;
        for flow in &stale {
            deleted += u64::from(conntrack.delete(flow)?);
        }
        let label = family_label(family);
        metrics.conntrack_deleted.get_or_create(&label).inc_by(deleted);
        metrics.conntrack_duration.get_or_create(&label).observe(begun.elapsed().as_secs_f64());
        debug!(%family, %protocol, frontends = passes.keys().len(), deleted, "flows checked");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_core::model::{ObjectName, ServicePortName};
    use sluice_core::plan::{Action, Actions, Frontend, Group, PortPlan, Role};

    /// A plan with one frontend, of which this becomes.
    fn plan(protocol: Protocol, action: Action) -> Option<Arc<ServicePlan>> {
        let name = ObjectName::new("default", "web");
        let capture = Capture::Address(IpAddr::from([10, 96, 0, 10]), protocol, 80);
        let frontend =
            Frontend { capture, role: Role::ClusterIp, actions: Actions::all(action), allowed_sources: None };
        let id = ServicePortName { service: name.clone(), port: "".into(), protocol, family: Family::V4 };
        let port = PortPlan {
            id,
            affinity: None,
            cluster: List::default(),
            local: List::default(),
            frontends: Box::new([frontend]),
            serving: List::default(),
            lacks_local_internal: false,
            lacks_local_external: false,
        };
        Some(Arc::new(ServicePlan { ports: Box::new([port]), ..ServicePlan::nothing(name) }))
    }

    #[test]
    fn tracked_connections_are_reset_only_when_a_frontend_gets_endpoints() {
        let forward = |masquerade| Action::Forward { group: Group::Cluster, masquerade };
        let states = |old, new| {
            let mut found = Vec::new();
            requests(&[PlanChange { name: ObjectName::new("default", "web"), old, new }], &mut found);
            found.into_iter().map(|request| request.state).collect::<Vec<_>>()
        };
        for protocol in [Protocol::Tcp, Protocol::Sctp] {
            let plan = |action| plan(protocol, action);
            assert_eq!(states(None, plan(forward(false))), [State::Opened]);
            assert_eq!(states(plan(Action::Reject), plan(forward(false))), [State::Opened]);
            assert_eq!(states(plan(forward(true)), plan(forward(false))), []);
            assert_eq!(states(None, plan(Action::Reject)), []);
            assert_eq!(states(plan(forward(false)), None), []);
        }
        let udp = states(None, plan(Protocol::Udp, forward(false)));
        assert_eq!(udp, [State::Serving(List::default())]);
    }

    #[test]
    fn flows_of_processes_on_addresses_without_node_ports_are_left_alone() {
        let config = crate::config::raw::KubeProxyConfiguration {
            node_port_addresses: Some(vec!["192.168.0.0/16".into(), "::1/128".into()]),
            ..Default::default()
        };
        let settings = crate::config::resolve(config, &crate::config::Flags::default(), "n").unwrap();
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let interfaces = ["192.168.0.2", "10.1.0.1", "127.0.0.1", "fd00::2"].map(ip).to_vec();
        let own = Own { settings: &settings, facts: &NodeFacts { interfaces, ..NodeFacts::default() } };
        assert!(own.node_port_of(&ip("192.168.0.2"), false));
        for other in ["10.1.0.1", "127.0.0.1", "fd00::2"] {
            assert!(!own.node_port_of(&ip(other), false), "{other}");
            assert!(own.node_port_of(&ip(other), true), "{other}: translated, so it was one");
        }
        assert!(!own.node_port_of(&ip("203.0.113.9"), true), "another host's");
    }
}
