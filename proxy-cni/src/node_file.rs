//! What the daemon tells the plugin of the node.

use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The node's part of the pod network. The daemon writes it when pods can start; a boot takes it
/// away. It stays when the daemon ends, because pods can start without it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFile {
    /// The node's pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// The largest packet of a pod, in bytes.
    pub mtu: u32,
}

impl NodeFile {
    /// Where it is, in the directory that daemon and plugin agree on.
    pub fn path(run: &Path) -> PathBuf {
        run.join("pod-network.json")
    }
}
