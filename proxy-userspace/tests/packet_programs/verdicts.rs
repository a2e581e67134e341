//! What becomes of the first packet of a connection: every kind of frontend, client and action.

use std::net::IpAddr;

use sluice_common::counters::Counter;
use sluice_common::flow::{flag, seen};
use sluice_common::service::{Frontend, FrontendKey, action, flag as frontend_flag, list};

use crate::network::{FAMILIES, Family, GATEWAY, mac, peer};
use crate::packets::{Message, Packet, SYN, echo, tcp, udp};
use crate::world::{
    At, DROP, GROUP, NEXT, REDIRECT, World, address_key, address_of, egress, expect_answer, ingress,
    node_port_key, on_a_node,
};

const PORT: u16 = 80;
const NODE_PORT: u16 = 30_080;
const TARGET: u16 = 8_080;

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
            Client::Pod => Sender {
                address: Family::pod,
                at: ingress("pod-a"),
                macs: [peer("pod-a"), mac("pod-a")],
            },
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
    let endpoint = if what & !action::MASQUERADE == action::LOCAL { family.endpoint() } else { family.remote() };
    let (out, next_hop) = if endpoint == family.endpoint() {
        ("pod-b", peer("pod-b"))
    } else {
        ("uplink", crate::network::OTHER_NODE)
    };
    world.endpoints(GROUP | list::LOCAL, &[(family.endpoint(), TARGET)]);
    world.endpoints(GROUP | list::CLUSTER, &[(family.remote(), TARGET)]);
    world.frontend(kind.key(family, protocol), client.gets(what));
    let sent = packet(protocol, (client_address, 40_001), (frontend, port)).by(sender.macs[0], sender.macs[1]);
    match what {
        action::REJECT => {
            if client == Client::Host {
                world.expect_untouched(sender.at, &sent, DROP);
            } else {
                // By the interface's address, or the node's common one where it has none.
                expect_answer(world, family, sender.at, &sent, family.node(), Message::PortUnreachable);
            }
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
            assert_eq!(bytes, expected.bytes());
            assert_eq!(flow.flags, if masquerade { flag::MASQUERADED } else { 0 });
            assert_eq!((flow.seen, flow.group), (seen::PACKET, GROUP));
            assert_eq!(flow.source, address_of(expected.source));
            assert_eq!(flow.destination, address_of(endpoint));
            let back = world.flow(&expected.reply()).expect("an entry of replies");
            assert_eq!(back.flags, flag::REPLY | flow.flags);
            assert_eq!((back.source, back.source_port), (address_of(frontend), port.to_be()));
            assert_eq!((back.destination, back.destination_port), (address_of(client_address), 40_001_u16.to_be()));
            assert_eq!((back.seen, back.group, back.used), (0, GROUP, flow.used));
            assert_eq!(world.counter(Counter::FlowsBegun), 1);
            assert_eq!(world.flows(), 2);
        }
    }
}
