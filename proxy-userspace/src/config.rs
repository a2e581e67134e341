//! Configuration in two stages: [`raw`] is what was typed, [`Settings`] is what the program needs.

mod defaults;
mod duration;
mod flags;
mod gates;
mod ignored;
mod node_ports;
mod places;
mod pod_network;
pub mod raw;
mod resolve;
mod types;
mod validate;
mod watch;

pub(crate) use defaults::{BIN_DIR, BPFFS, CONF_DIR};
pub use duration::GoDuration;
pub use flags::{asks_for_json, settings, write_effective};
pub use gates::FeatureGates;
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

use crate::go_yaml::{Document, Lines, first_document};

/// A configuration file.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The file's text.
    pub text: String,
    /// The configuration.
    pub config: KubeProxyConfiguration,
    /// What is odd about it: unknown fields, and fields given twice.
    pub odd: Vec<String>,
    /// What is of a wrong type, and left out; each begins with its path.
    pub wrong: Vec<String>,
    /// Where its fields are.
    pub lines: Lines,
}

/// Reads a KubeProxyConfiguration from a YAML or JSON file.
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let loaded = parse(&text).map_err(|reason| ConfigError::Parse { path: path.to_owned(), reason })?;
    Ok(Loaded { text, ..loaded })
}

fn parse(text: &str) -> Result<Loaded, String> {
    let Document { mut value, twice, lines } = document(text)?;
    if !value.is_object() {
        return Err("there is no KubeProxyConfiguration in the first YAML document".into());
    }
    nulls(&mut value, "");
    let types::Read { config, wrong, unknown } = types::read(value);
    let on_line = |path: &str| lines.of(path).map_or_else(String::new, |line| format!(" (line {line})"));
    let twice =
        twice.iter().map(|path| format!("{path} is set twice, and the last value is used{}", on_line(path)));
    let unknown = unknown.iter().map(|path| format!("unknown field {path} is ignored{}", on_line(path)));
    Ok(Loaded { odd: twice.chain(unknown).collect(), config, wrong, lines, ..Loaded::default() })
}

/// The first document. As in kube-proxy, a text that begins with `{` is JSON and nothing else.
fn document(text: &str) -> Result<Document, String> {
    if !text.trim_start().starts_with('{') {
        return first_document(text).map_err(|error| error.to_string());
    }
    // Fields that are given twice are told by reading the text as YAML, of which JSON is a part.
    let value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let read = first_document(text).unwrap_or_default();
    Ok(Document { value, ..read })
}

/// Durations that are no pointers in kube-proxy, whose decoder wants a text there and takes null
/// for an empty one.
const NEVER_NULL: [&str; 10] = [
    "configSyncPeriod",
    "iptables.syncPeriod",
    "iptables.minSyncPeriod",
    "nftables.syncPeriod",
    "nftables.minSyncPeriod",
    "ipvs.syncPeriod",
    "ipvs.minSyncPeriod",
    "ipvs.tcpTimeout",
    "ipvs.tcpFinTimeout",
    "ipvs.udpTimeout",
];

/// Takes null as Go's JSON decoder does: a field counts as left out, a value of a map or a list is
/// the zero value.
fn nulls(value: &mut Value, path: &str) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, value| {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                if value.is_null() && path.starts_with("featureGates.") {
                    *value = false.into();
                }
                if value.is_null() && NEVER_NULL.contains(&path.as_str()) {
                    *value = "".into();
                }
                nulls(value, &path);
                !value.is_null()
            });
        }
        Value::Array(items) => {
            for item in items {
                match path {
                    "nodePortAddresses" | "ipvs.excludeCIDRs" if item.is_null() => *item = "".into(),
                    "logging.vmodule" if item.is_null() => *item = Value::Object(serde_json::Map::new()),
                    _ => nulls(item, path),
                }
            }
        }
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
            [
                "unknown field frobnicate is ignored (line 6)",
                "unknown field nftables.colour is ignored (line 4)"
            ]
        );
        assert_eq!(loaded.config.mode, "nftables");
        assert_eq!(loaded.config.nftables.masquerade_bit, Some(15));
        assert_eq!(loaded.config.sluice.scheduler, "rr");
    }

    #[test]
    fn a_wrong_type_is_an_error_that_names_it() {
        let wrong = |text| parse(text).unwrap().wrong;
        let told = wrong("mode: nftables\nnftables: {masqueradeBit: many}");
        assert_eq!(told, ["nftables.masqueradeBit: \"many\" is not a 32-bit integer"]);
        for text in
            ["mode: 1", "mode: yes", "oomScoreAdj: '5'", "oomScoreAdj: 1.5", "bindAddressHardFail: 'true'"]
        {
            assert_eq!(wrong(text).len(), 1, "{text}");
        }
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
    fn numbers_are_those_of_go() {
        let loaded =
            parse("nftables: {masqueradeBit: 016}\noomScoreAdj: -9e2\nconntrack: {min: 1_000}\n").unwrap();
        assert_eq!(loaded.config.nftables.masquerade_bit, Some(14));
        assert_eq!((loaded.config.oom_score_adj, loaded.config.conntrack.min), (Some(-900), Some(1000)));
    }

    #[test]
    fn null_is_what_go_makes_of_it() {
        let loaded =
            parse("featureGates: {WatchList: null}\nnodePortAddresses: [null]\niptables: null\n").unwrap();
        assert!(!loaded.config.feature_gates["WatchList"]);
        assert_eq!(loaded.config.node_port_addresses.unwrap(), [""]);
        assert!(parse("configSyncPeriod: null").unwrap().wrong[0].starts_with("configSyncPeriod: "));
        for text in ["", "---\n---\nmode: nftables\n", "[]", "mode"] {
            assert!(parse(text).unwrap_err().contains("no KubeProxyConfiguration"), "{text:?}");
        }
    }

    #[test]
    fn the_first_document_counts() {
        for text in ["mode: nftables\n---\n", "---\nmode: nftables\n...\n---\nmode: x\n"] {
            assert_eq!(parse(text).unwrap().config.mode, "nftables", "{text:?}");
        }
    }

    #[test]
    fn json_is_read_too() {
        assert_eq!(
            parse(r#"{"mode":"nftables","clusterCIDR":"10.0.0.0/8"}"#).unwrap().config.cluster_cidr,
            "10.0.0.0/8"
        );
        // As in kube-proxy: no number with a fraction, nothing behind, no YAML.
        for text in [r#"{"oomScoreAdj": 14.0}"#, "{\"mode\": \"\"}\n---\n", "{mode: nftables}"] {
            assert!(parse(text).map_or(true, |loaded| !loaded.wrong.is_empty()), "{text}");
        }
        assert_eq!(parse(r#"{"mode": "a", "mode": "b"}"#).unwrap().odd.len(), 1);
    }
}
