//! Builds the eBPF programs and hands them to the crate, which embeds them (feature `ebpf`).

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "ebpf")]
    if let Err(error) = ebpf::hand_over() {
        for line in error.to_string().lines() {
            println!("cargo::error={line}");
        }
        println!(
            "cargo::error=run `cargo xtask build-ebpf`, which installs what is missing, or build sluice without its eBPF \
             backend: --no-default-features"
        );
        return ExitCode::FAILURE;
    }
    // Without this, a change of any file would run it anew.
    println!("cargo::rerun-if-changed=build.rs");
    ExitCode::SUCCESS
}

#[cfg(feature = "ebpf")]
mod ebpf {
    use std::error::Error;
    use std::path::{Path, PathBuf};

    use sluice_ebpf_build::{INPUTS, Search, build};

    /// An object file that was built elsewhere.
    const GIVEN: &str = "SLUICE_EBPF_OBJECT";

    /// Puts the object where the crate looks for it.
    pub(crate) fn hand_over() -> Result<(), Box<dyn Error>> {
        println!("cargo::rerun-if-env-changed={GIVEN}");
        let object = match std::env::var_os(GIVEN).filter(|path| !path.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => built()?,
        };
        rerun_if_changed(&object);
        let to = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo names no OUT_DIR")?).join("sluice.o");
        std::fs::copy(&object, &to).map_err(|error| format!("{}: {error}", object.display()))?;
        Ok(())
    }

    fn built() -> Result<PathBuf, Box<dyn Error>> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = here.parent().unwrap_or(here);
        for input in INPUTS {
            rerun_if_changed(&root.join(input));
        }
        Ok(build(root, &Search::new(root))?)
    }

    fn rerun_if_changed(path: &Path) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}
