//! What the kernel lacks, found out by trying.

use std::path::Path;

use super::layout::{Sizes, specs};
use super::map::Map;
use super::{BpfError, Cgroup, Directory, load};

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

/// Tries everything that the backend will need: the system call, each kind of map, each program, the cgroup, the bpf
/// filesystem. Nothing stays.
#[must_use]
pub fn probe(object: &[u8], directory: &Directory, cgroup_root: &Path) -> Vec<Missing> {
    let mut missing = Vec::new();
    let mut add = |feature: String, remedy: String| missing.push(Missing { feature, remedy });
    if let Err(error) = Cgroup::open(cgroup_root) {
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
    for name in ["CONFIG", "COUNTERS", "GROUPS", "FLOWS", "NETWORKS"] {
        let Some(spec) = specs(Sizes { flows: 64 }).find(|spec| spec.name == name) else { continue };
        if let Err(error) = Map::create(spec, spec.entries.min(64)) {
            let remedy = remedy(&error);
            add(format!("eBPF maps like {name} ({error})"), remedy.into());
            if matches!(error.errno(), Some(libc::EPERM | libc::ENOSYS)) {
                return missing;
            }
        }
    }
    if let Err(error) = load::load(object, |_| None, false) {
        let remedy = remedy(&error);
        add(error.to_string(), remedy.into());
    }
    missing
}

fn remedy(error: &BpfError) -> &'static str {
    match error.errno() {
        Some(libc::EPERM | libc::EACCES) => {
            "run as root with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (before Linux 5.8 CAP_SYS_ADMIN); see that neither \
             seccomp nor kernel lockdown forbids bpf(2)"
        }
        Some(libc::ENOSYS) => "use a kernel with CONFIG_BPF_SYSCALL",
        _ => {
            "use Linux 5.10 or later with CONFIG_BPF_SYSCALL, CONFIG_BPF_JIT, CONFIG_CGROUP_BPF, CONFIG_NET_CLS_BPF and \
             CONFIG_NET_SCH_INGRESS, or mode nftables"
        }
    }
}
