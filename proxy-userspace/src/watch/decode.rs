//! From the text of a manifest to objects: documents are split first, so that a broken one spoils no other.

use serde::de::DeserializeOwned;
use sluice_core::event::Event;

use super::convert::{
    Converted, convert_endpoint_slice, convert_namespace, convert_node, convert_pod, convert_service,
    convert_service_cidr,
};
use super::objects;

/// What one document of a manifest holds.
#[derive(Debug, Default)]
pub struct Document {
    /// One event for each object of a kind that matters here.
    pub events: Vec<Event>,
    /// Parts that were left out, each with its object, field and the reason.
    pub problems: Vec<String>,
}

/// Why a document cannot be used at all.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DocumentError {
    /// Neither YAML nor JSON.
    #[error("not valid YAML: {0}")]
    Syntax(String),
    /// No Kubernetes object.
    #[error("not a Kubernetes object: {0}")]
    Shape(String),
}

/// The documents of a file with the number of the line on which each starts (the first is 1).
pub fn split_documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut first_line, mut offset) = (0, 1, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end();
        if bare == "---" || bare.starts_with("--- ") {
            documents.push((first_line, &text[start..offset]));
            start = offset + line.len();
            first_line = number + 2;
        }
        offset += line.len();
    }
    documents.push((first_line, &text[start..]));
    let blank = |text: &str| text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#'));
    documents.retain(|(_, text)| !blank(text));
    documents
}

/// Decodes one document.
pub fn decode(text: &str) -> Result<Document, DocumentError> {
    let value = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).or_else(|_| yaml(text))?
    } else {
        yaml(text)?
    };
    let mut document = Document::default();
    object(value, &mut document)?;
    Ok(document)
}

fn yaml(text: &str) -> Result<serde_json::Value, DocumentError> {
    // The parser's own message shows the text around the error; its first line says what is wrong.
    serde_saphyr::from_str(text).map_err(|error| {
        let message = error.to_string();
        DocumentError::Syntax(message.lines().next().unwrap_or_default().to_owned())
    })
}

fn object(mut value: serde_json::Value, document: &mut Document) -> Result<(), DocumentError> {
    let field = |name: &str| value.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    let (version, kind) = (field("apiVersion"), field("kind"));
    if kind.is_empty() || version.is_empty() {
        return Err(DocumentError::Shape("there is no apiVersion or no kind".into()));
    }
    if kind.ends_with("List") {
        return list(value, document);
    }
    match (version.as_str(), kind.as_str()) {
        ("v1", "Service") => add::<objects::Service, _>(value, document, convert_service, Event::Service),
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            with_defaults(&mut value);
            add::<objects::EndpointSlice, _>(value, document, convert_endpoint_slice, Event::Slice)
        }
        ("v1", "Node") => add::<objects::Node, _>(value, document, convert_node, Event::Node),
        ("networking.k8s.io/v1", "ServiceCIDR") => {
            add::<objects::ServiceCidr, _>(value, document, convert_service_cidr, Event::ServiceCidr)
        }
        ("v1", "Pod") => add::<objects::Pod, _>(value, document, convert_pod, Event::Pod),
        ("v1", "Namespace") => {
            add::<objects::AnyObject, _>(value, document, convert_namespace, Event::Namespace)
        }
        // Directories hold other kinds too; they are no business of ours.
        _ => Ok(()),
    }
}

/// Sets what an API server sets in a slice: a port that is not named has the empty name.
fn with_defaults(slice: &mut serde_json::Value) {
    let ports = slice.get_mut("ports").and_then(|ports| ports.as_array_mut());
    for port in ports.into_iter().flatten().filter_map(|port| port.as_object_mut()) {
        let name = port.entry("name").or_insert_with(|| "".into());
        if name.is_null() {
            *name = "".into();
        }
    }
}

/// The items of a List, each for itself. An item may leave out what the List's own kind says.
fn list(mut value: serde_json::Value, document: &mut Document) -> Result<(), DocumentError> {
    let text =
        |value: &serde_json::Value, name: &str| value.get(name).and_then(|v| v.as_str()).map(str::to_owned);
    let version = text(&value, "apiVersion");
    let kind = text(&value, "kind").and_then(|kind| kind.strip_suffix("List").map(str::to_owned));
    let Some(serde_json::Value::Array(items)) = value.get_mut("items").map(serde_json::Value::take) else {
        return Err(DocumentError::Shape("a List without items".into()));
    };
    for (i, mut item) in items.into_iter().enumerate() {
        if let (Some(map), Some(kind)) = (item.as_object_mut(), kind.as_ref().filter(|k| !k.is_empty())) {
            map.entry("kind").or_insert_with(|| kind.as_str().into());
            map.entry("apiVersion").or_insert_with(|| version.clone().unwrap_or_default().into());
        }
        if let Err(error) = object(item, document) {
            document.problems.push(format!("items[{i}]: {error}"));
        }
    }
    Ok(())
}

fn add<K, T>(
    value: serde_json::Value,
    document: &mut Document,
    convert: impl FnOnce(&K) -> Converted<T>,
    event: impl FnOnce(sluice_core::event::Change<T>) -> Event,
) -> Result<(), DocumentError>
where
    K: DeserializeOwned,
{
    let label = describe(&value);
    if label.ends_with(' ') {
        return Err(DocumentError::Shape(format!("{label}has no metadata.name")));
    }
    let object: K =
        serde_json::from_value(value).map_err(|error| DocumentError::Shape(format!("{label}: {error}")))?;
    let converted = convert(&object);
    document.problems.extend(converted.problems.into_iter().map(|problem| format!("{label}: {problem}")));
    document.events.push(event(converted.change));
    Ok(())
}

/// `Service default/web`.
fn describe(value: &serde_json::Value) -> String {
    let kind = value.get("kind").and_then(|v| v.as_str()).unwrap_or_default();
    let metadata = |name: &str| value.pointer(&format!("/metadata/{name}")).and_then(|v| v.as_str());
    match (kind, metadata("namespace"), metadata("name").unwrap_or_default()) {
        (_, _, "") => format!("{kind} "),
        ("Node" | "ServiceCIDR" | "Namespace", _, name) => format!("{kind} {name}"),
        (_, namespace, name) => format!("{kind} {}/{name}", namespace.unwrap_or("default")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_split_at_their_markers_with_line_numbers() {
        let text = "# head\n---\na: 1\n--- # second\nb: 2\n---\n\n---\nc: 3\n";
        let documents = split_documents(text);
        assert_eq!(documents, [(3, "a: 1\n"), (5, "b: 2\n"), (9, "c: 3\n")]);
    }

    #[test]
    fn items_of_a_list_stand_for_themselves() {
        let text = "apiVersion: v1\nkind: List\nitems:\n\
                    - {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.0.0.1}}\n\
                    - {apiVersion: v1, kind: Service, metadata: {name: b}, spec: {ports: broken}}\n\
                    - {apiVersion: v1, kind: ConfigMap, metadata: {name: c}}\n";
        let document = decode(text).unwrap();
        assert_eq!(document.events.len(), 1);
        assert_eq!(document.problems.len(), 1);
        assert!(document.problems[0].starts_with("items[1]: "), "{:?}", document.problems);
    }

    #[test]
    fn a_typed_list_gives_its_items_their_kind() {
        let text = "{\"apiVersion\":\"v1\",\"kind\":\"ServiceList\",\"items\":[{\"metadata\":{\"name\":\"a\"},\
                    \"spec\":{\"clusterIP\":\"10.0.0.1\"}}]}";
        assert_eq!(decode(text).unwrap().events.len(), 1);
    }

    #[test]
    fn what_is_no_object_is_an_error_that_says_so() {
        assert!(matches!(decode("a: [1"), Err(DocumentError::Syntax(_))));
        assert!(matches!(decode("a: 1"), Err(DocumentError::Shape(_))));
        assert!(matches!(decode("just text"), Err(DocumentError::Shape(_))));
        let nameless = decode("{apiVersion: v1, kind: Service, metadata: {}}").unwrap_err();
        assert!(nameless.to_string().contains("metadata.name"), "{nameless}");
    }
}
