//! Packets that are nearly good, through the programs. `cargo xtask fuzz`

use std::cell::Cell;

use sluice_common::programs::RAW;
use sluice_common::service::action;
use sluice_fuzz::{Bytes, Rng, fuzz};

use crate::network::{FAMILIES, Family, mac, peer};
use crate::packets::{ACK, FIN, Message, Packet, RST, SYN, echo, tcp, udp};
use crate::world::{At, DROP, NEXT, NODE_PORT, PORT, REDIRECT, TARGET, World, egress, ingress, on_a_node};

/// What the service does, for each family.
const ACTIONS: [u8; 4] =
    [action::CLUSTER, action::CLUSTER | action::MASQUERADE, action::LOCAL, action::REJECT];
/// So many packets meet the same service, and what became of those before.
const TURN: usize = 200;
/// Bytes of an Ethernet header, and what an answer of the node's own may have more than what it
/// answers.
const ETHERNET: usize = 14;
const ANSWER: usize = 128;
/// The kernel runs programs on packets that fit a page, with what it adds.
const LONGEST: usize = 3_000;
/// What stands before the packet: which service, and how the packet comes.
const HOW: usize = 2;

/// How a packet may come.
fn way(number: u8) -> At<'static> {
    let ways = [
        ingress("uplink"),
        egress("uplink"),
        At { from: Some("pod-a"), ..egress("uplink") },
        ingress("pod-a"),
        ingress("pod-b"),
        egress("pod-b"),
        At { program: RAW[0], ..ingress("uplink") },
        At { program: RAW[1], ..egress("uplink") },
    ];
    let way = ways[usize::from(number) % ways.len()];
    let segment = [0, 0, 536, 1_400][usize::from(number) / ways.len() % 4];
    At { segment, unsummed: true, ..way }
}

/// Packets of clients and endpoints, of flows and of none, whole and in parts.
fn valid(family: Family) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut add = |packet: Packet| {
        let packet = packet.by(peer("uplink"), mac("uplink"));
        all.push(packet.bytes());
        all.extend(packet.clone().sized(700).fragments(320));
        all.push(Packet { extended: true, ..packet.clone() }.bytes());
        all.push(Packet { ttl: 1, ..packet }.sized(1_300).bytes());
    };
    for (to, port) in
        [(family.cluster_ip(), PORT), (family.node(), NODE_PORT), (family.load_balancer(), PORT)]
    {
        for client in [family.client(), family.far_client(), family.pod()] {
            for flags in [SYN, ACK, FIN | ACK, RST] {
                add(tcp(client, 40_000, to, port, flags));
            }
            let question = udp(client, 40_001, to, port);
            let arrived = question.clone().between(client, family.endpoint()).with_ports(40_001, TARGET);
            add(arrived.reply());
            for message in [Message::TooBig(1_300), Message::PortUnreachable, Message::TimeExceeded] {
                add(arrived.error(family.endpoint(), message, 500));
                add(arrived.reply().error(family.router(), message, 8));
            }
            add(question);
            add(echo(client, to));
        }
    }
    all
}

/// Lengths that the IP header gives fit again.
fn set_lengths(packet: &mut [u8]) {
    let len = packet.len() as u16;
    let (field, header) = match packet.get(12..ETHERNET) {
        Some([8, 0]) => (16..18, ETHERNET as u16),
        Some([0x86, 0xdd]) => (18..20, ETHERNET as u16 + 40),
        _ => return,
    };
    if let Some(field) = packet.get_mut(field) {
        field.copy_from_slice(&len.saturating_sub(header).to_be_bytes());
    }
}

/// The Ethernet header of all of them.
fn valid_ethernet(family: Family) -> [u8; ETHERNET] {
    let kind = if family == Family::V4 { [8, 0] } else { [0x86, 0xdd] };
    let mut header = [0; ETHERNET];
    header[..6].copy_from_slice(&mac("uplink"));
    header[6..12].copy_from_slice(&peer("uplink"));
    header[12..].copy_from_slice(&kind);
    header
}

/// A packet, behind [`HOW`].
fn make(corpora: &[Bytes; 2], service: u8, rng: &mut Rng) -> Vec<u8> {
    // Mostly of the service's own family.
    let family = if rng.u8(..8) == 0 { rng.usize(..2) } else { usize::from(service) % 2 };
    let mut packet = corpora[family].next(rng);
    packet.truncate(LONGEST);
    // The changes are to be behind it, mostly; all come by the same way.
    let ethernet = valid_ethernet(FAMILIES[family]);
    if let (Some(header), 1..) = (packet.first_chunk_mut::<ETHERNET>(), rng.u8(..8)) {
        *header = ethernet;
    }
    if rng.u8(..4) > 0 {
        set_lengths(&mut packet);
    }
    let how = if rng.bool() { 0 } else { rng.u8(..) };
    [&[service, how], &packet[..]].concat()
}

/// A service of a number, and a flow of it.
fn set_up(world: &mut World, service: u8) {
    let family = FAMILIES[usize::from(service) % 2];
    let what = ACTIONS[usize::from(service) / 2 % ACTIONS.len()];
    world.reset();
    world.service(family, what, &[family.endpoint(), family.second()]);
    let first =
        tcp(family.client(), 40_000, family.cluster_ip(), PORT, SYN).by(peer("uplink"), mac("uplink"));
    let at = At { unsummed: true, ..ingress("uplink") };
    assert_eq!(world.run(at, &first.bytes()).0, REDIRECT, "what is good is translated, or refused");
}

#[test]
fn fuzz_packets() {
    on_a_node(|world| {
        let corpora = FAMILIES.map(|family| Bytes::new(valid(family), &[]));
        let (made, current) = (Cell::new(0), Cell::new(None));
        let services = FAMILIES.len() * ACTIONS.len();
        let make = |rng: &mut Rng| {
            made.set(made.get() + 1);
            make(&corpora, (made.get() / TURN % services) as u8, rng)
        };
        let (mut all, mut sent_on) = (0_u64, 0_u64);
        fuzz("packets", make, |input| {
            let Some(([service, how], packet)) = input.split_first_chunk::<HOW>() else { return };
            if current.replace(Some(*service)) != Some(*service) {
                set_up(world, *service);
            }
            let (code, out) = match world.try_run(way(*how), packet, 0) {
                // The kernel runs no program on less than headers.
                Err(libc::EINVAL) if packet.len() < ETHERNET + 40 => return,
                other => other.unwrap(),
            };
            assert!([NEXT, DROP, REDIRECT].contains(&code), "{code}");
            (all, sent_on) = (all + 1, sent_on + u64::from(code == REDIRECT));
            assert!(out.len() <= packet.len() + ANSWER, "{} of {}", out.len(), packet.len());
        });
        println!("{sent_on} of {all} were sent on");
        assert!(sent_on >= all / 50, "hardly any are good enough to be of a service");
        // After all of them everything works.
        (0..services).for_each(|service| set_up(world, service as u8));
    });
}
