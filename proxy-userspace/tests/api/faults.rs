//! The watch under fire: whatever happens between it and the API server, it ends in the right
//! state, withdraws nothing meanwhile, and counts what happened.

use std::time::{Duration, Instant};

use sluice::watch::kubernetes::Timing;
use sluice_tests::fault_proxy::{Fault, FaultProxy, Options as ProxyOptions};

use crate::fake_api::{FakeApi, ObjectWriter, Options};
use crate::observer::{Observer, Told, quick, service, write_kubeconfig};

/// A cluster with a Service `web`, a fault proxy before it, and a watch through the proxy.
struct Scene<C> {
    cluster: C,
    proxy: FaultProxy,
    observer: Observer,
}

const SERVICES: &str = "/api/v1/services";

fn proxy_for(url: &str) -> FaultProxy {
    let listen = "127.0.0.1:0".parse().unwrap();
    FaultProxy::start(ProxyOptions { upstream: url.to_owned(), listen, netns: None }).unwrap()
}

async fn scene() -> Scene<FakeApi> {
    let cluster = FakeApi::start(Options::default()).await;
    let url = cluster.url().to_owned();
    scene_before(cluster, &url).await
}

/// The same before any cluster that can be written to.
async fn scene_before<C: ObjectWriter>(cluster: C, url: &str) -> Scene<C> {
    let proxy = proxy_for(url);
    cluster.put(service("web", 80));
    let observer = Observer::start(&proxy.url(), quick()).await;
    observer.until_services(&[("web", 80)]).await;
    Scene { cluster, proxy, observer }
}

impl<C: ObjectWriter> Scene<C> {
    /// What was changed while the fault lasted arrives, later changes too, and nothing was
    /// withdrawn.
    async fn ends_well(&self) -> Told {
        self.cluster.put(service("web", 81));
        self.cluster.put(service("during", 90));
        self.proxy.heal();
        self.observer.until_services(&[("web", 81), ("during", 90)]).await;
        self.cluster.put(service("after", 91));
        let told = self.observer.until_services(&[("web", 81), ("during", 90), ("after", 91)]).await;
        assert_eq!(told.withdrawn, [""; 0]);
        told
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_is_taken_up_where_it_broke() {
    let scene = scene().await;
    scene.proxy.reset_connections();
    let told = scene.ends_well().await;
    assert!(scene.observer.failures("reset") > 0);
    assert_eq!(told.lists, 1, "a resumed watch needs no list");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_break_off_again_and_again() {
    let scene = scene().await;
    scene.proxy.inject(SERVICES, Fault::ResetAfter(150));
    scene.proxy.reset_connections();
    scene.cluster.put(service("during", 89));
    scene.observer.until("reset three times", |_| scene.observer.failures("reset") >= 3).await;
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bytes_are_waited_for() {
    let scene = scene().await;
    scene.proxy.inject("", Fault::Slow { bytes: 40, pause: Duration::from_millis(30) });
    scene.proxy.reset_connections();
    let fresh = Observer::start(&scene.proxy.url(), quick()).await;
    fresh.until_services(&[("web", 80)]).await;
    assert_eq!(fresh.failures("timeout"), 0);
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_falls_silent_is_given_up() {
    let scene = scene().await;
    scene.proxy.inject("", Fault::Freeze);
    scene.observer.until_failed("timeout").await;
    let told = scene.ends_well().await;
    assert_eq!(told.lists, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_falls_silent_in_the_middle_is_given_up() {
    let scene = scene().await;
    for i in 0..2000 {
        scene.cluster.put(service(&format!("s{i}"), 80));
    }
    scene.proxy.inject(SERVICES, Fault::Slow { bytes: 20_000, pause: Duration::from_millis(50) });
    let fresh = Observer::start(&scene.proxy.url(), quick()).await;
    fresh.until("half listed", |told| told.services.len() > 100).await;
    assert_eq!(fresh.told().lists, 0);
    scene.proxy.inject(SERVICES, Fault::Freeze);
    fresh.until_failed("timeout").await;
    scene.proxy.heal();
    let told = fresh.until("listed", |told| told.lists > 0).await;
    assert_eq!((told.services.len(), told.withdrawn.len()), (2001, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_version_leads_to_a_new_list() {
    let scene = scene().await;
    scene.cluster.put(service("gone", 70));
    scene.observer.until_services(&[("web", 80), ("gone", 70)]).await;
    scene.proxy.inject("", Fault::Refuse);
    scene.observer.until_failed("connect").await;
    scene.cluster.delete("Service", "default", "gone");
    scene.cluster.put(service("new", 71));
    scene.cluster.compact();
    assert_eq!(scene.observer.told().withdrawn, [""; 0]);
    scene.proxy.heal();
    let told = scene.observer.until_services(&[("web", 80), ("new", 71)]).await;
    // Only what the complete new list no longer holds.
    assert_eq!((told.withdrawn, told.lists), (vec!["gone".to_owned()], 2));
    assert!(scene.observer.failures("gone") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn first_lists_come_at_once_and_later_ones_spread() {
    let cluster = FakeApi::start(Options::default()).await;
    let proxy = proxy_for(cluster.url());
    cluster.put(service("web", 80));
    let timing = Timing { relist_spread: Duration::from_secs(10), ..quick() };
    let begun = Instant::now();
    let mut nodes = Vec::new();
    for _ in 0..8 {
        nodes.push(Observer::start(&proxy.url(), timing.clone()).await);
    }
    for node in &nodes {
        node.until_services(&[("web", 80)]).await;
    }
    // All eight within that happen once in sixty times, if they were spread.
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());

    proxy.inject(SERVICES, Fault::Status { code: 410, retry_after: None, requests: nodes.len() });
    proxy.reset_connections();
    let begun = Instant::now();
    let listed = nodes.iter().map(|node| async {
        node.until("listed again", |told| told.lists == 2).await;
        begun.elapsed()
    });
    let times = futures::future::join_all(listed).await;
    let (first, last) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    // All eight within a tenth of the spread happen once in a million times.
    assert!(*last - *first > Duration::from_millis(300), "{times:?}");
    assert!(nodes.iter().all(|node| node.told().withdrawn.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_version_in_the_status_line_leads_to_a_new_list() {
    let scene = scene().await;
    scene.proxy.inject(SERVICES, Fault::Status { code: 410, retry_after: None, requests: 1 });
    scene.proxy.reset_connections();
    scene.observer.until_failed("gone").await;
    let told = scene.ends_well().await;
    assert_eq!(told.lists, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttling_server_is_left_alone_as_long_as_it_asks() {
    let scene = scene().await;
    let asked = || scene.cluster.requests().iter().filter(|request| request.contains(SERVICES)).count();
    let before = asked();
    scene.proxy.inject(SERVICES, Fault::Status { code: 429, retry_after: Some(2), requests: 1 });
    let begun = Instant::now();
    scene.proxy.reset_connections();
    scene.observer.until_failed("throttled").await;
    scene.ends_well().await;
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!((scene.observer.failures("throttled"), asked()), (1, before + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_watch_leads_to_a_new_list() {
    let scene = scene().await;
    scene.proxy.inject(SERVICES, Fault::Status { code: 400, retry_after: None, requests: 1 });
    scene.proxy.reset_connections();
    scene.observer.until_failed("rejected").await;
    assert_eq!(scene.ends_well().await.lists, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_server_is_tried_again() {
    let scene = scene().await;
    scene.proxy.inject("", Fault::Status { code: 500, retry_after: None, requests: usize::MAX });
    scene.proxy.reset_connections();
    scene.observer.until("failed often", |_| scene.observer.failures("server_error") > 2).await;
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_cut_short_is_asked_for_again() {
    let scene = scene().await;
    scene.proxy.inject(SERVICES, Fault::Truncate { after: 1, events: 1 });
    scene.cluster.put(service("first", 70));
    scene.cluster.put(service("second", 71));
    scene.observer.until_services(&[("web", 80), ("first", 70), ("second", 71)]).await;
    assert_eq!((scene.observer.failures("malformed"), scene.observer.told().lists), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_stays_corrupt_is_got_around_by_a_list() {
    let scene = scene().await;
    scene.proxy.inject(SERVICES, Fault::Corrupt { after: 0, events: 2 });
    scene.cluster.put(service("first", 70));
    let told = scene.observer.until_services(&[("web", 80), ("first", 70)]).await;
    assert_eq!((scene.observer.failures("malformed"), told.lists), (2, 2));
    assert_eq!(told.withdrawn, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bookmarks_alone_are_no_failure() {
    let scene = scene().await;
    scene.proxy.inject(SERVICES, Fault::OnlyBookmarks);
    tokio::time::sleep(quick().watch_idle * 2).await;
    assert_eq!(scene.observer.failures("timeout") + scene.observer.failures("reset"), 0);
    // What a bookmark has covered does not come again: only later changes can arrive.
    scene.proxy.heal();
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_withdraws_nothing_and_floods_no_one() {
    let scene = scene().await;
    scene.proxy.inject("", Fault::Refuse);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let tries = scene.observer.failures("connect");
    // At most one every 150 ms, half of the test's longest pause, once the pauses have grown.
    assert!((5..60).contains(&tries), "{tries}");
    assert_eq!(scene.observer.told().services.len(), 1);
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_at_first_is_waited_for() {
    let cluster = FakeApi::start(Options::default()).await;
    cluster.put(service("web", 80));
    let proxy = proxy_for(cluster.url());
    proxy.inject("", Fault::Refuse);
    let observer = Observer::start(&proxy.url(), quick()).await;
    observer.until_failed("connect").await;
    assert_eq!(observer.told().lists, 0);
    proxy.heal();
    observer.until_services(&[("web", 80)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_token_is_read_again_when_the_old_one_is_refused() {
    let cluster = FakeApi::start(Options::default()).await;
    cluster.set_tokens(&["secret"]);
    let proxy = proxy_for(cluster.url());
    cluster.put(service("web", 80));
    let observer = Observer::start(&proxy.tls_url(), quick()).await;
    observer.until_services(&[("web", 80)]).await;
    let scene = Scene { cluster, proxy, observer };
    scene.cluster.set_tokens(&["new"]);
    scene.proxy.reset_connections();
    scene.observer.until_failed("unauthorized").await;
    write_kubeconfig(&scene.observer.directory, &scene.proxy.tls_url(), "new");
    scene.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_is_sent_to_a_server_without_tls() {
    let cluster = FakeApi::start(Options::default()).await;
    cluster.set_tokens(&["secret"]);
    let observer = Observer::start(cluster.url(), quick()).await;
    observer.until_failed("unauthorized").await;
    assert_eq!(observer.told().lists, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_handshake_is_no_lost_connection() {
    let cluster = FakeApi::start(Options::default()).await;
    let observer = Observer::start(&cluster.url().replace("http:", "https:"), quick()).await;
    observer.until_failed("tls").await;
    assert_eq!(observer.failures("connect") + observer.failures("reset"), 0);
    // What makes the next one succeed, a new CA or here a new address, is on disk.
    cluster.put(service("web", 80));
    write_kubeconfig(&observer.directory, cluster.url(), "secret");
    observer.until_services(&[("web", 80)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forbidden_answers_are_counted_apart_from_other_failures() {
    let scene = scene().await;
    scene.proxy.inject(SERVICES, Fault::Status { code: 403, retry_after: None, requests: 3 });
    scene.proxy.reset_connections();
    scene.observer.until_failed("forbidden").await;
    scene.ends_well().await;
}
