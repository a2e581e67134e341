//! The ways to the API server: proxies, and credentials as kubeconfigs have them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::json;
use sluice::watch::kubernetes::{Access, Origin};
use sluice_tests::fault_proxy::{FaultProxy, Options as ProxyOptions};

use crate::crowd::wait_for;
use crate::daemons::{Proxy, cluster, in_namespace};
use crate::fake_api::{FakeApi, ObjectWriter, Options};
use crate::observer::{Observer, quick, scratch_directory, service};

/// A server that can be reached only through a proxy.
const FAR: &str = "192.0.2.99:6443";

/// A proxy for CONNECT or SOCKS5 that leads everything to one address and writes down what it was
/// asked.
struct Detour {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Detour {
    fn start(to: &str) -> Detour {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (to, heard) = (to.split_once("://").unwrap().1.to_owned(), asked.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (to, heard) = (to.clone(), heard.clone());
                std::thread::spawn(move || lead(client, &to, &heard));
            }
        });
        Detour { address, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn lead(mut client: TcpStream, to: &str, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut byte = [0];
    client.peek(&mut byte)?;
    if byte == [5] {
        // Version, methods; then version, connect, reserved, and an IPv4 address with its port.
        let (mut greeting, mut request) = ([0; 3], [0; 10]);
        client.read_exact(&mut greeting)?;
        client.write_all(&[5, 0])?;
        client.read_exact(&mut request)?;
        let [_, _, _, kind, a, b, c, d, high, low] = request;
        let port = u16::from_be_bytes([high, low]);
        asked.lock().unwrap().push(format!("socks {kind} {a}.{b}.{c}.{d}:{port}"));
        client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
    } else {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            client.read_exact(&mut byte)?;
            head.extend(byte);
        }
        asked.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    }
    let mut server = TcpStream::connect(to)?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let _ = std::io::copy(&mut server, &mut client);
    client.shutdown(Shutdown::Both)
}

fn kubeconfig(cluster: &serde_json::Value) -> Origin {
    let directory = scratch_directory();
    let path = directory.join("kubeconfig");
    std::fs::write(directory.join("token"), "secret\n").unwrap();
    let config = json!({
        "current-context": "x",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"tokenFile": "token", "token": "old"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    });
    std::fs::write(&path, config.to_string()).unwrap();
    Origin { kubeconfig: Some(path), master: None }
}

async fn observe(origin: Origin) -> Observer {
    let directory = origin.kubeconfig.as_deref().and_then(Path::parent).unwrap().to_owned();
    Observer::follow(Access::new(origin).await.unwrap(), directory, quick())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxies_of_a_kubeconfig_are_used_with_the_trimmed_token_of_its_file() {
    for scheme in ["http://ann:p%40w@", "socks5://"] {
        let api = FakeApi::start(Options::default()).await;
        api.set_tokens(&["secret"]);
        api.put(service("web", 80));
        let listen = "127.0.0.1:0".parse().unwrap();
        let options = ProxyOptions { upstream: api.url().to_owned(), listen, netns: None };
        let tls = FaultProxy::start(options).unwrap();
        let detour = Detour::start(&tls.tls_url());
        let proxy = format!("{scheme}{}", detour.address);
        let origin = kubeconfig(&json!({
            "server": format!("https://{FAR}"), "proxy-url": proxy, "insecure-skip-tls-verify": true,
        }));
        let observer = observe(origin).await;
        observer.until_services(&[("web", 80)]).await;
        assert_eq!(observer.failures("unauthorized"), 0);
        let asked = detour.asked();
        if scheme.starts_with("socks5") {
            assert_eq!(asked[0], format!("socks 1 {FAR}"));
        } else {
            assert!(asked[0].starts_with(&format!("CONNECT {FAR} HTTP/1.1\r\n")), "{asked:?}");
            // ann:p@w
            assert!(asked[0].contains("Basic YW5uOnBAdw=="), "{asked:?}");
        }
    }
}

#[test]
fn the_environment_leads_to_the_server_as_it_does_for_kube_proxy() {
    in_namespace(|| async {
        let api = cluster().await;
        let detour = Detour::start(api.url());
        let proxy = format!("http://{}", detour.address);
        let server = format!("http://{FAR}");
        let environment = [("HTTP_PROXY", proxy.as_str()), ("HTTPS_PROXY", "http://127.0.0.1:9")];
        let sluice = Proxy::sluice_at(&server, &environment);
        let reached = || async {
            for _ in 0..500 {
                if api.requests().iter().any(|request| request.contains("/services?")) {
                    return true;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            false
        };
        assert!(reached().await, "{}", sluice.log());
        assert!(sluice.log().contains("through a proxy"), "{}", sluice.log());
        drop(sluice);
        // What NO_PROXY names, and this machine, is reached directly.
        let before = detour.asked().len();
        let sluice = Proxy::sluice_at(api.url(), &[("HTTP_PROXY", proxy.as_str())]);
        let known = api.requests().len();
        for _ in 0..500 {
            if api.requests().len() > known {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(api.requests().len() > known, "{}", sluice.log());
        assert_eq!(detour.asked().len(), before);
    });
}

#[test]
fn a_token_for_a_server_that_nobody_checks_is_warned_about() {
    in_namespace(|| async {
        let warning = "insecure-skip-tls-verify";
        let sluice = Proxy::sluice_at("https://127.0.0.1:9", &[]);
        wait_for("the warning", &sluice, || sluice.log().contains(warning)).await;
        let log = sluice.log();
        let line = log.lines().find(|line| line.contains(warning)).unwrap();
        assert!(line.contains("WARN") && line.contains("credentials") && !log.contains("secret"), "{log}");
        drop(sluice);
        // Of a server without TLS something else is said.
        let api = cluster().await;
        let sluice = Proxy::sluice_at(api.url(), &[]);
        wait_for("the first pass", &sluice, || sluice.log().contains("ruleset in place")).await;
        assert!(!sluice.log().contains(warning), "{}", sluice.log());
    });
}

#[test]
fn a_watch_that_fails_names_the_server_and_what_answers_there() {
    in_namespace(|| async {
        let api = cluster().await;
        let nobody = "https://127.0.0.1:9".to_owned();
        let plain = api.url().replace("http://", "https://");
        for (server, words) in [(nobody, "connect"), (plain, "does not speak TLS")] {
            let sluice = Proxy::sluice_at(&server, &[]);
            wait_for("a failure", &sluice, || sluice.log().contains("watch failed")).await;
            let log = sluice.log();
            let line = log.lines().find(|line| line.contains("watch failed")).unwrap();
            assert!(line.contains(&format!("server=\"{server}\"")) && line.contains(words), "{line}");
            assert!(!line.contains("hidden"), "{line}");
        }
    });
}

#[tokio::test]
async fn a_kubeconfig_that_is_refused_is_named_with_its_field() {
    let origin = kubeconfig(&json!({"server": "https://h", "proxy-url": "ftp://u:secret@p"}));
    let path = origin.kubeconfig.clone().unwrap();
    let error = Access::new(origin).await.err().unwrap().to_string();
    assert_eq!(
        error,
        format!(
            "kubeconfig {}: clusters[0].cluster.proxy-url: has a scheme that is not supported; use http, https or \
             socks5",
            path.display()
        )
    );
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
}
