//! The plugin under the name of `loopback`.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Answer, Node, on_a_node, within};

fn call(command: &str, netns: &str, config: &str) -> Answer {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sluice-cni"))
        .arg0("/opt/cni/bin/loopback")
        .env_clear()
        .envs([
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "a"),
            ("CNI_IFNAME", "lo"),
            ("CNI_NETNS", netns),
        ])
        .envs([("CNI_PATH", "/opt/cni/bin")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdin.take().unwrap().write_all(config.as_bytes()));
    Node::answer(child)
}

#[test]
fn loopback_is_set_up_as_the_reference_plugin_does() {
    on_a_node("loopback", |node| {
        let netns = node.pod("a");
        let path = netns.to_str().unwrap().to_owned();
        // As go-cni has it.
        let config = json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"});
        let on = |command: &str, more: Value| {
            let mut config = config.clone();
            config.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
            call(command, &path, &config.to_string())
        };
        assert_eq!(on("CHECK", json!({"cniVersion": "1.0.0"})).code(), 102);
        assert_eq!(
            on("ADD", json!({})).ok(),
            json!({"cniVersion": "0.3.1",
                "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": path}],
                "ips": [{"version": "4", "interface": 0, "address": "127.0.0.1/8"},
                    {"version": "6", "interface": 0, "address": "::1/128"}],
                "routes": []})
        );
        within(netns, || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            TcpStream::connect_timeout(&listener.local_addr().unwrap(), Duration::from_secs(5)).unwrap();
        });
        on("CHECK", json!({"cniVersion": "1.0.0"})).ok();
        let previous = json!({"cniVersion": "1.0.0", "prevResult":
            {"Interfaces": [{"Name": "eth0"}], "IPs": [{"Address": "10.0.0.2/24", "Interface": 0}], "routes": null}});
        assert_eq!(
            on("ADD", previous).ok(),
            json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0"}],
                "ips": [{"address": "10.0.0.2/24", "interface": 0}], "routes": []})
        );
        on("DEL", json!({})).ok();
        assert_eq!(on("CHECK", json!({"cniVersion": "1.0.0"})).code(), 102);
        node.remove_pod("a");
        for nothing in [path.as_str(), "", "/no/such/namespace"] {
            call("DEL", nothing, "nonsense").ok();
        }
        assert_eq!(call("ADD", "/no/such/namespace", &config.to_string()).code(), 3);
        let version = call("VERSION", "", &config.to_string()).ok();
        assert_eq!(
            (&version["cniVersion"], &version["supportedVersions"][0]),
            (&json!("0.3.1"), &json!("0.3.0"))
        );
    });
}
