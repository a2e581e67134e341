//! `cargo xtask build-ebpf`: the eBPF programs, and what it takes to build them.
//!
//! The build script of sluice builds them too, but installs nothing. So all commands here that
//! build sluice prepare first.

mod record;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use sluice_ebpf_build as ebpf;
use sluice_skips::Why;

use crate::machine::{self, cargo, root, run as run_command};
use record::Record;

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Fail unless the object has the recorded digest
    #[arg(long)]
    check: bool,
    /// Record the object's digest, and the versions of compiler and linker
    #[arg(long, conflicts_with = "check")]
    record: bool,
}

/// Builds the programs, telling with what.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let built = build()?;
    if arguments.record {
        record::write(&built)?;
    }
    if arguments.check { record::compare(&record::read()?, &built) } else { Ok(()) }
}

/// Why a comparison would say nothing about the sources: another toolchain may build other bytes.
pub(crate) fn obstacle() -> Result<Option<Why>> {
    prepare()?;
    let (recorded, here) = (record::read()?.toolchain, ebpf::Search::new(&root()).toolchain());
    let here = here.context("no toolchain")?;
    Ok((recorded != here)
        .then(|| Why::choice(format!("the record was built with {recorded}, and this machine has {here}"))))
}

/// Builds the programs, and fails unless they are the recorded ones.
pub(crate) fn check() -> Result<()> {
    record::compare(&record::read()?, &build()?)
}

fn build() -> Result<Record> {
    prepare()?;
    let search = ebpf::Search::new(&root());
    for line in &search.told {
        println!("{line}");
    }
    let object = ebpf::build(&root(), &search)?;
    let bytes = std::fs::read(&object).with_context(|| format!("reading {}", object.display()))?;
    let sha256 = Sha256::digest(&bytes).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    println!("{} sha256:{sha256}", object.display());
    Ok(Record { toolchain: search.toolchain().context("no toolchain")?, sha256 })
}

/// Installs what is missing, saying what, or says how.
pub(crate) fn prepare() -> Result<()> {
    let root = root();
    if ebpf::Search::new(&root).compiler.is_none() {
        println!("there is no compiler for eBPF");
        machine::install_packages(&ebpf::DEBIANS_COMPILER).with_context(or_nightly)?;
    }
    if ebpf::Search::new(&root).linker.is_none() {
        println!("building bpf-linker {} into target/tools (a minute, once)", ebpf::LINKER_VERSION);
        machine::install(&ebpf::DEBIANS_LLVM).with_context(or_linker)?;
        let mut command = cargo(&[]);
        ebpf::install_command(&mut command, &root);
        run_command(&mut command).with_context(or_linker)?;
    }
    let search = ebpf::Search::new(&root);
    if !search.is_complete() {
        let told = search.told.join("\n");
        bail!(
            "the eBPF programs cannot be built here:\n{told}\n{}",
            if search.compiler.is_none() { or_nightly() } else { or_linker() }
        );
    }
    Ok(())
}

fn or_nightly() -> String {
    let packages = ebpf::DEBIANS_COMPILER.join(" ");
    format!(
        "a compiler for eBPF: install Debian's {packages} (1.95 or later), or where rustup reaches its server run: {}",
        ebpf::NIGHTLY_COMMAND
    )
}

fn or_linker() -> String {
    let packages = ebpf::DEBIANS_LLVM.map(|(_, package)| package).join(" ");
    let version = ebpf::LINKER_VERSION;
    format!(
        "bpf-linker: install Debian's {packages}, with which it is built here, or install bpf-linker \
         {version} in PATH by other means"
    )
}
