//! nf_tables over netlink: transactions, reading tables of ours back, and notice of changes made by
//! others. Which sets a table has, its declaration says.

mod counters;
mod encode;
mod foreign;
#[cfg(test)]
mod fuzz;
mod monitor;
mod observe;
mod remembered;

pub use counters::{dropped, loopback_refusals};
pub use foreign::{FAMILIES, ForeignChain, ForeignJump, Removal};
pub use monitor::{Monitor, Notice};
pub use observe::{observe, without_present};
pub use remembered::{Fullness, first_clients, forget, fullness, is_full, read_and_count, remembered};

use std::io;

use netlink_packet_core::NLM_F_ACK;
use sluice_core::lang::nftables::{Op, Table, TableFamily};

use crate::netlink::{NetfilterSocket, NetlinkError, Writer, find};

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET` and `NFPROTO_BRIDGE`.
fn family_number(table: &Table) -> u8 {
    match table.id.family {
        TableFamily::Inet => 1,
        TableFamily::Bridge => 7,
    }
}

/// Messages of linux/netfilter/nf_tables.h.
#[derive(Clone, Copy)]
#[repr(u16)]
enum Command {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    DelChain = 5,
    NewRule = 6,
    GetRule = 7,
    DelRule = 8,
    NewSet = 9,
    GetSet = 10,
    DelSet = 11,
    NewSetElem = 12,
    GetSetElem = 13,
    DelSetElem = 14,
}

impl Command {
    fn message_type(self) -> u16 {
        SUBSYSTEM << 8 | self as u16
    }
}

/// A connection to nf_tables.
pub struct Nft {
    socket: NetfilterSocket,
}

/// What a transaction cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Messages sent.
    pub messages: u32,
    /// Bytes sent.
    pub bytes: usize,
}

impl Nft {
    /// Opens a connection in the current network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Nft { socket: NetfilterSocket::open()? })
    }

    /// Our netlink port id, by which notices of our own changes are known.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Applies operations to a table in one transaction: all or nothing.
    pub fn commit(&mut self, table: &Table, ops: &[Op]) -> Result<Committed, NetlinkError> {
        if ops.is_empty() {
            return Ok(Committed::default());
        }
        let first = self.socket.next_sequence();
        let batch = encode::batch(table, ops, first);
        self.socket.send(batch.writer.bytes())?;
        for _ in 0..batch.messages {
            self.socket.next_sequence();
        }
        self.verdict(first, &batch, ops)?;
        Ok(Committed { messages: batch.messages, bytes: batch.writer.bytes().len() })
    }

    /// The kernel has worked the batch off when the send returns; its answers are waiting.
    fn verdict(&mut self, first: u32, batch: &encode::Batch, ops: &[Op]) -> Result<(), NetlinkError> {
        let last = first.wrapping_add(batch.messages);
        let (mut acknowledged, mut failure) = (false, None);
        let lost = loop {
            let received = self.socket.receive(false, |message| {
                let Some((code, detail)) = message.error() else { return };
                let offset = message.sequence.wrapping_sub(first);
                if offset > batch.messages {
                    return;
                }
                if code != 0 && failure.is_none() {
                    let operation = batch.describe(offset, ops);
                    let source = io::Error::from_raw_os_error(code);
                    failure = Some(NetlinkError::Refused { operation, source, detail });
                }
                acknowledged |= code == 0 && message.sequence == last;
            });
            match received {
                Ok(true) => {}
                Ok(false) => break false,
                Err(NetlinkError::Lost { .. }) => break true,
                Err(error) => return Err(error),
            }
        };
        match failure {
            Some(error) => Err(error),
            None if acknowledged => Ok(()),
            None if lost => Err(NetlinkError::Lost { operation: "commit a transaction" }),
            None => Err(NetlinkError::Malformed { operation: "commit a transaction" }),
        }
    }

    /// Whether a table exists.
    pub fn has_table(&mut self, table: &Table) -> Result<bool, NetlinkError> {
        let mut found = false;
        self.socket.dump(
            "list tables",
            Command::GetTable.message_type(),
            family_number(table),
            |_| {},
            |message| found |= is_of(table, message.attributes()),
        )?;
        Ok(found)
    }

    /// Deletes a table with everything in it. Returns whether there was one.
    pub fn delete(&mut self, table: &Table) -> Result<bool, NetlinkError> {
        match self.commit(table, &[Op::DeleteTable]) {
            Ok(_) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Checks that the kernel offers what a table needs: a transaction writes to a scratch table of
    /// its family whatever `ops` say, which remove it again. The error names what was refused.
    pub fn probe(&mut self, table: &Table, ops: &[Op]) -> Result<(), NetlinkError> {
        self.commit(&table.named("sluice-probe"), ops).map(drop)
    }
}

/// Attributes that name a table.
fn named(table: &Table) -> impl FnOnce(&mut Writer) {
    let name = table.id.name;
    move |writer| writer.text(1, name)
}

/// Whether an object is one of a table. Dumps are filtered by table in newer kernels only.
fn is_of(table: &Table, attributes: &[u8]) -> bool {
    find(attributes, 1).is_some_and(|name| name.text() == table.id.name)
}

/// Asks for an acknowledgement of the message begun last.
fn acknowledge(writer: &mut Writer) {
    writer.add_flags(NLM_F_ACK);
}
