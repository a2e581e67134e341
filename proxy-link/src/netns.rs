//! Network namespaces of this machine, and how to work in another one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};

/// That of this thread.
const OWN: &str = "/proc/thread-self/ns/net";

/// Where `ip netns` and container runtimes keep namespaces that may have no process.
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// Of namespaces' files (`NSFS_MAGIC` of linux/magic.h).
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// Why nothing was done in a namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// It cannot be entered.
    #[error(transparent)]
    Enter(#[from] io::Error),
    /// The thread that was to work there failed.
    #[error("a thread in another network namespace failed")]
    Thread,
}

/// Opens a namespace by its path.
pub fn open(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    if fstatfs(&file).is_ok_and(|of| of.filesystem_type() == NSFS_MAGIC) {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "not a network namespace"))
}

/// Whether it is that of this thread.
pub fn is_own(namespace: &File) -> io::Result<bool> {
    let identity = |of: &std::fs::Metadata| (of.dev(), of.ino());
    Ok(identity(&namespace.metadata()?) == identity(&std::fs::metadata(OWN)?))
}

/// Puts this thread into a namespace, for good.
fn enter(namespace: &File) -> io::Result<()> {
    Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
}

/// Runs something in a namespace, on a thread that is used for nothing else.
pub fn within<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let run = || {
        enter(namespace)?;
        Ok(work())
    };
    thread::scope(|scope| scope.spawn(run).join().unwrap_or(Err(NetnsError::Thread)))
}

/// Runs something in each of these namespaces, one after another, on a thread that is used for
/// nothing else. What has no network namespace behind it is passed over; one that cannot be entered
/// gives the error.
pub fn in_each<T: Send + 'static>(
    namespaces: Vec<File>,
    mut work: impl FnMut() -> T + Send + 'static,
) -> io::Result<Vec<io::Result<T>>> {
    let run = move || {
        let mut results = Vec::new();
        for namespace in namespaces {
            match enter(&namespace) {
                Ok(()) => results.push(Ok(work())),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => results.push(Err(error)),
            }
        }
        results
    };
    let thread = thread::Builder::new().name("netns".into()).spawn(run)?;
    thread.join().map_err(|_| io::Error::other(NetnsError::Thread))
}

/// All network namespaces that can be seen from here: this thread's, those of processes in /proc
/// (which has all of them where the process namespace is the machine's), and those with a name.
/// Each once.
pub fn all() -> Vec<File> {
    let of_processes = list("/proc").into_iter().filter_map(|process| {
        let is_process = process.file_name()?.to_str()?.bytes().all(|byte| byte.is_ascii_digit());
        is_process.then(|| process.join("ns/net"))
    });
    let mut found = BTreeMap::new();
    let own = std::iter::once(PathBuf::from(OWN));
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
