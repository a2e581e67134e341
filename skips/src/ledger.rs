//! The ledger: a file with a line of JSON for each skip, to which many processes append.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Result, Write};
use std::path::{Path, PathBuf};

use crate::Skip;

/// Names the ledger's file.
pub const LEDGER: &str = "SLUICE_SKIPS";

/// Appends a skip to the ledger, if there is one.
pub fn note(skip: &Skip) -> Result<()> {
    match std::env::var_os(LEDGER).map(PathBuf::from) {
        Some(file) => append(&file, skip),
        None => Ok(()),
    }
}

/// Appends a skip to a file: with one write, so that lines of several processes do not mix.
pub fn append(file: &Path, skip: &Skip) -> Result<()> {
    let line = serde_json::to_string(skip)? + "\n";
    let mut file: File = OpenOptions::new().create(true).append(true).open(file)?;
    file.write_all(line.as_bytes())
}

/// All skips of a ledger. One that was never written to is empty.
pub fn read(file: &Path) -> Result<Vec<Skip>> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let skip = |line| serde_json::from_str(line).map_err(|error| Error::new(ErrorKind::InvalidData, error));
    text.lines().map(skip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Why;

    #[test]
    fn lines_of_many_writers_are_read_whole() {
        let file = std::env::temp_dir().join(format!("sluice-ledger-{}", std::process::id()));
        assert_eq!(read(&file).unwrap(), []);
        let skip = |writer: usize| Skip {
            test: format!("test {writer}"),
            why: Why::choice("a reason\nof two lines ".repeat(20)),
        };
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let file = &file;
                scope.spawn(move || (0..50).for_each(|_| append(file, &skip(writer)).unwrap()));
            }
        });
        let mut skips = read(&file).unwrap();
        skips.sort();
        assert_eq!(skips, (0..8).flat_map(|writer| vec![skip(writer); 50]).collect::<Vec<_>>());
        std::fs::write(&file, "half a li").unwrap();
        assert_eq!(read(&file).unwrap_err().kind(), ErrorKind::InvalidData);
        std::fs::remove_file(&file).unwrap();
    }
}
