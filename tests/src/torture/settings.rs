//! What the network of the experiments is like.
//!
//! client - switch - node-a with the pods p1 and p2, and node-b with p3. The proxy runs on node-a
//! alone.

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
    endpoints: &'static [[&'static str; 3]],
    affinity: &'static str,
}

const P1: [&str; 3] = ["10.244.1.10", "fd00:10:244:1::10", "node-a"];
const P2: [&str; 3] = ["10.244.1.20", "fd00:10:244:1::20", "node-a"];
const P3: [&str; 3] = ["10.244.2.10", "fd00:10:244:2::10", "node-b"];
const HOST: [&str; 3] = ["192.168.77.11", "fd00:77::11", "node-a"];

/// All of them.
pub(super) const SERVICES: [Service; 6] = [
    service("loc", 11, "Local", &[P1]),
    service("one", 12, "Cluster", &[P1]),
    service("rem", 13, "Cluster", &[P3]),
    service("hst", 14, "Cluster", &[HOST]),
    service("non", 15, "Cluster", &[]),
    Service { affinity: "ClientIP", ..service("aff", 16, "Local", &[P1, P2]) },
];

const fn service(
    name: &'static str,
    number: u16,
    policy: &'static str,
    endpoints: &'static [[&'static str; 3]],
) -> Service {
    Service { name, number, policy, endpoints, affinity: "None" }
}

/// The objects of all services.
pub(super) fn objects() -> String {
    let mut text = String::new();
    for Service { name, number, policy, endpoints, affinity } in &SERVICES {
        let v6 = format!("{:x}", number / 10 * 16 + number % 10);
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
             type: NodePort\n  externalTrafficPolicy: {policy}\n  sessionAffinity: {affinity}\n  ipFamilyPolicy: RequireDualStack\n  \
             ipFamilies: [IPv4, IPv6]\n  clusterIP: 10.96.0.{number}\n  \
             clusterIPs: [10.96.0.{number}, 'fd00:10:96::{v6}']\n  \
             externalIPs: [198.51.100.{number}, '2001:db8:51::{v6}']\n  ports:\n  \
             - {{name: u, port: 80, targetPort: 8080, protocol: UDP, nodePort: 300{number}}}\n  \
             - {{name: t, port: 80, targetPort: 8080, protocol: TCP, nodePort: 300{number}}}\n"
        );
        for (index, family) in ["IPv4", "IPv6"].into_iter().enumerate().filter(|_| !endpoints.is_empty()) {
            let suffix = family.to_lowercase();
            let _ = write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-{suffix}, \
                 namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: {family}\n\
                 ports:\n- {{name: u, port: 8080, protocol: UDP}}\n- {{name: t, port: 8080, protocol: TCP}}\n\
                 endpoints:\n"
            );
            for endpoint in *endpoints {
                let (address, node) = (endpoint[index], endpoint[2]);
                let _ = writeln!(
                    text,
                    "- {{addresses: ['{address}'], conditions: {{ready: true}}, nodeName: {node}}}"
                );
            }
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
    /// Objects beside the Services
    pub(super) objects: &'static str,
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
    /// A bridge between the node and its pods
    Bridge,
    /// Every checksum is computed, and every segment made, before it goes out
    NoOffload,
    /// The way back to clients depends on where packets come from
    Routed,
    /// A pod that the socket path leaves alone
    OptedOut,
    /// Packets must come from where they would be sent to
    Strict,
    /// Interfaces that get other names
    Renamed,
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

/// Every packet whose time is up is answered.
const ALL_ERRORS: &str = "sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0";
/// A second client.
const TWO_CLIENTS: &str =
    "ip addr add 192.168.77.102/24 dev eth0; ip -6 addr add fd00:77::102/64 dev eth0 nodad";
const BRIDGE: &str = "ip link add cbr0 type bridge; ip link set cbr0 up; \
     for v in veth0 veth1; do ip addr flush dev $v; ip link set $v master cbr0; \
     bridge link set dev $v hairpin on; done; \
     ip addr add 10.244.1.1/24 dev cbr0; ip -6 addr add fd00:10:244:1::1/64 dev cbr0 nodad; \
     for d in 10 20; do ip route replace 10.244.1.$d dev cbr0; \
     ip -6 route replace fd00:10:244:1::$d dev cbr0; done";
const NO_OFFLOAD: &str = "for i in $(ip -o link show type veth | sed 's/^[0-9]*: //; s/[@:].*//'); do \
     ethtool -K $i rx off tx off sg off tso off gso off gro off > /dev/null; done";
/// The client asks from an address that only packets from pods find the way to.
const OTHER_SOURCE: &str = "ip addr add 203.0.113.5/32 dev lo; ip -6 addr add 2001:db8:113::5/128 dev lo nodad; \
     ip route replace 198.51.100.0/24 via 192.168.77.11 src 203.0.113.5; \
     ip -6 route replace 2001:db8:51::/64 via fd00:77::11 src 2001:db8:113::5; \
     ip route add 192.168.77.11 dev eth0 src 203.0.113.5; \
     ip -6 route add fd00:77::11 dev eth0 src 2001:db8:113::5";
const BY_SOURCE: &str = "ip route add prohibit 203.0.113.5; ip -6 route add prohibit 2001:db8:113::5; \
     ip route add 203.0.113.5 via 192.168.77.100 table 100; \
     ip -6 route add 2001:db8:113::5 via fd00:77::100 dev eth0 table 100; \
     ip rule add from 10.244.0.0/16 to 203.0.113.5 lookup 100; \
     ip -6 rule add from fd00:10:244::/48 to 2001:db8:113::5 lookup 100; \
     ip rule add from 192.168.77.11 to 203.0.113.5 lookup 100; \
     ip -6 rule add from fd00:77::11 to 2001:db8:113::5 lookup 100";
const OPTED_OUT: &str = "---
apiVersion: v1
kind: Pod
metadata: {name: p2, namespace: default, labels: {sluice.socketLB: disabled}}
spec: {nodeName: node-a, containers: [{name: c, image: c}]}
status:
  phase: Running
  podIP: 10.244.1.20
  podIPs: [{ip: 10.244.1.20}, {ip: 'fd00:10:244:1::20'}]
";

/// All networks.
pub(super) fn settings() -> Vec<Setting> {
    let node = || From::Host("node-a".to_owned());
    let p1 = || From::Pod("p1".to_owned());
    let p2 = || From::Pod("p2".to_owned());
    let setting = |name, kind, commands| Setting { name, kind, commands, objects: "" };
    vec![
        setting("plain", Kind::Plain, vec![(From::Client, TWO_CLIENTS), (node(), ALL_ERRORS)]),
        setting(
            "nat",
            Kind::Plain,
            vec![(node(), FOREIGN_NAT), (From::Client, TWO_CLIENTS), (node(), ALL_ERRORS)],
        ),
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
        setting("bridge", Kind::Bridge, vec![(node(), BRIDGE)]),
        setting(
            "no-offload",
            Kind::NoOffload,
            vec![
                (node(), NO_OFFLOAD),
                (p1(), NO_OFFLOAD),
                (p2(), NO_OFFLOAD),
                (From::Client, NO_OFFLOAD),
                (node(), ALL_ERRORS),
            ],
        ),
        setting("strict", Kind::Strict, vec![(node(), STRICT)]),
        setting("routed", Kind::Routed, vec![(From::Client, OTHER_SOURCE), (node(), BY_SOURCE)]),
        Setting { objects: OPTED_OUT, ..setting("opted-out", Kind::OptedOut, vec![]) },
        setting("renamed", Kind::Renamed, vec![]),
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
