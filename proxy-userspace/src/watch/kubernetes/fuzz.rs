//! Answers of an API server given anything. `cargo xtask fuzz`

use std::sync::Arc;

use bytes::Bytes as Line;
use serde_json::{Value, json};
use sluice_core::kind::Kind;
use sluice_fuzz::{Bytes, Rng, Trees, fuzz};
use tokio::sync::mpsc;

use super::follow::{Follower, Shared};
use super::frames::{Items, Lines};
use super::{Access, Origin, Requests, Timing};
use crate::observe::metrics::Metrics;
use crate::watch::fuzz::{objects, runtime};

/// What a watch and a list have beside objects.
const WORDS: [&str; 16] = [
    "\n",
    "\r\n",
    "{\"type\":\"ADDED\",\"object\":",
    "\"type\":\"DELETED\"",
    "BOOKMARK",
    "ERROR",
    "\"items\":[",
    "\"items\":",
    "k8s.io/initial-events-end",
    "\"resourceVersion\":\"\"",
    "\\\"",
    "\\u0000",
    "\\ud800",
    "{",
    "}",
    "]",
];
/// Deep enough for any reader's stack to be too small, were it not limited.
const DEEP: usize = 30_000;

/// A watch of some events, and the same as a list.
fn answers(objects: &[Value]) -> Vec<Vec<u8>> {
    let mut answers = Vec::new();
    for (version, three) in objects.chunks(3).enumerate() {
        let mut lines = Vec::new();
        for (object, kind) in three.iter().zip(["ADDED", "MODIFIED", "DELETED"]) {
            let mut object = object.clone();
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            lines.push(json!({"type": kind, "object": object}));
        }
        let metadata = json!({"resourceVersion": "7", "annotations": {"k8s.io/initial-events-end": "true"}});
        lines.push(json!({"type": "BOOKMARK", "object": {"metadata": metadata}}));
        lines.push(json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}}));
        answers.push(lines.iter().map(|line| format!("{line}\n")).collect::<String>().into_bytes());
        let list = json!({"kind": "ServiceList", "metadata": {"resourceVersion": "7"}, "items": three});
        answers.push(list.to_string().into_bytes());
    }
    answers
}

fn lines(input: &[u8], size: usize) -> Vec<Line> {
    let (mut lines, mut found) = (Lines::default(), Vec::new());
    for chunk in input.chunks(size) {
        lines.push(chunk);
        while let Ok(Some(line)) = lines.next_line() {
            found.push(line);
        }
    }
    assert_eq!(lines.is_inside(), !input.is_empty() && !input.ends_with(b"\n"));
    found
}

fn items(input: &[u8], size: usize) -> (Vec<Line>, Option<Vec<u8>>) {
    let (mut items, mut found) = (Items::default(), Vec::new());
    for chunk in input.chunks(size) {
        items.push(chunk);
        while let Ok(Some(item)) = items.next_item() {
            found.push(item);
        }
    }
    (found, items.envelope().map(<[u8]>::to_vec))
}

/// Those of Services and of EndpointSlices.
fn followers(shared: &Shared) -> [Follower; 2] {
    [Kind::Service, Kind::Slice].map(|kind| Follower::new(kind, String::new(), shared.clone()))
}

#[test]
fn fuzz_frames() {
    let objects = objects();
    let (bytes, trees) = (Bytes::new(answers(&objects), &WORDS), Trees::new(objects, &WORDS));
    let make = |rng: &mut Rng| match rng.u16(..1_000) {
        0 => rng.choice([b"[", b"{", b"\"", b"1"]).unwrap_or(b"[").repeat(DEEP),
        // Lines that are whole, with objects that are not as usual.
        1..400 => format!("{}\n", json!({"type": "ADDED", "object": trees.next(rng)})).into_bytes(),
        _ => bytes.next(rng),
    };
    let runtime = runtime();
    let origin = Origin { kubeconfig: None, master: Some("http://192.0.2.1:1".into()) };
    let access = runtime.block_on(Access::new(origin)).unwrap();
    let (events, mut received) = mpsc::channel(1 << 20);
    let (metrics, timing) = (Metrics::default(), Timing::default());
    let requests = Requests::new(access, metrics.clone(), timing.answer);
    let shared = Shared { requests, events, metrics, timing: Arc::new(timing) };
    let [mut services, mut slices] = followers(&shared);
    fuzz("frames", make, |input| {
        let size = 1 + input.len() % 61;
        let found = lines(input, size);
        let mut expected: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
        expected.pop();
        assert_eq!(found, expected);
        assert!(items(input, size) == items(input, usize::MAX), "items depend on how the bytes arrive");
        runtime.block_on(async {
            for (number, line) in found.iter().enumerate() {
                // Broken ones are told, which is all that matters here.
                drop(services.line(line, number).await);
                drop(slices.line(line, number).await);
            }
        });
        while received.try_recv().is_ok() {}
    });
}
