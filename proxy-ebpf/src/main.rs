//! The eBPF programs of sluice.

#![no_std]
#![no_main]

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

/// Lets every connection pass as it is.
#[cgroup_sock_addr(connect4)]
pub fn connect4(_context: SockAddrContext) -> i32 {
    1
}

/// The licence that the kernel asks for before it lets programs call helpers.
// SAFETY: the section's name is what loaders look for, and nothing else is in it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_information: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
