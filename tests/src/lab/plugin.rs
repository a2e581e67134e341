//! Pods wired by our own CNI plugin, and nodes joined by our own pod network.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::address::NodeAddresses;
use crate::process::{self, NETNS_DIR, Namespace};
use crate::proxy::merged;
use crate::topology::PodSpec;

/// Who wires a lab's pods and joins its nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum PodNetwork {
    /// The lab itself, with routes between nodes
    #[default]
    Lab,
    /// Sluice: its plugin, routed, and VXLAN between nodes
    Sluice,
    /// The same with a bridge on each node
    SluiceBridge,
    /// The same as `sluice` with routes instead of VXLAN between nodes
    SluiceDirect,
}

impl PodNetwork {
    /// Whether it is ours.
    #[must_use]
    pub fn is_sluice(self) -> bool {
        self != PodNetwork::Lab
    }

    fn mode(self) -> &'static str {
        match self {
            PodNetwork::SluiceBridge => "bridge",
            _ => "routed",
        }
    }

    /// The section of sluice's configuration for a node whose files are in `dir`.
    pub(super) fn section(self, dir: &Path) -> Value {
        let cni = json!({
            "binDir": dir.join("cni/bin"), "confDir": dir.join("cni/conf"),
            "dataDir": dir.join("cni/data"), "runDir": dir.join("cni/run"),
        });
        // What a client outside of the cluster sees is what cases are about.
        json!({"sluice": {"podNetwork": {
            "backend": if self == PodNetwork::SluiceDirect { "direct" } else { "vxlan" }, "mode": self.mode(), "nonMasqueradeCIDRs": ["192.168.77.0/24", "fd00:77::/64"], "cni": cni,
        }}})
    }
}

/// One call of the plugin in a node.
#[derive(Debug)]
pub(super) struct Plugin<'a> {
    /// The plugin
    pub(super) program: PathBuf,
    /// The node's namespace
    pub(super) node: &'a Namespace,
    /// The node's files
    pub(super) dir: &'a Path,
    /// How pods are wired
    pub(super) network: PodNetwork,
}

impl Plugin<'_> {
    /// Wires a pod, with the addresses that its topology gives it, or takes it off the network.
    pub(super) fn call(
        &self,
        verb: &str,
        name: &str,
        netns: &str,
        pod: &PodSpec,
        runtime_config: &Value,
    ) -> Result<()> {
        let addresses: Vec<IpAddr> = pod.addresses().collect();
        let node = NodeAddresses::of(&pod.node).context("a pod without a node")?;
        let of_family = |cidr: &&String| addresses.iter().any(|ip| ip.is_ipv6() == cidr.contains(':'));
        let ranges: Vec<Value> =
            node.pod_cidr.iter().filter(of_family).map(|cidr| json!([{"subnet": cidr}])).collect();
        let runtime_config = merged(json!({"ips": addresses}), runtime_config);
        let config = json!({
            "cniVersion": "1.1.0", "name": "sluice", "type": "sluice-cni", "mode": self.network.mode(), "mtu": 1450,
            "dataDir": self.dir.join("cni/data"), "runDir": self.dir.join("cni/run"),
            "ipam": {"ranges": ranges}, "runtimeConfig": runtime_config,
        });
        let mut command = self.node.command(&self.program)?;
        command.env_clear().envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", name), ("CNI_IFNAME", "eth0")]);
        command.env("CNI_NETNS", Path::new(NETNS_DIR).join(netns)).env("CNI_PATH", "/opt/cni/bin");
        let finished = process::run(command, Some(&config.to_string()), Duration::from_secs(30))?;
        ensure!(finished.status.success(), "{verb} of pod {name}: {}", finished.stdout.trim());
        Ok(())
    }
}
