//! One turn of one proxy, in the VM: start, load, changes, memory.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sluice_core::ipvs::ServerKey;
use sluice_core::net::Protocol;
use sluice_sys::ipvs::Ipvs;
use sluice_tests::agent::bench::unix_now;
use sluice_tests::agent::http;
use sluice_tests::proxy::legacy_iptables;
use sluice_tests::replay::Replay;

use super::super::peers::bulk_address;
use super::{Arguments, Samples};
use crate::passes::{memory, metric};

/// The node that the proxies are told they run on, and its address.
pub(super) const NODE: &str = "node-a";
pub(super) const ADDRESS: &str = "192.168.77.11";
/// An endpoint that no Service has.
const NEW_ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 255, 255, 254);
const METRICS: &str = "http://127.0.0.1:10249/metrics";

/// The binaries.
pub(super) struct Programs {
    pub(super) sluice: PathBuf,
    pub(super) kube_proxy: PathBuf,
}

/// A running proxy. Dropping it kills it.
struct Running {
    child: Child,
    log: PathBuf,
    /// How long a load or a change may take.
    limit: Duration,
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(super) fn run(
    arguments: &Arguments,
    programs: &Programs,
    proxy: &str,
    api: &mut Replay,
    slices: &[Value],
    samples: &mut Samples,
) -> Result<()> {
    let directory = PathBuf::from("/tmp/bench-ipvs");
    prepare(&directory, api)?;
    let started = unix_now();
    let mut running = start(programs, proxy, &directory, Duration::from_secs(arguments.give_up))?;
    let done =
        running.await_metric("kubeproxy_sync_proxy_rules_last_timestamp_seconds", |value| value > started)?;
    samples.add("load_seconds", proxy, done - started);
    let rules = running.await_metric("kubeproxy_sync_full_proxy_rules_duration_seconds_sum", |sum| sum > 0.0);
    // kube-proxy's mode ipvs has no such thing: all its passes are full.
    let rules = match rules {
        Ok(rules) => rules,
        Err(_) => running.await_metric("kubeproxy_sync_proxy_rules_duration_seconds_sum", |sum| sum > 0.0)?,
    };
    samples.add("load_rules_seconds", proxy, rules);
    let mut ipvs = Ipvs::open()?;
    is_complete(&mut ipvs, arguments)?;
    samples.add("memory_mb", proxy, memory(running.child.id(), "VmRSS")? / 1e6);
    for number in 0..arguments.changes {
        // Changes come at arbitrary moments; a proxy may wait between passes.
        std::thread::sleep(Duration::from_millis(2000));
        let index = slices.len() / (arguments.changes + 1) * (number + 1);
        let slice = slices.get(index).context("no slice to change")?;
        let took = change(&mut running, &mut ipvs, api, slice, index)?;
        samples.add("change_seconds", proxy, took);
    }
    Ok(())
}

/// Removes what a proxy has left.
pub(super) fn clean_up(programs: &Programs) -> Result<()> {
    let mut command = Command::new(&programs.sluice);
    let status = command.args(["cleanup", "--kube-proxy"]).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "sluice cleanup: {status}");
    ensure!(Ipvs::open()?.servers()?.is_empty(), "cleanup left virtual servers");
    Ok(())
}

fn prepare(directory: &Path, api: &Replay) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": api.url()}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
    let config = json!({"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": "ipvs", "clusterCIDR": "10.244.0.0/16", "hostnameOverride": NODE,
        "bindAddress": ADDRESS,
        "clientConnection": {
            "kubeconfig": directory.join("kubeconfig"),
            "contentType": "application/json", "acceptContentTypes": "application/json",
        },
        "conntrack": {"maxPerCore": 0}});
    std::fs::write(directory.join("kubeconfig"), kubeconfig.to_string())?;
    std::fs::write(directory.join("config"), config.to_string())?;
    // Once; again it is there already.
    let line = format!(
        "ip link set lo up; ip link add node0 type dummy && ip link set node0 up && ip address add {ADDRESS}/24 dev node0"
    );
    let _again = Command::new("sh").args(["-c", &line]).stderr(Stdio::null()).status()?;
    Ok(())
}

fn start(programs: &Programs, proxy: &str, directory: &Path, limit: Duration) -> Result<Running> {
    let log = directory.join(format!("{proxy}.log"));
    let output = File::options().create(true).append(true).open(&log)?;
    let mut command = if proxy == "ipvs" {
        let mut command = Command::new(&programs.sluice);
        command.arg("run");
        command
    } else {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(&programs.kube_proxy);
        command.env("PATH", format!("{}:{path}:/usr/sbin:/sbin", legacy_iptables(directory)?.display()));
        command
    };
    command.arg("--config").arg(directory.join("config"));
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    Ok(Running { child: command.spawn().with_context(|| format!("starting {proxy}"))?, log, limit })
}

impl Running {
    fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("it ended ({status}):\n{}", sluice_tests::process::tail(&self.log, 20)),
        }
    }

    /// The first value of a metric that will do; an error where the page has been there for long
    /// without it.
    fn await_metric(&mut self, name: &str, will_do: impl Fn(f64) -> bool) -> Result<f64> {
        let end = Instant::now() + self.limit;
        loop {
            self.check()?;
            if let Ok(page) = http::get(METRICS) {
                match metric(&page.body, name) {
                    Some(value) if will_do(value) => return Ok(value),
                    None if page.body.contains("kubeproxy_sync_proxy_rules_last_timestamp_seconds{") => {
                        bail!("there is no {name}")
                    }
                    _ => {}
                }
            }
            ensure!(Instant::now() < end, "no {name} within {:?}", self.limit);
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// What was measured must have been done.
fn is_complete(ipvs: &mut Ipvs, arguments: &Arguments) -> Result<()> {
    let servers = ipvs.dump()?;
    let destinations: usize = servers.iter().map(|server| server.destinations.len()).sum();
    let wanted = arguments.services * arguments.endpoints;
    ensure!(
        servers.len() == arguments.services && destinations == wanted,
        "{} virtual servers with {destinations} destinations, instead of {} with {wanted}",
        servers.len(),
        arguments.services
    );
    Ok(())
}

/// One endpoint of a Service is exchanged: from the API's event until IPVS has the new one.
fn change(
    running: &mut Running,
    ipvs: &mut Ipvs,
    api: &mut Replay,
    slice: &Value,
    index: usize,
) -> Result<f64> {
    let mut slice = slice.clone();
    slice["endpoints"][0]["addresses"] = json!([NEW_ENDPOINT]);
    let key = ServerKey::Address(IpAddr::V4(bulk_address(index)), Protocol::Tcp, 80);
    let started = Instant::now();
    api.modify("endpointslices", slice)?;
    loop {
        let found = ipvs.destinations(&key)?;
        if found.iter().any(|held| held.destination.key.address == IpAddr::V4(NEW_ENDPOINT)) {
            return Ok(started.elapsed().as_secs_f64());
        }
        running.check()?;
        ensure!(started.elapsed() < running.limit, "no change within {:?}", running.limit);
        std::thread::sleep(Duration::from_millis(1));
    }
}
