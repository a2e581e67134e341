//! A kernel that answers anything, for the readers of its answers. `cargo xtask fuzz`

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use sluice_fuzz::{Attributes, fuzz};

use crate::netlink::{ERROR, HEADER, Message, NetfilterSocket, messages};

/// `NLMSG_DONE`.
const DONE: u16 = 3;
/// Where a header has its type and its sequence number.
const KIND: std::ops::Range<usize> = 4..6;
const SEQUENCE: std::ops::Range<usize> = 8..12;
/// Bytes between a netlink header and attributes, of netfilter and of generic netlink.
pub(crate) const HEAD: usize = 4;

/// Gives the readers of one subsystem messages that are made from valid ones, each with the number
/// of bytes before its attributes.
pub(crate) fn answers(target: &str, valid: &[(usize, Vec<u8>)], check: impl FnMut(&[u8])) {
    assert!(!valid.is_empty(), "{target}");
    let attributes = Attributes::new(valid);
    fuzz(target, |rng| attributes.next(rng), check);
}

/// The same to readers of what follows the netlink header.
pub(crate) fn bodies(target: &str, valid: &[(usize, Vec<u8>)], mut check: impl FnMut(&[u8])) {
    answers(target, valid, |input| messages(input).for_each(|message| check(message.body)));
}

/// The messages of bytes, whole.
pub(crate) fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut at = 0;
    for message in messages(bytes) {
        let end = at + HEADER + message.body.len();
        found.push(bytes[at..end].to_vec());
        at = end.next_multiple_of(4);
    }
    found
}

/// Which message types answer which requests.
type Answers = fn(request: u16) -> u16;

/// Answers requests with valid messages, and the input among them.
pub(crate) struct Kernel {
    shared: Arc<Mutex<Vec<u8>>>,
    socket: Option<NetfilterSocket>,
}

impl Kernel {
    /// One that has these messages to tell.
    pub(crate) fn new(valid: &[(usize, Vec<u8>)], kind_of: Answers) -> Self {
        // Keeps boundaries, and passes over addresses, as of a kernel.
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty()).unwrap();
        let shared = Arc::new(Mutex::new(Vec::new()));
        let (input, valid) =
            (shared.clone(), valid.iter().map(|(_, bytes)| bytes.clone()).collect::<Vec<_>>());
        std::thread::spawn(move || serve(theirs, &valid, kind_of, &input));
        Kernel { shared, socket: Some(NetfilterSocket::over(ours)) }
    }

    /// Lets readers ask, and the input be among the answers.
    pub(crate) fn tells<T>(
        &mut self,
        input: &[u8],
        ask: impl FnOnce(NetfilterSocket) -> (NetfilterSocket, T),
    ) -> T {
        *self.shared.lock().unwrap() = input.to_vec();
        let (socket, answer) = ask(self.socket.take().unwrap());
        self.socket = Some(socket);
        answer
    }
}

/// Answers until nobody asks any more.
fn serve(socket: OwnedFd, valid: &[Vec<u8>], kind_of: Answers, input: &Mutex<Vec<u8>>) {
    let (mut stream, mut request) = (UnixStream::from(socket), vec![0; 1 << 17]);
    while let Ok(len @ 1..) = stream.read(&mut request) {
        let Some(Message { kind, sequence, .. }) = messages(&request[..len]).next() else { continue };
        let input = input.lock().unwrap().clone();
        let wanted = kind_of(kind).to_ne_bytes();
        let told = |bytes: &&Vec<u8>| bytes.get(KIND) == Some(&wanted);
        let mut answer: Vec<Vec<u8>> = valid.iter().filter(told).cloned().collect();
        // What does not belong here, too, now and then.
        if told(&&input) || input.len().is_multiple_of(16) {
            answer.insert(answer.len() / 2, input);
        }
        for mut message in answer {
            if let Some(field) = message.get_mut(SEQUENCE) {
                field.copy_from_slice(&sequence.to_ne_bytes());
            }
            // A datagram for each: one that is broken ends what is read of its own.
            drop(stream.write_all(&message[..message.len().min(1 << 16)]));
        }
        for kind in [DONE, ERROR] {
            drop(stream.write_all(&end(kind, sequence)));
        }
    }
}

/// The end of a dump, or an acknowledgement.
fn end(kind: u16, sequence: u32) -> Vec<u8> {
    let mut message = vec![0; HEADER + 4];
    message[..4].copy_from_slice(&(HEADER as u32 + 4).to_ne_bytes());
    message[KIND].copy_from_slice(&kind.to_ne_bytes());
    message[SEQUENCE].copy_from_slice(&sequence.to_ne_bytes());
    message
}
