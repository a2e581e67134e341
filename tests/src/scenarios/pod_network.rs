//! The pod network of our own, and the plugin with it: somebody takes it apart, nodes come and go,
//! ports of the node lead to pods, and clients of others (cnitool, which is libcni, and go-cni,
//! which is containerd's) make pods.

mod churn;
mod loopback;
mod neighbours;

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Scenario;
use super::stage::{Stage, WITHIN, met};
use crate::agent::protocol::{Outcome, ProbeRequest};
use crate::case::{Fails, HeldStep};
use crate::lab::plugin::PodNetwork;
use crate::objects::{self, Key};
use crate::target::From;

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "pod-network-is-repaired", body: repaired, ..TEMPLATE },
    Scenario { name: "pod-network-follows-nodes", body: follows_nodes, ..TEMPLATE },
    Scenario { name: "pods-leave-the-cluster-by-the-node", body: masqueraded, ..TEMPLATE },
    Scenario {
        name: "direct-routes-carry-the-node-s-address",
        body: direct_routes,
        pod_network: PodNetwork::SluiceDirect,
        ..TEMPLATE
    },
    Scenario { name: "neighbours-cannot-be-pods", body: neighbours::cannot_be_others, ..TEMPLATE },
    Scenario {
        name: "neighbours-cannot-be-pods-beside-ebpf",
        needs: &["nft", "cgroup2", "tcpdump"],
        body: neighbours::cannot_be_others_beside_ebpf,
        ..TEMPLATE
    },
    Scenario {
        name: "neighbours-cannot-be-pods-on-a-bridge-beside-ebpf",
        needs: &["nft", "cgroup2", "tcpdump"],
        body: neighbours::cannot_be_others_beside_ebpf,
        pod_network: PodNetwork::SluiceBridge,
        ..TEMPLATE
    },
    Scenario { name: "host-ports-lead-to-pods", body: host_ports, ..TEMPLATE },
    Scenario { name: "host-ports-answer-on-loopback", body: loopback::answers, ..TEMPLATE },
    Scenario {
        name: "host-ports-answer-on-loopback-by-a-bridge",
        body: loopback::answers,
        pod_network: PodNetwork::SluiceBridge,
        ..TEMPLATE
    },
    Scenario {
        name: "host-ports-answer-on-loopback-beside-ebpf",
        needs: &["nft", "cgroup2"],
        body: loopback::answers_beside_ebpf,
        ..TEMPLATE
    },
    Scenario { name: "pod-churn-keeps-memory-flat", long: true, body: churn::keeps_memory_flat, ..TEMPLATE },
    Scenario { name: "cnitool-makes-pods", body: |stage| apart(stage, cnitool), ..TEMPLATE },
    Scenario { name: "go-cni-makes-pods", body: |stage| apart(stage, gocni), ..TEMPLATE },
    Scenario {
        name: "podman-runs-containers",
        needs: &["nft", "podman"],
        body: |stage| apart(stage, podman),
        ..TEMPLATE
    },
];

const TEMPLATE: Scenario =
    Scenario { needs: &["nft"], pod_network: PodNetwork::Sluice, ..Scenario::under_traffic(file!()) };

const NODE: &str = "node-a";
/// A pod of the other node, straight.
const OTHER: [&str; 2] = ["tcp://10.244.2.11:8080", "tcp://[fd00:10:244:2::11]:8080"];
/// What was taken away has to be there again after this time.
const REPAIR: Duration = Duration::from_secs(1);

impl Stage {
    fn shell(&self, line: &str) -> Result<String> {
        let finished = self.run(NODE, &["sh", "-c", line])?;
        ensure!(finished.status.success(), "{line}: {}", finished.stderr);
        Ok(finished.stdout)
    }

    fn reaches_other_node(&mut self) -> Result<()> {
        OTHER.iter().try_for_each(|to| self.reaches("pod/user", to, &["b1"]))
    }

    /// A URL, asked for from outside, must come to answer.
    fn reaches_http(&mut self, url: &str) -> Result<()> {
        self.eventually(WITHIN, |stage| {
            let answer = stage.lab.agent(&From::Client)?.http_get(url);
            let is_answer = answer.as_ref().is_ok_and(|answer| answer.status == 200);
            Ok(met(is_answer, &format!("{url} answers"), || format!("{answer:?}")))
        })
    }

    /// All that the node has of the pod network.
    fn plumbing(&self) -> Result<String> {
        self.shell(
            "ip route show proto 92; ip -6 route show proto 92; ip -br address show dev sluice-vxlan0; \
             bridge fdb show dev sluice-vxlan0; ip neigh show dev sluice-vxlan0 nud permanent; \
             nft -s list table inet sluice-pods; true",
        )
    }

    /// A number of the metrics page.
    fn metric(&self, name: &str) -> Result<String> {
        let answer = self.lab.agent(&From::Host(NODE.to_owned()))?.http_get("http://127.0.0.1:10249/metrics");
        // A daemon that has just been started does not listen yet.
        let page = answer.map(|answer| answer.body).unwrap_or_default();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.unwrap_or("there is no such metric").to_owned())
    }

    fn metric_becomes(&mut self, name: &str, value: &str) -> Result<()> {
        self.eventually(WITHIN, |stage| {
            let now = stage.metric(name)?;
            Ok(met(now == value, &format!("{name} {value}"), || now))
        })
    }
}

fn repaired(stage: &mut Stage) -> Result<()> {
    const INJURIES: [(&str, &str); 8] = [
        ("the device is deleted", "ip link delete sluice-vxlan0"),
        ("the device is set down", "ip link set sluice-vxlan0 down"),
        ("routes are flushed", "ip route flush proto 92; ip -6 route flush proto 92"),
        (
            "neighbours are deleted",
            "ip neigh del 10.244.2.0 dev sluice-vxlan0; ip neigh del fd00:10:244:2:: dev sluice-vxlan0",
        ),
        (
            "forwarding entries are deleted",
            "bridge fdb del $(bridge fdb show dev sluice-vxlan0 | cut -d' ' -f1) dev sluice-vxlan0",
        ),
        ("rules are deleted", "nft delete table inet sluice-pods"),
        (
            "rules are flushed among other changes",
            "for i in 1 2 3 4 5 6 7 8; do ip link set eth0 txqueuelen 100$i; nft flush ruleset; done",
        ),
        ("an address is deleted", "ip address flush dev sluice-vxlan0 scope global"),
    ];
    stage.lab.start_proxies(&Value::Null)?;
    stage.reaches_other_node()?;
    let whole = stage.plumbing()?;
    for (what, line) in INJURIES {
        stage.step(what)?;
        stage.shell(line)?;
        stage.eventually(REPAIR, |stage| {
            let now = stage.plumbing()?;
            Ok(met(now == whole, &whole, || now))
        })?;
        stage.reaches_other_node()?;
    }
    stage.step("the node's link goes down and up again")?;
    stage.shell(
        "ip link set eth0 down; sleep 0.3; ip link set eth0 up; ip address add fd00:77::11/64 dev eth0 nodad",
    )?;
    stage.reaches("pod/user", OTHER[0], &["b1"])?;
    stage.step("the daemon is killed, and nothing is missing")?;
    stage.lab.kill_proxy(NODE)?;
    let left = stage.plumbing()?;
    stage.reaches("pod/user", OTHER[0], &["b1"])?;
    stage.lab.start_proxy(NODE, &Value::Null)?;
    stage.metric_becomes("sluice_pod_network_mtu_bytes", "1450")?;
    ensure!(stage.metric("sluice_pod_network_steps_total")? == "0", "the next daemon changed correct state");
    ensure!(stage.plumbing()? == left, "the next daemon left different state");
    Ok(())
}

fn follows_nodes(stage: &mut Stage) -> Result<()> {
    stage.lab.start_proxies(&Value::Null)?;
    stage.reaches_other_node()?;
    let with_both = stage.plumbing()?;
    stage.step("the other node is removed")?;
    stage.lab.delete(&Key::new("Node", None, "node-b"))?;
    stage.eventually(WITHIN, |stage| {
        let now = stage.plumbing()?;
        Ok(met(!now.contains("10.244.2."), "nothing of node-b", || now))
    })?;
    stage.step("it is added again")?;
    let nodes = objects::of_the_lab(stage.lab.topology());
    stage.lab.apply_all(&nodes)?;
    stage.reaches_other_node()?;
    ensure!(stage.plumbing()? == with_both, "different state than before: {}", stage.plumbing()?);
    stage.step("a third node has the same pod CIDRs")?;
    let twin = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-z"},
        "spec": {"podCIDR": "10.244.2.0/24", "podCIDRs": ["10.244.2.0/24", "fd00:10:244:2::/64"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.77.99"}]}});
    let key = Key::new("Node", None, "node-z");
    stage.lab.apply_object(&key, &twin)?;
    stage.metric_becomes("sluice_pod_network_problems", "2")?;
    stage.eventually(WITHIN, |stage| {
        let events = stage.api().list("Event")?;
        let told = events.iter().any(|event| {
            event["reason"] == "PodNetworkProblem"
                && event["note"]
                    .as_str()
                    .is_some_and(|note| note.contains("node-z overlaps 10.244.2.0/24 of node node-b"))
        });
        Ok(met(told, "an event that names both nodes", || format!("{} events", events.len())))
    })?;
    stage.reaches_other_node()?;
    ensure!(stage.plumbing()? == with_both, "the routes flapped: {}", stage.plumbing()?);
    stage.step("the third node is removed")?;
    stage.lab.delete(&key)?;
    stage.metric_becomes("sluice_pod_network_problems", "0")
}

/// Outside: an address that is in none of the cluster's networks, where the client listens.
fn masqueraded(stage: &mut Stage) -> Result<()> {
    const OUTSIDE: [&str; 2] = ["192.0.2.7", "2001:db8:7::7"];
    stage.lab.start_proxies(&Value::Null)?;
    stage.reaches_other_node()?;
    let client = stage.lab.namespace(&From::Client).name().to_owned();
    let lines = OUTSIDE
        .map(|ip| format!("address add {ip}/{} dev lo\n", if ip.contains(':') { 128 } else { 32 }))
        .concat();
    crate::process::ip_batch(Some(&client), &lines)?;
    stage.lab.agent(&From::Client)?.listen("tcp/9000".parse().map_err(anyhow::Error::msg)?, "outside")?;
    for (to, node) in
        [("tcp://192.0.2.7:9000", "192.168.77.11"), ("tcp://[2001:db8:7::7]:9000", "fd00:77::11")]
    {
        sees(stage, "pod/user", to, node)?;
    }
    stage.step("inside the cluster, and to nonMasqueradeCIDRs, a pod keeps its own address")?;
    sees(stage, "pod/user", OTHER[0], "10.244.1.10")?;
    sees(stage, "pod/user", "tcp://192.168.77.100:9000", "10.244.1.10")?;
    stage.step("a process of the node uses the tunnel's address in the tunnel")?;
    sees(stage, "host/node-a", OTHER[0], "10.244.1.0")?;
    sees(stage, "host/node-a", OTHER[1], "fd00:10:244:1::")
}

/// The node has other addresses on the same interface that the kernel would choose.
fn direct_routes(stage: &mut Stage) -> Result<()> {
    stage.lab.start_proxies(&Value::Null)?;
    stage.reaches_other_node()?;
    stage.step("another address of the same network comes before the node's address")?;
    stage.shell(
        "sysctl -qw net.ipv4.conf.eth0.promote_secondaries=1; ip address add 192.168.77.5/24 dev eth0; \
         ip address del 192.168.77.11/24 dev eth0; ip address add 192.168.77.11/24 dev eth0; \
         ip address add fd00:77::5/64 dev eth0 nodad",
    )?;
    stage.reaches_other_node()?;
    sees(stage, "host/node-a", OTHER[0], "192.168.77.11")?;
    sees(stage, "host/node-a", OTHER[1], "fd00:77::11")
}

/// Whom the other end sees.
fn sees(stage: &mut Stage, from: &str, to: &str, peer: &str) -> Result<()> {
    let from: From = from.parse().map_err(anyhow::Error::msg)?;
    let request = ProbeRequest::one(to)?;
    stage.eventually(WITHIN, |stage| {
        let attempts = stage.lab.probe(&from, request.clone(), None)?;
        let seen: Vec<Outcome> = attempts.into_iter().map(|attempt| attempt.outcome).collect();
        let is_it = matches!(&seen[..], [Outcome::Answer(answer)] if answer.peer.to_string() == peer);
        Ok(met(is_it, &format!("{to} sees {peer}"), || format!("{seen:?}")))
    })
}

fn host_ports(stage: &mut Stage) -> Result<()> {
    let udp = |port: u16| json!({"hostPort": port, "containerPort": 8080, "protocol": "udp"});
    let tcp = |port: u16, host: &str| json!({"hostPort": port, "containerPort": 8080, "protocol": "tcp", "hostIP": host});
    stage.lab.start_proxies(&Value::Null)?;
    stage.reaches_other_node()?;
    stage.lab.rewire("a1", &json!({"portMappings": [tcp(8081, ""), tcp(8082, "fd00:77::11"), udp(5353)]}))?;
    let answers = |stage: &mut Stage| -> Result<()> {
        for from in ["client", "pod/b1", "pod/user", "pod/a1", "host/node-a"] {
            stage.reaches(from, "tcp://192.168.77.11:8081", &["a1"])?;
        }
        stage.reaches("client", "tcp://[fd00:77::11]:8081", &["a1"])?;
        stage.reaches("client", "tcp://[fd00:77::11]:8082", &["a1"])?;
        stage.reaches("client", "udp://192.168.77.11:5353", &["a1"])?;
        stage.fails("client", "tcp://192.168.77.11:8082", Fails::Any)?;
        stage.fails("client", "tcp://192.168.77.12:8081", Fails::Any)
    };
    answers(stage)?;
    stage.step("flushed rules are restored")?;
    stage.shell("nft flush ruleset")?;
    answers(stage)?;
    stage.step("without a daemon, rules stay")?;
    stage.lab.kill_proxy(NODE)?;
    stage.reaches("client", "tcp://192.168.77.11:8081", &["a1"])?;
    stage.shell("nft delete table inet sluice-pods")?;
    stage.lab.start_proxy(NODE, &Value::Null)?;
    answers(stage)?;
    stage.step("a UDP flow follows the host port to another pod")?;
    let agent = stage.lab.shared_agent(&From::Client)?;
    agent.hold("udp", "udp://192.168.77.11:5353".parse().map_err(anyhow::Error::msg)?, false)?;
    held_by(stage, "a1")?;
    stage.lab.rewire("user", &json!({"portMappings": [udp(5353)]}))?;
    held_by(stage, "user")?;
    stage.step("the flow goes back when that pod is removed")?;
    stage.lab.rewire("user", &json!({}))?;
    held_by(stage, "a1")?;
    agent.end_held("udp")?;
    stage.step("without a pod, the host port is closed")?;
    stage.lab.rewire("a1", &json!({}))?;
    stage.fails("client", "tcp://192.168.77.11:8081", Fails::Any)
}

fn held_by(stage: &mut Stage, pod: &str) -> Result<()> {
    let step = HeldStep { id: "udp".to_owned(), alive: true, endpoint: Some(pod.to_owned()), within: None };
    stage.held(&From::Client, WITHIN, &step)
}

/// Where libcni keeps what plugins have answered; cnitool, go-cni and podman have no setting for
/// it.
const STATE: &str = "/var/lib/cni/results";
/// Makes a mount namespace with a directory of the lab's in the place of /var/lib, and says by
/// which process it is entered, which ends by itself, whatever becomes of this.
const MAKE_APART: &str = r#"mkdir -p var-lib && touch var-lib/apart &&
    { unshare --mount --propagation slave sh -c 'mount --bind "$0" /var/lib && exec sleep 300' "$PWD/var-lib" >/dev/null 2>&1 & } &&
    timeout 10 sh -c 'until nsenter --target $0 --mount test -e /var/lib/apart; do sleep 0.05; done' $! && echo $!"#;

/// Lets a client of others be called by the command that it is given, so that the machine is as it
/// was before.
fn apart(stage: &mut Stage, client: fn(&mut Stage, &str) -> Result<()>) -> Result<()> {
    let state = || std::fs::metadata(STATE).and_then(|found| found.modified()).ok();
    let before = state();
    let holder = stage.shell(MAKE_APART)?.trim().to_owned();
    let outcome = client(stage, &format!("nsenter --target {holder} --mount --wd=."));
    let ended = stage.shell(&format!("kill {holder}"));
    outcome?;
    ended?;
    ensure!(state() == before, "{STATE} of this machine was written to");
    Ok(())
}

/// What containerd and CRI-O call plugins with, by the configuration that the daemon has installed.
fn cnitool(stage: &mut Stage, apart: &str) -> Result<()> {
    stage.lab.start_proxies(&Value::Null)?;
    stage.reaches_other_node()?;
    let cnitool = stage.tools.cnitool.display().to_string();
    let netns = stage.lab.extra_namespace("made")?;
    let call = |verb: &str| {
        format!(
            "cd cni; ls conf/10-sluice.conflist >/dev/null && \
             CNI_PATH=$PWD/bin NETCONFPATH=$PWD/conf CNI_IFNAME=eth0 {apart} {cnitool} {verb} sluice /run/netns/{netns}"
        )
    };
    // The configuration comes last, when pods can start.
    stage.eventually(WITHIN, |stage| {
        let there = stage.shell("test -e cni/conf/10-sluice.conflist").is_ok();
        Ok(met(there, "the daemon has installed the configuration", || "there is none".to_owned()))
    })?;
    stage.shell(&call("status"))?;
    let result: Value = serde_json::from_str(&stage.shell(&call("add"))?)?;
    // Of the versions that are offered, the newest that both know.
    ensure!(result["cniVersion"] == "1.1.0", "{result}");
    let ips = result["ips"].as_array().map_or(0, Vec::len);
    ensure!(ips == 2, "{result}");
    stage.shell(&call("check"))?;
    stage.step("the pod has its addresses, and reaches another node")?;
    let address = result["ips"][0]["address"].as_str().unwrap_or_default().trim_end_matches("/32").to_owned();
    let made = stage.shell(&format!("ip -n {netns} -4 -o address show dev eth0"))?;
    ensure!(made.contains(&address), "{made}");
    stage.shell(&format!("ip netns exec {netns} timeout 5 bash -c 'exec 3<>/dev/tcp/10.244.2.11/8080'"))?;
    stage.step("garbage collection works; after deletions nothing is left")?;
    stage.shell(&call("gc"))?;
    stage.shell(&call("del"))?;
    stage.shell(&call("del"))?;
    let left = stage.shell(&format!("ip -n {netns} -o link show"))?;
    ensure!(!left.contains("eth0"), "{left}");
    let leases: Value = serde_json::from_str(&stage.shell("cat cni/data/sluice/leases.json")?)?;
    let held = leases["leases"].as_array().map_or(usize::MAX, Vec::len);
    // The lab's own pods of this node, with two addresses each.
    ensure!(held == 4, "{leases}");
    Ok(())
}

/// What containerd, nerdctl and Nomad call plugins with: with their spelling of port mappings, or
/// null for none, and with `loopback`, which the daemon brings.
fn gocni(stage: &mut Stage, apart: &str) -> Result<()> {
    stage.lab.start_proxies(&Value::Null)?;
    stage.reaches_other_node()?;
    let gocni = stage.tools.gocni.display().to_string();
    let netns = stage.lab.extra_namespace("made")?;
    let call = |verb: &str, ports: &str| {
        format!("{apart} {gocni} -conf cni/conf -bin cni/bin {verb} c1 /run/netns/{netns} '{ports}'")
    };
    let ports = r#"[{"HostPort":8099,"ContainerPort":8080,"Protocol":"tcp","HostIP":""}]"#;
    stage.eventually(WITHIN, |stage| {
        let there = stage.shell("test -e cni/conf/10-sluice.conflist").is_ok();
        Ok(met(there, "the daemon has installed the configuration", || "there is none".to_owned()))
    })?;
    stage.shell(&call("status", ports))?;
    let result: Value = serde_json::from_str(&stage.shell(&call("add", ports))?)?;
    let addresses = |link: &str| result["Interfaces"][link]["IPConfigs"].as_array().map_or(0, Vec::len);
    ensure!((addresses("eth0"), addresses("lo")) == (2, 2), "{result}");
    stage.shell(&call("check", ports))?;
    stage.step("its host port leads to it")?;
    // It ends by itself, whatever becomes of this.
    stage.shell(&format!(
        "ip netns exec {netns} timeout 25 python3 -m http.server 8080 --bind :: >/dev/null 2>&1 &"
    ))?;
    stage.reaches_http("http://192.168.77.11:8099/")?;
    stage.step("the pod is removed twice; a pod without ports is added and removed")?;
    stage.shell(&call("del", ports))?;
    stage.shell(&call("del", ports))?;
    stage.fails("client", "tcp://192.168.77.11:8099", Fails::Any)?;
    stage.shell(&call("add", "null"))?;
    stage.shell(&call("del", "null"))?;
    let left = stage.shell(&format!("ip -n {netns} -o link show"))?;
    ensure!(!left.contains("eth0"), "{left}");
    Ok(())
}

/// A container runtime of others runs containers with the configuration that the daemon has
/// installed.
fn podman(stage: &mut Stage, apart: &str) -> Result<()> {
    // The machine's own programs, in an empty root.
    const RUN: &str = "run --network sluice --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 -v /usr:/usr:ro -v /lib:/lib:ro \
                       -v /lib64:/lib64:ro -v /bin:/bin:ro";
    stage.lab.start_proxies(&Value::Null)?;
    stage.reaches_other_node()?;
    let dir = stage.shell("mkdir -p podman/rootfs/tmp; pwd")?.trim().to_owned();
    let config = format!(
        "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{dir}/cni/bin\", \"/usr/lib/cni\"]\n\
         network_config_dir = \"{dir}/cni/conf\"\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n\
         runtime = \"runc\"\n"
    );
    stage.shell(&format!("cat >podman/containers.conf <<'E'\n{config}E"))?;
    let podman = |arguments: &str| {
        format!(
            "CONTAINERS_CONF={dir}/podman/containers.conf {apart} podman --root {dir}/podman/root --runroot {dir}/podman/run \
             --storage-driver vfs {arguments}"
        )
    };
    // It ends by itself, whatever becomes of this.
    let server =
        format!("--rootfs {dir}/podman/rootfs /usr/bin/timeout 25 /usr/bin/python3 -m http.server 8080");
    let client = format!("--rootfs {dir}/podman/rootfs /usr/bin/timeout 5 /bin/bash -c");
    stage.shell(&podman(&format!("{RUN} -d --name web -p 8099:8080 {server}")))?;
    let outcome = stage
        .reaches_http("http://192.168.77.11:8099/")
        .and_then(|()| {
            stage.shell(&podman(&format!("{RUN} --rm {client} 'exec 3<>/dev/tcp/10.244.2.11/8080'")))
        })
        .map(drop);
    let removed = stage.shell(&podman("rm --force --time 0 web"));
    outcome?;
    removed?;
    stage.step("no state of the containers is left")?;
    let ports = stage.shell("grep -c hostPort cni/data/sluice/leases.json || true")?;
    ensure!(ports.trim() == "0", "host ports are left: {ports}");
    stage.fails("client", "tcp://192.168.77.11:8099", Fails::Any)
}
