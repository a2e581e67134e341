//! Which frontend an address is, and whether it forwards. Both paths use it.

use aya_ebpf::maps::lpm_trie::Key;
use sluice_common::node::{Config, address, network, option};
use sluice_common::service::{Frontend, FrontendKey, SOURCE_PREFIX, SourceKey, action, flag, kind};
use sluice_common::{Address, MAPPED};

use super::flow;
use crate::maps::{FRONTENDS, SOURCES};
use crate::node;
use crate::packet::{Packet, is};
use crate::run::{Run, Scratch};
use crate::verdict::{Reason, Refusal, Verdict};

/// Leaves a packet of no flow alone while no connection is captured any more, and a later part of
/// a packet, which begins none.
#[inline(always)]
pub fn check_new(run: &Run<'_>, packet: &Packet) -> Result<(), Verdict> {
    if run.config.options & option::DRAINING != 0 || packet.is(is::LATER_FRAGMENT) {
        return Err(Verdict::Pass);
    }
    Ok(())
}

/// Finds the frontend of a packet that belongs to no flow; leaves the key that it was found by in
/// `scratch.frontend`.
#[inline(always)]
pub fn of(scratch: &mut Scratch) -> Option<Frontend> {
    let packet = &scratch.packet;
    scratch.frontend = FrontendKey {
        address: packet.key.destination,
        port: packet.key.destination_port,
        protocol: packet.key.protocol as u8,
        kind: 0,
    };
    if packet.is(is::PORTS) { find(&mut scratch.frontend, Loopback::Elsewhere) } else { None }
}

/// Keeps out whom load balancer source ranges do not have.
#[inline(always)]
pub fn check_range(scratch: &Scratch, frontend: &Frontend) -> Result<(), Verdict> {
    if is_allowed(frontend, &scratch.frontend, &scratch.packet.key.source) {
        Ok(())
    } else {
        Err(Verdict::Drop(Reason::SourceRange))
    }
}

/// Ends what a client does not get, as one of the frontend's actions says.
#[inline(always)]
pub fn check_action(what: u8) -> Result<(), Verdict> {
    if what == action::REJECT {
        Err(Verdict::Refuse(Refusal::NoEndpoints))
    } else if forwards(what) {
        Ok(())
    } else {
        Err(Verdict::Drop(Reason::NoLocalEndpoints))
    }
}

/// Whether a packet without a frontend is refused: a ClusterIP has no such port. Of ICMP, only
/// what asks for an answer.
#[inline(always)]
pub fn is_undefined_port(scratch: &mut Scratch) -> bool {
    let asks = !scratch.packet.is_icmp() || scratch.packet.is_echo_request();
    asks && is_cluster_ip(&mut scratch.frontend)
}

/// Ends, on its way out and after other proxies had their turn, what goes to an address of the
/// service networks that no Service has: it leads nowhere.
#[inline(always)]
pub fn check_allocated(run: &Run<'_>, packet: &Packet) -> Result<(), Verdict> {
    if !flow::may_begin(packet) || run.config.options & option::DRAINING != 0 {
        return Ok(());
    }
    if node::networks(&packet.key.destination) & network::SERVICES != 0 {
        return Err(Verdict::Drop(Reason::Unallocated));
    }
    Ok(())
}

/// Looks a frontend up by its key. It is copied, because an element that is deleted meanwhile may
/// become another frontend at once ([`node`]).
#[inline(always)]
fn frontend(key: &FrontendKey) -> Option<Frontend> {
    // SAFETY: as in `node::interface`.
    unsafe { FRONTENDS.get(key) }.copied()
}

/// Finds the frontend of a destination; leaves the key that it was found by in `key`, which must
/// hold address, port and protocol. `loopback` is what becomes of node ports there.
#[inline(always)]
pub fn find(key: &mut FrontendKey, loopback: Loopback) -> Option<Frontend> {
    key.kind = kind::ADDRESS;
    if let Some(found) = frontend(key) {
        return Some(found);
    }
    if !answers_node_ports(&key.address, loopback) {
        return None;
    }
    key.kind = kind::NODE_PORT;
    let address = key.address;
    key.address = if address.is_v4() { Address::v4(0) } else { Address::default() };
    let found = frontend(key);
    if found.is_none() {
        key.address = address;
        key.kind = kind::ADDRESS;
    }
    found
}

/// Whether an address is some Service's ClusterIP, whose undefined ports are refused.
#[inline(always)]
pub fn is_cluster_ip(key: &mut FrontendKey) -> bool {
    let (port, protocol) = (key.port, key.protocol);
    (key.port, key.protocol, key.kind) = (0, 0, kind::ADDRESS);
    let found = frontend(key).is_some_and(|marker| marker.flags & flag::CLUSTER_IP != 0);
    (key.port, key.protocol) = (port, protocol);
    found
}

#[inline(always)]
fn answers_node_ports(to: &Address, loopback: Loopback) -> bool {
    loopback != Loopback::Elsewhere || node::own_address(to) & address::NODE_PORTS != 0
}

/// What becomes of a node port on a loopback address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Loopback {
    /// It is no loopback address, or the local stack's to answer.
    Elsewhere,
    /// It leads to endpoints.
    Served,
    /// It is refused.
    Refused,
}

impl Loopback {
    /// For one of this node's own processes that connects or sends to an address.
    #[inline(always)]
    pub fn of(to: &Address, config: &Config) -> Self {
        let [a, b, c, d] = to.words;
        let (serves, refuses) = if a != 0 || b != 0 {
            (0, 0)
        } else if c == MAPPED && u32::from_be(d) >> 24 == 127 {
            (option::SERVES_LOOPBACK4, option::REFUSES_LOOPBACK4)
        } else if c == 0 && d == 1_u32.to_be() {
            (option::SERVES_LOOPBACK6, option::REFUSES_LOOPBACK6)
        } else {
            (0, 0)
        };
        if config.options & serves != 0 {
            Loopback::Served
        } else if config.options & refuses != 0 {
            Loopback::Refused
        } else {
            Loopback::Elsewhere
        }
    }

    /// What a node port found there does. Nobody is short-circuited past externalTrafficPolicy
    /// Local, and what has no endpoints is refused like a closed port.
    #[inline(always)]
    pub fn action(self, frontend: &Frontend) -> u8 {
        if self == Loopback::Served && forwards(frontend.other) { frontend.other } else { action::REJECT }
    }
}

/// Whether load balancer source ranges let a client use a frontend.
#[inline(always)]
pub fn is_allowed(frontend: &Frontend, key: &FrontendKey, source: &Address) -> bool {
    if frontend.flags & flag::FILTERED == 0 {
        return true;
    }
    SOURCES.get(Key::new(SOURCE_PREFIX + 128, SourceKey { frontend: *key, source: *source })).is_some()
}

/// What is left to do when it is known what a client gets.
#[inline(always)]
pub fn forwards(what: u8) -> bool {
    let what = what & !action::MASQUERADE;
    what == action::CLUSTER || what == action::LOCAL
}
