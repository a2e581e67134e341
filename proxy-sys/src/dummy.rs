//! A dummy link, whose addresses are the node's without being on any wire.
//!
//! The link stays down, as kube-proxy's does: its addresses are the node's all the same, of both
//! families, and the kernel does nothing by itself (no link-local address, no multicast groups, no
//! routers asked).

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo,
};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use sluice_link::sysctl::write_if_different;
use sluice_link::{BatchError, Netlink, NetlinkError, Request, read, request};

use crate::modules::{self, ModuleError};

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

/// A change of a link's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressChange {
    /// Makes an address one of the node's.
    Bind(IpAddr),
    /// Takes it away.
    Unbind(IpAddr),
}

impl fmt::Display for AddressChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddressChange::Bind(ip) => write!(f, "bind address {ip}"),
            AddressChange::Unbind(ip) => write!(f, "unbind address {ip}"),
        }
    }
}

/// A dummy link of a network namespace.
pub struct Link {
    netlink: Netlink,
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
        let mut netlink = Netlink::open()?;
        let Some(link) = netlink.link(name)? else { return Ok(None) };
        let kind = read::kind(&link);
        if kind == Some(&InfoKind::Dummy) {
            return Ok(Some(Link { netlink, index: link.header.index }));
        }
        let kind = kind.map(ToString::to_string).unwrap_or_default();
        Err(LinkError::Other { name: name.to_owned(), kind })
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
        let gone = || NetlinkError::Malformed { operation: "find the created link" };
        Self::find(name)?.ok_or_else(|| gone().into())
    }

    /// Its index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its addresses of single hosts, which are all that [`Link::apply`] can bind.
    pub fn addresses(&mut self) -> Result<BTreeSet<IpAddr>, NetlinkError> {
        let all = self.netlink.addresses(self.index)?.into_iter();
        Ok(all.filter(|net| net.prefix_len() == net.max_prefix_len()).map(|net| net.addr()).collect())
    }

    /// Makes the changes, in their order, each with what it is done for. An address that is bound
    /// already, or gone already, is no error. The error has all those that were refused; the others
    /// are done.
    ///
    /// With IPv6, the kernel makes an address that is bound the node's a moment later, not before
    /// this returns; and it looks at all addresses of the node for each one bound, and at all
    /// routes for each one unbound. Binding 10,000 takes 4 s, unbinding them 12 s (with IPv4 1 s
    /// each); [`Link::delete`] does away with as many in 0.1 s.
    pub fn apply<T: fmt::Display + fmt::Debug>(
        &mut self,
        changes: impl IntoIterator<Item = (T, AddressChange)>,
    ) -> Result<(), BatchError<T>> {
        let index = self.index;
        self.netlink.apply_each(changes.into_iter().map(|(item, change)| (item, requested(index, change))))
    }

    /// Deletes the link with its addresses.
    pub fn delete(mut self) -> Result<(), NetlinkError> {
        match self.netlink.delete_link(self.index) {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }
}

/// Makes the link, unless somebody else did so meanwhile.
fn request_new(name: &str) -> Result<(), NetlinkError> {
    let mut link = request::link_named(name);
    link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]));
    let make = request::new_link("create a dummy link", link, NLM_F_CREATE | NLM_F_EXCL);
    match Netlink::open()?.apply(vec![make]) {
        Err(error) if error.errno() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

fn requested(link: u32, change: AddressChange) -> Request {
    match change {
        AddressChange::Bind(ip) => {
            let mut message = message(link, ip);
            keep_from_sources(&mut message, ip);
            let message = RouteNetlinkMessage::NewAddress(message);
            Request::new(message, NLM_F_CREATE | NLM_F_EXCL).is_done_by(&[libc::EEXIST])
        }
        AddressChange::Unbind(ip) => {
            let message = RouteNetlinkMessage::DelAddress(message(link, ip));
            Request::new(message, 0).is_done_by(&[libc::EADDRNOTAVAIL])
        }
    }
}

fn message(link: u32, ip: IpAddr) -> AddressMessage {
    let mut message = request::address(link, IpNet::from(ip));
    if ip.is_ipv4() {
        // The kernel derives that of IPv6 from the address.
        message.header.scope = AddressScope::Host;
    }
    message
}

/// Others must not see packets that the node sends come from a Service's address just because the
/// interface that they leave by has none of its own. IPv4 takes none of scope host for that; IPv6
/// has no such scope, and takes a deprecated one after all others (RFC 6724, rule 3).
fn keep_from_sources(message: &mut AddressMessage, ip: IpAddr) {
    // Nobody else can have the address, for the link has no neighbours; and the local route is all
    // that is needed.
    let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
    message.attributes.push(AddressAttribute::Flags(flags));
    if ip.is_ipv6() {
        let mut lifetimes = CacheInfo::default();
        lifetimes.ifa_valid = u32::MAX;
        message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
    }
}

/// Should somebody set the link up, the kernel is to do nothing by itself either, and addresses are
/// to survive its going down. This is a precaution: where it fails, or there is no IPv6, all works
/// the same.
fn quieten(name: &str) {
    for (sysctl, value) in
        [("addr_gen_mode", "1"), ("accept_ra", "0"), ("autoconf", "0"), ("keep_addr_on_down", "1")]
    {
        let path = PathBuf::from("/proc/sys/net/ipv6/conf").join(name).join(sysctl);
        let _ = write_if_different(path, value);
    }
}
