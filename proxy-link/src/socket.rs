//! A socket to route netlink that waits for answers: questions one after the other, changes
//! together.

use std::fmt;
use std::io;

use ipnet::IpNet;
use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
    NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use crate::error::{BatchError, NetlinkError, Refusal, Refusals, uninterrupted};
use crate::read;
use crate::request::{self, Change, Request};

/// What the kernel may answer to one request, at most; it makes dumps of parts of 32 kB.
const BUFFER: usize = 64 << 10;

/// How many bytes of changes are sent at once. The answers to that many fit the receive buffer even
/// if all of them are refused, and larger ones are not faster.
const CHUNK: usize = 1 << 16;
const RECEIVE_BUFFER: usize = 8 << 20;

/// How often a list is asked for that others change meanwhile.
const ATTEMPTS: u32 = 10;

/// Bytes of a netlink header.
const HEADER: usize = 16;
/// `NLMSGERR_ATTR_MSG`: the kernel's own words.
const WORDS: u16 = 1;

/// A socket in the network namespace that it was opened in.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// What has come from the kernel.
pub(crate) struct Answer {
    sequence: u32,
    flags: u16,
    pub(crate) payload: Result<NetlinkPayload<RouteNetlinkMessage>, String>,
}

/// The messages of one datagram; it ends at the first whose length is wrong.
pub(crate) fn answers(mut bytes: &[u8]) -> impl Iterator<Item = Answer> {
    std::iter::from_fn(move || {
        let head = NetlinkBuffer::new_checked(bytes).ok()?;
        let (sequence, flags, length) = (head.sequence_number(), head.flags(), head.length() as usize);
        let payload = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes.get(..length)?);
        let payload = payload.map(|message| message.payload).map_err(|error| error.to_string());
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Answer { sequence, flags, payload })
    })
}

/// What the kernel refused, if it did.
fn refusal(operation: &str, answer: &ErrorMessage) -> Option<NetlinkError> {
    answer.code?;
    let source = io::Error::from_raw_os_error(answer.raw_code().wrapping_neg());
    Some(NetlinkError::Refused { operation: operation.to_owned(), source, detail: words(answer) })
}

/// With `NETLINK_CAP_ACK` the echoed request is its header only; extended acknowledgements follow.
fn words(answer: &ErrorMessage) -> Option<String> {
    let attributes = answer.header.get(HEADER..)?;
    let words = NlasIterator::new(attributes).flatten().find(|attribute| attribute.kind() == WORDS)?;
    let text = words.value().split(|byte| *byte == 0).next().unwrap_or_default();
    std::str::from_utf8(text).ok().filter(|text| !text.is_empty()).map(str::to_owned)
}

impl Netlink {
    /// Opens one.
    pub fn open() -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            // Kernels before 4.20 cannot filter; what they send too much is left out here.
            drop(socket.set_netlink_get_strict_chk(true));
            drop(socket.set_ext_ack(true));
            drop(socket.set_cap_ack(true));
            // Without CAP_NET_ADMIN there are only questions, for which the default is enough.
            let _ = setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER);
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket =
            open().map_err(|source| NetlinkError::Socket { operation: "open a netlink socket", source })?;
        Ok(Netlink { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let operation = "send to the kernel";
        let sent = self.socket.send(bytes, 0);
        sent.map(drop).map_err(|source| NetlinkError::Socket { operation, source })
    }

    /// Takes what the kernel has sent at once.
    fn receive(&mut self, each: impl FnMut(Answer)) -> Result<(), NetlinkError> {
        let operation = "receive from the kernel";
        loop {
            let mut space = &mut self.buffer[..];
            match self.socket.recv(&mut space, 0) {
                Ok(length) => {
                    answers(self.buffer.get(..length).unwrap_or_default()).for_each(each);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Err(NetlinkError::Lost { operation });
                }
                Err(source) => return Err(NetlinkError::Socket { operation, source }),
            }
        }
    }

    /// Sends a question, and gives each message of the answer, or why it cannot be read, to `each`.
    fn converse(
        &mut self,
        operation: &str,
        question: RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(Result<RouteNetlinkMessage, String>),
    ) -> Result<(), NetlinkError> {
        let sequence = self.next_sequence();
        self.send(&request::bytes(&request::message(question, flags, sequence)))?;
        let (mut is_over, mut is_interrupted, mut failure) = (false, false, None);
        while !is_over {
            self.receive(|answer| {
                if answer.sequence != sequence || is_over {
                    return;
                }
                is_interrupted |= answer.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    Ok(NetlinkPayload::Done(_)) => is_over = true,
                    Ok(NetlinkPayload::Error(error)) => {
                        (is_over, failure) = (true, refusal(operation, &error));
                    }
                    Ok(NetlinkPayload::InnerMessage(inner)) => each(Ok(inner)),
                    Ok(_) => {}
                    Err(reason) => each(Err(reason)),
                }
            })?;
        }
        if is_interrupted && failure.is_none() {
            let source = io::Error::from_raw_os_error(libc::EINTR);
            failure = Some(NetlinkError::Refused { operation: operation.to_owned(), source, detail: None });
        }
        failure.map_or(Ok(()), Err)
    }

    /// Asks one question. A message of the answer that cannot be read is an error.
    pub fn ask(
        &mut self,
        operation: &str,
        question: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let (mut found, mut unreadable) = (Vec::new(), None);
        self.converse(operation, question, NLM_F_ACK, |message| match message {
            Ok(message) => found.push(message),
            Err(reason) => unreadable = Some(reason),
        })?;
        readable(operation, found, unreadable)
    }

    /// Asks for a list, again if others change it meanwhile. A message of the answer that cannot be
    /// read is an error.
    pub fn list<T>(
        &mut self,
        operation: &str,
        question: &RouteNetlinkMessage,
        pick: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let (found, unreadable) = self.dump(operation, question, pick)?;
        readable(operation, found, unreadable)
    }

    /// The same, for lists in which others have things of their own: what cannot be read is not
    /// ours, and is passed over.
    pub fn list_readable<T>(
        &mut self,
        operation: &str,
        question: &RouteNetlinkMessage,
        pick: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        Ok(self.dump(operation, question, pick)?.0)
    }

    fn dump<T>(
        &mut self,
        operation: &str,
        question: &RouteNetlinkMessage,
        mut pick: impl FnMut(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<(Vec<T>, Option<String>), NetlinkError> {
        uninterrupted(ATTEMPTS, || {
            let (mut found, mut unreadable) = (Vec::new(), None);
            self.converse(operation, question.clone(), NLM_F_DUMP, |message| match message {
                Ok(message) => found.extend(pick(message)),
                Err(reason) => unreadable = Some(reason),
            })?;
            Ok((found, unreadable))
        })
    }

    /// Asks for changes, many in one message. The kernel makes each for itself, and goes on when
    /// one fails: the error is that of the first that did.
    pub fn apply(&mut self, changes: Vec<Change>) -> Result<(), NetlinkError> {
        let changes = changes.into_iter().map(|change| (change.operation, change.request));
        match self.apply_each(changes) {
            Ok(()) => Ok(()),
            Err(BatchError::Netlink(error)) => Err(error),
            Err(BatchError::Refused(refusals)) => {
                refusals.0.into_iter().next().map_or(Ok(()), |first| Err(first.error))
            }
        }
    }

    /// Asks for a change for each item. A refused one keeps none of the others from being done; the
    /// error has all that were.
    ///
    /// Only the last request of those that are sent together asks for an acknowledgement; refusals
    /// come unasked.
    pub fn apply_each<T: fmt::Display + fmt::Debug>(
        &mut self,
        items: impl IntoIterator<Item = (T, Request)>,
    ) -> Result<(), BatchError<T>> {
        let mut items = items.into_iter().peekable();
        let mut refused = Vec::new();
        while items.peek().is_some() {
            let (mut bytes, mut sent) = (Vec::new(), Vec::new());
            while bytes.len() < CHUNK
                && let Some((item, Request { message, flags, is_done_by })) = items.next()
            {
                let is_last = items.peek().is_none();
                let mut message = request::message(message, flags, self.next_sequence());
                let size = message.buffer_len().next_multiple_of(4);
                if is_last || bytes.len() + size >= CHUNK {
                    message.header.flags |= NLM_F_ACK;
                }
                bytes.extend(request::bytes(&message));
                sent.push((item, is_done_by));
            }
            self.send(&bytes)?;
            self.take_refusals(sent, &mut refused)?;
        }
        if refused.is_empty() { Ok(()) } else { Err(Refusals(refused).into()) }
    }

    /// Waits for the answer to the last of the requests that were sent, and takes the refusals
    /// before it.
    fn take_refusals<T: fmt::Display>(
        &mut self,
        sent: Vec<(T, &'static [i32])>,
        refused: &mut Vec<Refusal<T>>,
    ) -> Result<(), NetlinkError> {
        let Some(last) = sent.len().checked_sub(1) else { return Ok(()) };
        let first = self.sequence.wrapping_sub(last as u32);
        let (mut is_answered, mut errors) = (false, Vec::new());
        while !is_answered {
            self.receive(|answer| {
                let index = answer.sequence.wrapping_sub(first) as usize;
                if let Ok(NetlinkPayload::Error(error)) = answer.payload
                    && index <= last
                {
                    is_answered |= index == last;
                    errors.extend(error.code.is_some().then_some((index, error)));
                }
            })?;
        }
        let mut errors = errors.into_iter().peekable();
        for (index, (item, is_done_by)) in sent.into_iter().enumerate() {
            let Some((_, error)) = errors.next_if(|(failed, _)| *failed == index) else { continue };
            let error = refusal(&item.to_string(), &error);
            let is_done =
                |error: &NetlinkError| error.errno().is_some_and(|errno| is_done_by.contains(&errno));
            refused.extend(error.filter(|error| !is_done(error)).map(|error| Refusal { item, error }));
        }
        Ok(())
    }

    /// The index of a link, if there is one of this name.
    pub fn index(&mut self, name: &str) -> Result<Option<u32>, NetlinkError> {
        Ok(self.link(name)?.map(|link| link.header.index))
    }

    /// A link, if there is one of this name.
    pub fn link(&mut self, name: &str) -> Result<Option<LinkMessage>, NetlinkError> {
        let question = RouteNetlinkMessage::GetLink(request::link_named(name));
        match self.ask(&format!("look for interface {name}"), question) {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            other => Ok(other?.into_iter().find_map(new_link)),
        }
    }

    /// All links.
    pub fn links(&mut self) -> Result<Vec<LinkMessage>, NetlinkError> {
        self.list("list interfaces", &RouteNetlinkMessage::GetLink(LinkMessage::default()), new_link)
    }

    /// Deletes a link.
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.apply(vec![request::delete_link(index)])
    }

    /// The addresses of a link.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<IpNet>, NetlinkError> {
        let mut question = AddressMessage::default();
        question.header.index = index;
        self.list("list addresses", &RouteNetlinkMessage::GetAddress(question), |answer| match answer {
            RouteNetlinkMessage::NewAddress(message) if message.header.index == index => {
                read::network(&message)
            }
            _ => None,
        })
    }

    /// The destinations of the routes through a link, or through any.
    pub fn routes(&mut self, through: Option<u32>) -> Result<Vec<IpNet>, NetlinkError> {
        let question = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        self.list("list routes", &question, |answer| {
            let RouteNetlinkMessage::NewRoute(route) = answer else { return None };
            let is_through = |index| route.attributes.contains(&RouteAttribute::Oif(index));
            through.is_none_or(is_through).then(|| read::destination(&route)).flatten()
        })
    }
}

fn new_link(answer: RouteNetlinkMessage) -> Option<LinkMessage> {
    match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    }
}

fn readable<T>(operation: &str, found: T, unreadable: Option<String>) -> Result<T, NetlinkError> {
    let operation = || operation.to_owned();
    unreadable.map_or(Ok(found), |reason| Err(NetlinkError::Unreadable { operation: operation(), reason }))
}
