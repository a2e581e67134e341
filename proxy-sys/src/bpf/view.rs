//! What is in the kernel, for whoever only looks.

use std::path::Path;

use sluice_common::counters::Counter;

use super::directory::{Directory, list};
use super::layout::{Sizes, specs};
use super::map::Map;
use super::maps::Maps;
use super::{BpfError, links};
use sluice_common::maps::MapName;

/// Where a link is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// At the cgroup of this number.
    Cgroup(u64),
    /// At the interface of this index.
    Interface(u32),
    /// What it was at is gone, or it was detached by force.
    Nowhere,
}

/// A pinned link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkState {
    /// Where it is.
    pub place: Place,
    /// The name of its program; that of interfaces without Ethernet headers goes without `_raw`.
    pub program: String,
    /// The number of the program in the kernel.
    pub program_id: u32,
}

/// Maps and links that are pinned; no daemon is needed.
pub struct View {
    /// The maps.
    pub maps: Maps,
    /// The links.
    pub links: Vec<LinkState>,
}

impl View {
    /// Opens what is there.
    pub fn open(directory: &Directory) -> Result<Self, BpfError> {
        let maps = Maps::default();
        for spec in specs(Sizes { flows: 1 }) {
            if let Some(map) = Map::open(spec, &directory.map(spec.map))? {
                maps.insert(map);
            }
        }
        if maps.all().is_empty() {
            return Err(BpfError::Absent(directory.path().to_owned()));
        }
        let mut found = Vec::new();
        // They go first when all is removed: what is left of that has none.
        if directory.links().exists() {
            for path in list(&directory.links())? {
                found.extend(link_state(&path)?);
            }
        }
        found.sort_unstable();
        Ok(View { maps, links: found })
    }
}

fn link_state(path: &Path) -> Result<Option<LinkState>, BpfError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (program, interface) = match name.rsplit_once('-') {
        Some((program, index)) => (program, index.parse::<u32>().ok()),
        None => (name, None),
    };
    let Some((target, program_id)) = links::state(path)? else { return Ok(None) };
    let place = match interface {
        _ if target == 0 => Place::Nowhere,
        Some(_) => Place::Interface(target as u32),
        None => Place::Cgroup(target),
    };
    Ok(Some(LinkState { place, program: program.to_owned(), program_id }))
}

/// The name of an interface of this network namespace.
pub fn interface_name(index: u32) -> Option<String> {
    let mut name = [0 as libc::c_char; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the length that the call asks for; what it returns is the buffer or
    // nothing.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr()) };
    if found.is_null() {
        return None;
    }
    // SAFETY: the call has ended the text in the buffer with a zero.
    Some(unsafe { std::ffi::CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
}

/// What the programs have counted, over all CPUs.
pub fn counters(maps: &Maps) -> Result<Vec<(Counter, u64)>, BpfError> {
    let map = maps.get(MapName::Counters)?;
    Counter::ALL.iter().map(|counter| Ok((*counter, map.sum(*counter as u32)?))).collect()
}
