//! What a frontend does with each kind of client (reference tables 2.2 and 2.3).

use super::{Action, EndpointLists, Group};
use crate::model::TrafficPolicy;

/// What happens, by the kind of client (reference 2.1). Evaluated in this order; the first that
/// fits wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Actions {
    /// Pods, as told by the detector. Where there is no detector, nobody is a pod and this equals
    /// `other`.
    pub pod: Action,
    /// This node's own processes.
    pub host: Action,
    /// Everybody else.
    pub other: Action,
}

impl Actions {
    /// The same for everybody.
    pub fn all(action: Action) -> Self {
        Actions { pod: action, host: action, other: action }
    }

    /// Whether anybody gets to an endpoint of a group.
    pub fn lead_to(&self, wanted: Group) -> bool {
        let leads = |action: &Action| matches!(action, Action::Forward { group, .. } if *group == wanted);
        [self.pod, self.host, self.other].iter().any(leads)
    }

    /// Whether anybody gets to an endpoint.
    pub fn forwards(&self) -> bool {
        [self.pod, self.host, self.other].iter().any(|action| matches!(action, Action::Forward { .. }))
    }
}

/// What a ClusterIP does.
pub fn internal_actions(
    policy: TrafficPolicy,
    lists: &EndpointLists,
    detects_pods: bool,
    masquerade_all: bool,
) -> Actions {
    let (group, empty) = match policy {
        TrafficPolicy::Cluster => (Group::Cluster, lists.cluster.is_empty()),
        TrafficPolicy::Local => (Group::Local, lists.local.is_empty()),
    };
    if !lists.has_any {
        return Actions::all(Action::Reject);
    }
    if empty {
        return Actions::all(Action::Drop);
    }
    let forward = |masquerade| Action::Forward { group, masquerade };
    let outside = forward(masquerade_all || detects_pods);
    Actions {
        pod: if detects_pods { forward(masquerade_all) } else { outside },
        host: outside,
        other: outside,
    }
}

/// What a node port, load balancer IP or external IP does.
pub fn external_actions(policy: TrafficPolicy, lists: &EndpointLists, detects_pods: bool) -> Actions {
    if !lists.has_any || lists.cluster.is_empty() {
        return Actions::all(Action::Reject);
    }
    let cluster = |masquerade| Action::Forward { group: Group::Cluster, masquerade };
    if policy == TrafficPolicy::Cluster {
        return Actions::all(cluster(true));
    }
    let other = if lists.local.is_empty() {
        Action::Drop
    } else {
        Action::Forward { group: Group::Local, masquerade: false }
    };
    Actions { pod: if detects_pods { cluster(false) } else { other }, host: cluster(true), other }
}
