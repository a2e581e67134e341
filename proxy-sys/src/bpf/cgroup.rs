//! The cgroup whose sockets are served.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::BpfError;
use super::directory::filesystem;

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2: i64 = 0x6367_7270;

/// An open cgroup directory.
#[derive(Debug)]
pub struct Cgroup {
    directory: File,
    path: PathBuf,
    id: u64,
}

impl Cgroup {
    /// Opens a directory of a cgroup2 filesystem.
    pub fn open(path: &Path) -> Result<Self, BpfError> {
        let none = |_| BpfError::NoCgroup(path.to_owned());
        let directory = File::open(path).map_err(none)?;
        if filesystem(path) != Some(CGROUP2) {
            return Err(BpfError::NoCgroup(path.to_owned()));
        }
        let id = directory.metadata().map_err(none)?.ino();
        Ok(Cgroup { directory, path: path.to_owned(), id })
    }

    /// Where the machine's cgroup2 filesystem is mounted.
    pub fn root() -> PathBuf {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        mounted(&mounts).unwrap_or_else(|| "/sys/fs/cgroup".into())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether all processes of the machine are in it.
    pub fn is_root(&self) -> bool {
        self.id == 1
    }

    /// Its number, by which links know it.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn fd(&self) -> u32 {
        self.directory.as_raw_fd() as u32
    }
}

/// The first cgroup2 filesystem of a list of mounts.
fn mounted(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (path, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_beside_others() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\nnone /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mounted(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mounted("x y z\n"), None);
    }
}
