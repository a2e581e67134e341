//! Services: the fields that are read, and the model that they become.

use std::net::IpAddr;

use serde::Deserialize;
use sluice_core::event::Change;
use sluice_core::model::{Service, ServicePort, ServiceType, TrafficPolicy};
use sluice_core::net::{Family, Protocol, parse_cidr, special};

use super::{Converted, address, object_name, port};
use crate::watch::objects::{Metadata, or_default};

const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;
/// The API's limit, one day.
const MAX_AFFINITY_SECONDS: i32 = 86_400;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServiceObject {
    #[serde(deserialize_with = "or_default")]
    metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    spec: ServiceSpec,
    #[serde(deserialize_with = "or_default")]
    status: ServiceStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(rename = "type")]
    type_: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", deserialize_with = "or_default")]
    cluster_ips: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    ip_families: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    ports: Vec<PortFields>,
    #[serde(rename = "externalIPs", deserialize_with = "or_default")]
    external_ips: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    load_balancer_source_ranges: Vec<String>,
    session_affinity: Option<String>,
    #[serde(deserialize_with = "or_default")]
    session_affinity_config: AffinityConfig,
    internal_traffic_policy: Option<String>,
    external_traffic_policy: Option<String>,
    health_check_node_port: Option<i32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PortFields {
    #[serde(deserialize_with = "or_default")]
    name: String,
    protocol: Option<String>,
    #[serde(deserialize_with = "or_default")]
    port: i32,
    #[serde(deserialize_with = "or_default")]
    node_port: i32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AffinityConfig {
    #[serde(rename = "clientIP", deserialize_with = "or_default")]
    client_ip: ClientIp,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ClientIp {
    timeout_seconds: Option<i32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceStatus {
    #[serde(deserialize_with = "or_default")]
    load_balancer: LoadBalancerStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancerStatus {
    #[serde(deserialize_with = "or_default")]
    ingress: Vec<Ingress>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Ingress {
    ip: Option<String>,
    ip_mode: Option<String>,
}

/// Converts a Service; one that this proxy must leave alone (reference 1.1, 1.2) becomes a
/// deletion.
pub(super) fn convert_service(object: &ServiceObject) -> Converted<Service> {
    let name = object_name(&object.metadata);
    let mut problems = Vec::new();
    let spec = &object.spec;
    let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let service_type = match spec.type_.as_deref() {
        Some("NodePort") => Some(ServiceType::NodePort),
        Some("LoadBalancer") => Some(ServiceType::LoadBalancer),
        Some("ClusterIP") | None => Some(ServiceType::ClusterIp),
        Some("ExternalName") => None,
        Some(other) => {
            problems.push(format!("spec.type: {other:?} is unknown; the Service is not served"));
            None
        }
    };
    let delegated = object.metadata.labels.service_proxy_name.is_some();
    let (Some(service_type), false, false) =
        (service_type, delegated, cluster_ip.is_empty() || cluster_ip == "None")
    else {
        return Converted { change: Change::Delete(name), problems };
    };
    let ports = service_ports(spec, &mut problems);
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let configured = spec.session_affinity_config.client_ip.timeout_seconds;
        let seconds = configured.unwrap_or(DEFAULT_AFFINITY_SECONDS);
        if !(1..=MAX_AFFINITY_SECONDS).contains(&seconds) {
            problems.push(format!(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: {seconds} is not between 1 and \
                 {MAX_AFFINITY_SECONDS}; the nearest value is used"
            ));
        }
        seconds.clamp(1, MAX_AFFINITY_SECONDS).unsigned_abs()
    });
    let service = Service {
        created: object.metadata.creation_timestamp.as_deref().and_then(unix_seconds),
        service_type,
        cluster_ips: cluster_ips(spec, cluster_ip, &mut problems),
        ports,
        external_ips: external_ips(spec, &mut problems),
        load_balancer_ips: load_balancer_ips(object, &mut problems),
        source_ranges: source_ranges(spec, &mut problems),
        affinity,
        internal_policy: policy(spec.internal_traffic_policy.as_deref()),
        external_policy: policy(spec.external_traffic_policy.as_deref()),
        health_check_node_port: health_check_node_port(spec, &mut problems),
        name,
    };
    Converted { change: Change::Apply(service), problems }
}

/// A time that does not parse only loses a conflict between Services.
fn unix_seconds(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}

fn policy(text: Option<&str>) -> TrafficPolicy {
    if text == Some("Local") { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

fn service_ports(spec: &ServiceSpec, problems: &mut Vec<String>) -> Vec<ServicePort> {
    let mut ports = Vec::new();
    for (i, entry) in spec.ports.iter().enumerate() {
        let protocol = entry.protocol.as_deref().unwrap_or("TCP");
        let Some(protocol) = Protocol::parse(protocol) else {
            problems.push(format!(
                "spec.ports[{i}].protocol: {protocol:?} is not TCP, UDP or SCTP; this port is not served"
            ));
            continue;
        };
        let (Some(number @ 1..), Some(node_port)) = (port(entry.port), port(entry.node_port)) else {
            problems.push(format!(
                "spec.ports[{i}]: port {} or nodePort {} is out of range; this port is not served",
                entry.port, entry.node_port
            ));
            continue;
        };
        let name = entry.name.as_str().into();
        ports.push(ServicePort { name, protocol, port: number, node_port });
    }
    ports
}

/// One ClusterIP for each family: where `ipFamilies` are given, the one that stands at the same
/// place.
fn cluster_ips(spec: &ServiceSpec, cluster_ip: &str, problems: &mut Vec<String>) -> Vec<IpAddr> {
    let families = &spec.ip_families;
    let listed = &spec.cluster_ips;
    let single = [cluster_ip.to_owned()];
    let candidates = if families.is_empty() || listed.is_empty() { &single[..] } else { listed };
    let mut ips = Vec::new();
    for (i, text) in candidates.iter().enumerate() {
        let field =
            if candidates.len() == 1 { "spec.clusterIP".into() } else { format!("spec.clusterIPs[{i}]") };
        let wanted = families.get(i).map(String::as_str);
        if let Some(ip) = service_address(&field, text, problems)
            && (families.is_empty() || wanted == Some(Family::of(&ip).name()))
        {
            ips.push(ip);
        }
    }
    ips.sort_by_key(Family::of);
    ips.dedup_by_key(|ip| Family::of(ip));
    ips
}

/// An address that a Service is to answer on.
fn service_address(field: &str, text: &str, problems: &mut Vec<String>) -> Option<IpAddr> {
    let ip = address(field, text, problems)?;
    if let Some(what) = special(&ip) {
        problems.push(format!("{field}: {text:?} is {what}, which no Service may have; it is left out"));
        return None;
    }
    Some(ip)
}

fn external_ips(spec: &ServiceSpec, problems: &mut Vec<String>) -> Vec<IpAddr> {
    let listed = spec.external_ips.iter().enumerate();
    listed
        .filter_map(|(i, text)| service_address(&format!("spec.externalIPs[{i}]"), text, problems))
        .collect()
}

/// The port, 0 when there is none.
fn health_check_node_port(spec: &ServiceSpec, problems: &mut Vec<String>) -> u16 {
    let number = spec.health_check_node_port.unwrap_or(0);
    port(number).unwrap_or_else(|| {
        problems.push(format!("spec.healthCheckNodePort: {number} is out of range; it is left out"));
        0
    })
}

fn load_balancer_ips(object: &ServiceObject, problems: &mut Vec<String>) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for (i, entry) in object.status.load_balancer.ingress.iter().enumerate() {
        let served = entry.ip_mode.as_deref().is_none_or(|mode| mode == "VIP");
        if let Some(text) = entry.ip.as_deref().filter(|_| served) {
            found.extend(service_address(&format!("status.loadBalancer.ingress[{i}].ip"), text, problems));
        }
    }
    found
}

/// The ranges. Where a family is left with none of those that were listed for it, nobody is let in:
/// to leave a filter out because it cannot be read would open what was closed.
fn source_ranges(spec: &ServiceSpec, problems: &mut Vec<String>) -> Vec<ipnet::IpNet> {
    let listed = &spec.load_balancer_source_ranges;
    let (mut found, mut unread) = (Vec::new(), Vec::new());
    for (i, text) in listed.iter().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        match parse_cidr(text) {
            Some(net) => found.push(net),
            None => unread.push((i, text)),
        }
    }
    let closed: Vec<Family> = Family::BOTH
        .into_iter()
        .filter(|family| !found.iter().any(|net| Family::of_net(net) == *family))
        .filter(|family| {
            found.is_empty() && !unread.is_empty() || unread.iter().any(|(_, text)| may_be_of(*family, text))
        })
        .collect();
    for (i, text) in unread {
        problems.push(format!("spec.loadBalancerSourceRanges[{i}]: {text:?} is not a CIDR; it is left out"));
    }
    for family in closed {
        problems.push(format!(
            "spec.loadBalancerSourceRanges: it has no valid {family} range; {family} load balancer \
             addresses refuse all clients"
        ));
        found.push(family.nobody());
    }
    found
}

/// Whether a text that is no CIDR may have been meant as one of a family.
fn may_be_of(family: Family, text: &str) -> bool {
    match family {
        Family::V4 => !text.contains(':') || text.contains('.'),
        Family::V6 => !text.contains('.') || text.contains(':'),
    }
}
