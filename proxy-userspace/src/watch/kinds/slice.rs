//! EndpointSlices: the fields that are read, and the model that they become.

use std::sync::Arc;

use serde::Deserialize;
use sluice_core::event::Change;
use sluice_core::model::{Conditions, EndpointSlice, Hints, ObjectName, SliceEndpoint, SlicePort};
use sluice_core::net::{Family, Protocol, parse_ip, special};
use tracing::debug;

use super::{Converted, object_name, port};
use crate::watch::objects::{Metadata, or_default};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct SliceObject {
    #[serde(deserialize_with = "or_default")]
    metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    address_type: String,
    #[serde(deserialize_with = "or_default")]
    ports: Vec<EndpointPort>,
    #[serde(deserialize_with = "or_default")]
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct EndpointPort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Endpoint {
    #[serde(deserialize_with = "or_default")]
    addresses: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    conditions: ConditionFields,
    node_name: Option<String>,
    hints: Option<HintFields>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConditionFields {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct HintFields {
    #[serde(deserialize_with = "or_default")]
    for_zones: Vec<Hint>,
    #[serde(deserialize_with = "or_default")]
    for_nodes: Vec<Hint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Hint {
    #[serde(deserialize_with = "or_default")]
    name: String,
}

/// Converts an EndpointSlice; one that belongs to no Service, or that is marked headless, becomes a
/// deletion.
pub(super) fn convert_endpoint_slice(object: &SliceObject) -> Converted<EndpointSlice> {
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

fn slice_ports(object: &SliceObject, problems: &mut Vec<String>) -> Vec<SlicePort> {
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

fn slice_endpoints(object: &SliceObject, family: Family, problems: &mut Vec<String>) -> Vec<SliceEndpoint> {
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

fn hints(entry: &Endpoint) -> Option<Box<Hints>> {
    let hints = entry.hints.as_ref()?;
    let zones = hints.for_zones.iter().map(|zone| zone.name.as_str().into()).collect();
    let nodes = hints.for_nodes.iter().map(|node| node.name.as_str().into()).collect();
    Some(Box::new(Hints { zones, nodes }))
}
