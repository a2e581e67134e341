//! eBPF: maps, programs and links, kept in one directory of a bpf filesystem.
//!
//! [`Instance`] is what there is of sluice in the kernel: pinned maps, pinned links, and the
//! programs that the links hold. The daemon may end, or be replaced, and nothing changes for
//! traffic: whoever comes next opens the pins, loads its own programs with the same maps, and puts
//! them in the place of the old ones, link by link, without a gap.
//!
//! aya reads and relocates the object file and loads programs. What it has no words for goes to
//! bpf(2) directly: maps with contents of any type, operations on many entries, replacing the
//! program of a link.

mod cgroup;
mod clsact;
mod directory;
mod ender;
mod instance;
mod layout;
mod links;
mod load;
mod map;
mod maps;
mod namespaces;
mod plain;
mod probe;
mod sources;
mod syscall;
mod view;

pub use cgroup::Cgroup;
pub use directory::{Directory, Lock};
pub use ender::Ender;
pub use instance::{Device, Failure, Instance, Layer, Links, Options, Resized};
pub use layout::{Sizes, Spec, spec};
pub use map::{Map, Usage};
pub use maps::Maps;
pub use namespaces::leave_alone;
pub use plain::Plain;
pub use probe::{Missing, probe};
pub use sources::{PodSources, set_pod_sources};
pub use view::{LinkState, Place, View, counters, interface_name};

use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use crate::netlink::NetlinkError;

/// What went wrong between us and the kernel's eBPF.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// A system call failed.
    #[error("{operation}: {source}")]
    System {
        /// What was tried.
        operation: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The object file is not what it should be.
    #[error("the eBPF object is broken: {0}")]
    Object(String),
    /// The kernel does not accept a program.
    #[error("the kernel refuses eBPF program {program}: {source}{}", verifier_says(.log))]
    Program {
        /// Its name.
        program: String,
        /// The system's answer.
        #[source]
        source: io::Error,
        /// What the verifier says last.
        log: String,
    },
    /// The directory is not on a bpf filesystem.
    #[error(
        "{} is not on a bpf filesystem: mount one (mount -t bpf bpf /sys/fs/bpf; in a container, a hostPath volume of /sys/fs/bpf/sluice, mounted outside of /sys and named by sluice.ebpf.bpffs)",
        .0.display()
    )]
    NoBpffs(PathBuf),
    /// Another process uses the directory.
    #[error("another sluice uses {}: stop it first, or set another directory (sluice.ebpf.bpffs)", .0.display())]
    Busy(PathBuf),
    /// Nothing of sluice is there.
    #[error("there is no state of sluice's eBPF backend in {}", .0.display())]
    Absent(PathBuf),
    /// The directory given is no cgroup.
    #[error(
        "{} is not a directory of a cgroup2 filesystem: mount one (mount -t cgroup2 none \
         /sys/fs/cgroup), or set its path (sluice.ebpf.cgroupRoot)",
        .0.display()
    )]
    NoCgroup(PathBuf),
    /// The kernel refused a request about interfaces.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

fn verifier_says(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("; the verifier says:\n{log}") }
}

impl BpfError {
    fn system(operation: impl Into<String>, source: io::Error) -> Self {
        BpfError::System { operation: operation.into(), source }
    }

    /// The error number, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            BpfError::System { source, .. } | BpfError::Program { source, .. } => source.raw_os_error(),
            BpfError::Netlink(error) => error.errno(),
            _ => None,
        }
    }
}

/// Kernels before 5.11 count maps and programs as locked memory of the process.
fn lift_memory_limit() {
    let all = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the pointer is to a whole rlimit. A refusal does not matter: newer kernels have no
    // such limit.
    unsafe {
        libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const all);
    }
}

/// The cookie of the network namespace that this thread is in (`SO_NETNS_COOKIE`, since Linux
/// 5.14).
pub fn netns_cookie() -> Result<u64, BpfError> {
    const SO_NETNS_COOKIE: i32 = 71;
    let failed = |source| BpfError::system("get the network namespace's cookie (SO_NETNS_COOKIE)", source);
    // Any socket will do.
    let socket = std::os::unix::net::UnixDatagram::unbound().map_err(failed)?;
    let mut cookie = 0u64;
    let mut len = std::mem::size_of::<u64>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and pointer and length describe one u64.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(failed(io::Error::last_os_error())) }
}
