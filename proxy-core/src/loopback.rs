//! Node ports on the node's loopback addresses: who answers, and where connections go that a
//! process of ours answers.
//!
//! The kernel translates no connection from one loopback address to another node. So a listener
//! takes TCP connections, and opens another one to an endpoint for each; what cannot be served so
//! is refused, because otherwise it would reach whatever process of the node happens to use the
//! number of a node port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::group::member;
use crate::list::List;
use crate::net::{Family, Protocol};
use crate::plan::{Action, Capture, PlanChange, PortPlan, ServicePlan, Target};

/// What becomes of node ports on loopback addresses of a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Loopback {
    /// Nothing: whoever listens there answers.
    #[default]
    LocalStack,
    /// TCP is served; in mode ebpf UDP too.
    Served,
    /// Nobody gets an answer but a refusal.
    Refused,
}

impl Loopback {
    /// Whether the ruleset refuses node ports of a protocol.
    pub fn refuses(self, protocol: Protocol) -> bool {
        match self {
            Loopback::LocalStack => false,
            Loopback::Served => protocol != Protocol::Tcp,
            Loopback::Refused => true,
        }
    }
}

/// The loopback address that listeners have; all of 127.0.0.0/8 is loopback, but only this one is
/// served.
pub fn localhost(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Where connections to one listener go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backends {
    /// The endpoints; at least one. The plan's own list, which may be long.
    pub endpoints: List<Target>,
    /// ClientIP affinity: how long after the last connection the next one goes to the same
    /// endpoint.
    pub affinity: Option<Duration>,
}

/// A listener, and where its connections go; nowhere: it is to be closed.
pub type Change = (SocketAddr, Option<Arc<Backends>>);

/// What changed plans mean for listeners, in order; the last word on an address counts. A node port
/// without endpoints has no listener, so that it is refused like any closed port.
pub fn changes(changes: &[PlanChange], served: [bool; 2]) -> Vec<Change> {
    let listeners = |plan: &Option<Arc<ServicePlan>>| -> Vec<(SocketAddr, Backends)> {
        let ports = plan.iter().flat_map(|plan| plan.ports.iter());
        ports.filter(|port| served[port.id.family as usize]).flat_map(of_port).collect()
    };
    // A node port may go from one Service to another, so all that is left comes first.
    let closed = changes.iter().flat_map(|change| listeners(&change.old)).map(|(at, _)| (at, None));
    let opened = changes.iter().flat_map(|change| listeners(&change.new));
    closed.chain(opened.map(|(at, backends)| (at, Some(Arc::new(backends))))).collect()
}

/// The listeners of a service port. Who connects is this node itself, and is still given the local
/// endpoints only by externalTrafficPolicy Local: what is asked for is the node port's own view.
fn of_port(port: &PortPlan) -> Vec<(SocketAddr, Backends)> {
    let mut found = Vec::new();
    for frontend in &port.frontends {
        let Capture::NodePort(family, Protocol::Tcp, number) = frontend.capture else { continue };
        let Action::Forward { group, .. } = frontend.actions.other else { continue };
        let endpoints = port.targets(group).clone();
        let affinity = port.affinity.map(|seconds| Duration::from_secs(u64::from(seconds)));
        if !endpoints.is_empty() {
            found.push((SocketAddr::new(localhost(family), number), Backends { endpoints, affinity }));
        }
    }
    found
}

/// Picks endpoints for the connections of one listener. All who can connect to it are one client.
#[derive(Clone, Debug)]
pub struct Picker {
    backends: Arc<Backends>,
    /// Where the last connection went, and when.
    pinned: Option<(SocketAddr, Duration)>,
}

impl Picker {
    /// A picker that remembers nothing.
    pub fn new(backends: Arc<Backends>) -> Self {
        Picker { backends, pinned: None }
    }

    /// Other endpoints, or another affinity, from now on.
    pub fn renew(&mut self, backends: Arc<Backends>) {
        if backends.affinity != self.backends.affinity {
            self.pinned = None;
        }
        self.backends = backends;
    }

    /// The endpoint of a connection that comes `now`, since any one moment in the past. `random` is
    /// uniform.
    pub fn pick(&mut self, now: Duration, random: u64) -> Option<SocketAddr> {
        let endpoints = &self.backends.endpoints;
        let Some(timeout) = self.backends.affinity else { return choose(endpoints, random) };
        let is_there = |at: &SocketAddr| endpoints.with((at.ip(), at.port()), member).next().is_some();
        let pinned =
            self.pinned.filter(|(endpoint, used)| now.saturating_sub(*used) <= timeout && is_there(endpoint));
        let endpoint = pinned.map(|(endpoint, _)| endpoint).or_else(|| choose(endpoints, random))?;
        self.pinned = Some((endpoint, now));
        Some(endpoint)
    }
}

fn choose(endpoints: &List<Target>, random: u64) -> Option<SocketAddr> {
    let count = endpoints.len() as u64;
    let at = random.checked_rem(count)?;
    endpoints.get(at as usize).map(|target| SocketAddr::from(member(target)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectName, ServicePortName};
    use crate::plan::{Actions, Frontend, Group, Role, Target};

    const CLUSTER: Action = Action::Forward { group: Group::Cluster, masquerade: true };
    const LOCAL: Action = Action::Forward { group: Group::Local, masquerade: false };

    fn target(last: u8) -> Target {
        Target { address: IpAddr::from([10, 1, 0, last]), port: 8080, local: last == 1 }
    }

    fn endpoint(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 1, 0, last], 8080))
    }

    /// A node port with endpoints 1 (local) and 2.
    fn plan(name: &str, protocol: Protocol, actions: Actions) -> Option<Arc<ServicePlan>> {
        let name = ObjectName::new("default", name);
        let family = Family::V4;
        let capture = Capture::NodePort(family, protocol, 30080);
        let node_port = Frontend { capture, role: Role::NodePort, actions, allowed_sources: None };
        let address = Capture::Address(IpAddr::from([10, 96, 0, 1]), protocol, 80);
        let cluster_ip = Frontend {
            capture: address,
            role: Role::ClusterIp,
            actions: Actions::all(CLUSTER),
            allowed_sources: None,
        };
        let port = PortPlan {
            id: ServicePortName { service: name.clone(), port: "".into(), protocol, family },
            affinity: None,
            cluster: [1, 2].map(target).into(),
            local: [target(1)].into(),
            frontends: [cluster_ip, node_port].into(),
            serving: [].into(),
            lacks_local_internal: false,
            lacks_local_external: false,
        };
        Some(Arc::new(ServicePlan { ports: [port].into(), ..ServicePlan::nothing(name) }))
    }

    fn change(old: Option<Arc<ServicePlan>>, new: Option<Arc<ServicePlan>>) -> PlanChange {
        let name = old.iter().chain(&new).map(|plan| plan.name.clone()).next();
        PlanChange { name: name.unwrap(), old, new }
    }

    fn of(list: &[PlanChange]) -> Vec<(String, Option<Vec<SocketAddr>>)> {
        let changes = changes(list, [true, false]).into_iter();
        let endpoints = |to: Arc<Backends>| to.endpoints.iter().map(|t| member(t).into()).collect();
        changes.map(|(at, to)| (at.to_string(), to.map(endpoints))).collect()
    }

    #[test]
    fn a_listener_has_the_endpoints_of_the_external_policy() {
        let cluster = change(None, plan("web", Protocol::Tcp, Actions::all(CLUSTER)));
        let expected = vec![endpoint(1), endpoint(2)];
        assert_eq!(of(std::slice::from_ref(&cluster)), [("127.0.0.1:30080".into(), Some(expected))]);
        // As pods and this node get all endpoints elsewhere.
        let short_circuited = Actions { pod: CLUSTER, host: CLUSTER, other: LOCAL };
        let local = change(None, plan("web", Protocol::Tcp, short_circuited));
        assert_eq!(of(&[local])[0].1, Some(vec![endpoint(1)]));
        assert_eq!(changes(&[cluster], [false, true]), []);
    }

    #[test]
    fn without_endpoints_and_for_other_protocols_there_is_no_listener() {
        let none_here = Actions { pod: CLUSTER, host: CLUSTER, other: Action::Drop };
        for actions in [none_here, Actions::all(Action::Reject)] {
            assert_eq!(of(&[change(None, plan("web", Protocol::Tcp, actions))]), []);
        }
        for protocol in [Protocol::Udp, Protocol::Sctp] {
            assert_eq!(of(&[change(None, plan("web", protocol, Actions::all(CLUSTER)))]), []);
        }
    }

    #[test]
    fn a_node_port_that_goes_to_another_service_stays_open() {
        let all = |name| plan(name, Protocol::Tcp, Actions::all(CLUSTER));
        let moved = of(&[change(None, all("a")), change(all("b"), None)]);
        assert_eq!(moved.len(), 2);
        assert!(moved[0].1.is_none() && moved[1].1.is_some(), "{moved:?}");
        let at = "127.0.0.1:30080".to_owned();
        assert_eq!(of(&[change(all("b"), None)]), [(at, None)]);
    }

    #[test]
    fn node_ports_that_are_not_served_are_refused() {
        let refuses =
            |what: Loopback| [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|p| what.refuses(p));
        assert_eq!(refuses(Loopback::LocalStack), [false; 3]);
        assert_eq!(refuses(Loopback::Served), [false, true, true]);
        assert_eq!(refuses(Loopback::Refused), [true; 3]);
    }

    fn backends(endpoints: &[u8], affinity: Option<u64>) -> Arc<Backends> {
        let endpoints = endpoints.iter().map(|last| target(*last)).collect();
        Arc::new(Backends { endpoints, affinity: affinity.map(Duration::from_secs) })
    }

    fn second(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn without_affinity_each_connection_is_drawn_anew() {
        let mut picker = Picker::new(backends(&[1, 2, 3], None));
        let picks: Vec<_> = (0..6).map(|random| picker.pick(second(0), random).unwrap()).collect();
        assert_eq!(picks, [1, 2, 3, 1, 2, 3].map(endpoint));
        assert_eq!(Picker::new(backends(&[], None)).pick(second(0), 5), None);
    }

    #[test]
    fn affinity_keeps_to_an_endpoint_until_nobody_came_for_its_timeout() {
        let mut picker = Picker::new(backends(&[1, 2], Some(10)));
        assert_eq!(picker.pick(second(100), 0), Some(endpoint(1)));
        assert_eq!(picker.pick(second(110), 1), Some(endpoint(1)), "just in time");
        assert_eq!(picker.pick(second(119), 1), Some(endpoint(1)), "each connection prolongs it");
        assert_eq!(picker.pick(second(130), 1), Some(endpoint(2)));
    }

    #[test]
    fn affinity_ends_with_its_endpoint_and_with_another_timeout() {
        let mut picker = Picker::new(backends(&[1, 2], Some(10)));
        assert_eq!(picker.pick(second(0), 0), Some(endpoint(1)));
        picker.renew(backends(&[1, 2, 3], Some(10)));
        assert_eq!(picker.pick(second(1), 2), Some(endpoint(1)));
        picker.renew(backends(&[2, 3], Some(10)));
        assert_eq!(picker.pick(second(2), 1), Some(endpoint(3)));
        picker.renew(backends(&[2, 3], Some(11)));
        assert_eq!(picker.pick(second(3), 0), Some(endpoint(2)));
        picker.renew(backends(&[2, 3], None));
        assert_eq!(picker.pick(second(4), 1), Some(endpoint(3)));
    }
}
