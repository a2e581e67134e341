//! Which bytes the eBPF programs are, and what they were built with. Another toolchain may build
//! other bytes: that is no failure of the build, but one of the check that compares.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::machine::root;

/// What a build comes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// Compiler and linker
    pub(super) toolchain: String,
    /// The digest of the object file
    pub(super) sha256: String,
}

const HEAD: &str = "# The eBPF programs' object file, and what it was built with: written by `cargo xtask build-ebpf --record`, compared by
# `cargo xtask build-ebpf --check`.
";

fn file() -> PathBuf {
    root().join("proxy-ebpf/object.yaml")
}

/// The record that the project keeps.
pub(super) fn read() -> Result<Record> {
    let text = std::fs::read_to_string(file()).with_context(|| format!("reading {}", file().display()))?;
    serde_saphyr::from_str(&text).map_err(|error| anyhow!("{}: {error}", file().display()))
}

/// Takes the place of the record.
pub(super) fn write(record: &Record) -> Result<()> {
    let text = format!("{HEAD}toolchain: {:?}\nsha256: {}\n", record.toolchain, record.sha256);
    std::fs::write(file(), text).with_context(|| format!("writing {}", file().display()))
}

/// Fails unless these bytes are the recorded ones, and says why they may not be.
pub(super) fn compare(recorded: &Record, built: &Record) -> Result<()> {
    if recorded.sha256 == built.sha256 {
        return Ok(());
    }
    let why = if recorded.toolchain == built.toolchain {
        "the sources have changed since the record".to_owned()
    } else {
        format!("the record was built with {}, this object with {}", recorded.toolchain, built.toolchain)
    };
    bail!(
        "the eBPF programs have the digest {}, and {} is recorded: {why}. When the tests have passed with them: \
         cargo xtask build-ebpf --record",
        built.sha256,
        recorded.sha256
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_bytes_are_refused_with_their_reason_and_another_toolchain_alone_is_not() {
        let record =
            |toolchain: &str, sha256: &str| Record { toolchain: toolchain.into(), sha256: sha256.into() };
        let recorded = record("rustc 1", "aa");
        assert!(compare(&recorded, &record("rustc 1", "aa")).is_ok());
        assert!(compare(&recorded, &record("rustc 2", "aa")).is_ok());
        let error = compare(&recorded, &record("rustc 1", "bb")).unwrap_err().to_string();
        assert!(error.contains("the sources have changed"), "{error}");
        let error = compare(&recorded, &record("rustc 2", "bb")).unwrap_err().to_string();
        assert!(error.contains("the record was built with rustc 1, this object with rustc 2"), "{error}");
    }

    #[test]
    fn the_project_s_record_can_be_read() {
        let record = read().unwrap();
        assert_eq!(record.sha256.len(), 64);
        assert!(record.toolchain.contains("bpf-linker"), "{record:?}");
    }
}
