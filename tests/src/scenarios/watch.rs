//! The watch under fire: an API server behind a proxy that makes faults. Traffic goes on meanwhile,
//! and afterwards everything is in force that was written during the fault.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::Scenario;
use super::stage::{Stage, met};
use super::traffic::{WEB, single};
use crate::case::Fails;
use crate::cluster::{ADDRESSES, Account, PORT};
use crate::expect::Verdict;
use crate::fault_proxy::{Fault, FaultProxy, Options};
use crate::objects::Key;
use crate::process::NETNS_DIR;
use crate::target::From;

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "watch-reset", body: reset, ..TEMPLATE },
    Scenario { name: "watch-refused", body: refused, ..TEMPLATE },
    Scenario { name: "watch-slow", body: slow, ..TEMPLATE },
    Scenario { name: "watch-frozen", body: frozen, ..TEMPLATE },
    Scenario { name: "watch-half-open", body: half_open, long: true, ..TEMPLATE },
    Scenario { name: "watch-gone", body: |stage| status(stage, 410, None, "gone"), ..TEMPLATE },
    Scenario { name: "watch-throttled", body: |stage| status(stage, 429, Some(2), "throttled"), ..TEMPLATE },
    Scenario {
        name: "watch-server-error",
        body: |stage| status(stage, 500, None, "server_error"),
        ..TEMPLATE
    },
    Scenario { name: "watch-truncated", body: truncated, ..TEMPLATE },
    Scenario { name: "watch-malformed", body: malformed, ..TEMPLATE },
    Scenario { name: "watch-bookmarks-only", body: bookmarks_only, ..TEMPLATE },
];

const TEMPLATE: Scenario = Scenario::under_traffic(file!());

/// Where the fault proxy listens, in the control plane's namespace.
const FAULTY_PORT: u16 = 6444;
/// Connections in a second, from inside and from outside each.
pub(super) const PER_SECOND: u64 = 40;
/// When changes are in force after a fault.
pub(super) const RECOVERY: Duration = Duration::from_secs(15);
/// The same where a server asked for patience, or a pause between tries has grown.
pub(super) const SLOW_RECOVERY: Duration = Duration::from_secs(60);
/// How long a fault lasts.
const FAULT: Duration = Duration::from_secs(4);

/// Services that come and go during a fault.
const OLD: &str = "tcp://10.96.0.21:80";
const NEW: &str = "tcp://10.96.0.22:80";

impl Stage {
    /// Starts a proxy that makes no faults yet.
    pub(super) fn start_fault_proxy(&self) -> Result<FaultProxy> {
        FaultProxy::start(Options {
            upstream: format!("https://127.0.0.1:{PORT}"),
            listen: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), FAULTY_PORT),
            netns: Some(Path::new(NETNS_DIR).join(self.cluster.namespace().name())),
        })
    }

    /// Starts sluice on the first node, with the fault proxy as its API server and a file as its
    /// token.
    pub(super) fn start_behind_faults(&mut self, token: &str) -> Result<()> {
        let file = self.token_file();
        std::fs::write(&file, token)?;
        let server = format!("https://{}:{FAULTY_PORT}", ADDRESSES[0]);
        let kubeconfig = self.lab.dir().join("faulty.kubeconfig");
        self.cluster.unchecked_kubeconfig_for(&server, &json!({"tokenFile": file}), &kubeconfig)?;
        self.lab.start_proxy("node-a", &json!({"clientConnection": {"kubeconfig": kubeconfig}}))
    }

    pub(super) fn token_file(&self) -> std::path::PathBuf {
        self.lab.dir().join("token")
    }

    /// Sluice behind a proxy, traffic under way, and a Service that will be deleted.
    fn begin_behind_faults(&mut self) -> Result<FaultProxy> {
        let proxy = self.start_fault_proxy()?;
        self.prepare_changes()?;
        let token = self.cluster.token(Account::Sluice).to_owned();
        self.start_behind_faults(&token)?;
        self.begin_traffic(PER_SECOND)?;
        self.reaches("pod/user", OLD, &["b2"])?;
        Ok(proxy)
    }

    /// Writes what [`Self::change`] changes.
    pub(super) fn prepare_changes(&self) -> Result<()> {
        self.apply_web()?;
        self.lab.apply_all(&single("old", "10.96.0.21", "10.244.2.12"))
    }

    /// Changes endpoints, deletes a Service and creates another.
    pub(super) fn change(&self) -> Result<()> {
        self.point_web_to(&["a1", "b2"])?;
        self.lab.delete(&Key::new("EndpointSlice", None, "old-1"))?;
        self.lab.delete(&Key::new("Service", None, "old"))?;
        self.lab.apply_all(&single("new", "10.96.0.22", "10.244.2.12"))
    }

    /// What was changed must come into force, and traffic must not have noticed anything.
    pub(super) fn changes_are_in_force(&mut self, within: Duration) -> Result<()> {
        self.reaches_within(within, "pod/user", WEB, &["a1", "b2"])?;
        self.reaches("pod/user", NEW, &["b2"])?;
        self.fails("pod/user", OLD, Fails::Any)?;
        self.end_traffic()
    }

    /// The metrics page must have counted failures of this kind.
    pub(super) fn counted(&mut self, reason: &str) -> Result<()> {
        self.eventually(RECOVERY, |stage| {
            let node = From::Host("node-a".to_owned());
            let page = stage.lab.agent(&node)?.http_get("http://127.0.0.1:10249/metrics")?.body;
            Ok(has_counted(&page, reason))
        })
    }
}

/// Whether a metrics page has counted failures with this `reason`.
fn has_counted(page: &str, reason: &str) -> Verdict {
    const METRIC: &str = "sluice_watch_errors_total{";
    let label = format!("reason=\"{reason}\"");
    let lines = page.lines().filter(|line| line.starts_with(METRIC));
    let counted = lines.clone().any(|line| line.contains(&label) && !line.ends_with(" 0"));
    met(counted, &format!("{METRIC}{label}}}"), || lines.collect::<Vec<_>>().join("\n"))
}

/// Changes made during a fault are in force soon after it, and failures of this kind were counted.
fn during(stage: &mut Stage, proxy: &FaultProxy, within: Duration, reason: Option<&str>) -> Result<()> {
    stage.change()?;
    stage.traffic_goes_on(FAULT)?;
    stage.step("after the fault")?;
    proxy.heal();
    stage.changes_are_in_force(within)?;
    reason.map_or(Ok(()), |reason| stage.counted(reason))
}

/// Every answer breaks off after a few bytes.
fn reset(stage: &mut Stage) -> Result<()> {
    let proxy = stage.begin_behind_faults()?;
    stage.step("connections are reset")?;
    proxy.inject("", Fault::ResetAfter(200));
    proxy.reset_connections();
    during(stage, &proxy, RECOVERY, Some("reset"))
}

/// Nobody listens.
fn refused(stage: &mut Stage) -> Result<()> {
    let proxy = stage.begin_behind_faults()?;
    stage.step("connections are refused")?;
    proxy.inject("", Fault::Refuse);
    during(stage, &proxy, RECOVERY, Some("connect"))
}

/// Bytes trickle, from the list on; what changes comes through all the same.
fn slow(stage: &mut Stage) -> Result<()> {
    let proxy = stage.begin_behind_faults()?;
    stage.step("bytes are slow")?;
    proxy.inject("", Fault::Slow { bytes: 400, pause: Duration::from_millis(100) });
    proxy.reset_connections();
    stage.change()?;
    stage.changes_are_in_force(SLOW_RECOVERY)
}

/// Connections are open, and nothing comes; then they break.
fn frozen(stage: &mut Stage) -> Result<()> {
    let proxy = stage.begin_behind_faults()?;
    stage.step("everything freezes")?;
    proxy.reset_connections();
    proxy.inject("", Fault::Freeze);
    stage.change()?;
    stage.traffic_goes_on(FAULT)?;
    stage.step("frozen connections break")?;
    proxy.heal();
    proxy.reset_connections();
    stage.changes_are_in_force(RECOVERY)?;
    stage.counted("reset")
}

/// Watches freeze and never break: sluice has to notice by itself.
fn half_open(stage: &mut Stage) -> Result<()> {
    let proxy = stage.begin_behind_faults()?;
    stage.step("watches freeze")?;
    proxy.inject("watch=", Fault::Freeze);
    stage.change()?;
    stage.traffic_goes_on(FAULT)?;
    stage.step("new watches work")?;
    proxy.heal();
    stage.changes_are_in_force(Duration::from_secs(180))?;
    stage.counted("timeout")
}

/// Requests are refused with a status.
fn status(stage: &mut Stage, code: u16, retry_after: Option<u64>, reason: &str) -> Result<()> {
    let proxy = stage.begin_behind_faults()?;
    stage.step(&format!("requests are refused with {code}"))?;
    // A 410 is about the version that a watch asks for; after it comes a list, which must work.
    let matching = if code == 410 { "watch=" } else { "" };
    proxy.inject(matching, Fault::Status { code, retry_after, requests: 12 });
    proxy.reset_connections();
    during(stage, &proxy, SLOW_RECOVERY, Some(reason))
}

/// Events lose their second half.
fn truncated(stage: &mut Stage) -> Result<()> {
    let proxy = stage.begin_behind_faults()?;
    stage.step("events are truncated")?;
    proxy.inject("", Fault::Truncate { after: 0, events: 6 });
    during(stage, &proxy, RECOVERY, Some("malformed"))
}

/// Events are no JSON.
fn malformed(stage: &mut Stage) -> Result<()> {
    let proxy = stage.begin_behind_faults()?;
    stage.step("events are malformed")?;
    proxy.inject("", Fault::Corrupt { after: 0, events: 6 });
    during(stage, &proxy, RECOVERY, Some("malformed"))
}

/// Events are swallowed, bookmarks are not. Only a list can tell then what was missed.
fn bookmarks_only(stage: &mut Stage) -> Result<()> {
    let proxy = stage.begin_behind_faults()?;
    stage.step("bookmarks only")?;
    proxy.inject("", Fault::OnlyBookmarks);
    stage.change()?;
    stage.traffic_goes_on(FAULT)?;
    stage.step("the next list")?;
    proxy.heal();
    proxy.inject("watch=", Fault::Status { code: 410, retry_after: None, requests: 4 });
    proxy.reset_connections();
    stage.changes_are_in_force(RECOVERY)?;
    stage.counted("gone")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters() {
        let page = "# TYPE sluice_watch_errors_total counter\n\
                    sluice_watch_errors_total{kind=\"Node\",reason=\"gone\"} 0\n\
                    sluice_watch_errors_total{kind=\"Service\",reason=\"reset\"} 20\n";
        assert!(has_counted(page, "reset").is_ok());
        assert!(has_counted(page, "gone").is_err());
        assert!(has_counted(page, "tls").is_err());
    }
}
