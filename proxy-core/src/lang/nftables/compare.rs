//! From a table as the kernel has it to a table as it should be.

use std::collections::BTreeSet;

use rustc_hash::{FxHashMap, FxHashSet};

use super::chain::{Chain, ChainName, Hook};
use super::op::Op;
use super::set::{Element, ElementId, SetId, Value};
use crate::diff::{Delta, diff};

/// A chain as the kernel holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedChain {
    /// Name.
    pub name: ChainName,
    /// Hook number and priority, for base chains.
    pub hook: Option<(u32, i32)>,
    /// The comments of its rules, in order.
    pub rules: Vec<String>,
}

/// A table of ours as the kernel holds it.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Sets by name, with key length and data length in bytes.
    pub sets: Vec<(String, u32, u32)>,
    /// Chains.
    pub chains: Vec<ObservedChain>,
    /// Elements, without those that the packet path adds.
    pub elements: FxHashMap<ElementId, Value>,
    /// Something is as we never write it: an element, a chain's name or policy, a switched-off
    /// table.
    pub altered: bool,
}

/// A table of ours as it should be.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The sets that it has, of those that it may have.
    pub sets: Vec<SetId>,
    /// All chains.
    pub chains: Vec<Chain>,
    /// All elements, without those that the packet path adds.
    pub elements: Vec<Element>,
}

impl Wanted {
    /// Operations for a table that does not exist. Elements are written in their order here.
    pub fn create(self) -> Vec<Op> {
        let mut ops = vec![Op::AddTable];
        ops.extend(self.sets.iter().map(|set| Op::AddSet(*set.spec())));
        ops.extend(self.chains.iter().map(|chain| Op::AddChain(chain.name, chain.hook)));
        ops.extend(self.chains.into_iter().map(|chain| Op::SetRules(chain.name, chain.rules)));
        ops.extend(self.elements.into_iter().map(Op::AddElement));
        ops
    }

    /// Operations that put it in the place of a table of another layout, by one transaction, so
    /// that no packet sees less than one of them.
    pub fn replace(self) -> Vec<Op> {
        let mut ops = vec![Op::DeleteTable];
        ops.extend(Wanted { elements: sorted(self.elements), ..self }.create());
        ops
    }

    /// Operations after which the table is right, whatever its sets and rules held. Its sets and
    /// the hooks of its chains must be as here, if it exists.
    pub fn overwrite(self) -> Vec<Op> {
        let mut ops = vec![Op::AddTable];
        ops.extend(self.sets.iter().map(|set| Op::AddSet(*set.spec())));
        ops.extend(self.sets.into_iter().map(Op::EmptySet));
        ops.extend(self.elements.into_iter().map(Op::AddElement));
        ops.extend(self.chains.iter().map(|chain| Op::AddChain(chain.name, chain.hook)));
        ops.extend(self.chains.into_iter().map(|chain| Op::SetRules(chain.name, chain.rules)));
        ops
    }

    /// Whether the table as observed can become this one by [`Wanted::difference`]; else it has to
    /// be replaced.
    pub fn fits(&self, observed: &Observed) -> bool {
        !observed.altered && self.sets_fit(observed) && hooks_fit(observed, &self.chains)
    }

    fn sets_fit(&self, observed: &Observed) -> bool {
        observed.sets.iter().all(|(name, key_len, data_len)| {
            let fits = |set: &SetId| {
                let spec = set.spec();
                spec.name == name && (spec.key_len, spec.data_len()) == (*key_len, *data_len)
            };
            self.sets.iter().any(fits)
        })
    }

    /// Operations that turn the table as observed into this one: nothing, when it is right. Chains
    /// that are too many stay.
    pub fn difference(self, observed: Observed) -> Vec<Op> {
        let mut ops = vec![Op::AddTable];
        let names: FxHashSet<&str> = observed.sets.iter().map(|(name, ..)| name.as_str()).collect();
        let missing = self.sets.iter().filter(|set| !names.contains(set.name()));
        ops.extend(missing.map(|set| Op::AddSet(*set.spec())));
        ops.extend(chain_ops(&self.chains, &observed.chains));
        let held = observed.elements.into_iter().map(|(id, value)| Element { id, value }).collect();
        ops.extend(element_ops(diff(sorted(held), sorted(self.elements))));
        if ops == [Op::AddTable] {
            ops.clear();
        }
        ops
    }
}

/// Elements in the order of writing, each once.
pub(crate) fn sorted(mut elements: Vec<Element>) -> Vec<Element> {
    elements.sort_unstable_by_key(|e| e.id);
    elements.dedup_by_key(|e| e.id);
    elements
}

/// Element operations in an order that is safe even if a transaction ends between them: what is
/// looked up late in the packet path is written first and removed last.
pub(crate) fn element_ops(delta: Delta<Element>) -> Vec<Op> {
    let mut writes: Vec<(ElementId, Option<Element>, bool)> = Vec::new();
    writes.extend(delta.create.into_iter().map(|e| (e.id, Some(e), false)));
    writes.extend(delta.update.into_iter().map(|(_, new)| (new.id, Some(new), true)));
    writes.sort_unstable_by_key(|(id, ..)| *id);
    let mut deletes: Vec<ElementId> = delta.delete.into_iter().map(|e| e.id).collect();
    deletes.sort_unstable_by(|a, b| b.cmp(a));
    let mut ops = Vec::with_capacity(writes.len() * 2 + deletes.len());
    // The kernel changes no value: what is replaced is deleted, and added right behind.
    for (id, element, exists) in writes {
        if exists {
            ops.push(Op::DeleteElement(id));
        }
        ops.extend(element.map(Op::AddElement));
    }
    ops.extend(deletes.into_iter().map(Op::DeleteElement));
    ops
}

/// Operations that lead from some elements of plain sets to others.
pub(crate) fn plain_difference(from: &BTreeSet<ElementId>, to: &BTreeSet<ElementId>) -> Vec<Op> {
    let gone = from.difference(to).copied().map(Op::DeleteElement);
    let new = to.difference(from).copied().map(Element::plain).map(Op::AddElement);
    gone.chain(new).collect()
}

fn hooks_fit(observed: &Observed, wanted: &[Chain]) -> bool {
    let place = |hook: &Hook| (hook.number, hook.priority);
    observed.chains.iter().all(|chain| {
        let wanted = wanted.iter().find(|w| w.name == chain.name);
        wanted.map_or(chain.hook.is_none(), |w| w.hook.as_ref().map(place) == chain.hook)
    })
}

fn chain_ops(wanted: &[Chain], observed: &[ObservedChain]) -> Vec<Op> {
    let held: FxHashMap<ChainName, &ObservedChain> = observed.iter().map(|c| (c.name, c)).collect();
    let mut ops = Vec::new();
    let missing = wanted.iter().filter(|chain| !held.contains_key(&chain.name));
    ops.extend(missing.map(|chain| Op::AddChain(chain.name, chain.hook)));
    for chain in wanted {
        let right = held.get(&chain.name).is_some_and(|held| {
            held.rules.len() == chain.rules.len()
                && chain.rules.iter().zip(&held.rules).all(|(rule, comment)| rule.comment() == *comment)
        });
        if !right {
            ops.push(Op::SetRules(chain.name, chain.rules.clone()));
        }
    }
    ops
}

#[cfg(test)]
mod tests {
    use super::super::bytes::Key;
    use super::super::chain::Rule;
    use super::super::expr::Expr;
    use super::super::set::{Field, Set, SetSpec};
    use super::super::table::TableId;
    use super::*;

    static SETS: [Set; 2] = TableId::inet("one")
        .sets([SetSpec::plain("late", &[Field::Number]), SetSpec::plain("early", &[Field::Number])]);

    fn element(set: usize, number: u32) -> Element {
        Element::plain(ElementId { set: SETS[set].id(), key: Key::new(&number.to_ne_bytes()) })
    }

    fn wanted(elements: &[Element]) -> Wanted {
        let rules = vec![Rule::new("count", vec![Expr::Counter])];
        let chain = Chain { name: ChainName::new("all"), hook: None, rules };
        let sets = SETS.iter().map(Set::id).collect();
        Wanted { sets, chains: vec![chain], elements: elements.to_vec() }
    }

    /// As the kernel has it when all is written.
    fn observed(wanted: &Wanted) -> Observed {
        let set = |set: &SetId| (set.name().to_owned(), set.spec().key_len, set.spec().data_len());
        let chain = |chain: &Chain| ObservedChain {
            name: chain.name,
            hook: None,
            rules: chain.rules.iter().map(Rule::comment).collect(),
        };
        Observed {
            sets: wanted.sets.iter().map(set).collect(),
            chains: wanted.chains.iter().map(chain).collect(),
            elements: wanted.elements.iter().map(|element| (element.id, element.value)).collect(),
            altered: false,
        }
    }

    #[test]
    fn a_table_that_is_right_is_left_alone_and_another_gets_what_it_lacks() {
        let right = wanted(&[element(1, 7), element(0, 9), element(1, 3)]);
        assert_eq!(right.clone().difference(observed(&right)), []);
        let mut other = observed(&wanted(&[element(0, 1), element(1, 2), element(1, 3)]));
        other.chains[0].rules.clear();
        assert!(right.fits(&other));
        let expected = [
            Op::AddTable,
            Op::SetRules(right.chains[0].name, right.chains[0].rules.clone()),
            Op::AddElement(element(0, 9)),
            Op::AddElement(element(1, 7)),
            Op::DeleteElement(element(1, 2).id),
            Op::DeleteElement(element(0, 1).id),
        ];
        assert_eq!(right.difference(other), expected, "what is looked up late comes first, and goes last");
    }

    #[test]
    fn what_is_of_another_layout_does_not_fit() {
        let right = wanted(&[]);
        let breaks: [fn(&mut Observed); 4] = [
            |observed| observed.altered = true,
            |observed| observed.sets[0].1 = 8,
            |observed| observed.sets[1].0 = "other".into(),
            |observed| observed.chains[0].hook = Some((0, 0)),
        ];
        for (i, breaks) in breaks.iter().enumerate() {
            let mut observed = observed(&right);
            assert!(right.fits(&observed));
            breaks(&mut observed);
            assert!(!right.fits(&observed), "{i}");
        }
    }
}
