//! Sockets of processes, found and ended through sock_diag.
//!
//! Numbers and layouts: linux/sock_diag.h, linux/inet_diag.h.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use sluice_link::netns;

use crate::netlink::{NetfilterSocket, NetlinkError, uninterrupted};

const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const FAMILIES: [u8; 2] = [libc::AF_INET as u8, libc::AF_INET6 as u8];
/// Sockets that are connected.
const ESTABLISHED: u32 = 1 << 1;
/// `struct inet_diag_sockid`, in answers behind 4 bytes, in requests behind 8.
const ID: std::ops::Range<usize> = 4..52;

/// A UDP socket that is connected to some place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connected {
    /// The socket's cookie (`SO_COOKIE`).
    pub cookie: u64,
    /// Where it is connected to.
    pub remote: (IpAddr, u16),
}

/// What became of sockets that should end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destroyed {
    /// Those that have ended.
    pub ended: BTreeSet<Connected>,
    /// Those that are still connected, because the kernel did not end them.
    pub left: BTreeSet<Connected>,
    /// The kernel cannot end sockets (CONFIG_INET_DIAG_DESTROY).
    pub is_unsupported: bool,
    /// Why sockets may have been missed: a network namespace could not be entered or looked
    /// through.
    pub unread: Option<String>,
}

/// Ends those of these UDP sockets that are still connected there, in whatever network namespace
/// they are. Their processes see ECONNABORTED. Namespaces in which that fails do not keep it from
/// being done in others.
pub fn destroy_udp(sockets: &BTreeSet<Connected>) -> Result<Destroyed, NetlinkError> {
    let wanted = sockets.clone();
    let work = move || destroy_here(&wanted);
    let mut all = Destroyed::default();
    for here in netns::in_each(netns::all(), work).map_err(thread_failed)? {
        all.take(here.map_err(thread_failed).flatten());
    }
    Ok(all)
}

impl Destroyed {
    /// Adds what was done in a namespace.
    fn take(&mut self, here: Result<Destroyed, NetlinkError>) {
        match here {
            Ok(here) => {
                self.ended.extend(here.ended);
                self.left.extend(here.left);
                self.is_unsupported |= here.is_unsupported;
                self.unread = self.unread.take().or(here.unread);
            }
            Err(error) => {
                self.unread.get_or_insert_with(|| error.to_string());
            }
        }
    }
}

fn thread_failed(source: std::io::Error) -> NetlinkError {
    NetlinkError::Socket { operation: "work in other network namespaces", source }
}

/// [`destroy_udp`], in this thread's namespace only.
fn destroy_here(wanted: &BTreeSet<Connected>) -> Result<Destroyed, NetlinkError> {
    let mut found: Vec<(u8, Vec<u8>, Connected)> = Vec::new();
    each(libc::IPPROTO_UDP as u8, ESTABLISHED, |answer| {
        let Some(connected) = connected(answer) else { return };
        if let (true, Some(id), Some(family)) = (wanted.contains(&connected), answer.get(ID), answer.first())
        {
            found.push((*family, id.to_vec(), connected));
        }
    })?;
    let mut done = Destroyed::default();
    let mut socket = NetfilterSocket::sock_diag()?;
    for (family, id, connected) in found {
        let head = [family, libc::IPPROTO_UDP as u8, 0, 0];
        let answer = socket.request("end a socket", DESTROY, head, |writer| {
            writer.raw(&ESTABLISHED.to_ne_bytes());
            writer.raw(&id);
        });
        match answer {
            Ok(()) => {
                done.ended.insert(connected);
            }
            Err(error) if error.errno() == Some(libc::ENOENT) => {}
            Err(error) => {
                done.left.insert(connected);
                if error.errno() == Some(libc::EOPNOTSUPP) {
                    done.is_unsupported = true;
                } else {
                    done.unread.get_or_insert_with(|| error.to_string());
                }
            }
        }
    }
    Ok(done)
}

/// Gives each socket of a protocol to `each`, as the kernel describes it.
fn each(protocol: u8, states: u32, mut each: impl FnMut(&[u8])) -> Result<(), NetlinkError> {
    const ATTEMPTS: u32 = 5;
    let mut socket = NetfilterSocket::sock_diag()?;
    for family in FAMILIES {
        let listed = uninterrupted(ATTEMPTS, || {
            let fill = |writer: &mut crate::netlink::Writer| {
                writer.raw(&states.to_ne_bytes());
                writer.raw(&[0; ID.end - ID.start]);
            };
            let head = [family, protocol, 0, 0];
            socket.dump("list sockets", BY_FAMILY, head, fill, |message| each(message.body))
        });
        match listed {
            // No sockets of this kind can be listed.
            Err(error) if error.errno() == Some(libc::ENOENT) => {}
            other => other?,
        }
    }
    Ok(())
}

/// `idiag_cookie`: two words, the low one first.
fn cookie(answer: &[u8]) -> Option<u64> {
    let id = answer.get(ID)?;
    let word = |at: usize| Some(u64::from(u32::from_ne_bytes(id.get(at..at + 4)?.try_into().ok()?)));
    Some(word(40)? | word(44)? << 32)
}

fn connected(answer: &[u8]) -> Option<Connected> {
    let id = answer.get(ID)?;
    let port = u16::from_be_bytes(id.get(2..4)?.try_into().ok()?);
    let remote = id.get(20..36)?;
    let address = if answer.first() == Some(&FAMILIES[0]) {
        IpAddr::from(<[u8; 4]>::try_from(remote.get(..4)?).ok()?)
    } else {
        // A socket of IPv6 may be connected to an IPv4 address.
        IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(remote).ok()?)).to_canonical()
    };
    Some(Connected { cookie: cookie(answer)?, remote: (address, port) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_fails_keeps_nothing_from_others() {
        let socket = |cookie| Connected { cookie, remote: ("10.0.0.1".parse().unwrap(), 53) };
        let mut all = Destroyed::default();
        all.take(Err(thread_failed(std::io::Error::from_raw_os_error(libc::EPERM))));
        all.take(Ok(Destroyed {
            ended: [socket(1)].into(),
            left: [socket(2)].into(),
            ..Destroyed::default()
        }));
        assert_eq!((all.ended, all.left), ([socket(1)].into(), [socket(2)].into()));
        assert!(all.unread.unwrap().starts_with("work in other network namespaces"));
    }
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    fn own_cookie(socket: &UdpSocket) -> u64 {
        const SO_COOKIE: i32 = 57;
        let (mut cookie, mut len) = (0u64, 8);
        // SAFETY: the descriptor is open, and pointer and length describe one u64.
        let result = unsafe {
            let cookie = (&raw mut cookie).cast();
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_COOKIE, cookie, &raw mut len)
        };
        assert_eq!(result, 0);
        cookie
    }

    #[test]
    fn fuzz_sockets() {
        let mut body = vec![0; ID.end + 20];
        body[0] = libc::AF_INET6 as u8;
        let mut message = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
        message.resize(16, 0);
        message.extend(&body);
        assert!(connected(&body).is_some());
        crate::fuzz::bodies("sockets", &[(body.len(), message)], |body| {
            connected(body);
            cookie(body);
        });
    }

    #[test]
    fn connected_sockets_are_known_by_cookie_and_remote() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let remote = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(remote.local_addr().unwrap()).unwrap();
        let mut found = Vec::new();
        each(libc::IPPROTO_UDP as u8, ESTABLISHED, |answer| found.extend(connected(answer))).unwrap();
        let remote = remote.local_addr().unwrap();
        let expected = Connected { cookie: own_cookie(&socket), remote: (remote.ip(), remote.port()) };
        assert!(found.contains(&expected), "{found:?}");
        assert!(
            !found.iter().any(|known| known.cookie == own_cookie(&UdpSocket::bind("127.0.0.1:0").unwrap()))
        );
    }
}
