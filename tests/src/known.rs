//! Cases that are wrong, with the evidence, or demand what a proxy is documented not to do: they
//! count as skipped, not as failures of the proxy.

use anyhow::{Result, anyhow};
use serde::Deserialize;
use sluice_skips::Why;

/// The list that the project keeps.
pub const OF_THE_PROJECT: &str = include_str!("../known-case-errors.yaml");

/// Cases that demand what the real kube-proxy does not do, or what a backend has as a documented
/// limit.
#[derive(Debug, Clone, Default)]
pub struct KnownErrors(Vec<KnownError>);

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct KnownError {
    /// The case's name
    case: String,
    /// The proxies that it is skipped for
    proxies: Vec<String>,
    #[serde(flatten)]
    fault: Fault,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Fault {
    /// What the real kube-proxy does, and how that was seen
    Evidence(String),
    /// What the proxy does not do, and where that is documented
    Limit(String),
}

impl KnownErrors {
    /// Reads a YAML list; none is an empty one.
    pub fn parse(text: &str) -> Result<Self> {
        let read: Option<Vec<KnownError>> =
            serde_saphyr::from_str(text).map_err(|error| anyhow!("known case errors: {error}"))?;
        Ok(Self(read.unwrap_or_default()))
    }

    /// Why a case is not run with a proxy.
    #[must_use]
    pub fn skip_reason(&self, case: &str, proxy: &str) -> Option<Why> {
        let listed =
            |error: &&KnownError| error.case == case && error.proxies.iter().any(|name| name == proxy);
        let error = self.0.iter().find(listed)?;
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        Some(Why::choice(match &error.fault {
            Fault::Evidence(evidence) => format!("the case is wrong: {}", one_line(evidence)),
            Fault::Limit(limit) => format!("not for {proxy}: {}", one_line(limit)),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_pairs_are_skipped() {
        let text = "- case: a\n  proxies: [kube-proxy-nftables]\n  evidence: |\n    it does\n    not\n";
        let known = KnownErrors::parse(text).unwrap();
        let wrong = Why::choice("the case is wrong: it does not");
        assert_eq!(known.skip_reason("a", "kube-proxy-nftables"), Some(wrong));
        assert_eq!(known.skip_reason("a", "nftables"), None);
        let limit = KnownErrors::parse("- {case: a, proxies: [ebpf], limit: no such packets}").unwrap();
        assert_eq!(limit.skip_reason("a", "ebpf"), Some(Why::choice("not for ebpf: no such packets")));
        assert_eq!(known.skip_reason("b", "kube-proxy-nftables"), None);
        assert!(KnownErrors::parse("- case: a\n").is_err());
        assert!(KnownErrors::parse("# nothing\n").is_ok());
        assert!(KnownErrors::parse(OF_THE_PROJECT).is_ok());
    }
}
