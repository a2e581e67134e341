//! Large Services: slices of many endpoints that have some in common, and what happens to them.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sluice_core::event::{Change, Event};
use sluice_core::model::{
    Conditions, EndpointSlice, Hints, ObjectName, Service, ServiceType, SliceEndpoint, SlicePort,
    TrafficPolicy,
};
use sluice_core::net::Protocol::{Tcp, Udp};

use crate::objects::{endpoint, name, port, service, slice};
use crate::universe::{any_service, chance};

/// Names of slices.
const SLICES: [&str; 6] = ["a4", "b4", "c4", "d4", "e4", "f4"];

/// What the endpoints of a slice have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// All are ready.
    Ready,
    /// None is, and they serve while they end.
    Ending,
    /// All are ready, for zones and nodes.
    Hinted,
    /// Anything.
    Mixed,
}

/// What happens.
#[derive(Clone, Debug)]
pub(crate) enum Happening {
    /// A slice becomes this: kind, seed, first host and how many.
    Slice(usize, Kind, u64, u16, u16),
    /// Some endpoints of a slice become others or go.
    Touch(usize, u64),
    /// A slice goes.
    Gone(usize),
    /// The Service becomes another one.
    Service(Box<Service>),
}

/// What may happen.
pub(crate) fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let kinds = proptest::sample::select(vec![Kind::Ready, Kind::Ending, Kind::Hinted, Kind::Mixed]);
    let at = || 0..SLICES.len();
    let happening = prop_oneof![
        4 => (at(), kinds, any::<u64>(), 0u16..500, 0u16..200)
            .prop_map(|(at, kind, seed, first, count)| Happening::Slice(at, kind, seed, first, count)),
        6 => (at(), any::<u64>()).prop_map(|(at, seed)| Happening::Touch(at, seed)),
        1 => at().prop_map(Happening::Gone),
        1 => any_service().prop_map(|other| Happening::Service(Box::new(large_service(other)))),
    ];
    proptest::collection::vec(happening, 4..16)
}

fn large_service(other: Service) -> Service {
    let ports = vec![port("http", Tcp, 80, 30080), port("dns", Udp, 53, 30053), port("http", Tcp, 8080, 0)];
    Service { name: name("s1"), ports, cluster_ips: service("", "172.30.0.1").cluster_ips, ..other }
}

/// A Service of which all decisions are asked for.
pub(crate) fn local_service() -> Service {
    large_service(Service {
        service_type: ServiceType::LoadBalancer,
        external_policy: TrafficPolicy::Local,
        health_check_node_port: 32000,
        ..service("s1", "")
    })
}

/// The slices of now.
#[derive(Default)]
pub(crate) struct Slices(BTreeMap<ObjectName, EndpointSlice>);

impl Slices {
    /// What happens as an event.
    pub(crate) fn event(&mut self, happening: &Happening) -> Event {
        let slice = match happening {
            Happening::Service(service) => return Event::Service(Change::Apply((**service).clone())),
            Happening::Gone(at) => {
                self.0.remove(&name(SLICES[*at]));
                return Event::Slice(Change::Delete(name(SLICES[*at])));
            }
            Happening::Slice(at, kind, seed, first, count) => {
                made(SLICES[*at], (*first..*first + *count).map(|host| told(*kind, *seed, host)))
            }
            Happening::Touch(at, seed) => self.touched(SLICES[*at], *seed),
        };
        self.0.insert(slice.name.clone(), slice.clone());
        Event::Slice(Change::Apply(slice))
    }

    fn touched(&self, of: &str, seed: u64) -> EndpointSlice {
        let Some(before) = self.0.get(&name(of)) else { return made(of, std::iter::empty()) };
        let touch = |(host, endpoint): (u16, &SliceEndpoint)| match chance(seed, &host) % 40 {
            0 => None,
            1 => Some(SliceEndpoint { address: endpoint.address, ..told(Kind::Mixed, seed, host) }),
            2 => Some(told(Kind::Ready, seed, host % 500)),
            _ => Some(endpoint.clone()),
        };
        made(of, (0..).zip(&before.endpoints).filter_map(touch))
    }
}

fn made(text: &str, endpoints: impl Iterator<Item = SliceEndpoint>) -> EndpointSlice {
    let mut slice = slice(text, "s1", ("http", Tcp, 8080), endpoints.collect());
    slice.ports.push(SlicePort { name: "dns".into(), protocol: Udp, port: 53 });
    slice
}

fn told(kind: Kind, seed: u64, host: u16) -> SliceEndpoint {
    let number = chance(seed, &host);
    let is = |bit: u32| number >> bit & 1 == 1;
    let node = ["here", "there", "", "there"][number as usize >> 8 & 3];
    let hinted = || {
        let list = |bit: u32, names: [&str; 2]| vec![names[usize::from(is(bit))].into()];
        Some(Box::new(Hints { zones: list(0, ["za", "zb"]), nodes: list(1, ["here", "there"]) }))
    };
    let (ready, serving, terminating) = match kind {
        Kind::Ready | Kind::Hinted => (true, true, false),
        Kind::Ending => (false, true, true),
        Kind::Mixed => (is(2), is(3), is(4)),
    };
    let hints = match kind {
        Kind::Hinted => hinted(),
        Kind::Mixed if is(5) => hinted(),
        _ => None,
    };
    let conditions = Conditions { ready, serving, terminating };
    SliceEndpoint { conditions, hints, ..endpoint(&format!("10.1.{}.{}", host >> 8, host & 255), node) }
}
