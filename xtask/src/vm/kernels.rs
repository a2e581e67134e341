//! Debian's kernel packages, downloaded and unpacked once below `target/vm`, without being
//! installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use sluice_tests::vm::Kernel;

use crate::machine::{self, run, target_directory};

/// Programs that VMs need: of this machine, or inside, where they are this machine's, too.
const PROGRAMS: [(&str, &str); 4] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("modprobe", "kmod"),
    ("xz", "xz-utils"),
    // Of the tests inside.
    ("ip", "iproute2"),
];
/// Packages that depend on the newest kernel of some series; which one, depends on the release of
/// Debian.
const NEWEST: [&str; 2] = ["linux-image-amd64", "linux-image-6.12-amd64"];
/// What is needed to reach this machine's root, and the network; what they need comes with them.
const BOOT_MODULES: [&str; 5] = ["virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_net"];
/// Modules that no VM has a use for, which are half of all.
const LEFT_OUT: [&str; 4] = ["drivers/gpu", "drivers/media", "drivers/infiniband", "sound"];

/// A series of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Series {
    /// Kernel of Debian 12
    #[default]
    #[value(name = "6.1")]
    V6_1,
    /// Kernel of Debian 13, and of the backports to Debian 12
    #[value(name = "6.12")]
    V6_12,
}

impl std::fmt::Display for Series {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        })
    }
}

/// Where a series' kernel is: a link to the directory of its package's version.
pub(crate) fn directory(series: Series) -> PathBuf {
    cache().join(series.to_string())
}

fn cache() -> PathBuf {
    target_directory().join("vm")
}

/// The kernel of a series. What is missing is downloaded and installed; with `update`, a newer
/// package is looked for.
pub(crate) fn get(series: Series, update: bool) -> Result<Kernel> {
    machine::install(&PROGRAMS)?;
    let link = directory(series);
    if update || !link.exists() {
        download(series, &link, update)?;
    }
    Kernel::open(&link)
}

fn download(series: Series, link: &Path, update: bool) -> Result<()> {
    ensure!(machine::has("apt-get"), "there is no apt-get here, and kernels for VMs are Debian's packages");
    fs::create_dir_all(cache())?;
    if update {
        update_lists()?;
    }
    let package = match newest(series)? {
        Some(package) => package,
        None => {
            update_lists()?;
            newest(series)?.with_context(|| format!("apt-get has no package with a kernel {series}"))?
        }
    };
    // Its name tells when it is complete: it is renamed then.
    let work = cache().join(format!(".{series}-{}", std::process::id()));
    drop(fs::remove_dir_all(&work));
    let made = unpack(&package, &work).and_then(|version| {
        let directory = cache().join(version);
        if !directory.exists() {
            fs::rename(work.join("kernel"), &directory)?;
        }
        drop(fs::remove_file(link));
        std::os::unix::fs::symlink(directory.file_name().unwrap_or_default(), link)?;
        Ok(())
    });
    drop(fs::remove_dir_all(&work));
    made
}

/// The package with the newest kernel of a series, if the lists have one.
fn newest(series: Series) -> Result<Option<String>> {
    let output = Command::new("apt-cache").arg("depends").args(NEWEST).output().context("apt-cache")?;
    Ok(find_package(&String::from_utf8_lossy(&output.stdout), series))
}

/// The same, from what `apt-cache depends` says.
fn find_package(depends: &str, series: Series) -> Option<String> {
    let prefix = format!("linux-image-{series}.");
    let packages = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    packages.map(str::to_owned).find(|package| package.starts_with(&prefix))
}

fn update_lists() -> Result<()> {
    run(Command::new("apt-get").args(["update", "-qq"]))
}

/// Downloads, unpacks and completes a kernel. Returns the name of its package and version.
fn unpack(package: &str, work: &Path) -> Result<String> {
    println!("downloading {package}");
    fs::create_dir_all(work)?;
    let get = || {
        let mut command = Command::new("apt-get");
        // apt would like to be another user, for which a directory of root's is none of its
        // business.
        command.args(["download", "-qq", "-o", "APT::Sandbox::User=root", package, "busybox-static"]);
        run(command.current_dir(work))
    };
    if get().is_err() {
        // Lists that are too old name files that are gone.
        update_lists()?;
        get()?;
    }
    let kernel = archive(work, package)?;
    let busybox = archive(work, "busybox-static")?;
    let directory = work.join("kernel");
    fs::create_dir(&directory)?;
    extract(&busybox, work, &["./bin/busybox", "./usr/bin/busybox"].map(str::to_owned))?;
    let program = ["bin/busybox", "usr/bin/busybox"].map(|path| work.join(path));
    let program = program.iter().find(|path| path.is_file()).context("no busybox in its package")?;
    fs::copy(program, directory.join("busybox"))?;
    unpack_kernel(&kernel, work, &directory)?;
    let name = kernel.file_name().unwrap_or_default().to_string_lossy().replace("%3a", ":");
    Ok(name.trim_end_matches("_amd64.deb").to_owned())
}

/// The downloaded file of a package.
fn archive(directory: &Path, package: &str) -> Result<PathBuf> {
    let prefix = format!("{package}_");
    let files = fs::read_dir(directory)?.flatten();
    let mut named = files.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    named.next().map(|entry| entry.path()).with_context(|| format!("apt-get did not download {package}"))
}

/// Extracts those of the paths that a package has.
fn extract(package: &Path, to: &Path, paths: &[String]) -> Result<()> {
    // tar fails because of the paths that are not there, and says so.
    let line = r#"set -o pipefail; dpkg-deb --fsys-tarfile "$0" | tar --extract --directory "$1" "${@:2}""#;
    let mut command = Command::new("bash");
    command.args(["-c", line]).arg(package).arg(to).args(paths).stderr(std::process::Stdio::null());
    command.status().context("bash")?;
    Ok(())
}

fn unpack_kernel(package: &Path, work: &Path, directory: &Path) -> Result<()> {
    println!("unpacking {}", package.file_name().unwrap_or_default().to_string_lossy());
    let mut paths: Vec<String> =
        LEFT_OUT.iter().map(|place| format!("--exclude=./*lib/modules/*/kernel/{place}")).collect();
    paths.extend(["./boot", "./lib/modules", "./usr/lib/modules"].map(str::to_owned));
    extract(package, work, &paths)?;
    let modules = ["lib/modules", "usr/lib/modules"].map(|path| work.join(path));
    let modules = modules.iter().find(|path| path.is_dir()).context("no modules in the kernel's package")?;
    fs::create_dir(directory.join("lib"))?;
    fs::rename(modules, directory.join("lib/modules"))?;
    let release = Kernel::open(directory)?.release;
    fs::rename(work.join(format!("boot/vmlinuz-{release}")), directory.join("vmlinuz"))?;
    run(Command::new("depmod").arg("--basedir").arg(directory).arg(&release))?;
    boot_modules(directory, &release)
}

/// Puts the modules for booting where they are found, in the order of loading.
fn boot_modules(directory: &Path, release: &str) -> Result<()> {
    let target = directory.join("boot-modules");
    fs::create_dir(&target)?;
    let mut modules: Vec<PathBuf> = Vec::new();
    for name in BOOT_MODULES {
        let mut command = Command::new("modprobe");
        command.args(["--show-depends", "--set-version", release, "--dirname"]).arg(directory).arg(name);
        let output = command.output().context("modprobe")?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        for module in to_insert(&String::from_utf8_lossy(&output.stdout)) {
            if !modules.contains(&module) {
                modules.push(module);
            }
        }
    }
    for (index, module) in modules.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        let name = name.trim_end_matches(".xz");
        fs::write(target.join(format!("{index:02}-{name}")), uncompressed(module)?)?;
    }
    Ok(())
}

/// The files of the modules that `modprobe --show-depends` names.
fn to_insert(depends: &str) -> Vec<PathBuf> {
    let files = depends.lines().filter_map(|line| line.strip_prefix("insmod "));
    files.map(|rest| PathBuf::from(rest.split_whitespace().next().unwrap_or_default())).collect()
}

fn uncompressed(module: &Path) -> Result<Vec<u8>> {
    if module.extension().is_some_and(|extension| extension == "ko") {
        return fs::read(module).with_context(|| format!("reading {}", module.display()));
    }
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(module).output().context("xz")?;
    if !output.status.success() {
        bail!("cannot uncompress {}: {}", module.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_of_a_series_is_found_whatever_the_release_of_debian() {
        let bookworm = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\nlinux-image-6.12-amd64\n  \
                        Depends: linux-image-6.12.117+deb12-amd64\n";
        let package = |text, series| find_package(text, series);
        assert_eq!(package(bookworm, Series::V6_1).unwrap(), "linux-image-6.1.0-56-amd64");
        assert_eq!(package(bookworm, Series::V6_12).unwrap(), "linux-image-6.12.117+deb12-amd64");
        let trixie = "linux-image-amd64\n  Depends: linux-image-6.12.48+deb13-amd64\n";
        assert_eq!(package(trixie, Series::V6_12).unwrap(), "linux-image-6.12.48+deb13-amd64");
        assert_eq!(package(trixie, Series::V6_1), None);
    }

    #[test]
    fn modules_are_inserted_in_the_order_given() {
        let text = "builtin virtio\ninsmod /x/netfs.ko.xz \ninsmod /x/9p.ko a=1\n";
        assert_eq!(to_insert(text), ["/x/netfs.ko.xz", "/x/9p.ko"].map(PathBuf::from));
    }
}
