//! Connection tracking over netlink: finding and deleting flows.
//!
//! Attribute numbers: linux/netfilter/nfnetlink_conntrack.h. Dumps are streamed; memory does not
//! grow with the kernel's table.

use std::net::IpAddr;

use sluice_core::net::{Family, Protocol};

use crate::netlink::{NetfilterSocket, NetlinkError, find, uninterrupted};

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET`.
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOINFO: u16 = 4;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const STATUS_MASK: u16 = 26;
/// Bits of the status, `enum ip_conntrack_status`.
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
const DST_NAT: u32 = 1 << 5;
/// `TCP_CONNTRACK_CLOSE`: a reset was seen.
const TCP_CLOSE: u8 = 8;

/// A tracked flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Where the first packet was sent to.
    pub destination: (IpAddr, u16),
    /// Who answers.
    pub replier: (IpAddr, u16),
    /// Its protocol.
    pub protocol: Protocol,
    /// Nobody has answered, or (TCP) only with a reset.
    pub is_vain: bool,
    family: Family,
    original: Vec<u8>,
    id: Vec<u8>,
    zone: Vec<u8>,
}

/// A connection to conntrack.
pub struct Conntrack {
    socket: NetfilterSocket,
}

impl Conntrack {
    /// Opens a connection in the current network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Conntrack { socket: NetfilterSocket::open()? })
    }

    /// The same as [`flows`](Self::flows), begun again where the table changed in between, a few
    /// times.
    pub fn all_flows(
        &mut self,
        family: Family,
        protocol: Protocol,
        keep: impl Fn(&Flow) -> bool,
    ) -> Result<Vec<Flow>, NetlinkError> {
        const ATTEMPTS: u32 = 5;
        uninterrupted(ATTEMPTS, || self.flows(family, protocol, &keep))
    }

    /// The flows of a family and protocol for which `keep` says so; of other protocols than UDP
    /// only those in which not both sides have spoken. The kernel filters by protocol (since 5.8;
    /// older kernels send everything and the filter is applied here).
    pub fn flows(
        &mut self,
        family: Family,
        protocol: Protocol,
        keep: impl Fn(&Flow) -> bool,
    ) -> Result<Vec<Flow>, NetlinkError> {
        let mut flows = Vec::new();
        let request = |writer: &mut crate::netlink::Writer| {
            let tuple = writer.nest(TUPLE_ORIG);
            let proto = writer.nest(2);
            writer.attr(1, &[protocol.number()]);
            writer.close(proto);
            writer.close(tuple);
            if protocol != Protocol::Udp {
                // Newer kernels leave the others out; most connections are established.
                writer.u32(STATUS, 0);
                writer.u32(STATUS_MASK, ASSURED);
            }
            let filter = writer.nest(FILTER);
            // CTA_FILTER_F_CTA_PROTO_NUM
            writer.attr(1, &(1u32 << 3).to_ne_bytes());
            writer.attr(2, &0u32.to_ne_bytes());
            writer.close(filter);
        };
        self.socket.dump("list flows", GET, family_number(family), request, |message| {
            if let Some(flow) = flow(family, protocol, message.attributes())
                && keep(&flow)
            {
                flows.push(flow);
            }
        })?;
        Ok(flows)
    }

    /// Whether there is any connection, of any protocol, whose destination was translated.
    pub fn has_translated(&mut self) -> Result<bool, NetlinkError> {
        let mut found = false;
        for family in Family::BOTH {
            // Newer kernels give these only; others give all.
            let request = |writer: &mut crate::netlink::Writer| {
                writer.u32(STATUS, DST_NAT);
                writer.u32(STATUS_MASK, DST_NAT);
            };
            self.socket.dump("list translated flows", GET, family_number(family), request, |message| {
                let status = find(message.attributes(), STATUS).and_then(|status| status.u32());
                found |= status.is_some_and(|status| status & DST_NAT != 0);
            })?;
        }
        Ok(found)
    }

    /// Deletes exactly this flow. Returns false when it was gone already.
    pub fn delete(&mut self, flow: &Flow) -> Result<bool, NetlinkError> {
        let answer = self.socket.request("delete a flow", DELETE, family_number(flow.family), |writer| {
            writer.attr(TUPLE_ORIG | 0x8000, &flow.original);
            writer.attr(ID, &flow.id);
            if !flow.zone.is_empty() {
                writer.attr(ZONE, &flow.zone);
            }
        });
        match answer {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn flow(family: Family, protocol: Protocol, attributes: &[u8]) -> Option<Flow> {
    let original = find(attributes, TUPLE_ORIG)?.value;
    let reply = find(attributes, TUPLE_REPLY)?.value;
    let is_wanted = find(find(original, 2)?.value, 1)?.value == [protocol.number()];
    is_wanted.then_some(())?;
    let (_, destination) = ends(family, original)?;
    let (replier, _) = ends(family, reply)?;
    Some(Flow {
        destination,
        replier,
        protocol,
        is_vain: find(attributes, STATUS)?.u32()? & SEEN_REPLY == 0 || is_reset(protocol, attributes),
        family,
        original: original.to_vec(),
        id: find(attributes, ID)?.value.to_vec(),
        zone: find(attributes, ZONE).map(|zone| zone.value.to_vec()).unwrap_or_default(),
    })
}

fn is_reset(protocol: Protocol, attributes: &[u8]) -> bool {
    let state = || find(find(find(attributes, PROTOINFO)?.value, 1)?.value, 1);
    protocol == Protocol::Tcp && state().is_some_and(|state| state.value == [TCP_CLOSE])
}

type End = (IpAddr, u16);

/// Source and destination of a tuple.
fn ends(family: Family, tuple: &[u8]) -> Option<(End, End)> {
    let ip = find(tuple, 1)?.value;
    let proto = find(tuple, 2)?.value;
    let address = |v4: u16, v6: u16| match family {
        Family::V4 => Some(IpAddr::from(<[u8; 4]>::try_from(find(ip, v4)?.value).ok()?)),
        Family::V6 => Some(IpAddr::from(<[u8; 16]>::try_from(find(ip, v6)?.value).ok()?)),
    };
    let port = |kind| Some(u16::from_be_bytes(find(proto, kind)?.value.try_into().ok()?));
    Some(((address(1, 3)?, port(2)?), (address(2, 4)?, port(3)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{HEAD, Kernel, answers};
    use crate::netlink::Writer;

    /// A flow as the kernel tells of it.
    fn told(family: Family, protocol: Protocol) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.begin(GET - 1, 0, 1, family_number(family), 0);
        let octets = |last: u8| match family {
            Family::V4 => vec![10, 0, 0, last],
            Family::V6 => [vec![0xfd; 15], vec![last]].concat(),
        };
        let [from, to] = if family == Family::V4 { [1, 2] } else { [3, 4] };
        for kind in [TUPLE_ORIG, TUPLE_REPLY] {
            let tuple = writer.nest(kind);
            let ip = writer.nest(1);
            writer.attr(from, &octets(1));
            writer.attr(to, &octets(2));
            writer.close(ip);
            let proto = writer.nest(2);
            writer.attr(1, &[protocol.number()]);
            writer.attr(2, &40_000_u16.to_be_bytes());
            writer.attr(3, &80_u16.to_be_bytes());
            writer.close(proto);
            writer.close(tuple);
        }
        writer.u32(STATUS, DST_NAT);
        let info = writer.nest(PROTOINFO);
        let tcp = writer.nest(1);
        writer.attr(1, &[TCP_CLOSE]);
        writer.close(tcp);
        writer.close(info);
        writer.u32(ID, 7);
        writer.attr(ZONE, &[0, 1]);
        writer.end();
        writer.bytes().to_vec()
    }

    const KINDS: [(Family, Protocol); 4] = [
        (Family::V4, Protocol::Tcp),
        (Family::V4, Protocol::Udp),
        (Family::V6, Protocol::Tcp),
        (Family::V6, Protocol::Udp),
    ];

    #[test]
    fn fuzz_conntrack() {
        let valid = KINDS.map(|(family, protocol)| (HEAD, told(family, protocol)));
        let mut kernel = Kernel::new(&valid, |request| request - 1);
        answers("conntrack", &valid, |input| {
            kernel.tells(input, |socket| {
                let mut conntrack = Conntrack { socket };
                for (family, protocol) in KINDS {
                    // Refused, if a message was an error.
                    let flows = conntrack.flows(family, protocol, |_| true).unwrap_or_default();
                    assert!(flows.iter().all(|flow| flow.destination.0.is_ipv4() == (family == Family::V4)));
                }
                drop(conntrack.has_translated());
                (conntrack.socket, ())
            });
        });
    }

    #[test]
    fn a_flow_is_decoded_from_the_kernels_message() {
        for (family, protocol) in KINDS {
            let bytes = told(family, protocol);
            let message = crate::netlink::messages(&bytes).next().unwrap();
            let flow = flow(family, protocol, message.attributes()).unwrap();
            assert_eq!((flow.destination.1, flow.replier.1, flow.is_vain), (80, 40_000, true));
        }
    }
}
