//! How full the tables are in which clients are remembered (ClientIP affinity).
//!
//! One table is for all Services of a family. In mode ebpf the daemon counts its map with the
//! others ([`super::flows`]); here are the sets of nftables, in which the daemon makes room as well
//! ([`room`]).

pub mod room;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sluice_core::net::Family;
use sluice_core::nft::SetKind;
use sluice_sys::bpf::Usage;
use sluice_sys::netlink::NetlinkError;
use sluice_sys::nft::{Nft, remembered};
use tracing::{debug, warn};

use crate::observe::metrics::Metrics;
use crate::observe::recorder::{Event, Recorder};

/// Between two counts, at least.
const PERIOD: Duration = Duration::from_secs(30);
/// Between two looks as long as the table is not there.
const BEFORE: Duration = Duration::from_secs(1);
/// Older kernels do not tell how many there are: to count them takes no more than a part in so many
/// of the time.
const SHARE: u32 = 50;

/// What happens to clients when a set is nearly full.
const CONSEQUENCE: &str =
    "clients of the Services with the most clients are evicted, those idle longest first";

/// Tells that a table is more than 80 % full: once, until it has been less than 70 % full.
#[derive(Debug, Default)]
pub struct Alarm {
    told: BTreeSet<&'static str>,
}

impl Alarm {
    /// Whether it has to be told now.
    pub fn rises(&mut self, table: &'static str, usage: Usage) -> bool {
        if usage.has_room() {
            self.told.remove(table);
        }
        usage.is_high() && self.told.insert(table)
    }
}

/// Who is told.
#[derive(Clone, Default)]
pub struct Told {
    /// The metrics.
    pub metrics: Metrics,
    /// Events.
    pub recorder: Recorder,
}

impl Told {
    /// How full a table is.
    pub fn counted(&self, alarm: &mut Alarm, table: &'static str, usage: Usage, consequence: &str) {
        self.metrics.affinity_usage(table, usage);
        if alarm.rises(table, usage) {
            let Usage { entries, capacity } = usage;
            warn!(
                table,
                entries,
                capacity,
                "the affinity table is more than 80 % full; when it is full, {consequence}"
            );
            self.recorder.record(event(table, usage, consequence));
        }
    }
}

fn event(table: &str, Usage { entries, capacity }: Usage, consequence: &str) -> Event {
    Event::many_clients(format!(
        "table {table} on this node holds {entries} clients of Services with ClientIP affinity, of at \
         most {capacity}; when it is full, {consequence}"
    ))
}

/// Counts the sets of nftables from time to time.
pub async fn follow(told: Told) {
    let mut alarm = Alarm::default();
    loop {
        let begun = Instant::now();
        let mut are_there = true;
        match tokio::task::spawn_blocking(count).await {
            Ok(Ok(counted)) => {
                are_there = !counted.is_empty();
                for (table, usage) in counted {
                    told.counted(&mut alarm, table, usage, CONSEQUENCE);
                }
            }
            Ok(Err(error)) => debug!(%error, "cannot count the entries of the affinity tables"),
            Err(_) => return,
        }
        tokio::time::sleep(if are_there { pause(begun.elapsed()) } else { BEFORE }).await;
    }
}

fn count() -> Result<Vec<(&'static str, Usage)>, NetlinkError> {
    let mut nft = Nft::open()?;
    let mut found = Vec::new();
    for family in Family::BOTH {
        found.extend(remembered(&mut nft, family)?.map(|usage| (table(family), usage)));
    }
    Ok(found)
}

fn table(family: Family) -> &'static str {
    SetKind::Affinity.set(family).name()
}

fn pause(took: Duration) -> Duration {
    PERIOD.max(took * SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_is_told_once_and_again_when_it_had_room() {
        let mut alarm = Alarm::default();
        let mut rises = |table, entries| alarm.rises(table, Usage { entries, capacity: 100 });
        assert!(!rises("affinity4", 80));
        assert!(rises("affinity4", 81) && !rises("affinity4", 100));
        assert!(rises("affinity6", 99), "each for itself");
        assert!(!rises("affinity4", 70) && !rises("affinity4", 81), "it goes up and down a little");
        assert!(!rises("affinity4", 69) && rises("affinity4", 81));
    }

    #[test]
    fn a_count_that_takes_long_is_rare() {
        assert_eq!(pause(Duration::from_millis(3)), PERIOD);
        assert_eq!(pause(Duration::from_secs(2)), Duration::from_secs(100));
    }

    #[test]
    fn how_full_it_is_is_on_the_page() {
        let told = Told::default();
        told.counted(
            &mut Alarm::default(),
            "affinity4",
            Usage { entries: 81, capacity: 100 },
            "new ones are not",
        );
        let page = told.metrics.page();
        for sample in [
            "sluice_affinity_entries{table=\"affinity4\"} 81",
            "sluice_affinity_capacity{table=\"affinity4\"} 100",
        ] {
            assert!(page.lines().any(|line| line == sample), "{sample} in {page}");
        }
    }
}
