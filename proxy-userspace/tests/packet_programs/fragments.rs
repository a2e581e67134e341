//! Packets in parts.

use sluice_common::service::action;

use crate::network::{FAMILIES, Family, mac, peer};
use crate::packets::{Packet, SYN, tcp, udp};
use crate::world::{NEXT, PORT, REDIRECT, TARGET, egress, ingress, on_a_node};

fn from_client(family: Family, protocol: u8) -> Packet {
    let (from, to) = (family.client(), family.cluster_ip());
    let packet = if protocol == 6 { tcp(from, 40_000, to, PORT, SYN) } else { udp(from, 40_000, to, PORT) };
    packet.by(peer("uplink"), mac("uplink")).sized(100)
}

fn at_endpoint(packet: &Packet, family: Family) -> Packet {
    packet
        .clone()
        .by(mac("pod-b"), peer("pod-b"))
        .between(packet.source, family.endpoint())
        .with_ports(40_000, TARGET)
        .aged(1)
}

#[test]
fn later_fragments_follow_the_first_in_both_directions() {
    on_a_node(|world| {
        for family in FAMILIES {
            for protocol in [6, 17] {
                for extended in [false, true] {
                    println!("{family:?} {protocol} {extended}");
                    world.service(family, action::CLUSTER, &[family.endpoint()]);
                    let mut first = from_client(family, protocol);
                    first.extended = extended;
                    let arrived = at_endpoint(&first, family);
                    let both =
                        |world: &mut crate::world::World, from: &Packet, to: &Packet, interface, split| {
                            for (sent, becomes) in from.fragments(split).iter().zip(&to.fragments(split)) {
                                world.expect_bytes(ingress(interface), sent, REDIRECT, becomes);
                            }
                        };
                    both(world, &first, &arrived, "uplink", 48);
                    assert_eq!(world.fragments(), 1);
                    let reply = arrived.reply().by(peer("pod-b"), mac("pod-b"));
                    let back = first.reply().by(mac("uplink"), peer("uplink")).aged(1);
                    both(world, &reply, &back, "pod-b", 24);
                    assert_eq!(world.fragments(), 2);
                    world.reset();
                }
            }
        }
    });
}

#[test]
fn fragments_of_a_masqueraded_datagram_have_its_source() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER | action::MASQUERADE, &[family.endpoint()]);
            let first = from_client(family, 17);
            let [head, tail] = first.fragments(48);
            assert_eq!(world.run(ingress("uplink"), &head).0, REDIRECT);
            let port = u16::from_be(world.flow(&first).unwrap().source_port);
            let arrived = at_endpoint(&first, family)
                .between(family.node(), family.endpoint())
                .with_ports(port, TARGET);
            world.expect_bytes(ingress("uplink"), &tail, REDIRECT, &arrived.fragments(48)[1]);
            world.reset();
        }
    });
}

#[test]
fn fragments_of_the_nodes_own_replies_follow_too() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.node()]);
            let first = from_client(family, 17);
            assert_eq!(world.run(ingress("uplink"), &first.bytes()).0, NEXT);
            let reply = first.reply().between(family.node(), family.client()).with_ports(TARGET, 40_000);
            for (sent, becomes) in reply.fragments(48).iter().zip(&first.reply().fragments(48)) {
                world.expect_bytes(egress("uplink"), sent, NEXT, becomes);
            }
            world.reset();
        }
    });
}

#[test]
fn a_later_fragment_of_an_unknown_packet_passes() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let first = from_client(family, 17);
            let [head, tail] = first.fragments(48);
            world.expect_bytes(ingress("uplink"), &tail, NEXT, &tail);
            let mut other = first.clone();
            other.identification += 1;
            assert_eq!(world.run(ingress("uplink"), &head).0, REDIRECT);
            let [_, other_tail] = other.fragments(48);
            world.expect_bytes(ingress("uplink"), &other_tail, NEXT, &other_tail);
            world.reset();
        }
    });
}
