//! Whatever is on stdin and in the environment, the answer is one that a runtime can read.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use sluice_cni::plugin;

/// A value of any shape, not deep.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
        prop_oneof![
            Just("10.0.0.0/8"),
            Just("fd00::/64"),
            Just("10.0.0.1"),
            Just("::/0"),
            Just("0.0.0.0/0"),
            Just("../../x"),
            Just("255.255.255.255/32"),
            Just("1.1.0"),
            Just("net.ipv4.conf.all.x"),
            Just("02:00:00:00:00:01"),
        ]
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(any_key(), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

fn any_key() -> impl Strategy<Value = String> {
    let known = [
        "cniVersion",
        "name",
        "type",
        "mode",
        "bridge",
        "mtu",
        "sysctl",
        "ipam",
        "dns",
        "runtimeConfig",
        "args",
        "cni",
        "ips",
        "mac",
        "portMappings",
        "prevResult",
        "cni.dev/valid-attachments",
        "containerID",
        "ifname",
        "ranges",
        "subnet",
        "rangeStart",
        "rangeEnd",
        "gateway",
        "routes",
        "dst",
        "reserved",
        "interfaces",
        "address",
        "interface",
        "sandbox",
    ];
    prop_oneof![
        6 => proptest::sample::select(known.to_vec()).prop_map(str::to_owned),
        2 => proptest::sample::select(known.to_vec()).prop_map(str::to_uppercase),
        1 => "[a-z]{0,6}",
    ]
}

/// Mostly what a configuration looks like, with something else in the place of some fields.
fn any_config() -> impl Strategy<Value = Value> {
    let versions = proptest::sample::select(vec!["0.3.1", "0.4.0", "1.0.0", "1.1.0", "9.9.9", ""]);
    (versions, proptest::collection::vec((any_key(), any_value()), 0..4)).prop_map(|(version, fields)| {
        let mut config = json!({"cniVersion": version, "name": "pods", "type": "sluice-cni",
            "dataDir": "/proc/no/such/place", "ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}]]}});
        config.as_object_mut().unwrap().extend(fields);
        // Nothing of this machine's.
        config["dataDir"] = json!("/proc/no/such/place");
        config
    })
}

/// Whom the runtime names, without ever naming a namespace that is there.
fn any_environment() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let commands = vec!["ADD", "DEL", "CHECK", "STATUS", "VERSION", "GC", "", "X"];
    (proptest::sample::select(commands), "[ -~]{0,16}", "[ -~]{0,16}", "[ -~]{0,16}").prop_map(
        |(command, container, interface, arguments)| {
            vec![
                ("CNI_COMMAND", command.to_owned()),
                ("CNI_CONTAINERID", if container.len() % 2 == 0 { "a".to_owned() } else { container }),
                ("CNI_IFNAME", if interface.len() % 2 == 0 { "eth0".to_owned() } else { interface }),
                ("CNI_NETNS", "/no/such/namespace".to_owned()),
                ("CNI_ARGS", if arguments.len() % 2 == 0 { String::new() } else { arguments }),
            ]
        },
    )
}

fn answer(environment: &[(&str, String)], input: &[u8]) -> plugin::Answer {
    let variable =
        |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
    plugin::run(variable, Ok(input.to_vec()))
}

fn is_readable(answer: &plugin::Answer) -> Result<(), TestCaseError> {
    if let Err(object) = answer {
        prop_assert!(object["code"].as_u64().is_some_and(|code| code > 0), "{}", object);
        prop_assert!(object["msg"].as_str().is_some_and(|text| !text.is_empty()), "{}", object);
        prop_assert!(object["cniVersion"].is_string(), "{}", object);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_configuration_is_answered(environment in any_environment(), config in any_config()) {
        is_readable(&answer(&environment, config.to_string().as_bytes()))?;
    }

    #[test]
    fn any_bytes_are_answered(environment in any_environment(), input in proptest::collection::vec(any::<u8>(), 0..200)) {
        is_readable(&answer(&environment, &input))?;
    }
}
