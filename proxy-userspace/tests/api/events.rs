//! Events in the API.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::Value;
use sluice::observe::metrics::Metrics;
use sluice::observe::recorder::{Event, Recorder, Reporter};
use sluice::service::affinity::{Alarm, Told};
use sluice::watch::kubernetes::{Access, Origin};
use sluice_core::model::ObjectName;
use sluice_sys::bpf::Usage;

use crate::daemons::{Proxy, cluster, in_namespace, page};
use crate::fake_api::{FakeApi, ObjectWriter, Options};
use crate::observer::{scratch_directory, service, write_kubeconfig};

async fn recorder(url: &str, metrics: &Metrics) -> Recorder {
    let directory = scratch_directory();
    let kubeconfig = Some(write_kubeconfig(&directory, url, "secret"));
    let access = Access::new(Origin { kubeconfig, master: None }).await.unwrap();
    std::fs::remove_dir_all(directory).unwrap();
    let reporter = Reporter { node_name: "node-a".into(), host_name: "host-a".into() };
    Recorder::new(access, reporter, metrics.clone())
}

fn reasons(api: &FakeApi) -> Vec<String> {
    api.events().iter().map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_posted_in_order_and_the_same_one_once() {
    let api = FakeApi::start(Options::default()).await;
    let metrics = Metrics::default();
    let recorder = recorder(api.url(), &metrics).await;
    recorder.record(Event::starting());
    for port in [1, 1, 1, 2] {
        recorder.record(Event::no_service_health(ObjectName::new("shop", "web"), format!("port {port}")));
    }
    recorder.flush(Duration::from_secs(10)).await;
    let failed = "FailedToStartServiceHealthcheck";
    assert_eq!(reasons(&api), ["Starting", failed, failed]);
    assert_eq!(api.events()[1]["regarding"]["name"], "web");
    let page = metrics.page();
    assert!(page.contains("sluice_events_total{result=\"sent\"} 3"), "{page}");
    assert!(page.contains("sluice_events_total{result=\"dropped\"} 2"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nearly_full_affinity_table_is_one_event_of_the_node() {
    let api = FakeApi::start(Options::default()).await;
    let metrics = Metrics::default();
    let told = Told { recorder: recorder(api.url(), &metrics).await, metrics };
    let mut alarm = Alarm::default();
    for entries in [10, 80, 81, 99, 75, 85] {
        told.counted(&mut alarm, "affinity6", Usage { entries, capacity: 100 }, "new ones are not");
    }
    told.recorder.flush(Duration::from_secs(10)).await;
    assert_eq!(reasons(&api), ["AffinityTableNearlyFull"]);
    let event: Value = api.events()[0].clone();
    assert_eq!((&event["regarding"]["kind"], &event["type"]), (&"Node".into(), &"Warning".into()));
    let note = event["note"].as_str().unwrap();
    assert!(
        note.contains("81 clients") && note.contains("of at most 100") && note.contains("affinity6"),
        "{note}"
    );
}

#[test]
fn a_daemons_page_tells_how_many_clients_it_remembers() {
    in_namespace(|| async {
        let api = cluster().await;
        let _sluice = Proxy::sluice(&[], &api);
        let samples = ["entries{table=\"affinity4\"} 0", "capacity{table=\"affinity6\"} 1048576"];
        for _ in 0..500 {
            let page = page("127.0.0.1:10249", "/metrics").await.unwrap_or_default();
            if samples.iter().all(|sample| page.contains(&format!("sluice_affinity_{sample}"))) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not there in ten seconds");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_is_away_holds_nobody_up() {
    let metrics = Metrics::default();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let recorder = recorder(&format!("http://127.0.0.1:{port}"), &metrics).await;
    for number in 0..1000 {
        recorder.record(Event::no_metrics_server(format!("{number}")));
    }
    recorder.flush(Duration::from_secs(10)).await;
    let page = metrics.page();
    assert!(page.contains("sluice_events_total{result=\"failed\"}"), "{page}");
    assert!(page.contains("sluice_events_total{result=\"dropped\"}"), "{page}");
    // Without an API server events go nowhere.
    Recorder::default().record(Event::starting());
    Recorder::default().flush(Duration::from_secs(10)).await;
}

#[test]
fn a_starting_daemon_says_so_and_a_port_that_is_taken_is_the_last_it_says() {
    in_namespace(|| async {
        let api = cluster().await;
        let _taken = TcpListener::bind("127.0.0.1:10249").unwrap();
        let directory = scratch_directory();
        let config = directory.join("config");
        let kubeconfig = write_kubeconfig(&directory, api.url(), "secret");
        let text = serde_json::json!({"apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration", "mode": "nftables", "bindAddressHardFail": true,
            "clientConnection": {"kubeconfig": kubeconfig}});
        std::fs::write(&config, text.to_string()).unwrap();
        let mut sluice = Proxy::sluice(&["--config", config.to_str().unwrap()], &api);
        assert_eq!(sluice.ended().await, Some(1), "{}", sluice.log());
        std::fs::remove_dir_all(directory).unwrap();
        assert_eq!(reasons(&api), ["Starting", "FailedToStartMetricServer"]);
        let event: Value = api.events()[1].clone();
        assert_eq!((&event["type"], &event["action"]), (&"Warning".into(), &"StartKubeProxy".into()));
        assert_eq!(
            event["regarding"],
            serde_json::json!({"apiVersion": "v1", "kind": "Node", "name": "node-a"})
        );
        assert!(event["note"].as_str().unwrap().contains("10249"), "{event}");
    });
}

#[test]
fn an_occupied_health_check_port_is_an_event_of_the_service() {
    in_namespace(|| async {
        let api = cluster().await;
        let _taken = TcpListener::bind("0.0.0.0:30000").unwrap();
        let mut service = service("lb", 80);
        service["spec"]["type"] = "LoadBalancer".into();
        service["spec"]["clusterIP"] = "10.96.0.11".into();
        service["spec"]["externalTrafficPolicy"] = "Local".into();
        service["spec"]["healthCheckNodePort"] = 30000.into();
        api.put(service);
        let sluice = Proxy::sluice(&[], &api);
        let told = || api.events().into_iter().find(|event| event["regarding"]["kind"] == "Service");
        for _ in 0..250 {
            if told().is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let event = told().unwrap_or_else(|| panic!("no event: {}", sluice.log()));
        assert_eq!(
            (&event["reason"], &event["action"]),
            (&"FailedToStartServiceHealthcheck".into(), &"Listen".into())
        );
        assert_eq!((&event["type"], &event["metadata"]["namespace"]), (&"Warning".into(), &"default".into()));
        assert_eq!(event["regarding"]["name"], "lb");
    });
}

#[test]
fn a_refusal_by_the_kernel_is_an_event_of_the_service() {
    use sluice_core::lang::nftables::Op;
    use sluice_core::net::Family;
    use sluice_core::nft::{SetKind, TABLE};
    in_namespace(|| async {
        // Somebody has made the set of ClusterIPs, with room for one.
        let mut spec = *SetKind::ClusterIps.set(Family::V4).spec();
        spec.size = 1;
        sluice_sys::nft::Nft::open().unwrap().commit(&TABLE, &[Op::AddTable, Op::AddSet(spec)]).unwrap();
        let api = cluster().await;
        for (name, ip) in [("one", "10.96.0.11"), ("two", "10.96.0.12"), ("three", "10.96.0.13")] {
            let mut service = service(name, 80);
            service["spec"]["clusterIP"] = ip.into();
            api.put(service);
        }
        let sluice = Proxy::sluice(&[], &api);
        let told = || {
            let events = api.events().into_iter();
            events.filter(|event| event["reason"] == "KernelRefused").collect::<Vec<Value>>()
        };
        for _ in 0..250 {
            if told().len() > 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let events = told();
        assert!(events.len() > 1, "{}", sluice.log());
        assert_eq!(events[0]["regarding"]["kind"], "Service");
        assert!(events[0]["note"].as_str().unwrap().contains("os error 23"), "{events:?}");
    });
}
