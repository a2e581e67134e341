//! Reading a table of ours back.

use std::collections::HashSet;

use sluice_core::lang::nftables::{
    Bytes, ChainName, Element, ElementId, Key, Observed, ObservedChain, Op, SetId, Table, Value, Verdict,
};

use super::{Command, Nft, family_number, is_of, named};
use crate::netlink::{NetlinkError, Writer, attrs, find, uninterrupted};

const ATTEMPTS: u32 = 5;

/// Reads a table; `None` when there is none.
///
/// Elements that the packet path adds (affinity) are left out: they are state, not configuration.
pub fn observe(nft: &mut Nft, table: &Table) -> Result<Option<Observed>, NetlinkError> {
    match read(nft, table) {
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        other => other,
    }
}

fn read(nft: &mut Nft, table: &Table) -> Result<Option<Observed>, NetlinkError> {
    // What is read at different times may not fit together; the kernel tells of changes, and
    // another pass follows.
    let altered = uninterrupted(ATTEMPTS, || is_dormant(nft, table))?;
    let (chains, misnamed) = uninterrupted(ATTEMPTS, || chains(nft, table))?;
    let sets = uninterrupted(ATTEMPTS, || sets(nft, table))?;
    if chains.is_empty() && sets.is_empty() {
        return Ok(None);
    }
    let mut observed = Observed { sets, altered: altered || misnamed, ..Observed::default() };
    observed.chains = uninterrupted(ATTEMPTS, || rules(nft, table, chains.clone()))?;
    for (name, ..) in observed.sets.clone() {
        if let Some(set) = table.set(&name).filter(|set| !set.spec().dynamic) {
            elements(nft, table, set, &mut observed)?;
        }
    }
    Ok(Some(observed))
}

/// Takes additions of elements that are there already out of a full pass's operations.
///
/// A dump misses elements when the kernel resizes the set meanwhile, and nothing in its answer says
/// so; asking for single elements is exact.
pub fn without_present(nft: &mut Nft, table: &Table, ops: Vec<Op>) -> Result<Vec<Op>, NetlinkError> {
    /// When so much is missing, the table was emptied; writing an element twice is no error.
    const DOUBTFUL: usize = 20_000;
    let replaced: HashSet<ElementId> = ops
        .iter()
        .filter_map(|op| match op {
            Op::DeleteElement(id) => Some(*id),
            _ => None,
        })
        .collect();
    if ops.first() == Some(&Op::DeleteTable) {
        return Ok(ops);
    }
    let is_new = |op: &Op| matches!(op, Op::AddElement(element) if !replaced.contains(&element.id));
    if ops.iter().filter(|op| is_new(op)).count() > DOUBTFUL {
        return Ok(ops);
    }
    let mut kept = Vec::with_capacity(ops.len());
    for op in ops {
        match &op {
            Op::AddElement(element) if is_new(&op) && holds(nft, table, element)? => {}
            _ => kept.push(op),
        }
    }
    Ok(if kept == [Op::AddTable] { Vec::new() } else { kept })
}

/// Whether the kernel holds this element with this value.
fn holds(nft: &mut Nft, table: &Table, wanted: &Element) -> Result<bool, NetlinkError> {
    let set = wanted.id.set;
    let mut found = None;
    let request = |writer: &mut Writer| {
        named(table)(writer);
        writer.text(2, set.name());
        let list = writer.nest(3);
        super::encode::key(writer, &wanted.id);
        writer.close(list);
    };
    let kind = Command::GetSetElem.message_type();
    let answer = nft.socket.ask("look up an element", kind, family_number(table), request, |message| {
        let list = find(message.attributes(), 3).map_or(&[][..], |list| list.value);
        found = attrs(list).next().and_then(|item| element(set, item.value));
    });
    match answer {
        Ok(()) => Ok(found == Some((wanted.id, wanted.value))),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether somebody switched the table off.
fn is_dormant(nft: &mut Nft, table: &Table) -> Result<bool, NetlinkError> {
    const DORMANT: u32 = 1;
    let mut dormant = false;
    nft.socket.dump(
        "list tables",
        Command::GetTable.message_type(),
        family_number(table),
        |_| {},
        |message| {
            let flags = find(message.attributes(), 2).and_then(|flags| flags.u32()).unwrap_or(0);
            dormant |= is_of(table, message.attributes()) && flags & DORMANT != 0;
        },
    )?;
    Ok(dormant)
}

/// The chains without their rules, and whether one is as we never make it.
fn chains(nft: &mut Nft, table: &Table) -> Result<(Vec<ObservedChain>, bool), NetlinkError> {
    const ACCEPT: u32 = 1;
    let (mut chains, mut altered) = (Vec::new(), false);
    let kind = Command::GetChain.message_type();
    nft.socket.dump("list chains", kind, family_number(table), named(table), |message| {
        let attributes = message.attributes();
        if !is_of(table, attributes) {
            return;
        }
        let Some(text) = find(attributes, 3).map(|name| name.text()) else { return };
        let hook = find(attributes, 4).and_then(|hook| {
            let number = find(hook.value, 1)?.u32()?;
            Some((number, find(hook.value, 2)?.u32()? as i32))
        });
        let name = ChainName::new(text);
        let policy = find(attributes, 5).and_then(|policy| policy.u32());
        altered |= name.as_str() != text || policy.is_some_and(|policy| policy != ACCEPT);
        chains.push(ObservedChain { name, hook, rules: Vec::new() });
    })?;
    Ok((chains, altered))
}

/// The same chains with their rules.
fn rules(
    nft: &mut Nft,
    table: &Table,
    mut chains: Vec<ObservedChain>,
) -> Result<Vec<ObservedChain>, NetlinkError> {
    let kind = Command::GetRule.message_type();
    let at: std::collections::HashMap<ChainName, usize> =
        chains.iter().enumerate().map(|(i, chain)| (chain.name, i)).collect();
    nft.socket.dump("list rules", kind, family_number(table), named(table), |message| {
        let attributes = message.attributes();
        let chain = find(attributes, 2).and_then(|name| at.get(&ChainName::new(name.text())));
        if let (true, Some(at)) = (is_of(table, attributes), chain) {
            let comment = find(attributes, 7).and_then(|data| comment(data.value));
            chains[*at].rules.push(comment.unwrap_or_default());
        }
    })?;
    Ok(chains)
}

/// The comment among nft's user data: type, length, text.
pub(super) fn comment(mut data: &[u8]) -> Option<String> {
    while let [kind, len, rest @ ..] = data {
        let text = rest.get(..usize::from(*len))?;
        if *kind == 0 {
            let text = text.strip_suffix(&[0]).unwrap_or(text);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        data = &rest[usize::from(*len)..];
    }
    None
}

fn sets(nft: &mut Nft, table: &Table) -> Result<Vec<(String, u32, u32)>, NetlinkError> {
    let mut sets = Vec::new();
    let kind = Command::GetSet.message_type();
    nft.socket.dump("list sets", kind, family_number(table), named(table), |message| {
        let attributes = message.attributes();
        if let (true, Some(name)) = (is_of(table, attributes), find(attributes, 2)) {
            let number = |kind| find(attributes, kind).and_then(|attr| attr.u32()).unwrap_or(0);
            let is_verdict = number(6) == 0xffff_ff00;
            sets.push((name.text().to_owned(), number(5), if is_verdict { 0 } else { number(7) }));
        }
    })?;
    Ok(sets)
}

/// Reads a set until a dump tells nothing new: one that the kernel writes while it resizes the set
/// misses elements, and nothing in its answer says so.
fn elements(nft: &mut Nft, table: &Table, set: SetId, observed: &mut Observed) -> Result<(), NetlinkError> {
    for _ in 0..ATTEMPTS {
        let before = observed.elements.len();
        match dump_elements(nft, table, set, observed) {
            // Whoever changes a large set all the time would let no dump be whole.
            Err(error) if error.errno() == Some(libc::EINTR) => {}
            Err(error) => return Err(error),
            Ok(()) if observed.elements.len() == before => break,
            Ok(()) => {}
        }
    }
    Ok(())
}

fn dump_elements(
    nft: &mut Nft,
    table: &Table,
    set: SetId,
    observed: &mut Observed,
) -> Result<(), NetlinkError> {
    let kind = Command::GetSetElem.message_type();
    let name = |writer: &mut Writer| {
        named(table)(writer);
        writer.text(2, set.name());
    };
    nft.socket.dump("list elements", kind, family_number(table), name, |message| {
        let list = find(message.attributes(), 3).map_or(&[][..], |list| list.value);
        for item in attrs(list) {
            match element(set, item.value) {
                Some((id, value)) => {
                    observed.elements.insert(id, value);
                }
                None => observed.altered = true,
            }
        }
    })
}

fn element(set: SetId, item: &[u8]) -> Option<(ElementId, Value)> {
    let key = find(find(item, 1)?.value, 1)?;
    let id = ElementId { set, key: Key::new(key.value) };
    let Some(data) = find(item, 2) else { return Some((id, Value::None)) };
    if let Some(bytes) = find(data.value, 1) {
        return Some((id, Value::Data(Bytes::new(bytes.value))));
    }
    let verdict = find(data.value, 2)?;
    let chain = find(verdict.value, 2).map(|name| ChainName::new(name.text()));
    let value = match (find(verdict.value, 1)?.u32()? as i32, chain) {
        (0, None) => Verdict::Drop,
        (1, None) => Verdict::Accept,
        (-3, Some(chain)) => Verdict::Jump(chain),
        (-4, Some(chain)) => Verdict::Goto(chain),
        _ => return None,
    };
    Some((id, Value::Verdict(value)))
}
