//! The directory through which a VM is told what to run, and tells what came of it. The VM mounts
//! it by 9p, without a cache; its other side is `init.sh`.
//!
//! | file | written by | what |
//! |---|---|---|
//! | `boot` | here | settings of the VM, shell assignments |
//! | `ready` | VM | commands are taken from now on |
//! | `N.sh` | here | a command, numbered from 1 |
//! | `N.out`, `N.err` | VM | what it wrote |
//! | `N.status` | VM | its exit status |
//! | `N.kill` | here | it is to be killed, with its process group |

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::script::quoted;

/// One of the two outputs of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Standard output
    Stdout,
    /// Standard error
    Stderr,
}

impl Output {
    fn suffix(self) -> &'static str {
        match self {
            Self::Stdout => "out",
            Self::Stderr => "err",
        }
    }
}

/// This machine's side of the directory.
#[derive(Debug)]
pub(super) struct Control {
    directory: PathBuf,
    started: u32,
}

impl Control {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, started: 0 }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.directory.join("ready").exists()
    }

    /// Hands a script over.
    pub(super) fn start(&mut self, script: &str) -> Result<Running> {
        let number = self.started + 1;
        write_whole(&self.directory.join(format!("{number}.sh")), script)?;
        self.started = number;
        Ok(Running { directory: self.directory.clone(), number, read: [0, 0] })
    }
}

/// Settings as assignments of a shell.
pub(super) fn assignments(settings: &[(&str, &str)]) -> String {
    settings.iter().map(|(name, value)| format!("{name}={}\n", quoted(value))).collect()
}

/// Writes a file that nobody sees before it is complete.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let incomplete = path.with_extension("tmp");
    fs::write(&incomplete, text)
        .and_then(|()| fs::rename(&incomplete, path))
        .with_context(|| format!("writing {}", path.display()))
}

/// A command that was started in a VM.
#[derive(Debug)]
pub struct Running {
    directory: PathBuf,
    number: u32,
    /// How much of each output was read
    read: [u64; 2],
}

impl Running {
    fn file(&self, suffix: &str) -> PathBuf {
        self.directory.join(format!("{}.{suffix}", self.number))
    }

    /// Its exit status, if it ended.
    pub fn status(&self) -> Result<Option<i32>> {
        let path = self.file("status");
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map(Some).with_context(|| format!("the status {text:?}")),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// What it wrote since this was last called.
    pub fn news(&mut self, output: Output) -> Vec<u8> {
        let path = self.file(output.suffix());
        let at = &mut self.read[usize::from(output == Output::Stderr)];
        let mut bytes = Vec::new();
        // It need not have begun yet.
        if let Ok(mut file) = File::open(path)
            && file.seek(SeekFrom::Start(*at)).is_ok()
        {
            // What was read before an error counts.
            drop(file.read_to_end(&mut bytes));
        }
        *at += bytes.len() as u64;
        bytes
    }

    /// All that it has written.
    #[must_use]
    pub fn everything(&self, output: Output) -> String {
        let bytes = fs::read(self.file(output.suffix())).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Kills it and all that it started, unless that has left its process group.
    pub fn kill(&self) -> Result<()> {
        write_whole(&self.file("kill"), "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_handed_over_and_its_end_is_seen() {
        let directory = std::env::temp_dir().join(format!("sluice-vm-control-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let mut control = Control::new(directory.clone());
        assert!(!control.is_ready());
        let mut first = control.start("true\n").unwrap();
        let second = control.start("false\n").unwrap();
        assert_eq!(fs::read_to_string(directory.join("2.sh")).unwrap(), "false\n");
        assert_eq!((first.status().unwrap(), first.news(Output::Stdout)), (None, vec![]));
        fs::write(directory.join("1.out"), "ab").unwrap();
        assert_eq!(first.news(Output::Stdout), b"ab");
        fs::write(directory.join("1.out"), "abc").unwrap();
        fs::write(directory.join("1.err"), "e").unwrap();
        fs::write(directory.join("1.status"), "137\n").unwrap();
        fs::write(directory.join("2.status"), "what\n").unwrap();
        assert_eq!((first.news(Output::Stdout), first.news(Output::Stderr)), (b"c".to_vec(), b"e".to_vec()));
        assert_eq!(first.everything(Output::Stdout), "abc");
        assert_eq!(first.status().unwrap(), Some(137));
        assert!(second.status().is_err());
        second.kill().unwrap();
        assert!(directory.join("2.kill").exists());
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn settings_are_read_by_a_shell() {
        let text = assignments(&[("name", "a'b"), ("keep", "/x y\n/z")]);
        assert_eq!(text, "name='a'\\''b'\nkeep='/x y\n/z'\n");
    }
}
