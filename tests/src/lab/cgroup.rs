//! The cgroups of a lab: one for each node, so that an eBPF backend can attach to a node's
//! processes alone.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The cgroup v2 mount of this machine, if it can be written.
#[must_use]
pub fn root() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })?;
    can_be_written(&mount).then_some(mount)
}

/// Whether directories can be made in one.
fn can_be_written(dir: &Path) -> bool {
    let probe = dir.join(format!("sluice-lab-{}-probe", std::process::id()));
    // Another thread may be at it: what is there already shows as much, though it may be gone a
    // moment later.
    let writable = match std::fs::create_dir(&probe) {
        Ok(()) => true,
        Err(error) => error.kind() == ErrorKind::AlreadyExists,
    };
    drop(std::fs::remove_dir(&probe));
    writable
}

/// The cgroups of one lab.
#[derive(Debug, Clone)]
pub struct Cgroups {
    dir: PathBuf,
}

impl Cgroups {
    /// Creates the lab's cgroup and one for each node below it.
    pub fn create<'a>(
        root: &Path,
        lab: &str,
        nodes: impl Iterator<Item = &'a String>,
    ) -> std::io::Result<Self> {
        let cgroups = Self { dir: root.join(lab) };
        std::fs::create_dir(&cgroups.dir)?;
        for node in nodes {
            std::fs::create_dir(cgroups.of(node))?;
        }
        Ok(cgroups)
    }

    /// The cgroup of a node.
    #[must_use]
    pub fn of(&self, node: &str) -> PathBuf {
        self.dir.join(node)
    }

    /// Kills what is left in them and removes them.
    pub fn remove(&self) {
        remove(&self.dir);
    }
}

/// Kills what lives in a lab's cgroup and removes it with everything below.
pub fn remove(dir: &Path) {
    // Kernels before 5.14 have no cgroup.kill; the caller has killed by namespace already.
    drop(std::fs::write(dir.join("cgroup.kill"), "1"));
    let end = Instant::now() + Duration::from_secs(3);
    while dir.exists() && Instant::now() < end {
        remove_tree(dir);
        if dir.exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn remove_tree(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    // Busy until the last process is reaped; the caller tries again.
    drop(std::fs::remove_dir(dir));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labs_that_look_at_the_same_time_find_the_same() {
        let dir = std::env::temp_dir();
        std::thread::scope(|scope| {
            let look = || assert!((0..3000).all(|_| can_be_written(&dir)));
            for _ in 0..8 {
                scope.spawn(look);
            }
        });
    }
}
