//! Programs at interfaces on kernels without TCX (before 6.6): filters of the qdisc clsact, by netlink.
//!
//! They have no names in the bpf filesystem: the interface holds them, and they are known by their own name and handle.
//! Numbers: linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h.

use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};

use super::links::Done;
use super::load::Program;
use crate::netlink::{NetfilterSocket, NetlinkError, Writer, attrs, find};

const NEW_QDISC: u16 = 36;
const NEW_FILTER: u16 = 44;
const DELETE_FILTER: u16 = 45;
const GET_FILTER: u16 = 46;
/// `TC_H_CLSACT`; its handle; and the parents of its filters, ingress and egress.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const PARENTS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const BPF_FD: u16 = 6;
const BPF_NAME: u16 = 7;
const BPF_FLAGS: u16 = 8;
const BPF_ID: u16 = 11;
const DIRECT_ACTION: u32 = 1;
/// Of our filters: others, which mostly take 1 or none, can stand before and behind.
const PRIORITY: u32 = 7;
const HANDLE: u32 = 0x51ce;
const NAME: &str = "sluice";
/// `struct tcmsg`.
const HEADER: usize = 20;

/// Sees to it that the interface has the program at ingress (0) or egress (1).
pub(super) fn ensure(index: u32, direction: usize, program: &Program) -> Result<Done, NetlinkError> {
    let mut socket = NetfilterSocket::route()?;
    let found = ours(&mut socket, index, direction)?;
    if found == Some(program.id) {
        return Ok(Done::Kept);
    }
    if found.is_none() {
        add_qdisc(&mut socket, index)?;
    }
    socket.request("attach a filter", NEW_FILTER, 0, |writer| {
        writer.add_flags(NLM_F_CREATE | NLM_F_REPLACE);
        head(writer, index, HANDLE, PARENTS[direction], filter_info());
        writer.text(KIND, "bpf");
        let options = writer.nest(OPTIONS);
        writer.attr(BPF_FD, &(program.fd().as_raw_fd() as u32).to_ne_bytes());
        writer.text(BPF_NAME, NAME);
        writer.attr(BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes());
        writer.close(options);
    })?;
    Ok(if found.is_some() { Done::Updated } else { Done::Attached })
}

/// Removes our filters from an interface; the qdisc stays, because others may use it too. Returns whether there were any.
pub(super) fn remove(index: u32) -> Result<bool, NetlinkError> {
    let mut socket = NetfilterSocket::route()?;
    let mut any = false;
    for (direction, parent) in PARENTS.into_iter().enumerate() {
        if ours(&mut socket, index, direction)?.is_none() {
            continue;
        }
        any = true;
        let answer = socket.request("detach a filter", DELETE_FILTER, 0, |writer| {
            head(writer, index, HANDLE, parent, filter_info());
            writer.text(KIND, "bpf");
        });
        match answer {
            Err(error) if !matches!(error.errno(), Some(libc::ENOENT | libc::ENODEV)) => return Err(error),
            _ => {}
        }
    }
    Ok(any)
}

/// Removes our filters from all interfaces of this network namespace.
pub(super) fn remove_everywhere() -> Result<(), NetlinkError> {
    for index in interfaces() {
        remove(index)?;
    }
    Ok(())
}

fn interfaces() -> Vec<u32> {
    let mut found = Vec::new();
    // SAFETY: no arguments; the list that is returned belongs to us until it is freed below.
    let list = unsafe { libc::if_nameindex() };
    if list.is_null() {
        return found;
    }
    let mut at = list;
    // SAFETY: the list ends with an entry whose index is zero, and we go no further.
    while let entry = unsafe { &*at }
        && entry.if_index != 0
    {
        found.push(entry.if_index);
        // SAFETY: there is at least the end behind an entry that is not the end.
        at = unsafe { at.add(1) };
    }
    // SAFETY: it came from if_nameindex and is used no more.
    unsafe { libc::if_freenameindex(list) };
    found
}

fn ours(socket: &mut NetfilterSocket, index: u32, direction: usize) -> Result<Option<u32>, NetlinkError> {
    let mut found = None;
    let asked = socket.dump(
        "list filters",
        GET_FILTER,
        0,
        |writer| head(writer, index, 0, PARENTS[direction], 0),
        |message| {
            let handle =
                message.body.get(8..12).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
            let attributes = message.body.get(HEADER..).unwrap_or_default();
            let Some(options) = find(attributes, OPTIONS) else { return };
            let is_ours = attrs(options.value).any(|attr| attr.kind == BPF_NAME && attr.text() == NAME);
            if is_ours && handle == Some(HANDLE) {
                let id = find(options.value, BPF_ID).and_then(|id| id.value.try_into().ok());
                found = Some(id.map_or(0, u32::from_ne_bytes));
            }
        },
    );
    match asked {
        // Without the qdisc there is no such parent.
        Err(error) if matches!(error.errno(), Some(libc::EINVAL | libc::ENOENT)) => Ok(None),
        other => other.map(|()| found),
    }
}

fn add_qdisc(socket: &mut NetfilterSocket, index: u32) -> Result<(), NetlinkError> {
    const EXCLUSIVE: u16 = 0x200; // NLM_F_EXCL
    let answer = socket.request("add qdisc clsact (sch_clsact)", NEW_QDISC, 0, |writer| {
        writer.add_flags(NLM_F_CREATE | EXCLUSIVE);
        head(writer, index, CLSACT_HANDLE, CLSACT, 0);
        writer.text(KIND, "clsact");
    });
    match answer {
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// What follows the first word of `struct tcmsg`.
fn head(writer: &mut Writer, index: u32, handle: u32, parent: u32, info: u32) {
    for word in [index, handle, parent, info] {
        writer.raw(&word.to_ne_bytes());
    }
}

/// Priority, and `ETH_P_ALL` in network order.
fn filter_info() -> u32 {
    PRIORITY << 16 | u32::from(3u16.to_be())
}
