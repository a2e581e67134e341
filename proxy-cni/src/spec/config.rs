//! The configuration on stdin.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::environment::Attachment;
use super::error::{CniError, Code};
use super::result::{Dns, Outcome, Route};
use super::version::Version;

/// How much stdin may hold. A configuration has some hundred bytes; with the attachments of a full node (GC) some 100 kB.
pub const STDIN_LIMIT: usize = 4 << 20;
/// Where it is written down who has which address, unless the configuration says `dataDir`.
pub const DATA: &str = "/var/lib/cni/sluice";
/// Where the daemon says what it knows of the node, unless the configuration says `runDir`.
pub const RUN: &str = "/run/sluice";
/// The bridge, unless the configuration names one.
pub const BRIDGE: &str = "sluice0";
/// What IPv4 needs (RFC 791, section 3.2). IPv6 needs 1280, and the kernel says so.
const LEAST_MTU: u32 = 68;
/// The type of the address management that is built in.
const OWN_IPAM: &str = "sluice";

/// How pods are wired to the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A bridge, and a port of it for each pod. What pods of one node say to each other goes past connection tracking, and
    /// with it past the translation of Services, unless the kernel has br_netfilter.
    Bridge,
    /// No bridge: a route to each pod.
    #[default]
    Routed,
}

/// A configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    /// The version that answers are in.
    pub version: Version,
    /// The network's name.
    pub name: String,
    /// How pods are wired.
    pub mode: Mode,
    /// The bridge's name, in mode bridge.
    pub bridge: String,
    /// The pods' MTU; by default the network's, which the daemon knows.
    pub mtu: Option<u32>,
    /// Sysctls of the pod's network namespace, below `net.`.
    pub sysctls: BTreeMap<String, String>,
    /// Where addresses come from.
    pub ipam: Ipam,
    /// Where it is written down who has which address and which ports of the node.
    pub data: PathBuf,
    /// Where the daemon says what it knows of the node.
    pub run: PathBuf,
    /// Passed on.
    pub dns: Dns,
    /// What the runtime asks for beside.
    pub capabilities: Capabilities,
    /// `args.cni`
    pub arguments: BTreeMap<String, Value>,
    /// What the plugins before in the chain, or ADD, have answered.
    pub previous: Option<Outcome>,
    /// What is valid, for GC.
    pub valid: Option<Vec<Attachment>>,
    /// All of it, to be passed on to other plugins.
    pub whole: Value,
}

/// Where addresses come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Ipam {
    /// Our own.
    Own {
        /// Sets of ranges: an address out of each set. Empty: the node's pod CIDRs, one set for each family.
        sets: Vec<Vec<Range>>,
        /// Never given out unless asked for by name.
        reserved: Vec<IpAddr>,
        /// Beside the default routes, or in their place.
        routes: Vec<Route>,
    },
    /// Another plugin's.
    Delegated(String),
}

/// Addresses that may be given out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Range {
    /// Their network.
    pub subnet: IpNet,
    /// The first; by default the one after the gateway.
    #[serde(default)]
    pub range_start: Option<IpAddr>,
    /// The last; by default the last of the network.
    #[serde(default)]
    pub range_end: Option<IpAddr>,
    /// The node's own address in it; by default the first.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
}

/// `runtimeConfig`: what conflist and runtime agreed on.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// Addresses that are asked for, with or without the length of a prefix.
    #[serde(default)]
    pub ips: Vec<String>,
    /// A hardware address that is asked for.
    #[serde(default)]
    pub mac: Option<String>,
    /// Ports of the node that lead to the pod.
    #[serde(default)]
    pub port_mappings: Vec<PortMapping>,
}

/// A port of the node that leads to one of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Of the node.
    pub host_port: u16,
    /// Of the pod.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    #[serde(default = "tcp")]
    pub protocol: String,
    /// The node's address; all by default.
    #[serde(default, rename = "hostIP")]
    pub host_ip: String,
}

fn tcp() -> String {
    "tcp".to_owned()
}

/// As it is written. Unknown fields are for others, or of later versions.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    name: String,
    #[serde(default)]
    mode: Option<Mode>,
    #[serde(default)]
    bridge: Option<String>,
    #[serde(default)]
    mtu: Option<u32>,
    #[serde(default)]
    sysctl: BTreeMap<String, String>,
    #[serde(default)]
    ipam: RawIpam,
    #[serde(default)]
    data_dir: Option<PathBuf>,
    #[serde(default)]
    run_dir: Option<PathBuf>,
    #[serde(default)]
    dns: Dns,
    #[serde(default)]
    runtime_config: Capabilities,
    #[serde(default)]
    args: RawArguments,
    #[serde(default)]
    prev_result: Option<Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawIpam {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    ranges: Vec<Vec<Range>>,
    #[serde(default)]
    reserved: Vec<IpAddr>,
    #[serde(default)]
    routes: Vec<Route>,
}

#[derive(Default, Deserialize)]
struct RawArguments {
    #[serde(default)]
    cni: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct RawAttachment {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

impl NetConf {
    /// Reads what stdin held.
    pub fn parse(text: &[u8]) -> Result<Self, CniError> {
        NetConf::read(decode(text)?)
    }

    /// The version that answers are to be in.
    pub fn version(whole: &Value) -> Result<Version, CniError> {
        match whole.get("cniVersion") {
            None => Version::parse(""),
            Some(Value::String(text)) => Version::parse(text),
            Some(other) => Err(decoding(format!("cniVersion: {other} is no text"))),
        }
    }

    /// Reads a configuration.
    pub fn read(whole: Value) -> Result<Self, CniError> {
        let version = NetConf::version(&whole)?;
        let raw: Raw = serde_json::from_value(whole.clone())
            .map_err(|error| CniError::new(Code::InvalidConfig, format!("the configuration: {error}")))?;
        NetConf::resolve(raw, version, whole)
    }

    /// Reads a configuration for DEL, which needs neither what ADD has answered nor what the runtime asked for: a pod can go
    /// whatever is in there.
    pub fn read_for_del(whole: Value) -> Result<Self, CniError> {
        let mut used = whole.clone();
        for unused in ["prevResult", "runtimeConfig", "args", "sysctl", "mtu", "dns", "mode"] {
            used.as_object_mut().map(|fields| fields.remove(unused));
        }
        // Other plugins may need all of it.
        Ok(NetConf { whole, ..NetConf::read(used)? })
    }

    fn resolve(raw: Raw, version: Version, whole: Value) -> Result<Self, CniError> {
        let mut errors = Vec::new();
        if !is_network_name(&raw.name) {
            errors.push(format!(
                "name: {:?} is no name: letters and digits, and behind the first one _ . -",
                raw.name
            ));
        }
        // Who names a bridge wants one.
        let usual = if raw.bridge.is_some() { Mode::Bridge } else { Mode::default() };
        let bridge = raw.bridge.unwrap_or_else(|| BRIDGE.to_owned());
        if let Err(error) = Attachment::new("x", &bridge) {
            errors.push(format!("bridge: {error}"));
        }
        if raw.mtu.is_some_and(|mtu| !(LEAST_MTU..=65535).contains(&mtu)) {
            errors.push(format!("mtu: {} is not between {LEAST_MTU} and 65535", raw.mtu.unwrap_or_default()));
        }
        for name in raw.sysctl.keys() {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
            let parts = name.split(['.', '/']);
            if !name.starts_with("net")
                || !name.chars().all(is_plain)
                || parts.clone().any(str::is_empty)
                || parts.count() < 3
            {
                errors.push(format!("sysctl: {name:?} is no sysctl of a network namespace (net.…)"));
            }
        }
        let ipam = ipam(raw.ipam, &mut errors);
        let data = raw.data_dir.unwrap_or_else(|| PathBuf::from(DATA));
        let run = raw.run_dir.unwrap_or_else(|| PathBuf::from(RUN));
        for (field, path) in [("dataDir", &data), ("runDir", &run)] {
            if !path.is_absolute() {
                errors.push(format!("{field}: {} is no absolute path", path.display()));
            }
        }
        for mapping in &raw.runtime_config.port_mappings {
            if !matches!(mapping.protocol.to_ascii_lowercase().as_str(), "tcp" | "udp" | "sctp") {
                errors.push(format!("runtimeConfig.portMappings: {:?} is no protocol", mapping.protocol));
            }
            let host = mapping.host_ip.parse::<IpAddr>();
            if !mapping.host_ip.is_empty() && host.is_err() {
                errors.push(format!("runtimeConfig.portMappings: {:?} is no address", mapping.host_ip));
            }
            if host.is_ok_and(|host| host.is_loopback()) {
                errors.push(format!(
                    "runtimeConfig.portMappings: hostIP {}: ports of the node do not answer on loopback",
                    mapping.host_ip
                ));
            }
            if mapping.container_port == 0 {
                errors.push("runtimeConfig.portMappings: containerPort is 0".to_owned());
            }
        }
        if !errors.is_empty() {
            return Err(CniError::new(Code::InvalidConfig, errors.join("; ")));
        }
        let previous = raw.prev_result.as_ref().map(|value| Outcome::parse(value, version)).transpose()?;
        let valid = valid(&whole)?;
        Ok(NetConf {
            version,
            name: raw.name,
            mode: raw.mode.unwrap_or(usual),
            bridge,
            mtu: raw.mtu,
            sysctls: raw.sysctl,
            ipam,
            data,
            run,
            dns: raw.dns,
            capabilities: raw.runtime_config,
            arguments: raw.args.cni,
            previous,
            valid,
            whole,
        })
    }
}

/// What stdin held, as an object.
pub fn decode(text: &[u8]) -> Result<Value, CniError> {
    if text.len() > STDIN_LIMIT {
        return Err(decoding(format!("the configuration has more than {STDIN_LIMIT} bytes")));
    }
    let whole: Value = serde_json::from_slice(text)
        .map_err(|error| decoding(format!("the configuration on stdin is no JSON: {error}")))?;
    if whole.is_object() {
        Ok(whole)
    } else {
        Err(decoding("the configuration on stdin is no JSON object".to_owned()))
    }
}

/// What is valid, for GC. The specification has had two names for it, and libcni gives both; with nothing that is valid it
/// gives null.
fn valid(whole: &Value) -> Result<Option<Vec<Attachment>>, CniError> {
    let names = ["cni.dev/valid-attachments", "cni.dev/attachments"];
    let Some(list) = names.iter().find_map(|name| whole.get(name)) else { return Ok(None) };
    let list: Option<Vec<RawAttachment>> = serde_json::from_value(list.clone())
        .map_err(|error| CniError::new(Code::InvalidConfig, format!("{}: {error}", names[0])))?;
    let list = list.unwrap_or_default();
    // One with a name that we would never have taken is none of ours.
    Ok(Some(list.iter().filter_map(|item| Attachment::new(&item.container, &item.ifname).ok()).collect()))
}

fn ipam(raw: RawIpam, errors: &mut Vec<String>) -> Ipam {
    if !matches!(raw.kind.as_str(), "" | OWN_IPAM) {
        if raw.kind == "sluice-cni" {
            errors.push(
                "ipam.type: \"sluice-cni\" manages no addresses for others; leave ipam.type out".to_owned(),
            );
        }
        // It becomes a part of a path.
        if !is_network_name(&raw.kind) {
            errors.push(format!("ipam.type: {:?} is no name of a plugin", raw.kind));
        }
        return Ipam::Delegated(raw.kind);
    }
    for (i, set) in raw.ranges.iter().enumerate() {
        if set.is_empty() {
            errors.push(format!("ipam.ranges[{i}]: no range is in it"));
        }
        for range in set {
            if let Err(error) = range.check() {
                errors.push(format!("ipam.ranges[{i}]: {error}"));
            }
        }
        let families: Vec<bool> = set.iter().map(|range| range.subnet.addr().is_ipv4()).collect();
        if families.windows(2).any(|two| two[0] != two[1]) {
            errors.push(format!("ipam.ranges[{i}]: ranges of one set are of one family"));
        }
    }
    let all: Vec<&Range> = raw.ranges.iter().flatten().collect();
    for (i, range) in all.iter().enumerate() {
        if let Some(other) = all[..i].iter().find(|other| other.overlaps(range)) {
            errors.push(format!("ipam.ranges: {} and {} overlap", other.subnet, range.subnet));
        }
    }
    Ipam::Own { sets: raw.ranges, reserved: raw.reserved, routes: raw.routes }
}

/// Also of plugins: what becomes a part of a path.
pub fn is_network_name(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    text.len() <= 255
        && text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric())
        && text.chars().all(is_plain)
}

fn decoding(message: String) -> CniError {
    CniError::new(Code::Decoding, message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: &Value) -> Result<NetConf, CniError> {
        NetConf::parse(value.to_string().as_bytes())
    }

    #[test]
    fn little_has_to_be_said() {
        let config = parse(&json!({"cniVersion": "1.1.0", "name": "pods", "type": "sluice-cni"})).unwrap();
        assert_eq!(
            (config.version, config.mode, config.bridge.as_str()),
            (Version::V1_1_0, Mode::Routed, "sluice0")
        );
        let Ipam::Own { sets, .. } = &config.ipam else { panic!("{:?}", config.ipam) };
        assert_eq!((sets.len(), config.data.to_str()), (0, Some("/var/lib/cni/sluice")));
        assert_eq!((config.previous, config.valid), (None, None));
    }

    #[test]
    fn everything_can_be_said() {
        let config = parse(&json!({
            "cniVersion": "0.4.0", "name": "pods", "mode": "routed", "mtu": 1400, "unknown": 1,
            "sysctl": {"net.ipv4.conf.all.arp_filter": "1"},
            "ipam": {"ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.20"}],
                [{"subnet": "fd00::/64"}]], "reserved": ["10.1.0.11"], "routes": [{"dst": "10.0.0.0/8"}]},
            "runtimeConfig": {"ips": ["10.1.0.12/24"], "mac": "02:00:00:00:00:01",
                "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "UDP", "hostIP": "fd00::1"}]},
            "args": {"cni": {"labels": [1]}},
            "prevResult": {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.1.0.3/24"}]},
            "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}, {"containerID": "../b", "ifname": "x"}],
        }))
        .unwrap();
        assert_eq!((config.mode, config.mtu), (Mode::Routed, Some(1400)));
        assert_eq!(config.capabilities.port_mappings[0].host_port, 80);
        assert_eq!(config.previous.unwrap().ips.len(), 1);
        assert_eq!(config.valid.unwrap(), [Attachment::new("a", "eth0").unwrap()]);
    }

    #[test]
    fn nothing_valid_is_not_nothing_said() {
        let valid = |more: Value| {
            let mut config = json!({"cniVersion": "1.1.0", "name": "a"});
            config.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
            parse(&config).map(|config| config.valid)
        };
        assert_eq!(valid(json!({})).unwrap(), None);
        assert_eq!(valid(json!({"cni.dev/valid-attachments": null})).unwrap(), Some(vec![]));
        let one = json!([{"containerID": "a", "ifname": "eth0"}]);
        assert_eq!(valid(json!({"cni.dev/attachments": one})).unwrap().unwrap().len(), 1);
        assert!(valid(json!({"cni.dev/valid-attachments": 7})).is_err());
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let error = parse(&json!({
            "cniVersion": "1.0.0", "name": "../x", "bridge": "a/b", "mtu": 5, "sysctl": {"kernel.x.y": "1", "net/../x": "1"},
            "dataDir": "x", "ipam": {"ranges": [[], [{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}],
                [{"subnet": "10.1.0.0/25"}]]},
        }))
        .unwrap_err();
        assert_eq!(error.code(), Code::InvalidConfig);
        for part in [
            "name: \"../x\"",
            "bridge: ",
            "mtu: 5",
            "\"kernel.x.y\"",
            "\"net/../x\"",
            "dataDir",
            "ranges[0]: no range",
            "ranges[1]: ranges of one set",
            "10.1.0.0/24 and 10.1.0.0/25 overlap",
        ] {
            assert!(error.to_string().contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn what_cannot_be_read_has_the_code_for_it() {
        let code = |text: &str| NetConf::parse(text.as_bytes()).unwrap_err().code();
        assert_eq!(code(""), Code::Decoding);
        assert_eq!(code("[]"), Code::Decoding);
        assert_eq!(code("{\"cniVersion\": 1}"), Code::Decoding);
        assert_eq!(code("{}"), Code::IncompatibleVersion);
        assert_eq!(code("{\"cniVersion\": \"1.0.0\", \"name\": \"a\", \"mtu\": \"x\"}"), Code::InvalidConfig);
        assert_eq!(code(&"x".repeat(STDIN_LIMIT + 1)), Code::Decoding);
    }

    #[test]
    fn who_names_a_bridge_gets_one() {
        let mode = |more: Value| {
            let mut config = json!({"cniVersion": "1.0.0", "name": "a"});
            config.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
            parse(&config).unwrap().mode
        };
        assert_eq!(mode(json!({"bridge": "cni0"})), Mode::Bridge);
        assert_eq!(mode(json!({"bridge": "cni0", "mode": "routed"})), Mode::Routed);
    }

    #[test]
    fn another_plugin_may_manage_addresses() {
        let of = |kind: &str| {
            parse(&json!({"cniVersion": "1.0.0", "name": "a", "ipam": {"type": kind, "ranges": []}}))
        };
        assert_eq!(of("host-local").unwrap().ipam, Ipam::Delegated("host-local".into()));
        assert!(matches!(of("sluice").unwrap().ipam, Ipam::Own { .. }));
        assert!(of("../sh").is_err());
    }
}
