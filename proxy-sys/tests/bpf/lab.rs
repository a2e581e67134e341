//! Namespaces, a bpf filesystem and a cgroup for tests of eBPF.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aya::programs::links::{FdLink, PinnedLink};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use sluice_skips::{in_namespaces, skip};
use sluice_sys::bpf::Directory;

/// The eBPF programs as they were built last; `None`, with the reason, where there are none.
pub(crate) fn object() -> Option<&'static [u8]> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf/sluice.o");
    let path = std::env::var_os("SLUICE_EBPF_OBJECT").map_or(built, PathBuf::from);
    match std::fs::read(&path) {
        Ok(bytes) => Some(bytes.leak()),
        Err(error) => {
            let why = format!("{}: {error}; cargo xtask build-ebpf makes it", path.display());
            skip("ebpf-object", why);
            None
        }
    }
}

/// Where a test is at work.
#[derive(Clone)]
pub(crate) struct Lab {
    pub(crate) object: &'static [u8],
    pub(crate) cgroup: PathBuf,
    pub(crate) bpffs: PathBuf,
}

impl Lab {
    /// Runs a test in a place of its own. Without root, cgroup2 or programs: a skip that says so.
    pub(crate) fn run(test: impl FnOnce(&Lab) + Send + 'static) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let Some(object) = object() else { return };
        let Some(cgroups) = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .map(PathBuf::from)
            .into_iter()
            .find(|path| path.join("cgroup.procs").exists())
        else {
            skip("cgroup2", "there is no such filesystem");
            return;
        };
        let name = format!("sluice-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let place = Lab { object, cgroup: cgroups.join(&name), bpffs: std::env::temp_dir().join(&name) };
        let inside = place.clone();
        let kinds = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
        let run = || {
            in_namespaces(kinds, move || {
                let none: Option<&str> = None;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
                std::fs::create_dir(&inside.bpffs).unwrap();
                mount(Some("bpf"), &inside.bpffs, Some("bpf"), MsFlags::empty(), none).unwrap();
                std::fs::create_dir(&inside.cgroup).unwrap();
                test(&inside);
            })
        };
        let result = catch_unwind(AssertUnwindSafe(run));
        let _ = umount2(&place.bpffs, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_dir(&place.bpffs);
        // Processes that just ended leave it a moment later.
        wait(|| !place.cgroup.exists() || std::fs::remove_dir(&place.cgroup).is_ok());
        if let Err(panic) = result {
            resume_unwind(panic);
        }
    }

    pub(crate) fn directory(&self) -> Directory {
        Directory::new(self.bpffs.join("sluice"))
    }

    /// A pair of interfaces.
    pub(crate) fn veth(&self, one: &str, other: &str) {
        ip(&format!("link add {one} type veth peer name {other}"));
    }

    /// Number and program of each pinned link, by name.
    pub(crate) fn links(&self) -> Vec<(u32, u32)> {
        let directory = self.directory().path().join(format!("v{}/links", sluice_common::LAYOUT));
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| link(path)).collect()
    }

    /// How many programs of a name are loaded that use this lab's flow table.
    pub(crate) fn loaded(&self, name: &str) -> usize {
        let flows = self.directory().path().join(format!("v{}/maps/FLOWS", sluice_common::LAYOUT));
        let map = json(&format!("map show pinned {}", flows.display()));
        let programs = json("prog show");
        let uses = |program: &&serde_json::Value| {
            program["name"] == name
                && program["map_ids"].as_array().is_some_and(|ids| ids.contains(&map["id"]))
        };
        programs.as_array().unwrap().iter().filter(uses).count()
    }

    /// A shell in the cgroup, ended by [`tell_end`].
    pub(crate) fn client(&self, script: &str) -> Child {
        let procs = self.cgroup.join("cgroup.procs");
        let script = format!("echo $$ > {}; {script}", procs.display());
        Command::new("bash").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap()
    }
}

/// Link number and program number.
fn link(path: &Path) -> (u32, u32) {
    let info = FdLink::from(PinnedLink::from_pin(path).unwrap()).info().unwrap();
    (info.id(), info.program_id())
}

/// Ends a client, which must have found nothing wrong.
pub(crate) fn tell_end(client: &mut Child) {
    client.stdin.take().unwrap().write_all(b"end\n").unwrap();
    assert!(client.wait().unwrap().success());
}

pub(crate) fn ip(arguments: &str) {
    output("ip", arguments);
}

pub(crate) fn output(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What bpftool says.
fn json(arguments: &str) -> serde_json::Value {
    serde_json::from_str(&output("bpftool", &format!("--json {arguments}"))).unwrap()
}

pub(crate) fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// Whether something comes true soon.
pub(crate) fn wait(mut what: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !what() {
        if begun.elapsed() > Duration::from_secs(10) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}
