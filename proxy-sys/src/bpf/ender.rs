//! Ending flows from user space: a program in the kernel does it, which sees whether they are still
//! what was decided on.

use std::os::fd::{AsFd, OwnedFd};

use sluice_common::flow::{ENDED, ORDER_AT, Order};
use sluice_common::maps::MapName;
use sluice_common::programs::END_FLOW;

use super::load::{self, Program};
use super::plain::Plain;
use super::{BpfError, Directory, syscall};

/// The program that removes flows, with the flow table that it removes them from.
#[derive(Debug)]
pub struct Ender {
    program: OwnedFd,
}

impl Ender {
    pub(super) fn new(program: &Program) -> Result<Self, BpfError> {
        let failed = |source| BpfError::system(format!("open program {END_FLOW}"), source);
        Ok(Ender { program: program.fd().try_clone_to_owned().map_err(failed)? })
    }

    /// Loads the program for the flow table of a directory, whatever else is there.
    pub fn open(object: &[u8], directory: &Directory) -> Result<Self, BpfError> {
        let pin = |name| (name == MapName::Flows).then(|| directory.map(name));
        let programs = load::load(object, [END_FLOW], pin, false)?;
        Ender::new(programs.get(END_FLOW)?)
    }

    /// Removes a flow, unless somebody has used it since the order was made. Returns whether it is
    /// removed.
    pub fn end(&self, order: &Order) -> Result<bool, BpfError> {
        let mut packet = [0; ORDER_AT as usize + size_of::<Order>()];
        packet[ORDER_AT as usize..].copy_from_slice(order.bytes());
        let result = syscall::run_program(self.program.as_fd(), &packet);
        result
            .map(|result| result == ENDED)
            .map_err(|source| BpfError::system(format!("run program {END_FLOW}"), source))
    }
}
