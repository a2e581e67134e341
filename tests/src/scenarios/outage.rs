//! The API server goes away, no longer knows a token, or has very much to tell.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::{Method, Request};
use serde_json::{Value, json};

use super::Scenario;
use super::stage::{Stage, met};
use super::traffic::single;
use super::watch::{PER_SECOND, RECOVERY, SLOW_RECOVERY};
use crate::cluster::{ADDRESSES, Account, PORT};
use crate::fault_proxy::Fault;
use crate::lab::plugin::PodNetwork;
use crate::objects::Key;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "api-server-restart",
        body: |stage| restart(stage, Duration::from_secs(20)),
        ..TEMPLATE
    },
    Scenario {
        name: "api-server-down-a-minute",
        long: true,
        pod_network: PodNetwork::Lab,
        body: |stage| restart(stage, Duration::from_secs(60)),
        ..TEMPLATE
    },
    Scenario { name: "a-service-does-not-cut-nodes-off-the-api", body: claimed_api, ..TEMPLATE },
    Scenario { name: "token-rotated", body: token_rotated, ..TEMPLATE },
    Scenario { name: "list-of-20000", needs: &["nft"], long: true, body: list_of_20000, ..TEMPLATE },
];

const TEMPLATE: Scenario = Scenario::under_traffic(file!());

/// The API server is killed for a time.
fn restart(stage: &mut Stage, time: Duration) -> Result<()> {
    stage.prepare_changes()?;
    stage.lab.start_proxy("node-a", &Value::Null)?;
    stage.begin_traffic(PER_SECOND)?;
    stage.step("the API server is killed")?;
    stage.cluster.kill_apiserver();
    stage.traffic_goes_on(time)?;
    stage.step("the API server is back")?;
    stage.cluster.start_apiserver()?;
    stage.change()?;
    stage.changes_are_in_force(SLOW_RECOVERY)?;
    stage.counted("connect")
}

/// A tenant writes down the API server's address and port as his Service's.
fn claimed_api(stage: &mut Stage) -> Result<()> {
    stage.prepare_changes()?;
    stage.lab.start_proxy("node-a", &Value::Null)?;
    stage.begin_traffic(PER_SECOND)?;
    stage.step("a Service without endpoints asks for the API server's address")?;
    let spec = json!({"externalIPs": ADDRESSES, "ports": [{"port": PORT}]});
    let thief = Key::new("Service", None, "thief");
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "thief"}, "spec": spec});
    stage.lab.apply_object(&thief, &service)?;
    stage.traffic_goes_on(Duration::from_secs(2))?;
    stage.step("the API server is restarted, so all connections to it are new")?;
    stage.cluster.kill_apiserver();
    stage.cluster.start_apiserver()?;
    stage.change()?;
    stage.changes_are_in_force(SLOW_RECOVERY)?;
    stage.step("the refusal is reported as an Event of the Service")?;
    stage.eventually(SLOW_RECOVERY, |stage| {
        let events = stage.api().list("Event")?;
        let is_told = events
            .iter()
            .any(|event| event["reason"] == "AddressRefused" && event["regarding"]["name"] == "thief");
        Ok(met(is_told, "an event AddressRefused of the Service", || format!("{} events", events.len())))
    })
}

/// The token changes in its file, and the API server does not know the old one any more.
fn token_rotated(stage: &mut Stage) -> Result<()> {
    let proxy = stage.start_fault_proxy()?;
    stage.prepare_changes()?;
    let old = bound_token(stage, "first")?;
    stage.start_behind_faults(&old)?;
    stage.begin_traffic(PER_SECOND)?;
    stage.step("the token is rotated")?;
    let new = bound_token(stage, "second")?;
    std::fs::write(stage.token_file(), &new)?;
    stage.lab.delete(&secret("first"))?;
    stage.eventually(SLOW_RECOVERY, |stage| {
        let known = is_known(stage, &old)?;
        Ok(met(!known, "the API server does not know the old token", || "it does".to_owned()))
    })?;
    ensure!(is_known(stage, &new)?, "the API server does not know the new token");
    stage.step("watches are restarted")?;
    proxy.reset_connections();
    stage.change()?;
    stage.changes_are_in_force(SLOW_RECOVERY)?;
    stage.counted("unauthorized")
}

fn secret(name: &str) -> Key {
    Key::new("Secret", Some("kube-system"), name)
}

/// A token of sluice's account that is good as long as a Secret is there.
fn bound_token(stage: &Stage, name: &str) -> Result<String> {
    let key = secret(name);
    let object =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": key.namespace}});
    stage.lab.apply_object(&key, &object)?;
    let uid = stage.api().get(&key)?.pointer("/metadata/uid").cloned();
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
        "boundObjectRef": {"apiVersion": "v1", "kind": "Secret", "name": name, "uid": uid}}});
    let account = Key::new("ServiceAccount", Some("kube-system"), "sluice");
    let answer = stage.api().post(&account, "token", body)?;
    let token = answer.pointer("/status/token").and_then(Value::as_str);
    Ok(token.context("the API server answered without a token")?.to_owned())
}

/// Whether the API server knows whose token this is.
fn is_known(stage: &Stage, token: &str) -> Result<bool> {
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let body = serde_json::to_vec(&review)?;
    let answer: Value = stage.api().run(|client| async move {
        let request = Request::builder()
            .method(Method::POST)
            .uri("/apis/authentication.k8s.io/v1/tokenreviews")
            .header("content-type", "application/json")
            .body(body)?;
        Ok(client.request(request).await?)
    })?;
    Ok(answer.pointer("/status/authenticated") == Some(&Value::Bool(true)))
}

/// How many Services, each with a slice.
const MANY: u16 = 10_000;

/// Very many objects, listed through faults.
fn list_of_20000(stage: &mut Stage) -> Result<()> {
    let proxy = stage.start_fault_proxy()?;
    stage.prepare_changes()?;
    let token = stage.cluster.token(Account::Sluice).to_owned();
    stage.start_behind_faults(&token)?;
    stage.begin_traffic(PER_SECOND)?;
    stage.step("20,000 objects are written while watches are interrupted")?;
    proxy.inject("", Fault::Refuse);
    let objects =
        (0..MANY).flat_map(|number| single(&format!("many-{number}"), &address(number), "10.244.1.11"));
    stage.api().create_all(objects.collect(), 32)?;
    stage.traffic_goes_on(Duration::ZERO)?;
    stage.step("lists are interrupted and refused")?;
    stage.change()?;
    proxy.heal();
    proxy.inject("watch=", Fault::Status { code: 410, retry_after: None, requests: 2 });
    proxy.inject("", Fault::Status { code: 429, retry_after: Some(1), requests: 3 });
    proxy.inject("", Fault::ResetAfter(1_000_000));
    stage.traffic_goes_on(Duration::from_secs(5))?;
    proxy.heal();
    proxy.reset_connections();
    stage.step("everything is in force")?;
    stage.eventually(Duration::from_secs(90), |stage| {
        let rules = stage.run("node-a", &["nft", "list", "table", "inet", "sluice"])?.stdout;
        let known = rules.split_whitespace().filter(|word| is_of_the_many(word)).collect::<BTreeSet<_>>();
        Ok(met(known.len() == usize::from(MANY), "rules for 10,000 Services", || known.len().to_string()))
    })?;
    for number in [0, MANY / 2, MANY - 1] {
        let target = format!("tcp://{}:80", address(number));
        stage.reaches("pod/user", &target, &["a1"])?;
    }
    stage.changes_are_in_force(RECOVERY)
}

/// Whether this is the address of one of them.
fn is_of_the_many(word: &str) -> bool {
    word.parse::<Ipv4Addr>()
        .is_ok_and(|address| matches!(address.octets(), [10, 96, third, _] if third >= 100))
}

fn address(number: u16) -> String {
    let [high, low] = number.to_be_bytes();
    format!("10.96.{}.{low}", 100 + high)
}
