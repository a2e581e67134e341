//! Connections that are kept busy: a line every 50 ms until the case ends, or they are told to end.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::dial::{PATIENCE, open_stream, parse};
use super::lock;
use super::protocol::HoldStatus;
use crate::target::{Proto, Target};

const EVERY: Duration = Duration::from_millis(50);

/// The state of one held connection, shared with the thread that keeps it busy.
#[derive(Debug, Clone, Default)]
pub struct Held(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    status: HoldStatus,
    answered_at: Option<Instant>,
    ended: bool,
}

impl Held {
    /// How it fares now.
    #[must_use]
    pub fn status(&self) -> HoldStatus {
        let state = lock(&self.0);
        let age = state.answered_at.map(|at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX));
        HoldStatus { since_answer_ms: age, ..state.status.clone() }
    }

    /// Nothing more is sent, and a connection is closed, soon.
    pub fn end(&self) {
        lock(&self.0).ended = true;
    }

    fn goes_on(&self) -> bool {
        !lock(&self.0).ended
    }

    fn sent(&self) {
        lock(&self.0).status.sent += 1;
    }

    fn answered(&self, endpoint: String) {
        let mut state = lock(&self.0);
        state.status.answered += 1;
        state.status.endpoint = Some(endpoint);
        state.answered_at = Some(Instant::now());
    }

    fn broken(&self, error: &io::Error) {
        lock(&self.0).status.broken = Some(error.to_string());
    }
}

/// Opens a connection and keeps it busy. The first line must be answered within a second.
pub fn connection(target: Target) -> io::Result<Held> {
    match target.proto {
        Proto::Udp => return connected_datagrams(target),
        Proto::Icmp => return Err(io::Error::other("icmp cannot be held")),
        Proto::Tcp | Proto::Sctp => {}
    }
    let stream = open_stream(target, PATIENCE)?;
    let held = Held::default();
    let mut reader = BufReader::new(stream.try_clone()?);
    stream.set_read_timeout(Some(PATIENCE))?;
    line(&stream, &mut reader, &held)?;
    // From here on a stalled line shows as a stale answer and may still arrive.
    stream.set_read_timeout(None)?;
    let state = held.clone();
    thread::spawn(move || {
        while state.goes_on() {
            thread::sleep(EVERY);
            if let Err(error) = line(&stream, &mut reader, &state) {
                state.broken(&error);
                return;
            }
        }
    });
    Ok(held)
}

fn line(mut stream: &TcpStream, reader: &mut BufReader<TcpStream>, held: &Held) -> io::Result<()> {
    stream.write_all(b"hold\n")?;
    held.sent();
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    held.answered(parse(line.as_bytes())?.pod);
    Ok(())
}

/// Keeps sending from one unconnected UDP socket, that is, from one source port.
pub fn datagrams(target: Target) -> io::Result<Held> {
    if target.proto != Proto::Udp {
        return Err(io::Error::other("only udp can be sent without a connection"));
    }
    let socket = any_udp_socket(target)?;
    let receiver = socket.try_clone()?;
    keep_sending(socket, receiver, move |socket| socket.send_to(b"hold", target.socket()))
}

fn connected_datagrams(target: Target) -> io::Result<Held> {
    let socket = any_udp_socket(target)?;
    socket.connect(target.socket())?;
    let receiver = socket.try_clone()?;
    keep_sending(socket, receiver, |socket| socket.send(b"hold"))
}

fn any_udp_socket(target: Target) -> io::Result<UdpSocket> {
    let any = match target.addr {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    UdpSocket::bind((any, 0))
}

fn keep_sending(
    socket: UdpSocket,
    receiver: UdpSocket,
    send: impl Fn(&UdpSocket) -> io::Result<usize> + Send + 'static,
) -> io::Result<Held> {
    let held = Held::default();
    let (sending, receiving) = (held.clone(), held.clone());
    thread::spawn(move || {
        while sending.goes_on() {
            // A refused datagram is a lost one; the socket lives on.
            if send(&socket).is_ok() {
                sending.sent();
            }
            thread::sleep(EVERY);
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        loop {
            match receiver.recv(&mut buffer) {
                Ok(length) => {
                    if let Ok(answer) = parse(&buffer[..length]) {
                        receiving.answered(answer.pod);
                    }
                }
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    });
    Ok(held)
}
