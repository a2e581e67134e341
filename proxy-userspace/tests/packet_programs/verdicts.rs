//! What becomes of the first packet of a connection: every kind of frontend, client and action.

use std::net::IpAddr;

use sluice_common::Address;
use sluice_common::counters::Counter;
use sluice_common::flow::{flag, seen};
use sluice_common::node::{interface, option};
use sluice_common::service::{Frontend, FrontendKey, action, flag as frontend_flag, list};

use crate::network::{FAMILIES, Family, GATEWAY, INTERFACES, ip_batch, mac, peer};
use crate::packets::{Message, Packet, SYN, echo, tcp, udp};
use crate::world::{
    At, DROP, GROUP, NEXT, NODE_PORT, PORT, REDIRECT, TARGET, World, address_key, address_of, egress,
    expect_answer, ingress, node_port_key, on_a_node,
};

/// Kinds of clients.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Client {
    Pod,
    Other,
    Host,
}

const CLIENTS: [Client; 3] = [Client::Pod, Client::Other, Client::Host];

/// Kinds of frontends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer,
}

const KINDS: [Kind; 3] = [Kind::ClusterIp, Kind::NodePort, Kind::LoadBalancer];

/// Sends packets of a client.
#[derive(Clone, Copy)]
struct Sender {
    address: fn(Family) -> IpAddr,
    at: At<'static>,
    macs: [[u8; 6]; 2],
}

impl Client {
    fn sender(self) -> Sender {
        match self {
            Client::Pod => {
                Sender { address: Family::pod, at: ingress("pod-a"), macs: [peer("pod-a"), mac("pod-a")] }
            }
            Client::Other => Sender {
                address: Family::client,
                at: ingress("uplink"),
                macs: [peer("uplink"), mac("uplink")],
            },
            Client::Host => {
                Sender { address: Family::node, at: egress("uplink"), macs: [mac("uplink"), GATEWAY] }
            }
        }
    }

    /// What this client gets, and others do not.
    fn gets(self, what: u8) -> Frontend {
        let rest = if what == action::DROP { action::CLUSTER } else { action::DROP };
        let pick = |client| if client == self { what } else { rest };
        Frontend {
            group: GROUP,
            affinity: 0,
            pod: pick(Client::Pod),
            host: pick(Client::Host),
            other: pick(Client::Other),
            flags: 0,
        }
    }
}

impl Kind {
    fn address(self, family: Family) -> (IpAddr, u16) {
        match self {
            Kind::ClusterIp => (family.cluster_ip(), PORT),
            Kind::NodePort => (family.node(), NODE_PORT),
            Kind::LoadBalancer => (family.load_balancer(), PORT),
        }
    }

    fn key(self, family: Family, protocol: u8) -> FrontendKey {
        let (ip, port) = self.address(family);
        if self == Kind::NodePort {
            node_port_key(family, port, protocol)
        } else {
            address_key(ip, port, protocol)
        }
    }
}

fn packet(protocol: u8, from: (IpAddr, u16), to: (IpAddr, u16)) -> Packet {
    if protocol == 6 { tcp(from.0, from.1, to.0, to.1, SYN) } else { udp(from.0, from.1, to.0, to.1) }
}

#[test]
fn every_kind_of_client_and_frontend_gets_what_the_frontend_says() {
    on_a_node(|world| {
        for family in FAMILIES {
            for protocol in [6, 17] {
                for kind in KINDS {
                    for client in CLIENTS {
                        for what in [
                            action::NONE,
                            action::REJECT,
                            action::DROP,
                            action::CLUSTER,
                            action::LOCAL,
                            action::CLUSTER | action::MASQUERADE,
                            action::LOCAL | action::MASQUERADE,
                        ] {
                            println!("{family:?} {protocol} {kind:?} {client:?} {what:#x}");
                            first_packet(world, family, protocol, kind, client, what);
                        }
                    }
                }
            }
        }
    });
}

fn first_packet(world: &mut World, family: Family, protocol: u8, kind: Kind, client: Client, what: u8) {
    world.forget();
    let sender = client.sender();
    let client_address = (sender.address)(family);
    let (frontend, port) = kind.address(family);
    // One list on this node, and another one elsewhere, so that it shows which was used.
    let endpoint =
        if what & !action::MASQUERADE == action::LOCAL { family.endpoint() } else { family.remote() };
    let (out, next_hop) = if endpoint == family.endpoint() {
        ("pod-b", peer("pod-b"))
    } else {
        ("uplink", crate::network::OTHER_NODE)
    };
    world.endpoints(GROUP | list::LOCAL, &[(family.endpoint(), TARGET)]);
    world.endpoints(GROUP | list::CLUSTER, &[(family.remote(), TARGET)]);
    world.frontend(kind.key(family, protocol), client.gets(what));
    let sent =
        packet(protocol, (client_address, 40_001), (frontend, port)).by(sender.macs[0], sender.macs[1]);
    match what {
        action::REJECT => {
            // By the interface's address, or the node's common one where it has none; a process of
            // the node hears it from the service, because the stack takes nothing from outside that
            // claims to be its own.
            let from = if client == Client::Host { frontend } else { family.node() };
            expect_answer(world, family, sender.at, &sent, from, Message::PortUnreachable);
            assert_eq!(world.counter(Counter::Rejected), 1);
            assert_eq!(world.flows(), 0);
        }
        action::NONE | action::DROP => {
            world.expect_untouched(sender.at, &sent, DROP);
            assert_eq!(world.counter(Counter::DropNoLocalEndpoints), 1);
            assert_eq!(world.flows(), 0);
        }
        _ => {
            let (code, bytes) = world.run(sender.at, &sent.bytes());
            assert_eq!(code, REDIRECT);
            let flow = world.flow(&sent).expect("a flow");
            let masquerade = what & action::MASQUERADE != 0;
            let mut expected = sent.clone().by(mac(out), next_hop).between(client_address, endpoint);
            let mut source_port = 40_001;
            if masquerade {
                source_port = u16::from_be(flow.source_port);
                assert!((20_000..22_000).contains(&source_port) || (60_001..61_001).contains(&source_port));
                expected = expected.between(family.node(), endpoint);
            }
            expected = expected.with_ports(source_port, TARGET);
            if client != Client::Host {
                expected = expected.aged(1);
            }
            let on_its_way = world.on_its_way(sender.at, &sent.bytes(), &expected.bytes());
            assert_eq!(bytes, on_its_way);
            assert_eq!(flow.flags, if masquerade { flag::MASQUERADED } else { 0 });
            assert_eq!((flow.seen, flow.group), (seen::PACKET, GROUP));
            assert_eq!(flow.source, address_of(expected.source));
            assert_eq!(flow.destination, address_of(endpoint));
            let back = world.flow(&expected.reply()).expect("an entry of replies");
            assert_eq!(back.flags, flag::REPLY | flow.flags);
            assert_eq!((back.source, back.source_port), (address_of(frontend), port.to_be()));
            assert_eq!(
                (back.destination, back.destination_port),
                (address_of(client_address), 40_001_u16.to_be())
            );
            assert_eq!((back.seen, back.group, back.used), (0, GROUP, flow.used));
            assert_eq!(world.counter(Counter::FlowsBegun), 1);
            assert_eq!(world.flows(), 2);
        }
    }
}

#[test]
fn only_allowed_sources_use_a_filtered_frontend() {
    on_a_node(|world| {
        for family in FAMILIES {
            for protocol in [6, 17] {
                let key = address_key(family.load_balancer(), PORT, protocol);
                world.service(family, action::CLUSTER, &[family.endpoint()]);
                let frontend =
                    Frontend { flags: frontend_flag::FILTERED, ..Client::Other.gets(action::CLUSTER) };
                world.frontend(key, frontend);
                let network = if family == Family::V4 { 24 } else { 64 };
                world.allow(key, (family.client(), network));
                let to = (family.load_balancer(), PORT);
                let near = packet(protocol, (family.client(), 40_002), to).by(peer("uplink"), mac("uplink"));
                let far = packet(protocol, (family.far_client(), 40_002), to).by(GATEWAY, mac("uplink"));
                assert_eq!(world.run(ingress("uplink"), &near.bytes()).0, REDIRECT);
                assert_eq!(world.counter(Counter::DropSourceRange), 0);
                world.expect_untouched(ingress("uplink"), &far, DROP);
                assert_eq!(world.counter(Counter::DropSourceRange), 1);
                assert!(world.flow(&far).is_none());
                // Source ranges are before everything else: whom they keep out gets no refusal.
                world.frontend(key, Frontend { other: action::REJECT, ..frontend });
                world.expect_untouched(ingress("uplink"), &far.clone().with_ports(40_003, PORT), DROP);
                // The cluster IP is not filtered.
                let inside = far.between(family.far_client(), family.cluster_ip());
                assert_eq!(world.run(ingress("uplink"), &inside.bytes()).0, REDIRECT);
                world.reset();
            }
        }
    });
}

#[test]
fn undefined_ports_of_a_cluster_ip_and_echo_requests_to_it_are_refused() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let ip = family.cluster_ip();
            for (sender, from) in
                [(Client::Pod.sender(), family.pod()), (Client::Other.sender(), family.client())]
            {
                for sent in [tcp(from, 40_000, ip, 81, SYN), udp(from, 40_000, ip, 81), echo(from, ip)] {
                    let sent = sent.by(sender.macs[0], sender.macs[1]);
                    expect_answer(world, family, sender.at, &sent, family.node(), Message::PortUnreachable);
                }
            }
            assert_eq!(world.counter(Counter::Rejected), 6);
            let own = tcp(family.node(), 40_000, ip, 81, SYN).by(mac("uplink"), GATEWAY);
            expect_answer(world, family, egress("uplink"), &own, ip, Message::PortUnreachable);
            // Other addresses' undefined ports are none of our business.
            for ip in [family.load_balancer(), family.node()] {
                let sent = tcp(family.client(), 40_000, ip, 81, SYN).by(peer("uplink"), mac("uplink"));
                world.expect_untouched(ingress("uplink"), &sent, NEXT);
                let sent = echo(family.client(), ip).by(peer("uplink"), mac("uplink"));
                world.expect_untouched(ingress("uplink"), &sent, NEXT);
            }
            assert_eq!(world.flows(), 0);
            world.reset();
        }
    });
}

#[test]
fn addresses_of_no_service_out_of_a_service_network_are_dropped_on_the_way_out() {
    on_a_node(|world| {
        for family in FAMILIES {
            let ip = family.unallocated();
            let forwarded = At { from: Some("pod-a"), ..egress("uplink") };
            let pod = [
                tcp(family.pod(), 40_000, ip, 80, SYN),
                udp(family.pod(), 40_000, ip, 80),
                echo(family.pod(), ip),
            ];
            for sent in pod {
                let sent = sent.by(mac("uplink"), GATEWAY);
                // On the way in, another proxy may still translate it.
                world.expect_untouched(ingress("pod-a"), &sent.clone().by(peer("pod-a"), mac("pod-a")), NEXT);
                world.expect_untouched(forwarded, &sent, DROP);
            }
            let own = tcp(family.node(), 40_000, ip, 80, SYN).by(mac("uplink"), GATEWAY);
            world.expect_untouched(egress("uplink"), &own, DROP);
            assert_eq!(world.counter(Counter::DropUnallocated), 4);
            // Connections of before go on, and so does everything when switched off.
            world.expect_untouched(egress("uplink"), &own.clone().flagged(crate::packets::ACK), NEXT);
            world.configure(|config| config.options |= option::DRAINING);
            world.expect_untouched(egress("uplink"), &own, NEXT);
            world.expect_untouched(forwarded, &own, NEXT);
            world.reset();
            // Elsewhere is none of our business.
            let elsewhere = own.between(family.node(), family.far_client());
            world.expect_untouched(egress("uplink"), &elsewhere, NEXT);
            world.expect_untouched(forwarded, &elsewhere, NEXT);
        }
    });
}

#[test]
fn pods_are_told_by_their_interface_or_by_nothing_at_all() {
    on_a_node(|world| {
        for family in FAMILIES {
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let key = address_key(family.cluster_ip(), PORT, 17);
            world.frontend(key, Client::Pod.gets(action::CLUSTER));
            let mut port = 40_000;
            let mut code = |world: &mut World, interface: &'static str, from: IpAddr| {
                port += 1;
                let sent = udp(from, port, family.cluster_ip(), PORT).by(peer(interface), mac(interface));
                world.run(ingress(interface), &sent.bytes()).0
            };
            world.configure(|config| config.options |= option::BY_INTERFACE);
            world.interface("pod-a", interface::PODS);
            assert_eq!(code(world, "pod-a", family.far_client()), REDIRECT);
            assert_eq!(code(world, "uplink", family.pod()), DROP);
            world.configure(|config| config.options &= !(option::DETECTS4 | option::DETECTS6));
            assert_eq!(code(world, "pod-a", family.pod()), DROP);
            world.reset();
        }
    });
}

#[test]
fn what_cannot_be_forwarded_is_dropped_and_counted() {
    on_a_node(|world| {
        for family in FAMILIES {
            let sent =
                udp(family.client(), 40_000, family.cluster_ip(), PORT).by(peer("uplink"), mac("uplink"));
            let dropped = |world: &mut World, counter| {
                world.expect_untouched(ingress("uplink"), &sent, DROP);
                assert_eq!(world.counter(counter), 1, "{counter:?}");
                assert_eq!(world.flows(), 0, "{counter:?}");
                world.reset();
            };
            world.service(family, action::CLUSTER, &[]);
            dropped(world, Counter::DropNoEndpoint);
            world.service(family, action::CLUSTER, &[family.prohibited()]);
            dropped(world, Counter::DropNoRoute);
            world.service(family, action::CLUSTER | action::MASQUERADE, &[family.endpoint()]);
            world.configure(|config| config.ports = 0);
            dropped(world, Counter::DropNoPort);
        }
    });
}

/// The source that a masqueraded datagram of the pod to an endpoint has.
fn masqueraded(world: &mut World, family: Family, endpoint: IpAddr) -> Address {
    world.forget();
    world.service(family, action::CLUSTER | action::MASQUERADE, &[endpoint]);
    let sent = udp(family.pod(), 40_000, family.cluster_ip(), PORT).by(peer("pod-a"), mac("pod-a"));
    assert_eq!(world.run(ingress("pod-a"), &sent.bytes()).0, REDIRECT);
    world.flow(&sent).unwrap().source
}

/// Whether the kernel tells which source address a route has: from Linux 6.7 on, and some stable
/// ones of before. A pod's cable has no address; the common one is another then.
fn kernel_tells_sources(world: &mut World, family: Family) -> bool {
    let common = address_of(family.far_client());
    world.configure(|config| (config.address4, config.address6) = (common, common));
    let node = address_of(family.node());
    assert_eq!(masqueraded(world, family, family.remote()), node);
    let source = masqueraded(world, family, family.endpoint());
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.trim().parse::<u32>().ok());
    let new = (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 7);
    assert!(source == node || (source == common && !new), "{source:?}");
    world.reset();
    source == node
}

#[test]
fn of_two_networks_on_one_interface_the_next_hops_gives_the_source() {
    on_a_node(|world| {
        let networks = [
            (Family::V4, "198.18.7.1/24", "198.18.7.20", "198.18.7.1"),
            (Family::V6, "2001:db8:7::1/64 nodad", "2001:db8:7::20", "2001:db8:7::1"),
        ];
        for (family, second, neighbour, own) in networks {
            let told = kernel_tells_sources(world, family);
            ip_batch(&format!(
                "address add {second} dev uplink\n\
                 neighbour add {neighbour} lladdr 02:00:00:01:00:15 nud permanent dev uplink"
            ));
            let [neighbour, own]: [IpAddr; 2] = [neighbour, own].map(|ip| ip.parse().unwrap());
            let (first, second) = (address_of(family.node()), address_of(own));
            let expected = if told { second } else { first };
            assert_eq!(masqueraded(world, family, neighbour), expected);
            assert_eq!(masqueraded(world, family, family.client()), first);
            if family == Family::V4 {
                // By a router in the second network, and by a route that says itself which address
                // it has.
                ip_batch(
                    "route add 10.244.7.0/24 via 198.18.7.20\n\
                     route add 10.244.8.0/24 via 198.18.7.20 src 192.0.2.1",
                );
                assert_eq!(masqueraded(world, family, [10, 244, 7, 2].into()), expected);
                assert_eq!(masqueraded(world, family, [10, 244, 8, 2].into()), first);
            }
            world.reset();
        }
    });
}

#[test]
fn without_any_address_of_the_node_what_would_be_masqueraded_is_dropped() {
    on_a_node(|world| {
        ip_batch("address flush dev lo");
        for name in INTERFACES {
            ip_batch(&format!("address flush dev {name}\naddress flush dev {name}-x"));
        }
        for family in FAMILIES {
            world.interface("uplink", 0);
            world.configure(|config| (config.address4, config.address6) = Default::default());
            world.service(family, action::CLUSTER | action::MASQUERADE, &[family.endpoint()]);
            let sent = udp(family.pod(), 40_000, family.cluster_ip(), PORT).by(peer("pod-a"), mac("pod-a"));
            world.expect_untouched(ingress("pod-a"), &sent, DROP);
            assert_eq!(world.counter(Counter::DropNoAddress), 1);
            assert_eq!(world.flows(), 0);
            world.reset();
        }
    });
}
