//! What the daemon in a lab's node tells of its passes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use sluice_tests::lab::Lab;
use sluice_tests::target::From;

/// A pass as /debug/syncs tells it.
#[derive(Debug, Deserialize)]
pub(crate) struct Sync {
    /// `full`, `incremental`, `repair` or `audit`.
    pub(crate) kind: String,
    /// Unix time of its end.
    pub(crate) at: f64,
    /// Operations committed to the kernel.
    pub(crate) operations: usize,
    /// From the first event that it applied to the kernel's acknowledgement.
    pub(crate) seconds_from_event: f64,
    /// Of this, the time of planning, lowering and committing.
    pub(crate) seconds: f64,
}

/// A page of the metrics server in a node.
pub(crate) fn get(lab: &Lab, node: &str, path: &str) -> Result<String> {
    let url = format!("http://127.0.0.1:10249{path}");
    let answer = lab.agent(&From::Host(node.to_owned()))?.http_get(&url)?;
    if answer.status != 200 {
        bail!("{url} answers {}", answer.status);
    }
    Ok(answer.body)
}

/// The last passes in a node.
pub(crate) fn syncs(lab: &Lab, node: &str) -> Result<Vec<Sync>> {
    Ok(serde_json::from_str(&get(lab, node, "/debug/syncs")?)?)
}

/// Waits for a pass.
pub(crate) fn await_sync(
    lab: &mut Lab,
    node: &str,
    limit: Duration,
    wanted: impl Fn(&Sync) -> bool,
) -> Result<Sync> {
    let end = Instant::now() + limit;
    loop {
        lab.check_proxies()?;
        // The page is not there before the daemon listens.
        let found = syncs(lab, node).unwrap_or_default().into_iter().find(&wanted);
        if let Some(sync) = found {
            return Ok(sync);
        }
        if Instant::now() > end {
            bail!("no such pass within {limit:?}:\n{:?}", lab.proxy_logs(20));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A size in `/proc/PID/status`, such as `VmRSS`, in bytes.
pub(crate) fn memory(pid: u32, field: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    let kilobytes = kilobytes.with_context(|| format!("/proc/{pid}/status has no {field}"))?;
    Ok(kilobytes.parse::<f64>()? * 1024.0)
}

/// A sample of IPv4, or one without labels, on a metrics page.
pub(crate) fn metric(page: &str, name: &str) -> Option<f64> {
    let line = page.lines().find(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(' ') || rest.starts_with("{ip_family=\"IPv4\"}"))
    })?;
    line.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_family() {
        let page = "# TYPE a gauge\na{ip_family=\"IPv6\"} 1\na{ip_family=\"IPv4\"} 1.5e+09\nb 3\nab 4\n";
        assert_eq!(metric(page, "a"), Some(1.5e9));
        assert_eq!(metric(page, "b"), Some(3.0));
        assert_eq!(metric(page, "c"), None);
    }
}
