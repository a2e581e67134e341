//! The cgroups of a lab: one for each node, so that an eBPF backend can attach to a node's processes alone.

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
    let probe = mount.join(format!("sluice-lab-{}-probe", std::process::id()));
    let made = std::fs::create_dir(&probe);
    let writable = made.is_ok() || probe.is_dir();
    drop(std::fs::remove_dir(&probe));
    writable.then_some(mount)
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
