//! Where the eBPF backends of a lab keep their maps and programs: a directory of each node on the
//! BPF file system.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

use crate::agent::lock;

/// Where the BPF file system is by convention.
const USUAL: &str = "/sys/fs/bpf";

/// The BPF file system's mount on this machine, if there is one.
#[must_use]
pub fn root() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "bpf").then(|| PathBuf::from(path))
    })
}

/// The same; where there is none, it is mounted at the usual place, and stays.
pub fn mounted() -> Result<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = lock(&ONE_AT_A_TIME);
    if let Some(root) = root() {
        return Ok(root);
    }
    if !Path::new(USUAL).is_dir() {
        bail!("no BPF file system is mounted, and the kernel has no {USUAL} to mount it at");
    }
    mount(Some("bpf"), USUAL, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting the BPF file system at {USUAL}"))?;
    Ok(PathBuf::from(USUAL))
}

/// The directories of one lab. They are made when a node's first eBPF backend starts.
#[derive(Debug, Clone)]
pub struct Pins {
    lab: String,
}

impl Pins {
    /// Those of the lab of a name.
    #[must_use]
    pub fn new(lab: String) -> Self {
        Self { lab }
    }

    /// The directory of a node. It need not be there.
    #[must_use]
    pub fn of(&self, node: &str) -> PathBuf {
        root().unwrap_or_else(|| PathBuf::from(USUAL)).join(&self.lab).join(node)
    }

    /// Makes the directory of a node.
    pub fn create(&self, node: &str) -> Result<PathBuf> {
        let dir = mounted()?.join(&self.lab).join(node);
        std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(dir)
    }

    /// Removes them with all that is pinned there, so that the kernel gives it up.
    pub fn remove(&self) {
        if let Some(root) = root() {
            // What does not go now is found by the next prune.
            drop(std::fs::remove_dir_all(root.join(&self.lab)));
        }
    }
}
