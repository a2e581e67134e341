//! The clients that the sets of ClientIP affinity remember: how many there are, who they are, and
//! forgetting some.

use sluice_core::lang::nftables::{Bytes, Element, ElementId, Key, Op, SetId, Value};
use sluice_core::net::Family;
use sluice_core::nft::eviction::Client;
use sluice_core::nft::{SetKind, TABLE};

use super::{Command, Nft, family_number, named};
use crate::bpf::Usage;
use crate::netlink::{NetlinkError, Writer, attrs, find};

/// Of linux/netfilter/nf_tables.h: the description of a set, and in it how many elements it takes.
const DESCRIPTION: u16 = 9;
const SIZE: u16 = 1;
/// `NFTA_SET_COUNT`, which newer kernels tell, 6.18 among them.
const COUNT: u16 = 20;
/// The list of elements in a message about some; of each its key and in how many milliseconds it
/// ends.
const LIST: u16 = 3;
const KEY: u16 = 1;
const EXPIRATION: u16 = 5;
/// Clients that one transaction forgets: some ten milliseconds, in which nobody else's changes can
/// be made. With each one the kernel waits until all processors have seen it, so that small ones
/// would take much longer for the same.
const FORGOTTEN_AT_ONCE: usize = 8192;
/// Where some were gone already, parts of so many are not looked at more closely.
const NOT_WORTH_IT: usize = 32;

/// The set of a family as the kernel tells of it without reading its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fullness {
    /// How many it takes.
    pub capacity: usize,
    /// How many there are, if this kernel says so.
    pub entries: Option<usize>,
}

/// How full the set of a family is, as far as it is told; `None`: there is none.
pub fn fullness(nft: &mut Nft, family: Family) -> Result<Option<Fullness>, NetlinkError> {
    let set = SetKind::Affinity.set(family);
    let (mut capacity, mut told) = (0, None);
    let kind = Command::GetSet.message_type();
    let answer = nft.socket.ask("look up a set", kind, family_number(&TABLE), of_set(set), |message| {
        let attributes = message.attributes();
        let description = find(attributes, DESCRIPTION).map_or(&[][..], |description| description.value);
        capacity = find(description, SIZE).and_then(|size| size.u32()).unwrap_or(0);
        told = find(attributes, COUNT).and_then(|count| count.u32());
    });
    match answer {
        Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(None),
        other => other?,
    }
    Ok(Some(Fullness { capacity: capacity as usize, entries: told.map(|told| told as usize) }))
}

/// How full the set of a family is; `None`: there is none. Where the kernel does not tell the
/// number of elements they are all read, which may take minutes ([`read_and_count`]).
pub fn remembered(nft: &mut Nft, family: Family) -> Result<Option<Usage>, NetlinkError> {
    let Some(Fullness { capacity, entries }) = fullness(nft, family)? else { return Ok(None) };
    let entries = match entries {
        Some(entries) => entries,
        None => read_and_count(nft, family)?,
    };
    Ok(Some(Usage { entries, capacity }))
}

/// Counts the clients by reading them. A set that changes meanwhile is counted well enough. For
/// each part of the answer, of some hundred elements, the kernel goes through all those before once
/// more: the time goes by the square of their number.
pub fn read_and_count(nft: &mut Nft, family: Family) -> Result<usize, NetlinkError> {
    let mut count = 0;
    let kind = Command::GetSetElem.message_type();
    let set = of_set(SetKind::Affinity.set(family));
    let answer = nft.socket.dump("count elements", kind, family_number(&TABLE), set, |message| {
        count += elements(message.attributes()).count();
    });
    match answer {
        Err(error) if error.errno() != Some(libc::EINTR) => Err(error),
        _ => Ok(count),
    }
}

/// The first clients of a family's set, in the order of its hash: `most` of them, or few more.
/// Where that is not all of them, it takes as long as if there were no others.
pub fn first_clients(family: Family, most: usize) -> Result<Vec<Client>, NetlinkError> {
    // Its own connection, because the rest of the answer is not read.
    let mut nft = Nft::open()?;
    let mut clients = Vec::new();
    let kind = Command::GetSetElem.message_type();
    let set = of_set(SetKind::Affinity.set(family));
    let answer = nft.socket.dump_while("read elements", kind, family_number(&TABLE), set, |message| {
        clients.extend(elements(message.attributes()).filter_map(client));
        clients.len() < most
    });
    match answer {
        Err(error) if error.errno() != Some(libc::EINTR) => Err(error),
        _ => Ok(clients),
    }
}

fn elements(attributes: &[u8]) -> impl Iterator<Item = &[u8]> {
    attrs(find(attributes, LIST).map_or(&[][..], |list| list.value)).map(|element| element.value)
}

fn client(element: &[u8]) -> Option<Client> {
    let key = find(find(element, KEY)?.value, 1)?;
    // Without a time it is not the packet path's, and stays.
    let left = find(element, EXPIRATION)?.u64()?;
    Some(Client { key: Key::new(key.value), left })
}

/// Whether no further client can be remembered. Asks the kernel to take one more, in a transaction
/// that cannot succeed: nothing is changed by it, and nobody is told.
pub fn is_full(nft: &mut Nft, family: Family) -> Result<bool, NetlinkError> {
    let set = SetKind::Affinity.set(family);
    let (key_len, value_len) = match family {
        Family::V4 => (12, 8),
        Family::V6 => (24, 20),
    };
    // Of no service port, and what nobody has.
    let one_more = ElementId { set, key: Key::new(&[0; 24][..key_len]) };
    let absent = ElementId { set, key: Key::new(&[0xff; 24][..key_len]) };
    let value = Value::Data(Bytes::new(&[0; 20][..value_len]));
    let ops = [Op::AddElement(Element { id: one_more, value }), Op::DeleteElement(absent)];
    match nft.commit(&TABLE, &ops) {
        Err(error) if error.errno() == Some(libc::ENFILE) => Ok(true),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
        other => other.map(|_| false),
    }
}

/// Forgets clients; returns how many. Beside one that is gone already a few others may be kept.
pub fn forget(nft: &mut Nft, family: Family, clients: &[Key]) -> Result<usize, NetlinkError> {
    let set = SetKind::Affinity.set(family);
    let ops: Vec<Op> = clients.iter().map(|key| Op::DeleteElement(ElementId { set, key: *key })).collect();
    let mut forgotten = 0;
    for part in ops.chunks(FORGOTTEN_AT_ONCE) {
        forgotten += delete(nft, part)?;
    }
    Ok(forgotten)
}

/// Some may have ended meanwhile by themselves, and then nothing of a transaction is done: halves
/// of it are.
fn delete(nft: &mut Nft, ops: &[Op]) -> Result<usize, NetlinkError> {
    match nft.commit(&TABLE, ops) {
        Ok(_) => Ok(ops.len()),
        Err(error) if error.errno() != Some(libc::ENOENT) => Err(error),
        Err(_) if ops.len() <= NOT_WORTH_IT => Ok(0),
        Err(_) => {
            let (first, second) = ops.split_at(ops.len() / 2);
            Ok(delete(nft, first)? + delete(nft, second)?)
        }
    }
}

fn of_set(set: SetId) -> impl FnOnce(&mut Writer) {
    move |writer| {
        named(&TABLE)(writer);
        writer.text(2, set.name());
    }
}
