//! Configuration in two stages: [`raw`] is what was typed, [`Settings`] is what the program needs.

mod duration;
pub mod raw;
mod resolve;

pub use duration::GoDuration;
pub use resolve::{ConfigError, DetectLocal, Flags, NodePortSelection, Settings, Source, resolve};

use std::path::Path;

use raw::KubeProxyConfiguration;

/// A configuration file with everything in it that has no meaning here.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The configuration.
    pub config: KubeProxyConfiguration,
    /// Paths of unknown fields.
    pub unknown: Vec<String>,
}

/// Reads a KubeProxyConfiguration from a YAML or JSON file.
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|reason| ConfigError::Parse { path: path.to_owned(), reason })
}

fn parse(text: &str) -> Result<Loaded, String> {
    let value: serde_json::Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let mut unknown = Vec::new();
    let config = serde_ignored::deserialize(value, |path| unknown.push(path.to_string()))
        .map_err(|error: serde_json::Error| error.to_string())?;
    Ok(Loaded { config, unknown })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_reported_with_their_path_and_the_rest_counts() {
        let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                    mode: nftables\nnftables: {masqueradeBit: 15, colour: red}\nsluice: {scheduler: rr}\n\
                    frobnicate: 1\n";
        let loaded = parse(text).unwrap();
        assert_eq!(loaded.unknown, ["frobnicate", "nftables.colour"]);
        assert_eq!(loaded.config.mode, "nftables");
        assert_eq!(loaded.config.nftables.masquerade_bit, Some(15));
        assert_eq!(loaded.config.sluice.scheduler, "rr");
    }

    #[test]
    fn a_wrong_type_is_an_error_that_names_it() {
        assert!(parse("nftables: {masqueradeBit: many}").unwrap_err().contains("many"));
        assert!(parse("mode: [").is_err());
    }

    #[test]
    fn json_is_read_too() {
        assert_eq!(
            parse(r#"{"mode":"nftables","clusterCIDR":"10.0.0.0/8"}"#).unwrap().config.cluster_cidr,
            "10.0.0.0/8"
        );
    }
}
