//! Tables of other programs: what their chains are and where their rules lead, and the removal of
//! some of them.

use std::io;

use super::{Command, Nft, SUBSYSTEM, acknowledge};
use crate::netlink::{NetlinkError, Writer, attrs, find};

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
pub const FAMILIES: [u8; 2] = [2, 10];

/// A chain of a table of another program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignChain {
    /// Netfilter family of its table.
    pub family: u8,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Whether the packet path enters it by itself.
    pub is_base: bool,
}

/// A rule that leads to another chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignJump {
    /// Netfilter family of its table.
    pub family: u8,
    /// Its table.
    pub table: String,
    /// The chain that it is in.
    pub chain: String,
    /// Its number in the table.
    pub handle: u64,
    /// Where it leads.
    pub target: String,
}

/// Something to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// One rule.
    Rule {
        /// Netfilter family of its table.
        family: u8,
        /// Its table.
        table: String,
        /// Its chain.
        chain: String,
        /// Its number.
        handle: u64,
    },
    /// All rules of a chain.
    Rules {
        /// Netfilter family of its table.
        family: u8,
        /// Its table.
        table: String,
        /// The chain.
        chain: String,
    },
    /// A chain without rules.
    Chain {
        /// Netfilter family of its table.
        family: u8,
        /// Its table.
        table: String,
        /// The chain.
        chain: String,
    },
}

/// A text among attributes; empty without one.
fn text(attributes: &[u8], kind: u16) -> String {
    find(attributes, kind).map(|attribute| attribute.text().to_owned()).unwrap_or_default()
}

impl Nft {
    /// The chains of all `ip` and `ip6` tables.
    pub fn foreign_chains(&mut self) -> Result<Vec<ForeignChain>, NetlinkError> {
        self.foreign("list chains", Command::GetChain, |family, attributes| {
            let is_base = find(attributes, 4).is_some();
            Some(ForeignChain { family, table: text(attributes, 1), name: text(attributes, 3), is_base })
        })
    }

    /// The rules of all `ip` and `ip6` tables that lead to other chains.
    pub fn foreign_jumps(&mut self) -> Result<Vec<ForeignJump>, NetlinkError> {
        self.foreign("list rules", Command::GetRule, |family, attributes| {
            let target = find(attributes, 4).and_then(|list| target(list.value))?;
            let handle = find(attributes, 3).and_then(|a| Some(u64::from_be_bytes(a.value.try_into().ok()?)));
            let (table, chain) = (text(attributes, 1), text(attributes, 2));
            Some(ForeignJump { family, table, chain, handle: handle.unwrap_or_default(), target })
        })
    }

    /// What `read` makes of each object of a kind, in tables of both families.
    fn foreign<T>(
        &mut self,
        operation: &'static str,
        command: Command,
        read: impl Fn(u8, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut found = Vec::new();
        let kind = command.message_type();
        for family in FAMILIES {
            let mut keep = |attributes: &[u8]| found.extend(read(family, attributes));
            self.socket.dump(operation, kind, family, |_| {}, |message| keep(message.attributes()))?;
        }
        Ok(found)
    }

    /// Deletes a table with everything in it. Returns whether there was one.
    pub fn delete_foreign_table(&mut self, family: u8, table: &str) -> Result<bool, NetlinkError> {
        let done = self.foreign_transaction("delete a table", 1, |_, writer, sequence| {
            writer.begin(Command::DelTable.message_type(), 0, sequence, family, 0);
            writer.text(1, table);
        });
        match done {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes rules and chains in one transaction, in the order given.
    pub fn remove_foreign(&mut self, removals: &[Removal]) -> Result<(), NetlinkError> {
        if removals.is_empty() {
            return Ok(());
        }
        self.foreign_transaction("remove rules and chains", removals.len(), |i, writer, sequence| {
            write(&removals[i], writer, sequence);
        })
    }

    /// A transaction of `count` messages that `fill` begins and fills.
    fn foreign_transaction(
        &mut self,
        operation: &'static str,
        count: usize,
        mut fill: impl FnMut(usize, &mut Writer, u32),
    ) -> Result<(), NetlinkError> {
        const BEGIN: u16 = 0x10;
        const END: u16 = 0x11;
        let mut writer = Writer::default();
        writer.begin(BEGIN, 0, self.socket.next_sequence(), 0, SUBSYSTEM);
        writer.end();
        let mut last = 0;
        for i in 0..count {
            last = self.socket.next_sequence();
            fill(i, &mut writer, last);
            writer.end();
        }
        acknowledge(&mut writer);
        writer.begin(END, 0, self.socket.next_sequence(), 0, SUBSYSTEM);
        writer.end();
        self.socket.send(writer.bytes())?;
        let (mut acknowledged, mut failure) = (false, None);
        while self.socket.receive(false, |message| match message.error() {
            Some((0, _)) => acknowledged |= message.sequence == last,
            Some((code, detail)) if failure.is_none() => {
                let source = io::Error::from_raw_os_error(code);
                failure = Some(NetlinkError::Refused { operation: operation.into(), source, detail });
            }
            _ => {}
        })? {}
        match failure {
            Some(error) => Err(error),
            None if acknowledged => Ok(()),
            None => Err(NetlinkError::Malformed { operation }),
        }
    }
}

/// Where a list of expressions jumps or goes to.
fn target(expressions: &[u8]) -> Option<String> {
    attrs(expressions).find_map(|expression| {
        find(expression.value, 1).filter(|name| name.text() == "immediate")?;
        let data = find(find(expression.value, 2)?.value, 2)?;
        Some(find(find(data.value, 2)?.value, 2)?.text().to_owned())
    })
}

fn write(removal: &Removal, writer: &mut Writer, sequence: u32) {
    let mut begin = |command: Command, family: u8, table: &str| {
        writer.begin(command.message_type(), 0, sequence, family, 0);
        writer.text(1, table);
    };
    match removal {
        Removal::Rule { family, table, chain, handle } => {
            begin(Command::DelRule, *family, table);
            writer.text(2, chain);
            writer.u64(3, *handle);
        }
        Removal::Rules { family, table, chain } => {
            begin(Command::DelRule, *family, table);
            writer.text(2, chain);
        }
        Removal::Chain { family, table, chain } => {
            begin(Command::DelChain, *family, table);
            writer.text(3, chain);
        }
    }
}
