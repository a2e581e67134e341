//! Cuts a body, as it comes, into the parts that are decoded for themselves: the lines of a watch
//! and the items of a list. Only the part that has just come is ever held, and a broken one spoils
//! no other.

use bytes::{Bytes, BytesMut};

/// No object of a real API server comes near this (etcd takes 1.5 MiB).
const MAX_PART_BYTES: usize = 32 << 20;

/// A part that cannot be an API object.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// The lines of a watch.
#[derive(Default)]
pub(super) struct Lines {
    buffer: BytesMut,
    searched: usize,
}

impl Lines {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    pub(super) fn next_line(&mut self) -> Result<Option<Bytes>, TooLong> {
        match memchr::memchr(b'\n', &self.buffer[self.searched..]) {
            Some(at) => {
                let line = self.buffer.split_to(self.searched + at + 1).freeze();
                self.searched = 0;
                Ok(Some(line.slice(..line.len() - 1)))
            }
            None if self.buffer.len() > MAX_PART_BYTES => Err(TooLong),
            None => {
                self.searched = self.buffer.len();
                Ok(None)
            }
        }
    }

    /// Whether a line has begun and not ended.
    pub(super) fn is_inside(&self) -> bool {
        !self.buffer.is_empty()
    }
}

/// The items of a list: `next_item` gives each, `envelope` what was around them.
#[derive(Default)]
pub(super) struct Items {
    buffer: BytesMut,
    /// How far the buffer has been read.
    at: usize,
    depth: usize,
    string: Option<StringState>,
    /// The string that was read last at the depth of the list's own fields.
    key: Vec<u8>,
    in_items: bool,
    item_begins: Option<usize>,
    envelope: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum StringState {
    Plain,
    Escaped,
}

/// The depth of the list's own fields, and that of its items.
const FIELDS: usize = 1;
const ITEMS: usize = 2;

impl Items {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole item.
    pub(super) fn next_item(&mut self) -> Result<Option<Bytes>, TooLong> {
        while let Some(byte) = self.buffer.get(self.at).copied() {
            self.at += 1;
            if self.item_begins.is_none() {
                self.outside(byte);
            } else if self.inside(byte) {
                return Ok(self.take_item());
            }
        }
        if self.buffer.len().max(self.envelope.len()) > MAX_PART_BYTES {
            return Err(TooLong);
        }
        if self.item_begins.is_none() {
            self.buffer.clear();
            self.at = 0;
        }
        Ok(None)
    }

    /// The list without its items, once it has ended.
    pub(super) fn envelope(&self) -> Option<&[u8]> {
        (self.depth == 0 && !self.envelope.is_empty()).then_some(&self.envelope)
    }

    fn take_item(&mut self) -> Option<Bytes> {
        let begins = self.item_begins.take()?;
        let mut part = self.buffer.split_to(self.at);
        self.at = 0;
        Some(part.split_off(begins).freeze())
    }

    /// Reads a byte of an item; true when the item ends with it.
    fn inside(&mut self, byte: u8) -> bool {
        self.structure(byte);
        self.string.is_none() && self.depth == ITEMS && byte == b'}'
    }

    /// Reads a byte between items.
    fn outside(&mut self, byte: u8) {
        if self.in_items && self.depth == ITEMS && byte == b'{' {
            self.item_begins = Some(self.at - 1);
            self.depth += 1;
            return;
        }
        if !(self.in_items && self.depth == ITEMS && byte == b',') {
            self.envelope.push(byte);
        }
        let was_string = self.string.is_some();
        self.structure(byte);
        match (was_string, self.string.is_some()) {
            (false, true) if self.depth == FIELDS => self.key.clear(),
            (true, true) if self.depth == FIELDS => self.key.push(byte),
            (false, false) if byte == b'[' && self.depth == ITEMS && self.key == b"items" => {
                self.in_items = true;
            }
            (false, false) if self.depth == FIELDS => self.in_items = false,
            _ => {}
        }
    }

    fn structure(&mut self, byte: u8) {
        self.string = match (self.string, byte) {
            (Some(StringState::Escaped), _) => Some(StringState::Plain),
            (Some(StringState::Plain), b'\\') => Some(StringState::Escaped),
            (Some(StringState::Plain), b'"') => None,
            (Some(StringState::Plain), _) => Some(StringState::Plain),
            (None, b'"') => Some(StringState::Plain),
            (None, b'{' | b'[') => {
                self.depth += 1;
                None
            }
            (None, b'}' | b']') => {
                self.depth = self.depth.saturating_sub(1);
                None
            }
            (None, _) => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        for chunk in chunks {
            lines.push(chunk);
            while let Some(line) = lines.next_line().unwrap() {
                found.push(String::from_utf8(line.to_vec()).unwrap());
            }
        }
        found
    }

    fn items(text: &str, size: usize) -> (Vec<Value>, Option<Value>) {
        let (mut items, mut found) = (Items::default(), Vec::new());
        for chunk in text.as_bytes().chunks(size) {
            items.push(chunk);
            while let Some(item) = items.next_item().unwrap() {
                found.push(serde_json::from_slice(&item).unwrap());
            }
        }
        (found, items.envelope().map(|rest| serde_json::from_slice(rest).unwrap()))
    }

    #[test]
    fn lines_come_whole_however_the_bytes_arrive() {
        assert_eq!(lines(&[b"a\nbc", b"", b"d\n\ne"]), ["a", "bcd", ""]);
        let mut rest = Lines::default();
        rest.push(b"cut");
        assert_eq!(rest.next_line(), Ok(None));
        assert!(rest.is_inside());
    }

    #[test]
    fn a_line_without_end_is_given_up() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; MAX_PART_BYTES + 1]);
        assert_eq!(lines.next_line(), Err(TooLong));
    }

    #[test]
    fn a_cut_list_has_no_envelope() {
        let text = r#"{"kind":"L","items":[{"a":1},{"a""#;
        assert_eq!(items(text, 5), (vec![json!({"a": 1})], None));
        assert_eq!(items(r#"{"items":null,"metadata":{}}"#, 4).0, [json!(null); 0]);
    }

    proptest! {
        #[test]
        fn items_and_the_rest_are_what_a_parser_sees(
            texts in proptest::collection::vec(".{0,12}", 0..6),
            size in 1_usize..40,
            items_first in any::<bool>(),
        ) {
            let list: Vec<Value> = texts.iter()
                .map(|text| json!({"items": [text], "n": {"t}]": text, "items": [{"x": [[]]}]}})).collect();
            let list = serde_json::to_string(&list).unwrap();
            let meta = json!({"items": [1, {}], "t": texts.first()}).to_string();
            let text = match items_first {
                true => format!("{{\"items\": {list} ,\"metadata\":{meta}}}"),
                false => format!("{{\"metadata\":{meta},\"items\":{list}}}\n"),
            };
            let whole: Value = serde_json::from_str(&text).unwrap();
            let (found, rest) = items(&text, size);
            prop_assert_eq!(&Value::Array(found), &whole["items"]);
            prop_assert_eq!(&rest.unwrap()["metadata"], &whole["metadata"]);
        }
    }
}
