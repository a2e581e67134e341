//! The documents of a manifest's text. They are told apart before they are read, so that a broken
//! one spoils no other.

use serde_json::value::RawValue;

/// One document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// The line on which it begins, from 1.
    pub(super) line: usize,
    /// Its text.
    pub(super) text: &'a str,
}

/// The documents of a text: of YAML those between markers (`---`, `...`), which may begin on the
/// line of their marker; of JSON one object after the other, with or without white space or markers
/// between them.
pub(super) fn documents(text: &str) -> Vec<Piece<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Vec::new();
    let (mut start, mut first_line, mut offset) = (0, 1, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        // Directives (%YAML) belong to the document behind the marker that follows them.
        if let Some(rest) = marker(line).filter(|_| !is_directives(&text[start..offset])) {
            objects(first_line, &text[start..offset], &mut found);
            start = offset + rest;
            first_line = if rest == line.len() { number + 2 } else { number + 1 };
        }
        offset += line.len();
    }
    objects(first_line, &text[start..], &mut found);
    found
}

/// Whether a line ends a document, and where on it the next one begins. As for kubectl, a comment
/// needs no space before it.
fn marker(line: &str) -> Option<usize> {
    let rest = line.strip_prefix("---").or_else(|| line.strip_prefix("..."))?;
    let bare = rest.trim();
    if bare.is_empty() || bare.starts_with('#') {
        return Some(line.len());
    }
    let begins = line.starts_with("---") && rest.starts_with([' ', '\t']);
    begins.then(|| line.len() - rest.trim_start().len())
}

fn is_nothing(line: &str) -> bool {
    let bare = line.trim();
    bare.is_empty() || bare.starts_with('#')
}

fn is_directives(text: &str) -> bool {
    let mut lines = text.lines().filter(|line| !is_nothing(line)).peekable();
    lines.peek().is_some() && lines.all(|line| line.starts_with('%'))
}

/// The objects of a document that is a stream of JSON; any other is one as it stands. Nothing is no
/// document.
fn objects<'a>(mut line: usize, text: &'a str, found: &mut Vec<Piece<'a>>) {
    let mut rest = text;
    loop {
        let bare = rest.trim_start();
        if !bare.starts_with('{') {
            break;
        }
        let mut stream = serde_json::Deserializer::from_str(bare).into_iter::<&RawValue>();
        let Some(Ok(_)) = stream.next() else { break };
        let (object, behind) = bare.split_at(stream.byte_offset());
        line += newlines(&rest[..rest.len() - bare.len()]);
        found.push(Piece { line, text: object });
        line += newlines(object);
        rest = behind;
    }
    if !rest.lines().all(is_nothing) {
        found.push(Piece { line, text: rest });
    }
}

fn newlines(text: &str) -> usize {
    memchr::memchr_iter(b'\n', text.as_bytes()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str) -> Vec<(usize, &str)> {
        documents(text).into_iter().map(|piece| (piece.line, piece.text)).collect()
    }

    #[test]
    fn documents_are_split_at_their_markers_with_line_numbers() {
        let text = "# head\n---\na: 1\n--- # second\nb: 2\n---\n\n---\nc: 3\n";
        assert_eq!(pieces(text), [(3, "a: 1\n"), (5, "b: 2\n"), (9, "c: 3\n")]);
        assert_eq!(pieces("a: 1\r\n---\t# x\r\nb: 2\r\n"), [(1, "a: 1\r\n"), (3, "b: 2\r\n")]);
        assert_eq!(pieces("a: 1\n---# x\nb: 2"), [(1, "a: 1\n"), (3, "b: 2")]);
        assert_eq!(pieces("a: 1\n...\nb: 2\n... # x\n"), [(1, "a: 1\n"), (3, "b: 2\n")]);
        assert_eq!(pieces("\u{feff}a: 1"), [(1, "a: 1")]);
        assert_eq!(pieces("\n# only\n---\n"), []);
        // No markers.
        for text in ["a: |\n  ---\n  x\n", "---a: 1\n", "a: 1\n....\n", "a: 1\n ---\n"] {
            assert_eq!(pieces(text), [(1, text)]);
        }
    }

    #[test]
    fn a_document_may_begin_on_the_line_of_its_marker() {
        assert_eq!(
            pieces("a: 1\n--- {b: 2}\n---\t{c: 3}\n"),
            [(1, "a: 1\n"), (2, "{b: 2}\n"), (3, "{c: 3}\n")]
        );
    }

    #[test]
    fn directives_stay_with_their_document() {
        let text = "%YAML 1.2\n---\na: 1\n...\n%YAML 1.2\n# x\n---\nb: 2\n";
        assert_eq!(pieces(text), [(1, "%YAML 1.2\n---\na: 1\n"), (5, "%YAML 1.2\n# x\n---\nb: 2\n")]);
    }

    #[test]
    fn objects_of_json_may_follow_each_other() {
        assert_eq!(pieces("{\"a\":1}{\"b\":2}"), [(1, "{\"a\":1}"), (1, "{\"b\":2}")]);
        assert_eq!(
            pieces("\n{\"a\":\n1}\n\n {\"b\":2}\n---\n{\"c\":3}\n"),
            [(2, "{\"a\":\n1}"), (5, "{\"b\":2}"), (7, "{\"c\":3}")]
        );
        assert_eq!(pieces("{\"a\":1} # comment\n"), [(1, "{\"a\":1}")]);
        // What stands behind an object is not lost, and a mapping of YAML is no JSON.
        assert_eq!(pieces("{\"a\":1}\n{\"b\":"), [(1, "{\"a\":1}"), (1, "\n{\"b\":")]);
        assert_eq!(pieces("{a: 1}\n"), [(1, "{a: 1}\n")]);
    }
}
