//! Sets and maps, as their tables declare them, and elements.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use super::bytes::{Bytes, Key};
use super::chain::Verdict;
use super::table::TableId;
use crate::diff::Keyed;

/// A field of a key or of a map's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// An address of IPv4.
    Ipv4,
    /// An address of IPv6.
    Ipv6,
    /// A transport protocol.
    Protocol,
    /// A port.
    Port,
    /// Four bytes in host order; the nft program prints them as a mark.
    Number,
    /// A hardware address.
    Ethernet,
    /// The name of an interface.
    Interface,
}

impl Field {
    /// nft's data type (nftables' include/datatype.h), of six bits.
    const fn data_type(self) -> u32 {
        match self {
            Field::Ipv4 => 7,
            Field::Ipv6 => 8,
            Field::Ethernet => 9,
            Field::Protocol => 12,
            Field::Port => 13,
            Field::Number => 19,
            Field::Interface => 41,
        }
    }

    /// Bytes, padded to whole registers.
    const fn width(self) -> u32 {
        match self {
            Field::Ipv4 | Field::Protocol | Field::Port | Field::Number => 4,
            Field::Ethernet => 8,
            Field::Ipv6 | Field::Interface => 16,
        }
    }
}

/// `TYPE_INTEGER` of nftables' include/datatype.h.
const INTEGER: u32 = 4;
/// nft's type of a concatenation has room for so many fields; it prints longer ones as one number.
const MOST_FIELDS: usize = 5;

/// Length in bytes, and nft's data type, so that `nft list` can print it.
const fn concatenation(fields: &[Field]) -> (u32, u32) {
    let (mut len, mut data_type, mut i) = (0, 0, 0);
    while i < fields.len() {
        len += fields[i].width();
        data_type = data_type << 6 | fields[i].data_type();
        i += 1;
    }
    (len, if fields.len() > MOST_FIELDS { INTEGER } else { data_type })
}

/// How a set is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetSpec {
    /// Its name.
    pub name: &'static str,
    /// Key length in bytes, every field padded to four.
    pub key_len: u32,
    /// nft's data type of the key.
    pub key_type: u32,
    /// What elements map to.
    pub value: SetValue,
    /// Greatest number of elements, 0 for no limit.
    pub size: u32,
    /// Elements are added by the packet path and end after a timeout: they are state, which nobody
    /// reads back or repairs.
    pub dynamic: bool,
}

impl SetSpec {
    /// A set.
    pub const fn plain(name: &'static str, key: &[Field]) -> Self {
        SetSpec::new(name, key, SetValue::None)
    }

    /// A map to data.
    pub const fn map(name: &'static str, key: &[Field], data: &[Field]) -> Self {
        let (len, data_type) = concatenation(data);
        assert!(len as usize <= Bytes::<36>::ROOM, "longer data than a value has room for");
        SetSpec::new(name, key, SetValue::Data(len, data_type))
    }

    /// A map to verdicts.
    ///
    /// It should be small: after a change of any element with a verdict, the kernel validates all
    /// elements of all verdict maps of the table before it commits (`nft_table_validate`), which
    /// took 4.7 ms with 50,000 of them.
    pub const fn verdicts(name: &'static str, key: &[Field]) -> Self {
        SetSpec::new(name, key, SetValue::Verdict)
    }

    /// The same, with at most `size` elements that the packet path adds and that end after a
    /// timeout.
    #[must_use]
    pub const fn filled_by_packets(self, size: u32) -> Self {
        SetSpec { size, dynamic: true, ..self }
    }

    // Evaluated by the compiler, as all declarations are: what does not fit does not compile.
    const fn new(name: &'static str, key: &[Field], value: SetValue) -> Self {
        let (key_len, key_type) = concatenation(key);
        assert!(key_len as usize <= Key::ROOM, "a longer key than there is room for");
        SetSpec { name, key_len, key_type, value, size: 0, dynamic: false }
    }

    /// The length of the data in bytes, 0 without data.
    pub fn data_len(&self) -> u32 {
        match self.value {
            SetValue::Data(len, _) => len,
            SetValue::None | SetValue::Verdict => 0,
        }
    }
}

/// What the elements of a set map to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetValue {
    /// Nothing: a plain set.
    None,
    /// Data of a length and of nft's data type.
    Data(u32, u32),
    /// A verdict.
    Verdict,
}

/// A set or map of a table: [`TableId::sets`] makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set {
    table: TableId,
    /// Its place among the sets of the table.
    rank: u16,
    spec: SetSpec,
}

impl Set {
    pub(super) const fn new(table: TableId, rank: u16, spec: SetSpec) -> Self {
        Set { table, rank, spec }
    }

    /// What it is called by from here on.
    pub const fn id(&'static self) -> SetId {
        SetId(self)
    }
}

/// Which set: the one of this name in this table. Sets have the order of their declaration, which
/// is that of writing.
///
/// Hundreds of thousands of elements have one, in maps and sorted lists. It is packed, because
/// seven bytes of padding behind each key would be 15 % more; and it is compared and hashed by its
/// place in the table, which says it all but between tables.
#[derive(Clone, Copy)]
#[repr(Rust, packed(1))]
pub struct SetId(&'static Set);

impl SetId {
    /// The table.
    pub const fn table(self) -> TableId {
        self.0.table
    }

    /// Its name in the kernel.
    pub const fn name(self) -> &'static str {
        self.0.spec.name
    }

    /// Its place among the sets of its table, from 0.
    pub fn rank(self) -> usize {
        usize::from(self.0.rank)
    }

    /// How it is declared.
    pub fn spec(self) -> &'static SetSpec {
        let set = self.0;
        &set.spec
    }
}

impl PartialEq for SetId {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for SetId {}
impl PartialOrd for SetId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for SetId {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (self.0, other.0);
        if std::ptr::eq(a, b) {
            return Ordering::Equal;
        }
        let of_tables = || (a.table, a.spec.name).cmp(&(b.table, b.spec.name));
        a.rank.cmp(&b.rank).then_with(of_tables)
    }
}
impl Hash for SetId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.rank.hash(state);
    }
}
impl fmt::Debug for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which element: set and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ElementId {
    /// The set.
    pub set: SetId,
    /// The key.
    pub key: Key,
}

/// What an element maps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// Nothing.
    None,
    /// Data.
    Data(Bytes<36>),
    /// A verdict.
    Verdict(Verdict),
}

/// One element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Element {
    /// Set and key.
    pub id: ElementId,
    /// Value.
    pub value: Value,
}

impl Element {
    /// An element.
    pub fn new(set: SetId, key: Key, value: Value) -> Self {
        Element { id: ElementId { set, key }, value }
    }

    /// As plain sets have them.
    pub fn plain(id: ElementId) -> Self {
        Element { id, value: Value::None }
    }
}

impl Keyed for Element {
    type Key<'a> = &'a ElementId;
    fn key(&self) -> &ElementId {
        &self.id
    }
    fn same_content(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::Table;
    use super::*;

    const ID: TableId = TableId::inet("one");
    static SETS: [Set; 3] = ID.sets([
        SetSpec::plain("z", &[Field::Ipv4, Field::Port]),
        SetSpec::map("a", &[Field::Ipv6], &[Field::Number; 9]),
        SetSpec::verdicts("v", &[Field::Interface, Field::Ethernet]).filled_by_packets(7),
    ]);
    static OTHERS: [Set; 1] = TableId::bridge("one").sets([SetSpec::plain("z", &[Field::Ipv4])]);

    #[test]
    fn sets_are_those_of_their_table_in_the_order_of_declaration() {
        let table = Table::new(ID, &SETS);
        let names: Vec<&str> = table.sets().map(SetId::name).collect();
        assert_eq!(names, ["z", "a", "v"]);
        assert!(SETS[0].id() < SETS[1].id() && table.set("v") == Some(SETS[2].id()));
        assert_eq!((table.set("b"), table.to_string()), (None, "inet one".into()));
        assert_ne!(SETS[0].id(), OTHERS[0].id(), "one of each table");
        let copy: &'static Set = Box::leak(Box::new(SETS[0]));
        assert_eq!(copy.id(), SETS[0].id(), "wherever it is written down");
    }

    #[test]
    fn lengths_and_types_are_those_that_nft_lists() {
        let [z, a, v] = [&SETS[0], &SETS[1], &SETS[2]].map(|set| *set.id().spec());
        assert_eq!((z.key_len, z.key_type, z.value), (8, 7 << 6 | 13, SetValue::None));
        assert_eq!((a.key_len, a.key_type, a.value), (16, 8, SetValue::Data(36, INTEGER)));
        assert_eq!((v.key_len, v.key_type, v.value), (24, 41 << 6 | 9, SetValue::Verdict));
        assert_eq!((a.size, a.dynamic, v.size, v.dynamic), (0, false, 7, true));
    }

    #[test]
    fn elements_are_small() {
        assert_eq!(size_of::<ElementId>(), size_of::<Key>() + size_of::<usize>());
    }
}
