//! What the node itself has to be able to do for its pods.

use std::fs;
use std::path::Path;

use sluice_cni::spec::Mode;
use sluice_core::net::Family;
use sluice_sys::modules;
use sluice_sys::proc::{self, ProcError};

use crate::config::BackendKind;

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
pub(super) fn prepare(families: &[Family], mode: Mode, backend: BackendKind) -> Result<(), NodeError> {
    for family in families {
        let name = match family {
            Family::V4 => "net.ipv4.ip_forward",
            Family::V6 => {
                keep_router_advertisements();
                "net.ipv6.conf.all.forwarding"
            }
        };
        proc::set_sysctl(name, "1").map_err(NodeError::Forwarding)?;
    }
    // The eBPF backend translates at sockets, before there are packets.
    if mode == Mode::Bridge && backend != BackendKind::Ebpf { filter_bridges(families) } else { Ok(()) }
}

fn filter_bridges(families: &[Family]) -> Result<(), NodeError> {
    if !Path::new("/proc/sys/net/bridge").exists() {
        modules::load("br_netfilter").map_err(|error| NodeError::BridgeFilter(error.to_string()))?;
    }
    for (name, _) in BRIDGE_CALLS.iter().filter(|(_, family)| families.contains(family)) {
        proc::set_sysctl(name, "1").map_err(|error| NodeError::BridgeFilter(error.to_string()))?;
    }
    Ok(())
}

/// A node that forwards ignores router advertisements, and would lose the default route that it has by them, unless told
/// not to (accept_ra 2; the kernel's Documentation/networking/ip-sysctl.rst).
fn keep_router_advertisements() {
    if fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding").is_ok_and(|now| now.trim() == "1") {
        return;
    }
    for entry in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
        let path = entry.path().join("accept_ra");
        if fs::read_to_string(&path).is_ok_and(|now| now.trim() == "1") {
            // Where it cannot be written forwarding cannot be switched on either, and that is told.
            let _ = fs::write(&path, "2");
        }
    }
}
