//! Somebody else changes our table every ten milliseconds: what is ours is back within a second,
//! and it costs little.
#![expect(clippy::unwrap_used, reason = "integration tests fail by panicking")]

#[path = "support/daemon.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod daemon;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use daemon::{Daemon, configured, in_netns, shell};
use sluice_core::lang::nftables::{Element, ElementId, Key, Op, Value};
use sluice_core::net::Family;
use sluice_core::nft::{SetKind, TABLE};
use sluice_sys::nft::{Nft, observe};

const SERVICES: usize = 100;
const EVERY: Duration = Duration::from_millis(10);
/// The promise.
const BACK: Duration = Duration::from_secs(1);
/// How late this test may look, on a busy machine.
const LATE: Duration = Duration::from_secs(1);

/// A daemon with Services whose first pass is over, and which listens for notices.
fn serving(directory: &Path) -> Daemon {
    let mut text = String::new();
    for i in 0..SERVICES {
        write!(
            text,
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s{i}, namespace: default}}, spec: {{clusterIP: 10.96.0.{ip}, \
             clusterIPs: [10.96.0.{ip}], ports: [{{port: 80}}]}}}}\n---\n{{apiVersion: discovery.k8s.io/v1, kind: \
             EndpointSlice, addressType: IPv4, metadata: {{name: s{i}-a, namespace: default, labels: \
             {{kubernetes.io/service-name: s{i}}}}}, ports: [{{port: 8080}}], endpoints: [{{addresses: [10.0.0.{ip}]}}, \
             {{addresses: [10.0.1.{ip}]}}]}}\n",
            ip = i + 1
        )
        .unwrap();
    }
    std::fs::write(directory.join("manifests/all.yaml"), text).unwrap();
    let mut daemon = Daemon::start(directory, &configured(directory), &[]);
    // It listens once somebody's change is noticed.
    let end = Instant::now() + Duration::from_secs(10);
    while metric("sluice_foreign_changes_total") == 0.0 {
        assert!(Instant::now() < end && daemon.child.try_wait().unwrap().is_none());
        shell("nft add chain inet sluice somebody; nft delete chain inet sluice somebody || true", "");
        std::thread::sleep(Duration::from_millis(100));
    }
    std::thread::sleep(BACK);
    daemon
}

/// The sum of a metric's samples.
fn metric(name: &str) -> f64 {
    let mut page = String::new();
    let Ok(mut connection) = TcpStream::connect("127.0.0.1:10249") else { return 0.0 };
    connection.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    connection.read_to_string(&mut page).unwrap();
    let samples = page.lines().filter(|line| line.starts_with(name));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// What the daemon has done so far.
struct Count {
    changes: f64,
    repairs: f64,
    processor: f64,
    lines: usize,
}

fn count(daemon: &Daemon) -> Count {
    let log = std::fs::read_to_string(&daemon.log).unwrap();
    Count {
        changes: metric("sluice_foreign_changes_total"),
        repairs: metric("sluice_repairs_total"),
        processor: metric("process_cpu_seconds_total"),
        lines: log.lines().count(),
    }
}

/// Elements of Services, with their values.
fn ours(nft: &mut Nft) -> HashMap<ElementId, Value> {
    let kinds = [SetKind::Services, SetKind::Endpoints, SetKind::ClusterIps];
    let observed = observe(nft, &TABLE).unwrap().unwrap();
    observed.elements.into_iter().filter(|(id, _)| kinds.iter().any(|kind| kind.is(id.set))).collect()
}

/// An element that nobody needs.
fn stranger(n: u32) -> Element {
    let id = ElementId { set: SetKind::ClusterIps.set(Family::V4), key: Key::new(&n.to_be_bytes()) };
    Element { id, value: Value::None }
}

/// Waits until our elements are as they were; how long that took.
fn back(daemon: &Daemon, nft: &mut Nft, wanted: &HashMap<ElementId, Value>) -> Duration {
    let begun = Instant::now();
    loop {
        let held = ours(nft);
        if wanted.iter().all(|(id, value)| held.get(id) == Some(value)) {
            return begun.elapsed();
        }
        let wrong = || wanted.iter().filter(|(id, value)| held.get(id) != Some(value)).collect::<Vec<_>>();
        let log = || std::fs::read_to_string(&daemon.log).unwrap();
        assert!(begun.elapsed() < BACK + LATE, "not back: {:?}\n{}", wrong(), log());
        std::thread::sleep(EVERY);
    }
}

#[test]
fn removed_elements_are_restored_within_a_second_however_often() {
    in_netns("harm", |directory| {
        let daemon = serving(directory);
        let (mut nft, mut looking) = (Nft::open().unwrap(), Nft::open().unwrap());
        let wanted = ours(&mut looking);
        let ids: Vec<ElementId> = wanted.keys().copied().collect();
        assert!(ids.len() > 3 * SERVICES, "{}", ids.len());
        let before = count(&daemon);
        let (mut gone, mut longest) = (HashMap::new(), Duration::ZERO);
        let (begun, mut seconds, mut changes) = (Instant::now(), 0.0, 0);
        while seconds < 6.0 {
            let id = ids[changes * 7 % ids.len()];
            // Some are removed, others lead elsewhere. To no endpoint of the same Service: its
            // slots may have any order, and what the kernel has is kept.
            let is_of_another = |other: &ElementId| other.key.as_slice()[..8] != id.key.as_slice()[..8];
            let another = |(other, value): &(&ElementId, &Value)| {
                other.set == id.set
                    && **value != wanted[&id]
                    && (id.key.as_slice().len() < 8 || is_of_another(other))
            };
            let other = wanted.iter().find(another).filter(|_| changes.is_multiple_of(3));
            let exchange = other.map(|(_, value)| Op::AddElement(Element { id, value: *value }));
            let ops: Vec<Op> = std::iter::once(Op::DeleteElement(id)).chain(exchange).collect();
            if nft.commit(&TABLE, &ops).is_ok() {
                gone.entry(id).or_insert_with(Instant::now);
            }
            changes += 1;
            if changes.is_multiple_of(10) {
                let held = ours(&mut looking);
                gone.retain(|id, since: &mut Instant| {
                    longest = longest.max(since.elapsed());
                    held.get(id) != Some(&wanted[id])
                });
            }
            std::thread::sleep(EVERY);
            seconds = begun.elapsed().as_secs_f64();
        }
        let after = count(&daemon);
        let last = back(&daemon, &mut looking, &wanted);
        let repairs = after.repairs - before.repairs;
        let processor = (after.processor - before.processor) / seconds;
        println!(
            "{changes} changes in {seconds:.1} s: back after {longest:?} at most, at last {last:?}; {repairs} repairs, {} lines, \
             {:.1} % of a core (this build)",
            after.lines - before.lines,
            processor * 100.0
        );
        assert!(after.changes - before.changes > 100.0);
        assert!(longest < BACK + LATE, "{longest:?}");
        assert!(repairs >= 2.0 && repairs <= 2.0 * seconds + 2.0, "{repairs} repairs");
        // The line of the first changes, in serving(), was before.
        assert!(after.lines <= before.lines + 1, "{}", std::fs::read_to_string(&daemon.log).unwrap());
        let log = std::fs::read_to_string(&daemon.log).unwrap();
        assert_eq!(log.matches("another program changed table inet sluice").count(), 1, "{log}");
    });
}

#[test]
fn foreign_elements_are_removed_with_growing_delays_and_own_changes_do_not_wait() {
    in_netns("clutter", |directory| {
        let daemon = serving(directory);
        let (mut nft, mut looking) = (Nft::open().unwrap(), Nft::open().unwrap());
        let wanted = ours(&mut looking);
        let before = count(&daemon);
        let begun = Instant::now();
        let mut n = 0x0a0a_0000;
        while begun.elapsed() < Duration::from_secs(10) {
            nft.commit(&TABLE, &[Op::AddElement(stranger(n))]).unwrap();
            // Half of them are taken back, unless that has been done.
            if n % 2 == 0 {
                let _ = nft.commit(&TABLE, &[Op::DeleteElement(stranger(n).id)]);
            }
            n += 1;
            std::thread::sleep(EVERY);
        }
        let after = count(&daemon);
        println!(
            "{} notices, {} repairs, {:.1} % of a core (this build)",
            after.changes - before.changes,
            after.repairs - before.repairs,
            (after.processor - before.processor) / begun.elapsed().as_secs_f64() * 100.0
        );
        // At 0, 1 or 2, 3 or 6 s and so on; or later, if what made the daemon listen was cleaned
        // several times before.
        assert!((1.0..=5.0).contains(&(after.repairs - before.repairs)));
        // The last look may be half a minute away.
        let end = Instant::now() + Duration::from_secs(90);
        while ours(&mut looking).len() > wanted.len() {
            assert!(Instant::now() < end, "{} of {n:x} are left", ours(&mut looking).len() - wanted.len());
            std::thread::sleep(Duration::from_millis(200));
        }
        let victim = *wanted.keys().find(|id| SetKind::Services.is(id.set)).unwrap();
        nft.commit(&TABLE, &[Op::DeleteElement(victim)]).unwrap();
        println!("back after {:?}", back(&daemon, &mut looking, &wanted));
    });
}
