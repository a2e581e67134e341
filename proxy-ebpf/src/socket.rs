//! The socket path: destinations are translated when a process connects or sends, so its packets
//! cost nothing.
//!
//! What it cannot decide is left to the packet path by leaving the address as it is: a socket's
//! source address is not known yet when it connects, so what depends on it (source ranges,
//! affinity, pods that the detector may not take for pods) waits for the packet.
//!
//! An answer to an unconnected UDP socket has nothing but the endpoint's address in it, so each
//! endpoint can stand for one frontend only: the one that the socket used last. Of a pod, datagrams
//! to a second frontend that leads to the same endpoint are left to the packet path, where their
//! answers have ports of their own if they are masqueraded.

use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_set_retval,
};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::SockAddrContext;
use sluice_common::Address;
use sluice_common::counters::Counter;
use sluice_common::node::{Config, namespace, option};
use sluice_common::service::{Endpoint, Frontend, FrontendKey, action, flag, kind, list};
use sluice_common::socket::{Peer, Pick, SocketKey};

use crate::maps::{NAMESPACES, PEERS, PICKS, TCP_PEERS, config, count};
use crate::service::{
    Loopback, find, forwards, hash, is_allowed, is_cluster_ip, is_member, own_address, pick,
};

/// The system call goes on.
pub const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

const TCP: u32 = 6;
const UDP: u32 = 17;
const ECONNREFUSED: i32 = 111;
const ETIMEDOUT: i32 = 110;
/// The state of a connected socket, of UDP too (include/net/tcp_states.h).
const ESTABLISHED: u32 = 1;

/// The family of a hook.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `AF_INET` sockets
    V4,
    /// `AF_INET6` sockets, with IPv4 destinations too
    V6,
}

/// The context of a hook. Its fields may be read and written as whole words only, each by its own
/// instruction.
struct Socket<'a> {
    ctx: &'a SockAddrContext,
    family: Family,
}

impl Socket<'_> {
    #[inline(always)]
    fn raw(&self) -> *mut bpf_sock_addr {
        self.ctx.sock_addr
    }

    #[inline(always)]
    fn address(&self) -> Address {
        let raw = self.raw();
        // SAFETY: the context is valid while the program runs.
        unsafe {
            match self.family {
                Family::V4 => Address::v4(ptr::read_volatile(&raw const (*raw).user_ip4)),
                Family::V6 => {
                    let words = &raw const (*raw).user_ip6;
                    let words = words.cast::<u32>();
                    Address {
                        words: [
                            ptr::read_volatile(words),
                            ptr::read_volatile(words.add(1)),
                            ptr::read_volatile(words.add(2)),
                            ptr::read_volatile(words.add(3)),
                        ],
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn port(&self) -> u16 {
        let raw = self.raw();
        // SAFETY: as in `address`.
        unsafe { ptr::read_volatile(&raw const (*raw).user_port) as u16 }
    }

    #[inline(always)]
    fn protocol(&self) -> u32 {
        let raw = self.raw();
        // SAFETY: as in `address`.
        unsafe { ptr::read_volatile(&raw const (*raw).protocol) }
    }

    #[inline(always)]
    fn set(&self, address: &Address, port: u16) {
        let raw = self.raw();
        // SAFETY: as in `address`; these hooks may write these fields.
        unsafe {
            match self.family {
                Family::V4 => ptr::write_volatile(&raw mut (*raw).user_ip4, address.word4()),
                Family::V6 => {
                    let words = &raw mut (*raw).user_ip6;
                    let words = words.cast::<u32>();
                    ptr::write_volatile(words, address.words[0]);
                    ptr::write_volatile(words.add(1), address.words[1]);
                    ptr::write_volatile(words.add(2), address.words[2]);
                    ptr::write_volatile(words.add(3), address.words[3]);
                }
            }
            ptr::write_volatile(&raw mut (*raw).user_port, u32::from(port));
        }
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context is a socket's.
        unsafe { bpf_get_socket_cookie(self.ctx.as_ptr()) }
    }

    #[inline(always)]
    fn netns(&self) -> u64 {
        // SAFETY: the context is a socket's.
        unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }

    #[inline(always)]
    fn is_connected(&self) -> bool {
        let raw = self.raw();
        // SAFETY: as in `address`; these hooks always have a socket.
        unsafe { ptr::read_volatile(&raw const (*(*raw).__bindgen_anon_1.sk).state) == ESTABLISHED }
    }

    #[inline(always)]
    fn key(&self, address: Address, port: u16, protocol: u32) -> SocketKey {
        SocketKey { cookie: self.cookie(), address, port, protocol: protocol as u16, reserved: 0 }
    }
}

/// What becomes of a system call.
enum Outcome {
    /// It goes on as it is.
    Leave,
    /// It fails: refused.
    Refuse,
    /// It fails as if nothing came back.
    Drop,
    /// It goes to an endpoint.
    Translate(&'static Frontend, u8),
}

/// Decides by the frontend of a destination.
#[inline(always)]
fn decide(key: &mut FrontendKey, netns: u64, config: &Config) -> Outcome {
    let own_process = netns == config.netns;
    let loopback = if own_process { Loopback::of(&key.address, config) } else { Loopback::Elsewhere };
    let Some(frontend) = find(key, loopback) else {
        return if is_cluster_ip(key) { Outcome::Refuse } else { Outcome::Leave };
    };
    let what = if loopback != Loopback::Elsewhere && key.kind == kind::NODE_PORT {
        loopback.action(frontend)
    } else if own_process {
        frontend.host
    } else {
        frontend.pod
    };
    if own_process {
        let source = if key.address.is_v4() { &config.address4 } else { &config.address6 };
        if !is_allowed(frontend, key, source) {
            return unanswered(key);
        }
    } else if frontend.flags & flag::FILTERED != 0
        || frontend.affinity != 0
        || (frontend.pod ^ frontend.other) & !action::MASQUERADE != 0
    {
        return Outcome::Leave;
    }
    if what == action::REJECT {
        Outcome::Refuse
    } else if forwards(what) {
        Outcome::Translate(frontend, what)
    } else if own_process {
        unanswered(key)
    } else {
        Outcome::Leave
    }
}

/// What a process of this node must get no answer from: packets are dropped on their way out, but
/// those to an address of the node itself never come by an interface that has programs.
#[inline(always)]
fn unanswered(key: &FrontendKey) -> Outcome {
    if own_address(&key.address) != 0 { Outcome::Drop } else { Outcome::Leave }
}

/// The node's own processes have many addresses to stick to an endpoint by; the cookie of their
/// namespace stands for all.
#[inline(always)]
fn client(netns: u64) -> Address {
    Address { words: [0, 0, netns as u32, (netns >> 32) as u32] }
}

#[inline(always)]
fn is_opted_out(netns: u64) -> bool {
    // SAFETY: elements of a map without preallocation are freed after a grace period.
    unsafe { NAMESPACES.get(netns) }.is_some_and(|bits| *bits & namespace::NO_SOCKET_PATH != 0)
}

#[inline(always)]
fn refuse() -> i32 {
    count(Counter::SocketRefused);
    fail(ECONNREFUSED)
}

#[inline(always)]
fn fail(error: i32) -> i32 {
    // SAFETY: sets what the system call returns.
    unsafe { bpf_set_retval(-error) };
    REFUSE
}

#[inline(always)]
fn drop() -> i32 {
    count(Counter::SocketDropped);
    fail(ETIMEDOUT)
}

/// `connect(2)`.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    let socket = Socket { ctx, family };
    let protocol = socket.protocol();
    let Some(config) = config() else { return ALLOW };
    if (protocol != TCP && protocol != UDP) || config.options & option::DRAINING != 0 {
        return ALLOW;
    }
    let netns = socket.netns();
    if is_opted_out(netns) {
        return ALLOW;
    }
    let (address, port) = (socket.address(), socket.port());
    let mut key = FrontendKey { address, port, protocol: protocol as u8, kind: 0 };
    let (frontend, what) = match decide(&mut key, netns, config) {
        Outcome::Leave => return ALLOW,
        Outcome::Refuse => return refuse(),
        Outcome::Drop => return drop(),
        Outcome::Translate(frontend, what) => (frontend, what),
    };
    let client = client(netns);
    let cookie = socket.cookie();
    let hash = hash(&client, cookie as u16, &key);
    let Some(endpoint) = pick(frontend, what, &client, hash, config) else { return refuse() };
    remember(cookie, protocol, &endpoint, address, port, frontend.group);
    socket.set(&endpoint.address, endpoint.port);
    count(Counter::SocketTranslated);
    ALLOW
}

/// Who remembers what a socket believes to talk to. UDP sockets are found by it when their endpoint
/// goes away, so TCP connections, of which there are many more, must not push them out.
#[inline(always)]
fn peers(protocol: u32) -> &'static LruHashMap<SocketKey, Peer> {
    if protocol == TCP { &TCP_PEERS } else { &PEERS }
}

/// Remembers what a socket believes to talk to.
#[inline(always)]
fn remember(cookie: u64, protocol: u32, endpoint: &Endpoint, address: Address, port: u16, group: u64) {
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

/// `sendto(2)` and `sendmsg(2)` with an address, UDP only.
#[inline(always)]
pub fn sendmsg(ctx: &SockAddrContext, family: Family) -> i32 {
    let socket = Socket { ctx, family };
    let Some(config) = config() else { return ALLOW };
    if config.options & option::DRAINING != 0 {
        return ALLOW;
    }
    let netns = socket.netns();
    if is_opted_out(netns) {
        return ALLOW;
    }
    let (address, port) = (socket.address(), socket.port());
    let mut key = FrontendKey { address, port, protocol: UDP as u8, kind: 0 };
    let pick_key = socket.key(address, port, UDP);
    let (frontend, what) = match decide(&mut key, netns, config) {
        Outcome::Leave => {
            if !socket.is_connected() {
                stands_for_itself(&pick_key);
            }
            return ALLOW;
        }
        Outcome::Refuse => return refuse(),
        Outcome::Drop => return drop(),
        Outcome::Translate(frontend, what) => (frontend, what),
    };
    // SAFETY: reads the clock.
    let now = (unsafe { bpf_ktime_get_ns() } / 1_000_000_000) as u32;
    let own_process = netns == config.netns;
    if let Some(known) = PICKS.get_ptr_mut(pick_key) {
        // SAFETY: an element that is evicted and reused meanwhile belongs to another service port,
        // or its endpoint is a member of this one.
        let (group, endpoint, used) = unsafe { ((*known).group, (*known).endpoint, (*known).used) };
        if group == frontend.group {
            if endpoint.port == Pick::BY_PACKETS {
                return ALLOW;
            }
            if now.wrapping_sub(used) < config.udp_stream_timeout
                && is_member(group | list::SERVING, &endpoint)
            {
                // SAFETY: as above.
                unsafe { (*known).used = now };
                if stands_for(&pick_key, &endpoint, group, own_process) {
                    socket.set(&endpoint.address, endpoint.port);
                }
                return ALLOW;
            }
        }
    }
    let client = client(netns);
    let hash = hash(&client, pick_key.cookie as u16, &key);
    let Some(endpoint) = pick(frontend, what, &client, hash, config) else { return refuse() };
    let _ = PICKS.insert(pick_key, Pick { group: frontend.group, endpoint, used: now }, 0);
    if stands_for(&pick_key, &endpoint, frontend.group, own_process) {
        socket.set(&endpoint.address, endpoint.port);
        count(Counter::SocketTranslated);
    }
    ALLOW
}

/// Makes an endpoint stand for the frontend of `pick_key` in answers to its socket. `false`: it
/// stands for another frontend already, and this one goes by packets from now on.
///
/// Not of this node's own processes: their answers would come in by an endpoint's interface from an
/// address that is not there, which the stack refuses where `rp_filter` is strict; and nothing
/// takes their datagrams to the node's own addresses.
#[inline(always)]
fn stands_for(pick_key: &SocketKey, endpoint: &Endpoint, group: u64, own_process: bool) -> bool {
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
    remember(pick_key.cookie, UDP, endpoint, pick_key.address, pick_key.port, group);
    true
}

/// A socket sends to an address that is left as it is. If that is an endpoint, it stands for itself
/// from now on.
#[inline(always)]
fn stands_for_itself(to: &SocketKey) {
    if PEERS.get_ptr(to).is_some() {
        let _ = PEERS.remove(to);
    }
}

/// `recvmsg(2)` of UDP, and `getpeername(2)`: the socket sees the frontend that it talks to.
#[inline(always)]
pub fn untranslate(ctx: &SockAddrContext, family: Family) -> i32 {
    let socket = Socket { ctx, family };
    let protocol = socket.protocol();
    let key = socket.key(socket.address(), socket.port(), protocol);
    if let Some(peer) = peers(protocol).get_ptr(key) {
        // SAFETY: an element that is evicted and reused meanwhile shows the address of another
        // frontend; nothing worse.
        let (address, port) = unsafe { ((*peer).address, (*peer).port) };
        socket.set(&address, port);
    }
    ALLOW
}
