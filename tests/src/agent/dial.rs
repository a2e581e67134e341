//! Connections of a probe: one line or datagram out, one line of JSON back.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::protocol::{Answer, Attempt, Outcome, ProbeRequest};
use crate::patience;
use crate::target::{Proto, Target};

/// How long a connection may take to be made, and how long its answer may take then. More than a
/// second, because Linux reports an ICMPv6 refusal of a TCP connection only with the SYN that it
/// sends again after one second.
pub const PATIENCE: Duration = Duration::from_millis(1500);
/// At most so many connections at once.
const AT_ONCE: usize = 64;

/// Opens the connections of a probe.
#[must_use]
pub fn probe(request: &ProbeRequest) -> Vec<Attempt> {
    let turns: Vec<usize> = (0..request.count).flat_map(|_| 0..request.dests.len()).collect();
    // Where each is to succeed, a server that is waiting for a processor is no fault. It is waited
    // for only once the connection is there: a SYN that is lost must not be made good by the next
    // one.
    let answer = if request.stop_at_failure { patience::stretched(PATIENCE) } else { PATIENCE };
    let try_one = |dest: usize| {
        let target = request.dests.get(dest);
        let outcome = target.map_or(Outcome::Timeout, |target| attempt_for(*target, PATIENCE, answer));
        Attempt { dest, outcome }
    };
    let mut attempts = Vec::with_capacity(turns.len());
    if request.parallel && request.interval_ms == 0 {
        for chunk in turns.chunks(AT_ONCE) {
            thread::scope(|scope| {
                let running: Vec<_> = chunk.iter().map(|dest| scope.spawn(|| try_one(*dest))).collect();
                attempts.extend(running.into_iter().filter_map(|thread| thread.join().ok()));
            });
        }
        return attempts;
    }
    for (number, dest) in turns.into_iter().enumerate() {
        if number > 0 {
            thread::sleep(Duration::from_millis(request.interval_ms));
        }
        let attempt = try_one(dest);
        let failed = !matches!(attempt.outcome, Outcome::Answer(_));
        attempts.push(attempt);
        if failed && request.stop_at_failure {
            break;
        }
    }
    attempts
}

/// One connection, its answer awaited, with a patience of one's own for each.
#[must_use]
pub fn attempt(target: Target, patience: Duration) -> Outcome {
    attempt_for(target, patience, patience)
}

/// The same with a patience of one's own for stream connections.
#[must_use]
pub fn attempt_within(target: Target, patience: Duration) -> Outcome {
    attempt_for(target, patience, PATIENCE)
}

/// The same, with how long a stream connection may take to be made, and how long an answer may
/// take.
fn attempt_for(target: Target, connect: Duration, answer: Duration) -> Outcome {
    let answer = match target.proto {
        Proto::Tcp | Proto::Sctp => stream(target, connect, answer),
        Proto::Udp => datagram(target, answer),
        Proto::Icmp => echo_request(target.addr, answer),
    };
    match answer {
        Ok(answer) => Outcome::Answer(answer),
        Err(error) => classify(&error),
    }
}

fn classify(error: &io::Error) -> Outcome {
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::ConnectionRefused, _) => Outcome::Refused,
        // A connect under SO_SNDTIMEO that runs out of time says EINPROGRESS.
        (ErrorKind::TimedOut | ErrorKind::WouldBlock, _) | (_, Some(libc::EINPROGRESS)) => Outcome::Timeout,
        _ => Outcome::Error(error.to_string()),
    }
}

/// Makes a TCP or one-to-one SCTP connection.
pub fn open_stream(target: Target, patience: Duration) -> io::Result<TcpStream> {
    if target.proto == Proto::Tcp {
        return TcpStream::connect_timeout(&target.socket(), patience);
    }
    let fd = stream_socket(target.proto, target.addr.is_ipv6())?;
    let limit = TimeVal::milliseconds(i64::try_from(patience.as_millis()).unwrap_or(i64::MAX));
    setsockopt(&fd, sockopt::SendTimeout, &limit)?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(target.socket()))?;
    // Reading and writing are the same for every connected stream socket.
    Ok(TcpStream::from(fd))
}

/// A stream socket for TCP or SCTP.
pub fn stream_socket(proto: Proto, v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let protocol = if proto == Proto::Sctp { SockProtocol::Sctp } else { SockProtocol::Tcp };
    Ok(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, protocol)?)
}

fn stream(target: Target, connect: Duration, answer: Duration) -> io::Result<Answer> {
    let mut stream = open_stream(target, connect)?;
    let answer = exchange(&mut stream, answer);
    answer.map_err(|error| match error.kind() {
        // A connection that was made is not "nothing came back".
        ErrorKind::TimedOut | ErrorKind::WouldBlock => io::Error::other("connected, but no answer"),
        ErrorKind::ConnectionRefused => io::Error::other("connected, then refused"),
        _ => error,
    })
}

fn exchange(stream: &mut TcpStream, patience: Duration) -> io::Result<Answer> {
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"probe\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::Error::other("connected, then closed without an answer"));
    }
    parse(line.as_bytes())
}

/// Reads the line of an echo server.
pub fn parse(line: &[u8]) -> io::Result<Answer> {
    serde_json::from_slice(line).map_err(|error| {
        io::Error::other(format!("not an echo server's answer: {error}: {}", String::from_utf8_lossy(line)))
    })
}

/// A UDP socket with a source port that this namespace has not used lately: a reused one would
/// follow the old flow's connection tracking entry instead of being balanced anew.
pub(super) fn fresh_udp_socket(v6: bool) -> io::Result<UdpSocket> {
    const FIRST: u16 = 33_000;
    const PORTS: u16 = 27_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let any = if v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let mut last = io::Error::from(ErrorKind::AddrInUse);
    for _ in 0..PORTS {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS;
        match UdpSocket::bind(SocketAddr::new(any, port)) {
            Ok(socket) => return Ok(socket),
            Err(error) if error.kind() == ErrorKind::AddrInUse => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

fn datagram(target: Target, patience: Duration) -> io::Result<Answer> {
    let socket = fresh_udp_socket(target.addr.is_ipv6())?;
    socket.connect(target.socket())?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(b"probe")?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    parse(&buffer[..length])
}

/// ICMP echo. The socket is connected, so the kernel reports a port unreachable for it as
/// ECONNREFUSED.
fn echo_request(addr: IpAddr, patience: Duration) -> io::Result<Answer> {
    static SEQUENCE: AtomicU32 = AtomicU32::new(1);
    let number = SEQUENCE.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let process = std::process::id().to_be_bytes();
    let tag = [process[2], process[3], number[2], number[3]];
    let v6 = addr.is_ipv6();
    let (family, protocol) = if v6 {
        (AddressFamily::Inet6, SockProtocol::IcmpV6)
    } else {
        (AddressFamily::Inet, SockProtocol::Icmp)
    };
    let fd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(addr, 0)))?;
    let socket = UdpSocket::from(fd);
    let (request, reply) = if v6 { (128, 129) } else { (8, 0) };
    socket.send(&echo_packet(request, tag))?;
    let end = Instant::now() + patience;
    let mut buffer = [0; 2048];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = socket.recv(&mut buffer)?;
        // IPv4 raw sockets deliver the IP header too.
        let header = if v6 { 0 } else { usize::from(buffer[0] & 0x0f) * 4 };
        let packet = buffer.get(header..length).unwrap_or_default();
        if packet.first() == Some(&reply) && packet.get(4..8) == Some(&tag) {
            return Ok(Answer { pod: String::new(), peer: addr, peer_port: 0, local: addr, local_port: 0 });
        }
    }
}

fn echo_packet(kind: u8, tag: [u8; 4]) -> [u8; 16] {
    let mut packet = [0; 16];
    packet[0] = kind;
    packet[4..8].copy_from_slice(&tag);
    let mut sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).unwrap_or(0);
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_an_echo_request() {
        let packet = echo_packet(8, [0x12, 0x34, 0x00, 0x01]);
        let sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        assert_eq!(sum % 0xffff, 0);
    }

    #[test]
    fn errors_are_classified() {
        assert_eq!(classify(&ErrorKind::ConnectionRefused.into()), Outcome::Refused);
        assert_eq!(classify(&ErrorKind::WouldBlock.into()), Outcome::Timeout);
        assert_eq!(classify(&io::Error::from_raw_os_error(libc::EINPROGRESS)), Outcome::Timeout);
        assert!(matches!(classify(&io::Error::from_raw_os_error(libc::EHOSTUNREACH)), Outcome::Error(_)));
    }
}
