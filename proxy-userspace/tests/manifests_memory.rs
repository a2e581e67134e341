//! Memory while a large file is read again and again. How large and how often: `SLUICE_SERVICES`
//! and `SLUICE_REREADS`; 10,000 Services with ten endpoints each, read 1,000 times, take minutes
//! with a release build:
//!
//! `SLUICE_SERVICES=10000 SLUICE_REREADS=1000 cargo test --release -p sluice --test
//! manifests_memory -- --nocapture`
#![expect(clippy::unwrap_used, clippy::panic, reason = "integration tests fail by panicking")]

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use sluice::observe::metrics::Metrics;
use sluice::watch::Received;
use sluice::watch::manifests::Manifests;
use sluice_core::event::{Change, Event};
use sluice_sys::proc;
use tokio::sync::mpsc;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Services with ten endpoints each. The first has a port by which a version of the file is known;
/// with `all`, so has every one.
fn manifests(services: usize, version: u16, all: bool) -> String {
    let mut text = String::new();
    for i in 0..services {
        let port = if all || i == 0 { version } else { 80 };
        let (high, low) = (i / 250, i % 250);
        let endpoints: Vec<String> = (0..10)
            .map(|n| format!("{{addresses: [10.{n}.{high}.{low}], conditions: {{ready: true}}}}"))
            .collect();
        write!(
            text,
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{i}}}\nspec: {{clusterIP: 10.96.{high}.{low}, ports: \
             [{{port: {port}}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{i}-1, \
             labels: {{kubernetes.io/service-name: s{i}}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{}]\n---\n",
            endpoints.join(", ")
        )
        .unwrap();
    }
    // The last that is read tells that all was.
    write!(text, "apiVersion: v1\nkind: Service\nmetadata: {{name: last}}\nspec: {{clusterIP: 10.97.0.1, ports: [{{port: {version}}}]}}\n")
        .unwrap();
    text
}

fn publish(directory: &Path, text: &str) {
    std::fs::write(directory.join(".next"), text).unwrap();
    std::fs::rename(directory.join(".next"), directory.join("all.yaml")).unwrap();
}

/// Waits for a version; how many Services were sent for it.
async fn read(events: &mut mpsc::Receiver<Received>, version: u16) -> usize {
    let mut sent = 0;
    loop {
        let received = tokio::time::timeout(Duration::from_secs(120), events.recv()).await;
        let Ok(Some(Received { event, .. })) = received else { panic!("version {version} never came") };
        let Event::Service(Change::Apply(service)) = event else { continue };
        sent += 1;
        if service.name.name() == "last" && service.ports[0].port == version {
            return sent;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_flat_over_re_reads_and_unchanged_documents_are_not_sent_again() {
    let (services, rereads) = (setting("SLUICE_SERVICES", 60), setting("SLUICE_REREADS", 1000));
    let directory = std::env::temp_dir().join(format!("sluice-memory-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    publish(&directory, &manifests(services, 1, false));
    let (sender, mut events) = mpsc::channel(1024);
    tokio::spawn(Manifests::new(directory.clone(), sender, Metrics::default()).unwrap().run());
    assert_eq!(read(&mut events, 1).await, services + 1);
    let (mut readings, begun) = (Vec::new(), Instant::now());
    for i in 0..rereads {
        let version = 2 + (i % 60_000) as u16;
        // Each twentieth time all is new.
        let all = i % 20 == 0;
        publish(&directory, &manifests(services, version, all));
        let sent = read(&mut events, version).await;
        let back = i % 20 == 1;
        assert_eq!(sent, if all || back { services + 1 } else { 2 }, "re-read {i}");
        let now = proc::resident_bytes().unwrap();
        readings.push(now);
        if i % (rereads / 10).max(1) == 0 || i == 2 {
            println!("re-read {i}: {} KiB after {:?}", now / 1024, begun.elapsed());
        }
    }
    std::fs::remove_dir_all(directory).unwrap();
    // Twenty have one after which all is new. What the allocator keeps counts, and what is just
    // being read.
    let most = |readings: &[u64]| readings.iter().copied().max().unwrap();
    let few = 20.min(readings.len());
    let (first, last) = (most(&readings[..few]), most(&readings[readings.len() - few..]));
    println!("most of the first twenty {} KiB, of the last twenty {} KiB", first / 1024, last / 1024);
    assert!(last <= first + first / 5, "{} KiB became {} KiB", first / 1024, last / 1024);
}
