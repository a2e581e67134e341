//! What the node itself has to be able to do for its pods.

use std::fs;
use std::path::Path;

use sluice_cni::net::is_host_name;
use sluice_cni::spec::Mode;
use sluice_core::net::Family;
use sluice_link::sysctl::{self, ProcError};
use sluice_sys::modules;

const BRIDGE_CALLS: [(&str, Family); 2] =
    [("net.bridge.bridge-nf-call-iptables", Family::V4), ("net.bridge.bridge-nf-call-ip6tables", Family::V6)];

/// Why pods cannot be served on this node.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A sysctl cannot be written.
    #[error("pods' packets cannot be forwarded: {0}; set it on the node, or mount /proc/sys writable")]
    Forwarding(#[source] ProcError),
    /// What pods on one bridge say to each other goes past connection tracking.
    #[error(
        "mode bridge needs br_netfilter, or pods cannot call Services whose endpoint is on their own node: {0}; or set \
         sluice.podNetwork.mode to \"routed\""
    )]
    BridgeFilter(String),
}

/// Lets packets of pods pass.
pub(super) fn prepare(families: &[Family], mode: Mode) -> Result<(), NodeError> {
    for family in families {
        let name = match family {
            Family::V4 => "net.ipv4.ip_forward",
            Family::V6 => {
                keep_router_advertisements();
                "net.ipv6.conf.all.forwarding"
            }
        };
        sysctl::set(name, "1").map_err(NodeError::Forwarding)?;
    }
    if mode == Mode::Bridge { filter_bridges(families) } else { Ok(()) }
}

fn filter_bridges(families: &[Family]) -> Result<(), NodeError> {
    if !Path::new("/proc/sys/net/bridge").exists() {
        modules::load("br_netfilter").map_err(|error| NodeError::BridgeFilter(error.to_string()))?;
    }
    for (name, _) in BRIDGE_CALLS.iter().filter(|(_, family)| families.contains(family)) {
        sysctl::set(name, "1").map_err(|error| NodeError::BridgeFilter(error.to_string()))?;
    }
    Ok(())
}

/// A node that forwards ignores router advertisements, and would lose the default route that it has
/// by them, unless told not to (accept_ra 2; the kernel's Documentation/networking/ip-sysctl.rst).
/// Only interfaces that are there: what comes later is a pod's, and no pod may tell the node where
/// to route (CVE-2020-10749).
fn keep_router_advertisements() {
    if fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding").is_ok_and(|now| now.trim() == "1") {
        return;
    }
    for entry in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path().join("accept_ra");
        if !is_of_pods(&name) && fs::read_to_string(&path).is_ok_and(|now| now.trim() == "1") {
            // Where it cannot be written forwarding cannot be switched on either, and that is told.
            let _ = fs::write(&path, "2");
        }
    }
}

/// Interfaces of pods and of our own, and what others inherit from.
fn is_of_pods(name: &str) -> bool {
    let is_bridge = Path::new("/sys/class/net").join(name).join("bridge").exists();
    matches!(name, "all" | "default" | "lo") || is_host_name(name) || name.starts_with("sluice") || is_bridge
}

#[cfg(test)]
mod tests {
    use super::is_of_pods;

    #[test]
    fn uplinks_are_told_from_interfaces_of_pods() {
        assert!(["all", "default", "sl0123456789ab", "sluice-vxlan0", "sluice0"].into_iter().all(is_of_pods));
        assert!(!["eth0", "ens3", "slow0"].into_iter().any(is_of_pods));
    }
}
