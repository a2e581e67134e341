//! A kernel to boot, as `cargo xtask vm` has unpacked it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// A directory with a kernel, its modules and what else a VM begins with:
///
/// - `vmlinuz`
/// - `lib/modules/RELEASE`, with modules.dep
/// - `boot-modules`: the modules for reaching the root file system, uncompressed, in order of their
///   names
/// - `busybox`, which needs no library
#[derive(Debug, Clone)]
pub struct Kernel {
    /// What `uname -r` will say
    pub release: String,
    directory: PathBuf,
}

impl Kernel {
    /// The kernel in a directory.
    pub fn open(directory: &Path) -> Result<Self> {
        let directory = directory
            .canonicalize()
            .with_context(|| format!("no kernel at {} (cargo xtask vm kernels)", directory.display()))?;
        let modules = directory.join("lib/modules");
        let releases = fs::read_dir(&modules).with_context(|| format!("reading {}", modules.display()))?;
        let mut names: Vec<String> =
            releases.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let release = names.pop().with_context(|| format!("no modules in {}", modules.display()))?;
        ensure!(names.is_empty(), "modules of more than one kernel in {}", modules.display());
        Ok(Self { release, directory })
    }

    pub(super) fn image(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// A program with many others in it that needs no library.
    #[must_use]
    pub fn busybox(&self) -> PathBuf {
        self.directory.join("busybox")
    }

    /// The directory that becomes /lib/modules.
    pub(super) fn modules(&self) -> PathBuf {
        self.directory.join("lib/modules")
    }

    pub(super) fn boot_modules(&self) -> Result<Vec<PathBuf>> {
        let directory = self.directory.join("boot-modules");
        let entries = fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        Ok(paths)
    }
}
