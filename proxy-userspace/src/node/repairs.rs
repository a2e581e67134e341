//! When our table is looked through after others changed it, and how often that is told.
//!
//! A look reads the whole table, so somebody who changes it a hundred times a second must not cause
//! as many. What may have touched what is ours is put right at once, then every [`INTERVAL`], and
//! takes half of the time: so it is back within a second wherever a look takes a third of a second
//! or less, and within three times that, or twice and a second, where it takes longer. What others
//! only added is cleaned at once too, then after longer and longer times.

use std::time::{Duration, Instant};

/// Between the beginnings of two looks, at least, when something of ours may have been touched.
const INTERVAL: Duration = Duration::from_millis(500);
/// Between two looks lies as much time as the first took, but no more than this.
const LONGEST_REST: Duration = Duration::from_secs(1);
/// From one cleaning of what others added to the next: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);
/// Whoever was quiet for so long begins with the first pause again.
const FORGIVEN: Duration = Duration::from_secs(60);
/// So long after a change of others a refusal is taken for their doing.
const DISTURBED: Duration = Duration::from_secs(2);
/// And is tried again within this time.
const RETRY: Duration = Duration::from_millis(200);
/// Between two lines of the log.
const LINES: Duration = Duration::from_secs(60);

/// What was done since the last line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Notices of changes that others made.
    pub(crate) changes: u64,
    /// Looks that they caused.
    pub(crate) looks: u64,
    /// Operations that were needed.
    pub(crate) operations: u64,
    /// How often the kernel refused a change meanwhile.
    pub(crate) refused: u64,
    /// The last of these refusals.
    pub(crate) refusal: String,
}

/// What others did, what was done about it, and when.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    /// Since when something of ours may be wrong.
    harm: Option<Instant>,
    /// Since when something of others is there.
    clutter: Option<Instant>,
    /// Beginning and duration of the last look.
    last: Option<(Instant, Duration)>,
    pause: Option<Duration>,
    noticed: Option<Instant>,
    told: Option<Instant>,
    tally: Tally,
}

impl Repairs {
    /// Others changed the table.
    pub(crate) fn noticed(&mut self, may_harm: bool, now: Instant) {
        if self.noticed.is_some_and(|before| before + FORGIVEN < now) {
            self.pause = None;
        }
        self.noticed = Some(now);
        self.tally.changes += 1;
        let since = if may_harm { &mut self.harm } else { &mut self.clutter };
        since.get_or_insert(now);
    }

    /// When the next look is due, if any.
    pub(crate) fn due(&self) -> Option<Instant> {
        let after = |since: Option<Instant>, pause: Duration| {
            let free = self.last.map(|(begun, _)| begun + pause);
            since.map(|since| free.map_or(since, |free| free.max(since)))
        };
        let took = self.last.map_or(Duration::ZERO, |(_, took)| took);
        let least = INTERVAL.max(took + took.min(LONGEST_REST));
        let clutter = after(self.clutter, self.pause.unwrap_or(Duration::ZERO).max(least));
        after(self.harm, least).into_iter().chain(clutter).min()
    }

    /// Whether one is due.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due().is_some_and(|due| due <= now)
    }

    /// The table has been looked through and put right, for whatever reason. What is noticed from
    /// now on may be from before; then it causes a look more.
    pub(crate) fn done(&mut self, begun: Instant, ended: Instant, operations: usize) {
        if self.harm.is_some() || self.clutter.is_some() {
            self.tally.looks += 1;
            self.tally.operations += operations as u64;
        }
        if self.clutter.take().is_some() {
            self.pause = Some(self.pause.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LAST_PAUSE)));
        }
        self.harm = None;
        self.last = Some((begun, ended - begun));
    }

    /// Takes a refusal in that others may be the reason of. Returns whether they may.
    pub(crate) fn refused(&mut self, error: &impl ToString, now: Instant) -> bool {
        let theirs = self.is_disturbed(now);
        if theirs {
            self.tally.refused += 1;
            self.tally.refusal = error.to_string();
        }
        theirs
    }

    /// How long to wait after a refusal: what others do all the time must not make it long.
    pub(crate) fn retry(&self, delay: Duration, now: Instant) -> Duration {
        if self.is_disturbed(now) { delay.min(RETRY) } else { delay }
    }

    /// Whether others are at the table just now.
    pub(crate) fn is_disturbed(&self, now: Instant) -> bool {
        self.noticed.is_some_and(|noticed| now < noticed + DISTURBED)
    }

    /// When there will be something to be told, if nothing else happens.
    pub(crate) fn line_due(&self) -> Option<Instant> {
        let told = self.told.filter(|_| self.has_something_to_tell());
        told.map(|told| told + LINES)
    }

    /// What is to be told now: nothing, if nothing was done, or the last line is not a minute old.
    pub(crate) fn line(&mut self, now: Instant) -> Option<Tally> {
        let may = self.told.is_none_or(|told| told + LINES <= now);
        (may && self.has_something_to_tell()).then(|| {
            self.told = Some(now);
            std::mem::take(&mut self.tally)
        })
    }

    fn has_something_to_tell(&self) -> bool {
        self.tally.looks > 0 || self.tally.refused > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGE: Duration = Duration::from_millis(10);

    /// A clock set by hand, and what happened.
    struct World {
        repairs: Repairs,
        start: Instant,
        now: Instant,
        taking: Duration,
        /// When looks began and ended, in milliseconds.
        looks: Vec<(u128, u128)>,
        lines: Vec<Tally>,
    }

    impl World {
        fn new(taking: Duration) -> World {
            let now = Instant::now();
            let repairs = Repairs::default();
            World { repairs, start: now, now, taking, looks: Vec::new(), lines: Vec::new() }
        }

        fn since_start(&self) -> u128 {
            (self.now - self.start).as_millis()
        }

        fn look_if_due(&mut self) {
            if self.repairs.is_due(self.now) {
                let (begun, at) = (self.now, self.since_start());
                self.now += self.taking;
                self.repairs.done(begun, self.now, 1);
                self.looks.push((at, self.since_start()));
            }
            self.lines.extend(self.repairs.line(self.now));
        }

        /// Others change something each 10 ms.
        fn changes_for(&mut self, time: Duration, may_harm: bool) {
            let end = self.now + time;
            while self.now < end {
                self.repairs.noticed(may_harm, self.now);
                self.look_if_due();
                self.now += CHANGE;
            }
        }

        /// The longest time from a change to the end of a look that began later.
        fn longest(&self) -> u128 {
            self.looks.windows(2).map(|two| two[1].1 - two[0].0).max().unwrap()
        }
    }

    #[test]
    fn a_single_change_is_looked_at_at_once() {
        for may_harm in [true, false] {
            let mut world = World::new(CHANGE);
            world.repairs.noticed(may_harm, world.now);
            assert!(world.repairs.is_due(world.now));
            world.look_if_due();
            assert_eq!((world.looks.len(), world.repairs.due()), (1, None));
        }
    }

    #[test]
    fn steady_harm_is_repaired_twice_a_second_and_within_one() {
        let mut world = World::new(CHANGE);
        world.changes_for(Duration::from_secs(60), true);
        assert!((110..=121).contains(&world.looks.len()), "{}", world.looks.len());
        assert!(world.longest() <= 600, "{} ms", world.longest());
    }

    #[test]
    fn a_slow_look_takes_half_of_the_time_and_is_in_time_up_to_a_third_of_a_second() {
        for (took, longest) in [(200, 720), (320, 980), (1000, 3020)] {
            let mut world = World::new(Duration::from_millis(took));
            world.changes_for(Duration::from_secs(60), true);
            let busy: u128 = world.looks.iter().map(|(from, to)| to - from).sum();
            assert!(busy * 2 <= world.since_start() + u128::from(2 * took), "{took}: {busy}");
            assert!(world.longest() <= longest, "{took}: {} ms", world.longest());
        }
    }

    #[test]
    fn harmless_foreign_changes_are_removed_with_growing_delays() {
        let mut world = World::new(CHANGE);
        world.changes_for(Duration::from_secs(130), false);
        let begun: Vec<u128> = world.looks.iter().map(|(from, _)| from / 1000).collect();
        assert_eq!(begun, [0, 1, 3, 7, 15, 31, 61, 91, 121]);
        world.now += 2 * FORGIVEN;
        world.look_if_due();
        world.looks.clear();
        world.changes_for(Duration::from_secs(4), false);
        assert_eq!(world.looks.len(), 3);
    }

    #[test]
    fn harm_does_not_wait_for_the_pause_of_what_does_none() {
        let mut world = World::new(CHANGE);
        world.changes_for(Duration::from_secs(60), false);
        let harmed = world.now;
        world.repairs.noticed(true, harmed);
        assert!(world.repairs.due().unwrap() <= harmed + INTERVAL);
    }

    #[test]
    fn there_is_a_line_at_once_and_one_a_minute() {
        let mut world = World::new(CHANGE);
        world.changes_for(Duration::from_secs(150), true);
        assert_eq!(world.lines.len(), 3);
        assert_eq!(world.lines[0], Tally { changes: 1, looks: 1, operations: 1, ..Tally::default() });
        assert!(world.lines[1].changes > 5000 && world.lines[1].looks > 100);
        let due = world.repairs.line_due().unwrap();
        assert!(due > world.now && world.repairs.line(due).is_some());
        assert_eq!(world.repairs.line_due(), None);
    }

    #[test]
    fn refusals_caused_by_others_are_retried_soon_and_only_then() {
        let mut repairs = Repairs::default();
        let (now, long) = (Instant::now(), Duration::from_secs(20));
        assert_eq!(repairs.retry(long, now), long);
        assert!(!repairs.refused(&"out of memory", now));
        assert_eq!(repairs.line(now), None);
        repairs.noticed(true, now);
        assert_eq!(repairs.retry(long, now), RETRY);
        assert_eq!(repairs.retry(CHANGE, now), CHANGE);
        assert_eq!(repairs.retry(long, now + DISTURBED), long);
        assert!(repairs.refused(&"no such element", now));
        assert_eq!(repairs.line(now).map(|line| line.refusal).as_deref(), Some("no such element"));
    }
}
