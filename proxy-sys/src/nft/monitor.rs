//! Notice of changes that others make to a table of ours.

use sluice_core::lang::nftables::{Deed, Strangers, Subject, Table};

use super::{Command, Nft, SUBSYSTEM, family_number, is_of, named};
use crate::netlink::{Message, NetfilterSocket, NetlinkError, attrs, find};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// Objects and flowtables come and go by these messages; a table of ours has none.
const ALIENS: std::ops::RangeInclusive<u16> = 18..=24;

/// Something happened to the table that we did not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Somebody else changed it, and perhaps what is ours.
    Changed,
    /// Somebody else added something, or changed what others had added before.
    Added,
    /// Notifications were lost: it may have been changed.
    Lost,
}

impl Notice {
    /// Whether something of ours may have been changed.
    pub fn may_harm(self) -> bool {
        self != Notice::Added
    }
}

/// Listens for nf_tables notifications.
pub struct Monitor {
    socket: NetfilterSocket,
    table: &'static Table,
    /// The port id whose changes are our own.
    own: u32,
    strangers: Strangers,
}

impl Monitor {
    /// Opens a monitor of a table that ignores changes made through the port `own`. What is done to
    /// tables of the same name in other families counts too.
    pub fn open(table: &'static Table, own: u32) -> Result<Self, NetlinkError> {
        let mut socket = NetfilterSocket::open()?;
        socket.join(GROUP)?;
        Ok(Monitor { socket, table, own, strangers: Strangers::new(newest_handle(table)?) })
    }

    /// Waits for the next notice.
    pub fn wait(&mut self) -> Result<Notice, NetlinkError> {
        loop {
            let mut notice = None;
            let (strangers, table, own) = (&mut self.strangers, self.table, self.own);
            let received = self.socket.receive(true, |message| {
                let harm = judge(strangers, table, own, &message);
                if let Some(harm) = harm {
                    let changed = harm || notice == Some(Notice::Changed);
                    notice = Some(if changed { Notice::Changed } else { Notice::Added });
                }
            });
            match (received, notice) {
                (Ok(_), Some(notice)) => return Ok(notice),
                (Ok(_), None) => {}
                (Err(NetlinkError::Lost { .. }), _) => {
                    self.strangers = Strangers::new(newest_handle(self.table)?);
                    return Ok(Notice::Lost);
                }
                (Err(error), _) => return Err(error),
            }
        }
    }
}

/// Whether a message tells of harm; `None` when nobody else did anything to the table.
pub(super) fn judge(
    strangers: &mut Strangers,
    table: &Table,
    own: u32,
    message: &Message<'_>,
) -> Option<bool> {
    const NEW_GENERATION: u16 = 15;
    let command = message.kind & 0xff;
    let attributes = message.attributes();
    let is_ours = message.kind >> 8 == SUBSYSTEM && command != NEW_GENERATION && is_of(table, attributes);
    if !is_ours || is_state(table, command, attributes) {
        return None;
    }
    let is_own = message.port == own;
    let mut harm = false;
    let known = read(command, attributes, |deed, subject| {
        if is_own {
            strangers.we_did(subject);
        } else {
            harm |= strangers.others_did(deed, subject);
        }
    });
    (!is_own).then_some(harm || !known)
}

/// Whether a message is about elements that the packet path adds, clients that are remembered:
/// nobody repairs these, and the daemon itself forgets some now and then.
fn is_state(table: &Table, command: u16, attributes: &[u8]) -> bool {
    let set = find(attributes, 2).and_then(|set| table.set(set.text()));
    let of_elements = [Command::NewSetElem as u16, Command::DelSetElem as u16].contains(&command);
    of_elements && set.is_some_and(|set| set.spec().dynamic)
}

/// Gives what a message is about to `each`. Returns whether the message is understood.
fn read(command: u16, attributes: &[u8], mut each: impl FnMut(Deed, Subject<'_>)) -> bool {
    let is = |which: &[Command]| which.iter().any(|known| *known as u16 == command);
    let deed = if is(&[Command::NewTable, Command::NewChain, Command::NewRule, Command::NewSet])
        || is(&[Command::NewSetElem])
    {
        Deed::Put
    } else {
        Deed::Removed
    };
    let handle = |kind| find(attributes, kind).and_then(|handle| handle.u64()).unwrap_or(0);
    if is(&[Command::NewSetElem, Command::DelSetElem]) {
        return elements(attributes, |set, key| each(deed, Subject::Element { set, key }));
    }
    let subject = if is(&[Command::NewTable, Command::DelTable]) {
        Subject::Table
    } else if is(&[Command::NewChain, Command::DelChain]) {
        let Some(name) = find(attributes, 3) else { return false };
        Subject::Chain { name: name.text(), handle: handle(2), is_base: find(attributes, 4).is_some() }
    } else if is(&[Command::NewRule, Command::DelRule]) {
        let Some(chain) = find(attributes, 2) else { return false };
        Subject::Rule { chain: chain.text() }
    } else if is(&[Command::NewSet, Command::DelSet]) {
        let Some(name) = find(attributes, 2) else { return false };
        Subject::Set { name: name.text(), handle: handle(16) }
    } else if ALIENS.contains(&command) {
        Subject::Alien
    } else {
        return false;
    };
    each(deed, subject);
    true
}

/// The keys of a message about elements.
fn elements(attributes: &[u8], mut each: impl FnMut(&str, &[u8])) -> bool {
    let (Some(set), Some(list)) = (find(attributes, 2), find(attributes, 3)) else { return false };
    let mut understood = false;
    for item in attrs(list.value) {
        let key = find(item.value, 1).and_then(|key| find(key.value, 1));
        let Some(key) = key else { return false };
        understood = true;
        each(set.text(), key.value);
    }
    understood
}

/// The greatest handle of a chain or set of a table, or of a table of that name; 0 without any.
fn newest_handle(table: &Table) -> Result<u64, NetlinkError> {
    let mut nft = Nft::open()?;
    let mut newest = 0;
    for (operation, command, kind) in
        [("list chains", Command::GetChain, 2), ("list sets", Command::GetSet, 16)]
    {
        let dumped = nft.socket.dump(
            operation,
            command.message_type(),
            family_number(table),
            named(table),
            |message| {
                let attributes = message.attributes();
                if is_of(table, attributes) {
                    let handle = find(attributes, kind).and_then(|handle| handle.u64());
                    newest = newest.max(handle.unwrap_or(0));
                }
            },
        );
        match dumped {
            // The table changes all the time: what was listed has to do.
            Err(error) if !matches!(error.errno(), Some(libc::EINTR | libc::ENOENT)) => return Err(error),
            _ => {}
        }
    }
    Ok(newest)
}
