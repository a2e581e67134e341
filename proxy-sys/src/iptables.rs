//! What chains the kernel's own iptables (not its nf_tables variant) has. Numbers: linux/netfilter/x_tables.h and
//! linux/netfilter_ipv4/ip_tables.h; those of IPv6 are the same.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;

use sluice_core::net::Family;

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
    let entries = entries(family, table)?;
    let starts = (0..entries.len()).filter(|at| *at == 0 || entries[at - 1] == 0);
    Ok(starts.into_iter().any(|at| {
        // Chain heads carry their name in a target of 30 bytes, ended by a zero.
        let text = entries[at..].split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(text).is_ok_and(&wanted)
    }))
}

/// The entries of a table, as the kernel keeps them.
fn entries(family: Family, table: &str) -> io::Result<Vec<u8>> {
    let (socket, level) = match family {
        Family::V4 => (UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?, libc::IPPROTO_IP),
        Family::V6 => (UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?, libc::IPPROTO_IPV6),
    };
    let mut info = vec![0u8; INFO];
    name(&mut info, table)?;
    get(&socket, level, GET_INFO, &mut info)?;
    let word = info.last_chunk::<4>().copied().unwrap_or_default();
    let size = u32::from_ne_bytes(word);
    let mut entries = vec![0u8; ENTRIES + size as usize];
    name(&mut entries, table)?;
    entries[NAME..NAME + 4].copy_from_slice(&word);
    get(&socket, level, GET_ENTRIES, &mut entries)?;
    Ok(entries.split_off(ENTRIES))
}

fn name(buffer: &mut [u8], table: &str) -> io::Result<()> {
    let room = buffer.get_mut(..table.len()).filter(|room| room.len() < NAME);
    room.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(table.as_bytes());
    Ok(())
}

fn get(socket: &UdpSocket, level: i32, option: i32, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the life of `socket`; `buffer` and `length` describe memory that the
    // kernel may write to.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
