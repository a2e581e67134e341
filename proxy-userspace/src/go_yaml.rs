//! YAML as the Go programs of Kubernetes read it: `YAMLToJSON` of sigs.k8s.io/yaml 1.6, which
//! stands on go.yaml.in/yaml/v2. The syntax is granit-parser's; what a plain scalar stands for is
//! YAML 1.1 as Go resolves it.

mod lines;
mod scalar;

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};
use serde_json::{Map, Value};

pub use lines::Lines;

/// Nodes that aliases may add to a document; more is an attack, not a file.
const MOST_ALIASED: usize = 100_000;

/// More levels than any file has; what reads them needs stack for each.
const MOST_NESTED: usize = 100;

/// A document.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Document {
    /// What it holds, as JSON; null if there is nothing.
    pub value: Value,
    /// The paths of fields that are given twice. The last one counts.
    pub twice: Vec<String>,
    /// Where its fields are.
    pub lines: Lines,
}

/// Why a document cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct YamlError {
    /// The line in the text, from 1.
    pub line: usize,
    /// What is wrong there.
    pub reason: String,
}

impl From<ScanError> for YamlError {
    fn from(error: ScanError) -> Self {
        YamlError { line: error.marker().line(), reason: error.info() }
    }
}

/// Reads the first document of a text. As in Go, nobody looks at what stands behind it.
pub fn first_document(text: &str) -> Result<Document, YamlError> {
    let options = granit_parser::options! { emit_comments: false };
    let mut reader = Reader {
        events: Parser::new_from_str_with_options(text, options),
        anchors: HashMap::new(),
        aliased: 0,
        path: Vec::new(),
        twice: Vec::new(),
        lines: Lines::default(),
    };
    let value = reader.document()?;
    Ok(Document { value, twice: reader.twice, lines: reader.lines })
}

struct Reader<'text> {
    events: Parser<'text, StrInput<'text>>,
    /// What was given a name by `&`, by the parser's number for it.
    anchors: HashMap<usize, Value>,
    /// Nodes that aliases stood for so far.
    aliased: usize,
    /// Where the reader is, for messages.
    path: Vec<String>,
    twice: Vec<String>,
    lines: Lines,
}

impl<'text> Reader<'text> {
    fn document(&mut self) -> Result<Value, YamlError> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(Value::Null),
                (Event::DocumentStart(..), _) => break,
                _ => {}
            }
        }
        let (event, span) = self.next()?;
        let value = self.node(event, span)?;
        // What is wrong with the end of the document shows here.
        self.next()?;
        Ok(value)
    }

    fn next(&mut self) -> Result<(Event<'text>, Span), YamlError> {
        match self.events.next() {
            Some(next) => Ok(next?),
            None => Err(YamlError { line: 0, reason: "the text ends in the middle".into() }),
        }
    }

    fn node(&mut self, event: Event<'text>, span: Span) -> Result<Value, YamlError> {
        let fail = |reason: String| YamlError { line: span.start.line(), reason };
        if self.path.len() > MOST_NESTED {
            return Err(fail(nested()));
        }
        let (value, anchor) = match event {
            Event::Alias(id) => return self.alias(id).map_err(fail),
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                (scalar::resolve(&text, plain, tag.as_deref()).map_err(fail)?, anchor)
            }
            Event::SequenceStart(_, anchor, _) => (self.sequence()?, anchor),
            Event::MappingStart(_, anchor, _) => (self.mapping()?, anchor),
            // An empty document.
            _ => return Ok(Value::Null),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }

    fn alias(&mut self, id: usize) -> Result<Value, String> {
        let value = self.anchors.get(&id).ok_or("an alias is inside the value that it refers to")?;
        if self.path.len() + depth(value) > MOST_NESTED {
            return Err(nested());
        }
        self.aliased += size(value);
        if self.aliased > MOST_ALIASED {
            return Err(format!("aliases expand to more than {MOST_ALIASED} values"));
        }
        Ok(value.clone())
    }

    fn sequence(&mut self) -> Result<Value, YamlError> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(Value::Array(items));
            }
            self.path.push(format!("[{}]", items.len()));
            self.lines.note(&self.path, span.start.line());
            items.push(self.node(event, span)?);
            self.path.pop();
        }
    }

    fn mapping(&mut self) -> Result<Value, YamlError> {
        let mut fields = Map::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(Value::Object(fields));
            }
            let is_merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, _, None) if text == "<<");
            let key = self.node(event, span)?;
            let (event, value_span) = self.next()?;
            if is_merge {
                let value = self.node(event, value_span)?;
                let wrong = || "a merge (<<) needs a mapping or a list of mappings".to_owned();
                merge(value, &mut fields)
                    .ok_or_else(|| YamlError { line: value_span.start.line(), reason: wrong() })?;
                continue;
            }
            let key = scalar::key(key).map_err(|reason| YamlError { line: span.start.line(), reason })?;
            self.path.push(key.clone());
            self.lines.note(&self.path, span.start.line());
            let value = self.node(event, value_span)?;
            if fields.insert(key, value).is_some() {
                self.twice.push(lines::joined(&self.path));
            }
            self.path.pop();
        }
    }
}

/// Merges as yaml.v2 does: what stands there so far gives way, and of a list the first counts.
fn merge(value: Value, fields: &mut Map<String, Value>) -> Option<()> {
    match value {
        Value::Object(more) => fields.extend(more),
        Value::Array(items) => {
            for item in items.into_iter().rev() {
                let Value::Object(more) = item else { return None };
                fields.extend(more);
            }
        }
        _ => return None,
    }
    Some(())
}

fn nested() -> String {
    format!("values are nested more than {MOST_NESTED} levels deep")
}

/// How many levels a value has, itself counted.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 1,
    }
}

/// The number of values in a value.
fn size(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(size).sum::<usize>(),
        Value::Object(fields) => 1 + fields.values().map(size).sum::<usize>(),
        // A long text counts for the memory that it takes.
        Value::String(text) => 1 + text.len() / 64,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Value {
        first_document(text).unwrap_or_else(|error| panic!("{text:?}: {error}")).value
    }

    #[test]
    fn the_first_document_counts_whatever_stands_behind_it() {
        for text in [
            "a: 1\n---\n",
            "a: 1\n...\n",
            "---\na: 1\n--- # more\nb: 2\n",
            "# first\n---\na: 1\n---\n: [\n",
            "%YAML 1.1\n---\na: 1\n...\n# end\n",
            "a: 1\n---\n---\n",
            "--- {a: 1}\n",
        ] {
            assert_eq!(read(text), json!({"a": 1}), "{text:?}");
        }
        for text in ["", "# nothing\n", "---\n", "---\n---\na: 1\n", "null\n---\na: 1\n", "~"] {
            assert_eq!(read(text), Value::Null, "{text:?}");
        }
    }

    #[test]
    fn keys_become_text_and_repeated_ones_are_told() {
        assert_eq!(
            read("1: a\ntrue: b\n0x10: c\n'2': d\n"),
            json!({"1": "a", "true": "b", "16": "c", "2": "d"})
        );
        let document = first_document("a: {b: 1, b: 2}\nc:\n- d: 1\n  d: 3\n").unwrap();
        assert_eq!(document.value, json!({"a": {"b": 2}, "c": [{"d": 3}]}));
        assert_eq!(document.twice, ["a.b", "c[0].d"]);
        for text in ["? [1]\n: a\n", "? {b: 1}\n: a\n", "~: a\n"] {
            assert!(first_document(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn aliases_and_merges_are_those_of_yaml_v2() {
        assert_eq!(read("a: &x [1, 2]\nb: *x\n"), json!({"a": [1, 2], "b": [1, 2]}));
        assert_eq!(read("a: &x {p: 1, q: 2}\nb: {<<: *x, p: 3}\n")["b"], json!({"p": 3, "q": 2}));
        // As kubectl has it: a merge that stands last overrides.
        assert_eq!(read("a: &x {p: 1}\nb: {p: 3, <<: *x}\n")["b"], json!({"p": 1}));
        assert_eq!(read("a: {<<: [{p: 1}, {p: 2, q: 2}]}\n")["a"], json!({"p": 1, "q": 2}));
        assert_eq!(read("a: {'<<': 1}\n")["a"], json!({"<<": 1}));
        for text in ["a: {<<: 1}\n", "a: *x\n", "a: &x [*x]\n"] {
            assert!(first_document(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn aliases_cannot_blow_a_text_up() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for n in 1..9 {
            let list = vec![format!("*a{}", n - 1); 10].join(", ");
            text += &format!("a{n}: &a{n} [{list}]\n");
        }
        assert!(first_document(&text).unwrap_err().reason.contains("aliases"));
    }

    #[test]
    fn aliases_cannot_nest_without_an_end() {
        let chain = |links: usize| {
            let link = |n: usize| match n {
                0 => format!("a0: &a0 {}{}\n", "[".repeat(20), "]".repeat(20)),
                n => format!("a{n}: &a{n} {}*a{}{}\n", "[".repeat(20), n - 1, "]".repeat(20)),
            };
            (0..links).map(link).collect::<String>()
        };
        assert!(first_document(&chain(4)).is_ok());
        let wrong = first_document(&chain(20)).unwrap_err();
        assert!(wrong.line == 5 && wrong.reason.contains("nested"), "{wrong}");
        assert!(first_document(&format!("{}{}", "[".repeat(102), "]".repeat(102))).is_err());
    }

    #[test]
    fn errors_name_the_line() {
        assert_eq!(first_document("a: 1\nb: [\n").unwrap_err().line, 2);
        assert_eq!(first_document("a: 1\nb: !!int x\n").unwrap_err().line, 2);
    }
}
