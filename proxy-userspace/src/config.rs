//! Configuration in two stages: [`raw`] is what was typed, [`Settings`] is what the program needs.

mod defaults;
mod duration;
mod flags;
mod gates;
mod ignored;
mod node_ports;
mod pod_network;
pub mod raw;
mod resolve;
mod validate;
mod watch;

pub(crate) use defaults::BPFFS;
pub use duration::GoDuration;
pub use flags::{settings, write_effective};
pub use node_ports::NodePortSelection;
pub use pod_network::{CniSettings, PodNetworkSettings};
pub use resolve::{
    BackendKind, ConfigError, ConfigFile, DetectLocal, EbpfSettings, Flags, IpvsSettings, Scheduler,
    Settings, Source, resolve,
};
pub use watch::changed;

use std::path::Path;

use raw::KubeProxyConfiguration;
use serde_json::Value;
use serde_saphyr::DuplicateKeyPolicy;

/// A configuration file.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The file's text.
    pub text: String,
    /// The configuration.
    pub config: KubeProxyConfiguration,
    /// What is odd about it: unknown fields, and fields given twice.
    pub odd: Vec<String>,
}

/// Reads a KubeProxyConfiguration from a YAML or JSON file.
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let loaded = parse(&text).map_err(|reason| ConfigError::Parse { path: path.to_owned(), reason })?;
    Ok(Loaded { text, ..loaded })
}

fn parse(text: &str) -> Result<Loaded, String> {
    let strict: Result<Value, _> = serde_saphyr::from_str(text);
    let (mut value, twice) = match strict {
        Ok(value) => (value, None),
        // kube-proxy reads a file with a field given twice too, and the last one counts.
        Err(error) => {
            let lenient = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::LastWins };
            let value = serde_saphyr::from_str_with_options(text, lenient).map_err(|_| error.to_string())?;
            (value, Some(error.to_string()))
        }
    };
    without_nulls(&mut value);
    let mut odd: Vec<String> =
        twice.into_iter().map(|error| format!("the last one counts: {error}")).collect();
    let config =
        serde_ignored::deserialize(value, |path| odd.push(format!("unknown field {path} is ignored")))
            .map_err(|error: serde_json::Error| error.to_string())?;
    Ok(Loaded { config, odd, ..Loaded::default() })
}

/// A field that is null counts as left out.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
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
        assert_eq!(
            loaded.odd,
            ["unknown field frobnicate is ignored", "unknown field nftables.colour is ignored"]
        );
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
    fn of_a_field_given_twice_the_last_counts_and_null_is_nothing() {
        let loaded =
            parse("mode: nftables\nmode: iptables\nclusterCIDR: null\nconntrack: {min: null}\n").unwrap();
        assert_eq!(loaded.config.mode, "iptables");
        assert_eq!(loaded.config.conntrack.min, None);
        assert!(loaded.odd[0].contains("mode"), "{:?}", loaded.odd);
    }

    #[test]
    fn json_is_read_too() {
        assert_eq!(
            parse(r#"{"mode":"nftables","clusterCIDR":"10.0.0.0/8"}"#).unwrap().config.cluster_cidr,
            "10.0.0.0/8"
        );
    }
}
