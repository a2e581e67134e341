//! What the daemon has told of the node.
//!
//! Maps that the daemon writes are not preallocated. Memory of their elements lives on after a
//! deletion as long as programs run, but since Linux 6.1 it may become another element at once
//! (`bpf_mem_cache_free`). So what is read of an element is read or copied right after the lookup;
//! a reader that is interrupted there may still see another element of the same map.

use aya_ebpf::maps::lpm_trie::Key;
use sluice_common::Address;
use sluice_common::node::{Config, Interface};

use crate::maps::{ADDRESSES, CONFIG, INTERFACES, NETWORKS};

/// The settings.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// An interface, by its index.
#[inline(always)]
pub fn interface(index: u32) -> Option<&'static Interface> {
    // SAFETY: an element that is deleted meanwhile stays memory of an element of this map, which
    // is valid whatever its bytes are.
    unsafe { INTERFACES.get(index) }
}

/// The first address of an interface, or the node's if the interface has none.
#[inline(always)]
pub fn first_address(interface: u32, v4: bool, config: &Config) -> Option<Address> {
    let none = Address::default();
    let interface = self::interface(interface);
    let (own, common) = if v4 {
        (interface.map_or(none, |i| i.address4), config.address4)
    } else {
        (interface.map_or(none, |i| i.address6), config.address6)
    };
    let address = if own == none { common } else { own };
    (address != none).then_some(address)
}

/// Bits of `ADDRESSES`; 0 for addresses that are not the node's.
#[inline(always)]
pub fn own_address(address: &Address) -> u32 {
    // SAFETY: as in `interface`.
    unsafe { ADDRESSES.get(address) }.map_or(0, |bits| *bits)
}

/// Bits of `NETWORKS`; 0 for addresses in none of them.
#[inline(always)]
pub fn networks(address: &Address) -> u32 {
    NETWORKS.get(Key::new(128, *address)).copied().unwrap_or(0)
}
