//! What the rules that refuse node ports on loopback have counted.

use sluice_core::net::{Family, Protocol};
use sluice_core::nft::{TABLE, loopback_refusal_chain};

use super::{Command, INET, Nft};
use crate::netlink::{NetlinkError, attrs, find};

/// The rules of such a chain, in order.
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Packets to node ports on loopback that were refused, by family and protocol; nothing of families whose rules are not
/// there. They begin anew when the rules are made anew.
pub fn loopback_refusals(nft: &mut Nft) -> Result<Vec<(Family, Protocol, u64)>, NetlinkError> {
    let mut counted = Vec::new();
    for family in Family::BOTH {
        let mut packets = Vec::new();
        let chain = loopback_refusal_chain(family);
        let kind = Command::GetRule.message_type();
        let which = |writer: &mut crate::netlink::Writer| {
            writer.text(1, TABLE);
            writer.text(2, chain.as_str());
        };
        nft.socket.dump("read counters", kind, INET, which, |message| {
            let attributes = message.attributes();
            let is = |kind, text: &str| find(attributes, kind).is_some_and(|attr| attr.text() == text);
            if is(1, TABLE) && is(2, chain.as_str()) {
                let expressions = find(attributes, 4).map_or(&[][..], |list| list.value);
                packets.extend(attrs(expressions).find_map(|expression| count(expression.value)));
            }
        })?;
        counted.extend(PROTOCOLS.into_iter().zip(packets).map(|(protocol, n)| (family, protocol, n)));
    }
    Ok(counted)
}

/// The packets of a counter (`NFTA_COUNTER_PACKETS`); `None` for other expressions.
fn count(expression: &[u8]) -> Option<u64> {
    if find(expression, 1)?.text() != "counter" {
        return None;
    }
    let packets = find(find(expression, 2)?.value, 2)?;
    Some(u64::from_be_bytes(packets.value.try_into().ok()?))
}
