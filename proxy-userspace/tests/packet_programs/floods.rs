//! Floods of first packets: they end no connection that is more than begun, and each other only
//! when there are too many.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_common::counters::Counter;
use sluice_common::flow::Flow;
use sluice_common::maps::MapName;
use sluice_common::service::action;

use crate::network::{FAMILIES, Family, mac, peer};
use crate::packets::{ACK, Packet, SYN, tcp, udp};
use crate::world::{CONNECTIONS, PORT, REDIRECT, TARGET, World, entries_of, ingress, key_of, on_a_node};

const PROTOCOLS: [u8; 2] = [6, 17];

/// The first packet of a client that is one of many.
fn first(family: Family, protocol: u8, number: u32) -> Packet {
    let from: IpAddr = match family {
        Family::V4 => Ipv4Addr::from_bits(0xc633_6400 + number / 60_000).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 1, (number / 60_000) as u16).into(),
    };
    let (to, port) = (family.cluster_ip(), 1_024 + (number % 60_000) as u16);
    let packet = if protocol == 6 { tcp(from, port, to, PORT, SYN) } else { udp(from, port, to, PORT) };
    packet.by(peer("uplink"), mac("uplink"))
}

/// What the endpoint says to it.
fn answer(family: Family, packet: &Packet) -> Packet {
    packet
        .reply()
        .between(family.endpoint(), packet.source)
        .with_ports(TARGET, packet.ports()[0])
        .by(peer("pod-b"), mac("pod-b"))
}

fn more(packet: &Packet) -> Packet {
    if packet.protocol() == 6 { packet.clone().flagged(ACK) } else { packet.clone() }
}

fn comes(world: &mut World, packet: &Packet) {
    assert_eq!(world.run(ingress("uplink"), &packet.bytes()).0, REDIRECT);
}

fn is_answered(world: &mut World, family: Family, packet: &Packet) {
    let answer = answer(family, packet);
    let answer = if packet.protocol() == 6 { answer.flagged(SYN | ACK) } else { answer };
    assert_eq!(world.run(ingress("pod-b"), &answer.bytes()).0, REDIRECT);
}

/// A connection: asked, answered, gone on with.
fn connect(world: &mut World, family: Family, packet: &Packet) {
    comes(world, packet);
    is_answered(world, family, packet);
    comes(world, &more(packet));
}

/// First packets of others.
fn flood(world: &mut World, family: Family, numbers: std::ops::Range<u32>, answered: bool) {
    for number in numbers {
        let packet = first(family, PROTOCOLS[number as usize % 2], number);
        comes(world, &packet);
        if answered {
            is_answered(world, family, &packet);
        }
    }
}

/// Both entries of a flow, without what each packet changes.
fn entries(world: &mut World, family: Family, packet: &Packet) -> Option<[Flow; 2]> {
    let flow = world.flow(packet)?;
    let back = world.flow(&answer(family, packet))?;
    assert!(back.is_other_of(&key_of(packet)));
    Some([flow, back].map(|flow| Flow { used: 0, seen: 0, ..flow }))
}

fn each(test: impl Fn(&mut World, Family) + Send + 'static) {
    on_a_node(move |world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            test(world, family);
            world.reset();
        }
    });
}

fn ring() -> u32 {
    entries_of(MapName::Newest) - 1
}

#[test]
fn a_flood_of_first_packets_ends_no_connection_and_does_not_fill_the_table() {
    each(|world, family| {
        let connections: Vec<Packet> =
            (0..CONNECTIONS).map(|number| first(family, PROTOCOLS[number as usize % 2], number)).collect();
        for packet in &connections {
            connect(world, family, packet);
        }
        let before: Vec<_> =
            connections.iter().map(|packet| entries(world, family, packet).unwrap()).collect();
        let size = entries_of(MapName::Flows);
        for (round, answered) in [(1, false), (2, true)] {
            // Of nobody answered, and of nobody who answers back.
            flood(world, family, round * 100_000..round * 100_000 + 4 * CONNECTIONS.max(size), answered);
            assert!(world.flows() as u32 <= 2 * (CONNECTIONS + ring()), "{}", world.flows());
            for (packet, before) in connections.iter().zip(&before) {
                assert_eq!(entries(world, family, packet).as_ref(), Some(before), "{:?}", key_of(packet));
            }
        }
        // They go on.
        for packet in &connections {
            comes(world, &more(packet));
            assert_eq!(world.run(ingress("pod-b"), &more(&answer(family, packet)).bytes()).0, REDIRECT);
        }
        assert_eq!(world.counter(Counter::DropFlowTable), 0);
    });
}

#[test]
fn a_flow_that_has_only_begun_ends_when_a_whole_ring_of_others_has_begun_since() {
    each(|world, family| {
        for protocol in PROTOCOLS {
            for answered in [false, true] {
                let begun = first(family, protocol, 0);
                comes(world, &begun);
                if protocol == 6 {
                    // A first segment that comes again is one still.
                    comes(world, &begun);
                }
                if answered {
                    is_answered(world, family, &begun);
                }
                flood(world, family, 1..ring(), false);
                assert!(entries(world, family, &begun).is_some());
                assert_eq!(world.counter(Counter::FlowsGaveWay), 0);
                flood(world, family, ring()..ring() + 1, false);
                assert_eq!((world.flow(&begun), world.flow(&answer(family, &begun))), (None, None));
                assert_eq!(world.counter(Counter::FlowsGaveWay), 1);
                assert_eq!(world.flows() as u32, 2 * ring());
                world.reset();
                world.service(family, action::CLUSTER, &[family.endpoint()]);
            }
        }
    });
}

#[test]
fn flows_continued_late_or_by_the_endpoint_alone_count_as_established() {
    each(|world, family| {
        let (slow, streaming) = (first(family, 17, 0), first(family, 17, 1));
        // Nothing but a second first datagram, or a second answer, more than a second later.
        for packet in [&slow, &streaming] {
            comes(world, packet);
        }
        is_answered(world, family, &streaming);
        let later = std::time::Duration::from_millis(1_050);
        std::thread::sleep(later);
        comes(world, &slow);
        is_answered(world, family, &streaming);
        flood(world, family, 2..2 * ring(), false);
        for packet in [&slow, &streaming] {
            assert!(entries(world, family, packet).is_some());
        }
    });
}

#[test]
fn a_flow_that_began_again_by_the_same_ends_is_another_one() {
    each(|world, family| {
        let packet = first(family, 17, 0);
        comes(world, &packet);
        flood(world, family, 1..ring() - 1, false);
        // The daemon has ended it; now it begins anew.
        world.drop_flow(&packet);
        world.drop_flow(&answer(family, &packet));
        comes(world, &packet);
        // The slot of the first time comes by.
        flood(world, family, ring()..ring() + 2, false);
        assert!(entries(world, family, &packet).is_some());
    });
}
