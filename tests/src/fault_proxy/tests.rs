use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use super::*;

/// Serves one body at any path, and says which token was sent; `/watch=` gets lines without end.
struct Upstream {
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

async fn serve_one(stream: tokio::net::TcpStream) {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Full, StreamBody};
    use hyper::body::Frame;
    use hyper::{Request, Response};
    let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
        let token = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        let token = token.unwrap_or_default().to_owned();
        let body = if request.uri().to_string().contains("watch=") {
            let lines = futures::stream::unfold(0, |n: u32| async move {
                tokio::time::sleep(Duration::from_millis(if n < 3 { 0 } else { 100 })).await;
                let kind = if n.is_multiple_of(2) { "ADDED" } else { "BOOKMARK" };
                let line = format!("{{\"type\":\"{kind}\",\"object\":{n}}}\n");
                Some((Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(line))), n + 1))
            });
            StreamBody::new(lines).boxed_unsync()
        } else {
            Full::new(Bytes::from(format!("token {token}; {}", "x".repeat(10_000)))).boxed_unsync()
        };
        Ok::<_, std::convert::Infallible>(Response::new(body))
    });
    let io = hyper_util::rt::TokioIo::new(stream);
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
}

fn upstream() -> Upstream {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (listener, address) = runtime.block_on(server::listen_anywhere()).unwrap();
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_one(stream));
        }
    });
    Upstream { address, _runtime: runtime }
}

fn start() -> (Upstream, FaultProxy) {
    let upstream = upstream();
    let listen = "127.0.0.1:0".parse().unwrap();
    let options = Options { upstream: format!("http://{}", upstream.address), listen, netns: None };
    let proxy = FaultProxy::start(options).unwrap();
    (upstream, proxy)
}

/// What comes until the end, an error or `wait` of silence.
fn get(proxy: &FaultProxy, path: &str, wait: Duration) -> (String, Option<std::io::ErrorKind>) {
    let mut stream = match TcpStream::connect(proxy.address) {
        Ok(stream) => stream,
        Err(error) => return (String::new(), Some(error.kind())),
    };
    stream.set_read_timeout(Some(wait)).unwrap();
    let head =
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer me\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (String::from_utf8_lossy(&text).into(), None),
            Ok(count) => text.extend_from_slice(&buffer[..count]),
            Err(error) => return (String::from_utf8_lossy(&text).into(), Some(error.kind())),
        }
    }
}

const WAIT: Duration = Duration::from_millis(400);

#[test]
fn without_faults_everything_passes_with_the_token() {
    let (_upstream, proxy) = start();
    let (text, _) = get(&proxy, "/x", WAIT);
    assert!(text.contains("200 OK") && text.contains("token Bearer me;"), "{text}");
    assert!(text.len() > 10_000);
}

#[test]
fn answers_break_off_after_some_bytes_and_only_where_asked() {
    let (_upstream, proxy) = start();
    proxy.inject("/broken", Fault::ResetAfter(100));
    let (text, _) = get(&proxy, "/broken", WAIT);
    let body = text.split("\r\n\r\n").nth(1).unwrap_or_default();
    assert!(body.len() <= 100, "{}", body.len());
    assert!(get(&proxy, "/whole", WAIT).0.len() > 10_000);
}

#[test]
fn slow_answers_take_their_time_and_come_whole() {
    let (_upstream, proxy) = start();
    proxy.inject("", Fault::Slow { bytes: 2000, pause: Duration::from_millis(60) });
    let begun = Instant::now();
    assert!(get(&proxy, "/x", WAIT).0.len() > 10_000);
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
}

#[test]
fn a_frozen_proxy_accepts_and_says_nothing_until_healed() {
    let (_upstream, proxy) = start();
    proxy.inject("", Fault::Freeze);
    let (text, error) = get(&proxy, "/x", WAIT);
    assert_eq!((text.as_str(), error), ("", Some(std::io::ErrorKind::WouldBlock)));
    proxy.heal();
    assert!(get(&proxy, "/x", WAIT).0.contains("200 OK"));
}

#[test]
fn a_status_is_answered_as_often_as_asked() {
    let (_upstream, proxy) = start();
    proxy.inject("", Fault::Status { code: 429, retry_after: Some(7), requests: 2 });
    for _ in 0..2 {
        let text = get(&proxy, "/x", WAIT).0;
        assert!(text.starts_with("HTTP/1.1 429") && text.contains("retry-after: 7"), "{text}");
    }
    assert!(get(&proxy, "/x", WAIT).0.contains("200 OK"));
}

#[test]
fn events_are_cut_corrupted_or_swallowed() {
    let (_upstream, proxy) = start();
    let half = Duration::from_millis(50);
    proxy.inject("", Fault::Truncate { after: 1, events: 1 });
    let text = get(&proxy, "/?watch=1", half).0;
    assert!(text.contains("\"object\":0}\n") && !text.contains("\"object\":2}"), "{text}");
    proxy.heal();
    proxy.inject("", Fault::Corrupt { after: 0, events: 1 });
    let text = get(&proxy, "/?watch=1", half).0;
    assert!(!text.contains("\"object\":0}") && text.contains("\"object\":2}"), "{text}");
    proxy.heal();
    proxy.inject("", Fault::OnlyBookmarks);
    let text = get(&proxy, "/?watch=1", half).0;
    assert!(!text.contains("ADDED") && text.contains("BOOKMARK"), "{text}");
}

#[test]
fn refused_and_reset_connections_come_back_when_healed() {
    let (_upstream, proxy) = start();
    let waiting = std::thread::scope(|scope| {
        let reader = scope.spawn(|| get(&proxy, "/?watch=1", Duration::from_secs(5)));
        std::thread::sleep(Duration::from_millis(150));
        proxy.inject("", Fault::Refuse);
        reader.join().unwrap()
    });
    assert_eq!(waiting.1, Some(std::io::ErrorKind::ConnectionReset));
    assert_eq!(get(&proxy, "/x", WAIT).1, Some(std::io::ErrorKind::ConnectionRefused));
    proxy.heal();
    std::thread::sleep(Duration::from_millis(100));
    assert!(get(&proxy, "/x", WAIT).0.contains("200 OK"));
}
