//! Who has which address, on disk: one small file for each network, replaced as a whole.
//!
//! Whoever holds a [`Store`] holds its lock, so several plugins at once take turns. A file is
//! written beside the old one, synced, and renamed over it: a plugin that is killed at any point
//! leaves the old file or the new one. Addresses of before the last boot are nobody's, because no
//! container survives that. Fields that another version has added are not understood, but kept: at
//! the top for good, and those of a lease, of ports or of a hardware address for as long as its
//! holder has it.

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
use serde_json::{Map, Value};
use sluice_link::Mac;

use crate::ipam::{Family, Leases};
use crate::spec::{Attachment, PortMapping};
use crate::wiring::{mac_text, parse_mac};

/// How long to wait for other plugins. Each holds the lock for some milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(2);
/// The layout of the file.
const LAYOUT: u32 = 1;
const FILE: &str = "leases.json";
/// Where a damaged file goes; the next ones get a number behind.
const DAMAGED: &str = "leases.json.damaged";
/// So many damaged files are kept, which is a bound for who damages one again and again.
const KEPT_DAMAGED: usize = 16;

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
    #[error("{}: another process of the plugin has held this lock for more than {} s", .0.display(), PATIENCE.as_secs())]
    Busy(PathBuf),
    /// The file is not one that we have written.
    #[error(
        "{}: {reason}; no address is allocated or released until the file is repaired or, when no pod \
         runs on this node, deleted",
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
    /// Whether the disk does not take what is to be written, or is broken. It may stay so for as
    /// long as pods keep it full.
    pub fn is_of_the_disk(&self) -> bool {
        let errno = match self {
            StoreError::Io { source, .. } => source.raw_os_error().map(Errno::from_raw),
            StoreError::Busy(_) | StoreError::Damaged { .. } => None,
        };
        matches!(errno, Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EROFS | Errno::EIO))
    }
}

/// Fields that this version does not know.
type Unknown = Map<String, Value>;

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
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Serialize, Deserialize)]
struct WrittenMac {
    container: String,
    interface: String,
    mac: String,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Serialize, Deserialize)]
struct WrittenLease {
    address: IpAddr,
    container: String,
    interface: String,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Serialize, Deserialize)]
struct WrittenPorts {
    container: String,
    interface: String,
    addresses: Vec<IpAddr>,
    mappings: Vec<PortMapping>,
    #[serde(flatten)]
    unknown: Unknown,
}

/// What another version has written besides what is understood here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Foreign {
    top: Unknown,
    leases: BTreeMap<(IpAddr, Attachment), Unknown>,
    host_ports: BTreeMap<Attachment, Unknown>,
    macs: BTreeMap<Attachment, Unknown>,
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
    /// Hardware addresses of pods on a bridge, whose frames are held against them. Pods of versions
    /// before have none.
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
    foreign: Foreign,
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

    /// The same, but a damaged file is set aside where nobody has an address: `is_unused` is asked
    /// under the lock.
    pub fn open_or_begin(
        directory: &Path,
        network: &str,
        boot: &str,
        is_unused: impl FnOnce() -> bool,
    ) -> Result<Self, StoreError> {
        let directory = directory.join(network);
        fs::create_dir_all(&directory).map_err(failed("create the directory", &directory))?;
        let lock = lock(&directory.join("lock"))?;
        let path = directory.join(FILE);
        let (contents, foreign) = match read(&path, boot) {
            Err(StoreError::Damaged { .. }) if is_unused() => {
                fs::rename(&path, free_place(&directory)).map_err(failed("rename", &path))?;
                Default::default()
            }
            other => other?,
        };
        Ok(Store { directory, boot: boot.to_owned(), contents, foreign, _lock: lock })
    }

    /// Everything that is written down.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Who has which address.
    pub fn leases(&self) -> &Leases {
        &self.contents.leases
    }

    /// Writes down that somebody has addresses, besides what he has, that ports of the node lead to
    /// him, and which hardware address his frames have.
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
        // What was said of its ports and its hardware address before says nothing of these.
        let mut foreign = self.foreign.clone();
        foreign.host_ports.remove(whose);
        foreign.macs.remove(whose);
        self.replace(contents, foreign)
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
            self.replace(contents, self.foreign.clone())?;
        }
        Ok(gone)
    }

    fn replace(&mut self, contents: Contents, mut foreign: Foreign) -> Result<(), StoreError> {
        foreign.forget_all_but(&contents);
        let written = written(&self.boot, &contents, &foreign);
        let (new, path) = (self.directory.join("leases.new"), self.directory.join(FILE));
        let text = serde_json::to_vec(&written).map_err(io::Error::other).map_err(failed("write", &new))?;
        let mut file = File::create(&new).map_err(failed("write", &new))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write", &new))?;
        // Its directory is not synced: after a crash the old file would count for nothing either,
        // because the boot is another.
        fs::rename(&new, &path).map_err(failed("replace", &path))?;
        (self.contents, self.foreign) = (contents, foreign);
        Ok(())
    }
}

impl Foreign {
    fn forget_all_but(&mut self, contents: &Contents) {
        self.leases.retain(|(address, holder), _| contents.leases.held.get(address) == Some(holder));
        self.host_ports.retain(|holder, _| contents.host_ports.iter().any(|ports| ports.holder == *holder));
        self.macs.retain(|holder, _| contents.macs.contains_key(holder));
    }
}

fn written(boot: &str, contents: &Contents, foreign: &Foreign) -> Written {
    let of = |all: &BTreeMap<Attachment, Unknown>, holder| all.get(holder).cloned().unwrap_or_default();
    let held = contents.leases.held.iter().map(|(address, holder)| WrittenLease {
        address: *address,
        container: holder.container.clone(),
        interface: holder.interface.clone(),
        unknown: foreign.leases.get(&(*address, holder.clone())).cloned().unwrap_or_default(),
    });
    let ports = contents.host_ports.iter().map(|ports| WrittenPorts {
        container: ports.holder.container.clone(),
        interface: ports.holder.interface.clone(),
        addresses: ports.addresses.clone(),
        mappings: ports.mappings.clone(),
        unknown: of(&foreign.host_ports, &ports.holder),
    });
    let macs = contents.macs.iter().map(|(holder, mac)| WrittenMac {
        container: holder.container.clone(),
        interface: holder.interface.clone(),
        mac: mac_text(mac),
        unknown: of(&foreign.macs, holder),
    });
    Written {
        layout: LAYOUT,
        boot: boot.to_owned(),
        leases: held.collect(),
        last: contents.leases.last.values().copied().collect(),
        host_ports: ports.collect(),
        macs: macs.collect(),
        unknown: foreign.top.clone(),
    }
}

/// Where a damaged file can go without taking the place of another. When all places are taken, the
/// last one is given again.
fn free_place(directory: &Path) -> PathBuf {
    let numbered = (2..=KEPT_DAMAGED).map(|number| format!("{DAMAGED}.{number}"));
    let mut places = std::iter::once(DAMAGED.to_owned()).chain(numbered).map(|name| directory.join(name));
    let is_free = |place: &PathBuf| fs::symlink_metadata(place).is_err();
    places.find(is_free).unwrap_or_else(|| directory.join(format!("{DAMAGED}.{KEPT_DAMAGED}")))
}

/// The file of a network.
pub fn file(directory: &Path, network: &str) -> PathBuf {
    directory.join(network).join(FILE)
}

/// What is written down at the moment, for who only looks: no lock is taken, and a network that has
/// nothing yet has nothing.
pub fn look(directory: &Path, network: &str) -> Result<Contents, StoreError> {
    read(&file(directory, network), &boot_id()?).map(|(contents, _)| contents)
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

fn read(path: &Path, boot: &str) -> Result<(Contents, Foreign), StoreError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let damaged = |reason: String| StoreError::Damaged { path: path.to_owned(), reason };
    let written: Written = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if written.layout != LAYOUT {
        return Err(damaged(format!(
            "it has layout {}, but this plugin reads layout {LAYOUT}",
            written.layout
        )));
    }
    Ok(understood(written, boot))
}

fn understood(written: Written, boot: &str) -> (Contents, Foreign) {
    let last = written.last.into_iter().map(|address| (Family::of(&address), address)).collect();
    let mut contents = Contents { leases: Leases { last, ..Leases::default() }, ..Contents::default() };
    let mut foreign = Foreign { top: written.unknown, ..Foreign::default() };
    if written.boot != boot {
        return (contents, foreign);
    }
    for lease in written.leases {
        let holder = Attachment { container: lease.container, interface: lease.interface };
        foreign.leases.insert((lease.address, holder.clone()), lease.unknown);
        contents.leases.held.insert(lease.address, holder);
    }
    for ports in written.host_ports {
        let holder = Attachment { container: ports.container, interface: ports.interface };
        foreign.host_ports.insert(holder.clone(), ports.unknown);
        contents.host_ports.push(HostPorts { holder, addresses: ports.addresses, mappings: ports.mappings });
    }
    for written in written.macs {
        let holder = Attachment { container: written.container, interface: written.interface };
        if let Some(mac) = parse_mac(&written.mac) {
            foreign.macs.insert(holder.clone(), written.unknown);
            contents.macs.insert(holder, mac);
        }
    }
    (contents, foreign)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
        let read = |boot| read(&file(&scratch.0, "pods"), boot).unwrap().0.host_ports;
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
    fn damaged_files_do_not_take_each_others_place() {
        let scratch = Scratch::new("aside");
        fs::create_dir_all(scratch.0.join("pods")).unwrap();
        let path = scratch.0.join("pods").join(FILE);
        for text in 1..=KEPT_DAMAGED + 1 {
            fs::write(&path, text.to_string()).unwrap();
            drop(Store::open_or_begin(&scratch.0, "pods", "b", || true).unwrap());
            assert!(!path.exists());
        }
        let read = |end: &str| fs::read_to_string(scratch.0.join(format!("pods/{DAMAGED}{end}"))).unwrap();
        assert_eq!((read(""), read(".2"), read(".15")), ("1".into(), "2".into(), "15".into()));
        assert_eq!(fs::read_dir(scratch.0.join("pods")).unwrap().count(), KEPT_DAMAGED + 1);
    }

    #[test]
    fn fields_of_a_newer_version_stay_with_what_they_are_about() {
        let scratch = Scratch::new("newer");
        fs::create_dir_all(scratch.0.join("pods")).unwrap();
        let path = scratch.0.join("pods").join(FILE);
        let lease = |name: &str, address: &str| json!({"address": address, "container": name, "interface": "eth0", "zone": name});
        let of = |name: &str, more: Value| {
            let mut all = json!({"container": name, "interface": "eth0", "rate": name});
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all
        };
        let ports = |name| of(name, json!({"addresses": ["10.0.0.2"], "mappings": []}));
        let mac = |name| of(name, json!({"mac": "02:00:00:00:00:01"}));
        let newer = json!({
            "layout": 1, "boot": "b", "last": [], "epoch": {"of": 7},
            "leases": [lease("a", "10.0.0.2"), lease("c", "10.0.0.3")],
            "host_ports": [ports("a"), ports("c")], "macs": [mac("a"), mac("c")],
        });
        fs::write(&path, newer.to_string()).unwrap();
        let read = || serde_json::from_slice::<Value>(&fs::read(&path).unwrap()).unwrap();
        scratch.open("b").give(&pod("d"), &[ip("10.0.0.4")], None, None).unwrap();
        let now = read();
        assert_eq!(now["epoch"], newer["epoch"]);
        assert_eq!((&now["host_ports"], &now["macs"]), (&newer["host_ports"], &newer["macs"]));
        let plain = json!({"address": "10.0.0.4", "container": "d", "interface": "eth0"});
        assert_eq!(now["leases"], json!([lease("a", "10.0.0.2"), lease("c", "10.0.0.3"), plain]));
        // Who comes after another has nothing of it.
        scratch.open("b").take_back(&pod("a")).unwrap();
        scratch.open("b").give(&pod("e"), &[ip("10.0.0.2")], None, None).unwrap();
        let now = read();
        assert_eq!((&now["host_ports"], &now["macs"]), (&json!([ports("c")]), &json!([mac("c")])));
        assert_eq!(now["leases"][0], json!({"address": "10.0.0.2", "container": "e", "interface": "eth0"}));
        // A boot ends what was said of pods.
        scratch.open("next").give(&pod("f"), &[ip("10.0.0.2")], None, None).unwrap();
        let now = read();
        assert_eq!((&now["epoch"], &now["leases"][0].get("zone")), (&newer["epoch"], &None));
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
    fn a_failed_write_changes_no_lease() {
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
