//! Whether what was observed is what a case demands. Pure: nothing here opens a socket.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use crate::agent::protocol::{Answer, HoldStatus, HttpAnswer, Outcome};
use crate::case::{CapturedStep, ConntrackStep, Fails, HeldStep, HttpStep, ProbeStep, RunStep, Source};
use crate::process::Finished;

/// An expectation that is not met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// What was demanded
    pub expected: String,
    /// What was there
    pub observed: String,
}

impl std::fmt::Display for Unmet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "expected: {}\nobserved: {}", self.expected, self.observed)
    }
}

impl std::error::Error for Unmet {}

/// The outcome of a comparison.
pub type Verdict = Result<(), Unmet>;

fn unmet(expected: impl Into<String>, observed: impl Into<String>) -> Verdict {
    Err(Unmet { expected: expected.into(), observed: observed.into() })
}

/// Whose addresses count as what.
#[derive(Debug, Clone, Default)]
pub struct Senders {
    /// The sender's own addresses
    pub original: Vec<IpAddr>,
    /// Addresses of the node that balances
    pub node: Vec<IpAddr>,
    /// The sender's own address passes for the node's too: the backend translates at connect time
    pub node_or_original: bool,
}

/// Judges the connections to one destination. `same_as` is who answered the probe that this one is
/// compared with.
pub fn probe(
    step: &ProbeStep,
    senders: &Senders,
    same_as: Option<&BTreeSet<String>>,
    seen: &[Outcome],
) -> Verdict {
    if let Some(fails) = step.fails {
        return failing(fails, seen);
    }
    let counts = endpoints(seen);
    let wanted: Option<BTreeSet<&str>> =
        step.reaches.as_ref().map(|names| names.iter().map(String::as_str).collect());
    let expected = || match &wanted {
        Some(names) => format!("every connection succeeds; exactly {} answer", list(names)),
        None => "every connection succeeds".to_owned(),
    };
    if seen.is_empty() || seen.iter().any(|outcome| !matches!(outcome, Outcome::Answer(_))) {
        return unmet(expected(), describe(seen));
    }
    if wanted.as_ref().is_some_and(|names| *names != counts.keys().copied().collect()) {
        return unmet(expected(), describe(seen));
    }
    source(step.source.unwrap_or(Source::Any), senders, seen)?;
    if step.sticky && counts.len() != 1 {
        return unmet("all answers from one endpoint", describe(seen));
    }
    if let Some(before) = same_as {
        let now: BTreeSet<String> = counts.keys().map(|name| (*name).to_owned()).collect();
        if before.len() != 1 || now != *before {
            return unmet(format!("the same endpoint as before, which was {}", list(before)), describe(seen));
        }
    }
    if let Some(number) = step.at_least.filter(|number| counts.len() < *number) {
        return unmet(format!("at least {number} endpoints answer"), describe(seen));
    }
    spread(step, &counts, seen)
}

fn spread(step: &ProbeStep, counts: &BTreeMap<&str, usize>, seen: &[Outcome]) -> Verdict {
    let Some(limit) = step.spread else { return Ok(()) };
    let most = counts.values().max().copied().unwrap_or_default();
    let least = counts.values().min().copied().unwrap_or_default();
    let number = |count: usize| u32::try_from(count).map_or(f64::MAX, f64::from);
    if number(most) <= number(least) * limit {
        return Ok(());
    }
    unmet(format!("the most used endpoint got at most {limit} times the least used"), describe(seen))
}

fn source(wanted: Source, senders: &Senders, seen: &[Outcome]) -> Verdict {
    let mut allowed: Vec<IpAddr> = match wanted {
        Source::Any => return Ok(()),
        Source::Original => senders.original.clone(),
        Source::Node => senders.node.clone(),
    };
    if wanted == Source::Node && senders.node_or_original {
        allowed.extend(&senders.original);
    }
    // The reply to an ICMP echo does not tell whom its sender saw; it has no port.
    let other = |answer: &Answer| answer.local_port != 0 && !allowed.contains(&answer.peer);
    if !answers(seen).any(other) {
        return Ok(());
    }
    let what =
        if wanted == Source::Node { "an address of the balancing node" } else { "the sender's own address" };
    unmet(format!("endpoints see {what} ({})", list(&allowed)), describe(seen))
}

fn failing(fails: Fails, seen: &[Outcome]) -> Verdict {
    let refused = seen.contains(&Outcome::Refused);
    let (met, expected) = match fails {
        Fails::Any => (true, "no connection succeeds"),
        Fails::Refused => (refused, "no connection succeeds, at least one is refused"),
        Fails::Timeout => {
            (seen.iter().all(|outcome| *outcome == Outcome::Timeout), "no response, every time")
        }
    };
    // "connected, but no answer" is no success, but something came back.
    if met && !seen.is_empty() && answers(seen).next().is_none() {
        Ok(())
    } else {
        unmet(expected, describe(seen))
    }
}

fn answers(seen: &[Outcome]) -> impl Iterator<Item = &Answer> {
    seen.iter().filter_map(|outcome| if let Outcome::Answer(answer) = outcome { Some(answer) } else { None })
}

/// How often each endpoint answered.
#[must_use]
pub fn endpoints(seen: &[Outcome]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for answer in answers(seen) {
        *counts.entry(answer.pod.as_str()).or_default() += 1;
    }
    counts
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "nobody".to_owned() } else { items.join(", ") }
}

/// Who answered how often, from which source; what failed how.
#[must_use]
pub fn describe(seen: &[Outcome]) -> String {
    let mut groups: BTreeMap<String, usize> = BTreeMap::new();
    for outcome in seen {
        let text = match outcome {
            Outcome::Answer(answer) => format!("{} saw {}", answer.pod, answer.peer),
            Outcome::Refused => "refused".to_owned(),
            Outcome::Timeout => "timeout".to_owned(),
            Outcome::Error(text) => format!("error: {text}"),
        };
        *groups.entry(text).or_default() += 1;
    }
    let parts = groups.iter().map(|(text, count)| format!("{count} x {text}"));
    format!("of {} connections: {}", seen.len(), list(parts))
}

/// Judges a held connection. `datagrams` tells UDP from a connection.
pub fn held(step: &HeldStep, datagrams: bool, status: &HoldStatus) -> Verdict {
    let age = status.since_answer_ms.unwrap_or(u64::MAX);
    let fresh = age <= if datagrams { 500 } else { 1_000 };
    // A stalled TCP line may be a retransmission under way; only two silent seconds make a
    // connection dead.
    let dead = status.broken.is_some() || age > if datagrams { 500 } else { 2_000 };
    let met = if step.alive { status.broken.is_none() && fresh } else { dead };
    let endpoint = step.endpoint.as_ref().is_none_or(|name| status.endpoint.as_ref() == Some(name));
    if met && endpoint {
        return Ok(());
    }
    let mut expected = if step.alive { "alive" } else { "not alive" }.to_owned();
    if let Some(name) = &step.endpoint {
        expected += &format!(", {name} answers");
    }
    let state = status.broken.as_ref().map_or_else(|| "open".to_owned(), |why| format!("broken ({why})"));
    let who = status.endpoint.as_deref().unwrap_or("nobody");
    let age = status.since_answer_ms.map_or_else(|| "never".to_owned(), |age| format!("{age} ms ago"));
    unmet(
        expected,
        format!("{state}; {} of {} lines answered, last by {who}, {age}", status.answered, status.sent),
    )
}

/// Judges a finished program. White space at the end of the output does not count.
pub fn run(step: &RunStep, finished: &Finished) -> Verdict {
    let status = finished.status.code();
    let both = || format!("{}\nstdout:\n{}\nstderr:\n{}", finished.status, finished.stdout, finished.stderr);
    if status != Some(step.expect_status) {
        return unmet(format!("exit status {}", step.expect_status), both());
    }
    match &step.expect_stdout {
        Some(text) if text.trim_end() != finished.stdout.trim_end() => {
            unmet(format!("stdout:\n{text}"), both())
        }
        _ => Ok(()),
    }
}

/// Judges an HTTP answer.
pub fn http(step: &HttpStep, answer: &HttpAnswer) -> Verdict {
    let observed =
        || format!("status {}, headers {:?}, body {}", answer.status, answer.headers, answer.body.trim());
    let status = step.status.unwrap_or(200);
    if answer.status != status {
        return unmet(format!("status {status}"), observed());
    }
    for (name, value) in &step.headers {
        let there = |(other, found): &(String, String)| other.eq_ignore_ascii_case(name) && found == value;
        if !answer.headers.iter().any(there) {
            return unmet(format!("header {name}: {value}"), observed());
        }
    }
    let Some(wanted) = &step.json else { return Ok(()) };
    match serde_json::from_str(&answer.body) {
        Ok(body) if subset(wanted, &body) => Ok(()),
        _ => unmet(format!("a body with {wanted}"), observed()),
    }
}

/// Whether everything in `wanted` is in `found`; lists match element by element.
#[must_use]
pub fn subset(wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            wanted.iter().all(|(key, value)| found.get(key).is_some_and(|other| subset(value, other)))
        }
        (Value::Array(wanted), Value::Array(found)) => {
            wanted.len() == found.len() && wanted.iter().zip(found).all(|(value, other)| subset(value, other))
        }
        (Value::Number(wanted), Value::Number(found)) => wanted.as_f64() == found.as_f64(),
        _ => wanted == found,
    }
}

/// Judges the output of `conntrack -L`.
pub fn conntrack(step: &ConntrackStep, output: &str) -> Verdict {
    let matching: Vec<&str> = output.lines().filter(|line| tracks(step, line)).collect();
    if matching.is_empty() != step.present {
        return Ok(());
    }
    let (proto, orig) = (step.proto.name(), step.orig);
    let expected = format!("{} entry for {proto} to {orig}", if step.present { "an" } else { "no" });
    unmet(
        expected,
        if matching.is_empty() { format!("none; all entries:\n{output}") } else { matching.join("\n") },
    )
}

/// Whether a line is about the protocol and original destination; the first `dst=` and `dport=` are
/// the original ones.
fn tracks(step: &ConntrackStep, line: &str) -> bool {
    let mut fields = line.split_whitespace();
    let proto = fields.next() == Some(step.proto.name());
    let field = |name: &str| line.split_whitespace().find_map(|field| field.strip_prefix(name));
    let addr = field("dst=").and_then(|addr| addr.parse::<IpAddr>().ok());
    let port = field("dport=").and_then(|port| port.parse::<u16>().ok());
    proto && addr == Some(step.orig.ip()) && port == Some(step.orig.port())
}

/// Judges a capture: how many packets, and their text.
pub fn captured(step: &CapturedStep, count: usize, text: &str, first: &str) -> Verdict {
    let observed = || format!("{count} packets:\n{first}");
    if let Some(min) = step.min.filter(|min| count < *min) {
        return unmet(format!("at least {min} packets"), observed());
    }
    if let Some(max) = step.max.filter(|max| count > *max) {
        return unmet(format!("at most {max} packets"), observed());
    }
    match step.contains.iter().find(|wanted| !text.contains(wanted.as_str())) {
        Some(wanted) => unmet(format!("a packet with {wanted:?}"), observed()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
