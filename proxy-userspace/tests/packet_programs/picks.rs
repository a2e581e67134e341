//! Which endpoint a connection gets, and which source port when it is masqueraded.

use std::collections::BTreeSet;
use std::net::{IpAddr, TcpListener, UdpSocket};

use sluice_common::counters::Counter;
use sluice_common::node::scheduler;
use sluice_common::service::{
    Affinity, Endpoint, Frontend, MAGLEV_SLOTS, MaglevTable, action, flag as frontend_flag, list,
};

use crate::network::{FAMILIES, Family, mac, peer};
use crate::packets::{ACK, FIN, Packet, SYN, tcp, udp};
use crate::world::{
    DROP, GROUP, NODE_PORT, PORT, REDIRECT, TARGET, World, address_key, address_of, ago, ingress,
    node_port_key, now, on_a_node,
};

fn from_client(family: Family, protocol: u8, port: u16) -> Packet {
    let (from, to) = (family.client(), family.cluster_ip());
    let packet = if protocol == 6 { tcp(from, port, to, PORT, SYN) } else { udp(from, port, to, PORT) };
    packet.by(peer("uplink"), mac("uplink"))
}

/// Sends the first packet of a connection; tells where it went.
fn picked(world: &mut World, packet: &Packet) -> IpAddr {
    assert_eq!(world.run(ingress("uplink"), &packet.bytes()).0, REDIRECT);
    let to = world.flow(packet).unwrap().destination;
    if to.is_v4() { IpAddr::V4(to.word4().to_ne_bytes().into()) } else { IpAddr::V6(to.octets().into()) }
}

#[test]
fn by_chance_every_endpoint_gets_its_share() {
    on_a_node(|world| {
        for family in FAMILIES {
            let endpoints = [family.endpoint(), family.second(), family.remote()];
            world.service(family, action::CLUSTER, &endpoints);
            let mut got = [0; 3];
            for port in 40_000..40_600 {
                let to = picked(world, &from_client(family, 6, port));
                got[endpoints.iter().position(|endpoint| *endpoint == to).unwrap()] += 1;
            }
            // 200 on average; this far away from it once in billions of runs.
            assert!(got.iter().all(|count| (120..280).contains(count)), "{got:?}");
            world.reset();
        }
    });
}

#[test]
fn in_turn_every_endpoint_has_its_turn() {
    on_a_node(|world| {
        for family in FAMILIES {
            let endpoints = [family.endpoint(), family.second(), family.remote()];
            world.service(family, action::CLUSTER, &endpoints);
            world.configure(|config| config.scheduler = scheduler::ROUND_ROBIN);
            world.cursor(GROUP | list::CLUSTER);
            for (turn, port) in (40_000..40_012).enumerate() {
                let to = picked(world, &from_client(family, if turn % 2 == 0 { 6 } else { 17 }, port));
                assert_eq!(to, endpoints[turn % 3]);
            }
            world.reset();
        }
    });
}

#[test]
fn a_maglev_table_decides_by_client_and_frontend() {
    on_a_node(|world| {
        for family in FAMILIES {
            let endpoints = [family.endpoint(), family.second(), family.remote()];
            world.service(family, action::CLUSTER, &endpoints);
            world.configure(|config| config.scheduler = scheduler::MAGLEV);
            let mut table = MaglevTable { slots: [2; MAGLEV_SLOTS], reserved: 0 };
            world.maglev(GROUP | list::CLUSTER, table);
            for port in 40_000..40_020 {
                assert_eq!(picked(world, &from_client(family, 6, port)), family.remote());
            }
            for (at, slot) in table.slots.iter_mut().enumerate() {
                *slot = at as u16 % 3;
            }
            world.maglev(GROUP | list::CLUSTER, table);
            let pick_all = |world: &mut World| {
                world.forget();
                (41_000..41_300).map(|port| picked(world, &from_client(family, 6, port))).collect::<Vec<_>>()
            };
            let first = pick_all(world);
            assert_eq!(first, pick_all(world));
            for endpoint in endpoints {
                let share = first.iter().filter(|to| **to == endpoint).count();
                assert!((50..150).contains(&share), "{endpoint}: {share}");
            }
            world.reset();
        }
    });
}

/// Gives the service affinity, on its cluster IP and its node port.
fn with_affinity(world: &mut World, family: Family, endpoints: &[IpAddr]) {
    world.service(family, action::CLUSTER, endpoints);
    let frontend = Frontend {
        group: GROUP,
        affinity: 60,
        pod: action::CLUSTER,
        host: action::CLUSTER,
        other: action::CLUSTER,
        flags: 0,
    };
    world.frontend(address_key(family.cluster_ip(), PORT, 6), frontend);
    world.frontend(node_port_key(family, NODE_PORT, 6), Frontend { other: action::LOCAL, ..frontend });
}

#[test]
fn clients_stick_to_their_endpoint_on_all_frontends_of_a_service_port() {
    on_a_node(|world| {
        for family in FAMILIES {
            let endpoints = [family.endpoint(), family.second(), family.remote()];
            with_affinity(world, family, &endpoints);
            let begin = now();
            let to = picked(world, &from_client(family, 6, 40_000));
            let known = world.affinity(family.client()).unwrap();
            assert!((begin..=now()).contains(&known.used));
            assert_eq!(
                known.endpoint,
                Endpoint { address: address_of(to), port: TARGET.to_be(), reserved: 0 }
            );
            for port in 40_001..40_030 {
                assert_eq!(picked(world, &from_client(family, 6, port)), to);
                let node_port = from_client(family, 6, port)
                    .between(family.client(), family.node())
                    .with_ports(port, NODE_PORT);
                assert_eq!(picked(world, &node_port), to);
            }
            // Each new connection counts.
            assert!(world.affinity(family.client()).unwrap().used > known.used);
            // Another client is another one.
            let other = from_client(family, 6, 40_000).between(family.far_client(), family.cluster_ip());
            picked(world, &other);
            assert!(world.affinity(family.far_client()).is_some());
            world.reset();
        }
    });
}

#[test]
fn affinity_ends_with_its_time_or_its_endpoint() {
    on_a_node(|world| {
        for family in FAMILIES {
            with_affinity(world, family, &[family.second()]);
            let at = |ip| Endpoint { address: address_of(ip), port: TARGET.to_be(), reserved: 0 };
            // Still an endpoint, but long ago.
            with_affinity(world, family, &[family.second(), family.second(), family.endpoint()]);
            let mut port = 40_000;
            let mut pick_after = |world: &mut World, ip, seconds: u64| {
                port += 1;
                world.set_affinity(
                    family.client(),
                    Affinity { used: ago(seconds), endpoint: at(ip), reserved: 0 },
                );
                picked(world, &from_client(family, 6, port))
            };
            for _ in 0..20 {
                assert_eq!(pick_after(world, family.endpoint(), 58), family.endpoint());
            }
            let picks: BTreeSet<_> = (0..100).map(|_| pick_after(world, family.endpoint(), 61)).collect();
            assert_eq!(picks.len(), 2);
            // An endpoint no more.
            for _ in 0..20 {
                assert_ne!(pick_after(world, family.remote(), 0), family.remote());
                let known = world.affinity(family.client()).unwrap();
                assert_ne!(known.endpoint, at(family.remote()));
            }
            world.reset();
        }
    });
}

#[test]
fn clients_that_may_not_use_a_frontend_are_not_remembered() {
    on_a_node(|world| {
        let family = Family::V4;
        with_affinity(world, family, &[family.endpoint()]);
        let frontend = Frontend {
            group: GROUP,
            affinity: 60,
            pod: action::CLUSTER,
            host: action::CLUSTER,
            other: action::CLUSTER,
            flags: frontend_flag::FILTERED,
        };
        world.frontend(address_key(family.cluster_ip(), PORT, 6), frontend);
        world.expect_untouched(ingress("uplink"), &from_client(family, 6, 40_000), DROP);
        assert!(world.affinity(family.client()).is_none());
    });
}

/// Holds ports of a family for both protocols; some by the node's address, some by any address.
fn hold(family: Family, ports: impl Iterator<Item = u16>) -> Vec<(UdpSocket, TcpListener)> {
    ports
        .map(|port| {
            let ip = if port % 2 == 0 { family.node() } else { family.unspecified() };
            (UdpSocket::bind((ip, port)).unwrap(), TcpListener::bind((ip, port)).unwrap())
        })
        .collect()
}

#[test]
fn masqueraded_connections_get_no_port_of_the_nodes_own_sockets() {
    on_a_node(|world| {
        for family in FAMILIES {
            for protocol in [6, 17] {
                world.service(family, action::CLUSTER | action::MASQUERADE, &[family.remote()]);
                // Two runs of ports, one of which is left in each.
                world.configure(|config| {
                    (config.ports, config.first_begin, config.first_count, config.second_begin) =
                        (4, 20_000, 2, 60_000);
                });
                let held = hold(family, [20_000, 60_001].into_iter());
                let mut got = BTreeSet::new();
                for port in 40_000..40_002 {
                    let sent = from_client(family, protocol, port);
                    assert_eq!(world.run(ingress("uplink"), &sent.bytes()).0, REDIRECT);
                    got.insert(u16::from_be(world.flow(&sent).unwrap().source_port));
                }
                assert_eq!(got, BTreeSet::from([20_001, 60_000]));
                // Now they are taken by flows.
                let sent = from_client(family, protocol, 40_002);
                world.expect_untouched(ingress("uplink"), &sent, DROP);
                assert_eq!(world.counter(Counter::DropNoPort), 1);
                assert!(world.flow(&sent).is_none());
                // To another endpoint they are free.
                world.service(family, action::CLUSTER | action::MASQUERADE, &[family.second()]);
                assert_eq!(world.run(ingress("uplink"), &sent.bytes()).0, REDIRECT);
                // All by sockets.
                let more = hold(family, [20_001, 60_000].into_iter());
                world.forget();
                world.expect_untouched(ingress("uplink"), &sent, DROP);
                assert_eq!(world.counter(Counter::DropNoPort), 1);
                drop((held, more));
                world.reset();
            }
        }
    });
}

#[test]
fn one_free_port_among_few_is_found_most_of_the_time() {
    on_a_node(|world| {
        let family = Family::V4;
        world.service(family, action::CLUSTER | action::MASQUERADE, &[family.remote()]);
        world.configure(|config| (config.ports, config.first_count) = (4, 4));
        let _held = hold(family, 20_000..20_003);
        let mut found = 0;
        for port in 40_000..40_100 {
            let sent = from_client(family, 17, port);
            if world.run(ingress("uplink"), &sent.bytes()).0 == REDIRECT {
                assert_eq!(u16::from_be(world.flow(&sent).unwrap().source_port), 20_003);
                found += 1;
            }
            world.forget();
        }
        assert!(found > 80, "{found}");
    });
}

#[test]
fn a_port_of_a_connection_that_is_over_serves_another_where_none_is_free() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER | action::MASQUERADE, &[family.remote()]);
            world.configure(|config| {
                (config.ports, config.first_begin, config.first_count, config.second_begin) =
                    (1, 20_000, 1, 60_000);
            });
            let first = from_client(family, 6, 40_000);
            assert_eq!(world.run(ingress("uplink"), &first.bytes()).0, REDIRECT);
            let end = first.clone().flagged(FIN | ACK);
            let reply = first.reply().between(family.remote(), family.node()).with_ports(TARGET, 20_000);
            let second = from_client(family, 6, 40_001);
            // Alive, then closed by one end only.
            world.expect_untouched(ingress("uplink"), &second, DROP);
            assert_eq!(world.run(ingress("uplink"), &end.bytes()).0, REDIRECT);
            world.expect_untouched(ingress("uplink"), &second, DROP);
            let ended = reply.by(peer("uplink"), mac("uplink")).flagged(FIN | ACK);
            assert_eq!(world.run(ingress("uplink"), &ended.bytes()).0, REDIRECT);
            assert_eq!(world.run(ingress("uplink"), &second.bytes()).0, REDIRECT);
            assert_eq!(u16::from_be(world.flow(&second).unwrap().source_port), 20_000);
            assert!(world.flow(&first).is_none(), "the first client has lost its port");
            world.reset();
        }
    });
}
