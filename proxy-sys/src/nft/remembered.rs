//! How many clients the sets of ClientIP affinity remember.

use sluice_core::net::Family;
use sluice_core::nft::{SetId, SetKind, TABLE};

use super::{Command, INET, Nft};
use crate::bpf::Usage;
use crate::netlink::{NetlinkError, Writer, attrs, find};

/// Of linux/netfilter/nf_tables.h: the description of a set, and in it how many elements it takes.
const DESCRIPTION: u16 = 9;
const SIZE: u16 = 1;
/// `NFTA_SET_COUNT`, which newer kernels tell, 6.18 among them.
const COUNT: u16 = 20;

/// How full the set of a family is; `None`: there is none. Where the kernel does not tell the number of elements they are all
/// read, which may take minutes ([`read_and_count`]).
pub fn remembered(nft: &mut Nft, family: Family) -> Result<Option<Usage>, NetlinkError> {
    let set = SetId::new(SetKind::Affinity, family);
    let (mut capacity, mut told) = (0, None);
    let kind = Command::GetSet.message_type();
    let answer = nft.socket.ask("look a set up", kind, INET, named(set), |message| {
        let attributes = message.attributes();
        let description = find(attributes, DESCRIPTION).map_or(&[][..], |description| description.value);
        capacity = find(description, SIZE).and_then(|size| size.u32()).unwrap_or(0);
        told = find(attributes, COUNT).and_then(|count| count.u32());
    });
    match answer {
        Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(None),
        other => other?,
    }
    let entries = match told {
        Some(count) => count as usize,
        None => read_and_count(nft, family)?,
    };
    Ok(Some(Usage { entries, capacity: capacity as usize }))
}

/// Counts the clients by reading them. A set that changes meanwhile is counted well enough. For each part of the answer, of some
/// hundred elements, the kernel goes through all those before once more: the time goes by the square of their number.
pub fn read_and_count(nft: &mut Nft, family: Family) -> Result<usize, NetlinkError> {
    let mut count = 0;
    let kind = Command::GetSetElem.message_type();
    let set = named(SetId::new(SetKind::Affinity, family));
    let answer = nft.socket.dump("count elements", kind, INET, set, |message| {
        let list = find(message.attributes(), 3).map_or(&[][..], |list| list.value);
        count += attrs(list).count();
    });
    match answer {
        Err(error) if error.errno() != Some(libc::EINTR) => Err(error),
        _ => Ok(count),
    }
}

fn named(set: SetId) -> impl FnOnce(&mut Writer) {
    move |writer| {
        writer.text(1, TABLE);
        writer.text(2, set.name());
    }
}
