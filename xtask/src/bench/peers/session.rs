//! One turn of one proxy: start, load, changes, memory, traffic, restart.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use sluice_tests::address::NodeAddresses;
use sluice_tests::agent::bench::{BenchReport, BenchRequest, Work, unix_now};
use sluice_tests::lab::Lab;
use sluice_tests::proxy::ProxyProgram;
use sluice_tests::target::{From, Target};

use super::Arguments;
use super::figures::Figures;
use super::world::{self, node, pod};
use crate::passes::{get, memory, metric};

/// Connections of the load during a restart, each worker's pause between two.
const PAUSE_MICROS: u64 = 1000;

/// A turn.
pub(super) struct Session<'a> {
    pub(super) arguments: &'a Arguments,
    pub(super) lab: &'a mut Lab,
    pub(super) program: &'a ProxyProgram,
    pub(super) place: usize,
    pub(super) services: usize,
    pub(super) figures: &'a mut Figures,
}

impl Session<'_> {
    /// Runs the turn. The proxy is left running.
    pub(super) fn run(&mut self) -> Result<()> {
        let started = self.start()?;
        let synced = self.await_sync(started)?;
        self.record("load_seconds", synced - started);
        let rules = self.await_metric("kubeproxy_sync_full_proxy_rules_duration_seconds_sum", 0.0)?;
        self.record("load_rules_seconds", rules);
        let target = self.target(80)?;
        self.client()?.await_answer(target, &pod(self.place, "one"), Duration::from_secs(10))?;
        self.record("memory_after_load_bytes", self.memory("VmRSS")?);
        for turn in 0..self.arguments.changes {
            self.change(if turn % 2 == 0 { "two" } else { "one" })?;
        }
        self.change_back()?;
        self.record("memory_bytes", self.memory("VmRSS")?);
        self.record("memory_peak_bytes", self.memory("VmHWM")?);
        if self.services < self.arguments.large {
            self.traffic()?;
            self.traffic_from_outside()?;
            self.restart()?;
        }
        Ok(())
    }

    fn record(&mut self, metric: &str, value: f64) {
        self.figures.add(&self.program.name, self.services, metric, value);
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(self.arguments.limit)
    }

    fn node(&self) -> String {
        node(self.place)
    }

    fn client(&self) -> Result<&sluice_tests::agent::Agent> {
        self.lab.agent(&From::Pod(pod(self.place, "client")))
    }

    fn target(&self, port: u16) -> Result<Target> {
        let text = format!("tcp://{}:{port}", world::cluster_ip(self.place));
        text.parse().map_err(anyhow::Error::msg)
    }

    fn metrics(&self) -> Result<String> {
        get(self.lab, &self.node(), "/metrics")
    }

    /// Starts the proxy and tells when.
    fn start(&mut self) -> Result<f64> {
        let started = unix_now();
        let node = self.node();
        self.lab.start_program(&node, self.program, &json!({}))?;
        Ok(started)
    }

    /// When the first sync of IPv4 after `since` was done, by the proxy's own word.
    fn await_sync(&mut self, since: f64) -> Result<f64> {
        self.await_metric("kubeproxy_sync_proxy_rules_last_timestamp_seconds", since)
    }

    /// The first value above `floor` of a metric.
    fn await_metric(&mut self, name: &str, floor: f64) -> Result<f64> {
        let end = Instant::now() + self.limit();
        loop {
            self.lab.check_proxies()?;
            // The page is not there before the proxy listens.
            let page = self.metrics().unwrap_or_default();
            match metric(&page, name) {
                Some(value) if value > floor => return Ok(value),
                _ => {}
            }
            if Instant::now() > end {
                bail!("no {name} above {floor} within {} s", self.arguments.limit);
            }
            sluice_tests::interrupt::sleep(Duration::from_millis(50))?;
        }
    }

    /// One change of endpoints: from the request to the API until the new endpoint answers.
    fn change(&mut self, endpoint: &str) -> Result<()> {
        let (key, slice) = world::own_slice(self.place, endpoint);
        let (target, wanted, limit) = (self.target(80)?, pod(self.place, endpoint), self.limit());
        // Changes come at arbitrary moments; a proxy may wait between syncs.
        sluice_tests::interrupt::sleep(Duration::from_millis(1200))?;
        let client = self.client()?;
        let lab: &Lab = self.lab;
        let (asked, answered) = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| client.await_answer(target, &wanted, limit));
            std::thread::sleep(Duration::from_millis(20));
            let asked = unix_now();
            lab.apply_object(&key, &slice)?;
            let answered = waiting.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
            Ok::<_, anyhow::Error>((asked, answered))
        })?;
        self.record("change_seconds", (answered - asked).max(0.0));
        Ok(())
    }

    /// Back to the endpoint that serves loads.
    fn change_back(&mut self) -> Result<()> {
        let (key, slice) = world::own_slice(self.place, "one");
        self.lab.apply_object(&key, &slice)?;
        let target = self.target(80)?;
        self.client()?.await_answer(target, &pod(self.place, "one"), self.limit())?;
        Ok(())
    }

    fn memory(&self, field: &str) -> Result<f64> {
        let pid = self.lab.program_pid(&self.node(), self.program)?;
        memory(pid, field)
    }

    /// Loads through the ClusterIP and straight to the pod, in turns.
    fn traffic(&mut self) -> Result<()> {
        for (name, work, workers) in [
            ("connections", Work::Connections, 2),
            ("requests", Work::Requests, 1),
            ("stream", Work::Stream, 1),
        ] {
            for direct in [false, true] {
                self.forget_connections()?;
                let report = self.load(work, workers, direct)?;
                let way = if direct { "direct" } else { "service" };
                let rate = report.done as f64 / report.seconds;
                self.record(&format!("{name}_per_second_{way}"), rate);
                if work != Work::Stream {
                    self.record(&format!("{name}_p50_seconds_{way}"), report.p50);
                    self.record(&format!("{name}_p99_seconds_{way}"), report.p99);
                }
                self.record(&format!("{name}_failed_{way}"), report.failed as f64);
            }
        }
        Ok(())
    }

    /// New connections through the node port, from the client outside the cluster, and straight to
    /// the pod from there.
    fn traffic_from_outside(&mut self) -> Result<()> {
        let node = NodeAddresses::of(&self.node()).context("a node without addresses")?.eth0[0];
        let ways = [
            ("node_port", node.to_string(), world::node_port(self.place)),
            ("outside_direct", world::direct(self.place), 9001 + world::DIRECT),
        ];
        for (way, address, port) in ways {
            self.forget_connections()?;
            let target = format!("tcp://{address}:{port}").parse().map_err(anyhow::Error::msg)?;
            let millis = self.arguments.load_seconds * 1000;
            let work = Work::Connections;
            let client = self.lab.agent(&From::Client)?;
            let report = client.bench(BenchRequest {
                target,
                work,
                workers: 2,
                millis,
                pause_micros: 0,
                patience: None,
            })?;
            self.record(&format!("connections_per_second_{way}"), report.done as f64 / report.seconds);
            self.record(&format!("connections_p50_seconds_{way}"), report.p50);
            self.record(&format!("connections_p99_seconds_{way}"), report.p99);
            self.record(&format!("connections_failed_{way}"), report.failed as f64);
        }
        Ok(())
    }

    fn load(&self, work: Work, workers: usize, direct: bool) -> Result<BenchReport> {
        let port = match work {
            Work::Connections => 9001,
            Work::Requests => 9002,
            Work::Stream => 9003,
        };
        let (address, port) = match direct {
            true => (world::direct(self.place), port + world::DIRECT),
            false => (world::cluster_ip(self.place), port),
        };
        let target = format!("tcp://{address}:{port}").parse().map_err(anyhow::Error::msg)?;
        let millis = self.arguments.load_seconds * 1000;
        self.client()?.bench(BenchRequest { target, work, workers, millis, pause_micros: 0, patience: None })
    }

    /// Thousands of finished connections stay tracked for two minutes; the next load starts without
    /// them.
    fn forget_connections(&self) -> Result<()> {
        self.lab.run(&self.node(), &["conntrack", "-F"].map(str::to_owned)).map(drop)
    }

    /// SIGKILL and a new start under a steady load of new connections, until the new process has
    /// synced.
    fn restart(&mut self) -> Result<()> {
        self.forget_connections()?;
        let request = BenchRequest {
            target: self.target(9001)?,
            work: Work::Connections,
            workers: 2,
            millis: 250,
            pause_micros: PAUSE_MICROS,
            patience: None,
        };
        let client = self.lab.shared_agent(&From::Pod(pod(self.place, "client")))?;
        let over = AtomicBool::new(false);
        let (seconds, reports) = std::thread::scope(|scope| {
            // The lab stays with this thread, whose end would kill its processes.
            let loading = scope.spawn(|| {
                let mut reports = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    reports.push(client.bench(request.clone())?);
                }
                Ok::<_, anyhow::Error>(reports)
            });
            let seconds = self.restarted();
            over.store(true, Ordering::Relaxed);
            let reports = loading.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
            Ok::<_, anyhow::Error>((seconds?, reports))
        })?;
        self.record("restart_seconds", seconds);
        self.record("restart_failed_connections", reports.iter().map(|report| report.failed as f64).sum());
        self.record("restart_connections", reports.iter().map(|report| report.done as f64).sum());
        Ok(())
    }

    fn restarted(&mut self) -> Result<f64> {
        let node = self.node();
        sluice_tests::interrupt::sleep(Duration::from_millis(500))?;
        self.lab.kill_program(&node, self.program)?;
        let started = self.start()?;
        let synced = self.await_sync(started)?;
        sluice_tests::interrupt::sleep(Duration::from_millis(500))?;
        Ok(synced - started)
    }
}

/// Ends the proxy of a turn and removes its rules, for the next turn.
pub(super) fn clean_up(lab: &mut Lab, program: &ProxyProgram, place: usize) -> Result<()> {
    let node = node(place);
    // A proxy that ended by itself was reported; what it left goes all the same.
    drop(lab.kill_program(&node, program));
    let mut commands = vec!["nft flush ruleset".to_owned(), "conntrack -F".to_owned()];
    if program.name == "ebpf" {
        commands.push("sluice cleanup".to_owned());
    }
    if program.name == "kube-proxy-iptables" {
        for table in ["nat", "filter", "mangle"] {
            for action in ["-F", "-X"] {
                commands.push(format!("iptables-legacy -w -t {table} {action}"));
                commands.push(format!("ip6tables-legacy -w -t {table} {action}"));
            }
        }
    }
    for command in commands {
        let argv: Vec<String> = command.split(' ').map(str::to_owned).collect();
        let finished = lab.run(&node, &argv)?;
        if !finished.status.success() {
            bail!("{command} on {node}: {}", finished.stderr.trim());
        }
    }
    Ok(())
}
