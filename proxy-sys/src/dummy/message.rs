//! Messages of rtnetlink about links and addresses.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use sluice_core::ipvs::Op;

use crate::netlink::{Writer, find};

/// `RTM_*`.
pub(super) const NEW_LINK: u16 = 16;
pub(super) const DELETE_LINK: u16 = 17;
pub(super) const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
pub(super) const GET_ADDRESS: u16 = 22;

/// `struct ifinfomsg` and `struct ifaddrmsg`, which attributes follow.
const LINK_HEAD: usize = 16;
const ADDRESS_HEAD: usize = 8;

/// `IFLA_*`.
const IFNAME: u16 = 3;
const LINKINFO: u16 = 18;
const INFO_KIND: u16 = 1;

/// `IFA_*`.
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const CACHEINFO: u16 = 6;
const FLAGS: u16 = 8;

/// `IFA_F_NODAD`: nobody else can have the address, and the link has no neighbours.
const NO_DETECTION: u32 = 0x02;
/// `IFA_F_NOPREFIXROUTE`: the local route is all that is needed.
const NO_PREFIX_ROUTE: u32 = 0x200;
/// `RT_SCOPE_HOST`.
const SCOPE_HOST: u8 = 254;
/// `INFINITY_LIFE_TIME`.
const FOREVER: u32 = u32::MAX;

/// Writes the rest of `struct ifinfomsg`, behind its first word, with an index or 0.
pub(super) fn link_index(writer: &mut Writer, index: u32) {
    writer.raw(&index.to_ne_bytes());
    // Flags, and which of them are to change: none.
    writer.raw(&[0; 8]);
}

/// A link by its name.
pub(super) fn link_name(writer: &mut Writer, name: &str) {
    link_index(writer, 0);
    writer.text(IFNAME, name);
}

/// A link to be made.
pub(super) fn new_link(writer: &mut Writer, name: &str, kind: &str) {
    link_name(writer, name);
    let nest = writer.nest(LINKINFO);
    writer.text(INFO_KIND, kind);
    writer.close(nest);
}

/// Index and kind of a link that is told of.
pub(super) fn link(body: &[u8]) -> Option<(u32, String)> {
    let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    let kind = find(body.get(LINK_HEAD..)?, LINKINFO).and_then(|info| find(info.value, INFO_KIND));
    Some((index, kind.map(|kind| kind.text().to_owned()).unwrap_or_default()))
}

/// The address that is told of, if it is one of a single host and of this link.
pub(super) fn address(body: &[u8], link: u32) -> Option<IpAddr> {
    let (head, attributes) = body.split_first_chunk::<ADDRESS_HEAD>()?;
    let [family, prefix, _, _, index @ ..] = *head;
    (u32::from_ne_bytes(index) == link).then_some(())?;
    // Links with two ends carry their own address as "local".
    let value = find(attributes, LOCAL).or_else(|| find(attributes, ADDRESS))?.value;
    match (i32::from(family), prefix) {
        (libc::AF_INET, 32) => Some(IpAddr::from(<[u8; 4]>::try_from(value).ok()?)),
        (libc::AF_INET6, 128) => Some(IpAddr::from(<[u8; 16]>::try_from(value).ok()?)),
        _ => None,
    }
}

/// Writes one message. Operations on virtual servers are not for links, and never get here.
pub(super) fn op(writer: &mut Writer, link: u32, sequence: u32, op: &Op) {
    match op {
        Op::BindAddress(ip) => {
            begin(writer, NEW_ADDRESS, NLM_F_CREATE | NLM_F_EXCL, sequence, link, ip);
            keep_from_sources(writer, ip);
            writer.end();
        }
        Op::UnbindAddress(ip) => {
            begin(writer, DELETE_ADDRESS, 0, sequence, link, ip);
            writer.end();
        }
        _ => {}
    }
}

fn begin(writer: &mut Writer, kind: u16, flags: u16, sequence: u32, link: u32, ip: &IpAddr) {
    let (family, prefix, scope) = match ip {
        IpAddr::V4(_) => (libc::AF_INET as u8, 32, SCOPE_HOST),
        // The kernel derives it from the address.
        IpAddr::V6(_) => (libc::AF_INET6 as u8, 128, 0),
    };
    writer.begin_with(kind, flags, sequence, [family, prefix, 0, scope]);
    writer.raw(&link.to_ne_bytes());
    match ip {
        IpAddr::V4(ip) => writer.attr(LOCAL, &ip.octets()),
        IpAddr::V6(ip) => writer.attr(LOCAL, &ip.octets()),
    }
}

/// Others must not see packets that the node sends come from a Service's address just because the interface that they leave
/// by has none of its own. IPv4 takes none of scope host for that; IPv6 has no such scope, and takes a deprecated one
/// after all others (RFC 6724, rule 3).
fn keep_from_sources(writer: &mut Writer, ip: &IpAddr) {
    writer.host_u32(FLAGS, NO_DETECTION | NO_PREFIX_ROUTE);
    if ip.is_ipv6() {
        // struct ifa_cacheinfo: for how many seconds it is preferred and valid, and two times that the kernel sets.
        let mut lifetimes = [0; 16];
        lifetimes[4..8].copy_from_slice(&FOREVER.to_ne_bytes());
        writer.attr(CACHEINFO, &lifetimes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::messages;

    fn read_back(ip: &str, link: u32) -> Option<IpAddr> {
        let mut writer = Writer::default();
        op(&mut writer, 7, 1, &Op::BindAddress(ip.parse().unwrap()));
        let message = messages(writer.bytes()).next().unwrap();
        assert_eq!(message.kind, NEW_ADDRESS);
        address(message.body, link)
    }

    #[test]
    fn fuzz_links() {
        let mut writer = Writer::default();
        for ip in ["10.96.0.1", "fd00:10:96::1"] {
            op(&mut writer, 7, 1, &Op::BindAddress(ip.parse().unwrap()));
        }
        let mut valid: Vec<_> =
            crate::fuzz::split(writer.bytes()).into_iter().map(|bytes| (ADDRESS_HEAD, bytes)).collect();
        let mut writer = Writer::default();
        writer.begin_with(NEW_LINK, 0, 1, [0; 4]);
        new_link(&mut writer, "sluice-ipvs0", "dummy");
        writer.end();
        assert_eq!(link(messages(writer.bytes()).next().unwrap().body).unwrap().1, "dummy");
        valid.push((LINK_HEAD, writer.bytes().to_vec()));
        crate::fuzz::bodies("links", &valid, |body| {
            link(body);
            address(body, 7);
        });
    }

    #[test]
    fn addresses_are_told_by_link() {
        for ip in ["10.96.0.1", "fd00:10:96::1"] {
            assert_eq!(read_back(ip, 7), Some(ip.parse().unwrap()));
            assert_eq!(read_back(ip, 8), None);
        }
    }

    #[test]
    fn only_addresses_of_hosts_are_told() {
        let mut body = vec![libc::AF_INET as u8, 24, 0, 0, 7, 0, 0, 0];
        body.extend([8, 0, 2, 0, 10, 0, 0, 1]);
        assert_eq!(address(&body, u32::from_ne_bytes([7, 0, 0, 0])), None);
        body[1] = 32;
        assert_eq!(address(&body, u32::from_ne_bytes([7, 0, 0, 0])), Some([10, 0, 0, 1].into()));
    }
}
