//! The compiler: rustup's nightly, or Debian's.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::environment::{clean, output};

/// The minor version of Rust that the programs need: that of `rust-version`.
const LEAST_MINOR: u32 = 95;

/// bpf-linker reads bitcode up to that of its own LLVM.
const MOST_LLVM: u32 = 22;

/// Debian's packages with a compiler that is recent enough, and the sources of its standard
/// library.
pub const DEBIANS_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// What fetches the other compiler.
pub const NIGHTLY_COMMAND: &str = "rustup toolchain install nightly --profile minimal --component rust-src";

/// A compiler that can build for eBPF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    pub(crate) cargo: PathBuf,
    /// Its `rustc`
    pub rustc: PathBuf,
    pub(crate) sysroot: PathBuf,
    /// Which release it is, of which commit, with which LLVM; empty until it was asked
    pub version: String,
}

impl Compiler {
    /// Where the standard library's sources are.
    pub(crate) fn sources(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust")
    }
}

/// The first that can, and a line for each that was looked at.
pub(crate) fn find(told: &mut Vec<String>) -> Option<Compiler> {
    // The second is asked only when the first is of no use.
    for (name, is_nightly) in [("rustup's nightly", true), ("Debian's compiler", false)] {
        let candidate = if is_nightly { nightly() } else { debians() };
        match candidate.and_then(|compiler| Ok((check(&compiler)?, compiler))) {
            Ok((version, compiler)) => {
                told.push(format!("{name}: {version}, {}", compiler.rustc.display()));
                return Some(Compiler { version, ..compiler });
            }
            Err(why) => told.push(format!("{name}: {why}")),
        }
    }
    None
}

fn nightly() -> Result<Compiler, String> {
    let missing = || format!("not installed ({NIGHTLY_COMMAND})");
    let mut command = Command::new("rustup");
    clean(&mut command);
    // Looking must not install.
    command.args(["run", "nightly", "rustc", "--print", "sysroot"]).env("RUSTUP_AUTO_INSTALL", "0");
    let sysroot = PathBuf::from(output(&mut command).ok_or_else(missing)?.trim());
    Ok(Compiler {
        cargo: sysroot.join("bin/cargo"),
        rustc: sysroot.join("bin/rustc"),
        sysroot,
        version: String::new(),
    })
}

fn debians() -> Result<Compiler, String> {
    let (cargo, rustc) = (PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/bin/rustc"));
    if !cargo.is_file() || !rustc.is_file() {
        return Err(format!("not installed (apt-get install {})", DEBIANS_COMPILER.join(" ")));
    }
    Ok(Compiler { cargo, rustc, sysroot: "/usr".into(), version: String::new() })
}

/// Its version, or why it cannot be used.
fn check(compiler: &Compiler) -> Result<String, String> {
    if !compiler.sources().join("library/Cargo.lock").is_file() {
        return Err("without the sources of its library (rust-src of rustup, rust-web-src of Debian)".into());
    }
    let mut command = Command::new(&compiler.rustc);
    clean(&mut command);
    let text = output(command.arg("-vV")).ok_or("its rustc does not run")?;
    suits(&text)
}

/// Whether the version that `rustc -vV` tells can build the programs.
fn suits(text: &str) -> Result<String, String> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let number = |text: &str, at: usize| text.split('.').nth(at).and_then(|part| part.parse::<u32>().ok());
    let (release, llvm) = (field("release:"), field("LLVM version:"));
    if number(release, 1).is_none_or(|minor| minor < LEAST_MINOR) {
        return Err(format!("its version is {release}; 1.{LEAST_MINOR} or later is needed"));
    }
    if number(llvm, 0).is_none_or(|major| major > MOST_LLVM) {
        return Err(format!("its LLVM is {llvm}; bpf-linker reads bitcode of LLVM {MOST_LLVM} and earlier"));
    }
    // Releases of a nightly compiler differ by their commits only.
    let commit = field("commit-hash:").get(..9).map(|hash| format!(" ({hash})")).unwrap_or_default();
    Ok(format!("{release}{commit} with LLVM {llvm}"))
}

/// The programs of a name in PATH and in other directories.
pub(crate) fn programs<'a>(name: &'a str, others: &'a [PathBuf]) -> impl Iterator<Item = PathBuf> + 'a {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = std::env::split_paths(&path).chain(others.iter().cloned()).collect();
    places.into_iter().map(move |place| place.join(name)).filter(|program: &PathBuf| Path::is_file(program))
}

#[cfg(test)]
mod tests {
    use super::suits;

    #[test]
    fn old_compilers_and_those_whose_bitcode_the_linker_cannot_read_are_passed_over() {
        let of = |release: &str, llvm: &str| {
            suits(&format!("rustc {release}\nbinary: rustc\nrelease: {release}\nLLVM version: {llvm}\n"))
        };
        assert_eq!(of("1.96.0", "22.1.8").unwrap(), "1.96.0 with LLVM 22.1.8");
        let whole = suits("release: 1.97.0-nightly\ncommit-hash: ac68faa20c58cbcc\nLLVM version: 22.1.4\n");
        assert_eq!(whole.unwrap(), "1.97.0-nightly (ac68faa20) with LLVM 22.1.4");
        assert!(of("1.97.0-nightly", "22.1.4").is_ok());
        assert!(of("1.63.0", "14.0.6").unwrap_err().contains("1.95"));
        assert!(of("1.99.0-nightly", "23.0.0").unwrap_err().contains("LLVM 22"));
        assert!(suits("").is_err());
    }
}
