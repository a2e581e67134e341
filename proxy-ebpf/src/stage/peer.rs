//! What is remembered of sockets: what each believes to talk to, and which endpoints an unconnected
//! UDP socket has.
//!
//! An answer to an unconnected UDP socket has nothing but the endpoint's address in it, so each
//! endpoint can stand for one frontend only: the one that the socket used last. Of a pod, datagrams
//! to a second frontend that leads to the same endpoint are left to the packet path, where their
//! answers have ports of their own if they are masqueraded.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::maps::LruHashMap;
use sluice_common::Address;
use sluice_common::node::Config;
use sluice_common::service::{Endpoint, list};
use sluice_common::socket::{Peer, Pick, SocketKey};

use super::endpoint::is_member;
use crate::maps::{PEERS, PICKS, TCP_PEERS};
use crate::packet::protocol;
use crate::socket::Socket;
use crate::verdict::Call;

/// Who remembers what a socket believes to talk to. UDP sockets are found by it when their endpoint
/// goes away, so TCP connections, of which there are many more, must not push them out.
#[inline(always)]
fn peers(protocol: u32) -> &'static LruHashMap<SocketKey, Peer> {
    if protocol == protocol::TCP { &TCP_PEERS } else { &PEERS }
}

/// The address and port that a socket believes to talk to.
#[inline(always)]
pub fn of(socket: &Socket<'_>) -> Option<(Address, u16)> {
    let protocol = socket.protocol();
    let key = socket.key(socket.address(), socket.port(), protocol);
    // SAFETY: an element that is evicted and reused meanwhile shows the address of another
    // frontend; nothing worse.
    peers(protocol).get_ptr(key).map(|peer| unsafe { ((*peer).address, (*peer).port) })
}

/// Remembers what a socket believes to talk to.
#[inline(always)]
pub fn remember(cookie: u64, protocol: u32, endpoint: &Endpoint, address: Address, port: u16, group: u64) {
    let key = SocketKey {
        cookie,
        address: endpoint.address,
        port: endpoint.port,
        protocol: protocol as u16,
        reserved: 0,
    };
    // A full map evicts the oldest; at worst a socket sees the endpoint's address.
    let _ = peers(protocol).insert(key, Peer { address, port, reserved: 0, reserved2: 0, group }, 0);
}

/// The time in seconds.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: reads the clock.
    (unsafe { bpf_ktime_get_ns() } / 1_000_000_000) as u32
}

/// The endpoint of a service port that a socket has sent to before, if it still serves.
#[inline(always)]
pub fn picked(pick_key: &SocketKey, group: u64, now: u32, config: &Config) -> Result<Option<Endpoint>, Call> {
    let Some(known) = PICKS.get_ptr_mut(pick_key) else { return Ok(None) };
    // SAFETY: an element that is evicted and reused meanwhile belongs to another service port, or
    // its endpoint is a member of this one.
    let (known_group, endpoint, used) = unsafe { ((*known).group, (*known).endpoint, (*known).used) };
    if known_group != group {
        return Ok(None);
    }
    if endpoint.port == Pick::BY_PACKETS {
        return Err(Call::Leave);
    }
    if now.wrapping_sub(used) >= config.udp_stream_timeout || !is_member(group | list::SERVING, &endpoint) {
        return Ok(None);
    }
    // SAFETY: as above.
    unsafe { (*known).used = now };
    Ok(Some(endpoint))
}

/// Remembers the endpoint that a socket sends to.
#[inline(always)]
pub fn set_picked(pick_key: &SocketKey, group: u64, now: u32, endpoint: Endpoint) {
    // A full map evicts the oldest; at worst another endpoint is picked with the next datagram.
    let _ = PICKS.insert(pick_key, Pick { group, endpoint, used: now }, 0);
}

/// Makes an endpoint stand for the frontend of `pick_key` in answers to its socket. `false`: it
/// stands for another frontend already, and this one goes by packets from now on.
///
/// Not of this node's own processes: their answers would come in by an endpoint's interface from an
/// address that is not there, which the stack refuses where `rp_filter` is strict; and nothing
/// takes their datagrams to the node's own addresses.
#[inline(always)]
pub fn stands_for(pick_key: &SocketKey, endpoint: &Endpoint, group: u64, own_process: bool) -> bool {
    let peer_key = SocketKey { address: endpoint.address, port: endpoint.port, ..*pick_key };
    if let Some(peer) = PEERS.get_ptr(peer_key) {
        // SAFETY: an element that is evicted and reused meanwhile is another socket's; then this
        // frontend goes by packets.
        let (address, port) = unsafe { ((*peer).address, (*peer).port) };
        if address == pick_key.address && port == pick_key.port {
            return true;
        }
        if !own_process {
            let endpoint = Endpoint { address: Address::default(), port: Pick::BY_PACKETS, reserved: 0 };
            // A full map evicts the oldest; at worst it is asked again with the next datagram.
            let _ = PICKS.insert(pick_key, Pick { group, endpoint, used: 0 }, 0);
            return false;
        }
    }
    // Pushed out meanwhile, or new, or another one's: replies must show this frontend's address.
    remember(pick_key.cookie, protocol::UDP, endpoint, pick_key.address, pick_key.port, group);
    true
}

/// A socket sends to an address that is left as it is. If that is an endpoint, it stands for itself
/// from now on.
#[inline(always)]
pub fn stands_for_itself(to: &SocketKey) {
    if PEERS.get_ptr(to).is_some() {
        let _ = PEERS.remove(to);
    }
}
