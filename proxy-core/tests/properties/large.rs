//! The same for Services with many endpoints, of which only what a change touches is looked at.

use proptest::prelude::*;

use super::*;
use crate::large::{Happening, Kind, Slices, happenings, local_service};

fn run(large_from: usize, zone: Option<&str>, affinity: Option<u32>) -> Run {
    let mut run = Run::with_large_from(large_from, nft_config(Scheduler::Random));
    let config = PlanConfig { zone: zone.map(Into::into), ..run.planner.config().clone() };
    run.step(&Step::Reconfigure(config));
    run.step(&Step::Events(vec![Event::Service(Change::Apply(Service { affinity, ..local_service() }))]));
    run
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn every_history_of_many_endpoints_ends_where_a_fresh_start_does(
        history in happenings(),
        large_from in proptest::sample::select(vec![0, 300]),
        zone in proptest::sample::select(vec![None, Some("za")]),
    ) {
        let (mut run, mut slices) = (run(large_from, zone, None), Slices::default());
        for happening in &history {
            let event = slices.event(happening);
            run.step(&Step::Events(vec![event]));
        }
    }
}

/// Groups so large that they know who is in which slot, and back.
#[test]
fn a_group_grows_very_large_and_small_again() {
    let (mut run, mut slices) = (run(500, None, Some(60)), Slices::default());
    let of = |at: usize, count| Happening::Slice(at, Kind::Ready, 7, 250 * at as u16, count);
    let mut history: Vec<Happening> = (0..5).map(|at| of(at, 250)).collect();
    history.extend((0..5).flat_map(|at| [Happening::Touch(at, at as u64), Happening::Touch(at, 90)]));
    history.extend([
        of(0, 10),
        of(1, 10),
        Happening::Touch(2, 3),
        of(0, 250),
        of(1, 250),
        Happening::Touch(4, 3),
    ]);
    for happening in &history {
        let event = slices.event(happening);
        run.step(&Step::Events(vec![event]));
    }
    assert!(run.told[&name("s1")].ports[0].cluster.len() > 1000, "as many as were meant");
    run.step(&Step::Adopt(0));
    let event = slices.event(&Happening::Touch(3, 5));
    run.step(&Step::Events(vec![event]));
}

#[test]
fn a_change_of_one_endpoint_does_not_visit_the_others() {
    let (mut run, mut slices) = (run(500, None, None), Slices::default());
    for at in 0..6 {
        let event = slices.event(&Happening::Slice(at, Kind::Ready, 7, 100 * at as u16, 120));
        run.event(event);
    }
    run.plan();
    let before = run.told[&name("s1")].clone();
    let event = slices.event(&Happening::Touch(1, 11));
    run.event(event);
    run.plan();
    let after = &run.told[&name("s1")];
    for (old, new) in before.ports.iter().zip(&after.ports) {
        assert!(old.cluster != new.cluster, "something changed");
        let shared = new.cluster.shared_with(&old.cluster);
        assert!(2 * shared > new.cluster.len(), "{shared} of {} are as they were", new.cluster.len());
    }
}
