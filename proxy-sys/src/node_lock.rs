//! One daemon at a time in a network namespace, whatever its mode: all that the backends write
//! belongs to the namespace, so two would undo each other's work.
//!
//! The lock is an abstract unix socket (unix(7)): its name belongs to the network namespace, as
//! what it guards does; it needs no file and no right; and the kernel lets go of it with the
//! process, however that ends. The name tells who holds it, by `SO_PEERCRED`, in the asker's
//! numbers of processes. Anybody in the namespace may take a name, so only a process of root, or of
//! the asker's own user, counts as a holder.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};
use nix::unistd::geteuid;

/// The name of the lock, which /proc/net/unix shows as `@sluice-daemon`.
const NAME: &str = "sluice-daemon";

/// Keeps other daemons out of this network namespace until it is dropped.
#[derive(Debug)]
pub struct NodeLock {
    listener: UnixListener,
}

/// A daemon that is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id as this process sees it. `None`: it is in another PID namespace, or may not
    /// be asked.
    pub pid: Option<u32>,
}

impl Display for Holder {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid}"),
            None => {
                write!(f, "a process that is not visible here; on the node, `ss -xlp src @{NAME}` shows it")
            }
        }
    }
}

/// The lock could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum NodeLockError {
    /// Another daemon has it.
    #[error("another sluice is running in this network namespace: {0}")]
    Held(Holder),
    /// Somebody has the name who cannot be a daemon, unless it is just coming or going.
    #[error("the socket name @{NAME} is used by a process that is not a sluice daemon: {0}")]
    Squatted(String),
    /// A system call failed.
    #[error("lock the network namespace: {0}")]
    System(#[from] io::Error),
}

/// Who has the name.
enum Asked {
    Nobody,
    Daemon(Holder),
    Other(String),
}

impl NodeLock {
    /// Takes the lock, or tells who has it; never waits.
    pub fn take() -> Result<Self, NodeLockError> {
        match UnixListener::bind_addr(&SocketAddr::from_abstract_name(NAME)?) {
            Ok(listener) => Ok(NodeLock { listener }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(match ask(NAME)? {
                Asked::Daemon(holder) => NodeLockError::Held(holder),
                // Or it has ended in between, or has yet to listen: the next attempt tells.
                Asked::Nobody => NodeLockError::Squatted("it does not listen".into()),
                Asked::Other(whom) => NodeLockError::Squatted(whom),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Who asks for the holder comes by here, and has its answer already: all that is left to do is
    /// to accept and to close, or the queue of connections would fill up. Nonblocking.
    pub fn visitors(&self) -> io::Result<UnixListener> {
        self.listener.set_nonblocking(true)?;
        self.listener.try_clone()
    }
}

/// Which daemon is at work in this network namespace, if there is one. Nothing is taken, so that
/// nobody is kept from starting.
pub fn holder() -> io::Result<Option<Holder>> {
    Ok(match ask(NAME)? {
        Asked::Daemon(holder) => Some(holder),
        Asked::Nobody | Asked::Other(_) => None,
    })
}

/// Asks who listens by this name. It is asked without waiting, because a queue that is full would
/// hold us up for ever.
fn ask(name: &str) -> io::Result<Asked> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let asker: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let address = UnixAddr::new_abstract(name.as_bytes())?;
    match connect(asker.as_raw_fd(), &address) {
        Ok(()) => {
            let credentials = getsockopt(&asker.as_fd(), PeerCredentials)?;
            let (pid, uid) = (credentials.pid(), credentials.uid());
            if uid != 0 && uid != geteuid().as_raw() {
                return Ok(Asked::Other(format!("process {pid} of user {uid}")));
            }
            Ok(Asked::Daemon(Holder { pid: u32::try_from(pid).ok().filter(|pid| *pid != 0) }))
        }
        Err(Errno::ECONNREFUSED) => Ok(Asked::Nobody),
        // A security module keeps processes apart, which says nothing against its being a daemon.
        Err(Errno::EACCES | Errno::EPERM) => Ok(Asked::Daemon(Holder { pid: None })),
        // A daemon accepts.
        Err(Errno::EAGAIN) => Ok(Asked::Other("it does not accept connections".into())),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_the_lock_is_reported_until_it_is_released() {
        let name = format!("sluice-lock-test-{}", std::process::id());
        assert!(matches!(ask(&name).unwrap(), Asked::Nobody));
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let own = Holder { pid: Some(std::process::id()) };
        assert!(matches!(ask(&name).unwrap(), Asked::Daemon(holder) if holder == own));
        assert_eq!(own.to_string(), format!("process {}", std::process::id()));
        drop(listener);
        assert!(matches!(ask(&name).unwrap(), Asked::Nobody));
    }

    #[test]
    fn a_listener_with_a_full_queue_is_no_daemon_and_does_not_block() {
        let name = format!("sluice-many-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let _listener = UnixListener::bind_addr(&address).unwrap();
        let limit = 100_000;
        let full = (0..limit).find(|_| matches!(ask(&name).unwrap(), Asked::Other(_)));
        assert!(full.is_some(), "a queue of more than {limit}");
    }
}
