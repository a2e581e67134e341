//! Tables of other programs: what their chains are and where their rules lead, and the removal of some of them.

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

impl Nft {
    /// The chains of all `ip` and `ip6` tables.
    pub fn foreign_chains(&mut self) -> Result<Vec<ForeignChain>, NetlinkError> {
        let mut found = Vec::new();
        for family in FAMILIES {
            let kind = Command::GetChain.message_type();
            self.socket.dump(
                "list chains",
                kind,
                family,
                |_| {},
                |message| {
                    let attributes = message.attributes();
                    let text = |kind| find(attributes, kind).map(|a| a.text().to_owned()).unwrap_or_default();
                    let is_base = find(attributes, 4).is_some();
                    found.push(ForeignChain { family, table: text(1), name: text(3), is_base });
                },
            )?;
        }
        Ok(found)
    }

    /// The rules of all `ip` and `ip6` tables that lead to other chains.
    pub fn foreign_jumps(&mut self) -> Result<Vec<ForeignJump>, NetlinkError> {
        let mut found = Vec::new();
        for family in FAMILIES {
            let kind = Command::GetRule.message_type();
            self.socket.dump(
                "list rules",
                kind,
                family,
                |_| {},
                |message| {
                    let attributes = message.attributes();
                    let text = |kind| find(attributes, kind).map(|a| a.text().to_owned()).unwrap_or_default();
                    let Some(target) = find(attributes, 4).and_then(|list| target(list.value)) else {
                        return;
                    };
                    let handle =
                        find(attributes, 3).and_then(|a| Some(u64::from_be_bytes(a.value.try_into().ok()?)));
                    let handle = handle.unwrap_or_default();
                    found.push(ForeignJump { family, table: text(1), chain: text(2), handle, target });
                },
            )?;
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
