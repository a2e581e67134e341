//! What rules have counted.

use std::collections::BTreeMap;

use sluice_core::net::{Family, Protocol};
use sluice_core::nft::{TABLE, loopback_refusal_chain};
use sluice_core::pod_network::{self, Dropped, PORTS_TABLE};

use super::observe::comment;
use super::{Command, Nft, family_number, is_of, named};
use crate::netlink::{NetlinkError, attrs, find};

/// The rules of such a chain, in order.
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Packets to node ports on loopback that were refused, by family and protocol; nothing of families
/// whose rules are not there. They begin anew when the rules are made anew.
pub fn loopback_refusals(nft: &mut Nft) -> Result<Vec<(Family, Protocol, u64)>, NetlinkError> {
    let mut counted = Vec::new();
    for family in Family::BOTH {
        let mut packets = Vec::new();
        let chain = loopback_refusal_chain(family);
        let kind = Command::GetRule.message_type();
        let which = |writer: &mut crate::netlink::Writer| {
            named(&TABLE)(writer);
            writer.text(2, chain.as_str());
        };
        nft.socket.dump("read counters", kind, family_number(&TABLE), which, |message| {
            let attributes = message.attributes();
            let is_in = |name: &str| find(attributes, 2).is_some_and(|chain| chain.text() == name);
            if is_of(&TABLE, attributes) && is_in(chain.as_str()) {
                let expressions = find(attributes, 4).map_or(&[][..], |list| list.value);
                packets.extend(attrs(expressions).find_map(|expression| count(expression.value)));
            }
        })?;
        counted.extend(PROTOCOLS.into_iter().zip(packets).map(|(protocol, n)| (family, protocol, n)));
    }
    Ok(counted)
}

/// Packets that the tables of the pod network have dropped, by reason. They begin anew when the
/// rules are made anew.
pub fn dropped(nft: &mut Nft) -> Result<BTreeMap<Dropped, u64>, NetlinkError> {
    let mut counted: BTreeMap<Dropped, u64> = Dropped::ALL.into_iter().map(|reason| (reason, 0)).collect();
    let kind = Command::GetRule.message_type();
    for table in [&pod_network::TABLE, &PORTS_TABLE] {
        nft.socket.dump("read counters", kind, family_number(table), named(table), |message| {
            let attributes = message.attributes();
            if !is_of(table, attributes) {
                return;
            }
            let Some(comment) = find(attributes, 7).and_then(|data| comment(data.value)) else { return };
            let is_for = |reason: &Dropped| comment.starts_with(reason.about());
            let Some(reason) = Dropped::ALL.into_iter().find(is_for) else { return };
            let expressions = find(attributes, 4).map_or(&[][..], |list| list.value);
            let packets = attrs(expressions).find_map(|expression| count(expression.value));
            *counted.entry(reason).or_default() += packets.unwrap_or_default();
        })?;
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
