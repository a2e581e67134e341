//! From Kubernetes objects to the domain model. What cannot be used is left out and named.

use std::sync::Arc;

use sluice_core::event::Change;
use sluice_core::model::{
    Conditions, EndpointSlice, Hints, Node, ObjectName, Service, ServiceCidr, ServicePort, ServiceType,
    SliceEndpoint, SlicePort, TrafficPolicy,
};
use sluice_core::net::{Family, Protocol, parse_cidr, parse_ip, special};
use tracing::debug;

use super::objects::{self, Metadata};

mod opt_out;

pub(super) use opt_out::{convert_namespace, convert_pod};

/// A converted object.
#[derive(Debug, PartialEq)]
pub(super) struct Converted<T> {
    /// To apply it, or to delete it because it is not ours to serve.
    pub(super) change: Change<T>,
    /// Parts that were left out, each with its field and the reason.
    pub(super) problems: Vec<String>,
}

const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;
/// The API's limit, one day.
const MAX_AFFINITY_SECONDS: i32 = 86_400;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

fn object_name(metadata: &Metadata) -> ObjectName {
    ObjectName::new(metadata.namespace.as_deref().unwrap_or("default"), &metadata.name)
}

/// Converts a Service; one that this proxy must leave alone (reference 1.1, 1.2) becomes a
/// deletion.
pub(super) fn convert_service(object: &objects::Service) -> Converted<Service> {
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

fn port(number: i32) -> Option<u16> {
    u16::try_from(number).ok()
}

fn service_ports(spec: &objects::ServiceSpec, problems: &mut Vec<String>) -> Vec<ServicePort> {
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
fn cluster_ips(
    spec: &objects::ServiceSpec,
    cluster_ip: &str,
    problems: &mut Vec<String>,
) -> Vec<std::net::IpAddr> {
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

/// Parses an address; blank ones are no problem, others that do not parse are left out and named.
fn address(field: &str, text: &str, problems: &mut Vec<String>) -> Option<std::net::IpAddr> {
    let text = text.trim();
    let ip = parse_ip(text);
    if ip.is_none() && !text.is_empty() {
        problems.push(format!("{field}: {text:?} is not an IP address; it is left out"));
    }
    ip
}

/// An address that a Service is to answer on.
fn service_address(field: &str, text: &str, problems: &mut Vec<String>) -> Option<std::net::IpAddr> {
    let ip = address(field, text, problems)?;
    if let Some(what) = special(&ip) {
        problems.push(format!("{field}: {text:?} is {what}, which no Service may have; it is left out"));
        return None;
    }
    Some(ip)
}

fn external_ips(spec: &objects::ServiceSpec, problems: &mut Vec<String>) -> Vec<std::net::IpAddr> {
    let listed = spec.external_ips.iter().enumerate();
    listed
        .filter_map(|(i, text)| service_address(&format!("spec.externalIPs[{i}]"), text, problems))
        .collect()
}

/// The port, 0 when there is none.
fn health_check_node_port(spec: &objects::ServiceSpec, problems: &mut Vec<String>) -> u16 {
    let number = spec.health_check_node_port.unwrap_or(0);
    port(number).unwrap_or_else(|| {
        problems.push(format!("spec.healthCheckNodePort: {number} is out of range; it is left out"));
        0
    })
}

fn load_balancer_ips(object: &objects::Service, problems: &mut Vec<String>) -> Vec<std::net::IpAddr> {
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
fn source_ranges(spec: &objects::ServiceSpec, problems: &mut Vec<String>) -> Vec<ipnet::IpNet> {
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

/// Converts an EndpointSlice; one that belongs to no Service, or that is marked headless, becomes a
/// deletion.
pub(super) fn convert_endpoint_slice(object: &objects::EndpointSlice) -> Converted<EndpointSlice> {
    let name = object_name(&object.metadata);
    let mut problems = Vec::new();
    let skip = |problems| Converted { change: Change::Delete(name.clone()), problems };
    if object.metadata.labels.headless.is_some() {
        return skip(problems);
    }
    let service = object.metadata.labels.service_name.as_deref().unwrap_or_default();
    if service.is_empty() {
        // Legal: some controllers keep slices of their own (leader election of old clients,
        // meshes).
        debug!(slice = %name, "EndpointSlice without label {SERVICE_NAME}: it belongs to no Service");
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
    let trigger = object.metadata.annotations.trigger_time.as_deref();
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

fn slice_ports(object: &objects::EndpointSlice, problems: &mut Vec<String>) -> Vec<SlicePort> {
    let mut found = Vec::new();
    for (i, entry) in object.ports.iter().enumerate() {
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
    object: &objects::EndpointSlice,
    family: Family,
    problems: &mut Vec<String>,
) -> Vec<SliceEndpoint> {
    let mut found = Vec::new();
    for (i, entry) in object.endpoints.iter().enumerate() {
        let Some(text) = entry.addresses.first() else {
            problems.push(format!("endpoints[{i}].addresses: is empty; this endpoint is left out"));
            continue;
        };
        let Some(address) = parse_ip(text).filter(|ip| Family::of(ip) == family) else {
            problems.push(format!(
                "endpoints[{i}].addresses[0]: {text:?} is not an {family} address; this endpoint is left out"
            ));
            continue;
        };
        if let Some(what) = special(&address) {
            problems.push(format!(
                "endpoints[{i}].addresses[0]: {text:?} is {what}, which no pod has; this endpoint is left out"
            ));
            continue;
        }
        let conditions = Conditions {
            ready: entry.conditions.ready.unwrap_or(true),
            serving: entry.conditions.serving.unwrap_or(true),
            terminating: entry.conditions.terminating.unwrap_or(false),
        };
        let node = entry.node_name.as_deref().map(Arc::from);
        found.push(SliceEndpoint { address, node, conditions, hints: hints(entry) });
    }
    found
}

fn hints(entry: &objects::Endpoint) -> Option<Box<Hints>> {
    let hints = entry.hints.as_ref()?;
    let zones = hints.for_zones.iter().map(|zone| zone.name.as_str().into()).collect();
    let nodes = hints.for_nodes.iter().map(|node| node.name.as_str().into()).collect();
    Some(Box::new(Hints { zones, nodes }))
}

/// Converts a Node.
pub(super) fn convert_node(object: &objects::Node) -> Converted<Node> {
    let mut problems = Vec::new();
    let name = ObjectName::cluster_scoped(&object.metadata.name);
    let listed = &object.status.addresses;
    let mut addresses = Vec::new();
    for kind in ["InternalIP", "ExternalIP"] {
        for (i, entry) in listed.iter().enumerate().filter(|(_, entry)| entry.type_ == kind) {
            let field = format!("status.addresses[{i}].address");
            addresses.extend(address(&field, &entry.address, &mut problems));
        }
    }
    let spec = &object.spec;
    let cidrs = if spec.pod_cidrs.is_empty() { spec.pod_cidr.as_slice() } else { &spec.pod_cidrs };
    let mut pod_cidrs = Vec::new();
    for (i, text) in cidrs.iter().enumerate() {
        match parse_cidr(text) {
            Some(net) => pod_cidrs.push(net),
            None => problems.push(format!("spec.podCIDRs[{i}]: {text:?} is not a CIDR; it is left out")),
        }
    }
    let doomed = spec.taints.iter().any(|taint| taint.key == TO_BE_DELETED);
    let node = Node {
        name,
        addresses,
        pod_cidrs,
        zone: object.metadata.labels.zone.as_deref().filter(|zone| !zone.is_empty()).map(Arc::from),
        eligible: object.metadata.deletion_timestamp.is_none() && !doomed,
    };
    Converted { change: Change::Apply(node), problems }
}

/// Converts a ServiceCIDR.
pub(super) fn convert_service_cidr(object: &objects::ServiceCidr) -> Converted<ServiceCidr> {
    let mut problems = Vec::new();
    let name = ObjectName::cluster_scoped(&object.metadata.name);
    let mut cidrs = Vec::new();
    for (i, text) in object.spec.cidrs.iter().enumerate() {
        match parse_cidr(text) {
            Some(net) => cidrs.push(net),
            None => problems.push(format!("spec.cidrs[{i}]: {text:?} is not a CIDR; it is left out")),
        }
    }
    Converted { change: Change::Apply(ServiceCidr { name, cidrs }), problems }
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
