//! What is done in a day, and the connections that must not notice.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{NODE, PATIENCE};
use crate::agent::protocol::{LoadRequest, Outcome, ProbeRequest};
use crate::interrupt;
use crate::lab::Lab;
use crate::objects::Key;
use crate::target::{From, Target};

/// What a day has of each.
const CHANGES: f64 = 86_400.0;
const PODS: f64 = 5_000.0;
const INJURIES: f64 = 1_000.0;
const KILLS: f64 = 24.0;
const FLUSHES: f64 = 24.0;
/// Services that change. Their endpoints are nowhere.
const SERVICES: u64 = 100;
/// By then everything that was written has been applied.
pub(super) const QUIET: Duration = Duration::from_secs(3);
/// What was taken apart is to be whole again.
const REPAIR: Duration = Duration::from_secs(30);
/// An element of this Service is taken away again and again; nobody uses it.
const BAIT: &str = "10.96.99.99";

/// Something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    /// An object is written or deleted.
    Change,
    /// A pod goes, and another one comes, with ports of the node.
    Pod,
    /// Somebody takes an element away, or the directory of objects is exchanged: everything is read
    /// again.
    Reread,
    /// The daemon is killed and started.
    Kill,
    /// Somebody flushes.
    Flush,
}

const DEEDS: [(Deed, f64, &str); 5] = [
    (Deed::Change, CHANGES, "changes of objects"),
    (Deed::Pod, PODS, "pods that came and went"),
    (Deed::Reread, INJURIES, "re-reads after foreign changes"),
    (Deed::Kill, KILLS, "kills of the daemon"),
    (Deed::Flush, FLUSHES, "foreign flushes"),
];

/// The work of a day, or of a part of it.
#[derive(Debug)]
pub(super) struct Work {
    scale: f64,
    done: [u64; DEEDS.len()],
    /// Operations that a daemon needed at its start, though nothing had changed.
    pub(super) drift: u64,
}

impl Work {
    pub(super) fn new(scale: f64) -> Self {
        Self { scale, done: [0; DEEDS.len()], drift: 0 }
    }

    fn wanted(&self, kind: usize, part: f64) -> u64 {
        // Of what is rare there is one at least.
        (DEEDS[kind].1 * self.scale * part).ceil() as u64
    }

    /// What lags behind most at this part of the time, if anything does.
    pub(super) fn next(&self, part: f64) -> Option<Deed> {
        let lag = |kind: usize| {
            let wanted = self.wanted(kind, part);
            (wanted > self.done[kind])
                .then(|| (wanted - self.done[kind]) as f64 / self.wanted(kind, 1.0) as f64)
        };
        let lags = (0..DEEDS.len()).filter_map(|kind| Some((lag(kind)?, kind)));
        lags.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, kind)| DEEDS[kind].0)
    }

    fn count(&mut self, deed: Deed) -> u64 {
        let kind = DEEDS.iter().position(|(known, ..)| *known == deed).unwrap_or_default();
        self.done[kind] += 1;
        self.done[kind]
    }

    /// Names, what was done, and what had to be.
    pub(super) fn counts(&self) -> Vec<(&'static str, u64, u64)> {
        (0..DEEDS.len()).map(|kind| (DEEDS[kind].2, self.done[kind], self.wanted(kind, 1.0))).collect()
    }

    /// Writes the objects of the beginning.
    pub(super) fn begin(&mut self, lab: &Lab) -> Result<()> {
        lab.apply_all(&steady())?;
        self.end(lab)
    }

    /// Writes them again: in the end everything is as it was.
    pub(super) fn end(&self, lab: &Lab) -> Result<()> {
        (0..SERVICES).try_for_each(|number| lab.apply_all(&changing(number, 0)))
    }

    /// Does what others do not have to be kept away from.
    pub(super) fn small(&mut self, lab: &Lab, deed: Deed) -> Result<()> {
        let number = self.count(deed);
        match deed {
            Deed::Change => change(lab, number),
            Deed::Pod => {
                let port =
                    json!({"HostPort": 20_000 + number % 500, "ContainerPort": 8080, "Protocol": "udp"});
                lab.rewire("coming", &json!({"portMappings": [port]}))
            }
            Deed::Reread => reread(lab),
            Deed::Kill | Deed::Flush => bail!("{deed:?} is not a small deed"),
        }
    }

    /// Kills the daemon of a node and starts it. Every other time, and whenever `quiet` says so,
    /// nothing has changed before: then the new one must find everything as it should be.
    pub(super) fn restart(&mut self, lab: &mut Lab, node: &str, quiet: bool) -> Result<()> {
        let number = if node == NODE && !quiet { self.count(Deed::Kill) } else { 0 };
        let quiet = quiet || number.is_multiple_of(2);
        if quiet {
            interrupt::sleep(QUIET)?;
        }
        lab.kill_proxy(node)?;
        lab.start_proxy(node, &Value::Null)?;
        lab.await_first_syncs()?;
        if quiet {
            let drift = drift(lab, node)?;
            if drift > 0 {
                println!("{node}: {drift} operations, though nothing had changed");
            }
            self.drift += drift;
        }
        Ok(())
    }

    /// Somebody flushes rules, elements or everything. New connections wait until that has been put
    /// right; of everything, held ones end before: without any rule the kernel translates nothing.
    pub(super) fn flush(&mut self, lab: &mut Lab, traffic: &mut Traffic) -> Result<()> {
        let number = self.count(Deed::Flush);
        let everything = number % 3 == 1 || lab.mode() != "nftables";
        traffic.pause(lab, everything)?;
        let line = match number % 3 {
            _ if everything => "nft flush ruleset",
            0 => "nft flush table inet sluice",
            _ => "nft flush map inet sluice services4",
        };
        shell(lab, line)?;
        traffic.resume(lab, everything)
    }
}

fn shell(lab: &Lab, line: &str) -> Result<()> {
    let finished = lab.run(NODE, &["sh", "-c", line].map(str::to_owned))?;
    ensure!(finished.status.success(), "{line}: {}", finished.stderr);
    Ok(())
}

/// In mode nftables somebody takes an element away, once it is there: so that the daemon must have
/// put it back, for which it reads the whole table. The maps of mode ebpf are nobody's to change:
/// there all files are read again, as when a volume is exchanged.
fn reread(lab: &Lab) -> Result<()> {
    if lab.mode() != "nftables" {
        return lab.exchange_files();
    }
    let line = format!("nft delete element inet sluice cluster_ips4 '{{ {BAIT} }}'");
    let begun = Instant::now();
    while let Err(error) = shell(lab, &line) {
        if begun.elapsed() > REPAIR {
            return Err(error.context("the removed state was not restored"));
        }
        interrupt::sleep(POLL)?;
    }
    Ok(())
}

/// Operations by which a daemon that has just been started found the kernel not to be as planned.
/// With eBPF each start takes over links, which are operations too: a further start tells how many.
fn drift(lab: &mut Lab, node: &str) -> Result<u64> {
    let first = needed(lab, node)?;
    if first == 0 || lab.mode() != "ebpf" {
        return Ok(first);
    }
    lab.kill_proxy(node)?;
    lab.start_proxy(node, &Value::Null)?;
    lab.await_first_syncs()?;
    Ok(first.saturating_sub(needed(lab, node)?))
}

/// The operations of a daemon's first pass, as its log tells.
fn needed(lab: &Lab, node: &str) -> Result<u64> {
    let logs = lab.proxy_logs(60);
    let log = logs.get(&format!("the proxy on {node}")).context("no log")?;
    let line = log.lines().rev().find(|line| line.contains("ruleset in place")).context("no first pass")?;
    let number = line.split_whitespace().find_map(|word| word.strip_prefix("operations="));
    Ok(number.with_context(|| format!("no operations: {line}"))?.parse()?)
}

fn change(lab: &Lab, number: u64) -> Result<()> {
    let (service, turn) = (number % SERVICES, number / SERVICES + 1);
    let [of_service, of_slice] = changing(service, turn);
    match turn % 5 {
        4 => lab.delete(&of_service.0),
        0 | 3 => lab.apply_object(&of_service.0, &of_service.1),
        _ => lab.apply_object(&of_slice.0, &of_slice.1),
    }
}

fn slice(name: &str, port: u16, ports: &Value, endpoints: &[String]) -> (Key, Value) {
    let endpoints: Vec<Value> =
        endpoints.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
    let ports: Vec<Value> = ports
        .as_array()
        .into_iter()
        .flatten()
        .map(|known| json!({"name": known["name"], "protocol": known["protocol"], "port": port}))
        .collect();
    let name_of_slice = format!("{name}-4");
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name_of_slice, "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
        "ports": ports, "endpoints": endpoints});
    (Key::new("EndpointSlice", None, &name_of_slice), slice)
}

fn service(name: &str, spec: Value) -> (Key, Value) {
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default"}, "spec": spec});
    (Key::new("Service", None, name), service)
}

/// The Service of connections that must live, and the bait.
fn steady() -> Vec<(Key, Value)> {
    let ports = json!([{"name": "http", "port": 80, "nodePort": 30_080, "protocol": "TCP"},
        {"name": "dns", "port": 53, "protocol": "UDP"}]);
    let bait = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
    vec![
        service(
            "web",
            json!({"type": "NodePort", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": ports}),
        ),
        slice("web", 8080, &ports, &["10.244.2.11".to_owned(), "10.244.2.12".to_owned()]),
        service("bait", json!({"clusterIP": BAIT, "clusterIPs": [BAIT], "ports": bait})),
        slice("bait", 8080, &bait, &["10.244.9.9".to_owned()]),
    ]
}

/// A Service that changes, and its slice, at some turn.
fn changing(number: u64, turn: u64) -> [(Key, Value); 2] {
    let name = format!("churn-{number}");
    let ip = format!("10.96.100.{number}");
    let ports = json!([{"name": "http", "port": 80 + turn % 3, "protocol": "TCP"}]);
    let external = format!("198.51.100.{}", 1 + number);
    let spec = json!({"clusterIP": ip, "clusterIPs": [ip], "ports": ports, "externalIPs": [external]});
    let endpoints: Vec<String> = (0..1 + (number + turn * 7) % 20)
        .map(|n| format!("10.244.{}.{}", 100 + (turn + n) % 100, 1 + number))
        .collect();
    [service(&name, spec), slice(&name, 8080, &ports, &endpoints)]
}

/// Where loads come from, and where they go to.
const LOADS: [(&str, &[&str]); 2] = [
    ("pod/user", &["tcp://10.96.0.10:80", "udp://10.96.0.10:53"]),
    ("client", &["tcp://192.168.77.11:30080"]),
];
/// Names of held connections, from where, and to where.
const HELD: [(&str, &str, &str); 3] = [
    ("tcp-to-cluster-ip", "pod/user", "tcp://10.96.0.10:80"),
    ("tcp-to-node-port", "client", "tcp://192.168.77.11:30080"),
    ("udp-to-cluster-ip", "pod/user", "udp://10.96.0.10:53"),
];
const LOAD: &str = "soak";
const PER_SECOND: u64 = 10;
/// As in bursts: no connection fails only because the machine is busy.
const CONNECTION: Duration = Duration::from_secs(12);
/// Longer than any soak.
const LIMIT: u64 = 1_000_000;
const POLL: Duration = Duration::from_millis(100);

/// Connections that must live.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) opened: u64,
    pub(super) failed: u64,
    pub(super) held: u64,
    pub(super) broken: u64,
    pub(super) first_failures: Vec<String>,
}

fn place(from: &str) -> Result<From> {
    from.parse().map_err(anyhow::Error::msg)
}

fn target(text: &str) -> Result<Target> {
    text.parse().map_err(anyhow::Error::msg)
}

impl Traffic {
    pub(super) fn begin(lab: &mut Lab) -> Result<Self> {
        let mut traffic = Self::default();
        traffic.resume(lab, true)?;
        Ok(traffic)
    }

    /// Opens connections again, once they are answered; and holds some again.
    pub(super) fn resume(&mut self, lab: &mut Lab, held: bool) -> Result<()> {
        for (from, targets) in LOADS {
            let targets = targets.iter().map(|text| target(text)).collect::<Result<Vec<_>>>()?;
            answered(lab, from, &targets)?;
            lab.agent(&place(from)?)?.load(
                LOAD,
                LoadRequest { targets, per_second: PER_SECOND, seconds: LIMIT, patience: Some(CONNECTION) },
            )?;
        }
        if held {
            for (id, from, to) in HELD {
                lab.agent(&place(from)?)?.hold(id, target(to)?, true)?;
                self.held += 1;
            }
        }
        Ok(())
    }

    /// Opens no more connections, and counts those that were; ends those that are held, too.
    pub(super) fn pause(&mut self, lab: &mut Lab, held: bool) -> Result<()> {
        for (from, _) in LOADS {
            let agent = lab.agent(&place(from)?)?;
            let mut status = agent.loaded(LOAD, true)?;
            while status.under_way > 0 {
                interrupt::sleep(POLL)?;
                status = agent.loaded(LOAD, true)?;
            }
            self.opened += status.opened;
            self.failed += status.failed;
            self.first_failures
                .extend(status.failures.into_iter().map(|text| format!("from {from}: {text}")));
        }
        if held {
            for (id, from, _) in HELD {
                let agent = lab.agent(&place(from)?)?;
                if let Some(why) = agent.held(id)?.broken {
                    self.broken += 1;
                    self.first_failures.push(format!("{id}: {why}"));
                }
                agent.end_held(id)?;
            }
        }
        self.first_failures.truncate(20);
        Ok(())
    }

    /// Fails as soon as something broke: hours later the logs would tell nothing of it.
    pub(super) fn check(&self, lab: &Lab) -> Result<()> {
        for (from, _) in LOADS {
            let status = lab.agent(&place(from)?)?.loaded(LOAD, false)?;
            ensure!(status.failed == 0, "connections from {from} failed:\n{}", status.failures.join("\n"));
        }
        for (id, from, _) in HELD {
            let broken = lab.agent(&place(from)?)?.held(id)?.broken;
            ensure!(broken.is_none(), "{id} broke: {}", broken.unwrap_or_default());
        }
        Ok(())
    }

    pub(super) fn end(&mut self, lab: &mut Lab) -> Result<()> {
        self.pause(lab, true)
    }
}

/// Waits until all these are answered.
fn answered(lab: &mut Lab, from: &str, targets: &[Target]) -> Result<()> {
    let dests = targets.to_vec();
    let request = ProbeRequest { dests, count: 2, interval_ms: 0, parallel: false, stop_at_failure: true };
    let begun = Instant::now();
    loop {
        lab.check_proxies()?;
        let seen = lab.probe(&place(from)?, request.clone(), None)?;
        if seen.iter().all(|attempt| matches!(attempt.outcome, Outcome::Answer(_))) {
            return Ok(());
        }
        ensure!(begun.elapsed() < REPAIR * PATIENCE, "{from}: not all are answered again: {seen:?}");
        interrupt::sleep(POLL)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_is_spread_over_the_time_and_all_of_it_is_done() {
        let mut work = Work::new(0.1);
        for hundredth in 0..=100 {
            let part = f64::from(hundredth) / 100.0;
            while let Some(deed) = work.next(part) {
                work.count(deed);
            }
            let (_, changes, all) = work.counts()[0];
            assert!((changes as f64 - all as f64 * part).abs() <= 1.0, "{changes} at {part}");
        }
        let done: Vec<u64> = work.counts().iter().map(|(_, done, _)| *done).collect();
        assert_eq!(done, [8_640, 500, 100, 3, 3]);
        assert!(work.counts().iter().all(|(_, done, wanted)| done == wanted));
    }

    #[test]
    fn a_service_ends_as_it_began() {
        assert_eq!(changing(3, 0), changing(3, 0));
        assert_ne!(changing(3, 0)[1], changing(3, 1)[1]);
    }
}
