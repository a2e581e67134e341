//! Network namespaces of this machine, and how to work in another one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::bpf::{BpfError, netns_cookie};

/// Where `ip netns` and container runtimes keep namespaces that may have no process.
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// All network namespaces that can be seen from here: this thread's, those of processes in /proc (which has all of them where the process
/// namespace is the machine's), and those with a name. Each once.
pub fn all() -> Vec<File> {
    let of_processes = list("/proc").into_iter().filter_map(|process| {
        let is_process = process.file_name()?.to_str()?.bytes().all(|byte| byte.is_ascii_digit());
        is_process.then(|| process.join("ns/net"))
    });
    let mut found = BTreeMap::new();
    let own = std::iter::once(PathBuf::from("/proc/thread-self/ns/net"));
    for path in own.chain(of_processes).chain(NAMED.into_iter().flat_map(list)) {
        // Looking at the number first saves opening one file for each process.
        let Ok(number) = path.metadata().map(|data| (data.dev(), data.ino())) else { continue };
        if let std::collections::btree_map::Entry::Vacant(free) = found.entry(number)
            && let Ok(file) = File::open(&path)
        {
            free.insert(file);
        }
    }
    found.into_values().collect()
}

fn list(directory: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Runs something in each of these namespaces, one after another, on a thread that is used for nothing else. What has no
/// network namespace behind it is passed over; one that cannot be entered gives the error.
pub fn in_each<T: Send + 'static>(
    namespaces: Vec<File>,
    mut work: impl FnMut() -> T + Send + 'static,
) -> io::Result<Vec<io::Result<T>>> {
    let run = move || {
        let mut results = Vec::new();
        for namespace in namespaces {
            // SAFETY: the descriptor is open, and no memory is involved. Only this thread changes its namespace.
            let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            match io::Error::last_os_error() {
                _ if entered == 0 => results.push(Ok(work())),
                error if error.raw_os_error() == Some(libc::EINVAL) => {}
                error => results.push(Err(error)),
            }
        }
        results
    };
    let thread = std::thread::Builder::new().name("netns".into()).spawn(run)?;
    thread.join().map_err(|_| io::Error::other("a thread in another network namespace failed"))
}

/// A network namespace, as seen from inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// By which the socket programs know it.
    pub cookie: u64,
    /// The addresses of its interfaces.
    pub addresses: Vec<IpAddr>,
}

/// Looks into all network namespaces but the own. Those that cannot be entered, or that just end, are passed over.
pub fn others() -> Result<Vec<Namespace>, BpfError> {
    let own = netns_cookie()?;
    let found = in_each(all(), look).map_err(|source| BpfError::System {
        operation: "look into other network namespaces".into(),
        source,
    })?;
    Ok(found.into_iter().flatten().flatten().filter(|namespace| namespace.cookie != own).collect())
}

/// The namespace that this thread is in.
fn look() -> Option<Namespace> {
    let cookie = netns_cookie().ok()?;
    let interfaces = nix::ifaddrs::getifaddrs().ok()?;
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
    });
    Some(Namespace { cookie, addresses: addresses.collect() })
}
