//! ICMP errors: those that the node makes because of TTL and MTU, and those of others about
//! translated packets.

use std::net::IpAddr;

use sluice_common::counters::Counter;
use sluice_common::service::action;

use crate::network::{FAMILIES, Family, GATEWAY, NARROW_MTU, OTHER_NODE, SMALL_MTU, mac, peer};
use crate::packets::{ACK, Body, Message, Packet, SYN, echo, tcp, udp};
use crate::world::{
    At, DROP, NEXT, NODE_PORT, PORT, REDIRECT, TARGET, World, egress, expect_answer, ingress, on_a_node,
};

fn from_client(family: Family, protocol: u8) -> Packet {
    let (from, to) = (family.far_client(), family.cluster_ip());
    let packet = if protocol == 6 { tcp(from, 40_000, to, PORT, SYN) } else { udp(from, 40_000, to, PORT) };
    packet.by(GATEWAY, mac("uplink"))
}

/// Begins a flow; tells the packet as the endpoint gets it.
fn begin(world: &mut World, packet: &Packet, endpoint: IpAddr) -> Packet {
    let (code, _) = world.run(ingress("uplink"), &packet.bytes());
    assert_eq!(code, REDIRECT);
    let flow = world.flow(packet).unwrap();
    let source = match packet.source {
        IpAddr::V4(_) => IpAddr::V4(flow.source.word4().to_ne_bytes().into()),
        IpAddr::V6(_) => IpAddr::V6(flow.source.octets().into()),
    };
    packet.clone().between(source, endpoint).with_ports(u16::from_be(flow.source_port), TARGET).aged(1)
}

/// As much of a packet as routers quote.
const LITTLE: usize = 8;
const MUCH: usize = 500;

/// An error with the quoted packet as another one, of which the transport checksum stays that of
/// the packet on the wire.
fn translated(error: &Packet, quoted: &Packet, on_wire: &Packet) -> Packet {
    let mut error = error.clone();
    let header = quoted.ip().len() - quoted.transport().len();
    let Body::Icmp(_, quote) = &mut error.body else { unreachable!("an error") };
    let length = quote.len();
    *quote = quoted.ip();
    let checksum = header + if quoted.protocol() == 6 { 16 } else { 6 };
    quote[checksum..checksum + 2].copy_from_slice(&on_wire.ip()[checksum..checksum + 2]);
    quote.truncate(length);
    error
}

#[test]
fn a_pods_refusal_reaches_the_client_as_the_services() {
    on_a_node(|world| {
        for family in FAMILIES {
            for protocol in [6, 17] {
                for quoted in [LITTLE, MUCH] {
                    world.service(family, action::CLUSTER, &[family.endpoint()]);
                    let first = from_client(family, protocol);
                    let arrived = begin(world, &first, family.endpoint());
                    let error = arrived
                        .error(family.endpoint(), Message::PortUnreachable, family.header() + quoted)
                        .by(peer("pod-b"), mac("pod-b"));
                    let mut sent = first.clone();
                    sent.ttl = arrived.ttl;
                    let told = translated(&error, &sent, &arrived)
                        .between(family.cluster_ip(), family.far_client())
                        .by(mac("uplink"), GATEWAY)
                        .aged(1);
                    world.expect(ingress("pod-b"), &error, REDIRECT, &told.bytes());
                    world.reset();
                }
            }
        }
    });
}

#[test]
fn a_refusal_by_the_nodes_own_stack_reaches_the_client_as_the_services() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.node()]);
            let first = from_client(family, 17);
            let (code, _) = world.run(ingress("uplink"), &first.bytes());
            assert_eq!(code, NEXT);
            let arrived =
                first.clone().between(family.far_client(), family.node()).with_ports(40_000, TARGET);
            let error =
                arrived.error(family.node(), Message::PortUnreachable, MUCH).by(mac("uplink"), GATEWAY);
            let told = translated(&error, &first, &arrived).between(family.cluster_ip(), family.far_client());
            world.expect(egress("uplink"), &error, NEXT, &told.bytes());
            world.reset();
        }
    });
}

#[test]
fn errors_about_masqueraded_packets_reach_the_client_from_endpoints_and_routers() {
    on_a_node(|world| {
        for family in FAMILIES {
            for protocol in [6, 17] {
                for (from, message) in [
                    (family.remote(), Message::PortUnreachable),
                    (family.router(), Message::TooBig(1_300)),
                    (family.router(), Message::TimeExceeded),
                ] {
                    world.service(family, action::CLUSTER | action::MASQUERADE, &[family.remote()]);
                    let first = from_client(family, protocol)
                        .between(family.far_client(), family.node())
                        .with_ports(40_000, NODE_PORT)
                        .sized(1_000);
                    let arrived = begin(world, &first, family.remote());
                    assert_eq!(arrived.source, family.node());
                    let error = arrived.error(from, message, MUCH).by(OTHER_NODE, mac("uplink"));
                    let mut sent = first.clone();
                    sent.ttl = arrived.ttl;
                    let told = translated(&error, &sent, &arrived)
                        .between(family.node(), family.far_client())
                        .by(mac("uplink"), GATEWAY)
                        .aged(1);
                    world.expect(ingress("uplink"), &error, REDIRECT, &told.bytes());
                    world.reset();
                }
            }
        }
    });
}

#[test]
fn errors_about_replies_reach_the_endpoint_and_name_the_router() {
    on_a_node(|world| {
        for family in FAMILIES {
            for protocol in [6, 17] {
                for message in [Message::TooBig(1_300), Message::PortUnreachable, Message::TimeExceeded] {
                    for quoted in [LITTLE, MUCH] {
                        world.service(family, action::CLUSTER, &[family.endpoint()]);
                        let first = from_client(family, protocol);
                        let arrived = begin(world, &first, family.endpoint());
                        // What the endpoint sent, and how it went on from here.
                        let sent = arrived.reply().sized(1_200).aged(1);
                        let on_wire = sent
                            .clone()
                            .between(family.cluster_ip(), family.far_client())
                            .with_ports(PORT, 40_000);
                        let error = on_wire
                            .error(family.router(), message, family.header() + quoted)
                            .by(GATEWAY, mac("uplink"));
                        let told = translated(&error, &sent, &on_wire)
                            .between(family.router(), family.endpoint())
                            .by(mac("pod-b"), peer("pod-b"))
                            .aged(1);
                        world.expect(ingress("uplink"), &error, REDIRECT, &told.bytes());
                        world.reset();
                    }
                }
            }
        }
    });
}

#[test]
fn errors_about_replies_to_a_masqueraded_connection_reach_the_endpoint_from_the_node() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER | action::MASQUERADE, &[family.endpoint()]);
            let first = from_client(family, 17);
            let arrived = begin(world, &first, family.endpoint());
            let sent = arrived.reply().sized(1_200).aged(1);
            let on_wire =
                sent.clone().between(family.cluster_ip(), family.far_client()).with_ports(PORT, 40_000);
            let error =
                on_wire.error(family.router(), Message::TooBig(1_300), MUCH).by(GATEWAY, mac("uplink"));
            let told = translated(&error, &sent, &on_wire)
                .between(family.node(), family.endpoint())
                .by(mac("pod-b"), peer("pod-b"))
                .aged(1);
            world.expect(ingress("uplink"), &error, REDIRECT, &told.bytes());
            world.reset();
        }
    });
}

#[test]
fn errors_about_what_is_no_flows_pass_and_those_whose_time_is_up_do_not_go_on() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let first = from_client(family, 17);
            let arrived =
                first.clone().between(family.far_client(), family.endpoint()).with_ports(40_000, TARGET);
            let mut error = arrived
                .error(family.endpoint(), Message::PortUnreachable, MUCH)
                .by(peer("pod-b"), mac("pod-b"));
            world.expect_untouched(ingress("pod-b"), &error, NEXT);
            // One about an echo request.
            let other = echo(family.far_client(), family.endpoint())
                .error(family.endpoint(), Message::PortUnreachable, MUCH)
                .by(peer("pod-b"), mac("pod-b"));
            world.expect_untouched(ingress("pod-b"), &other, NEXT);
            begin(world, &first, family.endpoint());
            error.ttl = 1;
            world.expect_untouched(ingress("pod-b"), &error, DROP);
            // Between ports of a bridge: one for the client itself is translated, one for the
            // endpoint is left alone.
            error.ttl = 64;
            let bridged = error.clone().by(peer("pod-b"), peer("pod-a"));
            let told =
                translated(&bridged, &first, &arrived).between(family.cluster_ip(), family.far_client());
            world.expect(ingress("pod-b"), &bridged, NEXT, &told.bytes());
            let reply = first.reply().error(family.router(), Message::TooBig(1_300), MUCH);
            world.expect_untouched(ingress("uplink"), &reply.by(GATEWAY, GATEWAY), NEXT);
            world.reset();
        }
    });
}

#[test]
fn a_packet_whose_time_is_up_is_answered_in_both_directions() {
    on_a_node(|world| {
        for family in FAMILIES {
            for protocol in [6, 17] {
                for size in [0, 20, 300] {
                    world.service(family, action::CLUSTER, &[family.endpoint()]);
                    let mut first = from_client(family, protocol).sized(size);
                    let arrived = begin(world, &first, family.endpoint());
                    for ttl in [1, 0] {
                        first.ttl = ttl;
                        let (at, node) = (ingress("uplink"), family.node());
                        expect_answer(world, family, at, &first, node, Message::TimeExceeded);
                    }
                    let mut reply = arrived.reply().sized(size).by(peer("pod-b"), mac("pod-b"));
                    reply.ttl = 1;
                    let (at, node) = (ingress("pod-b"), family.node());
                    expect_answer(world, family, at, &reply, node, Message::TimeExceeded);
                    assert_eq!(world.counter(Counter::TimeExceeded), 3);
                    world.reset();
                }
            }
        }
    });
}

#[test]
fn the_last_hop_may_be_the_nodes_own_stack() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.node()]);
            let mut first = from_client(family, 17);
            first.ttl = 1;
            let arrived =
                first.clone().between(family.far_client(), family.node()).with_ports(40_000, TARGET);
            world.expect(ingress("uplink"), &first, NEXT, &arrived.bytes());
        }
    });
}

/// What a packet may have between Ethernet and its payload.
fn headers(family: Family, protocol: u8) -> usize {
    family.header() + if protocol == 6 { 20 } else { 8 }
}

#[test]
fn a_packet_too_big_for_device_or_route_is_answered_with_what_would_fit() {
    on_a_node(|world| {
        for family in FAMILIES {
            for protocol in [6, 17] {
                for masquerade in [0, action::MASQUERADE] {
                    for (endpoint, mtu) in [(family.small(), SMALL_MTU), (family.narrow(), NARROW_MTU)] {
                        println!("{family:?} {protocol} {masquerade} {mtu}");
                        let fits = mtu as usize - headers(family, protocol);
                        world.service(family, action::CLUSTER | masquerade, &[endpoint]);
                        let first = from_client(family, protocol).sized(fits + 1);
                        let (at, node) = (ingress("uplink"), family.node());
                        // One that would be the first of a flow begins none.
                        expect_answer(world, family, at, &first, node, Message::TooBig(mtu));
                        assert_eq!(world.flows(), 0);
                        let (code, _) = world.run(at, &first.clone().sized(fits).bytes());
                        assert_eq!(code, REDIRECT);
                        let more = first.flagged(ACK);
                        expect_answer(world, family, at, &more, node, Message::TooBig(mtu));
                        let (code, _) = world.run(at, &more.clone().sized(fits).bytes());
                        assert_eq!(code, REDIRECT);
                        assert_eq!(world.counter(Counter::TooBig), 2);
                        world.reset();
                    }
                }
            }
        }
    });
}

#[test]
fn of_a_bundle_of_segments_each_one_must_fit() {
    on_a_node(|world| {
        for family in FAMILIES {
            for protocol in [6, 17] {
                let fits = SMALL_MTU as usize - headers(family, protocol);
                world.service(family, action::CLUSTER, &[family.small()]);
                let first = from_client(family, protocol);
                begin(world, &first, family.small());
                let bundle = first.flagged(ACK).sized(3_000);
                let at = |segment: usize| At { segment: segment as u32, ..ingress("uplink") };
                let (code, _) = world.run(at(fits), &bundle.bytes());
                assert_eq!(code, REDIRECT);
                let (node, mtu) = (family.node(), Message::TooBig(SMALL_MTU));
                expect_answer(world, family, at(fits + 1), &bundle, node, mtu);
                world.reset();
            }
        }
    });
}

#[test]
fn errors_are_not_made_without_limit() {
    on_a_node(|world| {
        let family = Family::V4;
        world.service(family, action::REJECT, &[]);
        let sent = udp(family.client(), 40_000, family.cluster_ip(), PORT).by(peer("uplink"), mac("uplink"));
        let at = At { unsummed: true, ..ingress("uplink") };
        let begin = std::time::Instant::now();
        let answers = (0..5_000).filter(|_| world.run(at, &sent.bytes()).0 == REDIRECT).count();
        // So many in a second on each CPU.
        let cpus = aya::util::nr_cpus().unwrap();
        let most = 1_000 * cpus * (begin.elapsed().as_secs() as usize + 2);
        assert!((1_000..=most).contains(&answers), "{answers}");
        assert_eq!(world.counter(Counter::Rejected), 5_000);
    });
}
