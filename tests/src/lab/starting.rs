//! When the proxies of a lab have synced for the first time, as their metrics tell: sluice's, and
//! kube-proxy's alike.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;

use super::Lab;
use crate::interrupt;
use crate::target::From;

/// How long a first sync may take, whatever the patience: on a busy machine the kernel alone takes
/// many seconds to verify eBPF programs, and in every case a proxy that never syncs costs this
/// long.
const LIMIT: Duration = Duration::from_secs(180);
/// Between two looks.
const POLL: Duration = Duration::from_millis(50);
/// The gauge that both have, a sample for each family; kube-proxy's comes with the first sync.
const LAST_SYNC: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";

impl Lab {
    /// Waits until each proxy that runs has synced once.
    pub fn await_first_syncs(&mut self) -> Result<()> {
        while self.are_starting()? {
            interrupt::sleep(POLL)?;
        }
        Ok(())
    }

    /// Whether a proxy that runs has not synced yet. One that takes too long is an error, and so is
    /// one that has ended.
    pub fn are_starting(&mut self) -> Result<bool> {
        self.check_proxies()?;
        let mut starting = false;
        for ((node, name), proxy) in &mut self.proxies {
            let (Some(url), Some(agent)) = (proxy.starting(), self.agents.get(&From::Host(node.clone())))
            else {
                continue;
            };
            // The page is not there before the daemon listens.
            if agent.http_get(url).is_ok_and(|answer| has_synced(&answer.body)) {
                proxy.has_started();
            } else if proxy.age() > LIMIT {
                bail!("{name} on {node} has not synced within {LIMIT:?}:\n{}", proxy.log(20));
            } else {
                starting = true;
            }
        }
        Ok(starting)
    }
}

/// Where a proxy with a configuration serves its metrics to the node itself; none where that cannot
/// be told.
pub(crate) fn metrics_url(config: &Value) -> Option<String> {
    let text = |field: &str| config[field].as_str().filter(|text| !text.is_empty());
    let is_v6 =
        text("bindAddress").and_then(|text| text.parse::<IpAddr>().ok()).is_some_and(|ip| ip.is_ipv6());
    let usual = if is_v6 { "[::1]:10249" } else { "127.0.0.1:10249" };
    let address = text("metricsBindAddress").unwrap_or(usual);
    let address = address
        .parse::<SocketAddr>()
        .or_else(|_| address.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 10249)))
        .ok()?;
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Some(format!("http://{}/metrics", SocketAddr::new(ip, address.port())))
}

/// Whether a metrics page tells of a sync of each family that it names.
fn has_synced(page: &str) -> bool {
    let samples = page.lines().filter(|line| line.starts_with(LAST_SYNC));
    let mut times = samples.map(|line| line.rsplit(' ').next().and_then(|time| time.parse::<f64>().ok()));
    times.next().is_some_and(|first| times.chain([first]).all(|time| time.is_some_and(|time| time > 0.0)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_sync_of_every_family_counts() {
        let page = |v4: &str, v6: &str| {
            format!("# TYPE {LAST_SYNC} gauge\n{LAST_SYNC}{{f=\"4\"}} {v4}\n{LAST_SYNC}{{f=\"6\"}} {v6}\n")
        };
        assert!(has_synced(&page("1.7e+09", "1.7e+09")));
        assert!(!has_synced(&page("1.7e+09", "0")));
        assert!(!has_synced(&page("0", "0")));
        assert!(has_synced(&format!("{LAST_SYNC}{{ip_family=\"IPv4\"}} 1.7e+09")));
        assert!(!has_synced("# nothing yet\n"));
    }

    #[test]
    fn metrics_are_asked_for_where_the_configuration_says() {
        let url = |config: Value| metrics_url(&config);
        assert_eq!(url(json!({})).as_deref(), Some("http://127.0.0.1:10249/metrics"));
        assert_eq!(url(json!({"metricsBindAddress": ""})), url(json!({})));
        let v6 = json!({"bindAddress": "::"});
        assert_eq!(url(v6).as_deref(), Some("http://[::1]:10249/metrics"));
        let wildcard = json!({"metricsBindAddress": "0.0.0.0"});
        assert_eq!(url(wildcard).as_deref(), Some("http://127.0.0.1:10249/metrics"));
        let own = json!({"metricsBindAddress": "192.168.77.11:9000"});
        assert_eq!(url(own).as_deref(), Some("http://192.168.77.11:9000/metrics"));
        assert_eq!(url(json!({"metricsBindAddress": "nowhere"})), None);
    }
}
