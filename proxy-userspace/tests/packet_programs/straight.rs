//! Connections straight to an endpoint, from ports of which Service flows come that are not
//! masqueraded.

use std::net::IpAddr;

use sluice_common::flow::flag;
use sluice_common::service::action;

use crate::network::{FAMILIES, Family, mac, peer};
use crate::packets::{ACK, Message, Packet, RST, SYN, tcp, udp};
use crate::world::{NEXT, PORT, REDIRECT, TARGET, World, egress, ingress, on_a_node};

fn packet(protocol: u8, to: IpAddr, port: u16, family: Family) -> Packet {
    let from = family.client();
    let packet = if protocol == 6 { tcp(from, 40_000, to, port, SYN) } else { udp(from, 40_000, to, port) };
    packet.by(peer("uplink"), mac("uplink"))
}

/// To the Service.
fn by_service(protocol: u8, family: Family) -> Packet {
    packet(protocol, family.cluster_ip(), PORT, family)
}

/// To its endpoint.
fn straight(protocol: u8, family: Family) -> Packet {
    packet(protocol, family.endpoint(), TARGET, family)
}

/// What an endpoint sends, as it comes in.
fn answer(to: &Packet) -> Packet {
    to.reply().by(peer("pod-b"), mac("pod-b"))
}

/// As it leaves to the client.
fn leaves(packet: &Packet) -> Packet {
    packet.clone().by(mac("uplink"), peer("uplink")).aged(1)
}

/// The source port that a flow has got.
fn port_of(world: &mut World, first: &Packet) -> u16 {
    u16::from_be(world.flow(first).expect("a flow").source_port)
}

#[test]
fn a_direct_connection_after_a_services_flow_gets_another_port() {
    on_a_node(|world| {
        for family in FAMILIES {
            for protocol in [6, 17] {
                println!("{family:?} {protocol}");
                world.service(family, action::CLUSTER, &[family.endpoint()]);
                let (service, direct) = (by_service(protocol, family), straight(protocol, family));
                assert_eq!(world.run(ingress("uplink"), &service.bytes()).0, REDIRECT);
                assert_eq!(port_of(world, &service), 40_000);
                assert_eq!(world.run(ingress("uplink"), &direct.bytes()).0, REDIRECT);
                let port = port_of(world, &direct);
                assert!((20_000..22_000).contains(&port) || (60_001..61_001).contains(&port), "{port}");
                assert_eq!(world.flows(), 4);
                let arrives = direct.clone().with_ports(port, TARGET).by(mac("pod-b"), peer("pod-b")).aged(1);
                world.expect(ingress("uplink"), &direct, REDIRECT, &arrives.bytes());
                // Each answer comes from who was asked.
                let (to_service, to_direct) = (answer(&direct), answer(&arrives));
                let from_service = leaves(&service.reply());
                world.expect(ingress("pod-b"), &to_service, REDIRECT, &from_service.bytes());
                world.expect(ingress("pod-b"), &to_direct, REDIRECT, &leaves(&direct.reply()).bytes());
                world.reset();
            }
        }
    });
}

#[test]
fn a_direct_connection_to_a_process_of_the_node_gets_another_port() {
    on_a_node(|world| {
        for family in FAMILIES {
            for protocol in [6, 17] {
                world.service(family, action::CLUSTER, &[family.node()]);
                let service = by_service(protocol, family);
                let direct = packet(protocol, family.node(), TARGET, family);
                assert_eq!(world.run(ingress("uplink"), &service.bytes()).0, NEXT);
                assert_eq!(world.run(ingress("uplink"), &direct.bytes()).0, NEXT);
                let arrives = direct.clone().with_ports(port_of(world, &direct), TARGET);
                world.expect(ingress("uplink"), &direct, NEXT, &arrives.bytes());
                world.expect(egress("uplink"), &arrives.reply(), NEXT, &direct.reply().bytes());
                world.expect(egress("uplink"), &direct.reply(), NEXT, &service.reply().bytes());
                world.reset();
            }
        }
    });
}

#[test]
fn a_direct_connection_between_bridge_ports_is_translated_by_the_bridge() {
    const BRIDGE: [u8; 6] = [2, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb];
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let (service, direct) = (by_service(17, family), straight(17, family));
            assert_eq!(world.run(ingress("uplink"), &service.bytes()).0, REDIRECT);
            assert_eq!(world.run(ingress("uplink"), &direct.bytes()).0, REDIRECT);
            let arrives = direct.clone().with_ports(port_of(world, &direct), TARGET);
            let between = |packet: &Packet| packet.clone().by(peer("pod-b"), peer("pod-a"));
            world.expect_untouched(ingress("pod-b"), &between(&direct), NEXT);
            // No bridge's programs see what goes from port to port.
            let back = between(&direct.reply());
            world.expect(ingress("pod-b"), &between(&arrives.reply()), NEXT, &back.bytes());
            // What leaves by the bridge leaves by its port next.
            world.port_of_bridge("uplink", BRIDGE);
            world.expect_untouched(egress("uplink"), &arrives.reply(), NEXT);
            world.expect_untouched(egress("uplink"), &direct.reply(), NEXT);
            world.interface("uplink", 0);
            world.reset();
        }
    });
}

#[test]
fn a_direct_connection_without_a_services_flow_passes_unchanged() {
    on_a_node(|world| {
        for family in FAMILIES {
            for (protocol, what) in [(6, action::CLUSTER), (17, action::CLUSTER | action::MASQUERADE)] {
                world.service(family, what, &[family.endpoint()]);
                let direct = straight(protocol, family);
                world.expect_untouched(ingress("uplink"), &direct, NEXT);
                // One that is masqueraded has other ends, and other clients have, too.
                let other = by_service(protocol, family).with_ports(40_001, PORT);
                assert_eq!(world.run(ingress("uplink"), &other.bytes()).0, REDIRECT);
                world.expect_untouched(ingress("uplink"), &direct, NEXT);
                world.expect_untouched(ingress("pod-b"), &answer(&direct), NEXT);
                assert_eq!(world.flows(), 2);
                world.reset();
            }
        }
    });
}

#[test]
fn an_earlier_direct_connection_continues_and_the_services_flow_gets_another_port() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let (service, direct) = (by_service(6, family), straight(6, family));
            assert_eq!(world.run(ingress("uplink"), &service.bytes()).0, REDIRECT);
            // Data, or what the endpoint says to a first segment in the middle of a connection.
            let goes_on = answer(&direct).flagged(ACK);
            world.expect_untouched(ingress("pod-b"), &goes_on, NEXT);
            assert_eq!(world.flows(), 1);
            assert!(world.flow(&goes_on).unwrap().flags & flag::PASSES != 0);
            for flags in [ACK, SYN | ACK] {
                world.expect_untouched(ingress("pod-b"), &answer(&direct).flagged(flags), NEXT);
            }
            world.expect_untouched(ingress("uplink"), &direct.clone().flagged(ACK), NEXT);
            // So do errors about it.
            let about = direct.error(family.endpoint(), Message::PortUnreachable, 500);
            world.expect_untouched(ingress("pod-b"), &about.by(peer("pod-b"), mac("pod-b")), NEXT);
            // The client asks the Service again.
            assert_eq!(world.run(ingress("uplink"), &service.bytes()).0, REDIRECT);
            let port = port_of(world, &service);
            assert!(port != 40_000);
            assert_eq!(world.flows(), 3);
            let greeted = answer(&direct.clone().with_ports(port, TARGET));
            world.expect(ingress("pod-b"), &greeted, REDIRECT, &leaves(&service.reply()).bytes());
            world.expect_untouched(ingress("pod-b"), &goes_on, NEXT);
            // When it is over, its ends are free again.
            world.expect_untouched(ingress("pod-b"), &answer(&direct).flagged(RST | ACK), NEXT);
            let next = packet(6, family.load_balancer(), PORT, family);
            assert_eq!(world.run(ingress("uplink"), &next.bytes()).0, REDIRECT);
            assert_eq!(port_of(world, &next), 40_000);
            world.reset();
        }
    });
}

#[test]
fn a_reply_to_a_first_segment_belongs_to_the_services_flow() {
    on_a_node(|world| {
        for family in FAMILIES {
            for flags in [RST | ACK, SYN | ACK] {
                world.service(family, action::CLUSTER, &[family.endpoint()]);
                let (service, direct) = (by_service(6, family), straight(6, family));
                assert_eq!(world.run(ingress("uplink"), &service.bytes()).0, REDIRECT);
                let back = leaves(&service.reply().flagged(flags));
                world.expect(ingress("pod-b"), &answer(&direct).flagged(flags), REDIRECT, &back.bytes());
                let more = leaves(&service.reply().flagged(ACK));
                world.expect(ingress("pod-b"), &answer(&direct).flagged(ACK), REDIRECT, &more.bytes());
                world.reset();
            }
        }
    });
}
