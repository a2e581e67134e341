//! What rules have counted.

use std::collections::BTreeMap;

use sluice_core::net::{Family, Protocol};
use sluice_core::nft::{TABLE, loopback_refusal_chain};
use sluice_core::pod_network::{self, Dropped};

use super::observe::comment;
use super::{Command, INET, Nft, Table};
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

/// Packets that the tables of the pod network have dropped, by reason. They begin anew when the
/// rules are made anew.
pub fn dropped(nft: &mut Nft) -> Result<BTreeMap<Dropped, u64>, NetlinkError> {
    let mut counted: BTreeMap<Dropped, u64> = Dropped::ALL.into_iter().map(|reason| (reason, 0)).collect();
    let kind = Command::GetRule.message_type();
    for table in [Table::inet(pod_network::TABLE), Table::bridge(pod_network::TABLE)] {
        let which = |writer: &mut crate::netlink::Writer| writer.text(1, table.name);
        nft.socket.dump("read counters", kind, table.family, which, |message| {
            let attributes = message.attributes();
            if find(attributes, 1).is_none_or(|name| name.text() != table.name) {
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
