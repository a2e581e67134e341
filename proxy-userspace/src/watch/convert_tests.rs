use std::net::IpAddr;

use serde_json::{Value, json};
use sluice_core::model::{
    Conditions, EndpointSlice, Hints, Node, Service, ServicePort, ServiceType, SliceEndpoint, SlicePort,
    TrafficPolicy,
};
use sluice_core::net::{Family, Protocol};

use super::*;

// Objects are written as the API sends them.

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Puts fields over an object, at any depth; `null` removes a field.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                if value.is_null() {
                    base.remove(&key);
                } else {
                    merge(base.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (base, over) => *base = over,
    }
}

fn service_with(over: Value) -> Converted<Service> {
    let mut base = json!({
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "172.30.0.1",
            "clusterIPs": ["172.30.0.1"],
            "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        },
    });
    merge(&mut base, over);
    convert_service(&object(base))
}

fn slice_with(over: Value) -> Converted<EndpointSlice> {
    let mut base = json!({
        "metadata": {
            "namespace": "shop",
            "name": "web-1",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": ["10.0.0.1"]}],
    });
    merge(&mut base, over);
    convert_endpoint_slice(&object(base))
}

fn node_with(over: Value) -> Converted<Node> {
    let mut base = json!({"metadata": {"name": "here"}, "spec": {}, "status": {}});
    merge(&mut base, over);
    convert_node(&object(base))
}

/// The object and what was left out of it.
fn applied<T: std::fmt::Debug>(converted: Converted<T>) -> (T, Vec<String>) {
    match converted.change {
        Change::Apply(object) => (object, converted.problems),
        other => panic!("not applied: {other:?}, {:?}", converted.problems),
    }
}

/// The object, of which nothing was left out.
fn whole<T: std::fmt::Debug>(converted: Converted<T>) -> T {
    let (object, problems) = applied(converted);
    assert_eq!(problems, [""; 0]);
    object
}

/// Asserts that there is one problem for each field, that it begins with the field's path and names
/// the value.
fn assert_problems(problems: &[String], expected: &[(&str, &str)]) {
    assert_eq!(problems.len(), expected.len(), "{problems:?}");
    for (problem, (path, value)) in problems.iter().zip(expected) {
        let rest = problem.strip_prefix(path).unwrap_or_else(|| panic!("{problem:?} is not about {path}"));
        assert!(rest.starts_with(':') || rest.starts_with('.'), "{problem:?} is not about {path}");
        assert!(rest.contains(value), "{problem:?} does not name {value}");
    }
}

fn assert_deleted<T: std::fmt::Debug + PartialEq>(converted: Converted<T>, name: ObjectName) {
    assert_eq!(converted, Converted { change: Change::Delete(name), problems: Vec::new() });
}

fn web() -> ObjectName {
    ObjectName::new("shop", "web")
}

fn web_1() -> ObjectName {
    ObjectName::new("shop", "web-1")
}

fn ips(text: &str) -> Vec<IpAddr> {
    text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
}

fn nets(text: &str) -> Vec<ipnet::IpNet> {
    text.split_whitespace().map(|net| net.parse().unwrap()).collect()
}

// Services.

#[test]
fn a_plain_service_is_taken_over_with_the_defaults_of_the_api() {
    let service = whole(service_with(json!({"metadata": {"creationTimestamp": "1970-01-01T00:01:40Z"}})));
    let expected = Service {
        name: web(),
        created: Some(100),
        service_type: ServiceType::ClusterIp,
        cluster_ips: ips("172.30.0.1"),
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check_node_port: 0,
    };
    assert_eq!(service, expected);
}

#[test]
fn every_field_of_a_service_is_taken_over() {
    let service = whole(service_with(json!({
        "spec": {
            "type": "LoadBalancer",
            "clusterIPs": ["172.30.0.1", "fd00::1"],
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [
                {"port": 80, "nodePort": 30080},
                {"name": "dns", "protocol": "UDP", "port": 53},
                {"name": "s", "protocol": "SCTP", "port": 9},
            ],
            "externalIPs": ["192.0.2.1", "2001:db8::1"],
            "loadBalancerSourceRanges": ["203.0.113.0/24", "2001:db8::/32"],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "internalTrafficPolicy": "Local",
            "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 32000,
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}, {"ip": "2001:db8::9"}]}},
    })));
    let port =
        |name: &str, protocol, port, node_port| ServicePort { name: name.into(), protocol, port, node_port };
    assert_eq!(service.service_type, ServiceType::LoadBalancer);
    assert_eq!(service.cluster_ips, ips("172.30.0.1 fd00::1"));
    let ports = [
        port("", Protocol::Tcp, 80, 30080),
        port("dns", Protocol::Udp, 53, 0),
        port("s", Protocol::Sctp, 9, 0),
    ];
    assert_eq!(service.ports, ports);
    assert_eq!(service.external_ips, ips("192.0.2.1 2001:db8::1"));
    assert_eq!(service.load_balancer_ips, ips("203.0.113.9 2001:db8::9"));
    assert_eq!(service.source_ranges, nets("203.0.113.0/24 2001:db8::/32"));
    assert_eq!(service.affinity, Some(60));
    assert_eq!(service.internal_policy, TrafficPolicy::Local);
    assert_eq!(service.external_policy, TrafficPolicy::Local);
    assert_eq!(service.health_check_node_port, 32000);
}

#[test]
fn a_service_without_a_namespace_is_in_the_default_one() {
    let service = whole(service_with(json!({"metadata": {"namespace": null}})));
    assert_eq!(service.name, ObjectName::new("default", "web"));
}

#[test]
fn headless_services_are_left_alone() {
    for cluster_ip in [json!("None"), json!(""), Value::Null] {
        let spec = json!({"clusterIP": cluster_ip, "clusterIPs": null});
        assert_deleted(service_with(json!({"spec": spec})), web());
    }
    let bare = json!({"metadata": {"namespace": "shop", "name": "web"}});
    assert_deleted(convert_service(&object(bare)), web());
}

#[test]
fn external_name_services_are_left_alone_even_with_a_cluster_ip() {
    assert_deleted(service_with(json!({"spec": {"type": "ExternalName"}})), web());
    let flipped = whole(service_with(json!({"spec": {"type": "ClusterIP"}})));
    assert_eq!(flipped.service_type, ServiceType::ClusterIp);
}

#[test]
fn services_of_another_proxy_are_left_alone_whatever_the_label_says() {
    for value in ["other", ""] {
        let labels = json!({"service.kubernetes.io/service-proxy-name": value});
        assert_deleted(service_with(json!({"metadata": {"labels": labels}})), web());
    }
}

#[test]
fn the_headless_label_means_nothing_on_a_service() {
    let labels = json!({"service.kubernetes.io/headless": ""});
    assert_eq!(whole(service_with(json!({"metadata": {"labels": labels}}))).name, web());
}

#[test]
fn an_unknown_type_is_named_and_not_served() {
    let converted = service_with(json!({"spec": {"type": "Magic"}}));
    assert_eq!(converted.change, Change::Delete(web()));
    assert_problems(&converted.problems, &[("spec.type", "Magic")]);
}

#[test]
fn ports_that_cannot_be_served_are_named_and_the_others_stay() {
    let (service, problems) = applied(service_with(json!({"spec": {"ports": [
        {"name": "a", "protocol": "tcp", "port": 1},
        {"name": "b", "protocol": "HTTP", "port": 2},
        {"name": "good", "protocol": "UDP", "port": 3},
        {"name": "c", "port": 0},
        {"name": "d", "port": 65536},
        {"name": "e", "port": 6, "nodePort": 70000},
    ]}})));
    let names: Vec<&str> = service.ports.iter().map(|port| &*port.name).collect();
    assert_eq!(names, ["good"]);
    assert_problems(
        &problems,
        &[
            ("spec.ports[0].protocol", "tcp"),
            ("spec.ports[1].protocol", "HTTP"),
            ("spec.ports[3]", "0"),
            ("spec.ports[4]", "65536"),
            ("spec.ports[5]", "70000"),
        ],
    );
}

#[test]
fn cluster_ips_follow_the_families() {
    let cases = [
        ("dual stack", json!(["172.30.0.1", "fd00::1"]), json!(["IPv4", "IPv6"]), "172.30.0.1 fd00::1"),
        ("IPv6 first", json!(["fd00::1", "172.30.0.1"]), json!(["IPv6", "IPv4"]), "172.30.0.1 fd00::1"),
        ("fewer families", json!(["172.30.0.1", "fd00::1"]), json!(["IPv4"]), "172.30.0.1"),
        ("fewer addresses", json!(["172.30.0.1"]), json!(["IPv4", "IPv6"]), "172.30.0.1"),
        ("no families: the one clusterIP", json!(["172.30.0.1", "fd00::1"]), Value::Null, "172.30.0.1"),
        ("no lists at all", Value::Null, Value::Null, "172.30.0.1"),
    ];
    for (case, listed, families, expected) in cases {
        let service = whole(service_with(json!({"spec": {"clusterIPs": listed, "ipFamilies": families}})));
        assert_eq!(service.cluster_ips, ips(expected), "{case}");
    }
    let old = json!({"clusterIP": "fd00::7", "clusterIPs": null, "ipFamilies": null});
    assert_eq!(whole(service_with(json!({"spec": old}))).cluster_ips, ips("fd00::7"));
}

#[test]
fn a_bad_cluster_ip_is_named_and_the_other_family_stays() {
    let (service, problems) = applied(service_with(json!({"spec": {
        "clusterIP": "nonsense",
        "clusterIPs": ["nonsense", "fd00::1"],
        "ipFamilies": ["IPv4", "IPv6"],
    }})));
    assert_problems(&problems, &[("spec.clusterIPs[0]", "nonsense")]);
    assert_eq!(service.cluster_ips, ips("fd00::1"));
}

#[test]
fn bad_external_ips_are_named_and_blank_ones_are_not() {
    let (service, problems) = applied(service_with(json!({"spec": {
        "externalIPs": ["192.0.2.1", "", "web.example", " ", "192.0.2.300", " 192.0.2.2 "],
    }})));
    assert_eq!(service.external_ips, ips("192.0.2.1 192.0.2.2"));
    assert_problems(
        &problems,
        &[("spec.externalIPs[2]", "web.example"), ("spec.externalIPs[4]", "192.0.2.300")],
    );
}

#[test]
fn addresses_that_mean_something_else_everywhere_are_left_out_and_named() {
    let special = [
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "0.0.0.0",
        "::",
        "169.254.169.254",
        "fe80::1",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
    ];
    let (service, problems) = applied(service_with(json!({
        "spec": {"externalIPs": special},
        "status": {"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}, {"ip": "203.0.113.1"}]}},
    })));
    assert_eq!((service.external_ips, service.load_balancer_ips), (ips(""), ips("203.0.113.1")));
    let fields: Vec<String> = (0..special.len()).map(|i| format!("spec.externalIPs[{i}]")).collect();
    let mut expected: Vec<(&str, &str)> = fields.iter().map(String::as_str).zip(special).collect();
    expected.push(("status.loadBalancer.ingress[0].ip", "127.0.0.1"));
    assert_problems(&problems, &expected);
    let cluster_ips =
        json!({"spec": {"clusterIP": "127.0.0.1", "clusterIPs": ["127.0.0.1"], "ipFamilies": []}});
    assert_eq!(applied(service_with(cluster_ips)).0.cluster_ips, ips(""));
}

#[test]
fn addresses_with_leading_zeros_are_read_as_decimal() {
    let service = whole(service_with(json!({
        "spec": {
            "clusterIP": "172.30.0.041",
            "clusterIPs": ["172.30.0.041"],
            "externalIPs": ["192.168.099.011"],
            "loadBalancerSourceRanges": ["203.0.113.000/025"],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "001.002.003.004"}]}},
    })));
    assert_eq!(service.cluster_ips, ips("172.30.0.41"));
    assert_eq!(service.external_ips, ips("192.168.99.11"));
    assert_eq!(service.load_balancer_ips, ips("1.2.3.4"));
    assert_eq!(service.source_ranges, nets("203.0.113.0/25"));
}

#[test]
fn ingress_counts_with_ip_mode_vip_or_none() {
    for (mode, expected) in
        [(Value::Null, "203.0.113.9"), (json!("VIP"), "203.0.113.9"), (json!("Proxy"), "")]
    {
        let mut ingress = json!({"ip": "203.0.113.9"});
        merge(&mut ingress, json!({"ipMode": mode}));
        let status = json!({"loadBalancer": {"ingress": [ingress]}});
        let service = whole(service_with(json!({"status": status})));
        assert_eq!(service.load_balancer_ips, ips(expected), "{mode}");
    }
}

#[test]
fn ingress_with_a_host_name_only_is_no_address() {
    let status = json!({"loadBalancer": {"ingress": [
        {"hostname": "lb.example"},
        {"ip": "", "hostname": "lb.example"},
        {"ip": "203.0.113.9", "ports": [{"port": 80, "protocol": "TCP"}]},
    ]}});
    let service = whole(service_with(json!({"status": status})));
    assert_eq!(service.load_balancer_ips, ips("203.0.113.9"));
}

#[test]
fn a_bad_ingress_address_is_named_by_its_place_in_the_list() {
    let status = json!({"loadBalancer": {"ingress": [
        {"hostname": "lb.example"},
        {"ip": "203.0.113.8", "ipMode": "Proxy"},
        {"ip": "203.0.113.9"},
        {"ip": "nonsense"},
    ]}});
    let (service, problems) = applied(service_with(json!({"status": status})));
    assert_eq!(service.load_balancer_ips, ips("203.0.113.9"));
    assert_problems(&problems, &[("status.loadBalancer.ingress[3]", "nonsense")]);
}

#[test]
fn source_ranges_are_read_leniently_and_bad_ones_are_named() {
    let (service, problems) = applied(service_with(json!({"spec": {"loadBalancerSourceRanges": [
        " 203.0.113.7/24 ", "203.0.113.7", "10.0.0.0/33", "  ", "2001:db8::1/32", "x/8",
    ]}})));
    assert_eq!(service.source_ranges, nets("203.0.113.0/24 2001:db8::/32"));
    assert_problems(
        &problems,
        &[
            ("spec.loadBalancerSourceRanges[1]", "203.0.113.7"),
            ("spec.loadBalancerSourceRanges[2]", "10.0.0.0/33"),
            ("spec.loadBalancerSourceRanges[5]", "x/8"),
        ],
    );
}

#[test]
fn an_ipv4_mapped_source_range_counts_as_ipv4() {
    let (service, problems) =
        applied(service_with(json!({"spec": {"loadBalancerSourceRanges": ["::ffff:10.0.0.0/104"]}})));
    assert_eq!(service.source_ranges, nets("10.0.0.0/8"));
    assert_problems(&problems, &[]);
}

#[test]
fn source_ranges_that_cannot_be_read_let_nobody_in() {
    let nobody = ["0.0.0.0/32", "::/128"];
    for (listed, expected) in [
        (vec!["10.0.0.0/33"], nobody.join(" ")),
        (vec!["", " ", "office"], nobody.join(" ")),
        (vec!["203.0.113.0/24", "office"], format!("203.0.113.0/24 {}", nobody[1])),
        // What is plainly of one family says nothing of the other.
        (vec!["203.0.113.0/24", "10.0.0.0/33"], "203.0.113.0/24".into()),
        (vec!["203.0.113.0/24", "fd00::/129"], format!("203.0.113.0/24 {}", nobody[1])),
        (vec!["2001:db8::/32", "10.0.0"], format!("2001:db8::/32 {}", nobody[0])),
        (vec!["", "  "], String::new()),
    ] {
        let spec = json!({"spec": {"loadBalancerSourceRanges": listed}});
        let (service, problems) = applied(service_with(spec));
        assert_eq!(service.source_ranges, nets(&expected), "{listed:?}");
        assert_eq!(problems.is_empty(), listed.iter().all(|text| text.trim().is_empty()), "{problems:?}");
    }
}

#[test]
fn the_source_range_annotation_is_not_honoured() {
    let annotations = json!({"service.beta.kubernetes.io/load-balancer-source-ranges": "203.0.113.0/24"});
    let service = whole(service_with(json!({"metadata": {"annotations": annotations}})));
    assert_eq!(service.source_ranges, nets(""));
}

#[test]
fn client_ip_affinity_has_a_default_timeout() {
    let affine = |config: Value| {
        let spec = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config});
        whole(service_with(json!({"spec": spec}))).affinity
    };
    assert_eq!(affine(json!({"clientIP": {"timeoutSeconds": 7}})), Some(7));
    assert_eq!(affine(json!({"clientIP": {}})), Some(10800));
    assert_eq!(affine(json!({})), Some(10800));
    assert_eq!(affine(Value::Null), Some(10800));
}

#[test]
fn a_timeout_without_client_ip_affinity_means_nothing() {
    let config = json!({"clientIP": {"timeoutSeconds": 7}});
    for kind in [json!("None"), Value::Null] {
        let spec = json!({"sessionAffinity": kind, "sessionAffinityConfig": config});
        assert_eq!(whole(service_with(json!({"spec": spec}))).affinity, None);
    }
}

#[test]
fn a_health_check_node_port_out_of_range_is_named() {
    let (service, problems) = applied(service_with(json!({"spec": {"healthCheckNodePort": 70000}})));
    assert_eq!(service.health_check_node_port, 0);
    assert_problems(&problems, &[("spec.healthCheckNodePort", "70000")]);
}

// EndpointSlices.

#[test]
fn a_plain_slice_is_taken_over_with_the_defaults_of_the_api() {
    let slice = whole(slice_with(json!({"ports": [{"name": "", "port": 8080}]})));
    let endpoint = SliceEndpoint {
        address: "10.0.0.1".parse().unwrap(),
        node: None,
        conditions: Conditions { ready: true, serving: true, terminating: false },
        hints: None,
    };
    let expected = EndpointSlice {
        name: web_1(),
        service: web(),
        family: Family::V4,
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: vec![endpoint],
        triggered: None,
    };
    assert_eq!(slice, expected);
}

#[test]
fn slices_of_headless_services_are_left_alone_whatever_the_label_says() {
    for value in ["", "x"] {
        let labels = json!({"service.kubernetes.io/headless": value});
        assert_deleted(slice_with(json!({"metadata": {"labels": labels}})), web_1());
    }
}

#[test]
fn slices_are_not_filtered_by_proxy_name() {
    let labels = json!({"service.kubernetes.io/service-proxy-name": "other"});
    assert_eq!(whole(slice_with(json!({"metadata": {"labels": labels}}))).name, web_1());
}

#[test]
fn a_slice_without_a_service_name_is_left_out_and_no_problem() {
    for name in [json!(""), Value::Null] {
        let labels = json!({"kubernetes.io/service-name": name});
        assert_deleted(slice_with(json!({"metadata": {"labels": labels}})), web_1());
    }
}

#[test]
fn slices_of_host_names_are_named_and_left_out() {
    for kind in ["FQDN", "ipv4", ""] {
        let converted = slice_with(json!({"addressType": kind}));
        assert_eq!(converted.change, Change::Delete(web_1()));
        assert_problems(&converted.problems, &[("addressType", kind)]);
    }
}

#[test]
fn slice_ports_that_cannot_be_used_are_named_and_the_others_stay() {
    let (slice, problems) = applied(slice_with(json!({"ports": [
        {"port": 1},
        {"name": "a"},
        {"name": "b", "port": 0},
        {"name": "c", "port": 65536},
        {"name": "d", "port": 5, "protocol": "udp"},
        {"name": "good", "port": 6, "protocol": "SCTP"},
    ]})));
    assert_eq!(slice.ports, [SlicePort { name: "good".into(), protocol: Protocol::Sctp, port: 6 }]);
    assert_problems(
        &problems,
        &[
            ("ports[0].name", ""),
            ("ports[1].port", ""),
            ("ports[2].port", ""),
            ("ports[3].port", ""),
            ("ports[4].protocol", "udp"),
        ],
    );
}

#[test]
fn endpoints_that_cannot_be_used_are_named_and_the_others_stay() {
    let (slice, problems) = applied(slice_with(json!({"endpoints": [
        {"addresses": []},
        {"addresses": ["nonsense"]},
        {"addresses": ["fd00::1"]},
        {"addresses": ["10.000.0.02", "10.0.0.3"]},
    ]})));
    let addresses: Vec<IpAddr> = slice.endpoints.iter().map(|endpoint| endpoint.address).collect();
    assert_eq!(addresses, ips("10.0.0.2"), "the first address counts, leading zeros do not");
    assert_problems(
        &problems,
        &[
            ("endpoints[0].addresses", ""),
            ("endpoints[1].addresses[0]", "nonsense"),
            ("endpoints[2].addresses[0]", "fd00::1"),
        ],
    );
}

#[test]
fn an_ipv4_address_in_an_ipv6_slice_is_named_and_left_out() {
    let endpoints = json!([{"addresses": ["10.0.0.1"]}, {"addresses": ["fd00::2"]}]);
    let (slice, problems) = applied(slice_with(json!({"addressType": "IPv6", "endpoints": endpoints})));
    assert_eq!(slice.family, Family::V6);
    assert_eq!(slice.endpoints.len(), 1);
    assert_eq!(slice.endpoints[0].address, "fd00::2".parse::<IpAddr>().unwrap());
    assert_problems(&problems, &[("endpoints[0].addresses[0]", "10.0.0.1")]);
}

#[test]
fn absent_conditions_have_their_own_defaults() {
    let of = |conditions: Value| {
        let endpoints = json!([{"addresses": ["10.0.0.1"], "conditions": conditions}]);
        let found = whole(slice_with(json!({"endpoints": endpoints}))).endpoints[0].conditions;
        (found.ready, found.serving, found.terminating)
    };
    assert_eq!(of(Value::Null), (true, true, false));
    assert_eq!(of(json!({})), (true, true, false));
    assert_eq!(of(json!({"ready": false})), (false, true, false), "serving does not follow ready");
    assert_eq!(of(json!({"serving": false})), (true, false, false));
    assert_eq!(of(json!({"terminating": true})), (true, true, true));
    let all = json!({"ready": false, "serving": false, "terminating": true});
    assert_eq!(of(all), (false, false, true));
}

#[test]
fn node_and_hints_of_an_endpoint_are_taken_over() {
    let endpoints = json!([
        {
            "addresses": ["10.0.0.1"],
            "nodeName": "here",
            "zone": "not-a-hint",
            "hints": {"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "n"}]},
        },
        {"addresses": ["10.0.0.2"], "hints": {"forZones": [{"name": "a"}]}},
        {"addresses": ["10.0.0.3"], "zone": "not-a-hint"},
    ]);
    let slice = whole(slice_with(json!({"endpoints": endpoints})));
    let nodes: Vec<Option<&str>> = slice.endpoints.iter().map(|e| e.node.as_deref()).collect();
    assert_eq!(nodes, [Some("here"), None, None]);
    let hints = |zones: &[&str], nodes: &[&str]| {
        let list = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
        Some(Box::new(Hints { zones: list(zones), nodes: list(nodes) }))
    };
    assert_eq!(slice.endpoints[0].hints, hints(&["a", "b"], &["n"]));
    assert_eq!(slice.endpoints[1].hints, hints(&["a"], &[]));
    assert_eq!(slice.endpoints[2].hints, None);
}

#[test]
fn the_trigger_time_is_read_and_a_bad_one_is_named() {
    let with = |text: &str| {
        let annotations = json!({"endpoints.kubernetes.io/last-change-trigger-time": text});
        applied(slice_with(json!({"metadata": {"annotations": annotations}})))
    };
    let (slice, problems) = with("1970-01-01T00:00:01Z");
    assert_eq!((slice.triggered, problems.len()), (Some(1_000_000_000), 0));
    let (slice, problems) = with("1970-01-01T01:00:01.000000005+01:00");
    assert_eq!((slice.triggered, problems.len()), (Some(1_000_000_005), 0));
    let (slice, problems) = with("yesterday");
    assert_eq!(slice.triggered, None);
    assert_eq!(slice.endpoints.len(), 1);
    let path = "metadata.annotations[endpoints.kubernetes.io/last-change-trigger-time]";
    assert_problems(&problems, &[(path, "")]);
}

#[test]
fn a_slice_without_ports_or_endpoints_is_empty_and_no_problem() {
    let slice = whole(slice_with(json!({"ports": null, "endpoints": []})));
    assert!(slice.ports.is_empty() && slice.endpoints.is_empty());
}

// Nodes and ServiceCIDRs.

#[test]
fn internal_addresses_of_a_node_come_before_external_ones() {
    let node = whole(node_with(json!({"status": {"addresses": [
        {"type": "Hostname", "address": "here"},
        {"type": "ExternalIP", "address": "203.0.113.2"},
        {"type": "InternalIP", "address": "192.168.0.2"},
        {"type": "InternalDNS", "address": "here.internal"},
        {"type": "InternalIP", "address": "fd00::2"},
        {"type": "ExternalIP", "address": "2001:db8::2"},
    ]}})));
    assert_eq!(node.name, ObjectName::cluster_scoped("here"));
    assert_eq!(node.addresses, ips("192.168.0.2 fd00::2 203.0.113.2 2001:db8::2"));
    assert_eq!(node.address(Family::V4), Some("192.168.0.2".parse().unwrap()));
}

#[test]
fn a_bad_node_address_is_named_by_its_place_in_the_list() {
    let (node, problems) = applied(node_with(json!({"status": {"addresses": [
        {"type": "Hostname", "address": "here"},
        {"type": "ExternalIP", "address": "bad-external"},
        {"type": "InternalIP", "address": "192.168.0.2"},
        {"type": "InternalIP", "address": "bad-internal"},
    ]}})));
    assert_eq!(node.addresses, ips("192.168.0.2"));
    let mut problems = problems;
    problems.sort();
    assert_problems(
        &problems,
        &[("status.addresses[1]", "bad-external"), ("status.addresses[3]", "bad-internal")],
    );
}

#[test]
fn pod_networks_of_a_node_are_read_and_bad_ones_are_named() {
    let (node, problems) =
        applied(node_with(json!({"spec": {"podCIDRs": ["10.1.2.3/24", "nonsense", "fd00::/64"]}})));
    assert_eq!(node.pod_cidrs, nets("10.1.2.0/24 fd00::/64"));
    assert_problems(&problems, &[("spec.podCIDRs[1]", "nonsense")]);
    let node = whole(node_with(json!({"spec": {"podCIDR": "10.1.0.0/16"}})));
    assert_eq!(node.pod_cidrs, nets("10.1.0.0/16"));
}

#[test]
fn an_empty_zone_is_no_zone() {
    let zone = |labels: Value| whole(node_with(json!({"metadata": {"labels": labels}}))).zone;
    assert_eq!(zone(json!({"topology.kubernetes.io/zone": "a"})).as_deref(), Some("a"));
    assert_eq!(zone(json!({"topology.kubernetes.io/zone": ""})), None);
    assert_eq!(zone(json!({"topology.kubernetes.io/region": "a"})), None);
    assert_eq!(zone(Value::Null), None);
}

#[test]
fn a_node_that_is_going_is_not_eligible() {
    assert!(whole(node_with(json!({}))).eligible);
    let taints = |key: &str| json!({"spec": {"taints": [{"key": key, "effect": "NoSchedule"}]}});
    assert!(whole(node_with(taints("node.kubernetes.io/unreachable"))).eligible);
    assert!(!whole(node_with(taints("ToBeDeletedByClusterAutoscaler"))).eligible);
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    assert!(!whole(node_with(going)).eligible);
}

#[test]
fn service_cidrs_are_read_and_bad_ones_are_named() {
    let of = |cidrs: Value| {
        convert_service_cidr(&object(json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}})))
    };
    let cidr = whole(of(json!(["172.30.0.0/16", "fd00::/112"])));
    assert_eq!(cidr.name, ObjectName::cluster_scoped("kubernetes"));
    assert_eq!(cidr.cidrs, nets("172.30.0.0/16 fd00::/112"));
    let (cidr, problems) = applied(of(json!(["172.30.0.0", "fd00::/112"])));
    assert_eq!(cidr.cidrs, nets("fd00::/112"));
    assert_problems(&problems, &[("spec.cidrs[0]", "172.30.0.0")]);
}
