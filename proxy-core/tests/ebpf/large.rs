//! The same for Services with many endpoints, of which only what a change touches is looked at.

use super::*;
use crate::large::{Happening, Kind, Slices, happenings, local_service};

/// Whether all that is left to do is what `live` looks at between any two operations: with many
/// endpoints that takes too long.
fn live(run: &mut Run, slices: &mut Slices, happening: &Happening) {
    let event = slices.event(happening);
    let changes = run.plan(&[event]);
    let ops = run.ledger.change(&changes);
    ops.iter().for_each(|op| run.maps.apply(op));
    run.check();
}

fn run(scheduler: Scheduler, large_from: usize, affinity: Option<u32>) -> Run {
    let mut run = Run::with_large_from(large_from, scheduler);
    run.events(&[Event::Service(Change::Apply(Service { affinity, ..local_service() }))]);
    run
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn every_history_of_many_endpoints_ends_where_a_fresh_start_does(
        history in happenings(),
        scheduler in proptest::sample::select(vec![Scheduler::Random, Scheduler::RoundRobin]),
        affinity in proptest::option::of(Just(60)),
    ) {
        let (mut run, mut slices) = (run(scheduler, 300, affinity), Slices::default());
        for happening in &history {
            live(&mut run, &mut slices, happening);
        }
    }
}

/// Groups so large that they know who is in which slot, and back.
#[test]
fn a_group_grows_very_large_and_small_again() {
    for scheduler in [Scheduler::Random, Scheduler::Maglev] {
        let (mut run, mut slices) = (run(scheduler, 500, None), Slices::default());
        let of = |at: usize, count| Happening::Slice(at, Kind::Ready, 7, 250 * at as u16, count);
        let mut history: Vec<Happening> = (0..5).map(|at| of(at, 250)).collect();
        history.extend((0..5).map(|at| Happening::Touch(at, at as u64)));
        history.extend([of(0, 10), of(1, 10), Happening::Touch(2, 3), of(0, 250), of(1, 250)]);
        for happening in &history {
            live(&mut run, &mut slices, happening);
        }
        assert!(run.maps.count(MapKind::Endpoints) > 1000, "as many as were meant");
    }
}
