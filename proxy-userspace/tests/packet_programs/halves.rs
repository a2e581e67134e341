//! Flows of which one entry is gone or another flow's, and the end of flows: nothing of a flow that
//! lives is removed, and what is left of one that does not live keeps nobody out.

use sluice_common::counters::Counter;
use sluice_common::flow::{CLAIMED, Flow, Order, flag, seen};
use sluice_common::service::action;

use crate::network::{FAMILIES, Family, mac, peer};
use crate::packets::{ACK, Packet, RST, SYN, tcp, udp};
use crate::world::{DROP, NEXT, PORT, REDIRECT, TARGET, World, address_of, ingress, key_of, now, on_a_node};

/// The only port for masquerading.
const ONLY: u16 = 20_000;
const LONG_AGO: u64 = 5_000_000_000;

fn from_client(family: Family, protocol: u8, port: u16) -> Packet {
    let (from, to) = (family.client(), family.cluster_ip());
    let packet = if protocol == 6 { tcp(from, port, to, PORT, SYN) } else { udp(from, port, to, PORT) };
    packet.by(peer("uplink"), mac("uplink"))
}

/// Sends a packet that must go to the endpoint; returns how its answer comes.
fn sent(world: &mut World, family: Family, packet: &Packet) -> Packet {
    assert_eq!(world.run(ingress("uplink"), &packet.bytes()).0, REDIRECT);
    answer(world, family, packet)
}

fn answer(world: &mut World, family: Family, packet: &Packet) -> Packet {
    let flow = world.flow(packet).unwrap();
    let to = if flow.source == address_of(family.node()) { family.node() } else { packet.source };
    packet
        .reply()
        .between(family.endpoint(), to)
        .with_ports(TARGET, u16::from_be(flow.source_port))
        .by(peer("pod-b"), mac("pod-b"))
}

/// For each family, with and without a source that is translated too, by one port.
fn each(test: impl Fn(&mut World, Family, u8) + Send + 'static) {
    on_a_node(move |world| {
        for family in FAMILIES {
            for masquerade in [0, action::MASQUERADE] {
                world.service(family, action::CLUSTER | masquerade, &[family.endpoint()]);
                test(world, family, masquerade);
                world.reset();
            }
        }
    });
}

fn one_port(world: &mut World) {
    world.configure(|config| {
        (config.ports, config.first_begin, config.first_count) = (1, ONLY, 1);
    });
}

fn change(world: &mut World, packet: &Packet, change: impl FnOnce(&mut Flow)) {
    let mut flow = world.flow(packet).unwrap();
    change(&mut flow);
    world.set_flow(packet, flow);
}

fn order(world: &mut World, packet: &Packet, reply: &Packet) -> Order {
    let (flow, back) = (world.flow(packet).unwrap(), world.flow(reply));
    let other_used = back.map_or(0, |back| back.used);
    Order { key: key_of(packet), other: key_of(packet).other(&flow), used: flow.used, other_used }
}

#[test]
fn a_first_segment_with_half_a_flow_begins_anew() {
    each(|world, family, _| {
        let first = from_client(family, 6, 40_000);
        for _ in 0..3 {
            let reply = sent(world, family, &first);
            world.drop_flow(&reply);
            let reply = sent(world, family, &first);
            assert_eq!(world.flow(&reply).unwrap().flags & flag::REPLY, flag::REPLY);
            assert_eq!(world.run(ingress("pod-b"), &reply.clone().flagged(SYN | ACK).bytes()).0, REDIRECT);
        }
    });
}

#[test]
fn a_flow_whose_port_was_taken_begins_again_with_another_port() {
    each(|world, family, masquerade| {
        if masquerade == 0 {
            return;
        }
        for protocol in [6, 17] {
            let (one, two) = (from_client(family, protocol, 40_000), from_client(family, protocol, 40_001));
            one_port(world);
            let reply = sent(world, family, &one);
            world.drop_flow(&reply);
            sent(world, family, &two);
            let (of_two, back) = (world.flow(&two).unwrap(), world.flow(&reply).unwrap());
            assert_eq!(u16::from_be(of_two.source_port), ONLY);
            world.configure(|_| {});
            // Segments in the middle belong to no flow any more; a first one, and a datagram, begin
            // one.
            change(world, &one, |flow| flow.used -= LONG_AGO);
            if protocol == 6 {
                world.expect_untouched(ingress("uplink"), &one.clone().flagged(ACK), NEXT);
                assert!(world.flow(&one).is_none());
            }
            sent(world, family, &one);
            assert_ne!(world.flow(&one).unwrap().source_port, of_two.source_port);
            assert_eq!((world.flow(&two), world.flow(&reply)), (Some(of_two), Some(back)));
            world.forget();
        }
    });
}

#[test]
fn entries_evicted_from_a_full_table_are_restored() {
    each(|world, family, masquerade| {
        for protocol in [6, 17] {
            let first = from_client(family, protocol, 40_000);
            let reply = sent(world, family, &first);
            let there = world.flow(&first).unwrap();
            world.drop_flow(&first);
            change(world, &reply, |flow| flow.used -= if protocol == 6 { 0 } else { LONG_AGO });
            let answered = if protocol == 6 { reply.clone().flagged(SYN | ACK) } else { reply.clone() };
            assert_eq!(world.run(ingress("pod-b"), &answered.bytes()).0, REDIRECT);
            let restored = world.flow(&first).unwrap();
            assert_eq!(Flow { used: 0, seen: 0, ..restored }, Flow { used: 0, seen: 0, ..there });

            world.drop_flow(&reply);
            change(world, &first, |flow| flow.used -= LONG_AGO);
            let more = if protocol == 6 { first.clone().flagged(ACK) } else { first.clone() };
            assert_eq!(world.run(ingress("uplink"), &more.bytes()).0, REDIRECT);
            let back = world.flow(&reply).unwrap();
            assert_eq!(back.flags != flag::REPLY, masquerade != 0);
            assert_eq!(back.source, address_of(family.cluster_ip()));
            world.forget();
        }
    });
}

#[test]
fn an_answer_is_not_passed_on_when_its_client_has_another_flow() {
    each(|world, family, masquerade| {
        if masquerade == 0 {
            return;
        }
        let first = from_client(family, 6, 40_000);
        let reply = sent(world, family, &first);
        let newer = Flow { source_port: 20_001_u16.to_be(), ..world.flow(&first).unwrap() };
        world.set_flow(&first, newer);
        world.expect_untouched(ingress("pod-b"), &reply.clone().flagged(SYN | ACK), NEXT);
        assert_eq!((world.flow(&first), world.flow(&reply)), (Some(newer), None));
    });
}

#[test]
fn a_port_is_taken_over_without_the_newer_flow_of_its_old_client() {
    each(|world, family, masquerade| {
        if masquerade == 0 {
            return;
        }
        one_port(world);
        let (one, two) = (from_client(family, 6, 40_000), from_client(family, 6, 40_001));
        let reply = sent(world, family, &one);
        change(world, &reply, |flow| flow.seen |= seen::RST);
        let newer = Flow { source_port: 20_001_u16.to_be(), ..world.flow(&one).unwrap() };
        world.set_flow(&one, newer);
        sent(world, family, &two);
        assert_eq!(u16::from_be(world.flow(&two).unwrap().source_port), ONLY);
        assert_eq!(world.flow(&one), Some(newer));
    });
}

#[test]
fn the_daemon_ends_a_flow_that_nobody_has_used_since() {
    each(|world, family, _| {
        let first = from_client(family, 6, 40_000);
        let reply = sent(world, family, &first);
        let whole = order(world, &first, &reply);
        assert!(world.end_flow(&whole));
        assert_eq!(world.flows(), 0);
        assert!(!world.end_flow(&whole), "it is gone");
        // By the other entry; and half of one.
        let reply = sent(world, family, &first);
        let turned = order(world, &reply, &first);
        assert!(world.end_flow(&turned));
        assert_eq!(world.flows(), 0);
        let reply = sent(world, family, &first);
        world.drop_flow(&reply);
        let half = order(world, &first, &reply);
        assert!(world.end_flow(&half));
        assert_eq!(world.flows(), 0);
    });
}

#[test]
fn the_daemon_ends_nothing_that_was_used_since_it_decided() {
    each(|world, family, masquerade| {
        let (one, two) = (from_client(family, 6, 40_000), from_client(family, 6, 40_001));
        if masquerade != 0 {
            one_port(world);
        }
        // Packets of either direction.
        for with_answer in [false, true] {
            let reply = sent(world, family, &one);
            assert_eq!(world.run(ingress("pod-b"), &reply.bytes()).0, REDIRECT);
            for packet in [&one, &reply] {
                change(world, packet, |flow| flow.used -= LONG_AGO);
            }
            let order = order(world, &one, &reply);
            let (way, packet) = if with_answer {
                ("pod-b", reply.flagged(ACK))
            } else {
                ("uplink", one.clone().flagged(ACK))
            };
            assert_eq!(world.run(ingress(way), &packet.bytes()).0, REDIRECT);
            assert!(!world.end_flow(&order));
            assert_eq!(world.flows(), 2);
            world.forget();
        }
        if masquerade == 0 {
            return;
        }
        // The port became another flow's.
        let reply = sent(world, family, &one);
        let decided = order(world, &one, &reply);
        change(world, &reply, |flow| flow.seen |= seen::RST);
        sent(world, family, &two);
        assert!(!world.end_flow(&decided));
        assert!(!world.end_flow(&Order { key: decided.other, other: decided.key, ..decided }));
        assert_eq!(world.flow(&reply).unwrap().destination_port, 40_001_u16.to_be());
        assert_eq!(world.flows(), 2);
        // Only one of the entries is as it was: neither goes.
        let half = Order { other_used: 1, ..order(world, &two, &reply) };
        assert!(!world.end_flow(&half));
        assert_ne!(world.flow(&two).unwrap().used, CLAIMED);
    });
}

#[test]
fn claimed_entries_are_neither_used_nor_taken() {
    each(|world, family, masquerade| {
        let (one, two) = (from_client(family, 6, 40_000), from_client(family, 6, 40_001));
        let reply = sent(world, family, &one);
        for packet in [&one, &reply] {
            change(world, packet, |flow| (flow.used, flow.seen) = (CLAIMED, flow.seen | seen::RST));
        }
        for flags in [SYN, ACK] {
            world.expect_untouched(ingress("uplink"), &one.clone().flagged(flags), DROP);
        }
        world.expect_untouched(ingress("pod-b"), &reply.clone().flagged(SYN | ACK), DROP);
        assert_eq!(world.counter(Counter::DropFlowTable), 3);
        if masquerade != 0 {
            let port = u16::from_be(world.flow(&one).unwrap().source_port);
            world.configure(|config| (config.ports, config.first_begin, config.first_count) = (1, port, 1));
            world.expect_untouched(ingress("uplink"), &two, DROP);
            assert_eq!(world.counter(Counter::DropNoPort), 1);
        }
        assert_eq!(world.flow(&reply).unwrap().used, CLAIMED);
        assert_eq!(world.flows(), 2);
    });
}

#[test]
fn both_entries_of_a_flow_leave_the_old_table_together() {
    each(|world, family, _| {
        let first = from_client(family, 6, 40_000);
        let reply = sent(world, family, &first);
        for packet in [&first, &reply] {
            change(world, packet, |flow| flow.used = now() - LONG_AGO);
        }
        world.retire_flows();
        assert_eq!(world.run(ingress("uplink"), &first.clone().flagged(ACK | RST).bytes()).0, REDIRECT);
        assert_eq!((world.flows(), world.old_flows()), (2, 0));
        // It is over: a first segment begins another one.
        world.retire_flows();
        let reply = sent(world, family, &first);
        assert_eq!(world.flow(&first).unwrap().seen, seen::PACKET);
        assert_eq!(world.flow(&reply).unwrap().seen, 0);
        assert_eq!(world.old_flows(), 0);
    });
}
