//! JSON as Go's `encoding/json` reads it into structs: that is how other plugins read what runtimes
//! write.
//!
//! Runtimes marshal structs without tags (`HostPort`) and empty lists as null, and no Go plugin
//! minds: names of fields are compared without regard to case, null is as if nothing were there,
//! and of a field that comes twice the last one counts. [`shaped`] makes of such a text what the
//! specification's own spelling says, so that readers know one spelling only.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value, json};

/// A text as it was written: the order of keys counts, and those that come twice are all there.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Json>),
    /// An object.
    Object(Vec<(String, Json)>),
}

/// How a value is read.
#[derive(Debug)]
pub enum Shape {
    /// A text or a number; the empty text is Go's zero value, as if nothing were there.
    Scalar,
    /// A size, of which zero is as if nothing were there.
    Size,
    /// A map of texts, whose keys are data: their case counts.
    Map,
    /// A list. What is null in it is left out.
    List(&'static Shape),
    /// A list that others point into by place: what is null in it becomes an empty object.
    Places(&'static Shape),
    /// A list that is empty, and not missing, when it is null.
    EmptyIfNull(&'static Shape),
    /// An object with these fields; others are left out.
    Struct(Fields),
    /// An object with these fields; others are kept as they are.
    Open(Fields),
}

/// Names of fields, and how each is read.
pub type Fields = &'static [(&'static str, Shape)];

/// Reads a text. What is no UTF-8 in it is replaced, as Go does.
pub fn parse(text: &[u8]) -> Result<Json, serde_json::Error> {
    serde_json::from_str(&String::from_utf8_lossy(text))
}

/// A value with the names of its shape, and without what is null. What does not fit is kept as it
/// is, so that who reads it can say what is wrong.
pub fn shaped(json: &Json, shape: &Shape) -> Value {
    read(json, shape, None).unwrap_or_default()
}

/// `before`: what the same field held, where it comes twice.
fn read(json: &Json, shape: &Shape, before: Option<Value>) -> Option<Value> {
    match (shape, json) {
        (Shape::EmptyIfNull(_), Json::Null) => Some(json!([])),
        (Shape::List(_) | Shape::Places(_) | Shape::Map, Json::Null) => None,
        (_, Json::Null) => before,
        (Shape::Scalar, Json::Text(text)) if text.is_empty() => None,
        (Shape::Size, Json::Number(number)) if number.as_u64() == Some(0) => None,
        (Shape::Map, Json::Object(pairs)) => Some(Value::Object(texts(pairs, before))),
        (Shape::List(inner) | Shape::EmptyIfNull(inner), Json::List(items)) => {
            Some(items.iter().filter_map(|item| read(item, inner, None)).collect())
        }
        (Shape::Places(inner), Json::List(items)) => {
            Some(items.iter().map(|item| read(item, inner, None).unwrap_or(json!({}))).collect())
        }
        (Shape::Struct(fields), Json::Object(pairs)) => Some(object(pairs, fields, false, before)),
        (Shape::Open(fields), Json::Object(pairs)) => Some(object(pairs, fields, true, before)),
        _ => Some(json.plain()),
    }
}

fn taken(before: Option<Value>) -> Map<String, Value> {
    match before {
        Some(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

fn texts(pairs: &[(String, Json)], before: Option<Value>) -> Map<String, Value> {
    let mut map = taken(before);
    let given = pairs.iter().filter(|(_, value)| *value != Json::Null);
    map.extend(given.map(|(key, value)| (key.clone(), value.plain())));
    map
}

fn object(pairs: &[(String, Json)], fields: Fields, keeps: bool, before: Option<Value>) -> Value {
    let mut object = taken(before);
    for (key, value) in pairs {
        let Some((name, shape)) = field(fields, key) else {
            if keeps {
                object.insert(key.clone(), value.plain());
            }
            continue;
        };
        let before = object.remove(*name);
        if let Some(now) = read(value, shape, before) {
            object.insert((*name).to_owned(), now);
        }
    }
    Value::Object(object)
}

/// The field that a key means: the one that is called so, or else the one that differs in case
/// only.
fn field<'a>(fields: &'a [(&'static str, Shape)], key: &str) -> Option<&'a (&'static str, Shape)> {
    let exact = fields.iter().find(|(name, _)| *name == key);
    exact.or_else(|| fields.iter().find(|(name, _)| name.chars().map(folded).eq(key.chars().map(folded))))
}

/// As `foldRune` of encoding/json. Names of fields are ASCII; two letters beyond it are folded to
/// some of theirs: the long s, and the sign for kelvin.
fn folded(letter: char) -> char {
    match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    }
}

impl Json {
    /// Whether it is an object.
    pub fn is_object(&self) -> bool {
        matches!(self, Json::Object(_))
    }

    /// As it is; of keys that come twice the last one.
    pub fn plain(&self) -> Value {
        match self {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => Value::Number(number.clone()),
            Json::Text(text) => Value::String(text.clone()),
            Json::List(items) => items.iter().map(Json::plain).collect(),
            Json::Object(pairs) => pairs.iter().map(|(key, value)| (key.clone(), value.plain())).collect(),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyJson)
    }
}

struct AnyJson;

impl<'de> Visitor<'de> for AnyJson {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Number::from_f64(value).map_or(Json::Null, Json::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = entries.next_entry()? {
            pairs.push(pair);
        }
        Ok(Json::Object(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: Shape = Shape::Struct(&[("hostPort", Shape::Scalar), ("hostIP", Shape::Scalar)]);
    const ALL: Shape = Shape::Struct(&[
        ("ports", Shape::List(&PORT)),
        ("links", Shape::Places(&Shape::Open(&[("name", Shape::Scalar)]))),
        ("valid", Shape::EmptyIfNull(&PORT)),
        ("names", Shape::List(&Shape::Scalar)),
        ("sysctl", Shape::Map),
        ("mtu", Shape::Size),
        ("port", PORT),
    ]);

    fn read(text: &str) -> Value {
        shaped(&parse(text.as_bytes()).unwrap(), &ALL)
    }

    #[test]
    fn names_of_fields_have_no_case() {
        let told = json!({"ports": [{"hostPort": 80, "hostIP": "::1"}]});
        assert_eq!(read(r#"{"PORTS": [{"HostPort": 80, "HostIP": "::1"}]}"#), told);
        assert_eq!(read(r#"{"ports": [{"hostport": 80, "HOSTIP": "::1"}]}"#), told);
        // Go folds two letters beyond ASCII too.
        assert_eq!(read(r#"{"portſ": [{"hoſtPort": 80, "hostIP": "::1"}], "other": 1}"#), told);
        assert_eq!(read("{\"LIN\u{212a}S\": []}"), json!({"links": []}));
    }

    #[test]
    fn null_and_the_zero_value_are_as_if_nothing_were_there() {
        let nothing = json!({});
        let null =
            r#"{"ports": null, "links": null, "names": null, "sysctl": null, "mtu": null, "port": null}"#;
        assert_eq!(read(null), nothing);
        assert_eq!(read(r#"{"mtu": 0}"#), nothing);
        assert_eq!(read(r#"{"port": {"hostPort": null, "hostIP": ""}}"#), json!({"port": {}}));
        assert_eq!(
            read(r#"{"ports": [null], "names": ["a", null, ""]}"#),
            json!({"ports": [], "names": ["a"]})
        );
        assert_eq!(read(r#"{"valid": null}"#), json!({"valid": []}));
        assert_eq!(read("null"), Value::Null);
    }

    #[test]
    fn places_that_others_point_to_stay() {
        let read = read(r#"{"links": [null, {"Name": "a", "X": null}]}"#);
        assert_eq!(read, json!({"links": [{}, {"name": "a", "X": null}]}));
    }

    #[test]
    fn keys_that_are_data_keep_their_case() {
        let read = read(r#"{"SysCtl": {"net.ipv4.conf.Eth0.x": "1", "net.a.b": null}}"#);
        assert_eq!(read, json!({"sysctl": {"net.ipv4.conf.Eth0.x": "1"}}));
    }

    #[test]
    fn of_what_comes_twice_the_last_one_counts_and_objects_are_joined() {
        assert_eq!(read(r#"{"port": {"HostPort": 1, "hostPort": 2}}"#)["port"]["hostPort"], 2);
        assert_eq!(read(r#"{"port": {"hostPort": 2, "HostPort": 1}}"#)["port"]["hostPort"], 1);
        assert_eq!(read(r#"{"port": {"hostPort": 2, "HostPort": null}}"#)["port"]["hostPort"], 2);
        let joined = read(r#"{"port": {"hostPort": 1}, "Port": {"hostIP": "::1"}}"#);
        assert_eq!(joined, json!({"port": {"hostPort": 1, "hostIP": "::1"}}));
        assert_eq!(read(r#"{"names": ["a"], "Names": null}"#), json!({}));
    }

    #[test]
    fn values_of_unexpected_types_are_kept_for_the_reader() {
        let read = read(r#"{"ports": {"a": 1, "a": 2}, "port": 7, "sysctl": [], "mtu": "x"}"#);
        assert_eq!(read, json!({"ports": {"a": 2}, "port": 7, "sysctl": [], "mtu": "x"}));
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(shaped(&parse(b"{\"names\": [\"\xff\"]}").unwrap(), &ALL), json!({"names": ["\u{fffd}"]}));
    }
}
