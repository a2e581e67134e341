//! From the object file to programs in the kernel.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use aya::programs::{Program as AyaProgram, ProgramError};
use aya::{Ebpf, EbpfLoader};
use sluice_common::maps::MapName;
use sluice_common::programs::{END_FLOW, ETHERNET, RAW, SOCKET};

use super::layout::{Sizes, spec};
use super::{BpfError, syscall};

/// Lines of the verifier's log that an error shows.
const LOG_LINES: usize = 16;

/// A program in the kernel.
#[derive(Debug)]
pub(super) struct Program {
    fd: OwnedFd,
    pub(super) id: u32,
}

impl Program {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// All programs of the object, by name.
#[derive(Debug, Default)]
pub(super) struct Programs {
    by_name: BTreeMap<&'static str, Program>,
    /// What reads the messages of the programs.
    pub(super) object: Option<Ebpf>,
}

impl Programs {
    pub(super) fn get(&self, name: &str) -> Result<&Program, BpfError> {
        self.by_name.get(name).ok_or_else(|| BpfError::Object(format!("there is no program {name}")))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Adds programs that were loaded later, with the same maps.
    pub(super) fn add(&mut self, more: Programs) {
        self.by_name.extend(more.by_name);
    }
}

/// Names of all programs.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    names_of_every_node().chain(RAW)
}

/// Names of the programs that are needed on every node.
pub(super) fn names_of_every_node() -> impl Iterator<Item = &'static str> {
    SOCKET.into_iter().chain(ETHERNET).chain([END_FLOW])
}

/// Checks that the object has all maps, and that they are those of the layout.
pub(super) fn check(object: &[u8]) -> Result<(), BpfError> {
    let parsed = aya_obj::Object::parse(object).map_err(|error| BpfError::Object(error.to_string()))?;
    for map in MapName::ALL.iter().copied() {
        let Some(found) = parsed.maps.get(map.name()) else {
            return Err(BpfError::Object(format!("there is no map {map}")));
        };
        let shape = spec(map, Sizes { flows: 1 }).shape(0);
        let known = (shape.map_type, shape.key_size, shape.value_size);
        let found = (found.map_type(), found.key_size(), found.value_size());
        if known != found {
            return Err(BpfError::Object(format!(
                "map {map} has type, key and value size {found:?}, but layout {} has {known:?}",
                sluice_common::LAYOUT
            )));
        }
    }
    Ok(())
}

/// Loads programs with the maps that are pinned where `pins` says; with small ones of their own
/// where it says nothing. With `keep`, what reads the programs' messages is kept.
pub(super) fn load(
    object: &[u8],
    names: impl IntoIterator<Item = &'static str>,
    pins: impl Fn(MapName) -> Option<PathBuf>,
    keep: bool,
) -> Result<Programs, BpfError> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    // Read by the verifier, which leaves out what only tells.
    if !keep {
        loader.override_global("AYA_LOG_LEVEL", &0u8, false);
    }
    for map in MapName::ALL.iter().copied() {
        let spec = spec(map, Sizes { flows: 1 });
        if let Some(path) = pins(map) {
            loader.map_pin_path(map.name(), path);
        } else if spec.grows() || spec.is_lru() {
            loader.map_max_entries(map.name(), 64);
        }
    }
    let mut loaded = loader.load(object).map_err(|error| BpfError::Object(chain(&error)))?;
    let mut programs = Programs::default();
    for name in names {
        let program = loaded
            .program_mut(name)
            .ok_or_else(|| BpfError::Object(format!("there is no program {name}")))?;
        programs.by_name.insert(name, load_one(name, program)?);
    }
    programs.object = keep.then_some(loaded);
    Ok(programs)
}

fn load_one(name: &str, program: &mut AyaProgram) -> Result<Program, BpfError> {
    let refused = |error: ProgramError| match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = last_lines(&verifier_log.to_string());
            BpfError::Program { program: name.to_owned(), source: io_error, log }
        }
        other => BpfError::Object(format!("program {name}: {}", chain(&other))),
    };
    let fd = match program {
        AyaProgram::CgroupSockAddr(program) => {
            program.load().map_err(refused)?;
            program.fd().map_err(refused)?
        }
        AyaProgram::SchedClassifier(program) => {
            program.load().map_err(refused)?;
            program.fd().map_err(refused)?
        }
        _ => return Err(BpfError::Object(format!("program {name} has an unexpected type"))),
    };
    let failed = |source: io::Error| BpfError::system(format!("open program {name}"), source);
    let fd = fd.as_fd().try_clone_to_owned().map_err(failed)?;
    let id = syscall::program_id(fd.as_fd()).map_err(failed)?;
    Ok(Program { fd, id })
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::last_lines;

    #[test]
    fn the_end_of_a_log_is_shown() {
        let log: String = (0..40).map(|n| format!("{n}\n\n")).collect();
        let shown = last_lines(&log);
        assert!(shown.starts_with("24\n") && shown.ends_with("\n39"), "{shown}");
        assert_eq!(last_lines(""), "");
    }
}
