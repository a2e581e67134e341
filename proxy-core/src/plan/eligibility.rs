//! Which endpoints a service port uses on this node (reference 1.6 and 1.7).
//!
//! All that counts of an endpoint is its [`Class`], and all that counts of the others is how many
//! there are of each ([`Tally`]): hints and fallbacks depend on whether there is any, or none but
//! those. So a change of a few endpoints says at once whether the others are chosen as before,
//! without a look at them.

use std::net::IpAddr;

use super::PlanConfig;
use crate::index::Endpoint;
use crate::list::List;

/// An endpoint chosen for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Whether it runs on this node; such a pod may connect to itself (hairpin).
    pub local: bool,
}

/// The endpoint lists of one service port.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct EndpointLists {
    /// CE.
    pub cluster: List<Target>,
    /// LE.
    pub local: List<Target>,
    /// Whether any endpoint is usable anywhere.
    pub has_any: bool,
}

/// What decisions depend on of an endpoint, in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class(u8);

impl Class {
    const READY: u8 = 1;
    const SERVING: u8 = 1 << 1;
    const TERMINATING: u8 = 1 << 2;
    /// It runs on this node.
    const HERE: u8 = 1 << 3;
    /// It has hints of nodes.
    const NODE_HINTS: u8 = 1 << 4;
    /// This node is among them.
    const FOR_NODE: u8 = 1 << 5;
    /// It has hints of zones.
    const ZONE_HINTS: u8 = 1 << 6;
    /// This node's is among them.
    const FOR_ZONE: u8 = 1 << 7;

    pub(super) fn of(endpoint: &Endpoint<'_>, config: &PlanConfig) -> Class {
        let (conditions, own) = (endpoint.conditions, config.node_name.as_str());
        let (nodes, zones) = endpoint.hints.map_or((&[][..], &[][..]), |hints| (&hints.nodes, &hints.zones));
        let bits = [
            (Class::READY, conditions.ready),
            (Class::SERVING, conditions.serving),
            (Class::TERMINATING, conditions.terminating),
            (Class::HERE, !own.is_empty() && endpoint.node == Some(own)),
            (Class::NODE_HINTS, !nodes.is_empty()),
            (Class::FOR_NODE, nodes.iter().any(|name| **name == *own)),
            (Class::ZONE_HINTS, !zones.is_empty()),
            (Class::FOR_ZONE, config.zone.as_ref().is_some_and(|zone| zones.contains(zone))),
        ];
        Class(bits.iter().filter(|(_, is)| *is).fold(0, |all, (bit, _)| all | bit))
    }

    fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }

    pub(super) fn is_serving(self) -> bool {
        self.has(Class::SERVING)
    }

    pub(super) fn is_here(self) -> bool {
        self.has(Class::HERE)
    }

    /// Whether health checks count it.
    pub(super) fn is_ready_here(self) -> bool {
        self.has(Class::READY | Class::HERE)
    }

    /// Where several slices list an endpoint, the one with the least counts.
    pub(super) fn rank(self) -> u8 {
        u8::from(self.has(Class::TERMINATING)) << 1 | u8::from(!self.has(Class::READY))
    }
}

/// How many endpoints there are of each class.
#[derive(Clone, Debug)]
pub(super) struct Tally([u32; 256]);

impl Default for Tally {
    fn default() -> Self {
        Tally([0; 256])
    }
}

impl Tally {
    pub(super) fn add(&mut self, class: Class) {
        self.0[usize::from(class.0)] += 1;
    }

    pub(super) fn remove(&mut self, class: Class) {
        let count = &mut self.0[usize::from(class.0)];
        *count = count.saturating_sub(1);
    }

    fn classes(&self) -> impl Iterator<Item = Class> {
        (0..=u8::MAX).zip(&self.0).filter(|(_, count)| **count > 0).map(|(bits, _)| Class(bits))
    }

    fn any(&self, which: Selection) -> bool {
        self.classes().any(|class| which.takes(class))
    }

    /// Of the Cluster list (reference 1.6 and 1.7): what hints leave of the ready ones, or else
    /// those that still serve.
    pub(super) fn cluster(&self) -> Selection {
        let ready = Selection { bits: Class::READY | self.topology() };
        if self.any(ready) { ready } else { Selection::SERVING_TERMINATING }
    }

    /// Of the Local list, likewise.
    pub(super) fn local(&self) -> Selection {
        let ready = Selection { bits: Class::READY | Class::HERE };
        let serving = Selection { bits: Selection::SERVING_TERMINATING.bits | Class::HERE };
        if self.any(ready) { ready } else { serving }
    }

    /// Whether any endpoint is usable anywhere, for lists that are used.
    pub(super) fn has_any(&self, uses_cluster: bool, uses_local: bool) -> bool {
        let ready = Selection { bits: Class::READY };
        (uses_cluster && self.any(self.cluster()))
            || (uses_local && (self.any(ready) || self.any(Selection::SERVING_TERMINATING)))
    }

    /// Which endpoints hints leave (reference 1.7): the bits that those have.
    fn topology(&self) -> u8 {
        let ready = || self.classes().filter(|class| class.has(Class::READY));
        let decides = |(hints, here)| ready().all(|c| c.has(hints)) && ready().any(|c| c.has(here));
        let nodes = (Class::NODE_HINTS, Class::FOR_NODE);
        let zones = (Class::ZONE_HINTS, Class::FOR_ZONE);
        [nodes, zones].into_iter().find(|hints| decides(*hints)).map_or(0, |(_, here)| here)
    }
}

/// Which endpoints are chosen for a list: those whose classes have these bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Selection {
    bits: u8,
}

impl Selection {
    const SERVING_TERMINATING: Selection = Selection { bits: Class::SERVING | Class::TERMINATING };

    pub(super) fn takes(self, class: Class) -> bool {
        class.has(self.bits)
    }
}

/// Computes the endpoint lists of a service port. The order of `endpoints` is kept.
pub fn eligible(
    endpoints: &[Endpoint<'_>],
    uses_cluster: bool,
    uses_local: bool,
    config: &PlanConfig,
) -> EndpointLists {
    let mut tally = Tally::default();
    let classes: Vec<Class> = endpoints.iter().map(|endpoint| Class::of(endpoint, config)).collect();
    classes.iter().for_each(|class| tally.add(*class));
    let select = |which: Selection| -> List<Target> {
        let chosen = endpoints.iter().zip(&classes).filter(|(_, class)| which.takes(**class));
        chosen.map(|(e, class)| target((e.address, e.port), *class)).collect()
    };
    EndpointLists {
        cluster: if uses_cluster { select(tally.cluster()) } else { List::default() },
        local: if uses_local { select(tally.local()) } else { List::default() },
        has_any: tally.has_any(uses_cluster, uses_local),
    }
}

pub(super) fn target((address, port): (IpAddr, u16), class: Class) -> Target {
    Target { address, port, local: class.is_here() }
}
