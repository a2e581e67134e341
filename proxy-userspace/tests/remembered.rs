//! The set of clients that are remembered gets full: Services with few clients keep them, and new
//! ones of theirs are taken.
#![expect(clippy::unwrap_used, reason = "integration tests fail by panicking")]

#[path = "support/daemon.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod daemon;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use daemon::{Daemon, configured, in_netns, shell};
use sluice_core::lang::nftables::Op;
use sluice_core::net::Family;
use sluice_core::nft::eviction::Client;
use sluice_core::nft::{Ledger, NftConfig, NodeView, TABLE};
use sluice_sys::nft::{Nft, first_clients};

const CAPACITY: u32 = 1_000;
/// Clients of the two service ports.
const MANY: u32 = 965;
const FEW: u32 = 30;

/// A table whose sets of clients are small: the daemon takes it over as it is.
fn write_small_table() {
    let mut ops = Ledger::new(NftConfig::default(), NodeView::default()).create_skeleton();
    for op in &mut ops {
        if let Op::AddSet(spec) = op
            && spec.dynamic
        {
            spec.size = CAPACITY;
        }
    }
    Nft::open().unwrap().commit(&TABLE, &ops).unwrap();
}

/// Adds clients of a service port as the packet path does; with each the time that is left is
/// longer.
fn remember(share: u32, numbers: std::ops::Range<u32>) {
    let mut elements = String::new();
    for n in numbers {
        let (a, b) = (n / 250, n % 250);
        write!(
            elements,
            "{share:#x} . 0x0 . 10.{share}.{a}.{b} timeout 3h expires {}s : 10.1.1.1 . 80, ",
            3600 + n
        )
        .unwrap();
    }
    shell("nft -f -", &format!("add element inet sluice affinity4 {{ {elements} }}"));
}

fn of(share: u32, clients: &[Client]) -> Vec<&Client> {
    let with = share.to_ne_bytes();
    clients.iter().filter(|client| client.key.as_slice().starts_with(&with)).collect()
}

#[test]
fn clients_of_one_service_do_not_evict_those_of_others() {
    in_netns("remembered", |directory| {
        write_small_table();
        let daemon = Daemon::start(directory, &configured(directory), &[]);
        remember(2, 0..FEW);
        remember(1, 0..MANY);
        let end = Instant::now() + Duration::from_secs(20);
        let left = loop {
            let clients = first_clients(Family::V4, usize::MAX).unwrap();
            if clients.len() <= 800 {
                break clients;
            }
            let log = || std::fs::read_to_string(&daemon.log).unwrap();
            assert!(Instant::now() < end, "{} are left\n{}", clients.len(), log());
            std::thread::sleep(Duration::from_millis(100));
        };
        let (many, few) = (of(1, &left), of(2, &left));
        assert_eq!((many.len(), few.len()), (770, FEW as usize));
        // Those that were silent longest had less than an hour and 195 seconds left.
        let least = many.iter().map(|client| client.left).min();
        assert!(least > Some(1000 * (3600 + u64::from(MANY) - 770 - 60)), "{least:?}");
        // There is room for others.
        remember(3, 0..50);
        assert_eq!(of(3, &first_clients(Family::V4, usize::MAX).unwrap()).len(), 50);
        let log = std::fs::read_to_string(&daemon.log).unwrap();
        assert!(!log.contains("another program changed"), "its own doing is no other's: {log}");
    });
}
