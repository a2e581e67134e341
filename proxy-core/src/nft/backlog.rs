//! Operations that wait for their turn: a change of a large Service takes many transactions, and
//! changes of other Services go between these.
//!
//! Whoever goes first must not depend on what waits. So what several Services may need (chains, and
//! elements that lead to them) never waits, and operations pass those that wait only if none of
//! these is about the same element.

use std::collections::VecDeque;

use rustc_hash::FxHashSet;

use super::SetKind;
use crate::lang::nftables::{ElementId, Op};

/// Operations that are decided, and not committed yet.
#[derive(Debug)]
pub struct Backlog {
    /// So many operations go into one transaction.
    limit: usize,
    waiting: VecDeque<Op>,
    /// The elements that these are about.
    touched: FxHashSet<ElementId>,
}

/// What to do with operations.
#[derive(Debug, PartialEq, Eq)]
pub struct Turn {
    /// To be committed now, in this order.
    pub now: Vec<Op>,
    /// Some of what was asked for waits.
    pub waits: bool,
}

impl Backlog {
    /// Nothing waits. `limit`: operations of one transaction.
    pub fn new(limit: usize) -> Self {
        Backlog { limit, waiting: VecDeque::new(), touched: FxHashSet::default() }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes in a change's operations, as [`Ledger::change`](super::Ledger::change) gives them.
    pub fn add(&mut self, mut ops: Vec<Op>) -> Turn {
        let own = ops.split_off(ops.iter().take_while(|op| may_be_needed_by_others(op)).count());
        let mut now = if self.lets_pass(&ops) { Vec::new() } else { self.all() };
        now.append(&mut ops);
        if own.len() <= self.limit && self.lets_pass(&own) {
            now.extend(own);
            return Turn { now, waits: false };
        }
        self.touched.extend(own.iter().filter_map(element));
        let was_empty = self.waiting.is_empty();
        self.waiting.extend(own);
        if was_empty {
            now.extend(self.next());
        }
        Turn { now, waits: !self.waiting.is_empty() }
    }

    /// The operations of the next transaction.
    pub fn next(&mut self) -> Vec<Op> {
        let mut count = self.limit.min(self.waiting.len());
        // An element is removed and there again in one transaction.
        let last = count.checked_sub(1).and_then(|last| self.waiting.get(last));
        if let (Some(Op::DeleteElement(old)), Some(Op::AddElement(new))) = (last, self.waiting.get(count))
            && *old == new.id
        {
            count += 1;
        }
        let next = self.waiting.drain(..count).collect();
        if self.waiting.is_empty() {
            self.touched = FxHashSet::default();
        }
        next
    }

    /// All that waits.
    pub fn all(&mut self) -> Vec<Op> {
        self.touched = FxHashSet::default();
        std::mem::take(&mut self.waiting).into()
    }

    fn lets_pass(&self, ops: &[Op]) -> bool {
        self.waiting.is_empty() || ops.iter().filter_map(element).all(|id| !self.touched.contains(&id))
    }
}

/// The sets whose elements Services share ([`Shared`](super::Shared)).
const SHARED: [SetKind; 5] =
    [SetKind::Hairpin, SetKind::Classes, SetKind::Entries, SetKind::ClusterIps, SetKind::HealthPorts];

/// Whether an operation is about what more than one Service may need: a chain, or such an element.
fn may_be_needed_by_others(op: &Op) -> bool {
    match op {
        Op::AddElement(element) => SHARED.iter().any(|kind| kind.is(element.id.set)),
        Op::DeleteElement(_) => false,
        _ => true,
    }
}

fn element(op: &Op) -> Option<ElementId> {
    match op {
        Op::AddElement(element) => Some(element.id),
        Op::DeleteElement(id) => Some(*id),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lang::nftables::{ChainName, Element, Key, Value};
    use crate::net::Family;

    fn id(kind: SetKind, n: u8) -> ElementId {
        ElementId { set: kind.set(Family::V4), key: Key::new(&[n]) }
    }

    fn add(kind: SetKind, n: u8) -> Op {
        Op::AddElement(Element { id: id(kind, n), value: Value::None })
    }

    fn delete(n: u8) -> Op {
        Op::DeleteElement(id(SetKind::Endpoints, n))
    }

    fn endpoints(numbers: std::ops::Range<u8>) -> Vec<Op> {
        numbers.map(|n| add(SetKind::Endpoints, n)).collect()
    }

    #[test]
    fn a_small_change_passes_a_large_one_of_others() {
        let mut backlog = Backlog::new(3);
        let small = endpoints(0..3);
        assert_eq!(backlog.add(small.clone()), Turn { now: small, waits: false });
        assert_eq!(backlog.add(endpoints(10..18)), Turn { now: endpoints(10..13), waits: true });
        assert_eq!(backlog.add(endpoints(4..6)), Turn { now: endpoints(4..6), waits: false });
        // Neither a change of what waits passes, nor another large one.
        assert_eq!(backlog.add(vec![delete(17)]), Turn { now: vec![], waits: true });
        assert_eq!(backlog.add(endpoints(20..24)), Turn { now: vec![], waits: true });
        assert_eq!(backlog.next(), endpoints(13..16));
        assert_eq!(backlog.next(), [endpoints(16..18), vec![delete(17)]].concat());
        assert_eq!(backlog.next(), endpoints(20..23));
        assert!(!backlog.is_empty());
        assert_eq!((backlog.all(), backlog.is_empty()), (endpoints(23..24), true));
        assert_eq!(backlog.add(vec![delete(17)]), Turn { now: vec![delete(17)], waits: false });
    }

    #[test]
    fn what_others_may_need_does_not_wait() {
        let mut backlog = Backlog::new(2);
        let chain = Op::AddChain(ChainName::new("class"), None);
        let shared = vec![chain, add(SetKind::Classes, 1), add(SetKind::Entries, 1)];
        let turn = backlog.add([shared.clone(), endpoints(0..3)].concat());
        assert_eq!(turn, Turn { now: [shared, endpoints(0..2)].concat(), waits: true });
        // It waits to be deleted: whoever needs it again has to come after that.
        let gone = Op::DeleteElement(id(SetKind::Classes, 1));
        assert_eq!(backlog.add(vec![gone.clone(), delete(0), delete(1)]), Turn { now: vec![], waits: true });
        let again = vec![add(SetKind::Classes, 1)];
        let before = [endpoints(2..3), vec![gone, delete(0), delete(1)], again.clone()].concat();
        assert_eq!(backlog.add(again), Turn { now: before, waits: false });
        assert!(backlog.is_empty());
    }

    #[test]
    fn a_replaced_element_stays_in_one_transaction() {
        let mut backlog = Backlog::new(2);
        let ops = [endpoints(0..1), vec![delete(1)], endpoints(1..4)].concat();
        assert_eq!(backlog.add(ops.clone()).now, ops[..3]);
        assert_eq!(backlog.next(), ops[3..]);
        assert_eq!(backlog.next(), []);
    }
}
