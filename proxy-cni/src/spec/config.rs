//! The configuration on stdin.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::environment::Attachment;
use super::error::{CniError, Code};
use super::fields;
use super::go_json::{self, Json};
use super::result::{Dns, Outcome, Route};
use super::version::Version;

/// How much stdin may hold. A configuration has some hundred bytes; with the attachments of a full
/// node (GC) some 100 kB.
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
/// Our own type, which manages no addresses for others.
const PLUGIN: &str = "sluice-cni";

/// How pods are wired to the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A bridge, and a port of it for each pod. What pods of one node say to each other goes past
    /// connection tracking, and with it past the translation of Services, unless the kernel has
    /// br_netfilter.
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
    /// `args.cni.ips`: addresses that are asked for.
    pub asked_ips: Vec<String>,
    /// What the plugins before in the chain, or ADD, have answered.
    pub previous: Option<Outcome>,
    /// What is valid, for GC.
    pub valid: Option<Vec<Attachment>>,
    /// All of it as it came, to be passed on to other plugins.
    pub whole: Vec<u8>,
}

/// Where addresses come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Ipam {
    /// Our own.
    Own {
        /// Sets of ranges: an address out of each set. Empty: the node's pod CIDRs, one set for
        /// each family.
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
#[serde(rename_all = "camelCase")]
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

/// A port of the node that leads to one of the pod, as the runtime wants it. What cannot be served
/// is not refused: the pod starts, and the daemon, which serves it, says so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Of the node; 0: none.
    #[serde(default)]
    pub host_port: i64,
    /// Of the pod.
    #[serde(default)]
    pub container_port: i64,
    /// `tcp`, `udp` or `sctp`, in any case.
    #[serde(default = "tcp")]
    pub protocol: String,
    /// The node's address; all by default.
    #[serde(default, rename = "hostIP")]
    pub host_ip: String,
}

fn tcp() -> String {
    "tcp".to_owned()
}

/// As it is written, in the specification's spelling ([`fields::CONFIG`]). Unknown fields are for
/// others, or of later versions.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    name: String,
    mode: Option<Mode>,
    bridge: Option<String>,
    mtu: Option<u32>,
    sysctl: BTreeMap<String, String>,
    ipam: RawIpam,
    data_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    dns: Dns,
    runtime_config: Capabilities,
    args: RawArguments,
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<RawAttachment>>,
    /// What it was called in drafts of the specification; libcni gives both.
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Vec<RawAttachment>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawIpam {
    #[serde(rename = "type")]
    kind: String,
    ranges: Vec<Vec<Range>>,
    reserved: Vec<IpAddr>,
    routes: Vec<Route>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawArguments {
    cni: RawCniArguments,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawCniArguments {
    ips: Value,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawAttachment {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

/// What stdin held.
#[derive(Clone, Debug)]
pub struct Document {
    text: Vec<u8>,
    json: Json,
}

impl Document {
    /// Reads an object.
    pub fn parse(text: Vec<u8>) -> Result<Self, CniError> {
        if text.len() > STDIN_LIMIT {
            return Err(decoding(format!("the configuration has more than {STDIN_LIMIT} bytes")));
        }
        let json = go_json::parse(&text)
            .map_err(|error| decoding(format!("the configuration on stdin is not JSON: {error}")))?;
        if json.is_object() {
            Ok(Document { text, json })
        } else {
            Err(decoding("the configuration on stdin is not a JSON object".to_owned()))
        }
    }

    /// The version that answers are to be in.
    pub fn version(&self) -> Result<Version, CniError> {
        match go_json::shaped(&self.json, &fields::VERSION).get("cniVersion") {
            None => Version::parse(""),
            Some(Value::String(text)) => Version::parse(text),
            Some(other) => Err(decoding(format!("cniVersion: {other} is not a string"))),
        }
    }
}

impl NetConf {
    /// Reads what stdin held.
    pub fn parse(text: &[u8]) -> Result<Self, CniError> {
        NetConf::read(Document::parse(text.to_vec())?)
    }

    /// Reads a configuration.
    pub fn read(document: Document) -> Result<Self, CniError> {
        let version = document.version()?;
        let raw = serde_path_to_error::deserialize(go_json::shaped(&document.json, &fields::CONFIG));
        let raw = raw.map_err(|error: serde_path_to_error::Error<serde_json::Error>| {
            CniError::new(Code::InvalidConfig, format!("{}: {}", error.path(), error.inner()))
        })?;
        NetConf::resolve(raw, version, document.text)
    }

    /// Reads a configuration for DEL: a pod can go whatever is in there. ADD has refused what
    /// cannot be read, so it has given nothing by that.
    pub fn read_for_del(document: Document) -> Result<Self, CniError> {
        let version = document.version()?;
        let told = go_json::shaped(&document.json, &fields::FOR_DEL);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let path = |value: &Value| text(value).map(PathBuf::from).filter(|path| path.is_absolute());
        let is_plugin = |kind: &String| is_network_name(kind) && kind != PLUGIN;
        let raw = Raw {
            name: text(&told["name"]).unwrap_or_default(),
            ipam: RawIpam {
                kind: text(&told["ipam"]["type"]).filter(is_plugin).unwrap_or_default(),
                ..RawIpam::default()
            },
            data_dir: path(&told["dataDir"]),
            run_dir: path(&told["runDir"]),
            ..Raw::default()
        };
        NetConf::resolve(raw, version, document.text)
    }

    fn resolve(raw: Raw, version: Version, whole: Vec<u8>) -> Result<Self, CniError> {
        let mut errors = Vec::new();
        if !is_network_name(&raw.name) {
            errors.push(format!(
                "name: {:?} is not a network name: use letters and digits, and after the first character \
                 also _ . -",
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
        errors.extend(
            raw.sysctl
                .keys()
                .filter(|name| !is_sysctl_of_a_namespace(name))
                .map(|name| format!("sysctl: {name:?} is not a sysctl of a network namespace (net.…)")),
        );
        let ipam = ipam(raw.ipam, &mut errors);
        let data = raw.data_dir.unwrap_or_else(|| PathBuf::from(DATA));
        let run = raw.run_dir.unwrap_or_else(|| PathBuf::from(RUN));
        for (field, path) in [("dataDir", &data), ("runDir", &run)] {
            if !path.is_absolute() {
                errors.push(format!("{field}: {} is not an absolute path", path.display()));
            }
        }
        if !errors.is_empty() {
            return Err(CniError::new(Code::InvalidConfig, errors.join("; ")));
        }
        let previous = raw.prev_result.map(|value| Outcome::of_value(value, version)).transpose()?;
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
            asked_ips: texts(&raw.args.cni.ips),
            previous,
            valid: raw.valid.or(raw.attachments).map(|list| attachments(&list)),
            whole,
        })
    }
}

fn is_sysctl_of_a_namespace(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    let parts = name.split(['.', '/']);
    name.starts_with("net")
        && name.chars().all(is_plain)
        && !parts.clone().any(str::is_empty)
        && parts.count() >= 3
}

/// What the plugins before in the chain have answered, if there are any.
pub fn previous_result(document: &Document, version: Version) -> Result<Option<Outcome>, CniError> {
    let told = go_json::shaped(&document.json, &fields::PREVIOUS);
    told.get("prevResult").cloned().map(|value| Outcome::of_value(value, version)).transpose()
}

/// Others may have meant something else by this argument.
fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// One with a name that we would never have taken is none of ours.
fn attachments(list: &[RawAttachment]) -> Vec<Attachment> {
    list.iter().filter_map(|item| Attachment::new(&item.container, &item.ifname).ok()).collect()
}

fn ipam(raw: RawIpam, errors: &mut Vec<String>) -> Ipam {
    if !matches!(raw.kind.as_str(), "" | OWN_IPAM) {
        if raw.kind == PLUGIN {
            errors.push(
                "ipam.type: \"sluice-cni\" does not manage addresses for other plugins; leave ipam.type out"
                    .to_owned(),
            );
        }
        // It becomes a part of a path.
        if !is_network_name(&raw.kind) {
            errors.push(format!("ipam.type: {:?} is not a plugin name", raw.kind));
        }
        return Ipam::Delegated(raw.kind);
    }
    for (i, set) in raw.ranges.iter().enumerate() {
        if set.is_empty() {
            errors.push(format!("ipam.ranges[{i}]: has no range"));
        }
        for range in set {
            if let Err(error) = range.check() {
                errors.push(format!("ipam.ranges[{i}]: {error}"));
            }
        }
        let families: Vec<bool> = set.iter().map(|range| range.subnet.addr().is_ipv4()).collect();
        if families.windows(2).any(|two| two[0] != two[1]) {
            errors.push(format!("ipam.ranges[{i}]: the ranges of a set must have the same IP family"));
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
    fn all_errors_are_reported_at_once() {
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
            "ranges[0]: has no range",
            "ranges[1]: the ranges of a set",
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
    fn naming_a_bridge_selects_mode_bridge() {
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

    /// Everything in the spelling of Go structs without tags, and all of it null.
    #[test]
    fn everything_is_read_as_go_reads_it() {
        let usual = json!({
            "cniVersion": "1.0.0", "name": "pods", "mtu": 1400, "bridge": "br7", "dataDir": "/d", "runDir": "/r",
            "sysctl": {"net.ipv4.conf.Eth0.x": "1"}, "dns": {"nameservers": ["10.0.0.1"], "domain": "d", "search": ["s"]},
            "ipam": {"type": "sluice", "reserved": ["10.1.0.11"], "routes": [{"dst": "10.0.0.0/8", "gw": "10.1.0.1", "mtu": 9}],
                "ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.10", "rangeEnd": "10.1.0.20", "gateway": "10.1.0.9"}]]},
            "runtimeConfig": {"ips": ["10.1.0.12"], "mac": "02:00:00:00:00:01",
                "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "UDP", "hostIP": "::1"}]},
            "args": {"cni": {"ips": ["10.1.0.13"]}},
            "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/n"}],
                "ips": [{"address": "10.1.0.3/24", "gateway": "10.1.0.1", "interface": 0}],
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}], "dns": {"options": ["o"]}},
            "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}],
        });
        let without_whole = |value: &Value| NetConf { whole: Vec::new(), ..parse(value).unwrap() };
        let expected = without_whole(&usual);
        for respell in [str::to_uppercase, str::to_lowercase, capitalized] {
            assert_eq!(without_whole(&respelled(&usual, respell)), expected);
        }
        let nothing = without_whole(&json!({"cniVersion": "1.0.0", "name": "pods"}));
        let null = |fields: &[&str]| -> Value {
            let pairs = fields.iter().map(|field| ((*field).to_owned(), Value::Null));
            Value::Object(pairs.collect())
        };
        let mut all_null = null(&[
            "mode",
            "mtu",
            "bridge",
            "dataDir",
            "runDir",
            "sysctl",
            "dns",
            "ipam",
            "args",
            "prevResult",
            "runtimeConfig",
        ]);
        (all_null["cniVersion"], all_null["name"]) = (json!("1.0.0"), json!("pods"));
        assert_eq!(without_whole(&all_null), nothing);
        all_null["ipam"] = null(&["type", "ranges", "reserved", "routes"]);
        all_null["runtimeConfig"] = null(&["ips", "mac", "portMappings"]);
        all_null["dns"] = null(&["nameservers", "domain", "search", "options"]);
        all_null["args"] = null(&["cni"]);
        assert_eq!(without_whole(&all_null), nothing);
        all_null["prevResult"] = null(&["cniVersion", "interfaces", "ips", "routes", "dns"]);
        assert_eq!(without_whole(&all_null).previous, Some(Outcome::default()));
        let zero = json!({"cniVersion": "1.0.0", "name": "pods", "mode": "", "mtu": 0, "bridge": "", "dataDir": "", "runDir": "",
            "ipam": {"type": ""}, "runtimeConfig": {"mac": "", "ips": [""]}});
        assert_eq!(without_whole(&zero), nothing);
    }

    fn capitalized(text: &str) -> String {
        text[..1].to_uppercase() + &text[1..]
    }

    /// Fields renamed; keys that are data stay.
    fn respelled(value: &Value, respell: fn(&str) -> String) -> Value {
        match value {
            Value::Object(object) => {
                let renamed = |key: &String| if key.starts_with("net.") { key.clone() } else { respell(key) };
                object.iter().map(|(key, value)| (renamed(key), respelled(value, respell))).collect()
            }
            Value::Array(items) => items.iter().map(|item| respelled(item, respell)).collect(),
            other => other.clone(),
        }
    }

    #[test]
    fn port_mappings_are_read_as_runtimes_write_them() {
        let of = |text: &str| NetConf::parse(text.as_bytes()).unwrap().capabilities.port_mappings;
        let tcp = |host_port, container_port, host_ip: &str| PortMapping {
            host_port,
            container_port,
            protocol: tcp(),
            host_ip: host_ip.to_owned(),
        };
        let untagged = include_str!("../../tests/inputs/02-port-mappings-as-containerd-writes-them.json");
        assert_eq!(of(untagged), [tcp(8080, 80, "")]);
        let on_loopback = include_str!("../../tests/inputs/03-host-port-on-loopback.json");
        assert_eq!(of(on_loopback), [tcp(54323, 8080, "127.0.0.1")]);
        let none = untagged.replace(
            "[{\"HostPort\":8080,\"ContainerPort\":80,\"Protocol\":\"tcp\",\"HostIP\":\"\"}]",
            "null",
        );
        assert!(none.contains("\"portMappings\":null"), "{none}");
        assert_eq!(of(&none), []);
        // What no node can serve is no reason to refuse a pod.
        let odd = r#"{"cniVersion": "1.0.0", "name": "a", "runtimeConfig": {"portMappings":
            [{"HostPort": 70000, "Protocol": "icmp", "HostIP": "localhost"}, null]}}"#;
        assert_eq!(of(odd)[0].host_port, 70000);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_place() {
        let error = parse(&json!({"cniVersion": "1.0.0", "name": "a",
            "RuntimeConfig": {"PortMappings": [{"HostPort": 1}, {"HostPort": "x"}]}}))
        .unwrap_err();
        assert!(
            error.to_string().starts_with("runtimeConfig.portMappings[1].hostPort: invalid type"),
            "{error}"
        );
    }

    #[test]
    fn a_pod_can_go_whatever_is_said() {
        let nonsense = json!({
            "cniVersion": "1.0.0", "Name": "pods", "PrevResult": 7, "RuntimeConfig": [], "mode": "x", "bridge": "a/b",
            "sysctl": {"x": 1}, "ARGS": 1, "mtu": -1, "dns": 1, "dataDir": {}, "runDir": "x", "ipam": {"ranges": 1, "type": 7},
            "cni.dev/valid-attachments": 1,
        });
        let read =
            |value: &Value| NetConf::read_for_del(Document::parse(value.to_string().into_bytes()).unwrap());
        let config = read(&nonsense).unwrap();
        assert_eq!((config.name.as_str(), config.data.to_str()), ("pods", Some(DATA)));
        assert!(matches!(config.ipam, Ipam::Own { .. }));
        let with = |value: Value| {
            let mut nonsense = nonsense.clone();
            nonsense["ipam"] = value;
            read(&nonsense).unwrap().ipam
        };
        assert_eq!(with(json!({"Type": "host-local"})), Ipam::Delegated("host-local".into()));
        assert!(matches!(with(json!({"Type": "../sh"})), Ipam::Own { .. }));
    }

    #[test]
    fn all_of_it_is_kept_as_it_came() {
        let text = "{ \"cniVersion\":\"1.0.0\", \"Name\" : \"a\", \"x\": 1.0e2, \"X\": null, \"x\": 12345678901234567890123 }";
        assert_eq!(NetConf::parse(text.as_bytes()).unwrap().whole, text.as_bytes());
    }
}
