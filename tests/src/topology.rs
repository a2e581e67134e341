//! What a lab is made of: nodes, pods, and listeners in host namespaces.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail, ensure};
use serde::Deserialize;

use crate::address::NodeAddresses;
use crate::target::{From, Listen, Proto};

/// The nodes, pods and host listeners of a lab.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Nodes by name (`node-a`, `node-b`, …)
    pub nodes: BTreeMap<String, NodeSpec>,
    /// Pods by name
    #[serde(default)]
    pub pods: BTreeMap<String, PodSpec>,
    /// Echo servers in the namespace of a node or of the client
    #[serde(default)]
    pub hosts: BTreeMap<String, Vec<Listen>>,
}

/// One node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSpec {
    /// The value of its zone label
    pub zone: Option<String>,
}

/// One pod.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodSpec {
    /// Its node
    pub node: String,
    /// Its IPv4 address
    pub ip: Option<Ipv4Addr>,
    /// Its IPv6 address
    pub ip6: Option<Ipv6Addr>,
    /// What its echo server listens on; tcp/8080 and udp/8080 when not given
    pub listen: Option<Vec<Listen>>,
}

impl PodSpec {
    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.ip.map(IpAddr::V4).into_iter().chain(self.ip6.map(IpAddr::V6))
    }

    /// What its echo server listens on.
    #[must_use]
    pub fn listeners(&self) -> Vec<Listen> {
        let default = || [Proto::Tcp, Proto::Udp].map(|proto| Listen { proto, port: 8080 }).to_vec();
        self.listen.clone().unwrap_or_else(default)
    }
}

impl Topology {
    /// Refuses what a lab cannot build.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.nodes.is_empty(), "topology names no node");
        for name in self.nodes.keys() {
            ensure!(NodeAddresses::of(name).is_some(), "node {name:?}: a node is called node-a to node-z");
        }
        for (name, pod) in &self.pods {
            ensure!(self.nodes.contains_key(&pod.node), "pod {name}: no node {} in the topology", pod.node);
            ensure!(pod.addresses().next().is_some(), "pod {name} has neither ip nor ip6");
            let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.');
            ensure!(plain && !name.is_empty(), "pod {name:?}: not a pod name");
            let taken = self.nodes.contains_key(name) || ["client", "switch"].contains(&name.as_str());
            ensure!(!taken, "pod {name}: the lab uses this name; choose another");
        }
        for host in self.hosts.keys() {
            ensure!(
                host == "client" || self.nodes.contains_key(host),
                "hosts: no node {host} in the topology"
            );
        }
        Ok(())
    }

    /// Refuses a place that the lab will not have.
    pub fn check_place(&self, from: &From) -> Result<()> {
        match from {
            From::Pod(name) if !self.pods.contains_key(name) => bail!("no pod {name} in the topology"),
            From::Host(name) => self.check_node(name),
            From::Pod(_) | From::Client => Ok(()),
        }
    }

    /// Refuses a node that the lab will not have.
    pub fn check_node(&self, name: &str) -> Result<()> {
        ensure!(self.nodes.contains_key(name), "no node {name} in the topology");
        Ok(())
    }

    /// Refuses the name of an echo server that the lab will not have.
    pub fn check_endpoint(&self, name: &str) -> Result<()> {
        let known = name == "client" || self.pods.contains_key(name) || self.nodes.contains_key(name);
        ensure!(known, "no pod, node or client called {name} in the topology");
        Ok(())
    }

    /// The node that owns an address.
    #[must_use]
    pub fn owner(&self, addr: IpAddr) -> Option<&str> {
        let owns = |name: &&String| NodeAddresses::of(name).is_some_and(|node| node.owns(addr));
        self.nodes.keys().find(owns).map(String::as_str)
    }

    /// The node that the client sends service traffic to unless told otherwise.
    #[must_use]
    pub fn first_node(&self) -> &str {
        self.nodes.keys().next().map_or("node-a", String::as_str)
    }

    /// The node that balances a connection: the one that owns the destination, else the one the
    /// sender sits on, else the one that the client sends through.
    #[must_use]
    pub fn balancing_node<'a>(&'a self, from: &'a From, via: Option<&'a str>, dest: IpAddr) -> &'a str {
        if let (From::Client, Some(via)) = (from, via) {
            return via;
        }
        if let Some(owner) = self.owner(dest) {
            return owner;
        }
        match from {
            From::Pod(name) => self.pods.get(name).map_or(self.first_node(), |pod| &pod.node),
            From::Host(node) => node,
            From::Client => self.first_node(),
        }
    }

    /// The addresses a sender has of its own.
    #[must_use]
    pub fn own_addresses(&self, from: &From) -> Vec<IpAddr> {
        match from {
            From::Pod(name) => self.pods.get(name).map(|pod| pod.addresses().collect()).unwrap_or_default(),
            From::Host(node) => NodeAddresses::of(node).map(|node| node.all().to_vec()).unwrap_or_default(),
            From::Client => crate::address::CLIENT.to_vec(),
        }
    }
}
