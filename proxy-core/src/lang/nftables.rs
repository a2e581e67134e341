//! nf_tables objects as values: tables with their sets, chains, rules, elements, and operations on
//! them.
//!
//! A feature declares its table, with all sets that the table may have, once and in one place:
//!
//! ```
//! use sluice_core::lang::nftables::{Field, Key, Set, SetId, SetSpec, Table, TableId};
//!
//! const ID: TableId = TableId::inet("example");
//! static SETS: [Set; 2] = ID.sets([
//!     SetSpec::map("marks", &[Field::Ipv4], &[Field::Number]),
//!     SetSpec::plain("guests", &[Field::Ipv6]),
//! ]);
//! const MARKS: SetId = SETS[0].id();
//! /// The table, for whoever writes it and reads it back.
//! pub static TABLE: Table = Table::new(ID, &SETS);
//!
//! assert_eq!(TABLE.set("marks"), Some(MARKS));
//! assert!(MARKS < SETS[1].id(), "elements of the first one are written first");
//! ```
//!
//! `sluice-sys` takes the declaration to write operations, to read the table back and to listen to
//! what others do to it. [`Wanted`] is a table as it should be, [`Observed`] as the kernel has it,
//! and operations lead from one to the other.

mod bytes;
mod chain;
mod compare;
mod expr;
mod fingerprint;
mod op;
mod phrases;
mod set;
mod strangers;
mod table;

pub use bytes::{Bytes, Key};
pub use chain::{Chain, ChainName, Hook, Rule, Verdict};
pub(crate) use chain::{DNAT, FORWARD, INPUT, OUTPUT, POSTROUTING, PREROUTING, RAW, SNAT};
pub use compare::{Observed, ObservedChain, Wanted};
pub(crate) use compare::{element_ops, plain_difference, sorted};
pub use expr::{CmpOp, DynsetOp, Expr, MetaKey, NatFamily, NumgenKind, Reg};
pub use op::Op;
pub(crate) use phrases::{
    CT_DNAT, CT_NEW, address_regs, any_bit, compare_loopback, in_network, load_destination, load_port,
    load_source, local_type, not_loopback, of_family, prefix_mask,
};
pub use set::{Element, ElementId, Field, Set, SetId, SetSpec, SetValue, Value};
pub use strangers::{Deed, Strangers, Subject};
pub use table::{Table, TableFamily, TableId};
