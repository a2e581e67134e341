//! The static binaries, the daemon and the CNI plugin: linked with musl, by the first toolchain
//! that can.
//!
//! 1. The workspace's own, when it has the standard library for musl or rustup can fetch it.
//! 2. Debian's, which has no such library but the source of it, and builds it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::build_ebpf;
use crate::machine::{self, cargo, run};

/// For the C code of the cryptography library, and what Debian's toolchain links with.
const MUSL: (&str, &str) = ("musl-gcc", "musl-tools");

/// The unwinder that Rust's standard library links with on musl.
const LIBUNWIND: (&str, &str) = ("/usr/lib/llvm-22/lib/libunwind.a", "libunwind-22-dev");

/// The programs of the image.
#[derive(Debug)]
pub(super) struct Binaries {
    /// The daemon.
    pub(super) sluice: PathBuf,
    /// The CNI plugin.
    pub(super) plugin: PathBuf,
}

/// Builds them, stripped of debug information.
pub(super) fn build() -> Result<Binaries> {
    build_ebpf::prepare()?;
    let built = packages(&["sluice", "sluice-cni"])?;
    Ok(Binaries { sluice: built.join("sluice"), plugin: built.join("sluice-cni") })
}

/// Builds the plugin alone, as it comes with the image.
pub(crate) fn plugin() -> Result<PathBuf> {
    Ok(packages(&["sluice-cni"])?.join("sluice-cni"))
}

/// Builds packages that each have one program of their name, and says where they are.
fn packages(names: &[&str]) -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    machine::install(&[MUSL])?;
    let own = has_library(&target) || fetch_library(&target);
    println!(
        "building {} for {target}, {}",
        names.join(" and "),
        if own { "optimized" } else { "with Debian's Rust" }
    );
    let mut command = if own { cargo(&[]) } else { debians(&target)? };
    command.args(["build", "--quiet", "--profile", "image", "--target", &target]);
    command.args(names.iter().flat_map(|name| ["--package", name]));
    command.env(format!("CC_{}", target.replace('-', "_")), MUSL.0);
    let mut flags = remapped_paths();
    if !own {
        flags.extend(link_flags()?);
    }
    // Encoded flags may hold spaces; these are the target's only, not the build scripts'.
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join(&OsString::from("\u{1f}")));
    run(&mut command)?;
    let built = machine::target_directory().join(&target).join("image");
    names.iter().try_for_each(|name| check_static(&built.join(name)))?;
    Ok(built)
}

/// Where something was built must not show in what was built.
fn remapped_paths() -> Vec<OsString> {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    let of = |variable: &str, directory: &str| {
        std::env::var_os(variable).map_or_else(|| home.join(directory), PathBuf::from)
    };
    let remap = |from: &Path, to: &str| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push(format!("={to}"));
        flag
    };
    vec![
        remap(&machine::root(), "/sluice"),
        remap(&of("CARGO_HOME", ".cargo"), "/cargo"),
        remap(&of("RUSTUP_HOME", ".rustup"), "/rustup"),
    ]
}

/// Whether the workspace's toolchain has the standard library for the target.
fn has_library(target: &str) -> bool {
    let mut command = Command::new("rustc");
    command.args(["--print", "target-libdir", "--target", target]).current_dir(machine::root());
    let Ok(output) = command.output() else { return false };
    let directory = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let Ok(entries) = std::fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-"))
}

/// Has rustup fetch it. It may be absent, or cut off from its server.
fn fetch_library(target: &str) -> bool {
    let mut command = Command::new("rustup");
    command.args(["target", "add", target]).current_dir(machine::root()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Debian's compiler, told to build the standard library from its source.
fn debians(target: &str) -> Result<Command> {
    println!("rustup has no standard library for {target} here");
    let packages = [
        ("/usr/bin/rustc", "rustc-web"),
        ("/usr/bin/cargo", "cargo-web"),
        ("/usr/lib/rustlib/src/rust/library/Cargo.lock", "rust-web-src"),
        LIBUNWIND,
    ];
    machine::install(&packages)
        .context("or, where rustup reaches its server, run: rustup target add (the target above)")?;
    let mut command = Command::new("/usr/bin/cargo");
    command.current_dir(machine::root()).env_remove("RUSTUP_TOOLCHAIN");
    command.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
    command.args(["-Zbuild-std=std,panic_unwind"]);
    Ok(command)
}

/// What makes Debian's gcc and musl do what rustup's toolchain brings along.
fn link_flags() -> Result<Vec<OsString>> {
    let parts = machine::target_directory().join("musl-parts");
    let failed = || format!("cannot write to {}", parts.display());
    std::fs::create_dir_all(&parts).with_context(failed)?;
    let specs = include_str!("static-pie.specs").replace("ARCH", std::env::consts::ARCH);
    std::fs::write(parts.join("static-pie.specs"), specs).with_context(failed)?;
    std::fs::write(parts.join("fortify.c"), include_str!("fortify.c")).with_context(failed)?;
    // Not a search path: beside it are libraries for glibc.
    std::fs::copy(LIBUNWIND.0, parts.join("libunwind.a")).with_context(failed)?;
    run(Command::new(MUSL.0)
        .args(["-O2", "-fPIC", "-c", "fortify.c", "-o", "fortify.o"])
        .current_dir(&parts))?;
    let flag = |before: &str, path: &Path| {
        let mut flag = OsString::from(before);
        flag.push(path);
        flag
    };
    Ok(vec![
        "-Clink-self-contained=no".into(),
        "-Clinker=gcc".into(),
        flag("-Clink-arg=-specs=", &parts.join("static-pie.specs")),
        flag("-Clink-arg=", &parts.join("fortify.o")),
        flag("-Lnative=", &parts),
    ])
}

/// A program that asks for a loader would not start in the image.
fn check_static(binary: &Path) -> Result<()> {
    let file = std::fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
    match has_interpreter(&file) {
        Some(false) => Ok(()),
        Some(true) => bail!("{} is linked dynamically", binary.display()),
        None => bail!("{} is not a 64-bit ELF file", binary.display()),
    }
}

/// Whether a 64-bit little-endian ELF file has a program header PT_INTERP.
fn has_interpreter(file: &[u8]) -> Option<bool> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, bytes: usize| {
        let slice = file.get(at..at + bytes)?;
        Some(slice.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte)))
    };
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (offset, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for header in 0..count {
        let at = usize::try_from(offset + header * size).ok()?;
        if number(at, 4)? == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::has_interpreter;

    #[test]
    fn this_test_is_linked_dynamically_and_a_text_is_no_program() {
        let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(has_interpreter(&this), Some(true));
        assert_eq!(has_interpreter(b"#!/bin/sh"), None);
    }
}
