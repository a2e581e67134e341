//! Packets after the first: those that belong to a flow, those that do not, and those that begin
//! another one.

use std::net::IpAddr;

use sluice_common::counters::Counter;
use sluice_common::flow::{flag, seen};
use sluice_common::node::{interface, option};
use sluice_common::service::action;

use crate::network::{FAMILIES, Family, GATEWAY, OTHER_NODE, mac, peer};
use crate::packets::{ACK, Body, FIN, Packet, RST, SYN, tcp, udp};
use crate::world::{
    At, DROP, NEXT, NODE_PORT, PORT, REDIRECT, TARGET, World, address_of, ago, egress, ingress, on_a_node,
};

/// What a client on the uplink sends to the cluster IP.
fn from_client(family: Family, protocol: u8) -> Packet {
    let (from, to) = (family.client(), family.cluster_ip());
    let packet = if protocol == 6 { tcp(from, 40_000, to, PORT, SYN) } else { udp(from, 40_000, to, PORT) };
    packet.by(peer("uplink"), mac("uplink"))
}

/// The same as an endpoint gets it that is a pod of this node.
fn at_endpoint(packet: &Packet, endpoint: IpAddr, interface: &str) -> Packet {
    packet
        .clone()
        .by(mac(interface), peer(interface))
        .between(packet.source, endpoint)
        .with_ports(packet.ports()[0], TARGET)
        .aged(1)
}

/// Lets a packet begin a flow.
fn begin(world: &mut World, packet: &Packet, becomes: &Packet) {
    world.expect(ingress("uplink"), packet, REDIRECT, &becomes.bytes());
}

#[test]
fn packets_follow_their_flow_in_both_directions_whatever_becomes_of_the_service() {
    on_a_node(|world| {
        for family in FAMILIES {
            for protocol in [6, 17] {
                world.service(family, action::CLUSTER, &[family.endpoint()]);
                let first = from_client(family, protocol);
                let arrived = at_endpoint(&first, family.endpoint(), "pod-b");
                begin(world, &first, &arrived);

                world.service(family, action::REJECT, &[family.second()]);
                let reply = arrived.reply().by(peer("pod-b"), mac("pod-b"));
                let back = first.reply().by(mac("uplink"), peer("uplink")).aged(1);
                world.expect(ingress("pod-b"), &reply, REDIRECT, &back.bytes());
                let after = |flags| {
                    (first.clone().flagged(flags).sized(100), arrived.clone().flagged(flags).sized(100))
                };
                let (more, more_arrives) = after(ACK);
                world.expect(ingress("uplink"), &more, REDIRECT, &more_arrives.bytes());
                let (end, end_arrives) = after(FIN | ACK);
                world.expect(ingress("uplink"), &end, REDIRECT, &end_arrives.bytes());

                let (there, again) = (world.flow(&first).unwrap(), world.flow(&reply).unwrap());
                assert_eq!(again.flags, flag::REPLY);
                assert_eq!(again.seen, seen::PACKET);
                let end_seen = if protocol == 6 { seen::FIN } else { 0 };
                assert_eq!(there.seen, seen::PACKET | seen::ESTABLISHED | end_seen);
                assert_eq!(world.counter(Counter::FlowsBegun), 1);
                assert_eq!(world.flows(), 2);
                world.reset();
            }
        }
    });
}

#[test]
fn replies_to_a_masqueraded_connection_find_their_way_back() {
    on_a_node(|world| {
        for family in FAMILIES {
            for protocol in [6, 17] {
                for (sender, out) in [("uplink", peer("uplink")), ("pod-a", peer("pod-a"))] {
                    world.service(family, action::CLUSTER | action::MASQUERADE, &[family.remote()]);
                    let client = if sender == "uplink" { family.client() } else { family.pod() };
                    let first = from_client(family, protocol)
                        .between(client, family.node())
                        .with_ports(40_000, NODE_PORT)
                        .by(peer(sender), mac(sender));
                    assert_eq!(world.run(ingress(sender), &first.bytes()).0, REDIRECT);
                    let flow = world.flow(&first).unwrap();
                    assert_eq!(flow.flags, flag::MASQUERADED);
                    let reply = first
                        .reply()
                        .between(family.remote(), family.node())
                        .with_ports(TARGET, u16::from_be(flow.source_port))
                        .by(OTHER_NODE, mac("uplink"));
                    let back = first.reply().by(mac(sender), out).aged(1);
                    world.expect(ingress("uplink"), &reply, REDIRECT, &back.bytes());
                    assert_eq!(world.flow(&reply).unwrap().flags, flag::REPLY | flag::MASQUERADED);
                    world.reset();
                }
            }
        }
    });
}

#[test]
fn replies_to_a_process_of_the_node_go_up_its_stack() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER | action::MASQUERADE, &[family.endpoint()]);
            let first = tcp(family.node(), 40_000, family.cluster_ip(), PORT, SYN).by(mac("uplink"), GATEWAY);
            assert_eq!(world.run(egress("uplink"), &first.bytes()).0, REDIRECT);
            let port = u16::from_be(world.flow(&first).unwrap().source_port);
            let reply = first
                .reply()
                .between(family.endpoint(), family.node())
                .with_ports(TARGET, port)
                .by(peer("pod-b"), mac("pod-b"));
            let back = first.reply().by(peer("pod-b"), mac("pod-b"));
            world.expect(ingress("pod-b"), &reply, NEXT, &back.bytes());
            world.reset();
        }
    });
}

#[test]
fn an_endpoint_on_the_nodes_own_address_is_the_stacks_business_and_never_masqueraded() {
    on_a_node(|world| {
        for family in FAMILIES {
            for protocol in [6, 17] {
                world.service(family, action::CLUSTER | action::MASQUERADE, &[family.node()]);
                let first = from_client(family, protocol);
                let arrived =
                    first.clone().between(family.client(), family.node()).with_ports(40_000, TARGET);
                world.expect(ingress("uplink"), &first, NEXT, &arrived.bytes());
                assert_eq!(world.flow(&first).unwrap().flags, 0);
                let reply = arrived.reply();
                world.expect(egress("uplink"), &reply, NEXT, &first.reply().bytes());
                world.reset();
            }
        }
    });
}

#[test]
fn a_pod_that_is_its_own_endpoint_sees_the_node_as_its_client() {
    on_a_node(|world| {
        for family in FAMILIES {
            for protocol in [6, 17] {
                world.service(family, action::CLUSTER, &[family.pod()]);
                let first = from_client(family, protocol)
                    .between(family.pod(), family.cluster_ip())
                    .by(peer("pod-a"), mac("pod-a"));
                let (code, bytes) = world.run(ingress("pod-a"), &first.bytes());
                let port = u16::from_be(world.flow(&first).unwrap().source_port);
                let arrived = first
                    .clone()
                    .between(family.node(), family.pod())
                    .with_ports(port, TARGET)
                    .by(mac("pod-a"), peer("pod-a"))
                    .aged(1);
                assert_eq!((code, bytes), (REDIRECT, arrived.bytes()));
                let reply = arrived.reply().by(peer("pod-a"), mac("pod-a"));
                let back = first.reply().by(mac("pod-a"), peer("pod-a")).aged(1);
                world.expect(ingress("pod-a"), &reply, REDIRECT, &back.bytes());
                world.reset();
            }
        }
    });
}

#[test]
fn segments_of_a_connection_without_a_flow_pass() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            for flags in [ACK, SYN | ACK, FIN | ACK, RST, RST | ACK, 0] {
                let sent = from_client(family, 6).flagged(flags);
                world.expect_untouched(ingress("uplink"), &sent, NEXT);
                let own = sent.between(family.node(), family.cluster_ip()).by(mac("uplink"), GATEWAY);
                world.expect_untouched(egress("uplink"), &own, NEXT);
            }
            assert_eq!(world.flows(), 0);
        }
    });
}

#[test]
fn a_first_segment_begins_a_new_connection_only_if_the_old_one_is_over() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let first = from_client(family, 6);
            let arrived = at_endpoint(&first, family.endpoint(), "pod-b");
            let elsewhere = at_endpoint(&first, family.second(), "pod-c");
            begin(world, &first, &arrived);
            world.service(family, action::CLUSTER, &[family.second()]);
            let pass = |world: &mut World, flags: &[u8]| {
                for flags in flags {
                    let sent = first.clone().flagged(*flags).bytes();
                    assert_eq!(world.run(ingress("uplink"), &sent).0, REDIRECT);
                }
            };
            // Sent again; to a connection that lives; to one that goes on after somebody's RST;
            // half closed.
            for flags in [&[][..], &[ACK], &[RST, ACK], &[FIN | ACK]] {
                pass(world, flags);
                begin(world, &first, &arrived);
            }
            let reply = arrived.reply().by(peer("pod-b"), mac("pod-b"));
            assert_eq!(world.run(ingress("pod-b"), &reply.clone().flagged(FIN | ACK).bytes()).0, REDIRECT);
            begin(world, &first, &elsewhere);
            assert!(world.flow(&reply).is_none());
            assert_eq!(world.flow(&first).unwrap().seen, seen::PACKET);
            assert_eq!(world.flow(&elsewhere.reply()).unwrap().flags, flag::REPLY);
            pass(world, &[ACK, RST]);
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            begin(world, &first, &arrived);
            world.reset();
        }
    });
}

#[test]
fn an_answer_to_somebody_elses_handshake_ends_a_flow_that_is_over() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let first = from_client(family, 6);
            let arrived = at_endpoint(&first, family.endpoint(), "pod-b");
            begin(world, &first, &arrived);
            let reply = arrived.reply().by(peer("pod-b"), mac("pod-b"));
            let answer = reply.clone().flagged(SYN | ACK);
            let end = |world: &mut World, interface, packet: &Packet| {
                let sent = packet.clone().flagged(FIN | ACK).bytes();
                assert_eq!(world.run(ingress(interface), &sent).0, REDIRECT);
            };
            end(world, "uplink", &first);
            assert_eq!(world.run(ingress("pod-b"), &answer.bytes()).0, REDIRECT);
            end(world, "pod-b", &reply);
            world.expect_untouched(ingress("pod-b"), &answer, NEXT);
            assert_eq!(world.flows(), 0);
        }
    });
}

#[test]
fn sources_that_nobody_outside_can_have_are_left_to_the_stack() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER | action::MASQUERADE, &[family.endpoint()]);
            let strange: [IpAddr; 2] = match family {
                Family::V4 => ["127.0.0.1".parse().unwrap(), "224.0.0.1".parse().unwrap()],
                Family::V6 => ["::1".parse().unwrap(), "ff02::1".parse().unwrap()],
            };
            for source in strange.into_iter().chain([family.node()]) {
                for protocol in [6, 17] {
                    let sent = from_client(family, protocol).between(source, family.cluster_ip());
                    world.expect_untouched(ingress("uplink"), &sent, NEXT);
                }
            }
            assert_eq!(world.flows(), 0);
        }
    });
}

#[test]
fn a_datagram_begins_a_new_flow_if_the_old_one_was_idle_in_both_directions() {
    on_a_node(|world| {
        for family in FAMILIES {
            let idle = ago(181);
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let first = from_client(family, 17);
            let arrived = at_endpoint(&first, family.endpoint(), "pod-b");
            let elsewhere = at_endpoint(&first, family.second(), "pod-c");
            begin(world, &first, &arrived);
            world.service(family, action::CLUSTER, &[family.second()]);
            let (there, again) = (world.flow(&first).unwrap(), world.flow(&arrived.reply()).unwrap());
            world.set_flow(&first, sluice_common::flow::Flow { used: idle, ..there });
            // The endpoint has sent something.
            begin(world, &first, &arrived);
            assert!(world.flow(&first).unwrap().used > idle);
            world.set_flow(&first, sluice_common::flow::Flow { used: idle, ..there });
            world.set_flow(&arrived.reply(), sluice_common::flow::Flow { used: idle, ..again });
            begin(world, &first, &elsewhere);
            world.reset();
        }
    });
}

#[test]
fn two_frontends_of_one_endpoint_do_not_confuse_a_client_that_uses_one_port() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let first = from_client(family, 6);
            begin(world, &first, &at_endpoint(&first, family.endpoint(), "pod-b"));
            let other = first.clone().between(family.client(), family.load_balancer());
            assert_eq!(world.run(ingress("uplink"), &other.bytes()).0, REDIRECT);
            let flow = world.flow(&other).unwrap();
            assert_eq!((flow.source, flow.flags), (address_of(family.client()), 0));
            let port = u16::from_be(flow.source_port);
            assert_ne!(port, 40_000);
            let reply = at_endpoint(&other.clone().with_ports(port, PORT), family.endpoint(), "pod-b")
                .reply()
                .by(peer("pod-b"), mac("pod-b"));
            let back = other.reply().by(mac("uplink"), peer("uplink")).aged(1);
            world.expect(ingress("pod-b"), &reply, REDIRECT, &back.bytes());
            // Without ports there is nothing to tell them apart by.
            world.configure(|config| config.ports = 0);
            let third = first.clone().between(family.client(), family.node()).with_ports(40_000, NODE_PORT);
            world.expect_untouched(ingress("uplink"), &third, DROP);
            assert_eq!(world.counter(Counter::DropNoPort), 1);
            assert!(world.flow(&third).is_none());
            world.reset();
        }
    });
}

#[test]
fn flows_of_the_old_table_move_to_the_new_one() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let first = from_client(family, 6);
            let arrived = at_endpoint(&first, family.endpoint(), "pod-b");
            begin(world, &first, &arrived);
            world.retire_flows();
            assert_eq!(world.flows(), 0);
            let (more, more_arrives) = (first.clone().flagged(ACK), arrived.clone().flagged(ACK));
            world.expect(ingress("uplink"), &more, REDIRECT, &more_arrives.bytes());
            assert_eq!(world.flow(&first).unwrap().seen, seen::PACKET | seen::ESTABLISHED);
            let reply = arrived.reply().by(peer("pod-b"), mac("pod-b"));
            let back = first.reply().by(mac("uplink"), peer("uplink")).aged(1);
            world.expect(ingress("pod-b"), &reply, REDIRECT, &back.bytes());
            assert_eq!(world.flows(), 2);
            assert_eq!(world.counter(Counter::FlowsBegun), 1);
            world.reset();
        }
    });
}

#[test]
fn switched_off_flows_go_on_and_nothing_new_begins() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let first = from_client(family, 17);
            let arrived = at_endpoint(&first, family.endpoint(), "pod-b");
            begin(world, &first, &arrived);
            world.configure(|config| config.options |= option::DRAINING);
            begin(world, &first, &arrived);
            let reply = arrived.reply().by(peer("pod-b"), mac("pod-b"));
            let back = first.reply().by(mac("uplink"), peer("uplink")).aged(1);
            world.expect(ingress("pod-b"), &reply, REDIRECT, &back.bytes());
            world.expect_untouched(ingress("uplink"), &first.clone().with_ports(40_001, PORT), NEXT);
            world.expect_untouched(ingress("uplink"), &first.clone().with_ports(40_001, 81), NEXT);
            world.reset();
        }
    });
}

#[test]
fn between_ports_of_a_bridge_only_sources_of_replies_are_translated() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            // Frames for another Ethernet address than the interface's.
            let first = from_client(family, 6).by(peer("uplink"), GATEWAY);
            world.expect_untouched(ingress("uplink"), &first, NEXT);
            assert_eq!(world.flows(), 0);
            let taken = first.clone().by(peer("uplink"), mac("uplink"));
            let arrived = at_endpoint(&taken, family.endpoint(), "pod-b");
            begin(world, &taken, &arrived);
            world.expect_untouched(ingress("uplink"), &first.clone().flagged(ACK), NEXT);
            // From one pod right to another: no routing, so nothing of it shows.
            let reply = arrived.reply().by(peer("pod-b"), peer("pod-a"));
            let back = first.reply().by(peer("pod-b"), peer("pod-a"));
            world.expect(ingress("pod-b"), &reply, NEXT, &back.bytes());
            world.reset();
        }
    });
}

#[test]
fn frames_for_the_bridge_itself_are_left_to_its_own_programs() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let first = from_client(family, 17);
            let arrived = at_endpoint(&first, family.endpoint(), "pod-b");
            begin(world, &first, &arrived);
            world.port_of_bridge("pod-b", GATEWAY);
            let reply = |to| arrived.reply().by(peer("pod-b"), to);
            world.expect_untouched(ingress("pod-b"), &reply(GATEWAY), NEXT);
            // A bridge mostly has the address of one of its ports.
            world.expect_untouched(ingress("pod-b"), &reply(mac("pod-b")), NEXT);
            world.port_of_bridge("uplink", mac("uplink"));
            world.expect_untouched(ingress("uplink"), &first, NEXT);
            world.interface("uplink", 0);
            let back = first.reply().by(peer("pod-b"), peer("pod-a"));
            world.expect(ingress("pod-b"), &reply(peer("pod-a")), NEXT, &back.bytes());
            world.interface("pod-b", interface::PEER);
            world.reset();
        }
    });
}

#[test]
fn redirected_packets_of_a_process_pass_the_second_program_unchanged() {
    on_a_node(|world| {
        for family in FAMILIES {
            for (protocol, what) in
                [6, 17].into_iter().zip([action::CLUSTER, action::CLUSTER | action::MASQUERADE])
            {
                world.service(family, what, &[family.endpoint()]);
                let own = from_client(family, protocol)
                    .between(family.node(), family.cluster_ip())
                    .by(mac("uplink"), GATEWAY);
                let (code, bytes) = world.run(egress("uplink"), &own.bytes());
                assert_eq!((code, world.flows()), (REDIRECT, 2));
                // The redirected packet leaves by an interface with programs, too, and nobody has
                // received it.
                assert_eq!(world.run(egress("uplink"), &bytes), (NEXT, bytes));
                assert_eq!(world.flows(), 2);
                world.reset();
            }
        }
    });
}

#[test]
fn frames_for_all_or_for_many_are_ignored() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            for to in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
                world.expect_untouched(
                    ingress("uplink"),
                    &from_client(family, 17).by(peer("uplink"), to),
                    NEXT,
                );
            }
            assert_eq!(world.flows(), 0);
        }
    });
}

#[test]
fn ip_options_extension_headers_and_traffic_classes_stay() {
    on_a_node(|world| {
        for family in FAMILIES {
            for protocol in [6, 17] {
                world.service(family, action::CLUSTER, &[family.endpoint()]);
                let mut first = from_client(family, protocol);
                (first.extended, first.tos) = (true, 0xb9);
                let arrived = at_endpoint(&first, family.endpoint(), "pod-b");
                begin(world, &first, &arrived);
                let reply = arrived.reply().by(peer("pod-b"), mac("pod-b"));
                let back = first.reply().by(mac("uplink"), peer("uplink")).aged(1);
                world.expect(ingress("pod-b"), &reply, REDIRECT, &back.bytes());
                world.reset();
            }
        }
    });
}

#[test]
fn a_datagram_without_a_checksum_keeps_having_none() {
    on_a_node(|world| {
        // IPv6 has it for tunnels (RFC 6935).
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let mut first = from_client(family, 17);
            if let Body::Udp { checksum, .. } = &mut first.body {
                *checksum = false;
            }
            let arrived = at_endpoint(&first, family.endpoint(), "pod-b");
            begin(world, &first, &arrived);
            let reply = arrived.reply().by(peer("pod-b"), mac("pod-b"));
            let back = first.reply().by(mac("uplink"), peer("uplink")).aged(1);
            world.expect(ingress("pod-b"), &reply, REDIRECT, &back.bytes());
            world.reset();
        }
    });
}

#[test]
fn a_checksum_that_becomes_0_is_not_taken_for_none() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            // A payload whose checksum is 0, that is 0xffff, when it arrives.
            let mut first = from_client(family, 17);
            for value in 0..=u16::MAX {
                if let Body::Udp { payload, .. } = &mut first.body {
                    *payload = value.to_be_bytes().to_vec();
                }
                let arrived = at_endpoint(&first, family.endpoint(), "pod-b");
                if arrived.transport()[6..8] == [0xff, 0xff] {
                    begin(world, &first, &arrived);
                    break;
                }
                assert!(value < u16::MAX);
            }
            world.reset();
        }
    });
}

#[test]
fn an_endpoint_whose_ethernet_address_is_not_known_is_left_to_the_kernel_to_find() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.unresolved()]);
            let first = from_client(family, 6);
            let arrived = at_endpoint(&first, family.unresolved(), "pod-d").by(first.from, first.to);
            begin(world, &first, &arrived);
            world.reset();
        }
    });
}

#[test]
fn only_a_pods_end_of_a_cable_gets_packets_past_the_kernels_neighbours() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let first = from_client(family, 6);
            let arrived = at_endpoint(&first, family.endpoint(), "pod-b");
            let (code, bytes) = world.run(ingress("uplink"), &first.bytes());
            assert_eq!((code, bytes), (REDIRECT, arrived.bytes()));
            // Programs on the way out cannot do that.
            let own = first.clone().between(family.node(), family.cluster_ip()).by(mac("uplink"), GATEWAY);
            let (code, bytes) = world.run(egress("uplink"), &own.bytes());
            let mut arrived = at_endpoint(&own, family.endpoint(), "pod-b").by(own.from, own.to);
            arrived.ttl += 1;
            assert_eq!((code, bytes), (REDIRECT, arrived.bytes()));
            // Nor does anybody else's cable lead into a pod.
            world.interface("pod-b", 0);
            let (code, bytes) = world.run(ingress("uplink"), &first.bytes());
            let arrived = at_endpoint(&first, family.endpoint(), "pod-b").by(first.from, first.to);
            assert_eq!((code, bytes), (REDIRECT, arrived.bytes()));
            world.reset();
        }
    });
}

#[test]
fn connections_of_other_processes_take_their_way_over_this_node_untouched() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let passing = At { from: Some("pod-a"), ..egress("uplink") };
            for to in [family.far_client(), family.load_balancer(), family.remote()] {
                let sent = tcp(family.pod(), 40_000, to, PORT, SYN).by(mac("uplink"), GATEWAY);
                world.expect_untouched(passing, &sent, NEXT);
            }
            let direct = tcp(family.client(), 40_000, family.endpoint(), TARGET, SYN)
                .by(peer("uplink"), mac("uplink"));
            world.expect_untouched(ingress("uplink"), &direct, NEXT);
            assert_eq!(world.flows(), 0);
        }
    });
}
