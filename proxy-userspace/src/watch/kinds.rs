//! How objects of each kind are read: the fields that matter, and what becomes of them.

use serde::Deserializer;
use serde::de::DeserializeOwned;
use sluice_core::event::{Change, Event};
use sluice_core::kind::Kind;

use super::convert::{
    Converted, convert_endpoint_slice, convert_namespace, convert_node, convert_pod, convert_service,
    convert_service_cidr,
};

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
