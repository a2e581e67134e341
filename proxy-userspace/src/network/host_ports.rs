//! Ports of the node that lead to pods: what the plugin has written down, as rules want it; and
//! flows that went elsewhere.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use sluice_cni::spec::PortMapping;
use sluice_cni::store::{Contents, HostPorts};
use sluice_cni::wiring::host_name;
use sluice_core::net::{Family, Protocol};
use sluice_core::pod_network::HostPort;

/// Why a port that was asked for does not lead to its pod, or not for everybody.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(super) enum Unserved {
    #[error("{0:?} is not a protocol: use tcp, udp or sctp")]
    Protocol(String),
    #[error("{0} {1} is not a port: use 1 to 65535")]
    Port(&'static str, i64),
    #[error("hostIP {0:?} is not an IP address")]
    HostIp(String),
    #[error("the pod has no address of the family of hostIP {0}")]
    Family(IpAddr),
    #[error(
        "hostIP ::1 answers only processes of the node that call from another address of the node, \
         because the kernel routes nothing from ::1 to a pod. Use 127.0.0.1, or an address of the node"
    )]
    Loopback,
}

/// Something that a pod asked for and does not get.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Refusal {
    container: String,
    mapping: PortMapping,
    why: Unserved,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PortMapping { host_port, protocol, .. } = &self.mapping;
        write!(f, "host port {host_port}/{protocol} of container {}: {}", self.container, self.why)
    }
}

/// What was asked for last comes first, and has the port: who asked for it before is about to go.
pub(super) fn host_ports(contents: &Contents) -> Vec<HostPort> {
    contents.host_ports.iter().rev().flat_map(of_pod).collect()
}

fn of_pod(pod: &HostPorts) -> impl Iterator<Item = HostPort> {
    let asked = pod.mappings.iter().filter_map(|mapping| Asked::read(mapping).ok().flatten());
    asked.flat_map(|asked| pod.addresses.iter().filter_map(move |pod| asked.to(*pod)))
}

/// Names of the links of pods whose ports answer on the node's loopback addresses of IPv4.
pub(super) fn on_loopback(contents: &Contents, network: &str) -> BTreeSet<String> {
    let answers = |pod: &&HostPorts| {
        let reaches = |host: Option<IpAddr>| host.is_none_or(|host| host.is_loopback());
        of_pod(pod).any(|port| port.pod.is_ipv4() && reaches(port.host))
    };
    contents.host_ports.iter().filter(answers).map(|pod| host_name(network, &pod.holder)).collect()
}

/// What pods asked for and do not get.
pub(super) fn refusals(contents: &Contents) -> BTreeSet<Refusal> {
    let pairs =
        contents.host_ports.iter().flat_map(|pod| pod.mappings.iter().map(move |mapping| (pod, mapping)));
    let refused = pairs.filter_map(|(pod, mapping)| {
        let why = unserved(pod, mapping)?;
        Some(Refusal { container: pod.holder.container.clone(), mapping: mapping.clone(), why })
    });
    refused.collect()
}

fn unserved(pod: &HostPorts, mapping: &PortMapping) -> Option<Unserved> {
    let asked = match Asked::read(mapping) {
        Ok(asked) => asked?,
        Err(why) => return Some(why),
    };
    let host = asked.host?;
    if !pod.addresses.iter().any(|pod| Family::of(pod) == Family::of(&host)) {
        return Some(Unserved::Family(host));
    }
    (host == Ipv6Addr::LOCALHOST).then_some(Unserved::Loopback)
}

/// A mapping that makes sense.
#[derive(Clone, Copy)]
struct Asked {
    protocol: Protocol,
    port: u16,
    host: Option<IpAddr>,
    pod_port: u16,
}

impl Asked {
    /// `None`: no port of the node is asked for.
    fn read(mapping: &PortMapping) -> Result<Option<Self>, Unserved> {
        let PortMapping { host_port, container_port, protocol, host_ip } = mapping;
        if *host_port == 0 {
            return Ok(None);
        }
        let port = |name, number: i64| {
            let port = u16::try_from(number).ok().filter(|port| *port != 0);
            port.ok_or(Unserved::Port(name, number))
        };
        // Go makes no difference between 10.0.0.1 and ::ffff:10.0.0.1.
        let host = |text: &str| text.parse::<IpAddr>().map(|ip| ip.to_canonical());
        Ok(Some(Asked {
            protocol: protocol_of(protocol).ok_or_else(|| Unserved::Protocol(protocol.clone()))?,
            port: port("hostPort", *host_port)?,
            pod_port: port("containerPort", *container_port)?,
            host: match host_ip.as_str() {
                "" => None,
                text => Some(host(text).map_err(|_| Unserved::HostIp(text.to_owned()))?),
            },
        }))
    }

    /// `None`: not by this address, which is of the other family.
    fn to(&self, pod: IpAddr) -> Option<HostPort> {
        if self.host.is_some_and(|host| Family::of(&host) != Family::of(&pod)) {
            return None;
        }
        // All addresses of the family.
        let host = self.host.filter(|host| !host.is_unspecified());
        Some(HostPort { protocol: self.protocol, port: self.port, host, pod, pod_port: self.pod_port })
    }
}

fn protocol_of(text: &str) -> Option<Protocol> {
    Some(match text.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
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

    fn mapping(host_port: i64, protocol: &str, host_ip: &str) -> PortMapping {
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
        assert_eq!(of(mapping(80, "tcp", "::ffff:10.0.0.1")), ["10.0.0.5 Some(10.0.0.1)"]);
        assert!(of(mapping(0, "tcp", "")).is_empty());
    }

    #[test]
    fn host_ports_that_cannot_be_served_are_reported_and_others_stay() {
        let mut only_ipv4 =
            contents(&[("10.0.0.5", vec![mapping(80, "tcp", "fd00::1"), mapping(81, "tcp", "")])]);
        only_ipv4.host_ports[0].addresses.truncate(1);
        assert_eq!(host_ports(&only_ipv4).len(), 1);
        let told =
            |contents: &Contents| refusals(contents).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            told(&only_ipv4),
            [
                "host port 80/tcp of container 10.0.0.5: the pod has no address of the family of hostIP fd00::1"
            ]
        );
        let of = |mapping: PortMapping| {
            let all = contents(&[("10.0.0.5", vec![mapping])]);
            (host_ports(&all).len(), told(&all).join("").split(": ").skip(1).collect::<Vec<_>>().join(": "))
        };
        assert_eq!(of(mapping(80, "tcp", "127.0.0.1")), (1, String::new()));
        assert_eq!(of(mapping(0, "", "x")), (0, String::new()));
        assert_eq!(
            of(mapping(80, "icmp", "")),
            (0, "\"icmp\" is not a protocol: use tcp, udp or sctp".into())
        );
        assert_eq!(
            of(mapping(70_000, "tcp", "")),
            (0, "hostPort 70000 is not a port: use 1 to 65535".into())
        );
        let pod_port = PortMapping { container_port: -1, ..mapping(80, "tcp", "") };
        assert_eq!(of(pod_port), (0, "containerPort -1 is not a port: use 1 to 65535".into()));
        assert_eq!(
            of(mapping(80, "tcp", "localhost")),
            (0, "hostIP \"localhost\" is not an IP address".into())
        );
        let (served, why) = of(mapping(80, "tcp", "::1"));
        assert!(served == 1 && why.starts_with("hostIP ::1 answers only processes of the node"), "{why}");
    }

    #[test]
    fn links_of_pods_that_answer_on_loopback_are_known() {
        let of = |mapping| on_loopback(&contents(&[("10.0.0.5", vec![mapping])]), "pods").len();
        assert_eq!([of(mapping(80, "tcp", "")), of(mapping(80, "tcp", "127.0.0.1"))], [1, 1]);
        assert_eq!([of(mapping(80, "tcp", "0.0.0.0")), of(mapping(80, "udp", "127.1.2.3"))], [1, 1]);
        assert_eq!([of(mapping(80, "tcp", "10.0.0.1")), of(mapping(80, "tcp", "::1"))], [0, 0]);
        assert_eq!([of(mapping(80, "tcp", "::")), of(mapping(0, "tcp", ""))], [0, 0]);
    }

    #[test]
    fn the_newest_pod_gets_a_contested_host_port() {
        let all = contents(&[
            ("10.0.0.5", vec![mapping(53, "udp", "0.0.0.0")]),
            ("10.0.0.6", vec![mapping(53, "udp", "0.0.0.0")]),
        ]);
        assert_eq!(host_ports(&all)[0].pod.to_string(), "10.0.0.6");
    }

    #[test]
    fn only_flows_of_what_changed_are_stale() {
        let of = |ip: &str, port: u16| {
            host_ports(&contents(&[(ip, vec![mapping(port.into(), "udp", "0.0.0.0")])]))
        };
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
