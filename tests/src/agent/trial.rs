//! Trials: what sockets of some kind see of one experiment, in words by which two runs of it are
//! compared.

use std::io::{self, BufRead, BufReader, ErrorKind, IoSliceMut, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, bind, connect, recvmsg, setsockopt, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Deserialize, Serialize};

use super::protocol::Answer;
use super::{dial, parts};
use crate::target::Proto;

/// One experiment. All its sockets are of one namespace.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Trial {
    /// How long each answer is awaited
    pub wait_ms: u64,
    /// What is done
    pub what: What,
}

/// What is done in a trial.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum What {
    /// One UDP socket sends one datagram after the other, each when the one before has its answer
    Datagrams {
        /// The socket
        socket: Socket,
        /// What it sends
        sends: Vec<Datagram>,
    },
    /// One UDP socket of the family of its destinations sends datagrams without waiting, and then
    /// looks for their answers
    AtOnce(
        /// What it sends
        Vec<Datagram>,
    ),
    /// One datagram in parts
    Parts {
        /// Where to
        to: SocketAddr,
        /// Its size, without headers
        bytes: usize,
        /// Of each part, without its IP header
        each: usize,
        /// The order that parts are sent in: their numbers
        order: Vec<usize>,
        /// Time between two parts
        gap_ms: u64,
    },
    /// TCP connections of one port, made one after the other and kept; all that there are speak
    /// after each
    Streams {
        /// The client's port
        port: u16,
        /// Where they lead
        to: Vec<SocketAddr>,
        /// The size of each question and of each answer
        bytes: usize,
        /// Whether the client says with its question that it will ask no more
        last: bool,
    },
    /// Datagrams in parts from several addresses at once: the first part of each, the second of
    /// each, and so on
    Interleaved {
        /// Where from
        from: Vec<IpAddr>,
        /// Whether they have the same identification
        alike: bool,
        /// Where to
        to: SocketAddr,
        /// The size of each, without headers
        bytes: usize,
        /// Of each part, without its IP header
        each: usize,
    },
    /// Datagrams that may go one hop, two hops, and so on: who says that their time is up, or
    /// answers
    Traced {
        /// Where to
        to: SocketAddr,
        /// How many hops at most
        hops: u8,
    },
}

/// A kind of UDP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Socket {
    /// Of the family of its destination
    Plain,
    /// The same, connected to its first destination
    Connected,
    /// IPv6, for destinations of IPv4 too
    Mapped,
    /// Of IPv4, without a checksum of UDP
    Unsummed,
}

/// A question.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Datagram {
    /// Where to
    pub to: SocketAddr,
    /// Its size, without headers
    pub bytes: usize,
    /// The size of its answer
    pub answer: usize,
    /// Whether no router may cut either
    pub whole: bool,
}

/// What became of each question.
#[must_use]
pub fn run(trial: &Trial) -> Vec<String> {
    let wait = Duration::from_millis(trial.wait_ms);
    let done = match &trial.what {
        What::Datagrams { socket, sends } => datagrams(*socket, sends, wait),
        What::AtOnce(sends) => at_once(sends, wait),
        What::Parts { to, bytes, each, order, gap_ms } => {
            in_parts(*to, (*bytes, *each), order, Duration::from_millis(*gap_ms), wait)
        }
        What::Streams { port, to, bytes, last } => Ok(streams(*port, to, (*bytes, *last), wait)),
        What::Interleaved { from, alike, to, bytes, each } => {
            interleaved((from, *alike), *to, (*bytes, *each), wait)
        }
        What::Traced { to, hops } => (1..=*hops).map(|hops| traced(*to, hops, wait)).collect(),
    };
    done.unwrap_or_else(|error| vec![word(&error)])
}

/// The text of a question, which an echo server understands: how its answer is to be.
pub(super) fn question(bytes: usize, answer: usize, whole: bool, number: usize) -> Vec<u8> {
    let mut text = format!("sized {answer} {} {number} ", u8::from(whole)).into_bytes();
    text.resize(bytes.max(text.len()), b'.');
    text
}

/// How the sender of a question wants its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) bytes: usize,
    pub(super) whole: bool,
    pub(super) number: usize,
}

/// Reads a question; `None`: a plain one.
pub(super) fn wish(question: &[u8]) -> Option<Wish> {
    let begin = question.get(..question.len().min(64)).unwrap_or_default();
    let text = String::from_utf8_lossy(begin);
    let mut words = text.strip_prefix("sized ")?.split(' ');
    let mut number = || words.next()?.parse::<usize>().ok();
    let (bytes, whole, number) = (number()?, number()?, number()?);
    Some(Wish { bytes, whole: whole == 1, number })
}

/// An answer of the size wished for: the line, the question's number, and dots.
pub(super) fn fill(line: &str, wish: Wish) -> Vec<u8> {
    let mut text = format!("{} {} ", line.trim_end(), wish.number).into_bytes();
    text.resize(wish.bytes.max(text.len()), b'.');
    text
}

/// Sets whether routers may cut what a socket sends: as it is, or whole, and then cut by the
/// sender.
pub(super) fn let_cut(fd: RawFd, v6: bool, may_cut: bool) -> io::Result<()> {
    let (level, name, never, wants) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT, libc::IPV6_PMTUDISC_WANT)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT, libc::IP_PMTUDISC_WANT)
    };
    let value = if may_cut { never } else { wants };
    set(fd, (level, name), value)
}

fn set(fd: RawFd, (level, name): (i32, i32), value: i32) -> io::Result<()> {
    // SAFETY: the option's value is an int, which lives until the call returns.
    let result =
        unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size_of_val(&value) as u32) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn word(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused".to_owned(),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "timeout".to_owned(),
        _ if error.raw_os_error() == Some(libc::EINPROGRESS) => "timeout".to_owned(),
        _ => error.to_string(),
    }
}

fn any(v6: bool, port: u16) -> SocketAddr {
    let ip = if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    SocketAddr::new(ip, port)
}

fn datagrams(kind: Socket, sends: &[Datagram], wait: Duration) -> io::Result<Vec<String>> {
    let first = sends.first().ok_or_else(|| io::Error::other("nothing to send"))?;
    let v6 = first.to.is_ipv6() || kind == Socket::Mapped;
    let socket = dial::fresh_udp_socket(v6)?;
    match kind {
        Socket::Connected => socket.connect(first.to)?,
        Socket::Unsummed => set(socket.as_raw_fd(), (libc::SOL_SOCKET, libc::SO_NO_CHECK), 1)?,
        Socket::Plain | Socket::Mapped => {}
    }
    let mut seen = Vec::new();
    for (number, send) in sends.iter().enumerate() {
        let_cut(socket.as_raw_fd(), first.to.is_ipv6(), !send.whole)?;
        let text = question(send.bytes, send.answer, send.whole, number);
        let to = match send.to.ip() {
            IpAddr::V4(ip) if v6 => SocketAddr::new(ip.to_ipv6_mapped().into(), send.to.port()),
            _ => send.to,
        };
        let sent = if kind == Socket::Connected { socket.send(&text) } else { socket.send_to(&text, to) };
        let answer = sent.and_then(|_| receive(&socket, number, wait));
        seen.push(told(answer, send.to, send.answer));
    }
    Ok(seen)
}

fn at_once(sends: &[Datagram], wait: Duration) -> io::Result<Vec<String>> {
    let first = sends.first().ok_or_else(|| io::Error::other("nothing to send"))?;
    let socket = dial::fresh_udp_socket(first.to.is_ipv6())?;
    for (number, send) in sends.iter().enumerate() {
        socket.send_to(&question(send.bytes, send.answer, send.whole, number), send.to)?;
    }
    let end = Instant::now() + wait;
    let mut seen = vec!["timeout".to_owned(); sends.len()];
    for _ in sends {
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        socket.set_read_timeout(Some(left))?;
        let mut buffer = vec![0; 65_536];
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { break };
        let (answer, number) = read(&buffer[..length])?;
        if let (Some(word), Some(send)) = (seen.get_mut(number), sends.get(number)) {
            *word = told(Ok((answer, from, length)), send.to, send.answer);
        }
    }
    Ok(seen)
}

/// Waits for the answer to a question; those to others came too late and are passed over.
fn receive(socket: &UdpSocket, number: usize, wait: Duration) -> io::Result<(Answer, SocketAddr, usize)> {
    let end = Instant::now() + wait;
    let mut buffer = vec![0; 65_536];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let (length, from) = socket.recv_from(&mut buffer)?;
        let (answer, answered) = read(&buffer[..length])?;
        if answered == number {
            return Ok((answer, SocketAddr::new(from.ip().to_canonical(), from.port()), length));
        }
    }
}

/// Reads an answer and the number of its question.
fn read(bytes: &[u8]) -> io::Result<(Answer, usize)> {
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<Answer>();
    let answer = values.next().ok_or_else(|| io::Error::other("an empty answer"))??;
    let rest = String::from_utf8_lossy(bytes.get(values.byte_offset()..).unwrap_or_default());
    let number = rest.split(' ').nth(1).and_then(|word| word.parse().ok());
    Ok((answer, number.ok_or_else(|| io::Error::other("an answer without a number"))?))
}

/// What an answer is compared by. The port that a masquerading node chose is none of it.
fn told(answer: io::Result<(Answer, SocketAddr, usize)>, asked: SocketAddr, bytes: usize) -> String {
    match answer {
        Ok((answer, from, length)) => {
            let mut text = format!("{} saw {}", answer.pod, answer.peer);
            if from != asked {
                text += &format!(", answer from {from}");
            }
            if length != bytes.max(length.min(200)) {
                text += &format!(", {length} bytes");
            }
            text
        }
        Err(error) => word(&error),
    }
}

fn in_parts(
    to: SocketAddr,
    (bytes, each): (usize, usize),
    order: &[usize],
    gap: Duration,
    wait: Duration,
) -> io::Result<Vec<String>> {
    let socket = dial::fresh_udp_socket(to.is_ipv6())?;
    let probe = UdpSocket::bind(any(to.is_ipv6(), 0))?;
    probe.connect(to)?;
    let from = SocketAddr::new(probe.local_addr()?.ip(), socket.local_addr()?.port());
    let datagram = parts::udp(from, to, &question(bytes, 200, false, 0));
    parts::send(&[(from.ip(), datagram)], true, to.ip(), each, order, gap)?;
    Ok(vec![told(receive(&socket, 0, wait), to, 200)])
}

fn interleaved(
    (from, alike): (&[IpAddr], bool),
    to: SocketAddr,
    (bytes, each): (usize, usize),
    wait: Duration,
) -> io::Result<Vec<String>> {
    let (mut sockets, mut datagrams) = (Vec::new(), Vec::new());
    for (number, from) in from.iter().enumerate() {
        let socket = UdpSocket::bind(SocketAddr::new(*from, 0))?;
        let question = question(bytes, 200, false, number);
        datagrams.push((*from, parts::udp(socket.local_addr()?, to, &question)));
        sockets.push(socket);
    }
    let order: Vec<usize> = (0..(bytes + 8).div_ceil(each)).collect();
    parts::send(&datagrams, alike, to.ip(), each, &order, Duration::ZERO)?;
    Ok(sockets
        .iter()
        .enumerate()
        .map(|(number, socket)| told(receive(socket, number, wait), to, 200))
        .collect())
}

/// What becomes of a datagram that may go so many hops.
fn traced(to: SocketAddr, hops: u8, wait: Duration) -> io::Result<String> {
    let socket = dial::fresh_udp_socket(to.is_ipv6())?;
    let (level, limit, reports) = if to.is_ipv6() {
        (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, libc::IPV6_RECVERR)
    } else {
        (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_RECVERR)
    };
    set(socket.as_raw_fd(), (level, limit), hops.into())?;
    set(socket.as_raw_fd(), (level, reports), 1)?;
    socket.send_to(&question(100, 200, false, 0), to)?;
    let answer = receive(&socket, 0, wait);
    Ok(match &answer {
        Err(error) if error.kind() == ErrorKind::HostUnreachable => reporter(&socket)?,
        _ => told(answer, to, 200),
    })
}

/// Whom an error of a socket that has one comes from, and which it is.
fn reporter(socket: &UdpSocket) -> io::Result<String> {
    let mut buffer = [0; 512];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        let (error, by): (_, Option<IpAddr>) = match control {
            ControlMessageOwned::Ipv4RecvErr(error, by) => {
                (error, by.map(|by| Ipv4Addr::from(u32::from_be(by.sin_addr.s_addr)).into()))
            }
            ControlMessageOwned::Ipv6RecvErr(error, by) => {
                (error, by.map(|by| Ipv6Addr::from(by.sin6_addr.s6_addr).into()))
            }
            _ => continue,
        };
        let by = by.map_or("nobody".to_owned(), |by| by.to_string());
        return Ok(format!("error {}/{} by {by}", error.ee_type, error.ee_code));
    }
    Err(io::Error::other("an error that nobody reported"))
}

fn streams(port: u16, to: &[SocketAddr], asks: (usize, bool), wait: Duration) -> Vec<String> {
    let mut open: Vec<(SocketAddr, TcpStream)> = Vec::new();
    let mut seen = Vec::new();
    for target in to {
        match stream(port, *target, wait) {
            Ok(stream) => open.push((*target, stream)),
            Err(error) => seen.push(format!("{target} {}", word(&error))),
        }
        for (target, stream) in &mut open {
            let said = say(stream, asks).map(|answer| format!("{} saw {}", answer.pod, answer.peer));
            seen.push(format!("{target} {}", said.unwrap_or_else(|error| word(&error))));
        }
    }
    seen
}

fn stream(port: u16, to: SocketAddr, wait: Duration) -> io::Result<TcpStream> {
    let fd = dial::stream_socket(Proto::Tcp, to.is_ipv6())?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(any(to.is_ipv6(), port)))?;
    let limit = TimeVal::milliseconds(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
    setsockopt(&fd, sockopt::SendTimeout, &limit)?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(wait))?;
    Ok(stream)
}

fn say(stream: &mut TcpStream, (bytes, last): (usize, bool)) -> io::Result<Answer> {
    let mut text = question(bytes, bytes, false, 0);
    text.push(b'\n');
    stream.write_all(&text)?;
    if last {
        stream.shutdown(Shutdown::Write)?;
    }
    let mut line = Vec::new();
    BufReader::new(stream).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::Error::other("closed without an answer"));
    }
    Ok(read(&line)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_say_how_they_want_their_answers() {
        let text = question(100, 8_000, true, 3);
        assert_eq!(text.len(), 100);
        assert_eq!(wish(&text), Some(Wish { bytes: 8_000, whole: true, number: 3 }));
        assert_eq!(wish(b"probe"), None);
        assert_eq!(wish(b"sized a b c "), None);
        let line = r#"{"pod":"p","peer":"10.0.0.1","peer_port":1,"local":"10.0.0.2","local_port":2}"#;
        let answer = fill(line, Wish { bytes: 300, whole: false, number: 7 });
        assert_eq!(answer.len(), 300);
        let (read, number) = read(&answer).unwrap();
        assert_eq!((read.pod.as_str(), number), ("p", 7));
    }
}
