//! The protocol by which programs and daemon share the flow table, with every interleaving of their
//! steps: two clients and two ports for masquerading, two packets at once on two processors, the
//! daemon looking for silent flows, and time.
//!
//! Everything goes to one endpoint, by ports that are contended for: as if all of it were
//! masqueraded, but connections straight to the endpoint, which flows give way to, have the ends of
//! some. Of what a flow has seen it matters whether it is over. What an endpoint makes of its
//! segments is not part of this.

#[path = "flow_protocol/before.rs"]
mod before;
#[path = "flow_protocol/claims.rs"]
mod claims;
#[path = "flow_protocol/explore.rs"]
mod explore;
#[path = "flow_protocol/table.rs"]
mod table;

use before::Before;
use claims::Claims;
use explore::{Verdict, World, explore};
use table::Wrong;

/// Packets one after the other on one processor, while the daemon looks for silent flows.
const ONE: World =
    World { processors: 1, ports: 1, daemon: true, full: false, straight: false, flood: false };

#[test]
fn the_previous_protocol_removed_live_flows() {
    let before = Before { ports: 1, removes_later: true, goes_on_by_half: false };
    let found = explore(&before, ONE);
    assert!(matches!(found, Verdict::Wrong(Wrong::LiveFlowExpired, _)), "{found:?}");
}

#[test]
fn the_previous_protocol_blocked_clients_after_half_a_flow() {
    let before = Before { ports: 1, removes_later: false, goes_on_by_half: true };
    let found = explore(&before, World { full: true, ..ONE });
    assert!(matches!(found, Verdict::Stuck(..)), "{found:?}");
}

/// Looks at a world, and at the same when removing fails now and then.
#[track_caller]
fn is_right(world: World) {
    let World { ports, full, flood, .. } = world;
    let begun = std::time::Instant::now();
    let found = explore(&Claims { ports, busy: true, full, flood, notes_more: true }, world);
    println!("{world:?}: {found:?} in {:?}", begun.elapsed());
    assert!(matches!(found, Verdict::Right(_)), "{found:?}");
}

#[test]
fn no_flow_that_lives_is_removed_and_every_client_gets_through() {
    is_right(ONE);
}

#[test]
fn two_packets_at_once_do_no_harm_either() {
    is_right(World { processors: 2, daemon: false, ..ONE });
}

#[test]
fn every_client_gets_through_whatever_a_full_table_drops() {
    is_right(World { full: true, ..ONE });
}

#[test]
fn flows_replaced_by_connections_straight_to_the_endpoint_do_no_harm() {
    is_right(World { straight: true, ..ONE });
    is_right(World { straight: true, full: true, ..ONE });
}

/// Two processors: a client's flow begins while an answer of its ends is found to be another
/// connection's.
#[test]
fn a_flow_that_begins_beside_one_that_gives_way_does_not_go_on_by_half() {
    is_right(World { processors: 2, daemon: false, straight: true, ..ONE });
}

/// One processor's packets, while flows give way on another.
const FLOOD: World = World { daemon: false, flood: true, ..ONE };

#[test]
fn a_flood_ends_no_connection_and_every_client_gets_through() {
    is_right(FLOOD);
    is_right(World { full: true, ..FLOOD });
}

#[test]
fn a_connection_that_says_too_late_that_it_is_one_would_give_way() {
    let late = Claims { ports: 1, busy: true, full: false, flood: true, notes_more: false };
    let found = explore(&late, FLOOD);
    assert!(matches!(found, Verdict::Wrong(Wrong::ConnectionGaveWay, _)), "{found:?}");
}

#[test]
#[ignore = "minutes and gigabytes: with --release (docs/testing.md)"]
fn all_at_once_and_with_more_ports() {
    is_right(World { ports: 2, ..ONE });
    is_right(World { ports: 2, full: true, ..ONE });
    is_right(World { processors: 2, ..ONE });
    is_right(World { processors: 2, daemon: false, straight: true, ..ONE });
    is_right(World { daemon: true, ..FLOOD });
    is_right(World { processors: 2, ..FLOOD });
}
