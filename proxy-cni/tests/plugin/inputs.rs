//! What runtimes were seen to give to the plugin (`tests/inputs/`), as they wrote it.

use std::path::Path;

use serde_json::{Value, json};

use super::{Node, on_a_node};

#[test]
fn what_runtimes_write_starts_and_stops_pods() {
    on_a_node("inputs", |node| {
        let inputs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inputs");
        let paths: Vec<_> = std::fs::read_dir(inputs).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!paths.is_empty(), "there are no inputs");
        for (number, path) in paths.iter().enumerate() {
            let mut config: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
            config["dataDir"] = json!(node.directory.join("data"));
            config["runDir"] = json!(node.directory.join("run"));
            starts_and_stops(node, &format!("pod{number}"), &config.to_string());
        }
    });
}

fn starts_and_stops(node: &Node, pod: &str, config: &str) {
    let netns = node.pod(pod);
    node.call("ADD", pod, netns.to_str().unwrap(), config).ok();
    let written = std::fs::read_to_string(node.directory.join("data/pods/leases.json")).unwrap();
    let written: Value = serde_json::from_str(&written).unwrap();
    assert_eq!(written["host_ports"][0]["mappings"].as_array().unwrap().len(), 1, "{written}");
    node.call("DEL", pod, netns.to_str().unwrap(), config).ok();
    assert_eq!((node.links(), node.leases()), (0, 0));
}

#[test]
fn the_version_flag_prints_version_and_cni_versions() {
    for argument in ["--version", "-V"] {
        let output =
            std::process::Command::new(env!("CARGO_BIN_EXE_sluice-cni")).arg(argument).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.starts_with("sluice-cni 0."), "{text}");
        assert!(text.contains("CNI protocol versions supported: ") && text.contains("1.1.0"), "{text}");
    }
}
