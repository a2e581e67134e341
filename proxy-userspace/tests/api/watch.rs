//! The watch when all goes well.

use std::time::{Duration, Instant};

use crate::fake_api::{FakeApi, ObjectWriter, Options};
use crate::observer::{Observer, quick, service};

async fn start(options: Options) -> (FakeApi, Observer) {
    let api = FakeApi::start(options).await;
    api.put(service("web", 80));
    let observer = Observer::start(api.url(), quick()).await;
    observer.until_services(&[("web", 80)]).await;
    (api, observer)
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_listed_and_watched_with_the_selectors_of_the_reference() {
    let (api, observer) = start(Options::default()).await;
    api.put(service("web", 81));
    api.put(service("new", 90));
    observer.until_services(&[("web", 81), ("new", 90)]).await;
    api.delete("Service", "default", "new");
    let told = observer.until_services(&[("web", 81)]).await;
    assert_eq!((told.lists, told.withdrawn), (1, vec!["new".to_owned()]));

    let requests = api.requests();
    let of = |path: &str| requests.iter().find(|r| r.contains(path)).cloned().unwrap();
    let services = of("/api/v1/services?");
    assert!(services.contains("labelSelector=%21service.kubernetes.io%2Fservice-proxy-name"), "{services}");
    assert!(services.contains("fieldSelector=spec.clusterIP%21%3DNone"), "{services}");
    let slices = of("/apis/discovery.k8s.io/v1/endpointslices?");
    assert!(slices.contains("labelSelector=%21service.kubernetes.io%2Fheadless"), "{slices}");
    assert!(of("/api/v1/nodes?").contains("fieldSelector=metadata.name%3Dnode-a"), "{requests:?}");
    of("/apis/networking.k8s.io/v1/servicecidrs?");
    let page = observer.metrics.page();
    assert!(
        page.contains("rest_client_requests_total{code=\"200\",method=\"GET\",host=\"127.0.0.1:"),
        "{page}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_cannot_be_decoded_keeps_the_last_good_state() {
    let (api, observer) = start(Options::default()).await;
    api.put(service("web", "many"));
    observer.until("kept", |told| told.kept == ["web"]).await;
    api.put(service("next", 90));
    let told = observer.until_services(&[("web", 80), ("next", 90)]).await;
    // A new list that holds the broken object withdraws nothing.
    api.compact();
    assert_eq!((told.lists, told.withdrawn.len()), (1, 0));
    assert!(observer.metrics.page().contains("sluice_object_problems_total 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_streamed_lists_is_listed_the_old_way() {
    let (api, observer) = start(Options { streaming: false, ..Options::default() }).await;
    assert_eq!(observer.failures("rejected"), 1);
    let lists =
        |path: &str| api.requests().iter().filter(|r| r.contains(path) && !r.contains("watch")).count();
    assert_eq!(lists("/services"), 1);
    api.put(service("web", 81));
    let told = observer.until_services(&[("web", 81)]).await;
    assert!(told.withdrawn.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn bookmarks_alone_keep_a_watch_alive() {
    let (api, observer) = start(Options::default()).await;
    let watches = || api.requests().iter().filter(|r| r.contains("/services")).count();
    let before = watches();
    tokio::time::sleep(quick().watch_idle * 3).await;
    assert_eq!(watches(), before);
    assert_eq!(observer.failures("timeout"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_objects_are_listed_either_way() {
    for streaming in [true, false] {
        let api = FakeApi::start(Options { streaming, ..Options::default() }).await;
        for i in 0..20_000_u32 {
            api.put(service(&format!("s{i}"), 1 + i % 60_000));
        }
        let begun = Instant::now();
        let observer = Observer::start(api.url(), quick()).await;
        let told = observer.until("listed", |told| told.lists > 0).await;
        assert_eq!((told.services.len(), told.services["s19999"]), (20_000, 20_000));
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
        assert_eq!(observer.failures("timeout"), 0);
    }
}
