//! Where valid inputs come from: the repository's own files.

use std::path::{Path, PathBuf};

/// A directory of the repository.
pub fn below(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// What the files of these directories have in them, those of one directory in the order of their
/// names.
///
/// # Panics
/// If one cannot be read, or if there are none: without valid inputs nothing much is looked at.
#[expect(clippy::panic, reason = "it fails the test that it is called by")]
pub fn corpus(directories: &[&str]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for directory in directories.iter().map(|directory| below(directory)) {
        let read = || -> std::io::Result<Vec<Vec<u8>>> {
            let mut paths = Vec::new();
            for entry in std::fs::read_dir(&directory)? {
                paths.push(entry?.path());
            }
            paths.sort();
            paths.into_iter().filter(|path| path.is_file()).map(std::fs::read).collect()
        };
        let files = read().unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        assert!(!files.is_empty(), "no files in {}", directory.display());
        found.extend(files);
    }
    found
}
