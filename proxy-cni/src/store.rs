//! Who has which address, on disk: one small file for each network, replaced as a whole.
//!
//! Whoever holds a [`Store`] holds its lock, so several plugins at once take turns. A file is written beside the old one,
//! synced, and renamed over it: a plugin that is killed at any point leaves the old file or the new one. Addresses of before
//! the last boot are nobody's, because no container survives that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::ipam::{Family, Leases};
use crate::spec::Attachment;

/// How long to wait for other plugins. Each holds the lock for some milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(2);
/// The layout of the file.
const LAYOUT: u32 = 1;
const FILE: &str = "leases.json";

/// Why addresses cannot be read or written down.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be used.
    #[error("{}: cannot {operation}: {source}", .path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Somebody else holds the lock.
    #[error("{}: another plugin has held it for more than {} s", .0.display(), PATIENCE.as_secs())]
    Busy(PathBuf),
    /// The file is not one that we have written.
    #[error(
        "{}: {reason}; no address is given out or taken back before it is mended or, when no pod runs on this node, deleted",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    layout: u32,
    boot: String,
    leases: Vec<WrittenLease>,
    last: Vec<IpAddr>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLease {
    address: IpAddr,
    container: String,
    interface: String,
}

/// The addresses of a network, for as long as nobody else may change them.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    boot: String,
    leases: Leases,
    _lock: Flock<File>,
}

fn failed(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { operation, path: path.clone(), source }
}

/// What tells one boot from the next.
pub fn boot_id() -> Result<String, StoreError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(fs::read_to_string(path).map_err(failed("read", path))?.trim().to_owned())
}

impl Store {
    /// Waits for the lock, and reads what is written down.
    pub fn open(directory: &Path, network: &str, boot: &str) -> Result<Self, StoreError> {
        let directory = directory.join(network);
        fs::create_dir_all(&directory).map_err(failed("make the directory", &directory))?;
        let lock = lock(&directory.join("lock"))?;
        let leases = read(&directory.join(FILE), boot)?;
        Ok(Store { directory, boot: boot.to_owned(), leases, _lock: lock })
    }

    /// What is written down.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Writes down that somebody has addresses, besides what he has.
    pub fn give(&mut self, whose: &Attachment, addresses: &[IpAddr]) -> Result<(), StoreError> {
        let mut leases = self.leases.clone();
        for address in addresses {
            leases.held.insert(*address, whose.clone());
            leases.last.insert(Family::of(address), *address);
        }
        self.replace(leases)
    }

    /// Writes down that somebody has none any more, and returns those that he had.
    pub fn take_back(&mut self, whose: &Attachment) -> Result<Vec<IpAddr>, StoreError> {
        self.keep(|holder| holder != whose)
    }

    /// Writes down that only these have any, and returns those that others had.
    pub fn keep(&mut self, is_kept: impl Fn(&Attachment) -> bool) -> Result<Vec<IpAddr>, StoreError> {
        let mut leases = self.leases.clone();
        let mut gone = Vec::new();
        leases.held.retain(|address, holder| {
            let kept = is_kept(holder);
            if !kept {
                gone.push(*address);
            }
            kept
        });
        if !gone.is_empty() {
            self.replace(leases)?;
        }
        Ok(gone)
    }

    fn replace(&mut self, leases: Leases) -> Result<(), StoreError> {
        let held = leases.held.iter().map(|(address, holder)| WrittenLease {
            address: *address,
            container: holder.container.clone(),
            interface: holder.interface.clone(),
        });
        let written = Written {
            layout: LAYOUT,
            boot: self.boot.clone(),
            leases: held.collect(),
            last: leases.last.values().copied().collect(),
        };
        let (new, path) = (self.directory.join("leases.new"), self.directory.join(FILE));
        let text = serde_json::to_vec(&written).map_err(io::Error::other).map_err(failed("write", &new))?;
        let mut file = File::create(&new).map_err(failed("write", &new))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write", &new))?;
        fs::rename(&new, &path).map_err(failed("replace", &path))?;
        let sync = || File::open(&self.directory)?.sync_all();
        sync().map_err(failed("sync", &self.directory))?;
        self.leases = leases;
        Ok(())
    }
}

fn lock(path: &Path) -> Result<Flock<File>, StoreError> {
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(path);
    let mut file = file.map_err(failed("open", path))?;
    let end = Instant::now() + PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((same, Errno::EWOULDBLOCK | Errno::EINTR)) => file = same,
            Err((_, error)) => return Err(failed("lock", path)(error.into())),
        }
        if Instant::now() > end {
            return Err(StoreError::Busy(path.to_owned()));
        }
        std::thread::sleep(PAUSE);
    }
}

fn read(path: &Path, boot: &str) -> Result<Leases, StoreError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Leases::default()),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let damaged = |reason: String| StoreError::Damaged { path: path.to_owned(), reason };
    let written: Written = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if written.layout != LAYOUT {
        return Err(damaged(format!(
            "it has layout {}, and this plugin reads layout {LAYOUT}",
            written.layout
        )));
    }
    let last = written.last.into_iter().map(|address| (Family::of(&address), address)).collect();
    let mut leases = Leases { last, ..Leases::default() };
    if written.boot == boot {
        for lease in written.leases {
            let holder = Attachment { container: lease.container, interface: lease.interface };
            leases.held.insert(lease.address, holder);
        }
    }
    Ok(leases)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sluice-cni-{name}-{}", std::process::id()));
            drop(fs::remove_dir_all(&path));
            Scratch(path)
        }

        fn open(&self, boot: &str) -> Store {
            Store::open(&self.0, "pods", boot).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    fn pod(name: &str) -> Attachment {
        Attachment::new(name, "eth0").unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_written_is_read_by_the_next_one() {
        let scratch = Scratch::new("store");
        let both = [ip("10.0.0.2"), ip("fd00::2")];
        scratch.open("b").give(&pod("a"), &both).unwrap();
        scratch.open("b").give(&pod("c"), &[ip("10.0.0.3")]).unwrap();
        let mut store = scratch.open("b");
        assert_eq!(store.leases().held.len(), 3);
        assert_eq!(store.leases().last[&Family::V4], ip("10.0.0.3"));
        assert_eq!(store.take_back(&pod("a")).unwrap(), both);
        assert!(store.take_back(&pod("a")).unwrap().is_empty());
        drop(store);
        let mut store = scratch.open("b");
        assert_eq!(store.keep(|_| false).unwrap(), [ip("10.0.0.3")]);
        assert!(store.leases().held.is_empty());
    }

    #[test]
    fn a_boot_frees_all_addresses_and_none_comes_back_at_once() {
        let scratch = Scratch::new("boot");
        scratch.open("one").give(&pod("a"), &[ip("10.0.0.2")]).unwrap();
        let store = scratch.open("two");
        assert!(store.leases().held.is_empty());
        assert_eq!(store.leases().last[&Family::V4], ip("10.0.0.2"));
    }

    #[test]
    fn what_a_killed_plugin_leaves_half_written_is_not_read() {
        let scratch = Scratch::new("killed");
        scratch.open("b").give(&pod("a"), &[ip("10.0.0.2")]).unwrap();
        fs::write(scratch.0.join("pods/leases.new"), "{\"layout\": 1, \"bo").unwrap();
        let mut store = scratch.open("b");
        assert_eq!(store.leases().held.len(), 1);
        store.give(&pod("c"), &[ip("10.0.0.3")]).unwrap();
        drop(store);
        assert_eq!(scratch.open("b").leases().held.len(), 2);
    }

    #[test]
    fn a_damaged_file_is_told_and_left_as_it_is() {
        let scratch = Scratch::new("damaged");
        fs::create_dir_all(scratch.0.join("pods")).unwrap();
        let path = scratch.0.join("pods").join(FILE);
        for text in ["", "{}", "{\"layout\":9,\"boot\":\"b\",\"leases\":[],\"last\":[]}", "x"] {
            fs::write(&path, text).unwrap();
            let error = Store::open(&scratch.0, "pods", "b").unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains("leases.json"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn plugins_take_turns() {
        let scratch = Scratch::new("turns");
        std::thread::scope(|scope| {
            for number in 0..16_u8 {
                let scratch = &scratch;
                scope.spawn(move || {
                    let mut store = scratch.open("b");
                    let next = u8::try_from(store.leases().held.len()).unwrap();
                    let address = IpAddr::from([10, 0, 0, next]);
                    store.give(&pod(&format!("pod-{number}")), &[address]).unwrap();
                });
            }
        });
        assert_eq!(scratch.open("b").leases().held.len(), 16);
    }

    #[test]
    fn what_cannot_be_written_is_not_believed() {
        let scratch = Scratch::new("full");
        scratch.open("b").give(&pod("a"), &[ip("10.0.0.2")]).unwrap();
        let mut store = scratch.open("b");
        // Its place is taken.
        fs::create_dir(scratch.0.join("pods/leases.new")).unwrap();
        assert!(store.give(&pod("c"), &[ip("10.0.0.3")]).is_err());
        assert_eq!(store.leases().held.len(), 1);
        drop(store);
        assert_eq!(scratch.open("b").leases().held.len(), 1);
    }
}
