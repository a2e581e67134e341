//! bpf-linker: makes one object of the bitcode of all crates, with the types (BTF) that the kernel
//! wants.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::compiler::programs;
use crate::environment::{cargo_home, output, target_directory};

/// The version that the programs were tested with; others link other code, which the verifier may
/// refuse.
pub const LINKER_VERSION: &str = "0.13.0";

/// Where the library of LLVM is that bpf-linker is built with.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// Files that building bpf-linker needs, and Debian's packages that have them.
pub const DEBIANS_LLVM: [(&str, &str); 5] = [
    ("/usr/lib/llvm-22/bin/llvm-config", "llvm-22-dev"),
    ("/usr/lib/llvm-22/lib/libPolly.a", "libpolly-22-dev"),
    ("/usr/include/zstd.h", "libzstd-dev"),
    ("/usr/include/zlib.h", "zlib1g-dev"),
    ("g++", "g++"),
];

/// The linker of the right version, and a line about each that was looked at.
pub(crate) fn find(root: &Path, told: &mut Vec<String>) -> Option<PathBuf> {
    let others = [cargo_home().join("bin"), own_root(root).join("bin")];
    let mut none = true;
    for program in programs("bpf-linker", &others) {
        none = false;
        let text = output(Command::new(&program).arg("--version")).unwrap_or_default();
        let version = text.split_whitespace().nth(1).unwrap_or("of no known version");
        told.push(format!("bpf-linker: {version}, {}", program.display()));
        if version == LINKER_VERSION {
            return Some(program);
        }
    }
    if none {
        told.push("bpf-linker: not installed".into());
    }
    None
}

/// Under the target directory, so that nothing of the user's is changed.
fn own_root(root: &Path) -> PathBuf {
    target_directory(root).join("tools")
}

/// Arguments of cargo, and environment, that build bpf-linker and put it where it is looked for.
pub fn install_command(command: &mut Command, root: &Path) {
    command.args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"]);
    command.args(["--no-default-features", "--features", "llvm-22", "--root"]).arg(own_root(root));
    command.env("LLVM_PREFIX", LLVM_PREFIX).env("LLVM_SYS_221_PREFIX", LLVM_PREFIX);
}
