//! A model of nf_tables that refuses what the kernel refuses.

use std::collections::{BTreeMap, BTreeSet};

use sluice_core::lang::nftables::{
    ChainName, ElementId, Expr, Hook, Observed, ObservedChain, Op, Rule, SetId, SetSpec, SetValue, Value,
    Verdict,
};
use sluice_core::nft::{SetKind, TABLE};

/// The slots of the groups of one table: per set and group id, the members by slot.
type Groups = BTreeMap<(SetId, Vec<u8>), BTreeMap<u32, Vec<u8>>>;

/// One table.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Kernel {
    pub(crate) table: bool,
    pub(crate) sets: BTreeMap<SetId, SetSpec>,
    pub(crate) chains: BTreeMap<ChainName, (Option<Hook>, Vec<Rule>)>,
    pub(crate) elements: BTreeMap<ElementId, Value>,
    /// A fault: these are refused, whoever writes them.
    pub(crate) refuses: BTreeSet<ElementId>,
}

impl Kernel {
    /// Does a transaction, all of it or nothing.
    pub(crate) fn commit(&mut self, ops: &[Op]) -> Result<(), String> {
        let mut next = self.clone();
        // What refers to a chain when the transaction begins still does when a chain is deleted in
        // it.
        let held = self.references();
        for op in ops {
            next.apply(op, &held).map_err(|why| format!("{why}: {op:?}"))?;
        }
        *self = next;
        Ok(())
    }

    fn apply(&mut self, op: &Op, held: &BTreeSet<ChainName>) -> Result<(), String> {
        match op {
            Op::DeleteTable => {
                *self = Kernel { refuses: std::mem::take(&mut self.refuses), ..Kernel::default() };
            }
            Op::AddTable => self.table = true,
            _ if !self.table => return Err("there is no table".into()),
            Op::AddSet(spec) => {
                let set = TABLE.set(spec.name).ok_or("no set that is declared")?;
                if self.sets.insert(set, *spec).is_some() {
                    return Err("the set exists".into());
                }
            }
            Op::AddChain(name, hook) => {
                let (known, _) = self.chains.entry(*name).or_insert_with(|| (*hook, Vec::new()));
                if known != hook {
                    return Err("the chain exists with another hook".into());
                }
            }
            Op::SetRules(name, rules) => {
                rules.iter().try_for_each(|rule| self.check_rule(rule))?;
                self.chains.get_mut(name).ok_or("there is no such chain")?.1 = rules.clone();
            }
            Op::DeleteChain(name) => {
                if held.contains(name) || self.references().contains(name) {
                    return Err("the chain is in use".into());
                }
                self.chains.remove(name).ok_or("there is no such chain")?;
            }
            Op::EmptySet(id) => self.elements.retain(|element, _| element.set != *id),
            Op::AddElement(element) => {
                self.check_element(&element.id, &element.value)?;
                if self.elements.insert(element.id, element.value).is_some() {
                    return Err("the element exists".into());
                }
            }
            Op::DeleteElement(id) => {
                self.elements.remove(id).ok_or("there is no such element")?;
            }
        }
        Ok(())
    }

    fn check_element(&self, id: &ElementId, value: &Value) -> Result<(), String> {
        if self.refuses.contains(id) {
            return Err("a fault".into());
        }
        let spec = self.sets.get(&id.set).ok_or("there is no such set")?;
        if spec.dynamic {
            return Err("only the packet path writes to this set".into());
        }
        if id.key.as_slice().len() != spec.key_len as usize {
            return Err(format!("a key of {} bytes, not {}", id.key.as_slice().len(), spec.key_len));
        }
        match (spec.value, value) {
            (SetValue::None, Value::None) => Ok(()),
            (SetValue::Data(len, _), Value::Data(data)) if data.as_slice().len() == len as usize => Ok(()),
            (SetValue::Verdict, Value::Verdict(verdict)) => self.check_verdict(verdict),
            (wanted, _) => Err(format!("the value does not fit {wanted:?}")),
        }
    }

    fn check_rule(&self, rule: &Rule) -> Result<(), String> {
        let missing = |set: &SetId| !self.sets.contains_key(set);
        for expr in &rule.exprs {
            match expr {
                Expr::Verdict(verdict) => self.check_verdict(verdict)?,
                Expr::Lookup { set, .. }
                | Expr::LookupData { set, .. }
                | Expr::LookupVerdict { set, .. }
                | Expr::Dynset { set, .. }
                    if missing(set) =>
                {
                    return Err(format!("there is no set {}", set.name()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn check_verdict(&self, verdict: &Verdict) -> Result<(), String> {
        let (Verdict::Jump(name) | Verdict::Goto(name)) = verdict else { return Ok(()) };
        match self.chains.get(name) {
            None => Err(format!("there is no chain {name} to go to")),
            Some((Some(_), _)) => Err(format!("{name} is a base chain")),
            Some((None, _)) => Ok(()),
        }
    }

    /// The chains that elements and rules lead to.
    pub(crate) fn references(&self) -> BTreeSet<ChainName> {
        let of_elements = self.elements.values().filter_map(|value| match value {
            Value::Verdict(verdict) => Some(verdict),
            _ => None,
        });
        let exprs = self.chains.values().flat_map(|(_, rules)| rules).flat_map(|rule| &rule.exprs);
        let of_rules = exprs.filter_map(|expr| match expr {
            Expr::Verdict(verdict) => Some(verdict),
            _ => None,
        });
        let names = of_elements.chain(of_rules).filter_map(|verdict| match verdict {
            Verdict::Jump(name) | Verdict::Goto(name) => Some(*name),
            _ => None,
        });
        names.collect()
    }

    /// What a daemon that starts now would read.
    pub(crate) fn observe(&self) -> Observed {
        let set = |spec: &SetSpec| (spec.name.to_owned(), spec.key_len, spec.data_len());
        Observed {
            sets: self.sets.values().map(set).collect(),
            chains: self
                .chains
                .iter()
                .map(|(name, (hook, rules))| ObservedChain {
                    name: *name,
                    hook: hook.as_ref().map(|hook| (hook.number, hook.priority)),
                    rules: rules.iter().map(Rule::comment).collect(),
                })
                .collect(),
            elements: self.elements.iter().map(|(id, value)| (*id, *value)).collect(),
            altered: false,
        }
    }

    /// The slots of all groups.
    fn groups(&self) -> Groups {
        let mut groups = Groups::new();
        for (id, value) in self.elements.iter().filter(|(id, _)| SetKind::Endpoints.is(id.set)) {
            let (group, slot) = id.key.as_slice().split_at(8);
            let slot = u32::from_ne_bytes(slot.try_into().expect("four bytes"));
            let Value::Data(member) = value else { panic!("{value:?}") };
            groups.entry((id.set, group.to_vec())).or_default().insert(slot, member.as_slice().to_vec());
        }
        groups
    }

    /// The elements, but for slots.
    fn others(&self) -> BTreeMap<ElementId, Value> {
        let others = self.elements.iter().filter(|(id, _)| !SetKind::Endpoints.is(id.set));
        others.map(|(id, value)| (*id, *value)).collect()
    }

    /// The chains that nothing leads to and no hook calls.
    pub(crate) fn unused_chains(&self) -> BTreeSet<ChainName> {
        let used = self.references();
        let unused = self.chains.iter().filter(|(name, (hook, _))| hook.is_none() && !used.contains(name));
        unused.map(|(name, _)| *name).collect()
    }

    /// Whether this is `right`, but for the order of slots and for chains that nobody uses.
    pub(crate) fn same_as(&self, right: &Kernel) -> Result<(), String> {
        if (self.table, &self.sets) != (right.table, &right.sets) {
            return Err("other sets".into());
        }
        difference("element", &self.others(), &right.others())?;
        let mut mine = self.groups();
        for ((set, group), slots) in &mine {
            let numbers: Vec<u32> = slots.keys().copied().collect();
            let wanted: Vec<u32> = (0..slots.len() as u32).collect();
            if numbers != wanted {
                return Err(format!("{} {group:?} has the slots {numbers:?}", set.name()));
            }
        }
        let mut other = right.groups();
        for groups in [&mut mine, &mut other] {
            for slots in groups.values_mut() {
                let mut members: Vec<Vec<u8>> = std::mem::take(slots).into_values().collect();
                members.sort();
                *slots = (0..).zip(members).collect();
            }
        }
        difference("group", &mine, &other)?;
        let unused = self.unused_chains();
        let mut chains = self.chains.clone();
        chains.retain(|name, _| right.chains.contains_key(name) || !unused.contains(name));
        difference("chain", &chains, &right.chains)
    }
}

fn difference<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    what: &str,
    mine: &BTreeMap<K, V>,
    right: &BTreeMap<K, V>,
) -> Result<(), String> {
    for (key, value) in mine {
        match right.get(key) {
            None => return Err(format!("{what} {key:?} should not be there: {value:?}")),
            Some(right) if right != value => {
                return Err(format!("{what} {key:?} is {value:?}, not {right:?}"));
            }
            Some(_) => {}
        }
    }
    match right.iter().find(|(key, _)| !mine.contains_key(key)) {
        Some((key, value)) => Err(format!("{what} {key:?} is missing: {value:?}")),
        None => Ok(()),
    }
}
