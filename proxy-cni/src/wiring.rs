//! How a pod is wired: names, hardware addresses, addresses and routes, decided from what was asked
//! for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::Map;
use sha2::{Digest, Sha256};
use sluice_link::Mac;

use crate::ipam::Lease;
use crate::spec::{Attachment, Interface, Ip, Mode, Outcome, Route};

/// What a pod asks for a way out of in mode routed: addresses of the link itself, the same in all
/// pods.
const ROUTED_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const ROUTED_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// `IFALIASZ` of linux/if.h, less the final zero.
const ALIAS_LIMIT: usize = 255;
/// How names of host-side links begin.
pub const PREFIX: &str = "sl";

/// The wiring of one attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wiring {
    /// Bridge or routes.
    pub mode: Mode,
    /// The bridge, in mode bridge.
    pub bridge: String,
    /// The host's end.
    pub host: String,
    /// What people and GC are told of the host's end: network, container, interface.
    pub alias: String,
    /// The hardware address of the host's end, which no bridge gets to see.
    pub host_mac: Mac,
    /// The pod's end.
    pub pod: String,
    /// The hardware address of the pod's end.
    pub pod_mac: Mac,
    /// Of both ends.
    pub mtu: u32,
    /// The pod's addresses, with their gateways.
    pub leases: Vec<Lease>,
    /// The hardware address that the gateways have. `None`: on a bridge of somebody else it may
    /// change, and pods have to ask.
    pub gateway_mac: Option<Mac>,
    /// Routes that are asked for beside those to everything, or in their place. One without a
    /// gateway goes by that of its family.
    pub routes: Vec<Route>,
    /// All addresses that pods of the network may have or need: gateways that these are near to
    /// stay on the bridge. `None`: it is not known, and all stay.
    pub in_use: Option<BTreeSet<IpAddr>>,
}

/// Bytes that are always the same for an attachment of a network.
fn digest(network: &str, whose: &Attachment) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [network, &whose.container, &whose.interface] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize().into()
}

/// The name of the host's end: short, and the same for the same attachment.
pub fn host_name(network: &str, whose: &Attachment) -> String {
    let hex: String = digest(network, whose).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}{hex}")
}

/// The hardware address of a pod's end that nobody asked for another one.
pub fn pod_mac(network: &str, whose: &Attachment) -> Mac {
    mac_of(&digest(network, whose))
}

fn mac_of(digest: &[u8; 32]) -> Mac {
    mac(digest.get(6..).unwrap_or_default())
}

/// The alias of the host's end. Container and interface do not always fit, the network does.
fn alias(network: &str, whose: &Attachment) -> String {
    let mut text = format!("{network} {}/{}", whose.container, whose.interface);
    text.truncate(text.floor_char_boundary(ALIAS_LIMIT));
    text
}

/// The network that an alias names.
pub fn network_of(alias: &str) -> &str {
    alias.split(' ').next().unwrap_or_default()
}

/// A hardware address out of some bytes: locally administered, of one machine (IEEE 802, section
/// 8.2).
fn mac(bytes: &[u8]) -> Mac {
    let mut mac = [0; 6];
    mac.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    mac[0] = mac[0] & 0xfc | 0x02;
    mac
}

/// The bridge's hardware address, always the same for the same name: pods have it written down.
pub fn bridge_mac(bridge: &str) -> Mac {
    mac(&Sha256::digest(bridge.as_bytes()))
}

/// A hardware address as people write it.
pub fn mac_text(mac: &Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Reads one; it has to be of one machine.
pub fn parse_mac(text: &str) -> Option<Mac> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2))
        .collect::<Option<_>>()?;
    let mac: Mac = bytes.try_into().ok()?;
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

impl Wiring {
    /// Decides.
    pub fn new(
        network: &str,
        whose: &Attachment,
        mode: Mode,
        bridge: &str,
        mtu: u32,
        asked_mac: Option<Mac>,
    ) -> Self {
        let digest = digest(network, whose);
        let host_mac = mac(digest.get(12..).unwrap_or_default());
        Wiring {
            mode,
            bridge: bridge.to_owned(),
            host: host_name(network, whose),
            alias: alias(network, whose),
            host_mac,
            gateway_mac: Some(match mode {
                Mode::Bridge => bridge_mac(bridge),
                Mode::Routed => host_mac,
            }),
            pod: whose.interface.clone(),
            pod_mac: asked_mac.unwrap_or_else(|| mac_of(&digest)),
            mtu,
            leases: Vec::new(),
            routes: Vec::new(),
            in_use: None,
        }
    }

    /// A pod's address as its link has it: in mode routed it has no neighbours.
    pub fn pod_address(&self, lease: &Lease) -> IpNet {
        match self.mode {
            Mode::Bridge => lease.address,
            Mode::Routed => IpNet::from(lease.address.addr()),
        }
    }

    /// By whom a pod reaches everything.
    pub fn gateway(&self, lease: &Lease) -> IpAddr {
        match (self.mode, lease.gateway) {
            (Mode::Bridge, gateway) => gateway,
            (Mode::Routed, IpAddr::V4(_)) => ROUTED_V4.into(),
            (Mode::Routed, IpAddr::V6(_)) => ROUTED_V6.into(),
        }
    }

    /// The pod's routes, with their gateways: to everything, and to what is asked for.
    pub fn pod_routes(&self) -> Vec<Route> {
        let everything = |lease: &Lease| match lease.gateway {
            IpAddr::V4(_) => IpNet::from(ipnet::Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::from(ipnet::Ipv6Net::default()),
        };
        // On a bridge the pods' own networks are on the link.
        let is_on_link = |to: &IpNet| {
            self.mode == Mode::Bridge && self.leases.iter().any(|lease| lease.address.trunc() == *to)
        };
        let mut asked: BTreeMap<IpNet, &Route> = BTreeMap::new();
        for route in self.routes.iter().filter(|route| !is_on_link(&route.dst.trunc())) {
            asked.entry(route.dst.trunc()).or_insert(route);
        }
        let route = |dst: IpNet, lease: &Lease, asked: Option<&Route>| {
            // In mode routed there is nobody but the node.
            let own = asked.and_then(|route| route.gw).filter(|_| self.mode == Mode::Bridge);
            let mtu = asked.and_then(|route| route.mtu);
            Route { gw: Some(own.unwrap_or(self.gateway(lease))), mtu, ..Route::to(dst) }
        };
        let defaults: Vec<Route> = self
            .leases
            .iter()
            .map(|lease| route(everything(lease), lease, asked.remove(&everything(lease))))
            .collect();
        let others = asked.into_iter().filter_map(|(to, asked)| {
            let lease = self.leases.iter().find(|lease| lease.gateway.is_ipv4() == to.addr().is_ipv4())?;
            Some(route(to, lease, Some(asked)))
        });
        defaults.into_iter().chain(others).collect()
    }

    /// What is wrong with a route that is asked for.
    pub fn wrong_route(&self) -> Option<String> {
        self.routes.iter().find_map(|route| {
            let gateway = route.gw?;
            if gateway.is_ipv4() != route.dst.addr().is_ipv4() {
                return Some(format!(
                    "routes: {} and its gateway {gateway} have different IP families",
                    route.dst
                ));
            }
            let is_node =
                self.leases.iter().any(|lease| gateway == lease.gateway || gateway == self.gateway(lease));
            (self.mode == Mode::Routed && !is_node).then(|| {
                format!(
                    "routes: {} via {gateway}: in mode routed, a pod can only use its node as gateway; \
                     leave the gateway out, or use mode bridge",
                    route.dst
                )
            })
        })
    }

    /// What the runtime is told.
    pub fn outcome(&self, netns: &str) -> Outcome {
        let mut interfaces = Vec::new();
        if self.mode == Mode::Bridge {
            let mac = self.gateway_mac.as_ref().map(mac_text).unwrap_or_default();
            interfaces.push(Interface { name: self.bridge.clone(), mac, ..Interface::default() });
        }
        interfaces.push(Interface {
            name: self.host.clone(),
            mac: mac_text(&self.host_mac),
            mtu: Some(self.mtu),
            ..Interface::default()
        });
        interfaces.push(Interface {
            name: self.pod.clone(),
            mac: mac_text(&self.pod_mac),
            mtu: Some(self.mtu),
            sandbox: netns.to_owned(),
            ..Interface::default()
        });
        let pod = interfaces.len() - 1;
        let ips = self.leases.iter().map(|lease| Ip {
            address: self.pod_address(lease),
            gateway: Some(self.gateway(lease)),
            interface: Some(pod),
            others: Map::new(),
        });
        Outcome { ips: ips.collect(), routes: self.pod_routes(), interfaces, ..Outcome::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(address: &str, gateway: &str) -> Lease {
        Lease { address: address.parse().unwrap(), gateway: gateway.parse().unwrap() }
    }

    fn wiring(mode: Mode) -> Wiring {
        let whose = Attachment::new("abc", "eth0").unwrap();
        let leases = vec![lease("10.244.1.7/24", "10.244.1.1"), lease("fd00:1::7/64", "fd00:1::1")];
        Wiring { leases, ..Wiring::new("pods", &whose, mode, "sluice0", 1450, None) }
    }

    #[test]
    fn names_are_short_stable_and_differ() {
        let of = |container: &str, interface: &str| {
            host_name("pods", &Attachment::new(container, interface).unwrap())
        };
        let name = of("abc", "eth0");
        assert_eq!(name.len(), 14);
        assert_eq!(name, of("abc", "eth0"));
        assert_ne!(name, of("abc", "eth1"));
        assert_ne!(name, of("abce", "th0"));
        let wiring = wiring(Mode::Bridge);
        assert_ne!(wiring.host_mac, wiring.pod_mac);
        assert!([wiring.host_mac, wiring.pod_mac].iter().all(|mac| mac[0] & 3 == 2));
    }

    #[test]
    fn an_alias_says_whose_a_link_is_and_fits() {
        let whose = Attachment::new(&"c".repeat(250), "eth0").unwrap();
        let alias = alias("pods", &whose);
        assert_eq!(alias.len(), 255);
        assert_eq!(network_of(&alias), "pods");
    }

    #[test]
    fn hardware_addresses_are_read_as_they_are_written() {
        assert_eq!(parse_mac("02:00:0a:ff:00:01"), Some([2, 0, 10, 255, 0, 1]));
        assert_eq!(mac_text(&[2, 0, 10, 255, 0, 1]), "02:00:0a:ff:00:01");
        for bad in [
            "",
            "02:00:0a:ff:00",
            "02:00:0a:ff:00:1",
            "01:00:00:00:00:00",
            "00:00:00:00:00:00",
            "zz:0:0:0:0:0",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }

    #[test]
    fn on_a_bridge_a_pod_has_neighbours_and_the_bridge_is_its_gateway() {
        let wiring = wiring(Mode::Bridge);
        let outcome = wiring.outcome("/run/netns/x");
        let names: Vec<&str> = outcome.interfaces.iter().map(|link| link.name.as_str()).collect();
        assert_eq!(names, ["sluice0", wiring.host.as_str(), "eth0"]);
        assert_eq!(outcome.ips[0].address.to_string(), "10.244.1.7/24");
        assert_eq!(outcome.ips[1].gateway.unwrap().to_string(), "fd00:1::1");
        assert_eq!(outcome.ips[0].interface, Some(2));
        let routes: Vec<String> = outcome.routes.iter().map(|route| route.dst.to_string()).collect();
        assert_eq!(routes, ["0.0.0.0/0", "::/0"]);
        assert_eq!(outcome.interfaces[0].mac, mac_text(&wiring.gateway_mac.unwrap()));
    }

    #[test]
    fn a_routed_pod_is_alone() {
        let wiring =
            Wiring { routes: vec![Route::to("10.0.0.0/8".parse().unwrap())], ..wiring(Mode::Routed) };
        let outcome = wiring.outcome("/run/netns/x");
        assert_eq!(outcome.interfaces.len(), 2);
        assert_eq!(outcome.ips[0].address.to_string(), "10.244.1.7/32");
        assert_eq!(outcome.ips[1].address.to_string(), "fd00:1::7/128");
        let gateways: Vec<String> =
            outcome.routes.iter().map(|route| route.gw.unwrap().to_string()).collect();
        assert_eq!(gateways, ["169.254.1.1", "fe80::1", "169.254.1.1"]);
        let routes = ["10.0.0.0/8", "10.0.0.0/8", "10.244.1.0/24", "0.0.0.0/0"]
            .map(|text| Route::to(text.parse().unwrap()));
        let count = |mode| Wiring { routes: routes.to_vec(), ..self::wiring(mode) }.pod_routes().len();
        assert_eq!((count(Mode::Routed), count(Mode::Bridge)), (4, 3));
        assert_eq!(wiring.gateway_mac, Some(wiring.host_mac));
    }
}
