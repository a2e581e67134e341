//! The address plan that every lab shares: underlay, node addresses, pod CIDRs, the ranges a client
//! sends to a node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// All pods of the cluster, both families, as `clusterCIDR` wants it.
pub const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:10:244::/48";
/// The service CIDRs.
pub const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];
/// Load balancer VIPs and external IPs.
pub const EXTERNAL_CIDRS: [&str; 4] =
    ["203.0.113.0/24", "2001:db8:113::/64", "198.51.100.0/24", "2001:db8:51::/64"];
/// The client's addresses on the underlay.
pub const CLIENT: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 168, 77, 100)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 0x100)),
];

/// Addresses of one node; `node-a` has index 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAddresses {
    /// eth0, IPv4 then IPv6
    pub eth0: [IpAddr; 2],
    /// The gateway of the node's pods, IPv4 then IPv6
    pub gateway: [IpAddr; 2],
    /// The pod CIDRs, IPv4 then IPv6
    pub pod_cidr: [String; 2],
    /// The addresses of the VXLAN device, where sluice joins the nodes
    pub vtep: [IpAddr; 2],
}

impl NodeAddresses {
    /// The addresses of the node called `name` (`node-a` to `node-z`), if it is such a name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        let mut letters = name.strip_prefix("node-")?.bytes();
        let (Some(letter @ b'a'..=b'z'), None) = (letters.next(), letters.next()) else { return None };
        let index = letter - b'a';
        let host = 11 + index;
        let pods = 1 + index;
        // The plan writes the decimal digits into IPv6 addresses: .11 is ::11.
        let hex = |number: u8| u16::from(number / 10) * 16 + u16::from(number % 10);
        Some(Self {
            eth0: [
                IpAddr::V4(Ipv4Addr::new(192, 168, 77, host)),
                IpAddr::V6(Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, hex(host))),
            ],
            gateway: [
                IpAddr::V4(Ipv4Addr::new(10, 244, pods, 1)),
                IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, hex(pods), 0, 0, 0, 1)),
            ],
            pod_cidr: [format!("10.244.{pods}.0/24"), format!("fd00:10:244:{pods}::/64")],
            vtep: [
                IpAddr::V4(Ipv4Addr::new(10, 244, pods, 0)),
                IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, hex(pods), 0, 0, 0, 0)),
            ],
        })
    }

    /// Whether the node owns `addr`.
    #[must_use]
    pub fn owns(&self, addr: IpAddr) -> bool {
        self.all().contains(&addr)
    }

    /// Every address that the node can be seen with.
    #[must_use]
    pub fn all(&self) -> [IpAddr; 6] {
        [self.eth0[0], self.eth0[1], self.gateway[0], self.gateway[1], self.vtep[0], self.vtep[1]]
    }
}

/// An address as a host prefix.
#[must_use]
pub fn host_prefix(addr: IpAddr) -> String {
    format!("{addr}/{}", if addr.is_ipv4() { 32 } else { 128 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan() {
        let node = NodeAddresses::of("node-b").unwrap();
        assert_eq!(node.eth0.map(|addr| addr.to_string()), ["192.168.77.12", "fd00:77::12"]);
        assert_eq!(node.gateway.map(|addr| addr.to_string()), ["10.244.2.1", "fd00:10:244:2::1"]);
        assert_eq!(node.pod_cidr[1], "fd00:10:244:2::/64");
        assert_eq!(CLIENT[1].to_string(), "fd00:77::100");
        assert!(NodeAddresses::of("node-ab").is_none());
        assert!(NodeAddresses::of("web").is_none());
    }
}
