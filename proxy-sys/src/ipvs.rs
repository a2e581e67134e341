//! IP virtual servers. Source of all numbers: linux/genetlink.h, linux/ip_vs.h.

use crate::netlink::{NetfilterSocket, NetlinkError, find};

/// `GENL_ID_CTRL` and `CTRL_CMD_GETFAMILY`.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
/// `IPVS_CMD_FLUSH`.
const FLUSH: u8 = 17;

/// Deletes every virtual server of this network namespace. Returns false where the kernel has no IPVS.
pub fn flush() -> Result<bool, NetlinkError> {
    let mut socket = NetfilterSocket::generic()?;
    let mut id = None;
    // The header of generic netlink is as long as that of netfilter: its first byte is the command.
    let asked = socket.ask(
        "look IPVS up",
        CONTROL,
        GET_FAMILY,
        |writer| writer.text(2, "IPVS"),
        |message| {
            let value = find(message.attributes(), 1).and_then(|id| id.value.try_into().ok());
            id = value.map(u16::from_ne_bytes);
        },
    );
    match (asked, id) {
        (Err(error), _) if error.errno() == Some(libc::ENOENT) => Ok(false),
        (Err(error), _) => Err(error),
        (Ok(()), Some(id)) => socket.request("flush IPVS", id, FLUSH, |_| {}).map(|()| true),
        (Ok(()), None) => Err(NetlinkError::Malformed { operation: "look IPVS up" }),
    }
}
