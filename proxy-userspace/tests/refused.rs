//! The kernel refuses something of single Services: a map has room for three frontends and no more,
//! because somebody has made the table before us. All that fits is in force, and who is refused
//! keeps what it had.
#![expect(clippy::unwrap_used, reason = "integration tests fail by panicking")]

#[path = "support/daemon.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod daemon;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use daemon::{Daemon, configured, in_netns};
use sluice_core::lang::nftables::{Op, Value};
use sluice_core::net::Family;
use sluice_core::nft::{SetKind, TABLE};
use sluice_sys::nft::{Nft, observe};

/// Another program's idea of the map of frontends.
fn make_a_small_map(nft: &mut Nft) {
    let mut spec = *SetKind::Services.set(Family::V4).spec();
    spec.size = 3;
    nft.commit(&TABLE, &[Op::AddTable, Op::AddSet(spec)]).unwrap();
}

/// Services by number, port and the last bytes of their endpoints.
fn write(directory: &Path, services: &[(u8, u16, &[u8])]) {
    let mut text = String::new();
    for (n, port, endpoints) in services {
        let endpoints: Vec<String> =
            endpoints.iter().map(|host| format!("{{addresses: [10.0.0.{host}]}}")).collect();
        write!(
            text,
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s{n}, namespace: default}}, spec: {{clusterIP: \
             10.96.0.{n}, clusterIPs: [10.96.0.{n}], ports: [{{port: {port}}}]}}}}\n---\n{{apiVersion: discovery.k8s.io/v1, \
             kind: EndpointSlice, addressType: IPv4, metadata: {{name: s{n}-a, namespace: default, labels: \
             {{kubernetes.io/service-name: s{n}}}}}, ports: [{{port: 8080}}], endpoints: [{}]}}\n",
            endpoints.join(", ")
        )
        .unwrap();
    }
    let (new, path) = (directory.join("new"), directory.join("manifests/all.yaml"));
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// Frontends by the last byte of their address and their port, and the last bytes of all endpoints.
fn in_force(nft: &mut Nft) -> (BTreeSet<(u8, u16)>, BTreeSet<u8>) {
    let (mut frontends, mut endpoints) = (BTreeSet::new(), BTreeSet::new());
    for (id, value) in observe(nft, &TABLE).unwrap().unwrap().elements {
        if SetKind::Services.is(id.set) {
            frontends.insert((id.key[3], u16::from_be_bytes([id.key[8], id.key[9]])));
        }
        if let (true, Value::Data(data)) = (SetKind::Endpoints.is(id.set), value) {
            endpoints.insert(data[3]);
        }
    }
    (frontends, endpoints)
}

fn wait_for(nft: &mut Nft, limit: Duration, frontends: &[(u8, u16)], endpoints: &[u8]) -> Duration {
    let begun = Instant::now();
    let wanted = (frontends.iter().copied().collect(), endpoints.iter().copied().collect());
    loop {
        let held = in_force(nft);
        if held == wanted {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < limit, "{held:?}, not {wanted:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn get(port: u16, path: &str) -> String {
    let mut answer = String::new();
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(connection, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

fn refused() -> String {
    let page = get(10249, "/metrics");
    page.lines().find_map(|line| line.strip_prefix("sluice_refused_services ")).unwrap().to_owned()
}

#[test]
fn a_refused_service_does_not_block_the_others() {
    in_netns("refused", |directory| {
        let mut nft = Nft::open().unwrap();
        make_a_small_map(&mut nft);
        write(directory, &[(1, 80, &[1]), (2, 80, &[2]), (3, 80, &[3]), (4, 80, &[4]), (5, 80, &[5])]);
        let mut daemon = Daemon::start(directory, &configured(directory), &[]);
        let second = Duration::from_secs(1);
        // The manifests are read each 100 ms.
        let limit = second + second / 2;
        daemon.wait_for("the kernel refuses operations of this Service");
        let (frontends, endpoints) = in_force(&mut nft);
        let served: Vec<u8> = frontends.iter().map(|(n, _)| *n).collect();
        assert_eq!((served.len(), endpoints), (3, served.iter().copied().collect()));
        let out: Vec<u8> = (1..=5).filter(|n| !served.contains(n)).collect();
        let (a, b, c, d, e) = (served[0], served[1], served[2], out[0], out[1]);
        assert_eq!(refused(), "2");

        // One of them gets another port, for which there is no room; its endpoints stay as well.
        // The others get theirs.
        let services = [(a, 81, &[11][..]), (b, 80, &[b, 12]), (c, 80, &[13]), (d, 80, &[d]), (e, 80, &[e])];
        write(directory, &services);
        let took = wait_for(&mut nft, limit, &[(a, 80), (b, 80), (c, 80)], &[a, b, 12, 13]);
        println!("in force after {took:?}");
        std::thread::sleep(second / 2);
        assert_eq!(refused(), "3");
        assert!(get(10256, "/livez").starts_with("HTTP/1.0 200"));
        let log = std::fs::read_to_string(&daemon.log).unwrap();
        for service in [a, d, e].map(|n| format!("default/s{n}")) {
            let lines =
                log.lines().filter(|line| line.contains("refuses operations") && line.contains(&service));
            assert_eq!(lines.count(), 1, "{log}");
        }
        assert!(log.contains("os error 23"), "{log}");

        // There is room again, which the next try uses.
        write(directory, &[(a, 81, &[11]), (c, 80, &[13]), (d, 80, &[d])]);
        wait_for(&mut nft, 15 * second, &[(a, 81), (c, 80), (d, 80)], &[d, 11, 13]);
        daemon.wait_for("resolved: the kernel accepts all operations of this Service");
        std::thread::sleep(second / 2);
        assert_eq!(refused(), "0");
        // Nobody else did anything, and what is right is not written again.
        let log = std::fs::read_to_string(&daemon.log).unwrap();
        assert!(!log.contains("another program"), "{log}");
    });
}
