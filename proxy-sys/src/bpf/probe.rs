//! What the kernel lacks, found out by trying.

use std::path::Path;

use sluice_common::maps::MapName;
use sluice_common::programs::{ETHERNET, SOCKET};

use super::layout::{Sizes, spec};
use super::load::{Program, Programs};
use super::map::Map;
use super::{BpfError, Cgroup, Directory, clsact, links, load, syscall};

/// Something that the eBPF backend needs and the machine does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What it is.
    pub feature: String,
    /// What to do.
    pub remedy: String,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.feature, self.remedy)
    }
}

/// Tries everything that the backend will need: the system call, each kind of map, each program,
/// the cgroup, the bpf filesystem, links where nobody's packets pass. Nothing stays.
#[must_use]
pub fn probe(object: &[u8], directory: &Directory, cgroup_root: &Path) -> Vec<Missing> {
    let mut missing = Vec::new();
    let mut add = |feature: String, remedy: String| missing.push(Missing { feature, remedy });
    let cgroup = Cgroup::open(cgroup_root);
    if let Err(error) = &cgroup {
        add("cgroup2".into(), error.to_string());
    }
    if let Err(error) = directory.on_bpffs() {
        add("bpf filesystem".into(), error.to_string());
    }
    if let Err(error) = load::check(object) {
        add("eBPF programs".into(), error.to_string());
        return missing;
    }
    super::lift_memory_limit();
    // One of each kind.
    let kinds = [MapName::Config, MapName::Counters, MapName::Groups, MapName::Flows, MapName::Networks];
    for map in kinds {
        let spec = spec(map, Sizes { flows: 64 });
        if let Err(error) = Map::create(spec, spec.entries.min(64)) {
            let remedy = remedy(&error);
            add(format!("eBPF maps like {map} ({error})"), remedy.into());
            if matches!(error.errno(), Some(libc::EPERM | libc::ENOSYS)) {
                return missing;
            }
        }
    }
    let programs = match load::load(object, load::names(), |_| None, false) {
        Ok(programs) => programs,
        Err(error) => {
            let remedy = remedy(&error);
            add(error.to_string(), remedy.into());
            return missing;
        }
    };
    if cgroup.is_ok()
        && let Err(error) = try_cgroup(&programs, cgroup_root)
    {
        let remedy = match error.errno() {
            Some(libc::EPERM) => {
                "make sure that no other program is attached exclusively to this cgroup or to a parent \
                 of it (bpftool cgroup show)"
            }
            _ => remedy(&error),
        };
        add(format!("programs at sockets ({error})"), remedy.into());
    }
    if let Err(error) = try_interface(&programs) {
        let remedy = remedy(&error);
        add(format!("programs at interfaces ({error})"), remedy.into());
    }
    missing
}

/// Attaches the socket programs to a cgroup that is made for it, in which no process is. Where none
/// can be made, as on a filesystem that is mounted to be read only, nothing is tried: links may be
/// possible there all the same.
fn try_cgroup(programs: &Programs, root: &Path) -> Result<(), BpfError> {
    let path = root.join(format!("sluice-probe-{}", std::process::id()));
    if std::fs::create_dir(&path).is_err() {
        return Ok(());
    }
    let tried = Cgroup::open(&path).and_then(|cgroup| {
        SOCKET.into_iter().zip(links::SOCKET).try_for_each(|(name, attach_type)| {
            let link = syscall::create_link(programs.get(name)?.fd(), cgroup.fd(), attach_type);
            let failed = |source| BpfError::system(format!("attach program {name} to a cgroup"), source);
            link.map(drop).map_err(failed)
        })
    });
    let _ = std::fs::remove_dir(&path);
    tried
}

/// Attaches the programs for packets to the loopback of a network namespace that ends with the
/// thread. Where none can be made, nothing is tried.
fn try_interface(programs: &Programs) -> Result<(), BpfError> {
    const LOOPBACK: u32 = 1;
    let programs = [programs.get(ETHERNET[0])?, programs.get(ETHERNET[1])?];
    let attach = |(at, program): (usize, &Program)| {
        if !links::has_tcx(program) {
            return clsact::ensure(LOOPBACK, at, program).map(drop).map_err(BpfError::from);
        }
        let link = syscall::create_link(program.fd(), LOOPBACK, links::TCX[at]);
        let failed = |source| BpfError::system(format!("attach program {}", ETHERNET[at]), source);
        link.map(drop).map_err(failed)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("probe".into()).spawn_scoped(scope, || {
            // SAFETY: no memory is involved, and only this thread gets another namespace.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Ok(());
            }
            programs.into_iter().enumerate().try_for_each(attach)
        });
        let failed = |source| BpfError::system("try programs in a namespace of their own", source);
        let broken = |_| failed(std::io::Error::other("the thread failed"));
        thread.map_err(failed)?.join().map_err(broken)?
    })
}

fn remedy(error: &BpfError) -> &'static str {
    match error.errno() {
        Some(libc::EPERM | libc::EACCES) => {
            "run as root with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (before Linux 5.8 CAP_SYS_ADMIN); \
             make sure that neither seccomp nor kernel lockdown forbids bpf(2)"
        }
        Some(libc::ENOSYS) => "use a kernel with CONFIG_BPF_SYSCALL",
        _ => {
            "use Linux 6.1 or later with CONFIG_BPF_SYSCALL, CONFIG_BPF_JIT, CONFIG_CGROUP_BPF, CONFIG_NET_CLS_BPF and \
             CONFIG_NET_SCH_INGRESS, or mode nftables"
        }
    }
}
