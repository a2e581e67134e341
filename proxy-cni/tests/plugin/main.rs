//! The plugin as a runtime calls it, against the real kernel: each test has a "node" of its own, a
//! network namespace, with pods that are network namespaces too.
#![expect(clippy::unwrap_used, reason = "integration tests fail by panicking")]

mod churn;
mod disk;
mod inputs;
mod loopback;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};
use sluice_skips::in_namespaces;

/// A node, and the files of its test.
struct Node {
    directory: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            // Pods that a failed test has left.
            let _ = nix::mount::umount2(&entry.path(), nix::mount::MntFlags::MNT_DETACH);
        }
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

/// What the plugin answered.
struct Answer {
    is_success: bool,
    value: Value,
}

impl Answer {
    fn ok(self) -> Value {
        assert!(self.is_success, "{}", self.value);
        self.value
    }

    fn code(self) -> u64 {
        assert!(!self.is_success, "{}", self.value);
        assert!(self.value["msg"].is_string() && self.value["cniVersion"].is_string(), "{}", self.value);
        self.value["code"].as_u64().unwrap()
    }
}

/// Runs a test in a fresh network namespace. Without root: a skip that says so.
fn on_a_node(name: &str, test: impl FnOnce(&Node) + Send + 'static) {
    let directory = std::env::temp_dir().join(format!("sluice-cni-test-{name}-{}", std::process::id()));
    in_namespaces(CloneFlags::CLONE_NEWNET, move || {
        std::fs::create_dir_all(&directory).unwrap();
        let node = Node { directory };
        // The node's own addresses, wherever they are.
        node.shell(
            "ip link set lo up; ip address add 192.0.2.1/32 dev lo; ip address add fd99::1/128 dev lo",
        );
        for sysctl in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{sysctl}"), "1").unwrap();
        }
        test(&node);
    });
}

impl Node {
    fn shell(&self, line: &str) -> String {
        let output = Command::new("sh").args(["-c", line]).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Makes a pod's namespace, as a runtime does.
    fn pod(&self, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        std::fs::write(&path, "").unwrap();
        let at = path.clone();
        let made = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let own = Path::new("/proc/thread-self/ns/net");
            nix::mount::mount(Some(own), &at, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>)
                .unwrap();
        });
        made.join().unwrap();
        path
    }

    fn remove_pod(&self, name: &str) {
        let path = self.directory.join(name);
        nix::mount::umount(&path).unwrap();
        std::fs::remove_file(path).unwrap();
    }

    fn config(&self, version: &str, mode: &str, more: &Value) -> Value {
        let mut config = json!({
            "cniVersion": version, "name": "pods", "type": "sluice-cni", "mode": mode, "mtu": 1450,
            "dataDir": self.directory.join("data"),
            "ipam": {
                "ranges": [[{"subnet": "10.50.0.0/24"}], [{"subnet": "fd50::/64"}]]},
        });
        config.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        config
    }

    /// Starts the plugin.
    fn start(&self, command: &str, pod: &str, netns: &str, config: &str) -> Child {
        self.start_for("eth0", command, pod, netns, config)
    }

    fn start_for(&self, interface: &str, command: &str, pod: &str, netns: &str, config: &str) -> Child {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sluice-cni"))
            .env_clear()
            .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", pod), ("CNI_IFNAME", interface)])
            .envs([("CNI_NETNS", netns), ("PATH", "/usr/bin:/bin")])
            .env("CNI_PATH", &self.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It may have gone already.
        drop(child.stdin.take().unwrap().write_all(config.as_bytes()));
        child
    }

    fn call(&self, command: &str, pod: &str, netns: &str, config: &str) -> Answer {
        Node::answer(self.start(command, pod, netns, config))
    }

    fn answer(child: Child) -> Answer {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let value = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        Answer { is_success: output.status.success(), value }
    }

    fn add(&self, pod: &str, mode: &str) -> Value {
        let netns = self.pod(pod);
        self.call("ADD", pod, netns.to_str().unwrap(), &self.config("1.1.0", mode, &json!({})).to_string())
            .ok()
    }

    fn links(&self) -> usize {
        self.shell("ip -o link").lines().filter(|line| line.contains(": sl") && line.contains('@')).count()
    }

    fn leases(&self) -> usize {
        let text = std::fs::read_to_string(self.directory.join("data/pods/leases.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["leases"].as_array().unwrap().len()
    }
}

fn addresses(result: &Value) -> Vec<IpAddr> {
    let of = |ip: &Value| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
    result["ips"].as_array().unwrap().iter().map(of).collect()
}

/// Runs something in a pod.
fn within<T: Send + 'static>(netns: PathBuf, work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        setns(std::fs::File::open(netns).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        work()
    });
    thread.join().unwrap()
}

/// Whom a server in one pod sees when a client in another one, or in the node, calls it.
fn call_from(server: PathBuf, at: IpAddr, client: Option<PathBuf>) -> IpAddr {
    // A port for each call: a process that another test is just starting may hold a copy of the
    // last listener.
    static NEXT: AtomicU16 = AtomicU16::new(8080);
    let to = SocketAddr::new(at, NEXT.fetch_add(1, Ordering::Relaxed));
    let listener = within(server, move || TcpListener::bind(to).unwrap());
    let call = move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).unwrap();
        stream.write_all(b"x").unwrap();
        stream
    };
    let _stream = match client {
        Some(client) => within(client, call),
        None => call(),
    };
    let (mut accepted, peer) = listener.accept().unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    peer.ip()
}

fn pods_reach_each_other(mode: &'static str) {
    on_a_node(mode, move |node| {
        let (a, b) = (node.add("a", mode), node.add("b", mode));
        let [in_a, in_b] = ["a", "b"].map(|name| node.directory.join(name));
        for (of_a, of_b) in addresses(&a).into_iter().zip(addresses(&b)) {
            // At once: no address waits for anything.
            assert_eq!(call_from(in_b.clone(), of_b, Some(in_a.clone())), of_a, "{mode}");
            assert_eq!(call_from(in_a.clone(), of_a, Some(in_b.clone())), of_b, "{mode}");
            call_from(in_a.clone(), of_a, None);
        }
        assert_eq!(node.links(), 2);
        for pod in ["a", "b"] {
            let config = node.config("1.1.0", mode, &json!({})).to_string();
            node.call("DEL", pod, node.directory.join(pod).to_str().unwrap(), &config).ok();
        }
        assert_eq!((node.links(), node.leases()), (0, 0));
    });
}

#[test]
fn pods_on_a_bridge_reach_each_other_and_the_node() {
    pods_reach_each_other("bridge");
}

#[test]
fn routed_pods_reach_each_other_and_the_node() {
    pods_reach_each_other("routed");
}

#[test]
fn del_succeeds_whatever_is_there() {
    on_a_node("del", |node| {
        node.add("a", "bridge");
        let config = node.config("0.3.1", "bridge", &json!({})).to_string();
        node.remove_pod("a");
        for _ in 0..100 {
            assert_eq!(node.call("DEL", "a", "", &config).ok(), Value::Null);
        }
        node.call("DEL", "never-seen", "/no/such/namespace", &config).ok();
        assert_eq!((node.links(), node.leases()), (0, 0));
    });
}

#[test]
fn a_second_add_finds_the_interface_and_leaves_the_first_pod_whole() {
    on_a_node("twice", |node| {
        let netns = node.pod("a");
        let config = node.config("1.0.0", "bridge", &json!({})).to_string();
        let add = || node.call("ADD", "a", netns.to_str().unwrap(), &config).ok();
        // A runtime that was killed asks again: the same addresses, one link.
        assert_eq!(addresses(&add()), addresses(&add()));
        assert_eq!((node.links(), node.leases()), (1, 2));
        // Another container in the same namespace is an error that changes nothing.
        assert_eq!(node.call("ADD", "b", netns.to_str().unwrap(), &config).code(), 101);
        assert_eq!((node.links(), node.leases()), (1, 2));
    });
}

#[test]
fn check_says_what_is_missing() {
    on_a_node("check", |node| {
        let result = node.add("a", "bridge");
        let netns = node.directory.join("a");
        let config = node.config("1.1.0", "bridge", &json!({"prevResult": result})).to_string();
        let check = || node.call("CHECK", "a", netns.to_str().unwrap(), &config);
        check().ok();
        let in_pod = |line: &'static str| {
            within(netns.clone(), move || Command::new("sh").args(["-c", line]).status().unwrap())
        };
        in_pod("ip -6 address del fd50::2/64 dev eth0; ip route del default");
        let answer = check();
        let told = answer.value["msg"].as_str().unwrap().to_owned();
        assert_eq!(answer.code(), 102);
        for part in ["eth0 has no address fd50::2/64", "no route to 0.0.0.0/0"] {
            assert!(told.contains(part), "{told}");
        }
        in_pod("ip link del eth0");
        assert!(check().value["msg"].as_str().unwrap().contains("eth0 does not exist"));
    });
}

#[test]
fn check_looks_at_the_node_too() {
    on_a_node("check-host", |node| {
        let result = node.add("a", "routed");
        let config = node.config("1.1.0", "routed", &json!({"prevResult": result})).to_string();
        let check = || node.call("CHECK", "a", node.directory.join("a").to_str().unwrap(), &config);
        check().ok();
        node.shell("ip route del 10.50.0.2");
        assert!(check().value["msg"].as_str().unwrap().contains("no route to 10.50.0.2/32 via sl"));
        node.shell("ip link set $(ip -br link | grep -o '^sl[0-9a-f]*') down");
        assert!(check().value["msg"].as_str().unwrap().contains("is down"));
    });
}

#[test]
fn a_pod_may_have_two_networks_and_the_first_has_the_default_route() {
    on_a_node("two", |node| {
        node.add("a", "routed");
        let netns = node.directory.join("a");
        let second = |more: Value| {
            let ranges = json!({"name": "second", "ipam": {"ranges": [[{"subnet": "10.52.0.0/24"}]]}});
            let mut config = node.config("1.1.0", "routed", &ranges);
            config.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
            config.to_string()
        };
        let call = |command: &str, config: &str| {
            Node::answer(node.start_for("eth1", command, "a", netns.to_str().unwrap(), config))
        };
        let result = call("ADD", &second(json!({}))).ok();
        let default =
            within(netns.clone(), || Command::new("ip").args(["route", "show", "default"]).output().unwrap());
        assert!(String::from_utf8_lossy(&default.stdout).contains("dev eth0"), "{default:?}");
        call("CHECK", &second(json!({"prevResult": result}))).ok();
        call("DEL", &second(json!({}))).ok();
        assert_eq!(node.links(), 1);
    });
}

#[test]
fn a_pod_may_have_many_routes() {
    on_a_node("routes", |node| {
        let routes: Vec<Value> =
            (0..600).map(|i| json!({"dst": format!("10.{}.{}.0/24", 60 + i / 250, i % 250)})).collect();
        let ipam = json!({"ipam": {"ranges": [[{"subnet": "10.50.0.0/24"}]], "routes": routes}});
        let netns = node.pod("a");
        let config = node.config("1.1.0", "routed", &ipam).to_string();
        node.call("ADD", "a", netns.to_str().unwrap(), &config).ok();
        let listed = within(netns, || Command::new("ip").args(["route"]).output().unwrap());
        assert_eq!(String::from_utf8_lossy(&listed.stdout).lines().count(), 601);
    });
}

#[test]
fn routes_have_gateways_and_mtus_of_their_own() {
    on_a_node("gateways", |node| {
        let config = |mode: &str, routes: Value| {
            let ipam = json!({"ipam": {"ranges": [[{"subnet": "10.50.0.0/24"}]], "routes": routes}});
            node.config("1.1.0", mode, &ipam).to_string()
        };
        let routes = json!([
            {"dst": "10.9.0.0/16", "gw": "10.50.0.77", "mtu": 1300},
            {"dst": "10.8.0.0/16"},
            {"dst": "0.0.0.0/0", "gw": "10.50.0.78"},
        ]);
        let netns = node.pod("a");
        let result = node.call("ADD", "a", netns.to_str().unwrap(), &config("bridge", routes)).ok();
        assert_eq!(
            result["routes"],
            json!([
                {"dst": "0.0.0.0/0", "gw": "10.50.0.78"},
                {"dst": "10.8.0.0/16", "gw": "10.50.0.1"},
                {"dst": "10.9.0.0/16", "gw": "10.50.0.77", "mtu": 1300},
            ])
        );
        let listed = within(netns, || Command::new("ip").args(["route"]).output().unwrap());
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        for line in ["default via 10.50.0.78 ", "10.8.0.0/16 via 10.50.0.1 ", "10.9.0.0/16 via 10.50.0.77 "] {
            assert!(listed.contains(line), "{listed}");
        }
        assert!(listed.contains("mtu 1300"), "{listed}");
        // A routed pod has no neighbour but the node.
        let netns = node.pod("b");
        let add = |gateway: &str| {
            let routes = json!([{"dst": "10.9.0.0/16", "gw": gateway}]);
            node.call("ADD", "b", netns.to_str().unwrap(), &config("routed", routes))
        };
        assert_eq!(add("10.50.0.77").code(), 7);
        assert_eq!(add("fd50::1").code(), 7);
        assert_eq!((node.links(), node.leases()), (1, 1));
        add("10.50.0.1").ok();
    });
}

#[test]
fn gc_removes_what_is_not_valid() {
    on_a_node("gc", |node| {
        for pod in ["a", "b", "c"] {
            node.add(pod, "bridge");
        }
        let valid = json!({"cni.dev/valid-attachments": [{"containerID": "b", "ifname": "eth0"}]});
        node.call("GC", "", "", &node.config("1.1.0", "bridge", &valid).to_string()).ok();
        assert_eq!((node.links(), node.leases()), (1, 2));
        // Nobody is invalid whom nobody speaks of.
        let collect =
            |more: Value| node.call("GC", "", "", &node.config("1.1.0", "bridge", &more).to_string()).ok();
        collect(json!({}));
        assert_eq!((node.links(), node.leases()), (1, 2));
        // Nor does a link stay that nobody has written down.
        std::fs::remove_file(node.directory.join("data/pods/leases.json")).unwrap();
        collect(json!({"cni.dev/valid-attachments": null}));
        assert_eq!(node.links(), 0);
        assert_eq!(node.call("GC", "", "", &node.config("1.0.0", "bridge", &valid).to_string()).code(), 1);
    });
}

#[test]
fn a_changed_pod_cidr_changes_the_bridges_address_when_no_pod_needs_the_old_one() {
    on_a_node("cidr", |node| {
        let first = node.add("a", "bridge");
        let ranges = json!({"ipam": {"ranges": [[{"subnet": "10.51.0.0/24"}]]}});
        let config = node.config("1.1.0", "bridge", &ranges).to_string();
        let add = |pod: &str| node.call("ADD", pod, node.pod(pod).to_str().unwrap(), &config).ok();
        let bridge = || node.shell("ip -o address show dev sluice0; ip -o link show sluice0");
        let before = bridge();
        let second = add("b");
        let both = bridge();
        assert!(both.contains("10.51.0.1/24") && both.contains("10.50.0.1/24"), "{both}");
        let mac = |text: &str| text.split("link/ether ").nth(1).unwrap()[..17].to_owned();
        assert_eq!(mac(&before), mac(&both));
        // The pod of before is still reached, and reaches its gateway.
        call_from(node.directory.join("a"), addresses(&first)[0], None);
        call_from(node.directory.join("b"), addresses(&second)[0], Some(node.directory.join("a")));
        node.call("DEL", "a", "", &config).ok();
        add("c");
        let now = bridge();
        assert!(now.contains("10.51.0.1/24") && !now.contains("10.50.0.1"), "{now}");
    });
}

#[test]
fn an_interface_that_is_no_bridge_and_a_bridge_of_others_keep_what_they_have() {
    on_a_node("foreign", |node| {
        node.shell(
            "ip link add uplink type veth peer name other; ip address add 192.0.2.5/24 dev uplink; \
             ip link add br7 address 02:00:00:00:00:07 type bridge; ip address add 198.51.100.1/24 dev br7; ip link set br7 up",
        );
        let state = |link: &str| {
            node.shell(&format!("ip -o -4 address show dev {link}; ip -o link show {link} | grep -o ether.*"))
        };
        let before = (state("uplink"), state("br7"));
        let config = |bridge: &str| node.config("1.1.0", "bridge", &json!({"bridge": bridge})).to_string();
        let netns = node.pod("a");
        let refused = node.call("ADD", "a", netns.to_str().unwrap(), &config("uplink"));
        assert!(
            refused.value["msg"].as_str().unwrap().contains("uplink is not a bridge"),
            "{}",
            refused.value
        );
        assert_eq!((refused.code(), node.leases(), state("uplink")), (7, 0, before.0));
        let result = node.call("ADD", "a", netns.to_str().unwrap(), &config("br7")).ok();
        call_from(netns, addresses(&result)[0], None);
        let after = state("br7");
        assert!(
            before.1.lines().all(|line| after.contains(line)) && after.contains("10.50.0.1/24"),
            "{after}"
        );
    });
}

#[test]
fn the_nodes_own_namespace_and_what_is_none_are_refused() {
    on_a_node("own", |node| {
        let config = node.config("1.1.0", "routed", &json!({})).to_string();
        let own = format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid());
        let refused = node.call("ADD", "a", &own, &config);
        assert!(refused.value["msg"].as_str().unwrap().contains("is the node's own"), "{}", refused.value);
        assert_eq!(refused.code(), 4);
        assert_eq!(node.call("ADD", "a", "/etc/passwd", &config).code(), 3);
        assert_eq!(node.links(), 0);
    });
}

/// CVE-2020-10749.
#[test]
fn pods_cannot_tell_the_node_where_to_route() {
    for mode in ["bridge", "routed"] {
        on_a_node(&format!("ra-{mode}"), move |node| {
            node.add("a", mode);
            let of = "for f in /proc/sys/net/ipv6/conf/sl*/accept_ra; do cat $f; done";
            let values = node.shell(of);
            let links = if mode == "bridge" { 2 } else { 1 };
            assert_eq!(values.lines().collect::<Vec<_>>(), vec!["0"; links]);
        });
    }
}

#[test]
fn a_pod_can_go_whatever_the_runtime_and_the_files_say() {
    on_a_node("go", |node| {
        node.add("a", "routed");
        let nonsense = json!({"prevResult": 7, "runtimeConfig": {"portMappings": "x"}, "args": [], "mtu": 1});
        node.call("DEL", "a", "", &node.config("1.1.0", "routed", &nonsense).to_string()).ok();
        assert_eq!((node.links(), node.leases()), (0, 0));
        node.remove_pod("a");
        node.add("a", "routed");
        std::fs::write(node.directory.join("data/pods/leases.json"), "{").unwrap();
        node.call("DEL", "a", "", &node.config("1.1.0", "routed", &json!({})).to_string()).ok();
        assert_eq!(node.links(), 0);
        // What is written down, and cannot be taken back, is no success: the runtime will ask
        // again.
        node.remove_pod("a");
        node.add("a", "routed");
        let in_the_way = node.directory.join("data/pods/leases.new");
        std::fs::create_dir(&in_the_way).unwrap();
        let del = || node.call("DEL", "a", "", &node.config("1.1.0", "routed", &json!({})).to_string());
        assert_eq!((del().code(), node.links()), (5, 0));
        std::fs::remove_dir(in_the_way).unwrap();
        del().ok();
        assert_eq!(node.leases(), 0);
        let nowhere = json!({"dataDir": "/proc/no/such/place"});
        node.call("DEL", "a", "", &node.config("1.1.0", "routed", &nowhere).to_string()).ok();
    });
}

#[test]
fn when_no_address_is_free_the_error_says_who_has_them() {
    on_a_node("exhausted", |node| {
        let ranges = json!({"dataDir": node.directory.join("data"), "ipam": {"ranges": [[{"subnet": "10.50.0.0/30"}]]}});
        let config = node.config("1.1.0", "routed", &ranges).to_string();
        let add = |pod: &str| node.call("ADD", pod, node.pod(pod).to_str().unwrap(), &config);
        assert_eq!(addresses(&add("a").ok()), ["10.50.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(node.call("STATUS", "", "", &config).code(), 50);
        let answer = add("b");
        assert!(answer.value["msg"].as_str().unwrap().contains("1 are in use, by a"), "{}", answer.value);
        assert_eq!(answer.code(), 100);
        assert_eq!(node.links(), 1);
        node.call("DEL", "a", "", &config).ok();
        node.call("STATUS", "", "", &config).ok();
    });
}

#[test]
fn nonsense_gets_an_error_object() {
    on_a_node("nonsense", |node| {
        let good = node.config("1.1.0", "bridge", &json!({}));
        assert_eq!(node.call("ADD", "a", "/no/such", &good.to_string()).code(), 3);
        assert_eq!(node.call("ADD", "../a", "/no/such", &good.to_string()).code(), 4);
        assert_eq!(node.call("ADD", "a", "", &good.to_string()).code(), 4);
        assert_eq!(node.call("FLY", "a", "/x", &good.to_string()).code(), 4);
        for (config, code) in
            [("", 6), ("[1]", 6), ("{\"cniVersion\":\"3.0.0\"}", 1), ("{\"cniVersion\":\"1.0.0\"}", 7)]
        {
            assert_eq!(node.call("ADD", "a", "/x", config).code(), code, "{config}");
        }
        let version = node.call("VERSION", "", "", "nonsense").ok();
        assert_eq!(version["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
        assert_eq!(node.links(), 0);
    });
}

/// A plugin that gives one address, and writes down what it was asked.
const OTHER: &str = r#"#!/bin/sh
cat >"$0.config"
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME" >>"$0.calls"
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.1.0","ips":[{"address":"10.52.0.9/24","gateway":"10.52.0.254"}],"routes":[{"dst":"10.0.0.0/8"}]}' ;;
STATUS) echo '{"cniVersion":"1.1.0","code":50,"msg":"nothing left"}'; exit 1 ;;
esac
"#;

#[test]
fn another_plugin_may_manage_addresses() {
    use std::os::unix::fs::PermissionsExt;

    on_a_node("delegate", |node| {
        let program = node.directory.join("other");
        std::fs::write(&program, OTHER).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let ipam = json!({"ipam": {"type": "other", "more": 1}});
        let config = node.config("1.1.0", "bridge", &ipam).to_string();
        let netns = node.pod("a");
        let result = node.call("ADD", "a", netns.to_str().unwrap(), &config).ok();
        assert_eq!(
            result["ips"],
            json!([{"address": "10.52.0.9/24", "gateway": "10.52.0.254", "interface": 2}])
        );
        assert_eq!(result["routes"][1], json!({"dst": "10.0.0.0/8", "gw": "10.52.0.254"}));
        call_from(netns.clone(), addresses(&result)[0], None);
        let told: Value =
            serde_json::from_str(&std::fs::read_to_string(node.directory.join("other.config")).unwrap())
                .unwrap();
        assert_eq!(told["ipam"]["more"], 1);
        let status = node.call("STATUS", "", "", &config);
        assert!(status.value["msg"].as_str().unwrap().contains("nothing left"), "{}", status.value);
        node.call("DEL", "a", "", &config).ok();
        let calls = std::fs::read_to_string(node.directory.join("other.calls")).unwrap();
        assert_eq!(calls, "ADD a eth0\nSTATUS  eth0\nDEL a eth0\n");
        assert_eq!(node.links(), 0);
        let nobody = node.config("1.1.0", "bridge", &json!({"ipam": {"type": "nobody"}})).to_string();
        assert_eq!(node.call("ADD", "b", node.pod("b").to_str().unwrap(), &nobody).code(), 7);
    });
}
