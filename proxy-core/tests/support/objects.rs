//! Short ways to write objects down. Every test file that includes this uses all of it.

use std::net::IpAddr;

use ipnet::IpNet;
use sluice_core::model::{
    Conditions, EndpointSlice, ObjectName, Service, ServicePort, ServiceType, SliceEndpoint, SlicePort,
    TrafficPolicy,
};
use sluice_core::net::{Family, Protocol};

/// An address.
pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

/// Several addresses, separated by spaces.
pub(crate) fn ips(text: &str) -> Vec<IpAddr> {
    text.split_whitespace().map(ip).collect()
}

/// Several networks, separated by spaces.
pub(crate) fn nets(text: &str) -> Vec<IpNet> {
    text.split_whitespace().map(|net| net.parse().expect(net)).collect()
}

/// An object in the namespace `default`.
pub(crate) fn name(text: &str) -> ObjectName {
    ObjectName::new("default", text)
}

/// A service port.
pub(crate) fn port(name: &str, protocol: Protocol, port: u16, node_port: u16) -> ServicePort {
    ServicePort { name: name.into(), protocol, port, node_port }
}

/// A ClusterIP Service without ports; what matters is set by the caller.
pub(crate) fn service(text: &str, cluster_ips: &str) -> Service {
    Service {
        name: name(text),
        created: None,
        service_type: ServiceType::ClusterIp,
        cluster_ips: ips(cluster_ips),
        ports: Vec::new(),
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check_node_port: 0,
    }
}

/// A ready endpoint on a node (`""`: on none that is known).
pub(crate) fn endpoint(address: &str, node: &str) -> SliceEndpoint {
    SliceEndpoint {
        address: ip(address),
        node: (!node.is_empty()).then(|| node.into()),
        conditions: Conditions::default(),
        hints: None,
    }
}

/// A slice with one port; its family is that of its name's last character, `4` or `6`.
pub(crate) fn slice(
    text: &str,
    service: &str,
    (port, protocol, number): (&str, Protocol, u16),
    endpoints: Vec<SliceEndpoint>,
) -> EndpointSlice {
    EndpointSlice {
        name: name(text),
        service: name(service),
        family: if text.ends_with('6') { Family::V6 } else { Family::V4 },
        ports: vec![SlicePort { name: port.into(), protocol, port: number }],
        endpoints,
        triggered: None,
    }
}
