//! The daemon's HTTP servers under clients that mean no good: more connections than it may hold,
//! requests that never end, answers that nobody reads.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream;
use serde_json::{Value, json};
use tokio::net::TcpSocket;

use crate::daemons::{Proxy, cluster, in_namespace, slice};
use crate::fake_api::{FakeApi, ObjectWriter};
use crate::observer::service;

const HEALTH: &str = "192.0.2.1:10256";
const METRICS: &str = "127.0.0.1:10249";
/// The health-check node port of [`balanced`].
const CHECK: &str = "192.0.2.1:31000";
/// Connections that a server may hold.
const LIMIT: usize = 256;
/// How soon a connection is closed that is idle or slow, and what a busy machine adds.
const PATIENCE: Duration = Duration::from_secs(10 + 2);
/// Limits of open files as a container has them.
const USUAL: &str = "-Sn 1024";
/// The kubelet's patience with a probe.
const PROBE: Duration = Duration::from_secs(1);

/// Asks as the kubelet does: by a connection of its own. How long it took.
fn probe(address: &str) -> Result<Duration, String> {
    let begun = Instant::now();
    let address: SocketAddr = address.parse().unwrap();
    let mut stream =
        TcpStream::connect_timeout(&address, PROBE).map_err(|error| format!("connect: {error}"))?;
    let request = "GET /livez HTTP/1.1\r\nHost: 192.0.2.1:10256\r\nUser-Agent: kube-probe/1.36\r\nAccept: */*\r\n\
                   Connection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).map_err(|error| format!("write: {error}"))?;
    let left = PROBE.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
    stream.set_read_timeout(Some(left)).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).map_err(|error| format!("read: {error}"))?;
    match &answer {
        b"HTTP/1.1 200" => Ok(begun.elapsed()),
        other => Err(format!("{}", String::from_utf8_lossy(other))),
    }
}

/// Probes again and again until told to end.
fn keep_probing(
    address: &'static str,
    end: Arc<AtomicBool>,
) -> std::thread::JoinHandle<(usize, Vec<String>)> {
    std::thread::spawn(move || {
        let (mut asked, mut failures) = (0, Vec::new());
        while !end.load(Ordering::Relaxed) {
            asked += 1;
            failures.extend(probe(address).err());
            std::thread::sleep(Duration::from_millis(50));
        }
        (asked, failures)
    })
}

/// A connection with the beginning of a request.
async fn half_open(from: IpAddr, to: SocketAddr) -> Option<tokio::net::TcpStream> {
    let socket = TcpSocket::new_v4().ok()?;
    socket.bind(SocketAddr::new(from, 0)).ok()?;
    let stream = tokio::time::timeout(Duration::from_secs(20), socket.connect(to)).await.ok()?.ok()?;
    stream.try_write(b"GET /livez HTTP/1.1\r\nX-Slow: ").ok()?;
    Some(stream)
}

/// Whether the other side ends the connection by then.
async fn is_closed(stream: &tokio::net::TcpStream, by: Instant) -> bool {
    let mut buffer = [0; 4096];
    let ended = async {
        while stream.readable().await.is_ok() {
            match stream.try_read(&mut buffer) {
                Ok(1..) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return,
            }
        }
    };
    tokio::time::timeout_at(by.into(), ended).await.is_ok()
}

pub(crate) async fn wait_for(what: &str, proxy: &Proxy, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "{what}: not in time\n{}", proxy.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_in_force(address: &str) -> bool {
    let output = Command::new("nft").args(["list", "table", "inet", "sluice"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains(address)
}

/// A Service with a health-check node port.
pub(crate) fn balanced() -> Value {
    let mut balanced = service("balanced", 80);
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
        "clusterIP": "10.96.0.11", "clusterIPs": ["10.96.0.11"], "ipFamilies": ["IPv4"], "ports": [{"port": 80}]});
    balanced["spec"] = spec;
    balanced
}

/// A proxy at work, with an endpoint in force. It starts with limits of open files.
async fn at_work(files: &str, api: &FakeApi) -> Proxy {
    let proxy = Proxy::sluice_with_files(files, api);
    api.put(slice("10.0.0.1"));
    wait_for("the first endpoint", &proxy, || is_in_force("10.0.0.1")).await;
    wait_for("the health server", &proxy, || probe(HEALTH).is_ok()).await;
    proxy
}

/// As many connections as the server may hold are held, and 5,000 more knock, each from the address
/// that it is given.
fn a_crowd(files: &'static str, from: impl Fn(usize) -> IpAddr + Send + 'static) {
    // Two crowds at once would be a test of the machine.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    in_namespace(move || async move {
        // All addresses of this network are this host's, but not those that its own processes ask
        // from.
        let added = ["address", "add", "198.51.100.1/24", "dev", "lo"];
        assert!(Command::new("ip").args(added).status().unwrap().success());
        let api = cluster().await;
        let proxy = at_work(files, &api).await;
        let idle = proxy.sockets();
        let to: SocketAddr = HEALTH.parse().unwrap();

        let mut crowd: Vec<_> = stream::iter(0..LIMIT)
            .map(|n| half_open(from(n), to))
            .buffered(64)
            .filter_map(std::future::ready)
            .collect()
            .await;
        assert_eq!(crowd.len(), LIMIT);
        let end = Arc::new(AtomicBool::new(false));
        let probes = [HEALTH, "127.0.0.1:10256"].map(|address| keep_probing(address, end.clone()));
        let more = stream::iter(0..5000).map(|n| half_open(from(n), to)).buffer_unordered(500);
        let mut more = std::pin::pin!(more);
        let mut most = 0;
        while let Some(stream) = more.next().await {
            crowd.extend(stream);
            if crowd.len() % 100 == 0 {
                most = most.max(proxy.sockets());
            }
            if crowd.len() == 2000 {
                api.put(slice("10.0.0.2"));
            }
        }
        let last = Instant::now();
        wait_for("a changed endpoint", &proxy, || is_in_force("10.0.0.2")).await;
        most = most.max(proxy.sockets());
        let still_open: Vec<bool> = stream::iter(crowd.iter())
            .map(|stream| is_closed(stream, last + PATIENCE))
            .buffered(6000)
            .collect()
            .await;
        end.store(true, Ordering::Relaxed);
        for probes in probes {
            let (asked, failures) = probes.join().unwrap();
            assert!(
                failures.is_empty(),
                "{} of {asked} probes failed: {failures:?}\n{}",
                failures.len(),
                proxy.log()
            );
        }
        // Besides: connections to the API server.
        assert!(most <= idle + LIMIT + 8, "{most} sockets, {idle} before");
        let open = still_open.iter().filter(|closed| !**closed).count();
        assert_eq!(open, 0, "connections that nobody closed");
    });
}

fn one_of_many(n: usize) -> IpAddr {
    IpAddr::from([198, 51, 100, u8::try_from(n % 254).unwrap() + 1])
}

#[test]
fn a_crowd_from_one_other_host_harms_nobody() {
    a_crowd(USUAL, |_| IpAddr::from([198, 51, 100, 1]));
}

#[test]
fn a_crowd_from_many_other_hosts_harms_nobody() {
    a_crowd(USUAL, one_of_many);
}

#[test]
fn a_crowd_from_this_host_harms_nobody() {
    a_crowd(USUAL, |_| IpAddr::from([192, 0, 2, 1]));
}

/// There are few files to open, and all of them could be taken by connections.
#[test]
fn a_crowd_leaves_files_for_the_rest() {
    a_crowd("-n 256", one_of_many);
}

/// Whoever is slow is told nothing and loses the connection, wherever he is slow.
#[test]
fn slow_clients_are_left() {
    in_namespace(|| async {
        let api = cluster().await;
        api.put(balanced());
        let proxy = at_work(USUAL, &api).await;
        wait_for("the health check", &proxy, || TcpStream::connect(CHECK).is_ok()).await;
        let mut clients = Vec::new();
        for address in [HEALTH, METRICS, CHECK] {
            // Idle from the start, in the middle of headers, after an answer, in the middle of a
            // body, and deaf.
            let many = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3000);
            let requests = [
                "",
                "GET /healthz HTTP/1.1\r\nHost:",
                "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
                "POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nx",
                &many,
            ];
            for (n, request) in requests.into_iter().enumerate() {
                let socket = TcpSocket::new_v4().unwrap();
                // What the deaf one is told soon fills all buffers.
                socket.set_recv_buffer_size(4096).unwrap();
                let stream = socket.connect(address.parse().unwrap()).await.unwrap();
                let _ = stream.try_write(request.as_bytes());
                clients.push((format!("{address} {n}"), stream, request.len()));
            }
        }
        let begun = Instant::now();
        // Those who say a little now and then are as slow.
        while begun.elapsed() < PATIENCE {
            for (_, stream, _) in clients.iter().filter(|(_, _, len)| *len > 0 && *len < 30) {
                let _ = stream.try_write(b"x");
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        // Whose connection is closed hears of it when he writes to it.
        let is_open = |stream: &tokio::net::TcpStream| match stream.try_write(b"x") {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        };
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let open = clients.iter().filter(|(_, stream, _)| is_open(stream));
            let open: Vec<&str> = open.map(|(name, ..)| name.as_str()).collect();
            if open.is_empty() {
                break;
            }
            assert!(Instant::now() < end, "not closed: {open:?}\n{}", proxy.log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
}

/// First line of the answer.
fn answer(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let _ = stream.write_all(request.as_bytes());
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
}

#[test]
fn large_heads_are_refused() {
    in_namespace(|| async {
        let api = cluster().await;
        let _proxy = at_work(USUAL, &api).await;
        let request =
            |headers: &str| format!("GET /livez HTTP/1.1\r\nHost: a\r\n{headers}Connection: close\r\n\r\n");
        let usual = format!("Authorization: Bearer {}\r\n", "x".repeat(4000));
        assert!(answer(HEALTH, &request(&usual)).contains(" 200 "));
        let large = format!("X: {}\r\n", "x".repeat(20_000));
        assert!(answer(HEALTH, &request(&large)).contains(" 431 "), "{}", answer(HEALTH, &request(&large)));
        let many: String = (0..120).map(|n| format!("X-{n}: x\r\n")).collect();
        assert!(answer(HEALTH, &request(&many)).contains(" 431 "));
    });
}

#[test]
fn the_limit_of_open_files_is_raised() {
    in_namespace(|| async {
        let api = cluster().await;
        let proxy = at_work("-Sn 512", &api).await;
        let (soft, hard) = proxy.limits_of_files();
        assert_eq!(soft, hard);
    });
}
