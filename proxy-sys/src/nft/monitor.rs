//! Notice of changes that others make to a table of ours.

use super::SUBSYSTEM;
use crate::netlink::{NetfilterSocket, NetlinkError, find};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

/// Something happened to the table that we did not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Somebody else changed it.
    Changed,
    /// Notifications were lost: it may have been changed.
    Lost,
}

/// Listens for nf_tables notifications.
pub struct Monitor {
    socket: NetfilterSocket,
    table: &'static str,
    /// The port id whose changes are our own.
    own: u32,
}

impl Monitor {
    /// Opens a monitor of a table that ignores changes made through the port `own`.
    pub fn open(table: &'static str, own: u32) -> Result<Self, NetlinkError> {
        let mut socket = NetfilterSocket::open()?;
        socket.join(GROUP)?;
        Ok(Monitor { socket, table, own })
    }

    /// Waits for the next notice.
    pub fn wait(&mut self) -> Result<Notice, NetlinkError> {
        loop {
            let (mut foreign, own, name) = (false, self.own, self.table);
            let received = self.socket.receive(true, |message| {
                let ours = message.kind >> 8 == SUBSYSTEM
                    && find(message.attributes(), 1).is_some_and(|table| table.text() == name);
                foreign |= ours && message.port != own;
            });
            match received {
                Ok(_) if foreign => return Ok(Notice::Changed),
                Ok(_) => {}
                Err(NetlinkError::Lost { .. }) => return Ok(Notice::Lost),
                Err(error) => return Err(error),
            }
        }
    }
}
