//! The machine: what has to be installed, and how the project's programs are built.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sluice_skips::LEDGER;

use crate::build_ebpf;
use crate::skips;

/// Programs that labs and tests use, and Debian's packages that have them.
const PROGRAMS: [(&str, &str); 7] = [
    ("nft", "nftables"),
    ("iptables-legacy", "iptables"),
    ("ipset", "ipset"),
    ("conntrack", "conntrack"),
    ("tcpdump", "tcpdump"),
    ("ip", "iproute2"),
    ("bpftool", "bpftool"),
];

/// The workspace's root directory.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Installs what is missing, saying what, or says how.
pub(crate) fn prepare() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("this needs root, because it makes network namespaces: run it as root, or with sudo -E");
    }
    install(&PROGRAMS)
}

/// Installs those of the programs or files (given by their paths) that are missing, from Debian's
/// packages.
pub(crate) fn install(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = wanted.iter().filter(|(program, _)| !has(program)).map(|(_, p)| *p).collect();
    install_packages(&missing)
}

/// Installs Debian's packages.
pub(crate) fn install_packages(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !has("apt-get") {
        bail!("there is no apt-get here: install the equivalents of these Debian packages: {list}");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("as root, run: apt-get install {list}");
    }
    println!("installing with apt-get: {list}");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        run(&mut command)
    };
    apt(&["update", "-qq"])?;
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(missing);
    apt(&arguments)
}

/// Whether a program is in the path; an absolute path is looked for as it is.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).any(|directory| directory.join(program).is_file())
}

/// Runs a command to its end; failure is an error that names it. What it skips is counted.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    if let Some(ledger) = skips::ledger() {
        command.env(LEDGER, ledger);
    }
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

/// `cargo` with arguments, in the workspace's root.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    // What cargo tells xtask of itself; build scripts (ring's) that look at it would run anew, and
    // all after them be built anew, whenever cargo is called with and without xtask in turn.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name.as_ref());
        }
    }
    command
}

/// The programs that labs need.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// The daemon.
    pub(crate) sluice: PathBuf,
    /// The conformance runner, which is also the labs' agent.
    pub(crate) conformance: PathBuf,
}

impl Programs {
    /// Where cargo puts them with a profile.
    pub(crate) fn of(profile: &str) -> Self {
        let directory = target_directory().join(profile);
        Self { sluice: directory.join("sluice"), conformance: directory.join("sluice-conformance") }
    }
}

/// Builds the programs with optimization.
pub(crate) fn build() -> Result<Programs> {
    build_ebpf::prepare()?;
    println!("building sluice (release)");
    run(&mut cargo(&[
        "build",
        "--release",
        "--quiet",
        "--package",
        "sluice",
        "--package",
        "sluice-cni",
        "--package",
        "sluice-tests",
    ]))?;
    Ok(Programs::of("release"))
}

/// Where cargo builds.
pub(crate) fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
