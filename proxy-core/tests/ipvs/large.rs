//! The same for Services with many endpoints, of whose destinations only what changes is looked at.

use super::*;
use crate::large::{Happening, Slices, happenings, local_service};

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn every_history_of_many_endpoints_ends_where_a_fresh_start_does(
        history in proptest::collection::vec((happenings(), any::<u64>()), 1..3),
        large_from in proptest::sample::select(vec![300, usize::MAX]),
    ) {
        let (mut run, mut slices) = (Run::with_large_from(large_from), Slices::default());
        run.step(&Step::Node(0b0011));
        run.step(&Step::Events(vec![Event::Service(Change::Apply(local_service()))]));
        for (happenings, seed) in &history {
            for (at, happening) in happenings.iter().enumerate() {
                let event = slices.event(happening);
                run.step(&Step::Events(vec![event]));
                match chance(*seed, &at) % 4 {
                    0 => run.step(&Step::Traffic(*seed)),
                    1 => run.step(&Step::Collect),
                    _ => {}
                }
            }
            // Afterwards the destinations are those that were read, some of them drained.
            run.step(&Step::Restart(Vec::new()));
        }
        ends_where_a_fresh_start_does(run);
    }
}

#[test]
fn a_thousand_destinations_follow_a_change_of_some() {
    let (mut run, mut slices) = (Run::with_large_from(500), Slices::default());
    run.step(&Step::Events(vec![Event::Service(Change::Apply(local_service()))]));
    for at in 0..5 {
        let event = slices.event(&Happening::Slice(at, crate::large::Kind::Ready, 7, 250 * at as u16, 250));
        run.step(&Step::Events(vec![event]));
    }
    let before = run.machine.servers.clone();
    let event = slices.event(&Happening::Touch(2, 3));
    run.step(&Step::Events(vec![event]));
    run.step(&Step::Collect);
    assert!(before.values().any(|(_, destinations)| destinations.len() > 1000), "as many as were meant");
    assert_ne!(before, run.machine.servers);
    ends_where_a_fresh_start_does(run);
}
