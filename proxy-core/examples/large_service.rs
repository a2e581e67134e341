//! What one changed endpoint of a large Service costs, by stage, in processor time, without a
//! kernel: `cargo run --release -p sluice-core --example large_service [ENDPOINTS] [udp|tcp]
//! [IN_SLICE]`.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for people, which may fail by panicking"
)]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use sluice_core::event::{Change, Event};
use sluice_core::index::Index;
use sluice_core::ipvs::{IpvsConfig, SchedulerName};
use sluice_core::model::{
    Conditions, EndpointSlice, ObjectName, Service, ServicePort, ServiceType, SliceEndpoint, SlicePort,
    TrafficPolicy,
};
use sluice_core::net::{Family, Protocol};
use sluice_core::nft::{Balancer, NftConfig, NodeView};
use sluice_core::plan::{Budget, PlanChange, PlanConfig, Planner, Scheduler};
use sluice_core::{ebpf, ipvs, nft};

const CHANGES: usize = 100;

/// The lowering and the ledger of one mode.
enum Ledger {
    Nftables(Box<nft::Ledger>),
    Ebpf(Box<ebpf::Ledger>),
    Ipvs(Box<ipvs::Ledger>),
}

impl Ledger {
    fn of(mode: &str) -> Ledger {
        match mode {
            "ebpf" => Ledger::Ebpf(Box::new(ebpf::Ledger::new(Scheduler::Random))),
            "ipvs" => {
                let (ruleset, node) = (ruleset(Balancer::Ipvs), ipvs::NodeView::default());
                Ledger::Ipvs(Box::new(ipvs::Ledger::new(virtual_servers(), node, ruleset)))
            }
            _ => Ledger::Nftables(Box::new(ruleset(Balancer::default()))),
        }
    }

    /// How many operations a change gives.
    fn change(&mut self, changes: &[PlanChange]) -> usize {
        match self {
            Ledger::Nftables(ledger) => ledger.change(changes).len(),
            Ledger::Ebpf(ledger) => ledger.change(changes).len(),
            Ledger::Ipvs(ledger) => {
                let steps = ledger.change(changes);
                let servers = [&steps.before, &steps.after, &steps.last].map(Vec::len);
                servers.iter().sum::<usize>() + steps.ruleset.len() + steps.closing.len()
            }
        }
    }
}

fn ruleset(balancer: Balancer) -> nft::Ledger {
    nft::Ledger::new(NftConfig { balancer, ..NftConfig::default() }, NodeView::default())
}

fn virtual_servers() -> IpvsConfig {
    let scheduler = SchedulerName::ROUND_ROBIN;
    IpvsConfig { scheduler, sticky: scheduler, exclude: Vec::new() }
}

/// The Service and its slices.
#[derive(Clone, Copy)]
struct Shape {
    endpoints: u32,
    protocol: Protocol,
    in_slice: u32,
}

impl Shape {
    fn slices(&self) -> u32 {
        self.endpoints.div_ceil(self.in_slice)
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let endpoints: u32 = arguments.next().map_or(250_000, |text| text.parse().unwrap());
    let protocol = if arguments.next().as_deref() == Some("tcp") { Protocol::Tcp } else { Protocol::Udp };
    let in_slice: u32 = arguments.next().map_or(1000, |text| text.parse().unwrap());
    for mode in ["nftables", "ebpf", "ipvs"] {
        measure(mode, Shape { endpoints, protocol, in_slice });
    }
}

fn measure(mode: &str, shape: Shape) {
    let budget = Budget { frontends: 1000, elements: usize::MAX };
    let mut planner =
        Planner::new(PlanConfig { node_name: "node-0".into(), budget, ..PlanConfig::default() });
    let (mut index, mut ledger) = (Index::default(), Ledger::of(mode));
    let begun = Instant::now();
    index.apply(Event::Service(Change::Apply(service(shape.protocol))));
    for at in 0..shape.slices() {
        index.apply(Event::Slice(Change::Apply(slice(at, shape, None))));
    }
    step(&mut index, &mut planner, &mut ledger);
    let (name, endpoints) = (shape.protocol.name(), shape.endpoints);
    println!(
        "{mode}: {endpoints} {name} endpoints, {} a slice; first load: {:?}",
        shape.in_slice,
        begun.elapsed()
    );
    let mut all: Vec<[Duration; 4]> = Vec::new();
    let mut ops = 0;
    for change in 0..CHANGES as u32 {
        // An endpoint of some slice goes, and comes back.
        let at = change / 2 * 7 % shape.slices();
        let gone = change.is_multiple_of(2).then_some(change % shape.in_slice);
        let event = Event::Slice(Change::Apply(slice(at, shape, gone)));
        let begun = Instant::now();
        index.apply(event);
        let applied = begun.elapsed();
        let (planned, lowered, count) = step(&mut index, &mut planner, &mut ledger);
        ops += count;
        all.push([applied, planned, lowered, applied + planned + lowered]);
    }
    println!("  the first {:?}", all[0][3]);
    for (stage, name) in ["index", "plan", "lower and compare", "all"].iter().enumerate() {
        let mut times: Vec<Duration> = all.iter().map(|times| times[stage]).collect();
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!("  {name:18} median {:?}, 10 % {:?}, 90 % {:?}, most {:?}", at(50), at(10), at(90), at(100));
    }
    println!("  {} operations a change", ops / all.len());
}

/// Times of planning and lowering, and how many operations there are. What a change replaces is
/// freed in it.
fn step(index: &mut Index, planner: &mut Planner, ledger: &mut Ledger) -> (Duration, Duration, usize) {
    let begun = Instant::now();
    let dirty = index.take_dirty();
    let changes = planner.replan(index, dirty.services);
    let planned = begun.elapsed();
    let begun = Instant::now();
    let ops = ledger.change(&changes);
    drop(changes);
    (planned, begun.elapsed(), ops)
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

/// A slice, of which one endpoint may be gone. Their addresses are mixed with those of other
/// slices.
fn slice(at: u32, shape: Shape, gone: Option<u32>) -> EndpointSlice {
    let endpoints = (0..shape.in_slice).filter(|i| Some(*i) != gone).map(|i| {
        let number = (at * shape.in_slice + i).wrapping_mul(0x9E37_79B1) >> 8;
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
        ports: vec![SlicePort { name: "".into(), protocol: shape.protocol, port: 53 }],
        endpoints: endpoints.collect(),
        triggered: None,
    }
}
