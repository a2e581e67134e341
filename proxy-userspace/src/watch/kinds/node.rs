//! Nodes and ServiceCIDRs: the fields that are read, and the model that they become.

use std::sync::Arc;

use serde::Deserialize;
use sluice_core::event::Change;
use sluice_core::model::{Node, ObjectName, ServiceCidr};
use sluice_core::net::parse_cidr;

use super::{Converted, address};
use crate::watch::objects::{Metadata, or_default};

const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeObject {
    #[serde(deserialize_with = "or_default")]
    metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    spec: NodeSpec,
    #[serde(deserialize_with = "or_default")]
    status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs", deserialize_with = "or_default")]
    pod_cidrs: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    taints: Vec<Taint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Taint {
    #[serde(deserialize_with = "or_default")]
    key: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    #[serde(deserialize_with = "or_default")]
    addresses: Vec<NodeAddress>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeAddress {
    #[serde(rename = "type", deserialize_with = "or_default")]
    type_: String,
    #[serde(deserialize_with = "or_default")]
    address: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServiceCidrObject {
    #[serde(deserialize_with = "or_default")]
    metadata: Metadata,
    #[serde(deserialize_with = "or_default")]
    spec: ServiceCidrSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ServiceCidrSpec {
    #[serde(deserialize_with = "or_default")]
    cidrs: Vec<String>,
}

/// Converts a Node.
pub(super) fn convert_node(object: &NodeObject) -> Converted<Node> {
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
pub(super) fn convert_service_cidr(object: &ServiceCidrObject) -> Converted<ServiceCidr> {
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
