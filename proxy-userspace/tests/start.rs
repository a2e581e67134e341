//! What a daemon says at its start and of its node, in namespaces of a test's own.
#![expect(clippy::unwrap_used, reason = "integration tests fail by panicking")]

#[path = "support/daemon.rs"]
mod daemon;

use std::path::{Path, PathBuf};

use daemon::{CONFIG, Daemon, configured, in_netns, kube_proxy};
use nix::mount::{MsFlags, mount};
use serde_json::Value;

const NODE: &str = "apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
";

/// A Service and an endpoint of it.
fn service(name: &str, created: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop, creationTimestamp: '{created}'}}
spec: {{clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], ipFamilies: [IPv4], ports: [{{port: 80}}]}}
"
    )
}

fn write(directory: &Path, name: &str, text: &str) {
    std::fs::write(directory.join("manifests").join(name), text).unwrap();
}

/// The lines of a level.
fn lines(daemon: &Daemon, level: &str) -> Vec<String> {
    let log = std::fs::read_to_string(&daemon.log).unwrap();
    log.lines().filter(|line| line.contains(level)).map(str::to_owned).collect()
}

/// What the ConfigMap of deploy/ holds.
fn deployed(directory: &Path) -> PathBuf {
    let text = include_str!("../../deploy/configmap.yaml");
    let map: Value = serde_saphyr::from_str(text).unwrap();
    let path = directory.join("config.conf");
    std::fs::write(&path, map["data"]["config.conf"].as_str().unwrap()).unwrap();
    path
}

#[test]
fn a_start_of_what_is_deployed_has_no_warning() {
    in_netns("start-deployed", |directory| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        // As in a container that is not privileged.
        for path in ["/proc/sys", "/sys/module"] {
            mount(Some(path), path, none, MsFlags::MS_BIND, none).unwrap();
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(none, path, none, flags, none).unwrap();
        }
        write(directory, "node.yaml", NODE);
        let daemon = Daemon::start(directory, &deployed(directory), &[]);
        let info = lines(&daemon, "INFO");
        assert_eq!((lines(&daemon, "WARN"), lines(&daemon, "ERROR")), (vec![], vec![]), "{info:?}");
        let start: Vec<&String> = info.iter().filter(|line| line.contains("sluice starts")).collect();
        assert_eq!(start.len(), 1, "{info:?}");
        for word in [
            "version=\"0.",
            "mode=\"nftables\"",
            "node=\"n1\"",
            "objects=files in ",
            "config.conf",
            "healthz=\"0.0.0.0:10256\"",
            "metrics=\"127.0.0.1:10249\"",
        ] {
            assert!(start[0].contains(word), "{word}: {start:?}");
        }
        assert!(!info.iter().any(|line| line.contains("Some(") || line.contains("None")), "{info:?}");
        let left: Vec<&String> = info.iter().filter(|line| line.contains("may not write")).collect();
        assert_eq!(left.len(), 1, "{info:?}");
        for word in ["nf_conntrack_tcp_timeout_close_wait=3600 (now ", "--init-only"] {
            assert!(left[0].contains(word), "{word}: {left:?}");
        }
        assert!(info.iter().any(|line| line.contains("192.0.2.1")), "{info:?}");
        // An init container that is not privileged tells of all that fails.
        let mut init = kube_proxy(directory);
        init.args(["--init-only", "--hostname-override=n1", "--config"]).arg(directory.join("config.conf"));
        let output = init.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{text}");
        for word in ["privileged: true", "tcp_timeout_close_wait", "tcp_timeout_established"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    });
}

#[test]
fn a_node_that_is_missing_is_warned_of_once_until_it_is_there() {
    in_netns("start-node", |directory| {
        let mut daemon = Daemon::start(directory, &configured(directory), &[]);
        daemon.wait_for("there is no Node with this name");
        write(directory, "node.yaml", NODE);
        daemon.wait_for("the Node with this name exists");
        let warned: Vec<String> =
            lines(&daemon, "WARN").into_iter().filter(|line| line.contains("there is no Node")).collect();
        assert_eq!(warned.len(), 1, "{warned:?}");
        for word in ["node=\"n1\"", "--hostname-override", "/healthz"] {
            assert!(warned[0].contains(word), "{word}: {warned:?}");
        }
    });
}

#[test]
fn an_address_that_two_services_claim_is_warned_of_with_the_one_that_has_it() {
    in_netns("start-claims", |directory| {
        write(directory, "node.yaml", NODE);
        write(directory, "old.yaml", &service("old", "2024-01-01T00:00:00Z"));
        write(directory, "young.yaml", &service("young", "2025-01-01T00:00:00Z"));
        let daemon = Daemon::start(directory, &configured(directory), &[]);
        let warned: Vec<String> =
            lines(&daemon, "WARN").into_iter().filter(|line| line.contains("10.96.0.7:80")).collect();
        assert_eq!(warned.len(), 1, "{warned:?}");
        for word in ["shop/young", "shop/old", "another address"] {
            assert!(warned[0].contains(word), "{word}: {warned:?}");
        }
    });
}

#[test]
fn a_daemon_that_logs_json_says_why_it_ends_in_json() {
    in_netns("start-json", |directory| {
        let config = directory.join("json.conf");
        let text = CONFIG.to_owned() + "logging: {format: json}\n";
        std::fs::write(&config, &text).unwrap();
        write(directory, "node.yaml", NODE);
        let mut daemon = Daemon::start(directory, &config, &[]);
        std::fs::write(&config, text + "hostnameOverride: n1\n").unwrap();
        assert_eq!(daemon.exit_code(), Some(1));
        let log = std::fs::read_to_string(&daemon.log).unwrap();
        let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let last = lines.last().unwrap();
        assert_eq!(last["level"], "ERROR", "{log}");
        assert!(last["fields"]["message"].as_str().unwrap().contains("changed"), "{log}");
        let keys = |line: &Value| line.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(last), keys(&lines[0]));
    });
}
