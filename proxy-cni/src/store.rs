//! Who has which address, on disk: one small file for each network, replaced as a whole.
//!
//! Whoever holds a [`Store`] holds its lock, so several plugins at once take turns. A file is written beside the old one,
//! synced, and renamed over it: a plugin that is killed at any point leaves the old file or the new one. Addresses of before
//! the last boot are nobody's, because no container survives that. Fields that another version has added are passed over.

use std::collections::{BTreeMap, BTreeSet};
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
use crate::spec::{Attachment, PortMapping};
use crate::wiring::{Mac, mac_text, parse_mac};

/// How long to wait for other plugins. Each holds the lock for some milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(2);
/// The layout of the file.
const LAYOUT: u32 = 1;
const FILE: &str = "leases.json";
/// Where a damaged file goes.
const DAMAGED: &str = "leases.json.damaged";

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

impl StoreError {
    /// Whether the disk does not take what is to be written, or is broken. It may stay so for as long as pods keep it full.
    pub fn is_of_the_disk(&self) -> bool {
        let errno = match self {
            StoreError::Io { source, .. } => source.raw_os_error().map(Errno::from_raw),
            StoreError::Busy(_) | StoreError::Damaged { .. } => None,
        };
        matches!(errno, Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EROFS | Errno::EIO))
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Written {
    layout: u32,
    boot: String,
    leases: Vec<WrittenLease>,
    last: Vec<IpAddr>,
    #[serde(default)]
    host_ports: Vec<WrittenPorts>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    macs: Vec<WrittenMac>,
}

#[derive(Serialize, Deserialize)]
struct WrittenMac {
    container: String,
    interface: String,
    mac: String,
}

#[derive(Serialize, Deserialize)]
struct WrittenLease {
    address: IpAddr,
    container: String,
    interface: String,
}

#[derive(Serialize, Deserialize)]
struct WrittenPorts {
    container: String,
    interface: String,
    addresses: Vec<IpAddr>,
    mappings: Vec<PortMapping>,
}

/// Ports of the node that lead to a pod. Who watches the file sees to it that they do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts {
    /// Whose.
    pub holder: Attachment,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Which.
    pub mappings: Vec<PortMapping>,
}

/// What is written down of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Addresses.
    pub leases: Leases,
    /// In the order in which they were asked for.
    pub host_ports: Vec<HostPorts>,
    /// Hardware addresses of pods on a bridge, whose frames are held against them. Pods of versions before have none.
    pub macs: BTreeMap<Attachment, Mac>,
}

impl Contents {
    /// Whoever has anything.
    pub fn holders(&self) -> BTreeSet<Attachment> {
        let of_ports = self.host_ports.iter().map(|ports| &ports.holder);
        self.leases.held.values().chain(of_ports).chain(self.macs.keys()).cloned().collect()
    }
}

/// The addresses of a network, for as long as nobody else may change them.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    boot: String,
    contents: Contents,
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
        Self::open_or_begin(directory, network, boot, || false)
    }

    /// The same, but a damaged file is set aside where nobody has an address: `is_unused` is asked under the lock.
    pub fn open_or_begin(
        directory: &Path,
        network: &str,
        boot: &str,
        is_unused: impl FnOnce() -> bool,
    ) -> Result<Self, StoreError> {
        let directory = directory.join(network);
        fs::create_dir_all(&directory).map_err(failed("make the directory", &directory))?;
        let lock = lock(&directory.join("lock"))?;
        let path = directory.join(FILE);
        let contents = match read(&path, boot) {
            Err(StoreError::Damaged { .. }) if is_unused() => {
                fs::rename(&path, directory.join(DAMAGED)).map_err(failed("set aside", &path))?;
                Contents::default()
            }
            other => other?,
        };
        Ok(Store { directory, boot: boot.to_owned(), contents, _lock: lock })
    }

    /// Everything that is written down.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Who has which address.
    pub fn leases(&self) -> &Leases {
        &self.contents.leases
    }

    /// Writes down that somebody has addresses, besides what he has, that ports of the node lead to him, and which hardware
    /// address his frames have.
    pub fn give(
        &mut self,
        whose: &Attachment,
        addresses: &[IpAddr],
        ports: Option<HostPorts>,
        mac: Option<Mac>,
    ) -> Result<(), StoreError> {
        let mut contents = self.contents.clone();
        for address in addresses {
            contents.leases.held.insert(*address, whose.clone());
            contents.leases.last.insert(Family::of(address), *address);
        }
        contents.host_ports.retain(|had| had.holder != *whose);
        contents.host_ports.extend(ports);
        contents.macs.remove(whose);
        contents.macs.extend(mac.map(|mac| (whose.clone(), mac)));
        self.replace(contents)
    }

    /// Writes down that somebody has none any more, and returns those that he had.
    pub fn take_back(&mut self, whose: &Attachment) -> Result<Vec<IpAddr>, StoreError> {
        self.keep(|holder| holder != whose)
    }

    /// Writes down that only these have any, and returns those that others had.
    pub fn keep(&mut self, is_kept: impl Fn(&Attachment) -> bool) -> Result<Vec<IpAddr>, StoreError> {
        let mut contents = self.contents.clone();
        let gone =
            contents.leases.held.extract_if(.., |_, holder| !is_kept(holder)).map(|(address, _)| address);
        let gone: Vec<IpAddr> = gone.collect();
        contents.host_ports.retain(|ports| is_kept(&ports.holder));
        contents.macs.retain(|holder, _| is_kept(holder));
        if contents != self.contents {
            self.replace(contents)?;
        }
        Ok(gone)
    }

    fn replace(&mut self, contents: Contents) -> Result<(), StoreError> {
        let held = contents.leases.held.iter().map(|(address, holder)| WrittenLease {
            address: *address,
            container: holder.container.clone(),
            interface: holder.interface.clone(),
        });
        let ports = contents.host_ports.iter().cloned().map(|ports| WrittenPorts {
            container: ports.holder.container,
            interface: ports.holder.interface,
            addresses: ports.addresses,
            mappings: ports.mappings,
        });
        let macs = contents.macs.iter().map(|(holder, mac)| WrittenMac {
            container: holder.container.clone(),
            interface: holder.interface.clone(),
            mac: mac_text(mac),
        });
        let written = Written {
            layout: LAYOUT,
            boot: self.boot.clone(),
            leases: held.collect(),
            last: contents.leases.last.values().copied().collect(),
            host_ports: ports.collect(),
            macs: macs.collect(),
        };
        let (new, path) = (self.directory.join("leases.new"), self.directory.join(FILE));
        let text = serde_json::to_vec(&written).map_err(io::Error::other).map_err(failed("write", &new))?;
        let mut file = File::create(&new).map_err(failed("write", &new))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write", &new))?;
        // Its directory is not synced: after a crash the old file would count for nothing either, because the boot is another.
        fs::rename(&new, &path).map_err(failed("replace", &path))?;
        self.contents = contents;
        Ok(())
    }
}

/// The file of a network.
pub fn file(directory: &Path, network: &str) -> PathBuf {
    directory.join(network).join(FILE)
}

/// What is written down at the moment, for who only looks: no lock is taken, and a network that has nothing yet has nothing.
pub fn look(directory: &Path, network: &str) -> Result<Contents, StoreError> {
    read(&file(directory, network), &boot_id()?)
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

fn read(path: &Path, boot: &str) -> Result<Contents, StoreError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contents::default()),
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
    let mut contents = Contents { leases: Leases { last, ..Leases::default() }, ..Contents::default() };
    if written.boot == boot {
        let held = written.leases.into_iter().map(|lease| {
            (lease.address, Attachment { container: lease.container, interface: lease.interface })
        });
        contents.leases.held = held.collect();
        let ports = written.host_ports.into_iter().map(|ports| HostPorts {
            holder: Attachment { container: ports.container, interface: ports.interface },
            addresses: ports.addresses,
            mappings: ports.mappings,
        });
        contents.host_ports = ports.collect();
        let macs = written.macs.into_iter().filter_map(|written| {
            let holder = Attachment { container: written.container, interface: written.interface };
            Some((holder, parse_mac(&written.mac)?))
        });
        contents.macs = macs.collect();
    }
    Ok(contents)
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
        scratch.open("b").give(&pod("a"), &both, None, None).unwrap();
        scratch.open("b").give(&pod("c"), &[ip("10.0.0.3")], None, None).unwrap();
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
    fn ports_of_the_node_go_with_the_pod() {
        let scratch = Scratch::new("ports");
        let mapping = PortMapping {
            host_port: 80,
            container_port: 8080,
            protocol: "tcp".into(),
            host_ip: String::new(),
        };
        let ports = |name| HostPorts {
            holder: pod(name),
            addresses: vec![ip("10.0.0.2")],
            mappings: vec![mapping.clone()],
        };
        let mut store = scratch.open("b");
        for name in ["b", "a", "b"] {
            store.give(&pod(name), &[], Some(ports(name)), None).unwrap();
        }
        drop(store);
        let read = |boot| read(&file(&scratch.0, "pods"), boot).unwrap().host_ports;
        assert_eq!(read("b"), [ports("a"), ports("b")]);
        assert_eq!(read("c"), []);
        scratch.open("b").take_back(&pod("a")).unwrap();
        assert_eq!(read("b"), [ports("b")]);
    }

    #[test]
    fn a_boot_frees_all_addresses_and_none_comes_back_at_once() {
        let scratch = Scratch::new("boot");
        scratch.open("one").give(&pod("a"), &[ip("10.0.0.2")], None, None).unwrap();
        let store = scratch.open("two");
        assert!(store.leases().held.is_empty());
        assert_eq!(store.leases().last[&Family::V4], ip("10.0.0.2"));
    }

    #[test]
    fn what_a_killed_plugin_leaves_half_written_is_not_read() {
        let scratch = Scratch::new("killed");
        scratch.open("b").give(&pod("a"), &[ip("10.0.0.2")], None, None).unwrap();
        fs::write(scratch.0.join("pods/leases.new"), "{\"layout\": 1, \"bo").unwrap();
        let mut store = scratch.open("b");
        assert_eq!(store.leases().held.len(), 1);
        store.give(&pod("c"), &[ip("10.0.0.3")], None, None).unwrap();
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
                    store.give(&pod(&format!("pod-{number}")), &[address], None, None).unwrap();
                });
            }
        });
        assert_eq!(scratch.open("b").leases().held.len(), 16);
    }

    #[test]
    fn a_disk_that_takes_nothing_is_told_from_other_trouble() {
        let failure = |errno: Errno| failed("write", Path::new("x"))(errno.into()).is_of_the_disk();
        assert!([Errno::ENOSPC, Errno::EDQUOT, Errno::EROFS, Errno::EIO].into_iter().all(failure));
        assert!(![Errno::EACCES, Errno::EISDIR, Errno::ENOENT].into_iter().any(failure));
    }

    #[test]
    fn what_cannot_be_written_is_not_believed() {
        let scratch = Scratch::new("full");
        scratch.open("b").give(&pod("a"), &[ip("10.0.0.2")], None, None).unwrap();
        let mut store = scratch.open("b");
        // Its place is taken.
        fs::create_dir(scratch.0.join("pods/leases.new")).unwrap();
        assert!(!store.give(&pod("c"), &[ip("10.0.0.3")], None, None).unwrap_err().is_of_the_disk());
        assert_eq!(store.leases().held.len(), 1);
        drop(store);
        assert_eq!(scratch.open("b").leases().held.len(), 1);
    }
}
