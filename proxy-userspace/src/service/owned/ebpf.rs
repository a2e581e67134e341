//! The programs and maps of mode ebpf, pinned in a directory.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sluice_sys::bpf::{self, BpfError, Directory, Place, Usage, View, counters};

use crate::feature::{NO_BPF, NotRemoved, Owned, Reason, Removal, Section, Seen, Turn};
use crate::service::backend::{BackendError, ebpf};

pub(super) struct Programs {
    pub(super) bpffs: PathBuf,
}

impl Owned for Programs {
    fn name(&self) -> String {
        format!("eBPF programs and maps in {}", self.bpffs.display())
    }

    fn turn(&self) -> Turn {
        Turn::Programs
    }

    fn observe(&self) -> Seen {
        Seen::of("ebpf", seen(&self.bpffs).map(|ebpf| ebpf.map(|ebpf| Section::new("ebpf", &ebpf))))
    }

    fn remove(&self, force: bool) -> Result<Removal, NotRemoved> {
        let directory = Directory::new(&self.bpffs);
        let remove = || {
            // A daemon of another network namespace may be at work on it.
            let _lock = if directory.exists() && !force { Some(directory.try_lock()?) } else { None };
            ebpf::remove(&directory)
        };
        match remove() {
            Ok(true) => Ok(Removal::Gone(vec![self.name()])),
            Ok(false) => Ok(Removal::Nothing(format!("there are no {}", self.name()))),
            Err(BackendError::Bpf(error)) if error.errno() == Some(libc::EPERM) => Err(NotRemoved::Right),
            Err(error) => Err(error.into()),
        }
    }
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ebpf {
    #[serde(skip)]
    bpffs: String,
    maps: BTreeMap<&'static str, Entries>,
    counted: BTreeMap<&'static str, u64>,
    /// Programs by where they are.
    programs: BTreeMap<String, Vec<String>>,
}

/// How full a map is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entries {
    entries: usize,
    capacity: usize,
}

impl From<Usage> for Entries {
    fn from(usage: Usage) -> Self {
        Entries { entries: usage.entries, capacity: usage.capacity }
    }
}

/// `None` without programs and maps.
fn seen(bpffs: &Path) -> Result<Option<Ebpf>, Reason> {
    // Without a directory no right is needed to know that there is nothing.
    match bpffs.metadata() {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => {
            return Err(Reason::new(error.raw_os_error(), NO_BPF, format!("{}: {error}", bpffs.display())));
        }
    }
    let directory = Directory::new(bpffs);
    let view = match View::open(&directory) {
        Ok(view) => view,
        Err(BpfError::Absent(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut ebpf = Ebpf { bpffs: bpffs.display().to_string(), ..Ebpf::default() };
    for map in view.maps.all() {
        // Of arrays all entries are always there.
        if map.spec().grows() || map.spec().is_lru() {
            ebpf.maps.insert(map.name(), map.usage()?.into());
        }
    }
    let counted = counters(&view.maps)?;
    ebpf.counted = counted.into_iter().map(|(counter, count)| (counter.name(), count)).collect();
    for link in view.links {
        let place = match link.place {
            Place::Cgroup(number) => format!("cgroup {number}"),
            Place::Interface(index) => {
                bpf::interface_name(index).unwrap_or_else(|| format!("interface {index}"))
            }
            Place::Nowhere => "nowhere (detached, or its interface was deleted)".into(),
        };
        ebpf.programs.entry(place).or_default().push(link.program);
    }
    Ok(Some(ebpf))
}

impl Display for Ebpf {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "ebpf: {}", self.bpffs)?;
        writeln!(f, "  entries of maps:")?;
        for (name, Entries { entries, capacity }) in &self.maps {
            writeln!(f, "    {name:<12} {entries:>9} of {capacity}")?;
        }
        writeln!(f, "    counters since the maps were created:")?;
        for (counter, count) in &self.counted {
            writeln!(f, "    {counter:<26} {count:>12}")?;
        }
        writeln!(f, "  programs:")?;
        for (place, programs) in &self.programs {
            writeln!(f, "    {place}: {}", programs.join(" "))?;
        }
        if self.programs.is_empty() {
            writeln!(f, "        none attached")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_say_the_same() {
        let ebpf = Ebpf {
            bpffs: "/b".into(),
            maps: BTreeMap::from([("FLOWS", Entries { entries: 3, capacity: 10 })]),
            counted: BTreeMap::from([("rejected", 7)]),
            programs: BTreeMap::from([("eth0".into(), vec!["egress".into(), "ingress".into()])]),
        };
        let Section { value, text, .. } = Section::new("ebpf", &ebpf);
        for line in ["ebpf: /b\n", "3 of 10", "rejected", "    eth0: egress ingress\n"] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert_eq!(value["maps"]["FLOWS"]["capacity"], 10);
        assert!(value.get("bpffs").is_none(), "{value}");
    }
}
