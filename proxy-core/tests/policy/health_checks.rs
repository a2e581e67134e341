//! What health checks count (5.3).

use super::*;

fn checked(endpoints: &[EndpointSlice], service: Service) -> Option<HealthCheck> {
    let service = Service { health_check_node_port: 32000, ..service };
    World::of(config(true, false), &[service], endpoints).plan("web").health_check.clone()
}

fn counts(v4: usize, v6: usize) -> Option<HealthCheck> {
    Some(HealthCheck { node_port: 32000, local_endpoints: vec![(Family::V4, v4), (Family::V6, v6)] })
}

#[test]
fn health_checks_count_local_ready_endpoints_by_family() {
    let mut slices = slices(&[("1", "here", endpoint), ("2", "there", endpoint), ("3", "here", endpoint)]);
    assert_eq!(checked(&slices, web(Cluster, Local)), counts(2, 2));
    slices.truncate(1);
    assert_eq!(checked(&slices, web(Cluster, Local)), counts(2, 0));
}

#[test]
fn health_checks_do_not_count_terminating_endpoints_that_still_serve() {
    let slices = slices(&[("1", "here", serving_terminating), ("2", "here", unready)]);
    assert_eq!(checked(&slices, web(Cluster, Local)), counts(0, 0));
}

#[test]
fn health_checks_count_an_address_once_over_all_ports() {
    let service =
        Service { ports: vec![port("http", Tcp, 80, 0), port("dns", Udp, 53, 0)], ..web(Cluster, Local) };
    let slices = [
        slice("a-4", "web", ("http", Tcp, 8080), vec![endpoint("10.0.0.1", "here")]),
        slice("b-4", "web", ("http", Tcp, 8081), vec![endpoint("10.0.0.1", "here")]),
        slice(
            "c-4",
            "web",
            ("dns", Udp, 53),
            vec![endpoint("10.0.0.1", "here"), endpoint("10.0.0.2", "here")],
        ),
        // No port of the Service.
        slice("d-4", "web", ("metrics", Tcp, 9), vec![endpoint("10.0.0.3", "here")]),
    ];
    assert_eq!(checked(&slices, service), counts(2, 0));
}

#[test]
fn health_checks_are_for_load_balancers_with_etp_local_and_a_port() {
    let slices = here_and_there();
    assert_eq!(checked(&slices, web(Cluster, Local)), counts(1, 1));
    assert_eq!(checked(&slices, web(Local, Cluster)), None, "eTP=Cluster");
    for service_type in [ServiceType::NodePort, ServiceType::ClusterIp] {
        let service = Service { service_type, ..web(Cluster, Local) };
        assert_eq!(checked(&slices, service), None, "{service_type:?}");
    }
    let world = World::of(config(true, false), &[web(Cluster, Local)], &slices);
    assert_eq!(world.plan("web").health_check, None, "healthCheckNodePort 0");
}

#[test]
fn health_checks_leave_out_families_without_cluster_ip() {
    let service = Service { cluster_ips: ips("fd00:172::1"), ..web(Cluster, Local) };
    let expected = HealthCheck { node_port: 32000, local_endpoints: vec![(Family::V6, 1)] };
    assert_eq!(checked(&here_and_there(), service), Some(expected));
}

// `TestNoEndpointsMetric` (reference 9.1).

#[test]
fn missing_local_endpoints_are_flagged_by_policy() {
    let here = here_and_there();
    let there = only_there();
    let none = slices(&[]);
    let rows = [
        ("internalTrafficPolicy is set and there are local endpoints", Local, Cluster, &here, false, false),
        ("externalTrafficPolicy is set and there are local endpoints", Cluster, Local, &here, false, false),
        ("both policies are set and there are local endpoints", Local, Local, &here, false, false),
        (
            "internalTrafficPolicy is set and there are no local endpoints",
            Local,
            Cluster,
            &there,
            true,
            false,
        ),
        (
            "externalTrafficPolicy is set and there are no local endpoints",
            Cluster,
            Local,
            &there,
            false,
            true,
        ),
        ("both policies are set and there are no local endpoints", Local, Local, &there, true, true),
        ("both policies are set and there are no endpoints at all", Local, Local, &none, false, false),
        ("no policy is set and there are no local endpoints", Cluster, Cluster, &there, false, false),
    ];
    for (row, internal, external, slices, lacks_internal, lacks_external) in rows {
        let world = World::of(config(true, false), &[web(internal, external)], slices);
        for port in &world.plan("web").ports {
            let found = (port.lacks_local_internal, port.lacks_local_external);
            assert_eq!(found, (lacks_internal, lacks_external), "{row}: {}", port.id);
        }
    }
}
