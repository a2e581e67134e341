//! What a process of the node or of a pod gets that connects or sends to an address.

use sluice_common::Address;
use sluice_common::node::{Config, namespace, option};
use sluice_common::service::{Frontend, FrontendKey, action, flag, kind};

use super::service::{Loopback, find, forwards, is_allowed, is_cluster_ip};
use crate::maps::NAMESPACES;
use crate::node;
use crate::socket::Socket;
use crate::verdict::Call;

/// Leaves alone whose network namespace has left the socket path, and all when no connection is
/// captured any more. Returns the cookie of the namespace.
#[inline(always)]
pub fn check_namespace(socket: &Socket<'_>, config: &Config) -> Result<u64, Call> {
    if config.options & option::DRAINING != 0 {
        return Err(Call::Leave);
    }
    let netns = socket.netns();
    if is_opted_out(netns) { Err(Call::Leave) } else { Ok(netns) }
}

/// Decides by the frontend of a destination: which endpoints it leads to, as one of the frontend's
/// actions says; or what else becomes of the call. Leaves the frontend's key in `key`.
#[inline(always)]
pub fn decide(key: &mut FrontendKey, netns: u64, config: &Config) -> Result<(Frontend, u8), Call> {
    let own_process = netns == config.netns;
    let loopback = if own_process { Loopback::of(&key.address, config) } else { Loopback::Elsewhere };
    let Some(frontend) = find(key, loopback) else {
        return Err(if is_cluster_ip(key) { Call::Refuse } else { Call::Leave });
    };
    let what = if loopback != Loopback::Elsewhere && key.kind == kind::NODE_PORT {
        loopback.action(&frontend)
    } else if own_process {
        frontend.host
    } else {
        frontend.pod
    };
    if own_process {
        let source = if key.address.is_v4() { &config.address4 } else { &config.address6 };
        if !is_allowed(&frontend, key, source) {
            return Err(unanswered(key));
        }
    } else if frontend.flags & flag::FILTERED != 0
        || frontend.affinity != 0
        || (frontend.pod ^ frontend.other) & !action::MASQUERADE != 0
    {
        return Err(Call::Leave);
    }
    if what == action::REJECT {
        Err(Call::Refuse)
    } else if forwards(what) {
        Ok((frontend, what))
    } else if own_process {
        Err(unanswered(key))
    } else {
        Err(Call::Leave)
    }
}

/// What a process of this node must get no answer from: packets are dropped on their way out, but
/// those to an address of the node itself never come by an interface that has programs.
#[inline(always)]
fn unanswered(key: &FrontendKey) -> Call {
    if node::own_address(&key.address) != 0 { Call::Drop } else { Call::Leave }
}

/// The node's own processes have many addresses to stick to an endpoint by; the cookie of their
/// namespace stands for all.
#[inline(always)]
pub fn client(netns: u64) -> Address {
    Address { words: [0, 0, netns as u32, (netns >> 32) as u32] }
}

#[inline(always)]
fn is_opted_out(netns: u64) -> bool {
    // SAFETY: as in `node::interface`.
    unsafe { NAMESPACES.get(netns) }.is_some_and(|bits| *bits & namespace::NO_SOCKET_PATH != 0)
}
