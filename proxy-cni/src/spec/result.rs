//! What ADD answers, in any version, and what an earlier plugin of a chain answered.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::error::{CniError, Code};
use super::fields;
use super::go_json::{self, Json};
use super::version::Version;

/// A result (specification 1.1.0, section 5, "Add Success"). Fields that the specification does not
/// know are kept: whoever wrote them may look for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Links that were made, or that addresses are at.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(default)]
    pub ips: Vec<Ip>,
    /// Routes in the container.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Name resolution.
    #[serde(default, skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
    /// Anything else.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its hardware address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU, from 1.1.0 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The network namespace that it is in; empty: the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Anything else.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// With the length of the network's prefix.
    pub address: IpNet,
    /// The gateway of its network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The place of its link in `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// Anything else.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// To where.
    pub dst: IpNet,
    /// By whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// The MTU of the path, from 1.1.0 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Anything else.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

impl Route {
    /// A route that needs no gateway, or gets one later.
    pub fn to(dst: IpNet) -> Self {
        Route { dst, gw: None, mtu: None, others: Map::new() }
    }
}

/// Name resolution, which runtimes of pods do not use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains to search.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }
}

/// Fields of links and routes that 1.1.0 brought.
const SINCE_1_1: [&str; 4] = ["mtu", "socketPath", "pciID", "advmss"];

impl Outcome {
    /// As a version writes it.
    pub fn object(&self, version: Version) -> Result<Value, CniError> {
        let mut object = serde_json::to_value(self).map_err(|error| {
            CniError::new(Code::Decoding, format!("the result cannot be written as JSON: {error}"))
        })?;
        object["cniVersion"] = json!(version.text());
        if version < Version::V1_1_0 {
            for list in ["interfaces", "routes"] {
                for item in object[list].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut)
                {
                    item.retain(|field, _| !SINCE_1_1.contains(&field.as_str()));
                }
            }
        }
        if version < Version::V1_0_0 {
            for (ip, written) in self.ips.iter().zip(object["ips"].as_array_mut().into_iter().flatten()) {
                written["version"] = json!(if ip.address.addr().is_ipv4() { "4" } else { "6" });
            }
        }
        Ok(object)
    }

    /// Reads what a plugin has answered; its version is that of the configuration, unless it says
    /// another.
    pub fn parse(json: &Json, default: Version) -> Result<Self, CniError> {
        Outcome::of_value(go_json::shaped(json, &fields::RESULT), default)
    }

    /// The same, of a value that has the names of [`fields::RESULT`] already.
    pub(super) fn of_value(value: Value, default: Version) -> Result<Self, CniError> {
        let version = match value.get("cniVersion").and_then(Value::as_str) {
            Some(text) => Version::parse(text)?,
            None => default,
        };
        let mut outcome: Outcome = serde_json::from_value(value)
            .map_err(|error| CniError::new(Code::Decoding, format!("prevResult: {error}")))?;
        outcome.others.remove("cniVersion");
        for ip in &mut outcome.ips {
            if version < Version::V1_0_0 {
                ip.others.remove("version");
            }
            if ip.interface.is_some_and(|place| place >= outcome.interfaces.len()) {
                return Err(CniError::new(
                    Code::InvalidConfig,
                    format!("prevResult: ips: {} belongs to an interface that is not listed", ip.address),
                ));
            }
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &Value, default: Version) -> Result<Outcome, CniError> {
        Outcome::parse(&go_json::parse(value.to_string().as_bytes()).unwrap(), default)
    }

    fn outcome() -> Outcome {
        Outcome {
            interfaces: vec![
                Interface { name: "sl0".into(), mac: "02:00:00:00:00:01".into(), ..Interface::default() },
                Interface {
                    name: "eth0".into(),
                    mtu: Some(1450),
                    sandbox: "/run/netns/x".into(),
                    ..Interface::default()
                },
            ],
            ips: vec![
                Ip {
                    address: "10.244.1.7/24".parse().unwrap(),
                    gateway: Some("10.244.1.1".parse().unwrap()),
                    interface: Some(1),
                    others: Map::new(),
                },
                Ip {
                    address: "fd00::7/64".parse().unwrap(),
                    gateway: None,
                    interface: Some(1),
                    others: Map::new(),
                },
            ],
            routes: vec![Route {
                dst: "0.0.0.0/0".parse().unwrap(),
                gw: None,
                mtu: Some(1400),
                others: Map::new(),
            }],
            ..Outcome::default()
        }
    }

    #[test]
    fn each_version_is_written_as_it_specifies() {
        let newest = outcome().object(Version::V1_1_0).unwrap();
        assert_eq!(newest["cniVersion"], "1.1.0");
        assert_eq!(
            (&newest["interfaces"][1]["mtu"], &newest["routes"][0]["mtu"]),
            (&json!(1450), &json!(1400))
        );
        assert_eq!(newest["ips"][0].get("version"), None);
        let older = outcome().object(Version::V1_0_0).unwrap();
        assert_eq!((older["interfaces"][1].get("mtu"), older["routes"][0].get("mtu")), (None, None));
        let old = outcome().object(Version::V0_4_0).unwrap();
        assert_eq!((&old["ips"][0]["version"], &old["ips"][1]["version"]), (&json!("4"), &json!("6")));
        assert_eq!(old["ips"][0]["address"], "10.244.1.7/24");
        assert_eq!(old.get("dns"), None);
    }

    #[test]
    fn a_result_is_read_back_in_every_version() {
        for version in Version::ALL {
            let written = outcome().object(version).unwrap();
            let read = parse(&written, Version::NEWEST).unwrap();
            assert_eq!(read.object(version).unwrap(), written);
            assert_eq!(read.ips, outcome().ips);
        }
    }

    #[test]
    fn what_others_wrote_is_kept() {
        let other = json!({"interfaces": [{"name": "a", "x": 1}], "ips": [], "y": {"z": true}});
        let read = parse(&other, Version::V1_0_0).unwrap();
        let written = read.object(Version::V1_0_0).unwrap();
        assert_eq!((&written["interfaces"][0]["x"], &written["y"]["z"]), (&json!(1), &json!(true)));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            json!({"ips": [{"address": "10.0.0.1"}]}),
            json!({"ips": "x"}),
            json!({"ips": [{"address": "10.0.0.1/24", "interface": 3}]}),
            json!({"cniVersion": "9"}),
            json!([]),
        ] {
            assert!(parse(&bad, Version::V1_0_0).is_err(), "{bad}");
        }
    }
}
