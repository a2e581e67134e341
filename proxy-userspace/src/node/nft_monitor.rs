//! Notice of what others do to a table of ours.

use std::time::Duration;

use sluice_core::lang::nftables::Table;
use sluice_sys::nft::{Monitor, Nft, Notice};
use tokio::sync::mpsc;
use tracing::{error, warn};

/// Reports what others than the netlink port `own` do to a table, from a thread of its own, until
/// nobody listens.
///
/// To be started late: the kernel writes a notification for each element of a first load that
/// somebody listens to.
pub fn follow(table: &'static Table, own: u32, notices: mpsc::Sender<Notice>) {
    let thread = std::thread::Builder::new().name("nft-monitor".into());
    let spawned = thread.spawn(move || {
        let mut first = true;
        while !notices.is_closed() {
            match Monitor::open(table, own) {
                Ok(mut monitor) => {
                    // The table may have gone before the monitor was there; after a failure
                    // anything may have happened.
                    let there = || Nft::open().and_then(|mut nft| nft.has_table(table)).unwrap_or(false);
                    if !first || !there() {
                        let _ = notices.blocking_send(Notice::Lost);
                    }
                    first = false;
                    while let Ok(notice) = monitor.wait() {
                        if notices.blocking_send(notice).is_err() {
                            return;
                        }
                    }
                }
                Err(error) => warn!(%error, "cannot watch nf_tables changes; trying again"),
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    if let Err(error) = spawned {
        error!(%error, "cannot start the nf_tables monitor: flushed rules are restored only by the next full pass");
    }
}
