//! Datagrams in parts, as routers make them, sent by a raw socket in any order.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const HOPS: u8 = 64;

/// A UDP datagram from its own header on.
pub(super) fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 8).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(payload.len() + 8);
    for half in [from.port(), to.port(), length, 0] {
        bytes.extend(half.to_be_bytes());
    }
    bytes.extend(payload);
    let pseudo = [octets(from.ip()), octets(to.ip()), vec![0, UDP], length.to_be_bytes().to_vec()].concat();
    let sum = !folded(&[pseudo, bytes.clone()].concat());
    let sum = if sum == 0 { u16::MAX } else { sum };
    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn folded(bytes: &[u8]) -> u16 {
    let halves = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = halves.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(0)
}

/// The parts of a datagram, each from its IP header on. `each` is a multiple of 8.
fn cut(from: IpAddr, to: IpAddr, datagram: &[u8], each: usize, id: u16) -> Vec<Vec<u8>> {
    let pieces: Vec<&[u8]> = datagram.chunks(each).collect();
    let last = pieces.len().saturating_sub(1);
    let header = |at: usize, piece: &[u8]| {
        let place = u16::try_from(at * each / 8).unwrap_or(0);
        let length = u16::try_from(piece.len()).unwrap_or(0);
        if from.is_ipv4() {
            header4(id, place, at < last, length)
        } else {
            header6(id, place, at < last, length)
        }
    };
    let whole = |(at, piece): (usize, &&[u8])| {
        let (before, after) = header(at, piece);
        [before, octets(from), octets(to), after, piece.to_vec()].concat()
    };
    pieces.iter().enumerate().map(whole).collect()
}

/// What is before and behind the addresses. The kernel fills the checksum in.
fn header4(id: u16, place: u16, more: bool, length: u16) -> (Vec<u8>, Vec<u8>) {
    let [id, place] = [id, place | u16::from(more) << 13].map(u16::to_be_bytes);
    let length = (length + 20).to_be_bytes();
    let before = [[0x45, 0], length, id, place, [HOPS, UDP], [0, 0]].concat();
    (before, vec![])
}

fn header6(id: u16, place: u16, more: bool, length: u16) -> (Vec<u8>, Vec<u8>) {
    let length = (length + 8).to_be_bytes();
    let before = [[0x60, 0], [0, 0], length, [FRAGMENT, HOPS]].concat();
    let after = [[UDP, 0], (place << 3 | u16::from(more)).to_be_bytes(), [0, 0], id.to_be_bytes()].concat();
    (before, after)
}

/// Sends datagrams in parts of `each` bytes, in the order given: each time that part of every one.
/// With `alike`, they have the same identification, so that only their sources tell them apart.
pub(super) fn send(
    datagrams: &[(IpAddr, Vec<u8>)],
    alike: bool,
    to: IpAddr,
    each: usize,
    order: &[usize],
    gap: Duration,
) -> io::Result<()> {
    static IDS: AtomicU16 = AtomicU16::new(1);
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    // What is sent by this protocol has its IP header with it (raw(7)).
    let fd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    let ids = || IDS.fetch_add(1, Ordering::Relaxed);
    let same = ids();
    let id = || if alike { same } else { ids() };
    let all: Vec<_> = datagrams.iter().map(|(from, datagram)| cut(*from, to, datagram, each, id())).collect();
    let to = SockaddrStorage::from(SocketAddr::new(to, 0));
    for (turn, number) in order.iter().enumerate() {
        if turn > 0 && !gap.is_zero() {
            thread::sleep(gap);
        }
        for parts in &all {
            let part = parts.get(*number).ok_or_else(|| io::Error::other(format!("no part {number}")))?;
            sendto(fd.as_raw_fd(), part, &to, MsgFlags::empty())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_the_datagram_again() {
        for (from, to, header) in [("10.0.0.1:7", "10.0.0.2:9", 20), ("[fd00::1]:7", "[fd00::2]:9", 48)] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let datagram = udp(from, to, &[7; 3_001]);
            let pseudo = [octets(from.ip()), octets(to.ip()), vec![0, UDP], vec![11, 193]].concat();
            assert_eq!(folded(&[pseudo, datagram.clone()].concat()), 0xffff, "the sum is right");
            let parts = cut(from.ip(), to.ip(), &datagram, 1_400, 5);
            assert_eq!(
                parts.iter().map(Vec::len).collect::<Vec<_>>(),
                [1_400, 1_400, 209].map(|l| l + header)
            );
            let again: Vec<u8> = parts.iter().flat_map(|part| part[header..].to_vec()).collect();
            assert_eq!(again, datagram);
        }
    }
}
