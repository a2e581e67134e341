//! From the text of a document to objects.

use serde_json::Value;
use sluice_core::event::Event;
use sluice_core::kind::Kind;
use sluice_core::model::ObjectName;

use super::doubt::MayBe;
use super::kinds::read;
use super::yaml;

/// What one document of a manifest holds.
#[derive(Debug, Default)]
pub(super) struct Document {
    /// One event for each object of a kind that matters here.
    pub(super) events: Vec<Event>,
    /// Parts that were left out, each with its object, field and the reason.
    pub(super) problems: Vec<String>,
    /// What cannot be read at all.
    pub(super) broken: Vec<Broken>,
}

/// A document, or an item of a List, that cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken {
    /// The reason, and what to do.
    pub(super) reason: String,
    /// What it may be.
    pub(super) may_be: MayBe,
    /// The line within the document on which it breaks, as far as that is known.
    pub(super) line: Option<u64>,
}

/// Decodes one document.
pub(super) fn decode(text: &str) -> Document {
    let mut document = Document::default();
    match yaml::value(text) {
        Ok(Value::Null) => {}
        Ok(value) => object(value, "", &mut document),
        Err(wrong) => {
            let reason = format!("not valid YAML: {}", wrong.reason);
            document.broken.push(Broken { reason, may_be: MayBe::Text(text.to_owned()), line: wrong.line });
        }
    }
    document
}

impl Document {
    fn give_up(&mut self, value: &Value, place: &str, reason: &str) {
        let reason = format!("{place}not a Kubernetes object: {reason}");
        self.broken.push(Broken { reason, may_be: MayBe::Text(value.to_string()), line: None });
    }
}

/// An object, or a List: as for kubectl, whatever has items. `place` says which item of a List this
/// is.
fn object(mut value: Value, place: &str, document: &mut Document) {
    let field = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    if !value.is_object() {
        return document.give_up(&value, place, "it is not a mapping; write apiVersion, kind and metadata");
    }
    let (version, kind) = (field("apiVersion"), field("kind"));
    if kind.is_empty() || version.is_empty() {
        return document.give_up(&value, place, "there is no apiVersion or no kind; add it");
    }
    if value.get("items").is_some() {
        return list(value, place, document);
    }
    // Directories hold other kinds too; they are no business of ours.
    let Some(kind) = Kind::parse(&kind).filter(|kind| kind.api_version() == version) else { return };
    if kind == Kind::Slice {
        with_defaults(&mut value);
    }
    add(kind, value, place, document);
}

/// Sets what an API server sets in a slice: a port that is not named has the empty name.
fn with_defaults(slice: &mut Value) {
    let ports = slice.get_mut("ports").and_then(|ports| ports.as_array_mut());
    for port in ports.into_iter().flatten().filter_map(|port| port.as_object_mut()) {
        let name = port.entry("name").or_insert_with(|| "".into());
        if name.is_null() {
            *name = "".into();
        }
    }
}

/// The items of a List, each for itself. An item may leave out what the List's own kind says.
fn list(mut value: Value, place: &str, document: &mut Document) {
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let version = text(&value, "apiVersion");
    let kind = text(&value, "kind").and_then(|kind| kind.strip_suffix("List").map(str::to_owned));
    let items = match value.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => items,
        // What Go programs write for a List of nothing.
        None | Some(Value::Null) => return,
        Some(_) => return document.give_up(&value, place, "its items are not a list"),
    };
    for (i, mut item) in items.into_iter().enumerate() {
        if let (Some(map), Some(kind)) = (item.as_object_mut(), kind.as_ref().filter(|k| !k.is_empty())) {
            map.entry("kind").or_insert_with(|| kind.as_str().into());
            map.entry("apiVersion").or_insert_with(|| version.clone().unwrap_or_default().into());
        }
        object(item, &format!("{place}items[{i}]: "), document);
    }
}

fn add(kind: Kind, value: Value, place: &str, document: &mut Document) {
    let Some(name) = name(kind, &value) else {
        return document.give_up(&value, place, "it has no metadata.name; add it");
    };
    match read(kind, value) {
        Ok(said) => {
            let problems = said.problems.into_iter();
            document.problems.extend(problems.map(|problem| format!("{place}{kind} {name}: {problem}")));
            document.events.push(said.event);
        }
        Err(error) => {
            let reason = format!("{place}{kind} {name}: {error}");
            document.broken.push(Broken { reason, may_be: MayBe::Object((kind, name)), line: None });
        }
    }
}

/// The name of an object, as far as it has one.
fn name(kind: Kind, value: &Value) -> Option<ObjectName> {
    let metadata = |name: &str| value.get("metadata")?.get(name)?.as_str().filter(|text| !text.is_empty());
    Some(kind.object(metadata("namespace"), metadata("name")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reasons(text: &str) -> String {
        decode(text).broken.into_iter().map(|broken| broken.reason).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn items_of_a_list_stand_for_themselves() {
        let text = "apiVersion: v1\nkind: List\nitems:\n\
                    - {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.0.0.1}}\n\
                    - {apiVersion: v1, kind: Service, metadata: {name: b}, spec: {ports: broken}}\n\
                    - {apiVersion: v1, kind: ConfigMap, metadata: {name: c}}\n\
                    - {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Node, metadata: {name: node-1}}]}\n";
        let document = decode(text);
        assert_eq!(document.events.len(), 2);
        let [broken] = &document.broken[..] else { panic!("{:?}", document.broken) };
        assert!(broken.reason.starts_with("items[1]: Service default/b: "), "{broken:?}");
        assert_eq!(broken.may_be, MayBe::Object((Kind::Service, ObjectName::new("default", "b"))));
    }

    #[test]
    fn a_list_is_what_has_items_whatever_its_kind_is_called() {
        for nothing in [
            "apiVersion: v1\nkind: ServiceList\nitems: null\n",
            "apiVersion: v1\nkind: ServiceList\n",
            "apiVersion: v1\nkind: List\nitems: []\n",
            "apiVersion: example.com/v1\nkind: AllowList\nmetadata: {name: trusted}\n",
            "null\n",
            "~",
            "",
        ] {
            let document = decode(nothing);
            assert!(document.events.is_empty() && document.broken.is_empty(), "{nothing}: {document:?}");
        }
        assert!(reasons("{apiVersion: v1, kind: ServiceList, items: 3}").contains("not a list"));
    }

    #[test]
    fn a_typed_list_gives_its_items_their_kind() {
        let text = "{\"apiVersion\":\"v1\",\"kind\":\"ServiceList\",\"items\":[{\"metadata\":{\"name\":\"a\"},\
                    \"spec\":{\"clusterIP\":\"10.0.0.1\"}}]}";
        assert_eq!(decode(text).events.len(), 1);
    }

    #[test]
    fn what_is_no_object_is_an_error_that_says_so() {
        assert!(reasons("a: [1").contains("not valid YAML"));
        assert!(reasons("a: 1").contains("kind"));
        assert!(reasons("just text").contains("not a mapping"));
        assert!(reasons("{}").contains("kind"));
        assert!(reasons("{apiVersion: v1, kind: Service, metadata: {}}").contains("metadata.name"));
    }
}
