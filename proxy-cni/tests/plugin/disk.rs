//! The file of addresses on a disk that is full, read-only or damaged, and as another version has
//! written it.

use std::fs;

use serde_json::{Value, json};

use super::{Node, on_a_node};

/// A disk of its own for the file.
fn with_small_disk(node: &Node) {
    let data = node.directory.join("data");
    fs::create_dir_all(&data).unwrap();
    node.shell(&format!("mount -t tmpfs -o size=64k tmpfs {}", data.display()));
}

fn delete(node: &Node, pod: &str) {
    node.call("DEL", pod, "", &node.config("1.1.0", "routed", &json!({})).to_string()).ok();
}

#[test]
fn a_pod_is_deleted_although_the_disk_is_full_or_read_only() {
    on_a_node("full", |node| {
        with_small_disk(node);
        let data = node.directory.join("data").display().to_string();
        for (lock, unlock) in [
            ("cat /dev/zero > DATA/filler || true", "rm DATA/filler"),
            ("mount -o remount,ro DATA", "mount -o remount,rw DATA"),
        ] {
            node.add("a", "routed");
            node.remove_pod("a");
            node.shell(&lock.replace("DATA", &data));
            delete(node, "a");
            // Both addresses stay written down, for who collects those without a link.
            assert_eq!((node.links(), node.leases()), (0, 2), "{lock}");
            node.shell(&unlock.replace("DATA", &data));
            delete(node, "a");
            assert_eq!(node.leases(), 0, "{lock}");
        }
    });
}

#[test]
fn a_damaged_file_is_set_aside_if_no_pod_is_there() {
    on_a_node("damaged", |node| {
        node.add("a", "routed");
        let file = node.directory.join("data/pods/leases.json");
        fs::write(&file, "half").unwrap();
        let add = |pod: &str| {
            let netns = node.pod(pod);
            let config = node.config("1.1.0", "routed", &json!({})).to_string();
            node.call("ADD", pod, netns.to_str().unwrap(), &config)
        };
        // Its address is written down nowhere else.
        assert_eq!(add("b").code(), 5);
        assert_eq!(fs::read_to_string(&file).unwrap(), "half");
        node.shell("ip link | grep -o 'sl[0-9a-f]\\{12\\}' | xargs -n1 ip link delete");
        add("c").ok();
        assert_eq!(node.leases(), 2);
        assert_eq!(fs::read_to_string(file.with_extension("json.damaged")).unwrap(), "half");
    });
}

#[test]
fn unknown_fields_of_the_lease_file_are_ignored() {
    on_a_node("newer", |node| {
        node.add("a", "routed");
        let file = node.directory.join("data/pods/leases.json");
        let mut written: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        written["since"] = json!("1.2");
        written["leases"][0]["pool"] = json!("blue");
        fs::write(&file, written.to_string()).unwrap();
        node.add("b", "routed");
        assert_eq!(node.leases(), 4);
        node.remove_pod("a");
        delete(node, "a");
        assert_eq!(node.leases(), 2);
    });
}
