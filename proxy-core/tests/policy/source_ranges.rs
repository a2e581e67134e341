//! Who may reach load balancer addresses (2.5).

use super::objects::nets;
use super::*;

/// The source ranges of a load balancer's frontend.
fn ranges(world: &World, capture: Capture) -> Option<Vec<ipnet::IpNet>> {
    let found = world.frontend("web", capture).unwrap_or_else(|| panic!("no frontend {capture}"));
    found.allowed_sources.map(|ranges| ranges.to_vec())
}

fn with_ranges(text: &str) -> Service {
    Service { source_ranges: nets(text), ..web(Cluster, Cluster) }
}

fn ranged(service: Service) -> World {
    World::of(config(true, false), &[service], &here_and_there())
}

#[test]
fn source_ranges_filter_load_balancer_addresses_and_nothing_else() {
    let world = ranged(with_ranges("203.0.113.0/25 2001:db8:2::/48"));
    let expected = [nets("203.0.113.0/25"), nets("2001:db8:2::/48")];
    for (family, expected) in Family::BOTH.into_iter().zip(expected) {
        assert_eq!(ranges(&world, capture(Role::LoadBalancer, family)), Some(expected));
        for role in [Role::ClusterIp, Role::NodePort, Role::ExternalIp] {
            assert_eq!(ranges(&world, capture(role, family)), None, "{role:?} {family}");
        }
    }
}

#[test]
fn every_load_balancer_address_of_every_port_is_filtered() {
    let service = Service {
        ports: vec![port("http", Tcp, 80, 0), port("https", Tcp, 443, 0)],
        load_balancer_ips: ips("203.0.113.10 203.0.113.11"),
        ..with_ranges("198.51.100.0/24")
    };
    let world = ranged(service);
    for (address, number) in
        [("203.0.113.10", 80), ("203.0.113.11", 80), ("203.0.113.10", 443), ("203.0.113.11", 443)]
    {
        assert_eq!(ranges(&world, at(address, number)), Some(nets("198.51.100.0/24")), "{address}:{number}");
    }
}

#[test]
fn overlapping_and_repeated_source_ranges_are_merged() {
    let world =
        ranged(with_ranges("203.0.113.0/25 203.0.113.0/24 203.0.113.0/25 203.0.113.7/32 198.51.100.0/24"));
    let mut found = ranges(&world, capture(Role::LoadBalancer, Family::V4)).expect("a filter");
    found.sort();
    assert_eq!(found, nets("198.51.100.0/24 203.0.113.0/24"));
}

#[test]
fn a_zero_prefix_turns_the_filter_of_its_family_off() {
    let world = ranged(with_ranges("203.0.113.0/25 0.0.0.0/0 2001:db8:2::/48"));
    assert_eq!(ranges(&world, capture(Role::LoadBalancer, Family::V4)), None);
    assert_eq!(ranges(&world, capture(Role::LoadBalancer, Family::V6)), Some(nets("2001:db8:2::/48")));
    let world = ranged(with_ranges("203.0.113.0/25 2001:db8:2::/48 ::/0"));
    assert_eq!(ranges(&world, capture(Role::LoadBalancer, Family::V4)), Some(nets("203.0.113.0/25")));
    assert_eq!(ranges(&world, capture(Role::LoadBalancer, Family::V6)), None);
}

#[test]
fn source_ranges_of_the_other_family_only_filter_nothing() {
    let world = ranged(with_ranges("2001:db8:2::/48"));
    assert_eq!(ranges(&world, capture(Role::LoadBalancer, Family::V4)), None);
    let world = ranged(with_ranges("203.0.113.0/25"));
    assert_eq!(ranges(&world, capture(Role::LoadBalancer, Family::V6)), None);
}

#[test]
fn a_range_with_the_node_in_it_lets_the_load_balancer_addresses_in_as_sources() {
    let service = Service {
        load_balancer_ips: ips("203.0.113.10 203.0.113.200 2001:db8:1::10"),
        ..with_ranges("192.168.0.0/24 198.51.100.0/24 2001:db8:2::/48")
    };
    let world = ranged(service);
    for vip in ["203.0.113.10", "203.0.113.200"] {
        let mut found = ranges(&world, at(vip, 80)).expect("a filter");
        found.sort();
        let expected = nets("192.168.0.0/24 198.51.100.0/24 203.0.113.10/32 203.0.113.200/32");
        assert_eq!(found, expected, "{vip}");
    }
    // The IPv6 ranges do not hold the node's IPv6 address.
    assert_eq!(ranges(&world, at("2001:db8:1::10", 80)), Some(nets("2001:db8:2::/48")));
}

#[test]
fn a_range_without_the_node_in_it_keeps_the_load_balancer_addresses_out() {
    let world = ranged(with_ranges("192.168.1.0/24"));
    assert_eq!(ranges(&world, capture(Role::LoadBalancer, Family::V4)), Some(nets("192.168.1.0/24")));
}

#[test]
fn an_external_ip_that_is_a_load_balancer_address_stays_filtered() {
    let service = Service { external_ips: ips("203.0.113.10"), ..with_ranges("198.51.100.0/24") };
    let world = ranged(service);
    assert_eq!(ranges(&world, at("203.0.113.10", 80)), Some(nets("198.51.100.0/24")));
}

#[test]
fn the_filter_stands_without_endpoints() {
    let world = World::of(config(true, false), &[with_ranges("198.51.100.0/24")], &[]);
    let found = world.frontend("web", capture(Role::LoadBalancer, Family::V4)).expect("frontend");
    assert_eq!(found.actions, Actions::all(Reject));
    assert_eq!(found.allowed_sources.as_deref(), Some(nets("198.51.100.0/24").as_slice()));
}
