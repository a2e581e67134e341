//! A dummy link, whose addresses are the node's without being on any wire. Source of all numbers:
//! linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h.
//!
//! The link stays down, as kube-proxy's does: its addresses are the node's all the same, of both families, and the
//! kernel does nothing by itself (no link-local address, no multicast groups, no routers asked).

mod message;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use sluice_core::ipvs::Op;

use crate::modules::{self, ModuleError};
use crate::netlink::{BatchError, NetfilterSocket, NetlinkError};
use crate::proc::write_if_different;

/// The kind of the link, which is its module's name.
const KIND: &str = "dummy";

/// What went wrong with the link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The kernel has no dummy links.
    #[error(transparent)]
    Missing(#[from] ModuleError),
    /// A link of this name is there, and is something else.
    #[error("interface {name} is of kind {kind:?}, not a dummy link")]
    Other {
        /// The link's name.
        name: String,
        /// What it is; empty for hardware.
        kind: String,
    },
    /// The kernel refused, or could not be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// A dummy link of a network namespace.
pub struct Link {
    socket: NetfilterSocket,
    index: u32,
}

impl Link {
    /// Takes the link of this name in the current network namespace, or makes it.
    pub fn open(name: &str) -> Result<Self, LinkError> {
        let link = match Self::find(name)? {
            Some(link) => link,
            None => Self::create(name)?,
        };
        quieten(name);
        Ok(link)
    }

    /// Takes the link of this name in the current network namespace, if there is one.
    pub fn find(name: &str) -> Result<Option<Self>, LinkError> {
        let operation = "look a link up";
        let mut socket = NetfilterSocket::route()?;
        let mut found = None;
        let asked = socket.ask(
            operation,
            message::GET_LINK,
            [0; 4],
            |writer| message::link_name(writer, name),
            |answer| found = message::link(answer.body),
        );
        match (asked, found) {
            (Err(error), _) if error.errno() == Some(libc::ENODEV) => Ok(None),
            (Err(error), _) => Err(error.into()),
            (Ok(()), Some((index, kind))) if kind == KIND => Ok(Some(Link { socket, index })),
            (Ok(()), Some((_, kind))) => Err(LinkError::Other { name: name.to_owned(), kind }),
            (Ok(()), None) => Err(NetlinkError::Malformed { operation }.into()),
        }
    }

    fn create(name: &str) -> Result<Self, LinkError> {
        match request_new(name) {
            // There is no such kind of link, and the kernel could not load it by itself.
            Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => {
                modules::load(KIND)?;
                request_new(name)?;
            }
            other => other?,
        }
        let gone = || NetlinkError::Malformed { operation: "find the link that was made" };
        Self::find(name)?.ok_or_else(|| gone().into())
    }

    /// Its index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its addresses of single hosts, which are all that [`Link::apply`] can bind.
    pub fn addresses(&mut self) -> Result<BTreeSet<IpAddr>, NetlinkError> {
        const ATTEMPTS: u32 = 5;
        let index = self.index;
        for _ in 1..ATTEMPTS {
            match list(&mut self.socket, index) {
                // Somebody changed addresses while they were listed.
                Err(error) if error.errno() == Some(libc::EINTR) => {}
                other => return other,
            }
        }
        list(&mut self.socket, index)
    }

    /// Does the operations on addresses, in their order, and passes over the others. One that is bound already, or gone
    /// already, is no error. The error has all those that were refused; the others are done.
    ///
    /// With IPv6, the kernel makes an address that is bound the node's a moment later, not before this returns; and it looks
    /// at all addresses of the node for each one bound, and at all routes for each one unbound. Binding 10,000 takes 4 s,
    /// unbinding them 12 s (with IPv4 1 s each); [`Link::delete`] does away with as many in 0.1 s.
    pub fn apply(&mut self, ops: &[Op]) -> Result<(), BatchError<Op>> {
        let index = self.index;
        let ops = ops.iter().copied().filter(|op| matches!(op, Op::BindAddress(_) | Op::UnbindAddress(_)));
        let sent =
            self.socket.send_batch(ops, |writer, sequence, op| message::op(writer, index, sequence, op));
        match sent {
            Err(BatchError::Refused(mut refusals)) => {
                refusals.0.retain(|refusal| !is_done_already(&refusal.item, refusal.error.errno()));
                if refusals.0.is_empty() { Ok(()) } else { Err(refusals.into()) }
            }
            other => other,
        }
    }

    /// Deletes the link with its addresses.
    pub fn delete(mut self) -> Result<(), NetlinkError> {
        let index = self.index;
        let deleted = self.socket.request("delete a dummy link", message::DELETE_LINK, [0; 4], |writer| {
            message::link_index(writer, index);
        });
        match deleted {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }
}

/// Makes the link, unless somebody else did so meanwhile.
fn request_new(name: &str) -> Result<(), NetlinkError> {
    let mut socket = NetfilterSocket::route()?;
    let made = socket.request("make a dummy link", message::NEW_LINK, [0; 4], |writer| {
        writer.add_flags(NLM_F_CREATE | NLM_F_EXCL);
        message::new_link(writer, name, KIND);
    });
    match made {
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

fn list(socket: &mut NetfilterSocket, index: u32) -> Result<BTreeSet<IpAddr>, NetlinkError> {
    let mut addresses = BTreeSet::new();
    socket.dump(
        "list addresses",
        message::GET_ADDRESS,
        [0; 4],
        // The rest of struct ifaddrmsg: the kernel filters by link only if it is asked to be strict.
        |writer| writer.raw(&[0; 4]),
        |answer| addresses.extend(message::address(answer.body, index)),
    )?;
    Ok(addresses)
}

fn is_done_already(op: &Op, errno: Option<i32>) -> bool {
    match op {
        Op::BindAddress(_) => errno == Some(libc::EEXIST),
        _ => errno == Some(libc::EADDRNOTAVAIL),
    }
}

/// Should somebody set the link up, the kernel is to do nothing by itself either, and addresses are to survive its going
/// down. This is a precaution: where it fails, or there is no IPv6, all works the same.
fn quieten(name: &str) {
    for (sysctl, value) in
        [("addr_gen_mode", "1"), ("accept_ra", "0"), ("autoconf", "0"), ("keep_addr_on_down", "1")]
    {
        let path = PathBuf::from("/proc/sys/net/ipv6/conf").join(name).join(sysctl);
        let _ = write_if_different(path, value);
    }
}
