//! Any bytes as the kernel's answers. `cargo xtask fuzz`

use std::net::IpAddr;

use netlink_packet_core::{Emitable, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::route::{RouteProtocol, RouteType};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};
use sluice_fuzz::{Attributes, fuzz};

use crate::socket::answers;
use crate::{read, request};

/// Messages of all kinds that are read, with the number of bytes between the netlink header and
/// their attributes.
fn valid() -> Vec<(usize, RouteNetlinkMessage)> {
    let ip: IpAddr = "10.96.0.1".parse().unwrap();
    let mut link = request::link_named("sluice-ipvs0");
    link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]));
    let neighbour: NeighbourMessage = request::neighbour(7, ip, [2, 0, 0, 0, 0, 1]);
    let mut rule = RuleMessage::default();
    rule.header.family = ip.into();
    rule.attributes = vec![
        RuleAttribute::Destination(ip),
        RuleAttribute::DestinationPortRange(RulePortRange { start: 53, end: 53 }),
    ];
    let mut filter = TcMessage::with_index(7);
    filter.attributes = vec![
        TcAttribute::Kind("bpf".to_owned()),
        TcAttribute::Options(vec![TcOption::Bpf(TcFilterBpfOption::ProgName("sluice".to_owned()))]),
    ];
    let route = |to: &str| {
        let to = to.parse().unwrap();
        RouteNetlinkMessage::NewRoute(request::route(to, RouteProtocol::Static, RouteType::Unicast))
    };
    let address = |of: &str| RouteNetlinkMessage::NewAddress(request::address(7, of.parse().unwrap()));
    vec![
        (16, RouteNetlinkMessage::NewLink(link)),
        (8, address("10.96.0.1/32")),
        (8, address("fd00:10:96::1/128")),
        (12, route("10.0.0.0/24")),
        (12, route("fd00::/64")),
        (12, RouteNetlinkMessage::NewNeighbour(neighbour)),
        (12, RouteNetlinkMessage::NewRule(rule)),
        (20, RouteNetlinkMessage::NewTrafficFilter(filter)),
    ]
}

#[test]
fn fuzz_answers() {
    let bytes = |message| request::bytes(&request::message(message, 0, 1));
    let valid: Vec<_> = valid().into_iter().map(|(head, message)| (head, bytes(message))).collect();
    for (_, bytes) in &valid {
        let read: Vec<_> = answers(bytes).map(|answer| answer.payload).collect();
        let [Ok(NetlinkPayload::InnerMessage(message))] = &read[..] else {
            unreachable!("{bytes:?} is read as {read:?}")
        };
        assert_eq!(message.buffer_len() + 16, bytes.len());
    }
    let attributes = Attributes::new(&valid);
    fuzz(
        "route-netlink",
        |rng| attributes.next(rng),
        |input| {
            for answer in answers(input) {
                match answer.payload {
                    Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))) => {
                        let _ = (read::name(&link), read::alias(&link), read::mac(&link), read::kind(&link));
                    }
                    Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address))) => {
                        let _ = read::network(&address);
                    }
                    Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route))) => {
                        let _ = read::destination(&route);
                    }
                    _ => {}
                }
            }
        },
    );
}
