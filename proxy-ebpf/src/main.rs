//! Sluice's eBPF programs. `docs/ebpf.md` tells the whole; `sluice-common` has the maps' layouts.
//!
//! `path` has the order of stages, `stage` the decisions, `packet` the bytes, and `verdict` what
//! becomes of decisions.

#![no_std]
#![no_main]
// Programs have instructions that the language has no words for.
#![feature(asm_experimental_arch)]

mod maps;
mod node;
mod packet;
mod path;
mod run;
mod socket;
mod stage;
mod verdict;

use aya_ebpf::macros::{cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, TcContext};

use socket::Family;
use stage::flow::claim;

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
    connect4, connect4, path::socket::connect, Family::V4;
    connect6, connect6, path::socket::connect, Family::V6;
    sendmsg4, sendmsg4, path::socket::sendmsg, Family::V4;
    sendmsg6, sendmsg6, path::socket::sendmsg, Family::V6;
    recvmsg4, recvmsg4, path::socket::untranslate, Family::V4;
    recvmsg6, recvmsg6, path::socket::untranslate, Family::V6;
    getpeername4, getpeername4, path::socket::untranslate, Family::V4;
    getpeername6, getpeername6, path::socket::untranslate, Family::V6;
}

// A frame of their own would cost 32 of the 512 bytes of stack that the verifiers of older kernels
// allow.

// Packets that come in by an interface with Ethernet headers.
#[classifier]
#[inline(always)]
pub fn ingress(ctx: TcContext) -> i32 {
    path::ingress::run::<ETHERNET>(ctx.skb.skb)
}

// Packets that leave by an interface with Ethernet headers.
#[classifier]
#[inline(always)]
pub fn egress(ctx: TcContext) -> i32 {
    path::egress::run::<ETHERNET>(ctx.skb.skb)
}

// Packets that come in by an interface without.
#[classifier]
#[inline(always)]
pub fn ingress_raw(ctx: TcContext) -> i32 {
    path::ingress::run::<RAW>(ctx.skb.skb)
}

// Packets that leave by an interface without.
#[classifier]
#[inline(always)]
pub fn egress_raw(ctx: TcContext) -> i32 {
    path::egress::run::<RAW>(ctx.skb.skb)
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
