//! The kernel takes the programs, and the programs take anything.

use std::cell::RefCell;

use aya::Btf;
use aya::programs::{CgroupSockAddr, Program, SchedClassifier};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use sluice_common::maps::MapName;
use sluice_common::programs::{END_FLOW, ETHERNET, RAW, SOCKET};
use sluice_common::service::action;

use crate::network::{FAMILIES, Family, mac, peer};
use crate::packets::{ACK, Message, Packet, SYN, echo, tcp, udp};
use crate::world::{
    At, DROP, NEXT, PORT, REDIRECT, TARGET, World, egress, ingress, load, may_load, on_a_node,
};

/// Instructions that the verifier may look at for one program, with all its messages. Kernels
/// refuse more than a million (`BPF_COMPLEXITY_LIMIT_INSNS` of include/linux/bpf.h).
const BUDGET: u32 = 780_000;

#[test]
fn the_kernel_takes_all_programs_and_maps() {
    if !may_load() {
        return;
    }
    assert!(Btf::from_sys_fs().is_ok());
    let mut ebpf = load().unwrap();
    for map in MapName::ALL {
        assert!(ebpf.map(map.name()).is_some(), "{map}");
    }
    for name in SOCKET {
        let program: &mut CgroupSockAddr = ebpf.program_mut(name).unwrap().try_into().unwrap();
        program.load().unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
    for name in ETHERNET.into_iter().chain(RAW).chain([END_FLOW]) {
        let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
        program.load().unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let verified = verified(ebpf.program(name).unwrap());
        println!("{name}: {verified} instructions looked at");
        assert!(verified <= BUDGET, "{name} is too much for the verifier: {verified} of {BUDGET}");
    }
    let known = SOCKET.len() + ETHERNET.len() + RAW.len() + 1;
    assert_eq!(ebpf.programs().count(), known);
}

fn verified(program: &Program) -> u32 {
    program.info().unwrap().verified_instruction_count().unwrap()
}

/// The ways a packet may come.
const WAYS: [At<'static>; 3] =
    [ingress("uplink"), egress("uplink"), At { from: Some("pod-a"), ..egress("uplink") }];

/// Runs the programs on bytes, which must come out whole or not at all.
fn harmless(world: &mut World, bytes: &[u8]) {
    for way in WAYS {
        let (code, out) = match world.try_run(way, bytes, 0) {
            // Newer kernels run no program on less than an IP header.
            Err(libc::EINVAL) if bytes.len() < 14 + 40 => return,
            other => other.unwrap(),
        };
        assert!(code == NEXT || code == DROP, "{code}");
        assert_eq!(out, bytes);
    }
}

/// Packets of all kinds, of flows and of none.
fn samples(family: Family) -> Vec<Packet> {
    let (client, ip) = (family.client(), family.cluster_ip());
    let first = tcp(client, 40_000, ip, PORT, SYN);
    let arrived = first.clone().between(client, family.endpoint()).with_ports(40_000, TARGET);
    let reply = arrived.reply();
    let mut extended = udp(client, 40_001, ip, PORT);
    extended.extended = true;
    let samples = [
        first.reply().error(family.router(), Message::TooBig(1_300), 500),
        arrived.error(family.endpoint(), Message::PortUnreachable, 500),
        first.flagged(ACK),
        udp(client, 40_002, ip, 81),
        echo(client, ip),
        reply,
        extended,
    ];
    samples.into_iter().map(|packet| packet.by(peer("uplink"), mac("uplink"))).collect()
}

/// Runs a test with a service and a flow of it, for each family.
fn furnished(test: fn(&mut World, Family)) {
    on_a_node(move |world| {
        for family in FAMILIES {
            world.reset();
            world.service(family, action::CLUSTER, &[family.endpoint()]);
            let first = tcp(family.client(), 40_000, family.cluster_ip(), PORT, SYN);
            let first = first.by(peer("uplink"), mac("uplink"));
            assert_eq!(world.run(ingress("uplink"), &first.bytes()).0, REDIRECT);
            test(world, family);
        }
    });
}

#[test]
fn truncated_packets_pass_unchanged_or_are_translated_like_whole_ones() {
    furnished(|world, family| {
        let mut translated = 0;
        for packet in samples(family) {
            let bytes = packet.bytes();
            let transport = bytes.len() - packet.transport().len();
            // Up to the ports, or the first bytes of an ICMP message, nothing can be known.
            let known = transport + if packet.ports() == [0, 0] { 4 } else { 8 };
            for length in 14..known {
                harmless(world, &bytes[..length]);
            }
            for way in WAYS.map(|way| At { unsummed: true, ..way }) {
                let (code, whole) = world.run(way, &bytes);
                for length in known..bytes.len() {
                    let (short_code, out) = world.run(way, &bytes[..length]);
                    // What a dropped packet looks like does not matter.
                    if short_code == DROP || short_code == NEXT && out == bytes[..length] {
                        continue;
                    }
                    assert_eq!(short_code, code, "{length} of {packet:?}");
                    // An ICMP error to the sender quotes what there is.
                    let is_error = whole[..6] == bytes[6..12];
                    let headers = 14 + family.header();
                    let (out, whole) = if is_error {
                        (&out[..headers], &whole[..headers])
                    } else {
                        (&out[..], &whole[..length])
                    };
                    assert_eq!(out, whole, "{length} of {packet:?}");
                    translated += 1;
                }
            }
        }
        assert!(translated > 0);
    });
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(sluice_fuzz::cases(cases))
}

#[test]
fn noise_passes_or_is_dropped_as_it_is() {
    furnished(|world, family| {
        let (kind, version) = if family == Family::V4 { ([8, 0], 0x45) } else { ([0x86, 0xdd], 0x60) };
        let kinds = prop_oneof![Just(kind), any::<[u8; 2]>()];
        let first = prop_oneof![Just(version), any::<u8>()];
        let strategy = (kinds, first, prop::collection::vec(any::<u8>(), 0..200));
        let world = RefCell::new(world);
        let noise = |(kind, first, rest): ([u8; 2], u8, Vec<u8>)| {
            let bytes = [&mac("uplink"), &peer("uplink"), kind.as_slice(), &[first], &rest].concat();
            harmless(&mut world.borrow_mut(), &bytes);
            Ok(())
        };
        runner(1_000).run(&strategy, noise).unwrap();
    });
}

#[test]
fn damaged_packets_harm_nobody() {
    furnished(|world, family| {
        let samples = samples(family);
        let damage = prop::collection::vec((0_usize..100, any::<u8>()), 1..6);
        let strategy = (0..samples.len(), damage, 0..WAYS.len());
        let world = RefCell::new(world);
        let damaged = |(which, damage, way): (usize, Vec<(usize, u8)>, usize)| {
            let mut bytes = samples[which].bytes();
            for (at, value) in damage {
                let at = 14 + at % (bytes.len() - 14);
                bytes[at] = value;
            }
            let (code, _) = world.borrow_mut().run(At { unsummed: true, ..WAYS[way] }, &bytes);
            prop_assert!([NEXT, DROP, REDIRECT].contains(&code), "{}", code);
            Ok(())
        };
        runner(2_000).run(&strategy, damaged).unwrap();
    });
}
