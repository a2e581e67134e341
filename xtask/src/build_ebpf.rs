//! `cargo xtask build-ebpf`: the eBPF programs, and what it takes to build them.
//!
//! The build script of sluice builds them too, but installs nothing. So all commands here that build sluice prepare first.

use anyhow::{Context, Result, bail};
use sluice_ebpf_build as ebpf;

use crate::machine::{self, cargo, root, run as run_command};

/// Builds the programs, telling with what.
pub(crate) fn run() -> Result<()> {
    prepare()?;
    let search = ebpf::Search::new(&root());
    for line in &search.told {
        println!("{line}");
    }
    let object = ebpf::build(&root(), &search)?;
    println!("{}", object.display());
    Ok(())
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
        "bpf-linker: install Debian's {packages}, with which it is built here, or bpf-linker {version} into PATH by \
         other means"
    )
}
