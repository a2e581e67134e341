//! Looking at the kernel without a daemon, and often without rights.

use sluice_core::lang::nftables::Table;
use sluice_sys::bpf::BpfError;
use sluice_sys::dummy::LinkError;
use sluice_sys::netlink::NetlinkError;
use sluice_sys::nft::Nft;

const NO_NET_ADMIN: &str = "missing capability CAP_NET_ADMIN: run as root, or give the container \
                            securityContext.capabilities.add: [NET_ADMIN]";
pub(crate) const NO_BPF: &str =
    "missing capability CAP_BPF: run as root, or give the container securityContext.capabilities.add: [BPF]";

/// Why a part cannot be looked at.
#[derive(Debug)]
pub(crate) enum Reason {
    /// A right is missing, and how to get it.
    Right(&'static str),
    Other(String),
}

impl Reason {
    /// By the number of the system's error.
    pub(crate) fn new(errno: Option<i32>, right: &'static str, error: impl ToString) -> Self {
        match errno {
            Some(libc::EPERM | libc::EACCES) => Reason::Right(right),
            _ => Reason::Other(error.to_string()),
        }
    }
}

impl From<NetlinkError> for Reason {
    fn from(error: NetlinkError) -> Self {
        Reason::new(error.errno(), NO_NET_ADMIN, error)
    }
}

impl From<BpfError> for Reason {
    fn from(error: BpfError) -> Self {
        Reason::new(error.errno(), NO_BPF, error)
    }
}

impl From<LinkError> for Reason {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Netlink(error) => error.into(),
            error => Reason::Other(error.to_string()),
        }
    }
}

/// Whether an error says that this kernel has no nf_tables, so that there is no table either.
fn lacks_nf_tables(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(libc::EINVAL | libc::EPROTONOSUPPORT | libc::EOPNOTSUPP))
}

/// Whether there is a table of nftables.
pub(crate) fn has_table(table: &Table) -> Result<bool, NetlinkError> {
    match Nft::open().and_then(|mut nft| nft.has_table(table)) {
        Err(error) if lacks_nf_tables(&error) => Ok(false),
        other => other,
    }
}
