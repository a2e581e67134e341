//! Lets packets from the node's loopback addresses leave to pods that have ports of the node there.
//!
//! What comes from outside with such an address is dropped by the table of the pod network, which
//! has to be there before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use sluice_cni::net::{self, NetError};
use sluice_cni::spec::BRIDGE;
use sluice_link::sysctl::{self, ProcError};

/// Why ports of the node do not answer on loopback.
#[derive(Debug, thiserror::Error)]
pub enum LocalnetError {
    /// Links cannot be asked for.
    #[error("cannot find the links of pods with host ports: {0}")]
    Links(#[from] NetError),
    /// A sysctl cannot be written.
    #[error("cannot make host ports answer on 127.0.0.1: {0}")]
    Sysctl(#[from] ProcError),
}

/// Whether the way can be opened at all: a container that is not privileged cannot write to
/// /proc/sys.
pub(super) fn can_open() -> std::io::Result<()> {
    OpenOptions::new().write(true).open(path("default")).map(drop)
}

/// Interfaces by which packets from loopback leave because this process has let them. What one
/// before it opened goes with the pod's link, or stays: nobody can tell it from what the plugin
/// portmap opens, for the same links.
#[derive(Debug, Default)]
pub(super) struct Opened(BTreeSet<String>);

impl Opened {
    /// Opens the way to pods, given by the names of their links, and closes what was opened and no
    /// pod needs any more. What somebody else has opened stays as it is. Returns the pods whose
    /// link is not there yet.
    pub(super) fn follow(&mut self, pods: &BTreeSet<String>) -> Result<BTreeSet<String>, LocalnetError> {
        let ways = if pods.is_empty() { BTreeMap::new() } else { net::ways_out(pods)? };
        let wanted: BTreeSet<&String> = ways.values().collect();
        for interface in &wanted {
            if set(interface, "1")? {
                self.0.insert((*interface).clone());
            }
        }
        let needless: Vec<String> = self.0.iter().filter(|name| !wanted.contains(name)).cloned().collect();
        for interface in needless {
            set(&interface, "0")?;
            self.0.remove(&interface);
        }
        Ok(pods.iter().filter(|pod| !ways.contains_key(*pod)).cloned().collect())
    }
}

/// Closes the ways to all pods: nothing drops what comes from outside any more.
pub(super) fn close() -> Result<(), LocalnetError> {
    let pods = net::link_names()?.into_iter().filter(|name| net::is_host_name(name)).collect();
    // A bridge of ours may be without pods.
    let bridge = [BRIDGE.to_owned()];
    for interface in net::ways_out(&pods)?.into_values().chain(pods).chain(bridge).collect::<BTreeSet<_>>() {
        set(&interface, "0")?;
    }
    Ok(())
}

/// Returns whether that changed anything. An interface that has gone has no way to be opened or
/// closed. Its name may have a dot.
fn set(interface: &str, value: &str) -> Result<bool, LocalnetError> {
    match sysctl::write_if_different(path(interface), value) {
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Ok(false),
        other => Ok(other?),
    }
}

fn path(interface: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv4/conf").join(interface).join("route_localnet")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(arguments: &str) {
        let status = std::process::Command::new("ip").args(arguments.split(' ')).status();
        assert!(status.unwrap().success(), "ip {arguments}");
    }

    fn is_open(interface: &str) -> bool {
        std::fs::read_to_string(path(interface)).unwrap().trim() == "1"
    }

    /// Two pods, the first behind a bridge; somebody else has opened another bridge.
    #[test]
    fn ways_are_closed_when_no_pod_needs_them_unless_somebody_else_opened_them() {
        let test = || {
            let [one, two, three] = ["sl00000000000a", "sl00000000000b", "sl00000000000c"];
            for bridge in ["pods0", "foreign0"] {
                ip(&format!("link add {bridge} type bridge"));
            }
            for (pod, bridge) in [(one, Some("pods0")), (two, None), (three, Some("foreign0"))] {
                ip(&format!("link add {pod} type veth peer name p{}", &pod[3..]));
                if let Some(bridge) = bridge {
                    ip(&format!("link set {pod} master {bridge}"));
                }
            }
            assert!(set("foreign0", "1").unwrap());
            let of = |pods: &[&str]| pods.iter().map(|pod| (*pod).to_owned()).collect::<BTreeSet<_>>();
            let open = || ["pods0", two, "foreign0"].map(is_open);
            let mut opened = Opened::default();
            assert_eq!(
                opened.follow(&of(&[one, two, three, "sl00000000000d"])).unwrap(),
                of(&["sl00000000000d"])
            );
            assert_eq!(open(), [true, true, true]);
            opened.follow(&of(&[two])).unwrap();
            assert_eq!(open(), [false, true, true]);
            // To a process that comes behind another one it may as well be portmap's.
            Opened::default().follow(&of(&[])).unwrap();
            assert_eq!(open(), [false, true, true]);
            opened.follow(&of(&[])).unwrap();
            assert_eq!(open(), [false, false, true]);
        };
        sluice_skips::in_namespaces(nix::sched::CloneFlags::CLONE_NEWNET, test);
    }
}
