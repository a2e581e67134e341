//! The environment of cargo inside cargo.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What the user tells cargo of the network and of the terminal, which counts for cargo inside
/// cargo too; and the job server, so that both together use no more processors than was said.
const KEPT: [&str; 7] = [
    "CARGO_HOME",
    "CARGO_HTTP_",
    "CARGO_MAKEFLAGS",
    "CARGO_NET_",
    "CARGO_REGISTR",
    "CARGO_SOURCE_",
    "CARGO_TERM_",
];

/// Removes what an outer cargo, rustup or clippy tells of itself: it would choose another compiler
/// or other flags.
pub fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_none_or(is_of_the_outer) {
            command.env_remove(name);
        }
    }
}

fn is_of_the_outer(name: &str) -> bool {
    let of_cargo = name.starts_with("CARGO") && !KEPT.iter().any(|kept| name.starts_with(kept));
    let of_rust = ["RUSTC", "RUSTDOC", "RUSTFLAGS"].iter().any(|prefix| name.starts_with(prefix));
    of_cargo || of_rust || matches!(name, "RUSTUP_TOOLCHAIN" | "TARGET" | "HOST" | "OUT_DIR" | "PROFILE")
}

/// The directory of everything that is built for eBPF. `root` is the root of the repository.
#[must_use]
pub fn own_target_directory(root: &Path) -> PathBuf {
    target_directory(root).join("ebpf")
}

pub(crate) fn target_directory(root: &Path) -> PathBuf {
    root.join(std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from))
}

pub(crate) fn cargo_home() -> PathBuf {
    let home = || std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    std::env::var_os("CARGO_HOME").map_or_else(|| home().join(".cargo"), PathBuf::from)
}

/// What a program prints, if it runs and says that all is well.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::is_of_the_outer;

    #[test]
    fn what_chooses_compiler_or_flags_goes_and_what_the_user_says_of_the_network_stays() {
        for name in [
            "CARGO",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTUP_TOOLCHAIN",
            "CARGO_PKG_NAME",
        ] {
            assert!(is_of_the_outer(name), "{name}");
        }
        for name in
            ["CARGO_HOME", "CARGO_REGISTRIES_CRATES_IO_PROTOCOL", "CARGO_MAKEFLAGS", "PATH", "RUST_BACKTRACE"]
        {
            assert!(!is_of_the_outer(name), "{name}");
        }
    }
}
