//! Programs at interfaces on kernels without TCX (before 6.6): filters of the qdisc clsact, by
//! netlink.
//!
//! They have no names in the bpf filesystem: the interface holds them, and they are known by their
//! own name and handle.

use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use sluice_link::{Netlink, NetlinkError, Request};

use super::links::Done;
use super::load::Program;

/// The parents of the qdisc's filters, ingress and egress.
const PARENTS: [TcHandle; 2] = [
    TcHandle { minor: TcHandle::MIN_INGRESS, ..TcHandle::CLSACT },
    TcHandle { minor: TcHandle::MIN_EGRESS, ..TcHandle::CLSACT },
];
/// Of our filters: others, which mostly take 1 or none, can stand before and behind.
const PRIORITY: u32 = 7;
const HANDLE: TcHandle = TcHandle { major: 0, minor: 0x51ce };
const NAME: &str = "sluice";

/// Sees to it that the interface has the program at ingress (0) or egress (1).
pub(super) fn ensure(index: u32, direction: usize, program: &Program) -> Result<Done, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let found = ours(&mut netlink, index, direction)?;
    if found == Some(program.id) {
        return Ok(Done::Kept);
    }
    if found.is_none() {
        add_qdisc(&mut netlink, index)?;
    }
    let mut filter = filter(index, PARENTS[direction]);
    filter.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(program.fd().as_raw_fd() as u32)),
        TcOption::Bpf(TcFilterBpfOption::ProgName(NAME.to_owned())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    let request = Request::new(RouteNetlinkMessage::NewTrafficFilter(filter), NLM_F_CREATE | NLM_F_REPLACE);
    netlink.apply(vec![request.named("attach a filter")])?;
    Ok(if found.is_some() { Done::Updated } else { Done::Attached })
}

/// Removes our filters from an interface; the qdisc stays, because others may use it too. Returns
/// whether there were any.
pub(super) fn remove(index: u32) -> Result<bool, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let mut any = false;
    for (direction, parent) in PARENTS.into_iter().enumerate() {
        if ours(&mut netlink, index, direction)?.is_none() {
            continue;
        }
        any = true;
        let request = Request::new(RouteNetlinkMessage::DelTrafficFilter(filter(index, parent)), 0)
            .is_done_by(&[libc::ENOENT, libc::ENODEV]);
        netlink.apply(vec![request.named("detach a filter")])?;
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

/// The program of our filter, if there is one.
fn ours(netlink: &mut Netlink, index: u32, direction: usize) -> Result<Option<u32>, NetlinkError> {
    let mut question = of(index);
    question.header.parent = PARENTS[direction];
    let question = RouteNetlinkMessage::GetTrafficFilter(question);
    let found = netlink.list_readable("list filters", &question, |answer| match answer {
        RouteNetlinkMessage::NewTrafficFilter(filter) if filter.header.handle == HANDLE => {
            program_of(&filter)
        }
        _ => None,
    });
    match found {
        // Without the qdisc there is no such parent.
        Err(error) if matches!(error.errno(), Some(libc::EINVAL | libc::ENOENT)) => Ok(None),
        found => Ok(found?.pop()),
    }
}

/// The program of a filter by our name. One that says no number has 0.
fn program_of(filter: &TcMessage) -> Option<u32> {
    let options = filter.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let name = TcOption::Bpf(TcFilterBpfOption::ProgName(NAME.to_owned()));
    let number = options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(number)) => Some(*number),
        _ => None,
    });
    options.contains(&name).then_some(number.unwrap_or(0))
}

fn add_qdisc(netlink: &mut Netlink, index: u32) -> Result<(), NetlinkError> {
    let mut qdisc = of(index);
    // Handles of qdiscs have no minor number.
    qdisc.header.handle = TcHandle { minor: 0, ..TcHandle::CLSACT };
    qdisc.header.parent = TcHandle::CLSACT;
    qdisc.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    let message = RouteNetlinkMessage::NewQueueDiscipline(qdisc);
    let request = Request::new(message, NLM_F_CREATE | NLM_F_EXCL).is_done_by(&[libc::EEXIST]);
    netlink.apply(vec![request.named("add qdisc clsact (sch_clsact)")])
}

/// What our filter at one of the parents is known by.
fn filter(index: u32, parent: TcHandle) -> TcMessage {
    let mut filter = of(index);
    filter.header.handle = HANDLE;
    filter.header.parent = parent;
    // Priority, and `ETH_P_ALL` in network order.
    filter.header.info = PRIORITY << 16 | u32::from(3u16.to_be());
    filter.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
    filter
}

fn of(index: u32) -> TcMessage {
    TcMessage::with_index(index as i32)
}
