//! IPv4 datagrams that are too big for their way and may be cut up: the stack does it.

use std::net::IpAddr;

use sluice_common::counters::Counter;
use sluice_common::service::action;

use crate::network::{Family, ip_batch, mac, peer};
use crate::packets::{Message, Packet, udp};
use crate::wire::{Wire, with_wires};
use crate::world::{
    NEXT, NODE_PORT, PORT, REDIRECT, TARGET, World, egress, expect_answer, ingress, on_a_node,
};

const V4: Family = Family::V4;

/// Bigger than the way to [`Family::small`] and [`Family::narrow`] takes.
fn big(from: IpAddr) -> Packet {
    udp(from, 40_000, V4.cluster_ip(), PORT).by(peer("uplink"), mac("uplink")).sized(1_400).may_be_cut()
}

/// As its endpoint gets it.
fn translated(world: &mut World, first: &Packet, masquerade: bool, endpoint: IpAddr) -> Packet {
    let (source, port) = if masquerade {
        (V4.node(), u16::from_be(world.flow(first).expect("a flow").source_port))
    } else {
        (first.source, 40_000)
    };
    first.clone().between(source, endpoint).with_ports(port, TARGET)
}

#[test]
fn a_datagram_that_may_be_cut_up_goes_to_the_stack_by_lo() {
    on_a_node(|world| {
        for endpoint in [V4.small(), V4.narrow()] {
            for masquerade in [false, true] {
                println!("{endpoint} {masquerade}");
                let what = action::CLUSTER | if masquerade { action::MASQUERADE } else { 0 };
                world.service(V4, what, &[endpoint]);
                let first = big(V4.far_client());
                assert_eq!(world.run(ingress("uplink"), &first.bytes()).0, REDIRECT);
                // The stack ages it.
                let arrives = translated(world, &first, masquerade, endpoint).by_lo();
                world.expect_exactly(ingress("uplink"), &first.bytes(), REDIRECT, &arrives.bytes());
                // A process of the node that the socket path does not serve.
                let own = first.clone().between(V4.node(), V4.cluster_ip()).with_ports(40_001, PORT);
                assert_eq!(world.run(egress("uplink"), &own.bytes()).0, REDIRECT);
                assert_eq!(world.counter(Counter::TooBig), 0);
                let mut old = first.clone();
                old.ttl = 1;
                expect_answer(world, V4, ingress("uplink"), &old, V4.node(), Message::TimeExceeded);
                world.reset();
            }
        }
    });
}

#[test]
fn all_parts_of_a_datagram_go_the_way_of_the_first() {
    on_a_node(|world| {
        for masquerade in [false, true] {
            let what = action::CLUSTER | if masquerade { action::MASQUERADE } else { 0 };
            world.service(V4, what, &[V4.small()]);
            let first = big(V4.client());
            let [head, tail] = first.fragments(1_360);
            assert_eq!(world.run(ingress("uplink"), &head).0, REDIRECT);
            let arrives = translated(world, &first, masquerade, V4.small()).by_lo();
            // The last one would fit.
            for (sent, becomes) in [head, tail].iter().zip(&arrives.fragments(1_360)) {
                world.expect_exactly(ingress("uplink"), sent, REDIRECT, becomes);
            }
            // What the endpoint sends is small enough, wherever what it gets was cut.
            let reply = arrives.reply().by(peer("pod-s"), mac("pod-s"));
            let back = first.reply().by(mac("uplink"), peer("uplink")).aged(1);
            for (sent, becomes) in reply.fragments(640).iter().zip(&back.fragments(640)) {
                world.expect_bytes(ingress("pod-s"), sent, REDIRECT, becomes);
            }
            // The same identification, but all parts fit.
            let fit =
                translated(world, &first, masquerade, V4.small()).by(mac("pod-s"), peer("pod-s")).aged(1);
            for (sent, becomes) in first.fragments(640).iter().zip(&fit.fragments(640)) {
                world.expect_bytes(ingress("uplink"), sent, REDIRECT, becomes);
            }
            world.reset();
        }
    });
}

#[test]
fn answers_of_the_nodes_own_processes_are_cut_already() {
    on_a_node(|world| {
        world.service(V4, action::CLUSTER, &[V4.node()]);
        let first = big(V4.client());
        assert_eq!(world.run(ingress("uplink"), &first.bytes()).0, NEXT);
        let reply = first.reply().between(V4.node(), V4.client()).with_ports(TARGET, 40_000).sized(1_600);
        let back = first.reply().sized(1_600);
        world.expect(egress("uplink"), &reply, NEXT, &back.bytes());
    });
}

/// What the pieces of a datagram that come by a wire have behind their IP headers, put together,
/// and how many they are.
fn put_together(wire: &mut Wire, source: IpAddr, destination: IpAddr) -> (Vec<u8>, usize) {
    let (mut bytes, mut pieces) = (Vec::new(), 0);
    loop {
        let piece = wire.receive(source, destination);
        let place = u16::from_be_bytes([piece[6], piece[7]]);
        assert_eq!(usize::from(place & 0x1fff) * 8, bytes.len(), "in order");
        bytes.extend_from_slice(&piece[20..]);
        pieces += 1;
        if place & 0x2000 == 0 {
            return (bytes, pieces);
        }
    }
}

/// Settings as of distributions that want packets to come in where answers to them leave.
fn strict() {
    for name in ["all", "wire-a", "wire-b"] {
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "1").unwrap();
    }
    let change = sluice_sys::lo::opening(sluice_sys::lo::Before::default()).unwrap();
    assert_eq!(change.len(), 1);
    change.make().unwrap();
}

/// Big datagrams there and back, by a Service's address and by the node's own.
fn there_and_back(world: &mut World, a: &mut Wire, b: &mut Wire, family: Family) {
    if family != V4 {
        return;
    }
    for (what, to, port) in [
        (action::CLUSTER, V4.cluster_ip(), PORT),
        (action::CLUSTER, V4.node(), NODE_PORT),
        (action::CLUSTER | action::MASQUERADE, V4.cluster_ip(), PORT),
        (action::CLUSTER | action::MASQUERADE, V4.node(), NODE_PORT),
    ] {
        println!("{what} {to}");
        let masquerade = what & action::MASQUERADE != 0;
        world.reset();
        world.service(V4, what, &[V4.behind_b()]);
        let first = udp(V4.behind_a(), 40_000, to, port).sized(1_450).may_be_cut();
        // Each way is narrow when the datagram comes to its end.
        ip_batch("link set wire-a mtu 1500\nlink set wire-b mtu 1400");
        a.send(&first, false);
        let source = if masquerade { V4.node() } else { V4.behind_a() };
        let (bytes, pieces) = put_together(b, source, V4.behind_b());
        let arrived = translated(world, &first, masquerade, V4.behind_b());
        assert_eq!((bytes, pieces), (arrived.transport(), 2));
        ip_batch("link set wire-a mtu 1400\nlink set wire-b mtu 1500");
        let reply = arrived.reply().sized(1_450);
        b.send(&reply, false);
        let (bytes, pieces) = put_together(a, to, V4.behind_a());
        assert_eq!((bytes, pieces), (first.reply().sized(1_450).transport(), 2));
    }
}

#[test]
fn the_stack_cuts_what_comes_from_the_node_and_from_services() {
    with_wires(there_and_back);
}

#[test]
fn the_stack_fragments_with_strict_rp_filter_too() {
    with_wires(|world, a, b, family| {
        if family == V4 {
            strict();
        }
        there_and_back(world, a, b, family);
    });
}
