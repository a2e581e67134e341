//! Sets of the `ipset` subsystem. Source of all numbers: linux/netfilter/ipset/ip_set.h.

use crate::netlink::{NetfilterSocket, NetlinkError, find};

const SUBSYSTEM: u16 = 6;
const DESTROY: u16 = 3;
const LIST: u16 = 7;
/// `IPSET_PROTOCOL`, understood since Linux 2.6.39.
const PROTOCOL: u8 = 6;
/// `IPSET_FLAG_LIST_SETNAME`.
const NAMES_ONLY: u32 = 1 << 1;
/// `NFPROTO_IPV4`; the kernel does not care.
const FAMILY: u8 = 2;

/// The names of all sets; none where the kernel has no ipset.
pub fn names() -> Result<Vec<String>, NetlinkError> {
    let mut found = Vec::new();
    let mut socket = NetfilterSocket::open()?;
    let listed = socket.dump(
        "list ipsets",
        SUBSYSTEM << 8 | LIST,
        FAMILY,
        |writer| {
            writer.attr(1, &[PROTOCOL]);
            // IPSET_ATTR_FLAGS, as a number in network order.
            writer.u32(6 | NET_BYTE_ORDER, NAMES_ONLY);
        },
        |message| found.extend(find(message.attributes(), 2).map(|name| name.text().to_owned())),
    );
    match listed {
        Err(error) if error.errno() == Some(libc::EINVAL) && found.is_empty() => Ok(found),
        other => other.map(|()| found),
    }
}

/// `NLA_F_NET_BYTEORDER`.
const NET_BYTE_ORDER: u16 = 1 << 14;

/// Destroys a set. One that a rule uses is refused with EBUSY.
pub fn destroy(name: &str) -> Result<(), NetlinkError> {
    NetfilterSocket::open()?.request("destroy an ipset", SUBSYSTEM << 8 | DESTROY, FAMILY, |writer| {
        writer.attr(1, &[PROTOCOL]);
        writer.text(2, name);
    })
}
