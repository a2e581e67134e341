//! Removal of labs, one's own and those of runners that were killed.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{bpffs, cgroup};
use crate::process::NETNS_DIR;

/// Kills every process that lives in one of the named namespaces.
pub fn kill_inhabitants(namespaces: &[String]) {
    let inodes: HashSet<u64> = namespaces
        .iter()
        .filter_map(|name| fs::metadata(Path::new(NETNS_DIR).join(name)).ok())
        .map(|metadata| metadata.ino())
        .collect();
    let own = fs::metadata("/proc/self/ns/net").map(|metadata| metadata.ino()).unwrap_or_default();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(metadata) = fs::metadata(entry.path().join("ns/net")) else { continue };
        if metadata.ino() != own && inodes.contains(&metadata.ino()) {
            // It may just have ended.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Removes namespaces by name.
pub fn remove_namespaces(namespaces: &[String]) {
    for name in namespaces.iter().filter(|name| Path::new(NETNS_DIR).join(name).exists()) {
        // Not through `process::run`, which gives up when the runner is interrupted: this is what
        // must still be done then. One that cannot be removed now is found by the next prune.
        drop(Command::new("ip").args(["netns", "del", name]).status());
    }
}

/// Removes what runners that no longer run have left behind.
pub fn stale() {
    let names = || {
        fs::read_dir(NETNS_DIR)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
    };
    let namespaces: Vec<String> =
        names().filter(|name| name.strip_prefix("sl").and_then(owner).is_some_and(is_gone)).collect();
    kill_inhabitants(&namespaces);
    remove_namespaces(&namespaces);
    for (dir, is_cgroup) in
        [(cgroup::root(), true), (bpffs::root(), false), (Some(std::env::temp_dir()), false)]
    {
        let Some(dir) = dir else { continue };
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.strip_prefix("sluice-lab-")).and_then(owner);
            if !pid.is_some_and(is_gone) {
                continue;
            }
            if is_cgroup {
                cgroup::remove(&entry.path());
            } else {
                drop(fs::remove_dir_all(entry.path()));
            }
        }
    }
}

/// The process id at the beginning of `PID-…`.
fn owner(rest: &str) -> Option<i32> {
    rest.split_once('-')?.0.parse().ok()
}

fn is_gone(pid: i32) -> bool {
    !Path::new("/proc").join(pid.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_runner() {
        assert_eq!(owner("123-0-node-a"), Some(123));
        assert_eq!(owner("ice-lab"), None);
        assert!(!is_gone(i32::try_from(std::process::id()).unwrap()));
    }
}
