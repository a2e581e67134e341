//! The tables of the kernel's own iptables (not of its nf_tables variant). Numbers:
//! linux/netfilter/x_tables.h and linux/netfilter_ipv4/ip_tables.h; those of IPv6 are the same.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;

use sluice_core::net::Family;

const SET_REPLACE: i32 = 64;
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// Size of `struct ipt_getinfo`, whose last word is the size of the entries.
const INFO: usize = 84;
/// Size of `struct ipt_get_entries` without entries: name and size, aligned.
const ENTRIES: usize = 40;
const NAME: usize = 32;

/// The tables that are in use in this network namespace.
pub fn legacy_tables(family: Family) -> io::Result<Vec<String>> {
    let file = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Whether a table has a chain with a name that `wanted` accepts.
pub fn has_chain(family: Family, table: &str, wanted: impl Fn(&str) -> bool) -> io::Result<bool> {
    let port = Port::open(family)?;
    let bytes = port.entries(table, &port.info(table)?)?;
    let mut at = 0;
    while let Some(entry) = entry(&bytes, at, Layout::of(family)) {
        if entry.head.is_some_and(|name| wanted(&name)) {
            return Ok(true);
        }
        at = entry.next;
    }
    Ok(false)
}

/// Makes rules of built-in chains jump no more to chains that `wanted` accepts: such a rule goes on
/// to the next one instead. Returns how many there were.
///
/// The table keeps its layout, so this is one replacement of the table by itself with other jump
/// distances. The kernel counts packets from zero afterwards.
pub fn disconnect(family: Family, table: &str, wanted: impl Fn(&str) -> bool) -> io::Result<usize> {
    const ATTEMPTS: u32 = 5;
    let mut attempt = 1;
    loop {
        match try_disconnect(family, table, &wanted) {
            // The table changed meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && attempt < ATTEMPTS => attempt += 1,
            other => return other,
        }
    }
}

fn try_disconnect(family: Family, table: &str, wanted: impl Fn(&str) -> bool) -> io::Result<usize> {
    let port = Port::open(family)?;
    let info = port.info(table)?;
    let mut entries = port.entries(table, &info)?;
    let changed = fall_through(&mut entries, Layout::of(family), wanted);
    if changed > 0 {
        port.replace(&info, &entries)?;
    }
    Ok(changed)
}

/// Where in an entry its parts are: `struct ipt_entry`, `struct ip6t_entry`.
#[derive(Clone, Copy)]
struct Layout {
    /// The offset of the target; the length of the entry follows.
    target_offset: usize,
}

impl Layout {
    fn of(family: Family) -> Layout {
        Layout { target_offset: if family == Family::V4 { 88 } else { 140 } }
    }
}

/// A rule or the head of a chain.
struct Entry {
    at: usize,
    next: usize,
    /// Where the verdict of a standard target is.
    verdict_at: Option<usize>,
    /// The chain that begins here.
    head: Option<String>,
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    let half = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(usize::from(u16::from_ne_bytes(half)))
}

fn word(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The entry at an offset; none behind the last, or if it is malformed.
fn entry(bytes: &[u8], at: usize, layout: Layout) -> Option<Entry> {
    let target = at + half(bytes, at + layout.target_offset)?;
    let next = at + half(bytes, at + layout.target_offset + 2)?;
    let text = |at: usize, room: usize| {
        let text = bytes.get(at..at + room)?.split(|byte| *byte == 0).next()?;
        std::str::from_utf8(text).ok()
    };
    let name = text(target + 2, 29)?;
    let data = target + TARGET;
    let head = if name == "ERROR" { text(data, 30).map(str::to_owned) } else { None };
    (next > at).then_some(Entry { at, next, verdict_at: name.is_empty().then_some(data), head })
}

/// Size of `struct xt_entry_target` without data.
const TARGET: usize = 32;

/// Points the jumps of built-in chains to chains that `wanted` accepts to the next entry.
fn fall_through(bytes: &mut [u8], layout: Layout, wanted: impl Fn(&str) -> bool) -> usize {
    let (mut rules, mut heads) = (Vec::new(), Vec::new());
    let mut at = 0;
    while let Some(entry) = entry(bytes, at, layout) {
        at = entry.next;
        match entry.head {
            Some(name) => heads.push((entry.at, wanted(&name))),
            // Built-in chains come before all others.
            None if heads.is_empty() => rules.extend(entry.verdict_at.map(|verdict| (verdict, entry.next))),
            None => {}
        }
    }
    let is_wanted = |at: usize| {
        let before = heads.partition_point(|(head, _)| *head <= at);
        heads[..before].last().is_some_and(|(_, wanted)| *wanted)
    };
    let mut changed = 0;
    for (at, next) in rules {
        // Negative verdicts are ACCEPT, DROP and RETURN.
        let jump = word(bytes, at).and_then(|verdict| usize::try_from(verdict).ok());
        if jump.is_some_and(is_wanted)
            && let Some(verdict) = bytes.get_mut(at..at + 4)
            && let Ok(next) = i32::try_from(next)
        {
            verdict.copy_from_slice(&next.to_ne_bytes());
            changed += 1;
        }
    }
    changed
}

/// A socket by which tables of a family are read and replaced.
struct Port {
    socket: UdpSocket,
    level: i32,
}

impl Port {
    fn open(family: Family) -> io::Result<Port> {
        let (socket, level) = match family {
            Family::V4 => (UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?, libc::IPPROTO_IP),
            Family::V6 => (UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?, libc::IPPROTO_IPV6),
        };
        Ok(Port { socket, level })
    }

    /// `struct ipt_getinfo`.
    fn info(&self, table: &str) -> io::Result<Vec<u8>> {
        let mut info = vec![0u8; INFO];
        name(&mut info, table)?;
        self.get(GET_INFO, &mut info)?;
        Ok(info)
    }

    /// The entries of a table, as the kernel keeps them.
    fn entries(&self, table: &str, info: &[u8]) -> io::Result<Vec<u8>> {
        let size = word(info, INFO - 4).and_then(|size| usize::try_from(size).ok()).unwrap_or_default();
        let mut entries = vec![0u8; ENTRIES + size];
        name(&mut entries, table)?;
        entries[NAME..NAME + 4].copy_from_slice(&info[INFO - 4..]);
        self.get(GET_ENTRIES, &mut entries)?;
        Ok(entries.split_off(ENTRIES))
    }

    /// Replaces a table by entries of the same layout. `info` is what the kernel said of it.
    fn replace(&self, info: &[u8], entries: &[u8]) -> io::Result<()> {
        let count = word(info, INFO - 8).and_then(|count| usize::try_from(count).ok()).unwrap_or_default();
        // The kernel writes the counters of the old rules, 16 bytes for each, to this memory.
        let mut counters = vec![0u8; count * 16];
        // `struct ipt_replace`: name, hooks, number and size of entries, where the hooks begin and
        // end, counters.
        let mut request = info[..NAME + 4].to_vec();
        request.extend_from_slice(&info[INFO - 8..]);
        request.extend_from_slice(&info[NAME + 4..INFO - 8]);
        request.extend_from_slice(&info[INFO - 8..INFO - 4]);
        request.resize(request.len().next_multiple_of(8), 0);
        request.extend_from_slice(&(counters.as_mut_ptr() as usize).to_ne_bytes());
        request.extend_from_slice(entries);
        let length = libc::socklen_t::try_from(request.len()).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open for the life of `socket`; `request` and `length` describe
        // memory that the kernel reads, and `counters`, which lives until the end, has room for
        // what it writes.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                self.level,
                SET_REPLACE,
                request.as_ptr().cast(),
                length,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn get(&self, option: i32, buffer: &mut [u8]) -> io::Result<()> {
        let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open for the life of `socket`; `buffer` and `length` describe
        // memory that the kernel may write to.
        let result = unsafe {
            let descriptor = self.socket.as_raw_fd();
            libc::getsockopt(descriptor, self.level, option, buffer.as_mut_ptr().cast(), &raw mut length)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn name(buffer: &mut [u8], table: &str) -> io::Result<()> {
    let room = buffer.get_mut(..table.len()).filter(|room| room.len() < NAME);
    room.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(table.as_bytes());
    Ok(())
}
