//! Operations on a table.

use super::chain::{ChainName, Hook, Rule};
use super::set::{Element, ElementId, SetId, SetSpec};

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Deletes our table with all in it, which must be there.
    DeleteTable,
    /// Creates the table, if it is not there.
    AddTable,
    /// Creates a set.
    AddSet(SetSpec),
    /// Creates a chain without its rules, if it is not there. All chains come before rules that
    /// jump.
    AddChain(ChainName, Option<Hook>),
    /// Replaces all rules of a chain.
    SetRules(ChainName, Vec<Rule>),
    /// Deletes a chain with its rules; nothing may refer to it.
    DeleteChain(ChainName),
    /// Removes all elements of a set.
    EmptySet(SetId),
    /// Adds an element; an element with this key and another value must not exist.
    AddElement(Element),
    /// Deletes an element, which must exist.
    DeleteElement(ElementId),
}
