//! Mutation of netlink messages: attributes change their values, types, lengths and places, and the
//! lengths around them fit, mostly.

use fastrand::Rng;

use crate::bytes::Bytes;

/// Of `struct nlmsghdr` and of an attribute.
const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;
/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`, which a type may have beside its number.
const FLAGS: u16 = 0xc000;
const NESTED: u16 = 0x8000;
/// At most so many changes of one message.
const CHANGES: usize = 5;
/// No attribute is longer than its length can say.
const LONGEST: usize = u16::MAX as usize - ATTRIBUTE;
/// Levels of attributes within each other that are looked at.
const DEEPEST: usize = 6;

/// Makes netlink messages from valid ones.
#[derive(Debug, Clone)]
pub struct Attributes {
    corpus: Vec<Message>,
    /// Values of attributes.
    values: Vec<Vec<u8>>,
    noise: Bytes,
}

#[derive(Debug, Clone)]
struct Message {
    header: Vec<u8>,
    /// What stands before the attributes.
    head: Vec<u8>,
    attributes: Vec<Attribute>,
}

#[derive(Debug, Clone)]
struct Attribute {
    kind: u16,
    value: Value,
}

#[derive(Debug, Clone)]
enum Value {
    Bytes(Vec<u8>),
    Nested(Vec<Attribute>),
}

impl Attributes {
    /// From valid messages, each with the number of bytes that it has between its header and its
    /// attributes.
    pub fn new(corpus: &[(usize, Vec<u8>)]) -> Self {
        let messages: Vec<Message> =
            corpus.iter().map(|(head, bytes)| Message::parse(*head, bytes)).collect();
        let mut values = Vec::new();
        messages.iter().for_each(|message| collect(&message.attributes, &mut values));
        let noise = Bytes::new(corpus.iter().map(|(_, bytes)| bytes.clone()).collect(), &[]);
        Attributes { corpus: messages, values, noise }
    }

    /// The next message. Its header is that of a valid one, but for the length.
    pub fn next(&self, rng: &mut Rng) -> Vec<u8> {
        let Some(mut message) = rng.choice(&self.corpus).cloned() else { return Vec::new() };
        for _ in 0..rng.usize(1..=CHANGES) {
            self.change(&mut message.attributes, rng);
        }
        if rng.u8(..16) == 0 {
            message.head.truncate(rng.usize(..=message.head.len()));
        }
        let mut bytes = message.bytes();
        // Lengths that do not fit, too.
        if rng.u8(..6) == 0 {
            let mut body = bytes.split_off(HEADER.min(bytes.len()));
            self.noise.mutate(&mut body, rng);
            bytes.extend(body);
            if rng.u8(..4) > 0 {
                set_length(&mut bytes);
            }
        }
        bytes
    }

    fn change(&self, attributes: &mut Vec<Attribute>, rng: &mut Rng) {
        if attributes.is_empty() {
            return attributes.push(self.new_attribute(rng));
        }
        let at = rng.usize(..attributes.len());
        if rng.u8(..4) > 0
            && let Value::Nested(inner) = &mut attributes[at].value
        {
            return self.change(inner, rng);
        }
        let flags = attributes[at].kind & FLAGS;
        match rng.u8(..8) {
            0 => drop(attributes.remove(at)),
            1 => attributes.insert(at, attributes[at].clone()),
            2 => attributes[at].kind = flags | rng.u16(..30),
            3 => attributes[at].value = Value::Bytes(rng.choice(&self.values).cloned().unwrap_or_default()),
            4 => attributes.insert(at, self.new_attribute(rng)),
            5 => {
                let inner = attributes.clone();
                attributes[at] = Attribute { kind: NESTED | rng.u16(..30), value: Value::Nested(inner) };
            }
            _ => resize(&mut attributes[at].value, rng),
        }
    }

    fn new_attribute(&self, rng: &mut Rng) -> Attribute {
        let value = rng.choice(&self.values).cloned().unwrap_or_default();
        Attribute { kind: rng.u16(..30), value: Value::Bytes(value) }
    }
}

/// Makes a value one of other bytes, or of another length: that of some number or address, or
/// nearly.
fn resize(value: &mut Value, rng: &mut Rng) {
    let mut bytes = value.bytes();
    match rng.choice([0, 1, 2, 3, 4, 5, 8, 16, 20, 300]) {
        Some(len) if rng.bool() => bytes.resize(len, rng.u8(..)),
        _ => {
            if let Some(byte) = rng.choice(&mut bytes) {
                let any = rng.u8(..);
                *byte = rng.choice([0, 1, 0xff, any]).unwrap_or(any);
            }
        }
    }
    *value = Value::Bytes(bytes);
}

fn set_length(message: &mut [u8]) {
    let len = message.len() as u32;
    if let Some(field) = message.get_mut(..4) {
        field.copy_from_slice(&len.to_ne_bytes());
    }
}

impl Message {
    fn parse(head: usize, bytes: &[u8]) -> Self {
        let (header, body) = bytes.split_at(HEADER.min(bytes.len()));
        let (head, rest) = body.split_at(head.min(body.len()));
        let attributes = parse(rest, DEEPEST).unwrap_or_default();
        Message { header: header.to_vec(), head: head.to_vec(), attributes }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [&self.header[..], &self.head].concat();
        bytes.extend(write(&self.attributes));
        set_length(&mut bytes);
        bytes
    }
}

impl Value {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Value::Bytes(bytes) => bytes.clone(),
            Value::Nested(inner) => write(inner),
        }
    }
}

/// The attributes that bytes are, if they are nothing else.
fn parse(mut bytes: &[u8], deepest: usize) -> Option<Vec<Attribute>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let head = bytes.first_chunk::<ATTRIBUTE>()?;
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]);
        let value = bytes.get(ATTRIBUTE..len)?;
        let nested = (deepest > 0 && value.len() >= ATTRIBUTE).then(|| parse(value, deepest - 1)).flatten();
        let value = nested.map_or_else(|| Value::Bytes(value.to_vec()), Value::Nested);
        found.push(Attribute { kind, value });
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(found)
}

fn write(attributes: &[Attribute]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for attribute in attributes {
        let mut value = attribute.value.bytes();
        value.truncate(LONGEST);
        bytes.extend(((ATTRIBUTE + value.len()) as u16).to_ne_bytes());
        bytes.extend(attribute.kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn collect(attributes: &[Attribute], into: &mut Vec<Vec<u8>>) {
    for attribute in attributes {
        into.push(attribute.value.bytes());
        if let Value::Nested(inner) = &attribute.value {
            collect(inner, into);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with one word before its attributes: a text, and a nested number.
    fn message() -> Vec<u8> {
        let inner = Attribute { kind: 7, value: Value::Bytes(vec![0, 0, 0, 9]) };
        let attributes = vec![
            Attribute { kind: 1, value: Value::Bytes(b"sluice\0".to_vec()) },
            Attribute { kind: NESTED | 2, value: Value::Nested(vec![inner]) },
        ];
        Message { header: vec![3; HEADER], head: vec![2, 0, 0, 0], attributes }.bytes()
    }

    #[test]
    fn what_is_parsed_is_written_as_it_was() {
        let bytes = message();
        let parsed = Message::parse(4, &bytes);
        assert!(matches!(&parsed.attributes[1].value, Value::Nested(inner) if inner.len() == 1));
        assert_eq!(parsed.bytes(), bytes);
    }

    #[test]
    fn most_messages_are_well_formed_and_others_are_not() {
        let attributes = Attributes::new(&[(4, message())]);
        let mut rng = Rng::with_seed(1);
        let made: Vec<Vec<u8>> = (0..2_000).map(|_| attributes.next(&mut rng)).collect();
        let well_formed = |bytes: &&Vec<u8>| bytes.len() >= 20 && parse(&bytes[20..], 0).is_some();
        let good = made.iter().filter(well_formed).count();
        assert!((1_000..1_990).contains(&good), "{good}");
        assert!(made.iter().filter(|bytes| **bytes != message()).count() > 1_800);
    }
}
