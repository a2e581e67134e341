//! Whatever is on stdin and in the environment, the answer is one that a runtime can read.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use sluice_cni::plugin;
use sluice_fuzz::{Bytes, Rng, Trees, Watch, cases, fuzz};

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
        elsewhere(config)
    })
}

/// A configuration by which nothing of this machine's is touched. Go reads names of fields in any
/// case.
fn elsewhere(mut config: Value) -> Value {
    if let Some(fields) = config.as_object_mut() {
        for place in ["dataDir", "runDir"] {
            fields.retain(|name, _| !name.eq_ignore_ascii_case(place));
            fields.insert(place.to_owned(), json!("/proc/no/such/place"));
        }
    }
    config
}

/// The variables that a runtime sets. The namespace never exists.
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

/// A thread from which nothing of this machine is reached: what the plugin takes for a
/// configuration may be no JSON for the parser of these tests, and then it names the usual places.
/// Without rights the plugin can touch nothing there either.
fn leave() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    for place in ["/run", "/var/lib"] {
        mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    }
}

thread_local! {
    static AWAY: () = leave();
}

fn answer(environment: &[(&str, String)], input: &[u8]) -> plugin::Answer {
    AWAY.with(|()| ());
    let variable =
        |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
    plugin::run(variable, Ok(input.to_vec()))
}

/// Protocol versions that answers are written in.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Checks that an answer is what the specification allows for the command. The pod's namespace does
/// not exist, so ADD and CHECK cannot succeed.
fn is_readable(environment: &[(&str, String)], answer: &plugin::Answer) -> Result<(), TestCaseError> {
    let command = environment.iter().find(|(name, _)| *name == "CNI_COMMAND").map_or("", |(_, text)| text);
    let is_version = |value: &Value| value.as_str().is_some_and(|text| VERSIONS.contains(&text));
    match (command, answer) {
        ("VERSION", Ok(Some(object))) => {
            prop_assert!(is_version(&object["cniVersion"]), "{}", object);
            prop_assert_eq!(&object["supportedVersions"], &json!(VERSIONS));
        }
        // Nothing to say.
        ("DEL" | "GC" | "STATUS", Ok(None)) => {}
        ("VERSION", _) | (_, Ok(_)) => prop_assert!(false, "{}: {:?}", command, answer),
        (_, Err(object)) => {
            prop_assert!(object["code"].as_u64().is_some_and(|code| code > 0), "{}", object);
            prop_assert!(object["msg"].as_str().is_some_and(|text| !text.is_empty()), "{}", object);
            prop_assert!(is_version(&object["cniVersion"]), "{}", object);
        }
    }
    Ok(())
}

thread_local! {
    /// Of the test that runs in this thread.
    static WATCH: Watch = Watch::new("cni-any");
}

/// An answer that comes in time.
fn answer_in_time(environment: &[(&str, String)], input: &[u8]) -> plugin::Answer {
    WATCH.with(|watch| watch.over(input, || answer(environment, input)))
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn any_configuration_is_answered(environment in any_environment(), config in any_config()) {
        is_readable(&environment, &answer_in_time(&environment, config.to_string().as_bytes()))?;
    }

    #[test]
    fn any_bytes_are_answered(environment in any_environment(), input in proptest::collection::vec(any::<u8>(), 0..200)) {
        is_readable(&environment, &answer_in_time(&environment, &input))?;
    }
}

/// The plugin makes its directory in the mount namespace of the thread, and nothing at the
/// machine's own place.
#[test]
fn nothing_is_left_at_the_usual_places() {
    if !nix::unistd::geteuid().is_root() {
        return sluice_skips::skip("root", "a mount namespace cannot be made");
    }
    let place = std::path::Path::new("/var/lib/cni/sluice/somebody");
    let name = "somebody";
    let before = place.exists();
    let input = json!({"cniVersion": "1.1.0", "name": name, "type": "sluice-cni",
        "ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}]]}});
    let environment = [
        ("CNI_COMMAND", "DEL".to_owned()),
        ("CNI_CONTAINERID", "a".to_owned()),
        ("CNI_IFNAME", "eth0".to_owned()),
    ];
    let made = std::thread::spawn(move || {
        is_readable(&environment, &answer(&environment, input.to_string().as_bytes())).unwrap();
        place.exists()
    });
    assert!(made.join().unwrap(), "the plugin makes it where the thread is");
    assert_eq!(place.exists(), before);
}

/// What containerd and others write, for each command and in each version.
fn valid() -> Vec<Value> {
    let written = sluice_fuzz::corpus(&["proxy-cni/tests/inputs"]);
    let mut all: Vec<Value> = written.iter().map(|bytes| serde_json::from_slice(bytes).unwrap()).collect();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let address =
            json!({"version": "4", "address": "10.0.0.5/24", "gateway": "10.0.0.1", "interface": 2});
        all.push(json!({
            "cniVersion": version, "name": "pods", "type": "sluice-cni", "mode": "bridge", "bridge": "cni0", "mtu": 1400,
            "sysctl": {"net.core.somaxconn": "500"}, "capabilities": {"portMappings": true, "ips": true},
            "ipam": {
                "type": "sluice", "routes": [{"dst": "0.0.0.0/0"}],
                "ranges": [
                    [{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.5", "rangeEnd": "10.0.0.9", "gateway": "10.0.0.1"}],
                    [{"subnet": "fd00::/64"}],
                ],
            },
            "dns": {"nameservers": ["10.96.0.10"], "search": ["cluster.local"], "options": ["ndots:5"]},
            "runtimeConfig": {
                "ips": ["10.0.0.7/24"], "mac": "02:00:00:00:00:01",
                "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "sctp", "hostIP": "::"}],
            },
            "args": {"cni": {"ips": ["10.0.0.8"]}},
            "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}],
            "prevResult": {
                "cniVersion": version, "ips": [address], "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}],
                "interfaces": [
                    {"name": "cni0", "mac": "02:00:00:00:00:02"}, {"name": "sl1"},
                    {"name": "eth0", "sandbox": "/no/such/namespace"},
                ],
            },
        }));
    }
    all
}

const COMMANDS: [&str; 6] = ["ADD", "DEL", "CHECK", "STATUS", "VERSION", "GC"];
const WORDS: [&str; 16] = [
    "255.255.255.255/32",
    "0.0.0.0/0",
    "::/0",
    "fd00::/129",
    "10.0.0.1",
    "../../x",
    "02:00:00:00:00:01",
    "net.ipv4.a",
    "a=b",
    "\"ipam\":",
    "\"ranges\":[[",
    "{",
    "}",
    "[",
    "]",
    "\\u0000",
];

/// A call for a container whose namespace does not exist.
fn call(command: &str) -> [(&'static str, String); 4] {
    [
        ("CNI_COMMAND", command.to_owned()),
        ("CNI_CONTAINERID", "a".to_owned()),
        ("CNI_IFNAME", "eth0".to_owned()),
        ("CNI_NETNS", "/no/such/namespace".to_owned()),
    ]
}

/// Otherwise the fuzzing below would only mutate what is refused anyway.
#[test]
fn inputs_for_fuzzing_are_valid_configurations() {
    let (mut added, mut checked) = (0, 0);
    for config in valid().into_iter().map(elsewhere) {
        // CHECK exists since version 0.4.0, and needs the result of ADD.
        let (command, count) = match config.get("prevResult") {
            None => ("ADD", &mut added),
            Some(_) if config["cniVersion"] == "0.3.1" => continue,
            Some(_) => ("CHECK", &mut checked),
        };
        let error = answer(&call(command), config.to_string().as_bytes()).unwrap_err();
        // The only fault is the unknown container.
        assert_eq!(error["code"], 3, "{command}: {error} {config}");
        *count += 1;
    }
    assert!(added > 0 && checked > 0, "{added} for ADD, {checked} for CHECK");
}

#[test]
fn fuzz_stdin() {
    let valid: Vec<Value> = valid().into_iter().map(elsewhere).collect();
    let texts = valid.iter().map(|config| config.to_string().into_bytes()).collect();
    let (bytes, trees) = (Bytes::new(texts, &WORDS), Trees::new(valid, &WORDS));
    let make = |rng: &mut Rng| {
        let input = match rng.u8(..4) {
            0 => bytes.next(rng),
            _ => trees.next(rng).to_string().into_bytes(),
        };
        match serde_json::from_slice::<Value>(&input) {
            Ok(config) => elsewhere(config).to_string().into_bytes(),
            Err(_) => input,
        }
    };
    fuzz("cni-stdin", make, |input| {
        for command in COMMANDS {
            let environment = call(command);
            is_readable(&environment, &answer(&environment, input)).unwrap();
        }
    });
}
