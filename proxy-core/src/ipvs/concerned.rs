//! Whose an operation is.

use std::sync::Arc;

use super::marks::{Marks, cluster_group};
use super::object::{Op, ServerKey};
use crate::model::ObjectName;
use crate::net::Family;
use crate::plan::{Capture, PortPlan, ServicePlan};

/// The Services that need what an operation is about: of a virtual server one, of an address
/// perhaps several.
pub fn concerned(op: &Op, plans: &[Arc<ServicePlan>], marks: &Marks) -> Vec<ObjectName> {
    let has =
        |plan: &ServicePlan| matches!(op, Op::BindAddress(address) if plan.cluster_ips.contains(address));
    let is_concerned =
        |plan: &&Arc<ServicePlan>| has(plan) || plan.ports.iter().any(|port| needs(port, op, marks));
    plans.iter().filter(is_concerned).map(|plan| plan.name.clone()).collect()
}

fn needs(port: &PortPlan, op: &Op, marks: &Marks) -> bool {
    let key = match op {
        Op::BindAddress(address) | Op::UnbindAddress(address) => {
            let is_here = |capture: &Capture| matches!(capture, Capture::Address(ip, ..) if ip == address);
            return port.frontends.iter().any(|frontend| is_here(&frontend.capture));
        }
        Op::AddServer(server) | Op::SetServer(server) => server.key,
        Op::DeleteServer(key) | Op::LeadHere(key) | Op::LetPass(key) => *key,
        Op::AddDestination(key, _) | Op::SetDestination(key, _) | Op::DeleteDestination(key, _) => *key,
    };
    match key {
        ServerKey::Mark(_, mark) => marks.of(&cluster_group(port)) == Some(mark),
        ServerKey::Address(address, protocol, number) => {
            let is_it = |capture: &Capture| {
                *capture == Capture::Address(address, protocol, number)
                    || *capture == Capture::NodePort(Family::of(&address), protocol, number)
            };
            port.frontends.iter().any(|frontend| is_it(&frontend.capture))
        }
    }
}
