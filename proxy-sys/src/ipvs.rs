//! IP virtual servers over generic netlink. Source of all numbers: linux/genetlink.h,
//! linux/ip_vs.h.
//!
//! What the kernel does that cannot be seen in its header is said at the operation that it
//! concerns, here and in `sluice_core::ipvs`. The kernel loads module ip_vs when the family is
//! looked up, and a scheduler's module when a server asks for it, but only where it can run
//! modprobe itself, with its first process's root directory.

mod decode;
mod encode;
pub mod sysctls;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

use sluice_core::ipvs::{
    ObservedDestination, ObservedServer, Op, SchedulerName, Server, ServerFlags, ServerKey,
};
use sluice_core::net::Protocol;

use crate::modules::{self, ModuleError};
use crate::netlink::{BatchError, NetfilterSocket, NetlinkError, find};

/// `GENL_ID_CTRL` and `CTRL_CMD_GETFAMILY`.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
/// `IPVS_GENL_VERSION`.
const VERSION: u8 = 1;
/// The module that has all of it but schedulers, which are modules `ip_vs_NAME`.
const MODULE: &str = "ip_vs";

/// Commands: `IPVS_CMD_*`.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Command {
    NewService = 1,
    SetService = 2,
    DelService = 3,
    GetService = 4,
    NewDest = 5,
    SetDest = 6,
    DelDest = 7,
    GetDest = 8,
    SetConfig = 12,
    GetConfig = 13,
    GetInfo = 15,
}

impl Command {
    /// The header of generic netlink, which is as long as that of netfilter.
    fn head(self) -> [u8; 4] {
        [self as u8, VERSION, 0, 0]
    }
}

/// What went wrong with IPVS.
#[derive(Debug, thiserror::Error)]
pub enum IpvsError {
    /// The kernel has no IPVS.
    #[error(transparent)]
    Missing(#[from] ModuleError),
    /// The kernel refused, or could not be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// What the kernel's IPVS is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its version: 1.2.1 since 2003, whatever it can do.
    pub version: (u8, u8, u8),
    /// How many lists the table of connections has (the module's parameter `conn_tab_bits`).
    pub table_size: u32,
}

/// For how many seconds connections are kept in which nothing is sent. A zero that is written
/// changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP.
    pub tcp: u32,
    /// TCP behind a FIN.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

/// A connection to the IPVS of a network namespace.
pub struct Ipvs {
    socket: NetfilterSocket,
    family: u16,
}

impl Ipvs {
    /// Opens a connection in the current network namespace; loads the module if it has to be.
    pub fn open() -> Result<Self, IpvsError> {
        if let Some(ipvs) = Self::find()? {
            return Ok(ipvs);
        }
        modules::load(MODULE)?;
        Self::find()?.ok_or_else(|| {
            let reason = "modprobe succeeded, but IPVS is not available".to_owned();
            ModuleError { module: MODULE.to_owned(), reason }.into()
        })
    }

    /// Opens a connection in the current network namespace, if the kernel has IPVS.
    pub fn find() -> Result<Option<Self>, NetlinkError> {
        let operation = "look up IPVS";
        let mut socket = NetfilterSocket::generic()?;
        let mut id = None;
        let asked = socket.ask(
            operation,
            CONTROL,
            [GET_FAMILY, VERSION, 0, 0],
            // CTRL_ATTR_FAMILY_NAME
            |writer| writer.text(2, "IPVS"),
            // CTRL_ATTR_FAMILY_ID
            |message| id = find(message.attributes(), 1).and_then(|id| id.host_u16()),
        );
        match (asked, id) {
            (Err(error), _) if error.errno() == Some(libc::ENOENT) => Ok(None),
            (Err(error), _) => Err(error),
            (Ok(()), Some(family)) => Ok(Some(Ipvs { socket, family })),
            (Ok(()), None) => Err(NetlinkError::Malformed { operation }),
        }
    }

    /// What the kernel's IPVS is.
    pub fn info(&mut self) -> Result<Info, NetlinkError> {
        let operation = "get information about IPVS";
        let mut info = None;
        let take = |message: crate::netlink::Message<'_>| info = decode::info(message.attributes());
        self.socket.ask(operation, self.family, Command::GetInfo.head(), |_| {}, take)?;
        info.ok_or(NetlinkError::Malformed { operation })
    }

    /// All virtual servers of this network namespace, without their destinations, each once.
    ///
    /// The kernel goes on with its list at a position that counts the servers of all network
    /// namespaces (`ip_vs_genl_dump_services`): those that others add meanwhile make it tell some
    /// twice, and those that they delete make it pass over some.
    pub fn servers(&mut self) -> Result<Vec<ObservedServer>, NetlinkError> {
        let mut servers = Vec::new();
        let head = Command::GetService.head();
        let take =
            |message: crate::netlink::Message<'_>| servers.extend(decode::server(message.attributes()));
        self.socket.dump("list virtual servers", self.family, head, |_| {}, take)?;
        Ok(distinct(servers))
    }

    /// The destinations of a virtual server; none if it is not there.
    pub fn destinations(&mut self, server: &ServerKey) -> Result<Vec<ObservedDestination>, NetlinkError> {
        let mut destinations = Vec::new();
        let head = Command::GetDest.head();
        let fill = |writer: &mut crate::netlink::Writer| encode::name(writer, server);
        let take = |message: crate::netlink::Message<'_>| {
            destinations.extend(decode::destination(server.family(), message.attributes()));
        };
        self.socket.dump("list destinations", self.family, head, fill, take)?;
        Ok(destinations)
    }

    /// All virtual servers of this network namespace with their destinations.
    ///
    /// The kernel does not tell whether somebody changed anything meanwhile: what others add or
    /// delete then may be told or not, and keep something else from being told, or have it told
    /// twice.
    pub fn dump(&mut self) -> Result<Vec<ObservedServer>, NetlinkError> {
        let mut servers = self.servers()?;
        for observed in &mut servers {
            observed.destinations = self.destinations(&observed.server.key)?;
        }
        Ok(servers)
    }

    /// Does all operations on virtual servers and destinations, in their order, and passes over
    /// those on addresses ([`dummy::Link::apply`](crate::dummy::Link::apply)).
    ///
    /// This is no transaction: an operation that is refused keeps none of the others from being
    /// done. The error has all those that were refused:
    /// - EEXIST: to be added, and there;
    /// - ESRCH: there is no such virtual server;
    /// - ENOENT: there is no such destination, or no such scheduler;
    /// - EINVAL: for a destination, an address that is none of a single host; any, in a network
    ///   namespace that has no address at all.
    ///
    /// Each server with a scheduler that the kernel lacks costs an attempt to load it: ask
    /// [`Ipvs::has_scheduler`] before.
    pub fn apply(&mut self, ops: &[Op]) -> Result<(), BatchError<Op>> {
        let family = self.family;
        let is_elsewhere = |op: &Op| {
            matches!(op, Op::BindAddress(_) | Op::UnbindAddress(_) | Op::LeadHere(_) | Op::LetPass(_))
        };
        let ops = ops.iter().copied().filter(|op| !is_elsewhere(op));
        self.socket.send_batch(ops, |writer, sequence, op| encode::op(writer, family, sequence, op))
    }

    /// The timeouts of this network namespace.
    pub fn timeouts(&mut self) -> Result<Timeouts, NetlinkError> {
        let mut timeouts = Timeouts::default();
        let take = |message: crate::netlink::Message<'_>| timeouts = decode::timeouts(message.attributes());
        self.socket.ask("get the timeouts of IPVS", self.family, Command::GetConfig.head(), |_| {}, take)?;
        Ok(timeouts)
    }

    /// Sets the timeouts of this network namespace that are not zero.
    pub fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), NetlinkError> {
        let head = Command::SetConfig.head();
        self.socket.request("set the timeouts of IPVS", self.family, head, |writer| {
            encode::timeouts(writer, timeouts);
        })
    }

    /// Whether the kernel has a scheduler, whose module is loaded if it has to be.
    pub fn has_scheduler(&mut self, scheduler: SchedulerName) -> Result<bool, NetlinkError> {
        // The kernel loads it by itself, where it can run modprobe.
        if self.try_scheduler(scheduler)? {
            return Ok(true);
        }
        Ok(modules::load(&format!("{MODULE}_{scheduler}")).is_ok() && self.try_scheduler(scheduler)?)
    }

    /// Adds a virtual server and deletes it again, of an address that is for documentation only, as
    /// kube-proxy does.
    fn try_scheduler(&mut self, scheduler: SchedulerName) -> Result<bool, NetlinkError> {
        let address = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 0));
        let key = ServerKey::Address(address, Protocol::Tcp, 20000);
        let server = Server { key, scheduler, flags: ServerFlags::NONE, persistence: None };
        let mut added = self.one(Op::AddServer(server));
        // Somebody was killed between adding and deleting.
        if added.as_ref().is_err_and(|error| error.errno() == Some(libc::EEXIST)) {
            self.one(Op::DeleteServer(key))?;
            added = self.one(Op::AddServer(server));
        }
        match added {
            Ok(()) => self.one(Op::DeleteServer(key)).map(|()| true),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn one(&mut self, op: Op) -> Result<(), NetlinkError> {
        match self.apply(&[op]) {
            Ok(()) => Ok(()),
            Err(BatchError::Netlink(error)) => Err(error),
            Err(BatchError::Refused(refusals)) => {
                refusals.0.into_iter().next().map_or(Ok(()), |refusal| Err(refusal.error))
            }
        }
    }
}

/// Each server once: the first that was told of it counts.
fn distinct(mut servers: Vec<ObservedServer>) -> Vec<ObservedServer> {
    let mut told = HashSet::new();
    servers.retain(|observed| told.insert(observed.server.key));
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_twice_counts_once() {
        let told = |port, persistence| {
            let key = ServerKey::Address(IpAddr::V4(Ipv4Addr::LOCALHOST), Protocol::Tcp, port);
            let scheduler = SchedulerName::new("rr").unwrap();
            let server = Server { key, scheduler, flags: ServerFlags::NONE, persistence };
            ObservedServer { server, is_exact: true, destinations: Vec::new() }
        };
        let all = vec![told(1, None), told(2, None), told(1, Some(60)), told(3, None), told(2, None)];
        assert_eq!(distinct(all), [told(1, None), told(2, None), told(3, None)]);
    }
}
