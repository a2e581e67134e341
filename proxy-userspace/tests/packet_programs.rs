//! The packet programs, run by the kernel on built packets, each test on a node of its own (a
//! network namespace), so that the programs' route lookups have answers: what they return, what
//! becomes of the packet byte for byte, what is in the maps.
#![cfg(feature = "ebpf")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "integration tests fail by panicking"
)]

#[path = "packet_programs/cuts.rs"]
mod cuts;
#[path = "packet_programs/errors.rs"]
mod errors;
#[path = "packet_programs/floods.rs"]
mod floods;
#[path = "packet_programs/flows.rs"]
mod flows;
#[path = "packet_programs/fragments.rs"]
mod fragments;
#[path = "packet_programs/fuzz.rs"]
mod fuzz;
#[path = "packet_programs/halves.rs"]
mod halves;
#[path = "packet_programs/neighbours.rs"]
mod neighbours;
#[path = "packet_programs/network.rs"]
mod network;
#[path = "packet_programs/packets.rs"]
mod packets;
#[path = "packet_programs/picks.rs"]
mod picks;
#[path = "packet_programs/robustness.rs"]
mod robustness;
#[path = "packet_programs/sources.rs"]
mod sources;
#[path = "packet_programs/straight.rs"]
mod straight;
#[path = "packet_programs/verdicts.rs"]
mod verdicts;
#[path = "packet_programs/wire.rs"]
mod wire;
#[path = "packet_programs/world.rs"]
mod world;
