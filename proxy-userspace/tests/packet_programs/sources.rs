//! Packets that are not from whom they say: of pods, and where `rp_filter` keeps them out.

use std::net::IpAddr;

use sluice_common::Address;
use sluice_common::counters::Counter;
use sluice_common::node::interface::{LOOSE, OWN_SOURCES, PEER, STRICT};
use sluice_common::service::action;

use crate::network::{FAMILIES, Family, INTERFACES, ip_batch, mac, peer};
use crate::packets::{ACK, Mac, Message, Packet, SYN, echo, tcp, udp};
use crate::world::{
    At, DROP, NEXT, NODE_PORT, PORT, REDIRECT, TARGET, World, address_of, egress, ingress, on_a_node,
};

const BROADCAST: Mac = [0xff; 6];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// By the link of a pod.
fn by(link: &str, packet: Packet) -> Packet {
    packet.by(peer(link), mac(link))
}

/// Says of all links of pods that only the pod's own addresses come from there.
fn check_pods(world: &mut World) {
    for name in INTERFACES.into_iter().filter(|name| *name != "uplink") {
        world.interface(name, PEER | OWN_SOURCES);
    }
}

/// What no pod behind `pod-a` has: another pod's, one of another node's pods, the node's, outside,
/// loopback, one that nobody has.
fn others(family: Family) -> Vec<IpAddr> {
    let strange = if family == Family::V4 {
        ["127.0.0.1", "224.0.0.5", "255.255.255.255"].as_slice()
    } else {
        &["::1", "ff02::1", "::ffff:10.244.0.5", "::10.244.0.5"]
    };
    let usual = [
        family.endpoint(),
        family.remote(),
        family.node(),
        family.client(),
        family.far_client(),
        family.cluster_ip(),
        family.prohibited(),
    ];
    usual.into_iter().chain(strange.iter().map(|text| ip(text))).collect()
}

/// Runs the program at a link on a packet that has to be dropped for its source, and counted.
#[track_caller]
fn expect_refusal(world: &mut World, link: &str, packet: &[u8], counter: Counter) {
    let before = (world.counter(counter), world.flows());
    assert_eq!(world.run(ingress(link), packet), (DROP, packet.to_vec()));
    assert_eq!((world.counter(counter), world.flows()), (before.0 + 1, before.1));
}

#[test]
fn a_pod_asks_a_service_with_its_own_address_only() {
    on_a_node(|world| {
        for family in FAMILIES {
            for masquerade in [0, action::MASQUERADE] {
                world.service(family, action::CLUSTER | masquerade, &[family.endpoint(), family.remote()]);
                check_pods(world);
                for to in
                    [family.cluster_ip(), family.load_balancer(), family.endpoint(), family.far_client()]
                {
                    for source in others(family) {
                        for packet in [
                            tcp(source, 40_000, to, PORT, SYN),
                            udp(source, 40_000, to, PORT),
                            echo(source, to),
                        ] {
                            let packet = by("pod-a", packet).bytes();
                            expect_refusal(world, "pod-a", &packet, Counter::DropPodSource);
                        }
                    }
                }
                for packet in [
                    tcp(family.pod(), 40_000, family.cluster_ip(), PORT, SYN),
                    udp(family.pod(), 40_000, family.load_balancer(), PORT),
                ] {
                    assert_eq!(world.run(ingress("pod-a"), &by("pod-a", packet).bytes()).0, REDIRECT);
                }
                // Its hardware address need not be known.
                let silent = by("pod-d", udp(family.unresolved(), 40_000, family.cluster_ip(), PORT));
                assert_eq!(world.run(ingress("pod-d"), &silent.bytes()).0, REDIRECT);
                assert_eq!(world.flows(), 6);
                world.reset();
            }
        }
    });
}

#[test]
fn where_nobody_asks_for_it_any_source_passes() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let packet = by("pod-a", udp(family.far_client(), 40_000, family.cluster_ip(), PORT));
            assert_eq!(world.run(ingress("pod-a"), &packet.bytes()).0, REDIRECT);
        }
    });
}

#[test]
fn a_pod_cannot_answer_with_another_pods_address() {
    on_a_node(|world| {
        for family in FAMILIES {
            for protocol in [6, 17] {
                world.service(family, action::CLUSTER, &[family.endpoint()]);
                check_pods(world);
                let (from, to) = (family.pod(), family.cluster_ip());
                let asked = if protocol == 6 {
                    tcp(from, 40_000, to, PORT, SYN)
                } else {
                    udp(from, 40_000, to, PORT)
                };
                let asked = by("pod-a", asked);
                assert_eq!(world.run(ingress("pod-a"), &asked.bytes()).0, REDIRECT);
                let answer = asked.reply().between(family.endpoint(), from).with_ports(TARGET, 40_000);
                let false_one = by("pod-c", answer.clone()).bytes();
                expect_refusal(world, "pod-c", &false_one, Counter::DropPodSource);
                // Nor does an error of his meet the connection.
                let error = answer.error(family.second(), Message::PortUnreachable, family.header() + 8);
                let error = by("pod-c", error.between(family.endpoint(), family.endpoint())).bytes();
                expect_refusal(world, "pod-c", &error, Counter::DropPodSource);
                assert_eq!(world.run(ingress("pod-b"), &by("pod-b", answer).bytes()).0, REDIRECT);
                world.reset();
            }
        }
    });
}

#[test]
fn parts_of_packets_have_sources_too() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            check_pods(world);
            let whole = |source| {
                let packet = by("pod-a", udp(source, 40_000, family.cluster_ip(), PORT));
                packet.may_be_cut().sized(600).fragments(256)
            };
            assert_eq!(whole(family.pod()).map(|part| world.run(ingress("pod-a"), &part).0), [REDIRECT; 2]);
            for part in whole(family.second()) {
                expect_refusal(world, "pod-a", &part, Counter::DropPodSource);
            }
        }
    });
}

#[test]
fn packets_to_the_link_only_pass_to_the_stack() {
    on_a_node(|world| {
        check_pods(world);
        let multicast = [0x33, 0x33, 0, 0, 0, 1];
        let passes = [
            // Neighbour discovery, of an address that is and of one that may become the pod's; its
            // own address to a router.
            (echo(ip("fe80::5"), ip("ff02::1")), multicast),
            (echo(ip("::"), ip("ff02::1:ff00:5")), multicast),
            (echo(ip("fd00:244::5"), ip("fe80::1")), mac("pod-a")),
            (echo(ip("fd00:244::5"), ip("ff02::1:ff00:1")), multicast),
            // Who asks for an address.
            (udp(ip("0.0.0.0"), 68, ip("255.255.255.255"), 67), BROADCAST),
            (udp(ip("10.244.0.5"), 68, ip("255.255.255.255"), 67), BROADCAST),
            (udp(ip("10.244.0.5"), 5353, ip("224.0.0.251"), 5353), [1, 0, 0x5e, 0, 0, 0xfb]),
        ];
        for (packet, to) in passes {
            world.expect_untouched(ingress("pod-a"), &packet.by(peer("pod-a"), to), NEXT);
        }
        for (source, to, frame) in [
            ("fd00:244::11", "ff02::1", multicast),
            ("2001:db8:99::7", "fe80::1", mac("pod-a")),
            ("10.244.0.11", "255.255.255.255", BROADCAST),
            ("198.51.100.7", "224.0.0.251", [1, 0, 0x5e, 0, 0, 0xfb]),
        ] {
            let packet = udp(ip(source), 5353, ip(to), 5353).by(peer("pod-a"), frame).bytes();
            expect_refusal(world, "pod-a", &packet, Counter::DropPodSource);
        }
    });
}

/// The stack takes a tag of priority off before programs run, and another one after them.
#[test]
fn a_pod_hides_no_source_behind_tags() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            for kind in [[0x81, 0x00, 0, 0], [0x88, 0xa8, 0, 0]] {
                let mut packet =
                    by("pod-a", udp(family.far_client(), 40_000, family.endpoint(), PORT)).bytes();
                packet.splice(12..12, kind);
                world.reset();
                let at = At { unsummed: true, ..ingress("pod-a") };
                assert_eq!(world.run(at, &packet), (NEXT, packet.clone()), "no link of a pod of ours");
                check_pods(world);
                assert_eq!(world.run(at, &packet), (DROP, packet.clone()));
                assert_eq!(world.counter(Counter::DropPodSource), 1);
                let out = At { unsummed: true, ..egress("pod-a") };
                assert_eq!(world.run(out, &packet), (NEXT, packet));
            }
        }
        let request = [&BROADCAST[..], &peer("pod-a"), &[0x08, 0x06], &[0; 46]].concat();
        assert_eq!(world.run(At { unsummed: true, ..ingress("pod-a") }, &request).0, NEXT, "ARP");
    });
}

#[test]
fn behind_a_port_of_a_bridge_are_the_addresses_that_are_written_down() {
    on_a_node(|world| {
        let bridge = [2, 0, 0, 9, 9, 9];
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let (from, to) = (family.pod(), family.cluster_ip());
            let asked = by("uplink", udp(from, 40_000, to, PORT));
            assert_eq!(world.run(ingress("uplink"), &asked.bytes()).0, REDIRECT);
            for name in ["pod-b", "pod-c"] {
                world.port_of_bridge(name, bridge);
                world.flag(name, OWN_SOURCES);
            }
            // From one port of the bridge to another: the program at it turns the answer back.
            let answer = asked.reply().between(family.endpoint(), from).with_ports(TARGET, 40_000);
            let answer = answer.by(peer("pod-c"), peer("pod-a"));
            assert_ne!(
                world.run(ingress("pod-c"), &answer.bytes()).1,
                answer.bytes(),
                "nothing is known yet"
            );
            world.pod_source("pod-c", address_of(family.second()));
            assert_ne!(world.run(ingress("pod-c"), &answer.bytes()).1, answer.bytes(), "not all is known");
            world.pod_source("pod-c", Address::default());
            expect_refusal(world, "pod-c", &answer.bytes(), Counter::DropPodSource);
            // Another port is another pod's.
            assert_ne!(world.run(ingress("pod-b"), &answer.bytes()).1, answer.bytes());
            let own = answer.clone().between(family.second(), from);
            world.expect_untouched(ingress("pod-c"), &own, NEXT);
            // Frames for the bridge itself too.
            for source in others(family) {
                let packet = udp(source, 40_000, to, PORT).by(peer("pod-c"), bridge).bytes();
                expect_refusal(world, "pod-c", &packet, Counter::DropPodSource);
            }
            world.expect_untouched(ingress("pod-c"), &echo(ip("fe80::7"), ip("fe80::8")), NEXT);
            world.reset();
        }
    });
}

#[test]
fn reverse_paths_keep_out_what_they_keep_out_of_the_stack() {
    on_a_node(|world| {
        let family = Family::V4;
        let masquerades = action::CLUSTER | action::MASQUERADE;
        let ask = |source, to, port| by("uplink", udp(source, 40_000, to, port)).bytes();
        for what in [masquerades, action::CLUSTER, action::REJECT] {
            for (to, port) in [
                (family.node(), NODE_PORT),
                (family.load_balancer(), PORT),
                (family.cluster_ip(), PORT),
                (family.cluster_ip(), PORT + 1),
            ] {
                for (flags, pods, nobodys) in [(0, false, false), (LOOSE, false, true), (STRICT, true, true)]
                {
                    for (source, is_refused) in [
                        (family.client(), false),
                        (family.far_client(), false),
                        (family.pod(), pods),
                        (family.prohibited(), nobodys),
                    ] {
                        world.reset();
                        world.service(family, what, &[family.endpoint()]);
                        world.interface("uplink", flags);
                        let packet = ask(source, to, port);
                        if is_refused {
                            expect_refusal(world, "uplink", &packet, Counter::DropReversePath);
                        } else {
                            world.run(At { unsummed: true, ..ingress("uplink") }, &packet);
                            assert_eq!(world.counter(Counter::DropReversePath), 0, "{source} {to} {flags}");
                        }
                    }
                }
            }
        }
        // What is for no Service is the stack's, which looks itself; and there is no such setting
        // of IPv6.
        world.reset();
        world.service(Family::V6, masquerades, &[Family::V6.endpoint()]);
        world.interface("uplink", STRICT);
        assert_eq!(world.run(ingress("uplink"), &ask(family.pod(), family.node(), 9)).0, NEXT);
        let of_ipv6 = ask(Family::V6.pod(), Family::V6.load_balancer(), PORT);
        assert_eq!(world.run(ingress("uplink"), &of_ipv6).0, REDIRECT);
        assert_eq!(world.counter(Counter::DropReversePath), 0);
    });
}

#[test]
fn a_connection_continues_only_on_the_path_of_its_replies() {
    on_a_node(|world| {
        let family = Family::V4;
        world.service(family, action::CLUSTER, &[family.remote()]);
        for name in ["uplink", "pod-a", "pod-c"] {
            world.flag(name, STRICT);
        }
        let asked = tcp(family.pod(), 40_000, family.cluster_ip(), PORT, SYN);
        assert_eq!(world.run(ingress("pod-a"), &by("pod-a", asked.clone()).bytes()).0, REDIRECT);
        let more = asked.clone().flagged(ACK);
        for link in ["uplink", "pod-c"] {
            expect_refusal(world, link, &by(link, more.clone()).bytes(), Counter::DropReversePath);
        }
        assert_eq!(world.run(ingress("pod-a"), &by("pod-a", more).bytes()).0, REDIRECT);
        let answer = asked.reply().between(family.remote(), family.pod()).with_ports(TARGET, 40_000);
        let error = |from| {
            by(
                "uplink",
                asked.clone().between(family.pod(), family.remote()).with_ports(40_000, TARGET).error(
                    from,
                    Message::TimeExceeded,
                    28,
                ),
            )
        };
        expect_refusal(world, "uplink", &error(family.second()).bytes(), Counter::DropReversePath);
        assert_eq!(world.run(ingress("uplink"), &error(family.router()).bytes()).0, REDIRECT);
        assert_eq!(world.run(ingress("uplink"), &by("uplink", answer).bytes()).0, REDIRECT);
    });
}

/// A macvlan takes frames for its own address from the interface below, to which no route leads.
#[test]
fn packets_for_an_upper_interface_are_not_checked_at_the_lower_one() {
    on_a_node(|world| {
        let family = Family::V4;
        world.service(family, action::CLUSTER, &[family.remote()]);
        let asked = tcp(family.pod(), 40_000, family.cluster_ip(), PORT, SYN);
        assert_eq!(world.run(ingress("pod-a"), &by("pod-a", asked.clone()).bytes()).0, REDIRECT);
        world.flag("pod-c", STRICT);
        let more = asked.clone().flagged(ACK).by(peer("pod-c"), [2, 0, 0, 7, 7, 7]);
        world.expect_untouched(ingress("pod-c"), &more, NEXT);
        let error = asked.between(family.pod(), family.remote()).with_ports(40_000, TARGET);
        let error =
            error.error(family.router(), Message::TimeExceeded, 28).by(peer("pod-c"), [2, 0, 0, 7, 7, 7]);
        world.expect_untouched(ingress("pod-c"), &error, NEXT);
        assert_eq!(world.counter(Counter::DropReversePath), 0);
    });
}

#[test]
fn a_route_of_several_ways_leads_back_by_each_of_them() {
    on_a_node(|world| {
        let family = Family::V4;
        world.service(family, action::CLUSTER | action::MASQUERADE, &[family.endpoint()]);
        ip_batch(
            "address add 192.0.3.1/24 dev pod-d\naddress add 192.0.4.1/24 dev pod-s\n\
             route add 100.64.0.0/10 nexthop via 192.0.2.254 dev uplink nexthop via 192.0.3.254 dev pod-d weight 3 \
             nexthop via 192.0.4.254 dev pod-s",
        );
        for name in INTERFACES {
            world.flag(name, STRICT);
        }
        for number in 0..100 {
            let source = IpAddr::from([100, 64, number, 7]);
            for link in ["uplink", "pod-d", "pod-s"] {
                let packet = by(link, udp(source, 40_000, family.load_balancer(), PORT)).bytes();
                assert_eq!(world.run(ingress(link), &packet).0, REDIRECT, "{source} {link}");
                world.forget();
            }
            let packet = by("pod-c", udp(source, 40_000, family.load_balancer(), PORT)).bytes();
            expect_refusal(world, "pod-c", &packet, Counter::DropReversePath);
        }
    });
}
