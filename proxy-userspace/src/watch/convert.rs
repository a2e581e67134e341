//! From Kubernetes objects to the domain model. What cannot be used is left out and named.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sluice_core::event::Change;
use sluice_core::model::{
    Conditions, EndpointSlice, Hints, Node, ObjectName, Service, ServiceCidr, ServicePort, ServiceType,
    SliceEndpoint, SlicePort, TrafficPolicy,
};
use sluice_core::net::{Family, Protocol, parse_cidr, parse_ip};

/// A converted object.
#[derive(Debug, PartialEq)]
pub struct Converted<T> {
    /// To apply it, or to delete it because it is not ours to serve.
    pub change: Change<T>,
    /// Parts that were left out, each with its field and the reason.
    pub problems: Vec<String>,
}

const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;
/// The API's limit, one day.
const MAX_AFFINITY_SECONDS: i32 = 86_400;
const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

fn object_name(metadata: &ObjectMeta) -> ObjectName {
    let namespace = metadata.namespace.as_deref().unwrap_or("default");
    ObjectName::new(namespace, metadata.name.as_deref().unwrap_or_default())
}

fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(name).map(String::as_str)
}

/// Converts a Service; one that this proxy must leave alone (reference 1.1, 1.2) becomes a deletion.
pub fn convert_service(object: &core::Service) -> Converted<Service> {
    let name = object_name(&object.metadata);
    let mut problems = Vec::new();
    let spec = object.spec.clone().unwrap_or_default();
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
    let delegated = label(&object.metadata, SERVICE_PROXY_NAME).is_some();
    let (Some(service_type), false, false) =
        (service_type, delegated, cluster_ip.is_empty() || cluster_ip == "None")
    else {
        return Converted { change: Change::Delete(name), problems };
    };
    let ports = service_ports(&spec, &mut problems);
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        let seconds = config.and_then(|c| c.timeout_seconds).unwrap_or(DEFAULT_AFFINITY_SECONDS);
        if !(1..=MAX_AFFINITY_SECONDS).contains(&seconds) {
            problems.push(format!(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: {seconds} is not between 1 and \
                 {MAX_AFFINITY_SECONDS}; the nearest is taken"
            ));
        }
        seconds.clamp(1, MAX_AFFINITY_SECONDS).unsigned_abs()
    });
    let service = Service {
        created: object.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        service_type,
        cluster_ips: cluster_ips(&spec, cluster_ip, &mut problems),
        ports,
        external_ips: external_ips(&spec, &mut problems),
        load_balancer_ips: load_balancer_ips(object, &mut problems),
        source_ranges: source_ranges(&spec, &mut problems),
        affinity,
        internal_policy: policy(spec.internal_traffic_policy.as_deref()),
        external_policy: policy(spec.external_traffic_policy.as_deref()),
        health_check_node_port: health_check_node_port(&spec, &mut problems),
        name,
    };
    Converted { change: Change::Apply(service), problems }
}

fn policy(text: Option<&str>) -> TrafficPolicy {
    if text == Some("Local") { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

fn port(number: i32) -> Option<u16> {
    u16::try_from(number).ok()
}

fn service_ports(spec: &core::ServiceSpec, problems: &mut Vec<String>) -> Vec<ServicePort> {
    let mut ports = Vec::new();
    for (i, entry) in spec.ports.iter().flatten().enumerate() {
        let protocol = entry.protocol.as_deref().unwrap_or("TCP");
        let Some(protocol) = Protocol::parse(protocol) else {
            problems.push(format!(
                "spec.ports[{i}].protocol: {protocol:?} is not TCP, UDP or SCTP; this port is not served"
            ));
            continue;
        };
        let (Some(number @ 1..), Some(node_port)) = (port(entry.port), port(entry.node_port.unwrap_or(0)))
        else {
            problems.push(format!(
                "spec.ports[{i}]: port {} or nodePort {} is out of range; this port is not served",
                entry.port,
                entry.node_port.unwrap_or(0)
            ));
            continue;
        };
        let name = entry.name.as_deref().unwrap_or_default().into();
        ports.push(ServicePort { name, protocol, port: number, node_port });
    }
    ports
}

/// One ClusterIP for each family: where `ipFamilies` are given, the one that stands at the same place.
fn cluster_ips(
    spec: &core::ServiceSpec,
    cluster_ip: &str,
    problems: &mut Vec<String>,
) -> Vec<std::net::IpAddr> {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let single = [cluster_ip.to_owned()];
    let candidates = if families.is_empty() || listed.is_empty() { &single[..] } else { listed };
    let mut ips = Vec::new();
    for (i, text) in candidates.iter().enumerate() {
        let field =
            if candidates.len() == 1 { "spec.clusterIP".into() } else { format!("spec.clusterIPs[{i}]") };
        let wanted = families.get(i).map(String::as_str);
        if let Some(ip) = address(&field, text, problems)
            && (families.is_empty() || wanted == Some(Family::of(&ip).name()))
        {
            ips.push(ip);
        }
    }
    ips.sort_by_key(Family::of);
    ips.dedup_by_key(|ip| Family::of(ip));
    ips
}

/// Parses an address; blank ones are no problem, others that do not parse are left out and named.
fn address(field: &str, text: &str, problems: &mut Vec<String>) -> Option<std::net::IpAddr> {
    let text = text.trim();
    let ip = parse_ip(text);
    if ip.is_none() && !text.is_empty() {
        problems.push(format!("{field}: {text:?} is no IP address; it is left out"));
    }
    ip
}

fn external_ips(spec: &core::ServiceSpec, problems: &mut Vec<String>) -> Vec<std::net::IpAddr> {
    let listed = spec.external_ips.iter().flatten().enumerate();
    listed.filter_map(|(i, text)| address(&format!("spec.externalIPs[{i}]"), text, problems)).collect()
}

/// The port, 0 when there is none.
fn health_check_node_port(spec: &core::ServiceSpec, problems: &mut Vec<String>) -> u16 {
    let number = spec.health_check_node_port.unwrap_or(0);
    port(number).unwrap_or_else(|| {
        problems.push(format!("spec.healthCheckNodePort: {number} is out of range; it is left out"));
        0
    })
}

fn load_balancer_ips(object: &core::Service, problems: &mut Vec<String>) -> Vec<std::net::IpAddr> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    let mut found = Vec::new();
    for (i, entry) in ingress.iter().enumerate() {
        let served = entry.ip_mode.as_deref().is_none_or(|mode| mode == "VIP");
        if let Some(text) = entry.ip.as_deref().filter(|_| served) {
            found.extend(address(&format!("status.loadBalancer.ingress[{i}].ip"), text, problems));
        }
    }
    found
}

fn source_ranges(spec: &core::ServiceSpec, problems: &mut Vec<String>) -> Vec<ipnet::IpNet> {
    let mut found = Vec::new();
    for (i, text) in spec.load_balancer_source_ranges.iter().flatten().enumerate() {
        match parse_cidr(text) {
            Some(net) => found.push(net),
            None if text.trim().is_empty() => {}
            None => {
                problems
                    .push(format!("spec.loadBalancerSourceRanges[{i}]: {text:?} is no CIDR; it is left out"));
            }
        }
    }
    found
}

/// Converts an EndpointSlice; one that belongs to no Service, or that is marked headless, becomes a deletion.
pub fn convert_endpoint_slice(object: &discovery::EndpointSlice) -> Converted<EndpointSlice> {
    let name = object_name(&object.metadata);
    let mut problems = Vec::new();
    let skip = |problems| Converted { change: Change::Delete(name.clone()), problems };
    if label(&object.metadata, HEADLESS).is_some() {
        return skip(problems);
    }
    let service = label(&object.metadata, SERVICE_NAME).unwrap_or_default();
    if service.is_empty() {
        problems
            .push(format!("metadata.labels: there is no {SERVICE_NAME}; the slice belongs to no Service"));
        return skip(problems);
    }
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        other => {
            problems.push(format!("addressType: {other:?} is neither IPv4 nor IPv6; the slice is left out"));
            return skip(problems);
        }
    };
    let ports = slice_ports(object, &mut problems);
    let endpoints = slice_endpoints(object, family, &mut problems);
    let trigger = object.metadata.annotations.as_ref().and_then(|all| all.get(TRIGGER_TIME));
    let triggered = trigger.and_then(|text| match text.parse::<jiff::Timestamp>() {
        Ok(time) => Some(time.as_nanosecond()),
        Err(error) => {
            problems.push(format!("metadata.annotations[{TRIGGER_TIME}]: {error}; it is ignored"));
            None
        }
    });
    let slice = EndpointSlice {
        service: ObjectName::new(name.namespace(), service),
        name,
        family,
        ports,
        endpoints,
        triggered,
    };
    Converted { change: Change::Apply(slice), problems }
}

fn slice_ports(object: &discovery::EndpointSlice, problems: &mut Vec<String>) -> Vec<SlicePort> {
    let mut found = Vec::new();
    for (i, entry) in object.ports.iter().flatten().enumerate() {
        let protocol = entry.protocol.as_deref().unwrap_or("TCP");
        let number = entry.port.and_then(port).filter(|number| *number != 0);
        match (entry.name.as_deref(), number, Protocol::parse(protocol)) {
            (Some(name), Some(port), Some(protocol)) => {
                found.push(SlicePort { name: name.into(), protocol, port });
            }
            (None, ..) => problems.push(format!("ports[{i}].name: is not set; this port is left out")),
            (_, None, _) => {
                problems.push(format!("ports[{i}].port: is not set or out of range; this port is left out"));
            }
            (.., None) => problems.push(format!(
                "ports[{i}].protocol: {protocol:?} is not TCP, UDP or SCTP; this port is left out"
            )),
        }
    }
    found
}

fn slice_endpoints(
    object: &discovery::EndpointSlice,
    family: Family,
    problems: &mut Vec<String>,
) -> Vec<SliceEndpoint> {
    let mut found = Vec::new();
    for (i, entry) in object.endpoints.iter().flatten().enumerate() {
        let Some(text) = entry.addresses.first() else {
            problems.push(format!("endpoints[{i}].addresses: is empty; this endpoint is left out"));
            continue;
        };
        let Some(address) = parse_ip(text).filter(|ip| Family::of(ip) == family) else {
            problems.push(format!(
                "endpoints[{i}].addresses[0]: {text:?} is no {family} address; this endpoint is left out"
            ));
            continue;
        };
        let conditions = entry.conditions.as_ref().map_or_else(Conditions::default, |c| Conditions {
            ready: c.ready.unwrap_or(true),
            serving: c.serving.unwrap_or(true),
            terminating: c.terminating.unwrap_or(false),
        });
        let node = entry.node_name.as_deref().map(Arc::from);
        found.push(SliceEndpoint { address, node, conditions, hints: hints(entry) });
    }
    found
}

fn hints(entry: &discovery::Endpoint) -> Option<Box<Hints>> {
    let hints = entry.hints.as_ref()?;
    let zones = hints.for_zones.iter().flatten().map(|zone| zone.name.as_str().into()).collect();
    let nodes = hints.for_nodes.iter().flatten().map(|node| node.name.as_str().into()).collect();
    Some(Box::new(Hints { zones, nodes }))
}

/// Converts a Node.
pub fn convert_node(object: &core::Node) -> Converted<Node> {
    let mut problems = Vec::new();
    let name = ObjectName::cluster_scoped(object.metadata.name.as_deref().unwrap_or_default());
    let status = object.status.clone().unwrap_or_default();
    let listed = status.addresses.unwrap_or_default();
    let mut addresses = Vec::new();
    for kind in ["InternalIP", "ExternalIP"] {
        for (i, entry) in listed.iter().enumerate().filter(|(_, entry)| entry.type_ == kind) {
            let field = format!("status.addresses[{i}].address");
            addresses.extend(address(&field, &entry.address, &mut problems));
        }
    }
    let spec = object.spec.clone().unwrap_or_default();
    let mut cidrs = spec.pod_cidrs.unwrap_or_default();
    if cidrs.is_empty() {
        cidrs.extend(spec.pod_cidr);
    }
    let mut pod_cidrs = Vec::new();
    for (i, text) in cidrs.iter().enumerate() {
        match parse_cidr(text) {
            Some(net) => pod_cidrs.push(net),
            None => problems.push(format!("spec.podCIDRs[{i}]: {text:?} is no CIDR; it is left out")),
        }
    }
    let doomed = spec.taints.iter().flatten().any(|taint| taint.key == TO_BE_DELETED);
    let node = Node {
        name,
        addresses,
        pod_cidrs,
        zone: label(&object.metadata, ZONE).filter(|zone| !zone.is_empty()).map(Arc::from),
        eligible: object.metadata.deletion_timestamp.is_none() && !doomed,
    };
    Converted { change: Change::Apply(node), problems }
}

/// Converts a ServiceCIDR.
pub fn convert_service_cidr(object: &networking::ServiceCIDR) -> Converted<ServiceCidr> {
    let mut problems = Vec::new();
    let name = ObjectName::cluster_scoped(object.metadata.name.as_deref().unwrap_or_default());
    let mut cidrs = Vec::new();
    let listed = object.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
    for (i, text) in listed.iter().enumerate() {
        match parse_cidr(text) {
            Some(net) => cidrs.push(net),
            None => problems.push(format!("spec.cidrs[{i}]: {text:?} is no CIDR; it is left out")),
        }
    }
    Converted { change: Change::Apply(ServiceCidr { name, cidrs }), problems }
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
