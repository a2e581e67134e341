//! Every kind of expectation, met and unmet.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::*;

fn step(keys: &str) -> ProbeStep {
    let text = format!("{{from: client, to: 'tcp://10.96.0.10:80', {keys}}}");
    serde_saphyr::from_str(&text).unwrap()
}

fn answer(pod: &str, peer: &str) -> Outcome {
    let peer = peer.parse().unwrap();
    Outcome::Answer(Answer { pod: pod.to_owned(), peer, peer_port: 1, local: peer, local_port: 8080 })
}

fn answers_of(pods: &[&str]) -> Vec<Outcome> {
    pods.iter().map(|pod| answer(pod, "10.0.0.1")).collect()
}

fn senders() -> Senders {
    let addr = |text: &str| vec![text.parse().unwrap()];
    Senders { original: addr("10.0.0.1"), node: addr("10.0.0.2"), node_or_original: false }
}

fn check(keys: &str, seen: &[Outcome]) -> bool {
    probe(&step(keys), &senders(), None, seen).is_ok()
}

#[test]
fn reaches_is_exact() {
    assert!(check("reaches: [a, b]", &answers_of(&["a", "b", "a"])));
    assert!(!check("reaches: [a, b]", &answers_of(&["a", "a"])));
    assert!(!check("reaches: [a]", &answers_of(&["a", "b"])));
    assert!(!check("reaches: [a]", &[answer("a", "10.0.0.1"), Outcome::Timeout]));
    assert!(!check("reaches: [a]", &[]));
}

#[test]
fn without_a_word_every_connection_succeeds() {
    assert!(check("count: 1", &answers_of(&["a"])));
    assert!(!check("count: 1", &[Outcome::Refused]));
}

#[test]
fn ways_to_fail() {
    let (refused, timeout) = (Outcome::Refused, Outcome::Timeout);
    let error = Outcome::Error("connected, but no answer".to_owned());
    assert!(check("fails: refused", &[refused.clone(), timeout.clone()]));
    assert!(!check("fails: refused", std::slice::from_ref(&timeout)));
    assert!(!check("fails: refused", &[refused.clone(), answer("a", "10.0.0.1")]));
    assert!(check("fails: timeout", &[timeout.clone(), timeout.clone()]));
    assert!(!check("fails: timeout", &[timeout.clone(), refused.clone()]));
    assert!(!check("fails: timeout", std::slice::from_ref(&error)));
    assert!(check("fails: any", &[timeout, refused, error]));
    assert!(!check("fails: any", &answers_of(&["a"])));
    assert!(!check("fails: any", &[]));
}

#[test]
fn sources() {
    assert!(check("source: original", &[answer("a", "10.0.0.1")]));
    assert!(!check("source: original", &[answer("a", "10.0.0.1"), answer("a", "10.0.0.2")]));
    assert!(check("source: node", &[answer("a", "10.0.0.2")]));
    assert!(!check("source: node", &[answer("a", "10.0.0.1")]));
    assert!(check("source: any", &[answer("a", "10.0.0.9")]));
    let lenient = Senders { node_or_original: true, ..senders() };
    assert!(probe(&step("source: node"), &lenient, None, &[answer("a", "10.0.0.1")]).is_ok());
    assert!(probe(&step("source: node"), &lenient, None, &[answer("a", "10.0.0.9")]).is_err());
}

#[test]
fn stickiness() {
    assert!(check("sticky: true", &answers_of(&["a", "a"])));
    assert!(!check("sticky: true", &answers_of(&["a", "b"])));
    let before = BTreeSet::from(["a".to_owned()]);
    let same = |seen: &[Outcome], before: &BTreeSet<String>| {
        probe(&step("same_as: x"), &senders(), Some(before), seen)
    };
    assert!(same(&answers_of(&["a", "a"]), &before).is_ok());
    assert!(same(&answers_of(&["b"]), &before).is_err());
    assert!(same(&answers_of(&["a", "b"]), &before).is_err());
    let two = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
    assert!(same(&answers_of(&["a", "b"]), &two).is_err());
}

#[test]
fn balance() {
    assert!(check("spread: 2.0", &answers_of(&["a", "a", "b"])));
    assert!(!check("spread: 1.0", &answers_of(&["a", "a", "b"])));
    assert!(check("at_least: 2", &answers_of(&["a", "b"])));
    assert!(!check("at_least: 2", &answers_of(&["a", "a"])));
}

#[test]
fn failures_say_who_answered() {
    let unmet = probe(&step("reaches: [b]"), &senders(), None, &answers_of(&["a", "a"])).unwrap_err();
    assert!(unmet.expected.contains('b'), "{unmet:?}");
    assert!(unmet.observed.contains("2 x a saw 10.0.0.1"), "{unmet:?}");
}

#[test]
fn held_connections() {
    let wants = |keys: &str| serde_saphyr::from_str::<HeldStep>(&format!("{{id: x, {keys}}}")).unwrap();
    let fresh =
        HoldStatus { since_answer_ms: Some(60), endpoint: Some("a".to_owned()), ..HoldStatus::default() };
    let stale = HoldStatus { since_answer_ms: Some(3_000), ..fresh.clone() };
    let late = HoldStatus { since_answer_ms: Some(800), ..fresh.clone() };
    let broken = HoldStatus { broken: Some("reset".to_owned()), ..fresh.clone() };
    assert!(held(&wants("alive: true, endpoint: a"), false, &fresh).is_ok());
    assert!(held(&wants("alive: true, endpoint: b"), false, &fresh).is_err());
    assert!(held(&wants("alive: false"), false, &fresh).is_err());
    for dead in [&stale, &broken] {
        assert!(held(&wants("alive: true"), false, dead).is_err());
        assert!(held(&wants("alive: false"), false, dead).is_ok());
    }
    assert!(held(&wants("alive: true"), false, &late).is_ok());
    assert!(held(&wants("alive: true"), true, &late).is_err());
    assert!(held(&wants("alive: true"), true, &HoldStatus::default()).is_err());
}

#[test]
fn programs() {
    let wants = |keys: &str| {
        serde_saphyr::from_str::<RunStep>(&format!("{{node: node-a, argv: [x], {keys}}}")).unwrap()
    };
    let ended = |code: i32| Finished {
        status: ExitStatus::from_raw(code << 8),
        stdout: "table inet foreign\n".to_owned(),
        stderr: String::new(),
    };
    assert!(run(&wants("expect_stdout: 'table inet foreign'"), &ended(0)).is_ok());
    assert!(run(&wants("expect_stdout: 'table inet'"), &ended(0)).is_err());
    assert!(run(&wants("expect_status: 3"), &ended(3)).is_ok());
    assert!(run(&wants("expect_status: 0"), &ended(3)).is_err());
}

#[test]
fn http_answers() {
    let wants = |keys: &str| {
        serde_saphyr::from_str::<HttpStep>(&format!("{{node: node-a, url: x, {keys}}}")).unwrap()
    };
    let answer = HttpAnswer {
        status: 200,
        headers: vec![("x-weight".to_owned(), "1".to_owned())],
        body: r#"{"service": {"name": "web", "namespace": "default"}, "localEndpoints": 1}"#.to_owned(),
    };
    for met in [
        "status: 200",
        "headers: {X-Weight: '1'}",
        "json: {service: {name: web}}",
        "json: {localEndpoints: 1.0}",
    ] {
        assert!(http(&wants(met), &answer).is_ok(), "{met}");
    }
    for not in [
        "status: 503",
        "headers: {X-Weight: '2'}",
        "headers: {X-Other: '1'}",
        "json: {service: {name: x}}",
        "json: {a: 1}",
    ] {
        assert!(http(&wants(not), &answer).is_err(), "{not}");
    }
    let array = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert!(subset(&array(r#"[{"a": 1}]"#), &array(r#"[{"a": 1, "b": 2}]"#)));
    assert!(!subset(&array(r#"[{"a": 1}]"#), &array(r#"[{"a": 1}, {"a": 1}]"#)));
}

#[test]
fn tracked_connections() {
    let wants =
        |keys: &str| serde_saphyr::from_str::<ConntrackStep>(&format!("{{node: node-a, {keys}}}")).unwrap();
    let output = "udp      17 29 src=10.244.1.20 dst=10.96.0.53 sport=40000 dport=53 src=10.244.1.11 dst=10.244.1.20 sport=8080 dport=40000 mark=0 use=1\n";
    assert!(conntrack(&wants("proto: udp, orig: '10.96.0.53:53'"), output).is_ok());
    assert!(conntrack(&wants("proto: udp, orig: '10.96.0.53:53', present: false"), output).is_err());
    assert!(conntrack(&wants("proto: udp, orig: '10.244.1.20:40000', present: false"), output).is_ok());
    assert!(conntrack(&wants("proto: tcp, orig: '10.96.0.53:53', present: true"), output).is_err());
}

#[test]
fn captures() {
    let wants = |keys: &str| serde_saphyr::from_str::<CapturedStep>(&format!("{{id: x, {keys}}}")).unwrap();
    let check = |keys: &str| captured(&wants(keys), 3, "tos 0x0, UDP", "").is_ok();
    assert!(check("min: 3, max: 3, contains: UDP"));
    assert!(!check("min: 4"));
    assert!(!check("max: 2"));
    assert!(!check("contains: [UDP, TCP]"));
}
