//! How objects of each kind are read: the fields that matter, and what becomes of them. What cannot
//! be used is left out and named.

mod node;
mod pod;
mod service;
mod slice;

use std::net::IpAddr;

use serde::Deserializer;
use serde::de::DeserializeOwned;
use sluice_core::event::{Change, Event};
use sluice_core::kind::Kind;
use sluice_core::model::ObjectName;
use sluice_core::net::parse_ip;

use super::objects::Metadata;
use node::{convert_node, convert_service_cidr};
use pod::{convert_namespace, convert_pod};
use service::convert_service;
use slice::convert_endpoint_slice;

/// What an object says.
#[derive(Debug)]
pub(super) struct Said {
    /// What it means for the index.
    pub(super) event: Event,
    /// Parts that were left out, each with its field and the reason.
    pub(super) problems: Vec<String>,
}

/// Reads an object of a kind.
pub(super) fn read<'de, D: Deserializer<'de>>(kind: Kind, object: D) -> Result<Said, D::Error> {
    match kind {
        Kind::Service => converted(object, convert_service, Event::Service),
        Kind::Slice => converted(object, convert_endpoint_slice, Event::Slice),
        Kind::Node => converted(object, convert_node, Event::Node),
        Kind::ServiceCidr => converted(object, convert_service_cidr, Event::ServiceCidr),
        Kind::Pod => converted(object, convert_pod, Event::Pod),
        Kind::Namespace => converted(object, convert_namespace, Event::Namespace),
    }
}

/// Reads an object of a kind from JSON.
pub(super) fn read_json(kind: Kind, json: &[u8]) -> Result<Said, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let said = read(kind, &mut deserializer)?;
    deserializer.end()?;
    Ok(said)
}

fn converted<'de, O: DeserializeOwned, T, D: Deserializer<'de>>(
    object: D,
    convert: impl FnOnce(&O) -> Converted<T>,
    event: impl FnOnce(Change<T>) -> Event,
) -> Result<Said, D::Error> {
    let Converted { change, problems } = convert(&O::deserialize(object)?);
    Ok(Said { event: event(change), problems })
}

/// A converted object.
#[derive(Debug, PartialEq)]
struct Converted<T> {
    /// To apply it, or to delete it because it is not ours to serve.
    change: Change<T>,
    /// Parts that were left out, each with its field and the reason.
    problems: Vec<String>,
}

fn object_name(metadata: &Metadata) -> ObjectName {
    ObjectName::new(metadata.namespace.as_deref().unwrap_or("default"), &metadata.name)
}

fn port(number: i32) -> Option<u16> {
    u16::try_from(number).ok()
}

/// Parses an address; blank ones are no problem, others that do not parse are left out and named.
fn address(field: &str, text: &str, problems: &mut Vec<String>) -> Option<IpAddr> {
    let text = text.trim();
    let ip = parse_ip(text);
    if ip.is_none() && !text.is_empty() {
        problems.push(format!("{field}: {text:?} is not an IP address; it is left out"));
    }
    ip
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
