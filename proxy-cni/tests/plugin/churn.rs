//! Pods that come and go in random order while plugins are killed at random moments.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use serde_json::json;

use super::{Node, on_a_node};

/// Pairs of ADD and DEL.
const PAIRS: usize = 1000;
const PODS: usize = 12;

/// The numbers of Knuth's MMIX: a test needs no better ones, and these can be repeated.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

struct Churn<'a> {
    node: &'a Node,
    mode: &'static str,
    numbers: Numbers,
    killed: usize,
}

impl Churn<'_> {
    /// Calls the plugin, and kills it somewhere on its way, or does not. Returns whether it ended
    /// well.
    fn call(&mut self, command: &str, pod: &str) -> bool {
        let netns = self.node.directory.join(pod);
        let config = self.node.config("1.1.0", self.mode, &json!({})).to_string();
        let mut child = self.node.start(command, pod, netns.to_str().unwrap(), &config);
        if self.numbers.below(3) == 0 {
            // A whole call takes about 20 ms here, of a program that is not optimized.
            std::thread::sleep(Duration::from_micros(self.numbers.below(25_000)));
            drop(child.kill());
        }
        let status = child.wait().unwrap();
        self.killed += usize::from(status.signal() == Some(9));
        status.success()
    }
}

fn nothing_leaks(mode: &'static str) {
    on_a_node(&format!("churn-{mode}"), move |node| {
        let pods: Vec<String> = (0..PODS).map(|i| format!("pod{i}")).collect();
        pods.iter().for_each(|pod| drop(node.pod(pod)));
        let mut churn = Churn { node, mode, numbers: Numbers(7), killed: 0 };
        let mut live = vec![false; PODS];
        let mut pairs = 0;
        while pairs < PAIRS {
            let which = churn.numbers.below(PODS as u64) as usize;
            if live[which] {
                // A runtime calls DEL until it succeeds.
                while !churn.call("DEL", &pods[which]) {}
                live[which] = false;
                pairs += 1;
            } else if churn.call("ADD", &pods[which]) {
                live[which] = true;
            } else {
                while !churn.call("DEL", &pods[which]) {}
            }
        }
        assert!(churn.killed > PAIRS / 10, "only {} calls were killed", churn.killed);
        let alive = live.iter().filter(|is_live| **is_live).count();
        assert_eq!((node.links(), node.leases()), (alive, 2 * alive));
        for (pod, _) in pods.iter().zip(&live).filter(|(_, is_live)| **is_live) {
            while !churn.call("DEL", pod) {}
        }
        assert_eq!((node.links(), node.leases()), (0, 0));
        let routes = node.shell("ip route; ip -6 route");
        let of_pods =
            routes.lines().filter(|line| line.contains(" dev sl") && !line.contains(" dev sluice0"));
        assert_eq!(of_pods.count(), 0, "{routes}");
        let mut files: Vec<String> = std::fs::read_dir(node.directory.join("data/pods"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        assert_eq!(files, ["leases.json", "lock"]);
        // Whom no runtime remembers is found by GC.
        let config = |more| node.config("1.1.0", mode, &more).to_string();
        for pod in &pods[..4] {
            churn.call("ADD", pod);
        }
        node.call("GC", "", "", &config(json!({"cni.dev/valid-attachments": []}))).ok();
        assert_eq!((node.links(), node.leases()), (0, 0));
        pods.iter().for_each(|pod| node.remove_pod(pod));
    });
}

#[test]
fn killed_plugins_on_a_bridge_leave_nothing() {
    nothing_leaks("bridge");
}

#[test]
fn killed_routed_plugins_leave_nothing() {
    nothing_leaks("routed");
}
