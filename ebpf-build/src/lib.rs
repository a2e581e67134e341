//! How the eBPF programs of `proxy-ebpf/` become one object file.
//!
//! The build script of sluice and `cargo xtask` share this. Neither aya-build nor the workspace's
//! own compiler do: the target `bpfel-unknown-none` has no ready-made `core`, so a compiler is
//! needed that comes with the sources of it and may use unstable options; and bpf-linker must
//! understand the bitcode of that compiler's LLVM.
//!
//! Nothing is installed here. [`Search`] says what there is and what is missing; installing is for
//! `cargo xtask`.

mod compiler;
mod environment;
mod linker;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::build::elf::{Builder, SectionData};

pub use compiler::{Compiler, DEBIANS_COMPILER, NIGHTLY_COMMAND};
pub use environment::{clean, own_target_directory};
pub use linker::{DEBIANS_LLVM, LINKER_VERSION, install_command};

/// The target of the programs: the byte order of this machine is little-endian wherever sluice
/// runs.
const TARGET: &str = "bpfel-unknown-none";

/// Why there is no object file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something to build with is missing.
    #[error("the eBPF programs cannot be built here:\n{}", .0.join("\n"))]
    Tools(Vec<String>),
    /// A program could not be started.
    #[error("cannot start {command}: {source}")]
    Start {
        /// The program with its arguments
        command: String,
        /// What the system says
        source: std::io::Error,
    },
    /// The compiler or the linker refused.
    #[error("{0} failed: see its output above")]
    Failed(String),
    /// What was built is no object file.
    #[error("{}: {source}", .path.display())]
    Object {
        /// The file
        path: PathBuf,
        /// What is wrong with it
        source: object::build::Error,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file
        path: PathBuf,
        /// What the system says
        source: std::io::Error,
    },
}

impl Error {
    fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::File { path, source }
    }
}

/// What there is to build with.
#[derive(Debug, Default)]
pub struct Search {
    /// The compiler, if one was found
    pub compiler: Option<Compiler>,
    /// bpf-linker, if it was found
    pub linker: Option<PathBuf>,
    /// One line for each place: what is there, or what is missing
    pub told: Vec<String>,
}

impl Search {
    /// Looks at all places. `root` is the root of the repository.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        let mut told = Vec::new();
        let compiler = compiler::find(&mut told);
        let linker = linker::find(root, &mut told);
        Self { compiler, linker, told }
    }

    /// The versions of compiler and linker, on which the bytes depend that they make.
    #[must_use]
    pub fn toolchain(&self) -> Option<String> {
        let (compiler, _linker) = (self.compiler.as_ref()?, self.linker.as_ref()?);
        Some(format!("rustc {}, bpf-linker {LINKER_VERSION}", compiler.version))
    }

    /// Whether nothing is missing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.compiler.is_some() && self.linker.is_some()
    }
}

/// Files and directories that the object is made of, relative to the repository's root.
pub const INPUTS: [&str; 5] = [
    "proxy-ebpf/src",
    "proxy-ebpf/Cargo.toml",
    "proxy-ebpf/Cargo.lock",
    "proxy-common/src",
    "proxy-common/Cargo.toml",
];

/// Where [`build`] puts the object file.
#[must_use]
pub fn object(root: &Path) -> PathBuf {
    own_target_directory(root).join("sluice.o")
}

/// Builds the object file, or leaves the one that is there when it is of today's sources.
pub fn build(root: &Path, search: &Search) -> Result<PathBuf, Error> {
    let (Some(compiler), Some(linker)) = (&search.compiler, &search.linker) else {
        return Err(Error::Tools(search.told.clone()));
    };
    let directory = own_target_directory(root).join("build");
    let mut command = Command::new(&compiler.cargo);
    command.current_dir(root.join("proxy-ebpf"));
    clean(&mut command);
    command.env("RUSTC", &compiler.rustc).env("CARGO_TARGET_DIR", &directory);
    // Debian's compiler is a stable one, which has to be told that unstable options are meant.
    command.env("RUSTC_BOOTSTRAP", "1");
    let flags = flags(root, compiler, linker);
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join(&OsString::from("\u{1f}")));
    command.args(["build", "-Zbuild-std=core", "--release", "--target", TARGET]);
    run(&mut command)?;
    let built = directory.join(TARGET).join("release/sluice-ebpf");
    let object = object(root);
    let bytes = std::fs::read(&built).map_err(Error::file(&built))?;
    let bytes = stripped(&bytes).map_err(|source| Error::Object { path: built, source })?;
    publish(&bytes, &object)?;
    Ok(object)
}

fn flags(root: &Path, compiler: &Compiler, linker: &Path) -> Vec<OsString> {
    let mut own_linker = OsString::from("-Clinker=");
    own_linker.push(linker);
    let mut flags = vec![
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        own_linker,
        // The lines that the verifier quotes; it could not find them by the names below.
        "-Cdwarf-version=5".into(),
        "-Zembed-source=yes".into(),
    ];
    // Where something was built must not show in what was built.
    let remapped =
        [(root.to_owned(), "/sluice"), (environment::cargo_home(), "/cargo"), (compiler.sources(), "/rust")];
    flags.extend(remapped.map(|(from, to)| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push(format!("={to}"));
        flag
    }));
    flags
}

/// Runs a command to its end.
fn run(command: &mut Command) -> Result<(), Error> {
    let told = format!("{command:?}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(Error::Failed(told)),
        Err(source) => Err(Error::Start { command: told, source }),
    }
}

/// Without the debugging information that BTF was made of, which is most of the file and which
/// nothing here reads; and with plain names of functions: mangled ones have a hash of the directory
/// that was built in.
fn stripped(object: &[u8]) -> Result<Vec<u8>, object::build::Error> {
    let mut file = Builder::read(object)?;
    for section in &mut file.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    // Symbols of sections that are gone.
    file.delete_orphans();
    for symbol in &mut file.symbols {
        symbol.name = plain(symbol.name.as_slice()).into_bytes().into();
    }
    // LLVM keeps names of symbols and of sections in one section, which the writer cannot.
    let names = file.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut bytes = Vec::new();
    file.write(&mut bytes)?;
    Ok(bytes)
}

/// The name of a function without the hash of its crate.
fn plain(name: &[u8]) -> String {
    format!("{:#}", rustc_demangle::demangle(&String::from_utf8_lossy(name)))
}

/// Puts a file in its place at once, and only when it differs: others may be reading it, or look at
/// its time.
fn publish(bytes: &[u8], to: &Path) -> Result<(), Error> {
    if std::fs::read(to).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let next = to.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&next, bytes).map_err(Error::file(&next))?;
    std::fs::rename(&next, to).map_err(Error::file(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_published_once() {
        let directory = std::env::temp_dir().join(format!("sluice-ebpf-build-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let to = directory.join("to.o");
        publish(b"one", &to).unwrap();
        let time = || std::fs::metadata(&to).unwrap().modified().unwrap();
        let first = time();
        publish(b"one", &to).unwrap();
        assert_eq!(time(), first);
        publish(b"two", &to).unwrap();
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "two");
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn names_do_not_tell_where_something_was_built() {
        let names = [
            "_RNvNtCsjCC1UZDsP50_11sluice_ebpf4flow10end_client",
            "_RNvNtCs6CTgENhiRuN_11sluice_ebpf4flow10end_client",
        ];
        assert_eq!(names.map(|name| plain(name.as_bytes())), ["sluice_ebpf::flow::end_client"; 2]);
        assert_eq!(plain(b"ingress"), "ingress");
        assert_eq!(plain(b""), "");
    }

    #[test]
    fn what_is_missing_is_told() {
        let search = Search { told: vec!["no compiler".into()], ..Search::default() };
        assert!(!search.is_complete());
        let error = build(Path::new("/nowhere"), &search).unwrap_err();
        assert!(error.to_string().ends_with("\nno compiler"), "{error}");
    }
}
