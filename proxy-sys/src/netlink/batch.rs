//! Many requests in few system calls, where the kernel works each off by itself (generic netlink).

use std::fmt;
use std::io;

use netlink_packet_core::NLM_F_ACK;

use sluice_link::{BatchError, NetlinkError, Refusal, Refusals};

use super::{NetfilterSocket, Writer};

/// How many bytes are sent at once. The answers to that many requests fit the receive buffer even
/// if all of them are refused, and larger ones are not faster.
const CHUNK: usize = 1 << 16;

impl NetfilterSocket {
    /// Sends a request for each item. `write` writes exactly one message, with the sequence number
    /// that it is given. A refused request keeps none of the others from being done.
    ///
    /// Only the last request of those that are sent together asks for an acknowledgement; refusals
    /// come unasked.
    pub fn send_batch<T: fmt::Display + fmt::Debug>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut Writer, u32, &T),
    ) -> Result<(), BatchError<T>> {
        let mut items = items.into_iter().peekable();
        let mut refused = Vec::new();
        while items.peek().is_some() {
            let mut writer = Writer::default();
            let mut sent = Vec::new();
            while writer.bytes().len() < CHUNK
                && let Some(item) = items.next()
            {
                write(&mut writer, self.next_sequence(), &item);
                sent.push(item);
            }
            writer.add_flags(NLM_F_ACK);
            self.send(writer.bytes())?;
            self.take_refusals(sent, &mut refused)?;
        }
        if refused.is_empty() { Ok(()) } else { Err(Refusals(refused).into()) }
    }

    /// Waits for the answer to the last of the requests that were sent, and takes the refusals
    /// before it.
    fn take_refusals<T: fmt::Display>(
        &mut self,
        sent: Vec<T>,
        refused: &mut Vec<Refusal<T>>,
    ) -> Result<(), NetlinkError> {
        let Some(last) = sent.len().checked_sub(1) else { return Ok(()) };
        let first = self.sequence.wrapping_sub(last as u32);
        let (mut answered, mut errors) = (false, Vec::new());
        while !answered {
            self.receive(true, |message| {
                let index = message.sequence.wrapping_sub(first) as usize;
                if let Some((code, detail)) = message.error()
                    && index <= last
                {
                    answered |= index == last;
                    errors.extend((code != 0).then_some((index, code, detail)));
                }
            })?;
        }
        let mut errors = errors.into_iter().peekable();
        for (index, item) in sent.into_iter().enumerate() {
            if let Some((_, code, detail)) = errors.next_if(|(failed, ..)| *failed == index) {
                let source = io::Error::from_raw_os_error(code);
                let error = NetlinkError::Refused { operation: item.to_string(), source, detail };
                refused.push(Refusal { item, error });
            }
        }
        Ok(())
    }
}
