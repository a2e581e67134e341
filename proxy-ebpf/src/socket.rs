//! A socket whose process connects, sends or receives: what the kernel shows of it.

use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::programs::SockAddrContext;
use sluice_common::Address;
use sluice_common::socket::SocketKey;

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

/// The context of a socket program. Its fields may be read and written as whole words only, each by
/// its own instruction.
pub struct Socket<'a> {
    ctx: &'a SockAddrContext,
    family: Family,
}

impl<'a> Socket<'a> {
    #[inline(always)]
    pub fn new(ctx: &'a SockAddrContext, family: Family) -> Self {
        Self { ctx, family }
    }

    #[inline(always)]
    fn raw(&self) -> *mut bpf_sock_addr {
        self.ctx.sock_addr
    }

    /// The address that it connects or sends to, or that an answer comes from.
    #[inline(always)]
    pub fn address(&self) -> Address {
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

    /// The port there, in network order.
    #[inline(always)]
    pub fn port(&self) -> u16 {
        let raw = self.raw();
        // SAFETY: as in `address`.
        unsafe { ptr::read_volatile(&raw const (*raw).user_port) as u16 }
    }

    /// IP protocol number.
    #[inline(always)]
    pub fn protocol(&self) -> u32 {
        let raw = self.raw();
        // SAFETY: as in `address`.
        unsafe { ptr::read_volatile(&raw const (*raw).protocol) }
    }

    /// Puts another address and port in their place.
    #[inline(always)]
    pub fn set(&self, address: &Address, port: u16) {
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

    /// What no other socket has (`SO_COOKIE`, socket(7)).
    #[inline(always)]
    pub fn cookie(&self) -> u64 {
        // SAFETY: the context is a socket's.
        unsafe { bpf_get_socket_cookie(self.ctx.as_ptr()) }
    }

    /// The cookie of its network namespace.
    #[inline(always)]
    pub fn netns(&self) -> u64 {
        // SAFETY: the context is a socket's.
        unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }

    /// Whether it is connected; of UDP, too.
    #[inline(always)]
    pub fn is_connected(&self) -> bool {
        let raw = self.raw();
        // SAFETY: as in `address`; these hooks always have a socket.
        unsafe { ptr::read_volatile(&raw const (*(*raw).__bindgen_anon_1.sk).state) == ESTABLISHED }
    }

    /// The key of what is remembered of it and of an address.
    #[inline(always)]
    pub fn key(&self, address: Address, port: u16, protocol: u32) -> SocketKey {
        SocketKey { cookie: self.cookie(), address, port, protocol: protocol as u16, reserved: 0 }
    }
}
