//! Sluice's eBPF programs. `docs/ebpf.md` tells the whole; `sluice-common` has the maps' layouts.
//!
//! Two paths: `socket` translates when processes connect, `nat` when packets come by. Both ask
//! `service` what to do.

#![no_std]
#![no_main]
// Programs have instructions that the language has no words for.
#![feature(asm_experimental_arch)]

mod claim;
mod debug;
mod flow;
mod icmp;
mod maps;
mod nat;
mod newest;
mod packet;
mod rewrite;
mod route;
mod service;
mod socket;
mod source;

use aya_ebpf::macros::{cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, TcContext};

use socket::Family;

/// Where a packet program is attached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that come in by an interface.
    Ingress,
    /// Packets that leave by it.
    Egress,
}

/// Length of an Ethernet header.
const ETHERNET: u32 = 14;
/// On devices without one.
const RAW: u32 = 0;

macro_rules! socket_programs {
    ($($attach:ident, $name:ident, $handler:path, $family:expr;)+) => {
        $(
            #[cgroup_sock_addr($attach)]
            pub fn $name(ctx: SockAddrContext) -> i32 {
                $handler(&ctx, $family)
            }
        )+
    };
}

socket_programs! {
    connect4, connect4, socket::connect, Family::V4;
    connect6, connect6, socket::connect, Family::V6;
    sendmsg4, sendmsg4, socket::sendmsg, Family::V4;
    sendmsg6, sendmsg6, socket::sendmsg, Family::V6;
    recvmsg4, recvmsg4, socket::untranslate, Family::V4;
    recvmsg6, recvmsg6, socket::untranslate, Family::V6;
    getpeername4, getpeername4, socket::untranslate, Family::V4;
    getpeername6, getpeername6, socket::untranslate, Family::V6;
}

// A frame of their own would cost 32 of the 512 bytes of stack that the verifiers of older kernels
// allow.

// Packets that come in by an interface with Ethernet headers.
#[classifier]
#[inline(always)]
pub fn ingress(ctx: TcContext) -> i32 {
    nat::run::<ETHERNET>(ctx.skb.skb, Hook::Ingress)
}

// Packets that leave by an interface with Ethernet headers.
#[classifier]
#[inline(always)]
pub fn egress(ctx: TcContext) -> i32 {
    nat::run::<ETHERNET>(ctx.skb.skb, Hook::Egress)
}

// Packets that come in by an interface without.
#[classifier]
#[inline(always)]
pub fn ingress_raw(ctx: TcContext) -> i32 {
    nat::run::<RAW>(ctx.skb.skb, Hook::Ingress)
}

// Packets that leave by an interface without.
#[classifier]
#[inline(always)]
pub fn egress_raw(ctx: TcContext) -> i32 {
    nat::run::<RAW>(ctx.skb.skb, Hook::Egress)
}

// A flow that the daemon ends.
#[classifier]
pub fn end_flow(ctx: TcContext) -> i32 {
    claim::obey(ctx.skb.skb)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// What the kernel asks for before it allows helpers that are for GPL programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
