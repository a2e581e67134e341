//! Operations that wait for their turn: the change of a large Service takes many transactions, and
//! changes of other Services go between these.
//!
//! Whoever goes between must not depend on what waits, and what waits must not lose what it needs:
//!
//! - Chains, and elements that lead to them, are there before anything waits.
//! - What several Services may need is removed when nothing waits that may still lead to it.
//! - Operations go between only if nothing that waits is about the same element or chain.

use std::collections::{BTreeSet, VecDeque};

use rustc_hash::FxHashSet;

use super::SetKind;
use crate::lang::nftables::{ChainName, ElementId, Op};

/// Operations that are decided, and not committed yet.
#[derive(Debug)]
pub struct Backlog {
    /// So many operations go into one transaction.
    limit: usize,
    waiting: VecDeque<Op>,
    /// Elements that nobody needs when these operations are done.
    removed: BTreeSet<ElementId>,
    /// Chains whose rules change then, the oldest first.
    rules: Vec<Op>,
    /// What operations that wait, and such rules, are about.
    touched: FxHashSet<Object>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Object {
    Chain(ChainName),
    Element(ElementId),
}

impl Backlog {
    /// Nothing waits. `limit`: operations of one transaction.
    pub fn new(limit: usize) -> Self {
        let (waiting, removed, rules) = (VecDeque::new(), BTreeSet::new(), Vec::new());
        Backlog { limit, waiting, removed, rules, touched: FxHashSet::default() }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.removed.is_empty() && self.rules.is_empty()
    }

    /// Begins with a change that others need not wait for. Its operations are as
    /// [`Ledger::change`](super::Ledger::change) gives them. Returns what is to be committed now.
    pub fn begin(&mut self, mut ops: Vec<Op>) -> Vec<Op> {
        let own = ops.split_off(ops.iter().take_while(|op| may_be_needed_by_others(op)).count());
        let mut now = self.all();
        now.append(&mut ops);
        let (last, own) = parted(own);
        self.touched.extend(own.iter().filter_map(object));
        self.waiting.extend(own);
        self.put_last(last);
        now.extend(self.go_on());
        now
    }

    /// Takes in the operations of a change that does not wait, as
    /// [`Ledger::change`](super::Ledger::change) gives them, and returns what is to be committed
    /// now: nothing but these, unless they depend on what waits.
    pub fn pass(&mut self, ops: Vec<Op>) -> Vec<Op> {
        if self.is_empty() {
            return ops;
        }
        let (last, mut now) = parted(ops);
        if now.iter().filter_map(object).any(|object| self.touched.contains(&object)) {
            let mut all = self.all();
            all.append(&mut now);
            all.extend(last);
            return all;
        }
        // What is needed again before it is removed is there.
        now.retain(|op| !matches!(op, Op::AddElement(element) if self.removed.remove(&element.id)));
        self.put_last(last);
        now
    }

    /// The operations of the next transaction.
    pub fn go_on(&mut self) -> Vec<Op> {
        if self.waiting.len() < self.limit {
            self.put_behind();
        }
        let mut count = self.limit.min(self.waiting.len());
        // An element is removed and there again in one transaction.
        let last = count.checked_sub(1).and_then(|last| self.waiting.get(last));
        if let (Some(Op::DeleteElement(old)), Some(Op::AddElement(new))) = (last, self.waiting.get(count))
            && *old == new.id
        {
            count += 1;
        }
        if count == self.waiting.len() {
            return self.all();
        }
        self.waiting.drain(..count).collect()
    }

    /// All that waits.
    pub fn all(&mut self) -> Vec<Op> {
        self.put_behind();
        // The memory goes with it.
        self.touched = FxHashSet::default();
        std::mem::take(&mut self.waiting).into()
    }

    /// Keeps what comes when nothing else waits.
    fn put_last(&mut self, ops: Vec<Op>) {
        for op in ops {
            match op {
                Op::DeleteElement(id) => {
                    self.removed.insert(id);
                }
                rules => {
                    self.touched.extend(object(&rules));
                    self.rules.push(rules);
                }
            }
        }
    }

    /// That waits like the others from now on.
    fn put_behind(&mut self) {
        let removed = std::mem::take(&mut self.removed);
        self.touched.extend(removed.iter().copied().map(Object::Element));
        self.waiting.extend(removed.into_iter().rev().map(Op::DeleteElement));
        self.waiting.append(&mut std::mem::take(&mut self.rules).into());
    }
}

/// The sets whose elements Services share ([`Shared`](super::Shared)).
const SHARED: [SetKind; 5] =
    [SetKind::Hairpin, SetKind::Classes, SetKind::Entries, SetKind::ClusterIps, SetKind::HealthPorts];

fn is_shared(id: ElementId) -> bool {
    SHARED.iter().any(|kind| kind.is(id.set))
}

/// Whether an operation is about what more than one Service may need: a chain, or such an element.
fn may_be_needed_by_others(op: &Op) -> bool {
    match op {
        Op::AddElement(element) => is_shared(element.id),
        Op::DeleteElement(_) => false,
        _ => true,
    }
}

/// Parts a change's operations into those that remove what others may need, and the others. Rules
/// that come after elements are without what these needed.
fn parted(ops: Vec<Op>) -> (Vec<Op>, Vec<Op>) {
    let mut after_elements = false;
    ops.into_iter().partition(|op| match op {
        Op::AddElement(_) => {
            after_elements = true;
            false
        }
        Op::DeleteElement(id) => {
            after_elements = true;
            is_shared(*id)
        }
        _ => after_elements,
    })
}

fn object(op: &Op) -> Option<Object> {
    match op {
        Op::AddElement(element) => Some(Object::Element(element.id)),
        Op::DeleteElement(id) => Some(Object::Element(*id)),
        Op::AddChain(name, _) | Op::SetRules(name, _) | Op::DeleteChain(name) => Some(Object::Chain(*name)),
        Op::DeleteTable | Op::AddTable | Op::AddSet(_) | Op::EmptySet(_) => None,
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

    fn rules(chain: &str) -> Op {
        Op::SetRules(ChainName::new(chain), Vec::new())
    }

    #[test]
    fn a_change_passes_a_large_one_of_others() {
        let mut backlog = Backlog::new(3);
        let passing = endpoints(0..7);
        assert_eq!(backlog.pass(passing.clone()), passing);
        assert_eq!(backlog.begin(endpoints(10..18)), endpoints(10..13));
        assert_eq!(backlog.pass(passing.clone()), passing);
        assert_eq!(backlog.go_on(), endpoints(13..16));
        assert!(!backlog.is_empty());
        // Of what waits, nothing is passed.
        assert_eq!(backlog.pass(vec![delete(17)]), [endpoints(16..18), vec![delete(17)]].concat());
        assert!(backlog.is_empty() && backlog.go_on().is_empty());
        assert_eq!(backlog.pass(vec![delete(17)]), [delete(17)]);
        assert_eq!((backlog.begin(endpoints(0..3)), backlog.is_empty()), (endpoints(0..3), true));
        assert_eq!(backlog.begin(endpoints(0..4)), endpoints(0..3));
        // What was begun before comes first.
        assert_eq!(
            backlog.begin(endpoints(5..9)),
            endpoints(3..4).into_iter().chain(endpoints(5..8)).collect::<Vec<_>>()
        );
        assert_eq!((backlog.all(), backlog.is_empty()), (endpoints(8..9), true));
    }

    #[test]
    fn what_others_may_need_is_made_first_and_removed_last() {
        let mut backlog = Backlog::new(2);
        let chain = Op::AddChain(ChainName::new("class"), None);
        let shared = vec![chain, add(SetKind::Classes, 1), add(SetKind::Entries, 1)];
        let begun = backlog.begin([shared.clone(), endpoints(0..5)].concat());
        assert_eq!(begun, [shared, endpoints(0..2)].concat());
        // What waits may lead there still.
        let gone = Op::DeleteElement(id(SetKind::Classes, 2));
        let passing =
            [vec![rules("sources")], endpoints(10..11), vec![gone.clone(), rules("later")]].concat();
        assert_eq!(backlog.pass(passing), [vec![rules("sources")], endpoints(10..11)].concat());
        assert_eq!(backlog.go_on(), endpoints(2..4));
        assert_eq!(backlog.go_on(), [endpoints(4..5), vec![gone.clone()]].concat());
        assert_eq!((backlog.go_on(), backlog.is_empty()), (vec![rules("later")], true));
        // What is needed again stays, unless its removal is on its way.
        backlog.begin(endpoints(0..3));
        assert_eq!(backlog.pass(vec![delete(9), gone.clone()]), [delete(9)]);
        let again = add(SetKind::Classes, 2);
        assert_eq!(backlog.pass(vec![again.clone(), delete(8)]), [delete(8)]);
        assert_eq!((backlog.all(), backlog.is_empty()), (endpoints(2..3), true));
        backlog.begin(endpoints(0..4));
        backlog.pass([vec![gone.clone()], endpoints(10..13)].concat());
        // Whoever changes rules that are to change comes after that.
        backlog.pass(vec![delete(9), rules("later")]);
        let all = [endpoints(2..4), vec![gone, rules("later"), rules("later")]].concat();
        assert_eq!((backlog.pass(vec![rules("later")]), backlog.is_empty()), (all, true));
    }

    #[test]
    fn a_replaced_element_stays_in_one_transaction() {
        let mut backlog = Backlog::new(2);
        let ops = [endpoints(0..1), vec![delete(1)], endpoints(1..4)].concat();
        assert_eq!(backlog.begin(ops.clone()), ops[..3]);
        assert_eq!(backlog.go_on(), ops[3..]);
        assert_eq!(backlog.go_on(), []);
    }
}
