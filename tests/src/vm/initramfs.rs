//! The first file system of a VM: a shell, the modules for reaching this machine's root, and
//! `init.sh`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::kernel::Kernel;

/// The first process.
const INIT: &str = include_str!("init.sh");
/// What the kernel calls for a module: that of the VM's root.
const MODPROBE: &str = "#!/bin/busybox sh\nexec chroot /new /sbin/modprobe \"$@\"\n";

/// Writes the archive of a kernel.
pub(super) fn write(kernel: &Kernel, path: &Path) -> Result<()> {
    let mut archive = Archive::default();
    for directory in ["bin", "sbin", "modules", "proc", "sys", "dev", "root"] {
        archive.directory(directory)?;
    }
    archive.program("bin/busybox", &read(&kernel.busybox())?)?;
    archive.program("init", INIT.as_bytes())?;
    archive.program("sbin/modprobe", MODPROBE.as_bytes())?;
    for module in kernel.boot_modules()? {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.program(&format!("modules/{name}"), &read(&module)?)?;
    }
    fs::write(path, archive.finish()?).with_context(|| format!("writing {}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}
