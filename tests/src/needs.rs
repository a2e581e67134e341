//! Features of the machine that a case may need.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use sluice_skips::{Why, skip};

use crate::agent::dial::stream_socket;
use crate::lab::cgroup;
use crate::process;
use crate::target::Proto;

/// What a case needs whose objects only files can hold: no API server takes them.
pub const MANIFESTS: &str = "manifests";

/// What a case needs that names the links of the lab's own pods.
pub const LAB_LINKS: &str = "lab-links";

/// Why `need` is missing on this machine; `None` when it is there. An unknown name is an error.
pub fn missing(need: &str) -> Result<Option<Why>> {
    let (there, what) = match need {
        // The source of objects, and who wires pods, decide, not the machine.
        MANIFESTS | LAB_LINKS => (true, ""),
        "sctp" => (stream_socket(Proto::Sctp, false).is_ok(), "the kernel has no SCTP"),
        "ipv6" => (speaks_ipv6(), "the kernel has none"),
        "conntrack" | "tcpdump" | "nft" => (in_path(need), "the program is not installed"),
        "cgroup2" => (cgroup::root().is_some(), "no writable cgroup2 mount"),
        "iptables-legacy" => {
            (has_legacy_iptables(), "no xtables-legacy-multi, or the kernel has no ip_tables")
        }
        "ipvs" => (Path::new("/proc/net/ip_vs").exists(), "the kernel has no IPVS"),
        "podman" => (runs_containers(), "podman with runc cannot run containers here"),
        "dummy" => (has_dummy(), "the kernel has no dummy links"),
        other => bail!("needs: unknown feature {other:?}"),
    };
    Ok((!there).then(|| Why::lack(need, what)))
}

/// Refuses names of features that nobody knows.
pub fn check_name(need: &str) -> Result<()> {
    let known = [
        "sctp",
        "ipv6",
        "conntrack",
        "tcpdump",
        "nft",
        "cgroup2",
        "iptables-legacy",
        "ipvs",
        "dummy",
        "podman",
        MANIFESTS,
        LAB_LINKS,
    ];
    if !known.contains(&need) {
        bail!("needs: unknown feature {need:?} (known: {})", known.join(", "));
    }
    Ok(())
}

/// Whether there is a podman that can run a container, which many machines that are containers
/// themselves do not let it.
fn runs_containers() -> bool {
    let dir = std::env::temp_dir().join(format!("sluice-lab-{}-podman", std::process::id()));
    let rootfs = dir.join("rootfs");
    let run = || -> Result<bool> {
        std::fs::create_dir_all(&rootfs)?;
        let mut command = Command::new("podman");
        command.arg("--root").arg(dir.join("root")).arg("--runroot").arg(dir.join("run"));
        command.args(["--storage-driver", "vfs", "--runtime", "runc", "--cgroup-manager", "cgroupfs"]);
        command.args(["--events-backend", "none", "run", "--rm", "--network", "none"]);
        command.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]);
        command.args(["-v", "/usr:/usr:ro", "-v", "/lib:/lib:ro", "-v", "/lib64:/lib64:ro"]);
        command.arg("--rootfs").arg(&rootfs).arg("/usr/bin/true");
        Ok(process::run(command, None, Duration::from_secs(20))?.status.success())
    };
    let runs = run().unwrap_or(false);
    drop(std::fs::remove_dir_all(&dir));
    runs
}

/// Whether the kernel speaks IPv6; else what would use it is skipped.
#[must_use]
#[track_caller]
pub fn has_ipv6() -> bool {
    let there = speaks_ipv6();
    if !there {
        skip("ipv6", "the kernel has none, so that is tested with IPv4 only");
    }
    there
}

fn speaks_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn has_dummy() -> bool {
    works_in_a_namespace(&["ip", "link", "add", "dummy-probe", "type", "dummy"])
}

fn has_legacy_iptables() -> bool {
    works_in_a_namespace(&["xtables-legacy-multi", "iptables", "-t", "nat", "-L", "-n"])
}

/// Tries a command in a namespace that vanishes with it.
fn works_in_a_namespace(argv: &[&str]) -> bool {
    let mut command = Command::new("unshare");
    command.arg("-n").args(argv);
    process::run(command, None, Duration::from_secs(10)).is_ok_and(|finished| finished.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_needs_are_errors() {
        assert!(missing("teleport").is_err());
        assert!(check_name("teleport").is_err());
        assert!(check_name("sctp").is_ok());
        assert!(missing("nft").is_ok());
    }
}
