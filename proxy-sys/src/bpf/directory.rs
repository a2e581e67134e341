//! The directory in a bpf filesystem where everything of sluice has its name.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sluice_common::maps::MapName;

use super::BpfError;

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS: i64 = 0xcafe_4a11;
/// Where a bpf filesystem belongs.
const USUAL: &str = "/sys/fs/bpf";
/// How long a predecessor may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A directory, which may not exist yet. In it each layout has one of its own, with `maps` and
/// `links`. Whatever else is in it is others', who may have been there first: it is never touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    root: PathBuf,
}

/// Keeps other processes from working on the same directory.
#[derive(Debug)]
pub struct Lock {
    held: fs::File,
}

impl Lock {
    /// Whether what was locked is what has this path now.
    fn is_of(&self, path: &Path) -> bool {
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let held = self.held.metadata().map(identity);
        held.is_ok_and(|held| fs::metadata(path).map(identity).is_ok_and(|there| there == held))
    }
}

impl Directory {
    /// The directory of that path.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Directory { root: root.into() }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The part of the layout that this program knows.
    fn current(&self) -> PathBuf {
        self.root.join(current_name())
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.current().join("maps")
    }

    pub(super) fn map(&self, map: MapName) -> PathBuf {
        self.maps().join(map.name())
    }

    /// Where a map is before it takes the place of another. No dot: the bpf filesystem takes none.
    pub(super) fn next_map(&self, map: MapName) -> PathBuf {
        self.maps().join(format!("{map}-next"))
    }

    pub(super) fn links(&self) -> PathBuf {
        self.current().join("links")
    }

    /// Whether anything of any layout is there.
    pub fn exists(&self) -> bool {
        self.layouts().is_ok_and(|layouts| !layouts.is_empty())
    }

    /// The directories of all layouts.
    fn layouts(&self) -> Result<Vec<PathBuf>, BpfError> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries.flatten(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(BpfError::system(format!("read {}", self.root.display()), source)),
        };
        // Not through symbolic links.
        let is_layout = |entry: &fs::DirEntry| {
            entry.file_type().is_ok_and(|kind| kind.is_dir())
                && entry.file_name().to_str().is_some_and(is_layout_name)
        };
        Ok(entries.filter(is_layout).map(|entry| entry.path()).collect())
    }

    fn make(&self) -> Result<(), BpfError> {
        self.on_bpffs()?;
        for directory in [self.maps(), self.links()] {
            fs::create_dir_all(&directory)
                .map_err(|source| BpfError::system(format!("create {}", directory.display()), source))?;
        }
        Ok(())
    }

    /// Makes again what somebody has removed of it, and keeps others out of that. Returns whether
    /// it was another directory: what is in it may be somebody else's then.
    pub(super) fn keep(&self, lock: &mut Lock) -> Result<bool, BpfError> {
        let is_same = lock.is_of(&self.root);
        if is_same && self.maps().is_dir() && self.links().is_dir() {
            return Ok(false);
        }
        self.make()?;
        if !is_same {
            *lock = self.try_lock()?;
        }
        Ok(!is_same)
    }

    /// Makes it, on a bpf filesystem, and keeps others out.
    pub(super) fn prepare(&self) -> Result<Lock, BpfError> {
        self.make()?;
        let lock = self.lock()?;
        // Maps that a predecessor had no time to put in their place.
        for path in list(&self.maps())?.filter(|path| path.to_string_lossy().ends_with("-next")) {
            let _ = fs::remove_file(path);
        }
        Ok(lock)
    }

    /// Checks that it is, or would be, on a bpf filesystem; mounts one where it usually is.
    pub(super) fn on_bpffs(&self) -> Result<(), BpfError> {
        let there = self.root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        if is_bpffs(there) {
            return Ok(());
        }
        if self.root.starts_with(USUAL) && Path::new(USUAL).is_dir() {
            mount(Path::new(USUAL)).map_err(|source| {
                BpfError::system(
                    format!("mount a bpf filesystem at {USUAL} (mount -t bpf bpf {USUAL})"),
                    source,
                )
            })?;
            return Ok(());
        }
        Err(BpfError::NoBpffs(self.root.clone()))
    }

    /// Keeps others out of a directory that is there. Waits a moment for one that is at work on it.
    ///
    /// It is no second way to keep a node's daemons apart ([`crate::node_lock`]): a bpf filesystem
    /// can be seen from several network namespaces, each with a daemon of its own.
    pub fn lock(&self) -> Result<Lock, BpfError> {
        let begun = Instant::now();
        loop {
            match self.try_lock() {
                Err(BpfError::Busy(_)) if begun.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                result => return result,
            }
        }
    }

    /// Keeps others out of a directory that is there, unless somebody is at work on it.
    pub fn try_lock(&self) -> Result<Lock, BpfError> {
        let failed = |source| BpfError::system(format!("lock {}", self.root.display()), source);
        let held = fs::File::open(&self.root).map_err(failed)?;
        // SAFETY: the descriptor is open, and flock takes no pointers.
        if unsafe { libc::flock(held.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(Lock { held });
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Err(BpfError::Busy(self.root.clone())),
            error => Err(failed(error)),
        }
    }

    /// Removes what other layouts left; their programs see no packet any more.
    pub(super) fn remove_others(&self) -> Result<usize, BpfError> {
        let mut removed = 0;
        let current = self.current();
        for path in self.layouts()?.iter().filter(|path| **path != current) {
            remove_tree(path)?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Removes everything of all layouts: the links go with their names, and so do programs and
    /// maps that nobody has open. The directory itself goes when nothing of others is in it.
    /// Returns whether there was anything.
    pub fn remove(&self) -> Result<bool, BpfError> {
        let layouts = self.layouts()?;
        // Programs must not see maps that are half gone.
        layouts.iter().try_for_each(|layout| remove_tree(&layout.join("links")))?;
        if !layouts.is_empty() {
            super::clsact::remove_everywhere()?;
        }
        layouts.iter().try_for_each(|layout| remove_tree(layout))?;
        // This fails where there is something in it, and where a filesystem is mounted on it, which
        // is as it should be.
        let _ = fs::remove_dir(&self.root);
        Ok(!layouts.is_empty())
    }
}

/// Whether this is the name of the directory of a layout.
fn is_layout_name(name: &str) -> bool {
    let number = name.strip_prefix('v').unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

fn current_name() -> String {
    format!("v{}", sluice_common::LAYOUT)
}

fn remove_tree(path: &Path) -> Result<(), BpfError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(BpfError::system(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// What is in a directory.
pub(super) fn list(directory: &Path) -> Result<impl Iterator<Item = PathBuf> + use<>, BpfError> {
    let entries = fs::read_dir(directory)
        .map_err(|source| BpfError::system(format!("read {}", directory.display()), source))?;
    Ok(entries.flatten().map(|entry| entry.path()))
}

/// The number of the filesystem's kind.
pub(super) fn filesystem(path: &Path) -> Option<i64> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: all zeros are a valid statfs, which has numbers only.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with a zero, and `found` has room for the answer.
    let result = unsafe { libc::statfs(path.as_ptr(), &raw mut found) };
    (result == 0).then_some(found.f_type as i64)
}

fn is_bpffs(path: &Path) -> bool {
    filesystem(path) == Some(BPF_FS)
}

fn mount(path: &Path) -> io::Result<()> {
    let target = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)?;
    // SAFETY: all texts end with a zero and live through the call; no data are given.
    let result =
        unsafe { libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_layouts_are_ours() {
        assert!(is_layout_name("v1") && is_layout_name("v12") && is_layout_name(&current_name()));
        for other in ["v", "1", "cilium", "v1x", "xv1", "v-1", "v1-next", ""] {
            assert!(!is_layout_name(other), "{other}");
        }
        let root = std::env::temp_dir().join(format!("sluice-directory-{}", std::process::id()));
        let directory = Directory::new(&root);
        assert!(!directory.exists());
        fs::create_dir_all(root.join("tc/globals")).unwrap();
        fs::write(root.join("v9"), "of others").unwrap();
        assert!(!directory.exists());
        fs::create_dir_all(root.join("v0/links")).unwrap();
        fs::create_dir_all(directory.links()).unwrap();
        assert!(directory.exists());
        assert_eq!(directory.remove_others().unwrap(), 1);
        assert!(directory.exists() && !root.join("v0").exists());
        remove_tree(&directory.current()).unwrap();
        let mut left: Vec<_> = list(&root).unwrap().collect();
        left.sort();
        assert_eq!(left, [root.join("tc"), root.join("v9")]);
        fs::remove_dir_all(root).unwrap();
    }
}
