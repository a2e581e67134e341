//! Netlink framing: messages, attributes, and a socket for the netfilter subsystems.
//!
//! A thin layer of our own under nf_tables: a full load is 100,000 elements, which is written
//! straight into one buffer, and the expressions that the layout needs are not in the published
//! packet crates. Source of all numbers: linux/netlink.h, linux/netfilter/nfnetlink.h.

mod batch;

pub use sluice_link::{BatchError, NetlinkError, Refusal, Refusals, uninterrupted};

use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_NETFILTER, NETLINK_SOCK_DIAG};
use netlink_sys::{Socket, SocketAddr};

/// Message types that end a dump or carry an error.
const DONE: u16 = NLMSG_DONE;
pub(crate) const ERROR: u16 = NLMSG_ERROR;
pub(crate) const HEADER: usize = 16;
const NESTED: u16 = 0x8000;

/// Writes netlink messages one after another into one buffer.
#[derive(Default)]
pub struct Writer {
    buffer: Vec<u8>,
    message: usize,
}

/// Where an open nested attribute starts.
#[must_use]
pub struct Nest(usize);

impl Writer {
    /// Begins a netfilter message: type `subsystem << 8 | command`, netfilter family and resource
    /// id.
    pub fn begin(&mut self, message_type: u16, flags: u16, sequence: u32, family: u8, resource: u16) {
        let [high, low] = resource.to_be_bytes();
        self.begin_with(message_type, flags, sequence, [family, 0, high, low]);
    }

    /// Begins a message of any family; `head` is the first word behind the netlink header.
    pub fn begin_with(&mut self, message_type: u16, flags: u16, sequence: u32, head: [u8; 4]) {
        self.message = self.buffer.len();
        self.buffer.extend([0; 4]);
        self.buffer.extend(message_type.to_ne_bytes());
        self.buffer.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        self.buffer.extend(sequence.to_ne_bytes());
        self.buffer.extend([0; 4]);
        self.buffer.extend(head);
    }

    /// Ends the message that was begun.
    pub fn end(&mut self) {
        let len = (self.buffer.len() - self.message) as u32;
        self.buffer[self.message..self.message + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Adds flags to the message that was begun last.
    pub fn add_flags(&mut self, flags: u16) {
        let at = self.message + 6;
        if let Some(bytes) = self.buffer.get_mut(at..at + 2) {
            let old = u16::from_ne_bytes([bytes[0], bytes[1]]);
            bytes.copy_from_slice(&(old | flags).to_ne_bytes());
        }
    }

    /// The length of the message that is being written, in bytes.
    pub fn message_len(&self) -> usize {
        self.buffer.len() - self.message
    }

    /// Writes bytes as they are: what a message has between its first word and its attributes.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.buffer.extend(bytes);
    }

    /// Writes an attribute.
    pub fn attr(&mut self, kind: u16, value: &[u8]) {
        let len = 4 + value.len();
        self.buffer.extend((len as u16).to_ne_bytes());
        self.buffer.extend(kind.to_ne_bytes());
        self.buffer.extend(value);
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
    }

    /// Writes a 32-bit attribute in network order, as nf_tables wants them.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// Writes a 64-bit attribute in network order.
    pub fn u64(&mut self, kind: u16, value: u64) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// Writes a 32-bit attribute in the byte order of this machine, as generic netlink and
    /// rtnetlink want them.
    pub fn host_u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// Writes a 16-bit attribute in the byte order of this machine.
    pub fn host_u16(&mut self, kind: u16, value: u16) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// Writes a text attribute with its final zero.
    pub fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend(value.as_bytes());
        bytes.push(0);
        self.attr(kind, &bytes);
    }

    /// Opens a nested attribute.
    pub fn nest(&mut self, kind: u16) -> Nest {
        let at = self.buffer.len();
        self.buffer.extend([0; 2]);
        self.buffer.extend((kind | NESTED).to_ne_bytes());
        Nest(at)
    }

    /// Closes a nested attribute. Attributes hold at most 65,535 bytes: callers split before.
    pub fn close(&mut self, nest: Nest) {
        let len = (self.buffer.len() - nest.0) as u16;
        self.buffer[nest.0..nest.0 + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// The bytes written so far.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer
    }
}

/// One attribute of a message.
#[derive(Clone, Copy, Debug)]
pub struct Attr<'a> {
    /// Its type, without the nested and byte order bits.
    pub kind: u16,
    /// Its value.
    pub value: &'a [u8],
}

impl<'a> Attr<'a> {
    /// The value as a number in network order.
    pub fn u32(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.try_into().ok()?))
    }

    /// The value as a long number in network order.
    pub fn u64(&self) -> Option<u64> {
        Some(u64::from_be_bytes(self.value.try_into().ok()?))
    }

    /// The value as a number in the byte order of this machine, as generic netlink and rtnetlink
    /// write them.
    pub fn host_u32(&self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.value.try_into().ok()?))
    }

    /// The value as a 16-bit number in the byte order of this machine.
    pub fn host_u16(&self) -> Option<u16> {
        Some(u16::from_ne_bytes(self.value.try_into().ok()?))
    }

    /// The value as text, without a final zero.
    pub fn text(&self) -> &'a str {
        let bytes = self.value.split(|b| *b == 0).next().unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

/// Iterates over attributes; ends at the first malformed one.
pub fn attrs(mut bytes: &[u8]) -> impl Iterator<Item = Attr<'_>> {
    std::iter::from_fn(move || {
        let (head, _) = bytes.split_first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Attr { kind, value })
    })
}

/// The first attribute of a kind.
pub fn find(bytes: &[u8], kind: u16) -> Option<Attr<'_>> {
    attrs(bytes).find(|attr| attr.kind == kind)
}

/// A received message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Message type.
    pub kind: u16,
    /// Flags.
    pub flags: u16,
    /// Sequence number of the request.
    pub sequence: u32,
    /// The port id of whoever caused it (for notifications).
    pub port: u32,
    /// What follows the netlink header.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes behind the netfilter header.
    pub fn attributes(&self) -> &'a [u8] {
        self.body.get(4..).unwrap_or_default()
    }

    /// For an error message: the error number (0 is an acknowledgement) and the kernel's words.
    pub fn error(&self) -> Option<(i32, Option<String>)> {
        if self.kind != ERROR {
            return None;
        }
        let (code, rest) = self.body.split_first_chunk::<4>()?;
        let code = -i32::from_ne_bytes(*code);
        // With NETLINK_CAP_ACK the echoed request is its header only; extended acknowledgements
        // follow.
        let detail = rest.get(HEADER..).and_then(|tlvs| find(tlvs, 1)).map(|attr| attr.text().to_owned());
        Some((code, detail.filter(|text| !text.is_empty())))
    }
}

/// Iterates over the messages of one datagram.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let head = bytes.get(..HEADER)?;
        let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
        let len = word(0) as usize;
        let message = Message {
            kind: half(4),
            flags: half(6),
            sequence: word(8),
            port: word(12),
            body: bytes.get(HEADER..len)?,
        };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The first word behind the netlink header: mostly a family and zeros.
#[derive(Clone, Copy, Debug)]
pub struct Head([u8; 4]);

impl From<u8> for Head {
    fn from(family: u8) -> Self {
        Head([family, 0, 0, 0])
    }
}

impl From<[u8; 4]> for Head {
    fn from(word: [u8; 4]) -> Self {
        Head(word)
    }
}

/// A socket to the netfilter subsystems of the network namespace that it was opened in.
pub struct NetfilterSocket {
    socket: Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

const SEND_BUFFER: i32 = 64 << 20;

impl NetfilterSocket {
    /// Opens a socket.
    pub fn open() -> Result<Self, NetlinkError> {
        Self::of_protocol(NETLINK_NETFILTER)
    }

    /// Opens a socket to generic netlink, whose messages are framed alike.
    pub fn generic() -> Result<Self, NetlinkError> {
        Self::of_protocol(NETLINK_GENERIC)
    }

    /// Opens a socket to sock_diag, whose messages are framed alike.
    pub fn sock_diag() -> Result<Self, NetlinkError> {
        Self::of_protocol(NETLINK_SOCK_DIAG)
    }

    fn of_protocol(protocol: isize) -> Result<Self, NetlinkError> {
        let fail = |operation| move |source| NetlinkError::Socket { operation, source };
        let mut socket = Socket::new(protocol).map_err(fail("open a netlink socket"))?;
        let address = socket.bind_auto().map_err(fail("bind a netlink socket"))?;
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER);
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, SEND_BUFFER / 8);
        Ok(NetfilterSocket { socket, port: address.port_number(), sequence: 1, buffer: vec![0; 1 << 16] })
    }

    /// One to a kernel of a test's own.
    #[cfg(test)]
    pub(crate) fn over(socket: std::os::fd::OwnedFd) -> Self {
        use std::os::fd::{FromRawFd, IntoRawFd};
        // SAFETY: the descriptor is open, and nobody else's.
        let socket = unsafe { Socket::from_raw_fd(socket.into_raw_fd()) };
        NetfilterSocket { socket, port: 1, sequence: 1, buffer: vec![0; 1 << 16] }
    }

    /// Our port id: notifications that we caused carry it.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Joins a multicast group.
    pub fn join(&mut self, group: u32) -> Result<(), NetlinkError> {
        let operation = "join a netfilter multicast group";
        self.socket.add_membership(group).map_err(|source| NetlinkError::Socket { operation, source })
    }

    /// A fresh sequence number.
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let operation = "send to the kernel";
        let kernel = SocketAddr::new(0, 0);
        self.socket
            .send_to(bytes, &kernel, 0)
            .map(|_| ())
            .map_err(|source| NetlinkError::Socket { operation, source })
    }

    /// Receives one datagram and gives its messages to `each`. With `wait` false, returns false
    /// when nothing is there.
    pub fn receive(&mut self, wait: bool, mut each: impl FnMut(Message<'_>)) -> Result<bool, NetlinkError> {
        let operation = "receive from the kernel";
        let flags = if wait { 0 } else { libc::MSG_DONTWAIT };
        loop {
            let mut space = &mut self.buffer[..];
            match self.socket.recv(&mut space, flags) {
                Ok(len) => {
                    messages(&self.buffer[..len.min(self.buffer.len())]).for_each(&mut each);
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Err(NetlinkError::Lost { operation });
                }
                Err(source) => return Err(NetlinkError::Socket { operation, source }),
            }
        }
    }

    /// Sends one request with a fresh sequence number, by which its answer is known.
    fn send_request(
        &mut self,
        message_type: u16,
        flags: u16,
        head: Head,
        fill: impl FnOnce(&mut Writer),
    ) -> Result<u32, NetlinkError> {
        let sequence = self.next_sequence();
        let mut writer = Writer::default();
        writer.begin_with(message_type, flags, sequence, head.0);
        fill(&mut writer);
        writer.end();
        self.send(writer.bytes())?;
        Ok(sequence)
    }

    /// Asks for a dump and gives each message of the answer to `each`. `fill` adds attributes to
    /// the request.
    ///
    /// An interrupted dump (the kernel's tables changed meanwhile) is an error with EINTR: ask
    /// again.
    pub fn dump(
        &mut self,
        operation: &'static str,
        message_type: u16,
        head: impl Into<Head>,
        fill: impl FnOnce(&mut Writer),
        mut each: impl FnMut(Message<'_>),
    ) -> Result<(), NetlinkError> {
        self.dump_while(operation, message_type, head, fill, |message| {
            each(message);
            true
        })
    }

    /// The same until `each` wants no more, after which the socket is good for nothing else: the
    /// rest of the answer is in its way.
    pub fn dump_while(
        &mut self,
        operation: &'static str,
        message_type: u16,
        head: impl Into<Head>,
        fill: impl FnOnce(&mut Writer),
        mut each: impl FnMut(Message<'_>) -> bool,
    ) -> Result<(), NetlinkError> {
        const INTERRUPTED: u16 = 0x10; // NLM_F_DUMP_INTR
        let sequence = self.send_request(message_type, NLM_F_DUMP, head.into(), fill)?;
        let (mut done, mut interrupted, mut failure) = (false, false, None);
        while !done && failure.is_none() {
            self.receive(true, |message| {
                if message.sequence != sequence {
                    return;
                }
                interrupted |= message.flags & INTERRUPTED != 0;
                if message.kind == DONE {
                    done = true;
                } else if let Some((code, detail)) = message.error() {
                    let source = io::Error::from_raw_os_error(code);
                    failure = Some(NetlinkError::Refused { operation: operation.into(), source, detail });
                } else {
                    done |= !each(message);
                }
            })?;
        }
        if interrupted && failure.is_none() {
            let source = io::Error::from_raw_os_error(libc::EINTR);
            failure = Some(NetlinkError::Refused { operation: operation.into(), source, detail: None });
        }
        failure.map_or(Ok(()), Err)
    }

    /// Sends one request and waits for its acknowledgement.
    pub fn request(
        &mut self,
        operation: &'static str,
        message_type: u16,
        head: impl Into<Head>,
        fill: impl FnOnce(&mut Writer),
    ) -> Result<(), NetlinkError> {
        self.ask(operation, message_type, head, fill, |_| {})
    }

    /// Sends one request, gives the messages of the answer to `each`, and waits for the
    /// acknowledgement.
    pub fn ask(
        &mut self,
        operation: &'static str,
        message_type: u16,
        head: impl Into<Head>,
        fill: impl FnOnce(&mut Writer),
        mut each: impl FnMut(Message<'_>),
    ) -> Result<(), NetlinkError> {
        let sequence = self.send_request(message_type, NLM_F_ACK, head.into(), fill)?;
        let mut answer = None;
        while answer.is_none() {
            self.receive(true, |message| {
                if message.sequence != sequence {
                    return;
                }
                match message.error() {
                    Some(error) => answer = answer.take().or(Some(error)),
                    None => each(message),
                }
            })?;
        }
        match answer {
            Some((0, _)) | None => Ok(()),
            Some((code, detail)) => {
                let source = io::Error::from_raw_os_error(code);
                Err(NetlinkError::Refused { operation: operation.into(), source, detail })
            }
        }
    }
}

fn set_option(socket: &Socket, level: i32, option: i32, value: i32) {
    // SAFETY: the descriptor is open for the life of `socket`, and value and length describe one
    // int. A refusal (no CAP_NET_ADMIN) leaves the default buffer, which is good enough for small
    // transactions.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            std::mem::size_of::<i32>() as libc::socklen_t,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut writer = Writer::default();
        writer.begin(0x0a06, NLM_F_ACK, 7, 1, 10);
        writer.text(1, "sluice");
        let nest = writer.nest(4);
        writer.u32(2, 0x01020304);
        writer.close(nest);
        writer.end();
        let found: Vec<_> = messages(writer.bytes()).collect();
        let [message] = found[..] else { panic!("one message") };
        assert_eq!((message.kind, message.sequence), (0x0a06, 7));
        assert_eq!(find(message.attributes(), 1).unwrap().text(), "sluice");
        let nested = find(message.attributes(), 4).unwrap();
        assert_eq!(find(nested.value, 2).unwrap().u32(), Some(0x01020304));
    }

    #[test]
    fn malformed_input_ends_the_iteration() {
        assert_eq!(attrs(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(attrs(&[200, 0, 1, 0, 1]).count(), 0);
        assert_eq!(messages(&[9; 15]).count(), 0);
        assert_eq!(messages(&[255; 32]).count(), 0);
    }
}
