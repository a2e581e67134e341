//! What the network of the experiments is like.
//!
//! client - switch - node-a with the pods p1 and p2, and node-b with p3. The proxy runs on node-a alone.

use anyhow::Result;
use std::fmt::Write;

use crate::target::From;
use crate::topology::Topology;

const TOPOLOGY: &str = r#"{
    "nodes": {"node-a": {}, "node-b": {}},
    "pods": {
        "p1": {"node": "node-a", "ip": "10.244.1.10", "ip6": "fd00:10:244:1::10"},
        "p2": {"node": "node-a", "ip": "10.244.1.20", "ip6": "fd00:10:244:1::20"},
        "p3": {"node": "node-b", "ip": "10.244.2.10", "ip6": "fd00:10:244:2::10"}
    },
    "hosts": {"node-a": ["udp/8080", "tcp/8080"]}
}"#;

/// The lab.
pub(super) fn topology() -> Result<Topology> {
    Ok(serde_json::from_str(TOPOLOGY)?)
}

/// A Service of the experiments.
pub(super) struct Service {
    pub(super) name: &'static str,
    /// The last number of its addresses, and of its node port
    pub(super) number: u16,
    policy: &'static str,
    endpoint: Option<[&'static str; 3]>,
}

const P1: [&str; 3] = ["10.244.1.10", "fd00:10:244:1::10", "node-a"];
const P3: [&str; 3] = ["10.244.2.10", "fd00:10:244:2::10", "node-b"];
const HOST: [&str; 3] = ["192.168.77.11", "fd00:77::11", "node-a"];

/// All of them.
pub(super) const SERVICES: [Service; 5] = [
    Service { name: "loc", number: 11, policy: "Local", endpoint: Some(P1) },
    Service { name: "one", number: 12, policy: "Cluster", endpoint: Some(P1) },
    Service { name: "rem", number: 13, policy: "Cluster", endpoint: Some(P3) },
    Service { name: "hst", number: 14, policy: "Cluster", endpoint: Some(HOST) },
    Service { name: "non", number: 15, policy: "Cluster", endpoint: None },
];

/// The objects of all services.
pub(super) fn objects() -> String {
    let mut text = String::new();
    for Service { name, number, policy, endpoint } in &SERVICES {
        let v6 = format!("{:x}", number / 10 * 16 + number % 10);
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
             type: NodePort\n  externalTrafficPolicy: {policy}\n  ipFamilyPolicy: RequireDualStack\n  \
             ipFamilies: [IPv4, IPv6]\n  clusterIP: 10.96.0.{number}\n  \
             clusterIPs: [10.96.0.{number}, 'fd00:10:96::{v6}']\n  \
             externalIPs: [198.51.100.{number}, '2001:db8:51::{v6}']\n  ports:\n  \
             - {{name: u, port: 80, targetPort: 8080, protocol: UDP, nodePort: 300{number}}}\n  \
             - {{name: t, port: 80, targetPort: 8080, protocol: TCP, nodePort: 300{number}}}\n"
        );
        let Some([v4, v6, node]) = endpoint else { continue };
        for (family, address) in [("IPv4", v4), ("IPv6", v6)] {
            let suffix = family.to_lowercase();
            let _ = write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-{suffix}, \
                 namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: {family}\n\
                 ports:\n- {{name: u, port: 8080, protocol: UDP}}\n- {{name: t, port: 8080, protocol: TCP}}\n\
                 endpoints:\n- {{addresses: ['{address}'], conditions: {{ready: true}}, nodeName: {node}}}\n"
            );
        }
    }
    text
}

/// A network.
pub(super) struct Setting {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// What is run where, before the proxy starts
    pub(super) commands: Vec<(From, &'static str)>,
}

/// What is special about it, by which experiments are chosen.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Every MTU is 1500
    Plain,
    /// The way to clients takes less than what comes from endpoints
    NarrowUplink,
    /// The way to endpoints takes less than what comes from clients
    NarrowPods,
    /// Nodes with addresses of two networks on one interface
    TwoNetworks,
    /// Another node whose Ethernet address changes
    Moving,
}

/// Somebody's rule that makes the kernel follow connections, as that of a CNI plugin.
const FOREIGN_NAT: &str = "nft 'add table ip foreign; add chain ip foreign post { type nat hook postrouting priority 100; }; \
                           add rule ip foreign post ip saddr 192.0.2.0/24 masquerade'";
const STRICT: &str =
    "for i in all default eth0 veth0 veth1; do sysctl -qw net.ipv4.conf.$i.rp_filter=1; done";
const NARROW_UPLINK: &str = "ip route replace 192.168.77.100 dev eth0 mtu lock 1400; \
                             ip route replace fd00:77::100 dev eth0 mtu 1400";
const NARROW_PODS: &str = "ip link set veth0 mtu 1400; \
                           ip route replace 10.244.2.0/24 via 192.168.77.12 dev eth0 mtu lock 1400; \
                           ip route replace fd00:10:244:2::/64 via fd00:77::12 dev eth0 mtu 1400";
const NARROW_POD: &str = "ip link set eth0 mtu 1400";
/// The address that the other node knows comes second.
const TWO_NETWORKS: &str = "ip addr flush dev eth0 scope global; ip addr add 10.99.0.1/24 dev eth0; \
     ip addr add 192.168.77.11/24 dev eth0; ip -6 addr add fd99::1/64 dev eth0 nodad; \
     ip -6 addr add fd00:77::11/64 dev eth0 nodad; \
     ip route replace default via 192.168.77.100 dev eth0; ip -6 route replace default via fd00:77::100 dev eth0; \
     ip route replace 10.244.2.0/24 via 192.168.77.12; ip -6 route replace fd00:10:244:2::/64 via fd00:77::12";
const QUICK_PROBES: &str = "for f in ipv4 ipv6; do for v in base_reachable_time_ms=1000 delay_first_probe_time=1 \
     retrans_time_ms=200 ; do sysctl -qw net.$f.neigh.eth0.$v; done; done";

/// All networks.
pub(super) fn settings() -> Vec<Setting> {
    let node = || From::Host("node-a".to_owned());
    let p1 = || From::Pod("p1".to_owned());
    let setting = |name, kind, commands| Setting { name, kind, commands };
    vec![
        setting("plain", Kind::Plain, vec![]),
        setting("nat", Kind::Plain, vec![(node(), FOREIGN_NAT)]),
        setting("narrow-uplink", Kind::NarrowUplink, vec![(node(), NARROW_UPLINK)]),
        setting(
            "narrow-uplink-strict-nat",
            Kind::NarrowUplink,
            vec![(node(), NARROW_UPLINK), (node(), STRICT), (node(), FOREIGN_NAT)],
        ),
        setting("narrow-pods", Kind::NarrowPods, vec![(node(), NARROW_PODS), (p1(), NARROW_POD)]),
        setting(
            "narrow-pods-nat",
            Kind::NarrowPods,
            vec![(node(), NARROW_PODS), (p1(), NARROW_POD), (node(), FOREIGN_NAT)],
        ),
        setting("two-networks", Kind::TwoNetworks, vec![(node(), TWO_NETWORKS)]),
        setting("moving", Kind::Moving, vec![(node(), QUICK_PROBES)]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_and_its_objects_can_be_read() {
        topology().unwrap().check().unwrap();
        assert_eq!(crate::objects::parse(&objects()).unwrap().len(), SERVICES.len() * 3 - 2);
    }
}
