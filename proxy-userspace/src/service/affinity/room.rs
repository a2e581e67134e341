//! Room in the sets of nftables in which clients are remembered. The kernel takes no new client
//! when a set is full, whoever the others are of; so some are forgotten before that, fairly
//! ([`Evictor`]).

use std::time::{Duration, Instant};

use sluice_core::net::Family;
use sluice_core::nft::eviction::{Evictor, is_due};
use sluice_sys::netlink::NetlinkError;
use sluice_sys::nft::{Fullness, Nft, first_clients, forget, fullness, is_full};
use tracing::debug;

use super::table;
use crate::observe::metrics::Metrics;

/// Between two looks, at least.
const LOOK: Duration = Duration::from_secs(1);
/// The same where the kernel does not tell how many there are: there each look is a transaction.
const TRY: Duration = Duration::from_secs(5);
/// So many times its own time lies between one look and the next: a flood of clients costs a fifth
/// of a processor at most.
const SHARE: u32 = 4;
/// Clients that are read at once, usually. All of a full set would take minutes, because for each
/// part of the answer the kernel goes through all those before once more.
pub const SAMPLE: usize = 1 << 17;

/// What was done about one set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Clients that were forgotten.
    pub forgotten: usize,
    /// Whether the kernel tells how many there are.
    pub is_told: bool,
}

/// Keeps room in the sets, for good.
pub async fn keep(metrics: Metrics) {
    let mut evictors = [(); 2].map(|()| Evictor::new(SAMPLE));
    let start = Instant::now();
    loop {
        let begun = Instant::now();
        let look = tokio::task::spawn_blocking(move || {
            let made = Family::BOTH.map(|family| {
                let evictor = &mut evictors[family as usize];
                (family, make(family, evictor, start.elapsed()))
            });
            (made, evictors)
        });
        let Ok((made, back)) = look.await else { return };
        evictors = back;
        let mut least = LOOK;
        for (family, made) in made {
            match made {
                Ok(Made { forgotten, is_told }) => {
                    metrics.clients_forgotten(table(family), forgotten);
                    least = if is_told { least } else { TRY };
                    if forgotten > 0 {
                        debug!(
                            table = table(family),
                            forgotten,
                            seconds = begun.elapsed().as_secs_f64(),
                            "evicted clients from the affinity table"
                        );
                    }
                }
                Err(error) => {
                    debug!(table = table(family), %error, "cannot evict clients from the affinity table")
                }
            }
        }
        tokio::time::sleep(pause(least, begun.elapsed())).await;
    }
}

fn pause(least: Duration, took: Duration) -> Duration {
    least.max(took * SHARE)
}

/// Forgets clients of a family if there is little room left, judging by some of them. One that
/// comes again between being read and being forgotten is balanced anew by its next connection;
/// connections that there are do not depend on it.
pub fn make(family: Family, evictor: &mut Evictor, now: Duration) -> Result<Made, NetlinkError> {
    let mut nft = Nft::open()?;
    let Some(Fullness { capacity, entries }) = fullness(&mut nft, family)? else {
        return Ok(Made { forgotten: 0, is_told: true });
    };
    let is_told = entries.is_some();
    if let Some(entries) = entries {
        evictor.counted(entries, capacity);
    }
    // A kernel that does not tell says at least that no one more fits.
    let entries = match entries {
        Some(entries) => entries,
        None if is_full(&mut nft, family)? => capacity,
        None => 0,
    };
    if !is_due(entries, capacity) {
        return Ok(Made { forgotten: 0, is_told });
    }
    let clients = first_clients(family, evictor.sample())?;
    let gone = evictor.evicted(clients, entries, capacity, now.as_millis() as u64);
    Ok(Made { forgotten: forget(&mut nft, family, &gone)?, is_told })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_costs_no_more_than_a_share_of_the_time() {
        assert_eq!(pause(LOOK, Duration::from_millis(3)), LOOK);
        assert_eq!(pause(LOOK, Duration::from_secs(2)), Duration::from_secs(8));
    }
}
