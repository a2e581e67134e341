//! What one changed endpoint of a large Service costs, by stage, in processor time, without a kernel:
//! `cargo run --release -p sluice-core --example large_service [ENDPOINTS] [udp|tcp]`.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for people, which may fail by panicking"
)]

use std::net::IpAddr;
use std::time::Duration;

use sluice_core::event::{Change, Event};
use sluice_core::index::Index;
use sluice_core::model::{
    Conditions, EndpointSlice, ObjectName, Service, ServicePort, ServiceType, SliceEndpoint, SlicePort,
    TrafficPolicy,
};
use sluice_core::net::{Family, Protocol};
use sluice_core::nft::{Ledger, NftConfig, NodeView};
use sluice_core::plan::{Budget, PlanConfig, Planner};

/// The processor time of this thread: others' work does not count.
fn now() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

const IN_SLICE: u32 = 1000;
const CHANGES: u32 = 100;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let endpoints: u32 = arguments.next().map_or(250_000, |text| text.parse().unwrap());
    let protocol = if arguments.next().as_deref() == Some("tcp") { Protocol::Tcp } else { Protocol::Udp };
    let budget = Budget { frontends: 1000, elements: usize::MAX };
    let mut planner =
        Planner::new(PlanConfig { node_name: "node-0".into(), budget, ..PlanConfig::default() });
    let (mut index, mut ledger) = (Index::default(), Ledger::new(NftConfig::default(), NodeView::default()));
    let begun = now();
    index.apply(Event::Service(Change::Apply(service(protocol))));
    let slices = endpoints.div_ceil(IN_SLICE);
    for at in 0..slices {
        index.apply(Event::Slice(Change::Apply(slice(at, protocol, None))));
    }
    step(&mut index, &mut planner, &mut ledger);
    println!("{endpoints} {} endpoints, first load: {:?}", protocol.name(), now() - begun);
    let mut all: Vec<[Duration; 3]> = Vec::new();
    let mut ops = 0;
    for change in 0..CHANGES {
        // An endpoint of some slice goes, and comes back.
        let at = change / 2 * 7 % slices;
        let gone = change.is_multiple_of(2).then_some(change % IN_SLICE);
        let event = Event::Slice(Change::Apply(slice(at, protocol, gone)));
        let begun = now();
        index.apply(event);
        let applied = now() - begun;
        let (planned, lowered, count) = step(&mut index, &mut planner, &mut ledger);
        ops += count;
        all.push([applied, planned, lowered]);
    }
    // The kernel tells in steps of some milliseconds, so single times say nothing.
    let mean = |time: &dyn Fn(&[Duration; 3]) -> Duration| all.iter().map(time).sum::<Duration>() / CHANGES;
    for (stage, name) in ["index", "plan", "lower and compare"].iter().enumerate() {
        println!("{name:18} {:?}", mean(&|times| times[stage]));
    }
    println!(
        "all                {:?}, {} operations a change",
        mean(&|times| times.iter().sum()),
        ops / all.len()
    );
}

/// Times of planning and lowering, and how many operations there are.
fn step(index: &mut Index, planner: &mut Planner, ledger: &mut Ledger) -> (Duration, Duration, usize) {
    let begun = now();
    let dirty = index.take_dirty();
    let changes = planner.replan(index, dirty.services);
    let planned = now() - begun;
    let begun = now();
    let ops = ledger.change(&changes);
    drop(changes);
    (planned, now() - begun, ops.len())
}

fn service(protocol: Protocol) -> Service {
    Service {
        name: ObjectName::new("default", "large"),
        created: None,
        service_type: ServiceType::ClusterIp,
        cluster_ips: vec![IpAddr::from([10, 96, 0, 1])],
        ports: vec![ServicePort { name: "".into(), protocol, port: 53, node_port: 0 }],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check_node_port: 0,
    }
}

/// A slice of a thousand endpoints, of which one may be gone. Their addresses are mixed with those of other slices.
fn slice(at: u32, protocol: Protocol, gone: Option<u32>) -> EndpointSlice {
    let endpoints = (0..IN_SLICE).filter(|i| Some(*i) != gone).map(|i| {
        let number = (at * IN_SLICE + i).wrapping_mul(0x9E37_79B1) >> 8;
        let [_, b, c, d] = number.to_be_bytes();
        SliceEndpoint {
            address: IpAddr::from([10, b, c, d]),
            node: Some(format!("node-{}", number % 1000).into()),
            conditions: Conditions::default(),
            hints: None,
        }
    });
    EndpointSlice {
        name: ObjectName::new("default", &format!("large-{at:04}")),
        service: ObjectName::new("default", "large"),
        family: Family::V4,
        ports: vec![SlicePort { name: "".into(), protocol, port: 53 }],
        endpoints: endpoints.collect(),
        triggered: None,
    }
}
