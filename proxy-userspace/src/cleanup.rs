//! `sluice cleanup`: removes what is ours from the kernel.

use sluice_sys::netlink::NetlinkError;
use sluice_sys::nft::Nft;

/// Deletes our table. Returns whether there was one.
pub fn cleanup() -> Result<bool, NetlinkError> {
    Nft::open()?.delete_table()
}
