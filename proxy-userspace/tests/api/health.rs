//! What the daemon says of its health when something is wrong around it.

use std::io::Write;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::crowd::{balanced, wait_for};
use crate::daemons::{Proxy, cluster, in_namespace, page};
use crate::fake_api::ObjectWriter;

/// Somebody who has made the daemon's table his own, so that the kernel refuses all that the daemon
/// wants of it. It goes with him.
struct Owner(Child);

impl Owner {
    fn of_the_table() -> Owner {
        let mut nft =
            Command::new("nft").arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let script = "delete table inet sluice; create table inet sluice { flags owner; }\n";
        nft.stdin.as_mut().unwrap().write_all(script.as_bytes()).unwrap();
        Owner(nft)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn says(path: &str, healthy: bool) -> bool {
    let wanted = format!("\"healthy\":{healthy}");
    page("127.0.0.1:10256", path).await.is_some_and(|body| body.contains(&wanted))
}

async fn comes_to_say(path: &str, healthy: bool, proxy: &Proxy) {
    let end = Instant::now() + Duration::from_secs(20);
    while !says(path, healthy).await {
        assert!(Instant::now() < end, "{path} does not say {healthy}\n{}", proxy.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The kernel would refuse the same to the next process.
#[test]
fn a_kernel_that_refuses_changes_is_no_reason_to_start_again() {
    in_namespace(|| async {
        let api = cluster().await;
        let proxy = Proxy::sluice(&["--iptables-sync-period=1s"], &api);
        wait_for("the first pass", &proxy, || proxy.log().contains("ruleset in place")).await;
        comes_to_say("/healthz", true, &proxy).await;
        let owner = Owner::of_the_table();
        comes_to_say("/healthz", false, &proxy).await;
        assert!(proxy.log().contains("the kernel refused a change"), "{}", proxy.log());
        assert!(says("/livez", true).await, "{}", proxy.log());
        drop(owner);
        comes_to_say("/healthz", true, &proxy).await;
    });
}

/// Another process has the port of a health check for a while.
#[test]
fn an_occupied_health_check_port_is_reported_once_and_opened_when_it_is_free() {
    in_namespace(|| async {
        let api = cluster().await;
        let taken = TcpListener::bind("0.0.0.0:31000").unwrap();
        api.put(balanced());
        let proxy = Proxy::sluice(&[], &api);
        let times = |text: &str| proxy.log().matches(text).count();
        wait_for("the warning", &proxy, || times("cannot open the healthCheckNodePort") > 0).await;
        let told = || {
            let reason = |event: &serde_json::Value| event["reason"] == "FailedToStartServiceHealthcheck";
            api.events().iter().filter(|event| reason(event)).count()
        };
        // Whatever else changes meanwhile.
        for round in 0..80 {
            api.put(crate::daemons::slice(&format!("10.0.0.{}", 1 + round)));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!((times("cannot open the healthCheckNodePort"), told()), (1, 1), "{}", proxy.log());
        drop(taken);
        wait_for("the port", &proxy, || times("health check open") == 1).await;
        assert_eq!(times("cannot open the healthCheckNodePort"), 1);
    });
}
