//! What a packet's sender gets of a frontend: a pod, this node, or another
//! (docs/kube-proxy-behaviour.md, 2.1).

use sluice_common::node::{interface, network, option};
use sluice_common::service::Frontend;

use crate::node;
use crate::packet::{Packet, is};
use crate::run::{Hook, Run};

/// One of the frontend's actions. What comes in is not from this node's own processes.
#[inline(always)]
pub fn action(run: &Run<'_>, packet: &Packet, frontend: &Frontend) -> u8 {
    match run.hook {
        Hook::Egress => frontend.host,
        Hook::Ingress if is_pod(run, packet) => frontend.pod,
        Hook::Ingress => frontend.other,
    }
}

#[inline(always)]
fn is_pod(run: &Run<'_>, packet: &Packet) -> bool {
    let detects = if packet.is(is::V4) { option::DETECTS4 } else { option::DETECTS6 };
    if run.config.options & detects == 0 {
        return false;
    }
    if run.config.options & option::BY_INTERFACE == 0 {
        return node::networks(&packet.key.source) & network::PODS != 0;
    }
    node::interface(run.interface()).is_some_and(|link| link.flags & interface::PODS != 0)
}
