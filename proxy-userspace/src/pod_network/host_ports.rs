//! Ports of the node that lead to pods: what the plugin has written down, as rules want it; and flows that went elsewhere.

use std::collections::BTreeSet;
use std::net::IpAddr;

use sluice_cni::spec::PortMapping;
use sluice_cni::store::{Contents, HostPorts};
use sluice_core::net::{Family, Protocol};
use sluice_core::pod_network::HostPort;

/// What was asked for last comes first, and has the port: who asked for it before is about to go.
pub(super) fn host_ports(contents: &Contents) -> Vec<HostPort> {
    contents.host_ports.iter().rev().flat_map(of_pod).collect()
}

fn of_pod(pod: &HostPorts) -> impl Iterator<Item = HostPort> {
    let pairs = pod.mappings.iter().flat_map(|mapping| pod.addresses.iter().map(move |pod| (mapping, *pod)));
    pairs.filter_map(|(mapping, pod)| host_port(mapping, pod))
}

/// `None`: the mapping is none of this family.
fn host_port(mapping: &PortMapping, pod: IpAddr) -> Option<HostPort> {
    let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    let host: Option<IpAddr> = mapping.host_ip.parse().ok();
    if mapping.host_port == 0 || host.is_some_and(|host| Family::of(&host) != Family::of(&pod)) {
        return None;
    }
    Some(HostPort {
        protocol,
        port: mapping.host_port,
        // All addresses of the family.
        host: host.filter(|host| !host.is_unspecified()),
        pod,
        pod_port: mapping.container_port,
    })
}

/// Host ports of UDP that changed: whose flows have to be looked at.
#[derive(Debug, Default)]
pub(super) struct Changed {
    old: Vec<HostPort>,
    new: Vec<HostPort>,
}

impl Changed {
    /// Compares.
    pub(super) fn between(old: &[HostPort], new: &[HostPort]) -> Self {
        let is_udp = |port: &&HostPort| port.protocol == Protocol::Udp;
        let (before, after): (BTreeSet<&HostPort>, BTreeSet<&HostPort>) =
            (old.iter().filter(is_udp).collect(), new.iter().filter(is_udp).collect());
        let ports: BTreeSet<u16> = before.symmetric_difference(&after).map(|port| port.port).collect();
        let of = |list: &[HostPort]| {
            list.iter().filter(is_udp).filter(|port| ports.contains(&port.port)).cloned().collect()
        };
        Changed { old: of(old), new: of(new) }
    }

    /// Nothing of UDP changed.
    pub(super) fn is_empty(&self) -> bool {
        self.old.is_empty() && self.new.is_empty()
    }

    /// The families of flows to be looked at.
    pub(super) fn families(&self) -> Vec<Family> {
        let has = |family| self.old.iter().chain(&self.new).any(|port| Family::of(&port.pod) == family);
        Family::BOTH.into_iter().filter(|family| has(*family)).collect()
    }

    /// Whether a flow to a port of the node goes to another pod than it should.
    pub(super) fn is_stale(
        &self,
        (address, port): (IpAddr, u16),
        replier: (IpAddr, u16),
        is_local: impl Fn(&IpAddr) -> bool,
    ) -> bool {
        let matches = |host_port: &&HostPort| {
            host_port.port == port
                && Family::of(&host_port.pod) == Family::of(&address)
                && host_port.host.map_or_else(|| is_local(&address), |host| host == address)
        };
        let leads_to = |host_port: &HostPort| (host_port.pod, host_port.pod_port) == replier;
        match self.new.iter().find(matches) {
            Some(now) => !leads_to(now),
            None => self.old.iter().filter(matches).any(leads_to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_cni::spec::Attachment;

    fn mapping(host_port: u16, protocol: &str, host_ip: &str) -> PortMapping {
        PortMapping { host_port, container_port: 8080, protocol: protocol.into(), host_ip: host_ip.into() }
    }

    fn contents(pods: &[(&str, Vec<PortMapping>)]) -> Contents {
        let host_ports = pods.iter().map(|(ip, mappings)| HostPorts {
            holder: Attachment::new(ip, "eth0").unwrap(),
            addresses: vec![ip.parse().unwrap(), "fd00::5".parse().unwrap()],
            mappings: mappings.clone(),
        });
        Contents { host_ports: host_ports.collect(), ..Contents::default() }
    }

    #[test]
    fn each_family_has_the_ports_that_its_addresses_allow() {
        let of = |mapping| {
            let ports = host_ports(&contents(&[("10.0.0.5", vec![mapping])]));
            ports.iter().map(|port| format!("{} {:?}", port.pod, port.host)).collect::<Vec<_>>()
        };
        assert_eq!(of(mapping(80, "TCP", "")), ["10.0.0.5 None", "fd00::5 None"]);
        assert_eq!(of(mapping(80, "tcp", "0.0.0.0")), ["10.0.0.5 None"]);
        assert_eq!(of(mapping(80, "tcp", "::1")), ["fd00::5 Some(::1)"]);
        assert!(of(mapping(0, "tcp", "")).is_empty());
    }

    #[test]
    fn who_asked_last_has_the_port() {
        let all = contents(&[
            ("10.0.0.5", vec![mapping(53, "udp", "0.0.0.0")]),
            ("10.0.0.6", vec![mapping(53, "udp", "0.0.0.0")]),
        ]);
        assert_eq!(host_ports(&all)[0].pod.to_string(), "10.0.0.6");
    }

    #[test]
    fn only_flows_of_what_changed_are_stale() {
        let of = |ip: &str, port: u16| host_ports(&contents(&[(ip, vec![mapping(port, "udp", "0.0.0.0")])]));
        let to = |port: u16| ("192.168.1.1".parse().unwrap(), port);
        let by = |ip: &str| (ip.parse().unwrap(), 8080);
        let is_local = |ip: &IpAddr| ip.to_string() == "192.168.1.1";
        let moved = Changed::between(&of("10.0.0.5", 53), &of("10.0.0.6", 53));
        assert!(moved.is_stale(to(53), by("10.0.0.5"), is_local));
        assert!(!moved.is_stale(to(53), by("10.0.0.6"), is_local));
        assert!(!moved.is_stale(to(54), by("10.0.0.5"), is_local));
        assert!(!moved.is_stale(to(53), by("10.0.0.5"), |_| false));
        assert_eq!(moved.families(), [Family::V4]);
        let gone = Changed::between(&of("10.0.0.5", 53), &[]);
        assert!(gone.is_stale(to(53), by("10.0.0.5"), is_local));
        assert!(!gone.is_stale(to(53), by("10.0.0.9"), is_local));
        assert!(Changed::between(&of("10.0.0.5", 53), &of("10.0.0.5", 53)).is_empty());
    }
}
