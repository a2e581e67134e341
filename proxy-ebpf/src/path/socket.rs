//! The socket path: destinations are translated when a process connects or sends, so its packets
//! cost nothing.
//!
//! What it cannot decide is left to the packet path by leaving the address as it is: a socket's
//! source address is not known yet when it connects, so what depends on it (source ranges,
//! affinity, pods that the detector may not take for pods) waits for the packet.

use core::convert::Infallible;

use aya_ebpf::programs::SockAddrContext;
use sluice_common::service::FrontendKey;

use crate::node::config;
use crate::packet::protocol::{TCP, UDP};
use crate::socket::{Family, Socket};
use crate::stage::{capture, endpoint, peer};
use crate::verdict::Call;

/// `connect(2)`.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    let Err(call) = connects(&Socket::new(ctx, family));
    call.report()
}

#[inline(always)]
fn connects(socket: &Socket<'_>) -> Result<Infallible, Call> {
    let protocol = socket.protocol();
    let Some(config) = config() else { return Err(Call::Leave) };
    if protocol != TCP && protocol != UDP {
        return Err(Call::Leave);
    }
    let netns = capture::check_namespace(socket, config)?;
    let (address, port) = (socket.address(), socket.port());
    let mut key = FrontendKey { address, port, protocol: protocol as u8, kind: 0 };
    let (frontend, what) = capture::decide(&mut key, netns, config)?;
    let client = capture::client(netns);
    let cookie = socket.cookie();
    let hash = endpoint::hash(&client, cookie as u16, &key);
    let Some(endpoint) = endpoint::pick(&frontend, what, &client, hash, config) else {
        return Err(Call::Refuse);
    };
    peer::remember(cookie, protocol, &endpoint, address, port, frontend.group);
    socket.set(&endpoint.address, endpoint.port);
    Err(Call::Translated)
}

/// `sendto(2)` and `sendmsg(2)` with an address, UDP only.
#[inline(always)]
pub fn sendmsg(ctx: &SockAddrContext, family: Family) -> i32 {
    let Err(call) = sends(&Socket::new(ctx, family));
    call.report()
}

#[inline(always)]
fn sends(socket: &Socket<'_>) -> Result<Infallible, Call> {
    let Some(config) = config() else { return Err(Call::Leave) };
    let netns = capture::check_namespace(socket, config)?;
    let (address, port) = (socket.address(), socket.port());
    let mut key = FrontendKey { address, port, protocol: UDP as u8, kind: 0 };
    let pick_key = socket.key(address, port, UDP);
    let decided = capture::decide(&mut key, netns, config);
    if matches!(decided, Err(Call::Leave)) && !socket.is_connected() {
        peer::stands_for_itself(&pick_key);
    }
    let (frontend, what) = decided?;
    let now = peer::now();
    let own_process = netns == config.netns;
    if let Some(endpoint) = peer::picked(&pick_key, frontend.group, now, config)? {
        if peer::stands_for(&pick_key, &endpoint, frontend.group, own_process) {
            socket.set(&endpoint.address, endpoint.port);
        }
        return Err(Call::Leave);
    }
    let client = capture::client(netns);
    let hash = endpoint::hash(&client, pick_key.cookie as u16, &key);
    let Some(endpoint) = endpoint::pick(&frontend, what, &client, hash, config) else {
        return Err(Call::Refuse);
    };
    peer::set_picked(&pick_key, frontend.group, now, endpoint);
    if !peer::stands_for(&pick_key, &endpoint, frontend.group, own_process) {
        return Err(Call::Leave);
    }
    socket.set(&endpoint.address, endpoint.port);
    Err(Call::Translated)
}

/// `recvmsg(2)` of UDP, and `getpeername(2)`: the socket sees the frontend that it talks to.
#[inline(always)]
pub fn untranslate(ctx: &SockAddrContext, family: Family) -> i32 {
    let socket = Socket::new(ctx, family);
    if let Some((address, port)) = peer::of(&socket) {
        socket.set(&address, port);
    }
    Call::Leave.report()
}
