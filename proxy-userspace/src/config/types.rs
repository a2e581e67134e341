//! From a document to the configuration, with every value of a wrong type. Pure.

use serde_json::Value;
use serde_path_to_error::{Path, Segment, Track};

use super::raw::{KubeProxyConfiguration, VModule};

/// Wrong values, or attempts at them: more than anybody reads.
const MOST: usize = 100;
/// What a decoder says of what is no section.
const SECTION: &str = "invalid type: sequence, expected a map";
/// How much of a wrong value is shown.
const SHOWN: usize = 60;

/// A configuration as far as it can be read.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// What is of a wrong type is left out.
    pub(super) config: KubeProxyConfiguration,
    /// What is of a wrong type, each beginning with its path.
    pub(super) wrong: Vec<String>,
    /// The paths of fields that nobody knows.
    pub(super) unknown: Vec<String>,
}

/// Reads a document. A decoder ends at the first wrong value, so that this is noted and left out,
/// and the rest is read again.
pub(super) fn read(mut value: Value) -> Read {
    let mut wrong = Vec::new();
    lists_for_sections(&mut value, &shape(), "", &mut wrong);
    for _ in 0..MOST {
        let (mut unknown, mut track) = (Vec::new(), Track::new());
        let tracked = serde_path_to_error::Deserializer::new(value.clone(), &mut track);
        let read = serde_ignored::deserialize(tracked, |path| unknown.push(path.to_string()));
        let error: serde_json::Error = match read {
            Ok(config) => return Read { config, wrong, unknown },
            Err(error) => error,
        };
        let path = track.path();
        let found = at(&mut value, &path);
        let told = format!("{path}: {}", words(found.as_deref(), &error.to_string()));
        // What stands in its place may be wrong once more.
        if !wrong.iter().any(|before| super::places::path(before) == super::places::path(&told)) {
            wrong.push(told);
        }
        if !leave_out(&mut value, &path) {
            break;
        }
    }
    Read { wrong, ..Read::default() }
}

fn step<'a>(value: &'a mut Value, segment: &Segment) -> Option<&'a mut Value> {
    match segment {
        Segment::Map { key } => value.get_mut(key),
        Segment::Seq { index } => value.get_mut(index),
        Segment::Enum { .. } | Segment::Unknown => None,
    }
}

fn at<'a>(value: &'a mut Value, path: &Path) -> Option<&'a mut Value> {
    path.iter().try_fold(value, step)
}

/// A field counts as not given, an item of a list as empty, so that the others keep their places.
/// Returns whether anything changed.
fn leave_out(value: &mut Value, path: &Path) -> bool {
    let mut segments: Vec<&Segment> = path.iter().collect();
    let Some(last) = segments.pop() else { return false };
    let Some(parent) = segments.into_iter().try_fold(value, step) else { return false };
    match (last, parent) {
        (Segment::Map { key }, Value::Object(fields)) => fields.remove(key).is_some(),
        (Segment::Seq { index }, Value::Array(items)) => {
            let Some(item) = items.get_mut(*index) else { return false };
            // All lists are of texts or of sections.
            *item = if item.is_string() { Value::Object(serde_json::Map::new()) } else { "".into() };
            true
        }
        _ => false,
    }
}

/// All sections, and in each list one item.
fn shape() -> Value {
    let mut config = KubeProxyConfiguration::default();
    config.logging.vmodule.push(VModule::default());
    serde_json::to_value(config).unwrap_or_default()
}

/// A decoder takes a list for a section, by the order of the fields, which nobody means. It is left
/// out.
fn lists_for_sections(value: &mut Value, shape: &Value, path: &str, wrong: &mut Vec<String>) {
    match (value, shape) {
        (value @ Value::Array(_), Value::Object(_)) => {
            wrong.push(format!("{path}: {}", words(Some(value), SECTION)));
            *value = Value::Object(serde_json::Map::new());
        }
        (Value::Array(items), Value::Array(shapes)) => {
            for (i, item) in items.iter_mut().enumerate() {
                shapes
                    .iter()
                    .for_each(|shape| lists_for_sections(item, shape, &format!("{path}[{i}]"), wrong));
            }
        }
        (Value::Object(fields), Value::Object(shapes)) => {
            for (name, field) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                shapes.get(name).into_iter().for_each(|shape| lists_for_sections(field, shape, &path, wrong));
            }
        }
        _ => {}
    }
}

/// What is wrong with a value, for people who do not know the decoder.
fn words(value: Option<&Value>, error: &str) -> String {
    let is_type = error.starts_with("invalid type: ") || error.starts_with("invalid value: ");
    let Some((expected, value)) =
        error.rsplit_once(", expected ").map(|parts| parts.1).filter(|_| is_type).zip(value)
    else {
        return error.to_owned();
    };
    let mut text = value.to_string();
    if let Some((end, _)) = text.char_indices().nth(SHOWN) {
        text.truncate(end);
        text.push('…');
    }
    let kind = match expected {
        "i32" => "a 32-bit integer",
        "i64" => "a 64-bit integer",
        "u32" => "an unsigned 32-bit integer",
        "f32" => "a number",
        "a string" => "a string: put it in quotes",
        "a boolean" => "a boolean: use true or false, without quotes",
        "a sequence" => "a list",
        "a map" => "a section",
        other if other.starts_with("struct ") => "a section",
        other => other,
    };
    format!("{text} is not {kind}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_wrong_types_are_told_and_the_rest_is_read() {
        let read = read(json!({
            "mode": "nftables", "oomScoreAdj": 1.5, "bindAddressHardFail": "true", "hostnameOverride": 5,
            "conntrack": {"min": "many", "maxPerCore": 7, "udpTimeout": 5, "udpStreamTimeout": "x"},
            "nodePortAddresses": ["10.0.0.0/8", 1, {"a": 1}, "x", {}], "featureGates": {"A": "yes", "B": true},
            "logging": {"vmodule": [5, {"filePattern": "a", "verbosity": -1}, ["b", 1]]}, "iptables": [],
            "clientConnection": {"qps": "fast", "burst": 5000000000u64},
            "sluice": {"ebpf": 7, "bogus": 1, "podNetwork": {"vni": {"a": 1}}},
        }));
        let mut wrong = read.wrong;
        wrong.sort_unstable();
        assert_eq!(
            wrong,
            [
                "bindAddressHardFail: \"true\" is not a boolean: use true or false, without quotes",
                "clientConnection.burst: 5000000000 is not a 32-bit integer",
                "clientConnection.qps: \"fast\" is not a number",
                "conntrack.min: \"many\" is not a 32-bit integer",
                "conntrack.udpStreamTimeout: \"x\" is not a duration such as 30s or 1h30m",
                "conntrack.udpTimeout: 5 is not a duration such as 30s or 1h30m",
                "featureGates.A: \"yes\" is not a boolean: use true or false, without quotes",
                "hostnameOverride: 5 is not a string: put it in quotes",
                "iptables: [] is not a section",
                "logging.vmodule[0]: 5 is not a section",
                "logging.vmodule[1].verbosity: -1 is not an unsigned 32-bit integer",
                "logging.vmodule[2]: [\"b\",1] is not a section",
                "nodePortAddresses[1]: 1 is not a string: put it in quotes",
                "nodePortAddresses[2]: {\"a\":1} is not a string: put it in quotes",
                "nodePortAddresses[4]: {} is not a string: put it in quotes",
                "oomScoreAdj: 1.5 is not a 32-bit integer",
                "sluice.ebpf: 7 is not a section",
                "sluice.podNetwork.vni: {\"a\":1} is not a 64-bit integer",
            ]
        );
        assert_eq!(read.unknown, ["sluice.bogus"]);
        assert_eq!((read.config.mode.as_str(), read.config.conntrack.max_per_core), ("nftables", Some(7)));
        assert!(read.config.feature_gates["B"]);
    }

    #[test]
    fn a_long_value_is_shortened() {
        let read = read(json!({"oomScoreAdj": "ä".repeat(1000)}));
        assert!(read.wrong[0].len() < 200, "{:?}", read.wrong);
    }
}
