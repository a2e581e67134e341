//! Two nodes with pods, and a client outside, each a VM with a kernel of its own; a switch between
//! them writes down every frame.

use std::path::{Path, PathBuf};
use std::process::Command as HostCommand;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sluice_tests::agent::protocol::{
    Answer, HoldStatus, Outcome, ProbeRequest, Reply, ReplyLine, Request, RequestLine,
};
use sluice_tests::vm::switch::Switch;
use sluice_tests::vm::{Command, Kernel, Vm, VmOptions, modules};

const LIMIT: Duration = Duration::from_secs(60);
/// How long what must come to be may take. These machines are emulated.
const WITHIN: Duration = Duration::from_secs(60);
/// One cluster at a time: a machine has few cores.
static TURN: Mutex<()> = Mutex::new(());

/// Addresses on the switch.
pub(crate) const NODES: [&str; 2] = ["192.168.78.11", "192.168.78.12"];
pub(crate) const CLIENT: &str = "192.168.78.50";
/// Pods: their name, node and address.
const PODS: [(&str, usize, &str); 3] =
    [("user", 0, "10.244.1.20"), ("web-a", 0, "10.244.1.11"), ("web-b", 1, "10.244.2.11")];
/// The port of all servers.
const PORT: u16 = 8080;
/// That of a node which leads to its pod by SCTP.
pub(crate) const HOST_PORT: u16 = 8132;

/// Who wires pods and joins nodes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wiring {
    /// This test, with routes.
    ByHand,
    /// Sluice's CNI plugin, and sluice with VXLAN.
    Sluice,
}

/// A running cluster. Dropping it ends its VMs.
pub(crate) struct Cluster {
    vms: Vec<Vm>,
    switch: Option<Switch>,
    directory: PathBuf,
    sluice: PathBuf,
    mode: &'static str,
    wiring: Wiring,
    requests: u64,
    _turn: MutexGuard<'static, ()>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.vms.clear();
        self.switch = None;
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

impl Cluster {
    /// Boots it; `None` where nobody says with which kernel and program.
    pub(crate) fn start(mode: &'static str, wiring: Wiring) -> Option<Self> {
        let variable = |name| std::env::var_os(name).map(PathBuf::from);
        let (Some(kernel), Some(sluice)) = (variable("SLUICE_VM_KERNEL"), variable("SLUICE_BINARY")) else {
            sluice_skips::skip(
                "vm-nodes",
                "SLUICE_VM_KERNEL and SLUICE_BINARY name no kernel and daemon for them",
            );
            return None;
        };
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = Kernel::open(&kernel).unwrap();
        let directory = std::env::temp_dir().join(format!("sluice-lab-{}-nodes", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let switch = Switch::start(3, Some(&directory.join("wire.pcap"))).unwrap();
        let keep: Vec<PathBuf> =
            [&sluice, &agent()].iter().filter_map(|file| file.parent().map(Path::to_owned)).collect();
        let machine = |(name, port): (&str, &_)| VmOptions {
            name: name.to_owned(),
            memory: 768,
            cpus: 1,
            keep: keep.clone(),
            ports: vec![Clone::clone(port)],
            ..VmOptions::default()
        };
        let options: Vec<VmOptions> =
            ["node-a", "node-b", "client"].into_iter().zip(switch.ports()).map(machine).collect();
        let vms = Vm::start_all(&kernel, &options).unwrap();
        let mut cluster =
            Self { vms, switch: Some(switch), directory, sluice, mode, wiring, requests: 0, _turn: turn };
        cluster.connect();
        Some(cluster)
    }

    fn connect(&mut self) {
        for (number, address) in NODES.into_iter().chain([CLIENT]).enumerate() {
            self.shell(
                number,
                &format!("ip address add {address}/24 dev eth0; ip link set eth0 up; ip link set lo up"),
            );
        }
        for (node, other) in [(0, 1), (1, 0)] {
            let mut wanted = [modules::OF_A_NODE.as_slice(), &modules::OF_NFTABLES].concat();
            match self.mode {
                "ebpf" => wanted.extend(modules::OF_EBPF),
                "ipvs" => wanted.extend(modules::OF_IPVS),
                _ => {}
            }
            self.vms[node].load(&wanted).unwrap();
            match self.wiring {
                Wiring::ByHand => drop(self.shell(
                    node,
                    &format!(
                        "echo 1 >/proc/sys/net/ipv4/ip_forward; ip route add 10.244.{}.0/24 via {}",
                        other + 1,
                        NODES[other]
                    ),
                )),
                Wiring::Sluice => self.vms[node].load(&modules::OF_POD_NETWORK).unwrap(),
            }
        }
        for (name, node, address) in PODS {
            match self.wiring {
                Wiring::ByHand => self.wire_by_hand(name, node, address),
                Wiring::Sluice => self.call_plugin(name, node, address),
            }
            self.start_agent(node, name, &format!("ip netns exec {name}"));
            for protocol in ["tcp", "udp", "sctp"] {
                let listen = format!("{protocol}/{PORT}").parse().unwrap();
                let reply = self.ask(name, Request::Listen { listen, name: name.to_owned() });
                assert!(matches!(reply, Reply::Done), "{reply:?}");
            }
        }
        self.vms[2].load(&["sctp"]).unwrap();
        self.start_agent(2, "client", "");
    }

    fn wire_by_hand(&mut self, name: &str, node: usize, address: &str) {
        let gateway = format!("10.244.{}.1", node + 1);
        self.shell(
            node,
            &format!(
                "ip netns add {name} && ip link add v-{name} type veth peer name eth0 netns {name} && \
                 ip address add {gateway}/32 dev v-{name} && ip link set v-{name} up && \
                 ip -n {name} address add {address}/32 dev eth0 && ip -n {name} link set lo up && \
                 ip -n {name} link set eth0 up && ip -n {name} route add {gateway} dev eth0 && \
                 ip -n {name} route add default via {gateway} && ip route add {address}/32 dev v-{name}"
            ),
        );
    }

    /// As a container runtime does, with a port of the node for who has something to offer.
    /// Addresses are fixed, so it need not wait for the daemon.
    fn call_plugin(&mut self, name: &str, node: usize, address: &str) {
        let ports = if name == "user" {
            String::new()
        } else {
            format!(r#"{{"hostPort": {HOST_PORT}, "containerPort": {PORT}, "protocol": "sctp"}}"#)
        };
        let plugin = self.sluice.with_file_name("sluice-cni");
        let config = format!(
            r#"{{"cniVersion": "1.1.0", "name": "sluice", "type": "sluice-cni", "mtu": 1450,
                "ipam": {{"ranges": [[{{"subnet": "10.244.{}.0/24"}}]]}}, "runtimeConfig": {{"ips": ["{address}"], "portMappings": [{ports}]}}}}"#,
            node + 1
        );
        self.shell(
            node,
            &format!(
                "ip netns add {name}; CNI_COMMAND=ADD CNI_CONTAINERID={name} CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin \
                 CNI_NETNS=/run/netns/{name} {} <<'E'\n{config}\nE",
                plugin.display()
            ),
        );
    }

    fn start_agent(&mut self, vm: usize, name: &str, prefix: &str) {
        let line = format!(
            "mkfifo /tmp/{name}.in; exec 9<>/tmp/{name}.in; exec {prefix} {} agent </tmp/{name}.in >/tmp/{name}.out",
            agent().display()
        );
        self.vms[vm].spawn(&Command::shell(&line)).unwrap();
        self.shell(vm, &format!("until [ -p /tmp/{name}.in ]; do sleep 0.1; done"));
    }

    /// What a shell on a machine writes; it must succeed.
    pub(crate) fn shell(&mut self, vm: usize, line: &str) -> String {
        self.vms[vm].run_ok(&Command::shell(line), LIMIT).unwrap()
    }

    fn ask(&mut self, whom: &str, request: Request) -> Reply {
        self.requests += 1;
        let id = self.requests;
        let vm = PODS.iter().find(|(name, ..)| *name == whom).map_or(2, |(_, node, _)| *node);
        let line = serde_json::to_string(&RequestLine { id, request }).unwrap();
        let answer = self.shell(
            vm,
            &format!(
                "echo '{line}' >/tmp/{whom}.in; until grep -s '^{{\"id\":{id},' /tmp/{whom}.out; do sleep 0.1; done"
            ),
        );
        serde_json::from_str::<ReplyLine>(&answer).unwrap().reply
    }

    /// Writes the objects, and starts the proxy on both nodes.
    pub(crate) fn start_proxies(&mut self, manifests: &str, config: &str) {
        let config = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {}\n\
             clusterCIDR: 10.244.0.0/16\n{config}",
            self.mode
        );
        self.write(manifests);
        for node in 0..2 {
            self.shell(node, &format!("cat >/tmp/config.yaml <<'E'\n{config}\nE"));
            self.start_proxy(node);
        }
    }

    /// Writes the objects.
    pub(crate) fn write(&mut self, manifests: &str) {
        for node in 0..2 {
            self.shell(
                node,
                &format!(
                    "mkdir -p /tmp/m; cat >/tmp/m/.new <<'E'\n{manifests}\nE\nmv /tmp/m/.new /tmp/m/all.yaml"
                ),
            );
        }
    }

    /// Starts the proxy of a node, and waits until it is healthy.
    pub(crate) fn start_proxy(&mut self, node: usize) {
        let name = ["node-a", "node-b"][node];
        let line = format!(
            "exec {} run --config /tmp/config.yaml --manifests /tmp/m --hostname-override {name} >>/tmp/sluice.log 2>&1",
            self.sluice.display()
        );
        self.vms[node].spawn(&Command::shell(&line)).unwrap();
        // Nothing but what every machine has: HTTP by the shell.
        let ask = "exec 3<>/dev/tcp/127.0.0.1/10256; printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3; head -1 <&3 | grep -q ' 200 '";
        let wait = format!(
            "for i in $(seq 300); do bash -c \"{ask}\" 2>/dev/null && exit 0; sleep 0.2; done; cat /tmp/sluice.log >&2; exit 1"
        );
        self.shell(node, &wait);
    }

    /// Kills the proxy of a node, as `kill -9` does.
    pub(crate) fn kill_proxy(&mut self, node: usize) {
        self.shell(node, "pkill -9 -x sluice; while pgrep -x sluice; do sleep 0.1; done");
    }

    /// Opens connections one after the other; all must be answered.
    pub(crate) fn probe(&mut self, from: &str, to: &str, count: usize) -> Vec<Answer> {
        let request = ProbeRequest {
            dests: vec![to.parse().unwrap()],
            count,
            interval_ms: 0,
            parallel: false,
            stop_at_failure: false,
        };
        let Reply::Probe { attempts } = self.ask(from, Request::Probe(request)) else { panic!("no probe") };
        let answers = attempts.into_iter().map(|attempt| match attempt.outcome {
            Outcome::Answer(answer) => answer,
            other => panic!("from {from} to {to}: {other:?}"),
        });
        answers.collect()
    }

    /// Begins to send datagrams from one socket.
    pub(crate) fn send_datagrams(&mut self, from: &str, to: &str) {
        let target = to.parse().unwrap();
        let reply = self.ask(from, Request::Hold { id: to.to_owned(), target, connected: false });
        assert!(matches!(reply, Reply::Done), "{reply:?}");
    }

    /// Waits until a pod answers the datagrams.
    pub(crate) fn datagrams_reach(&mut self, from: &str, to: &str, pod: &str) -> HoldStatus {
        let end = Instant::now() + WITHIN;
        loop {
            let Reply::Held(status) = self.ask(from, Request::Held { id: to.to_owned() }) else {
                panic!("nothing is held")
            };
            if status.endpoint.as_deref() == Some(pod) && status.since_answer_ms.is_some_and(|age| age < 1000)
            {
                return status;
            }
            assert!(Instant::now() < end, "not answered by {pod}: {status:?}");
        }
    }

    /// Entries of a node's conntrack, one a line.
    pub(crate) fn conntrack(&mut self, node: usize, filter: &str) -> Vec<String> {
        let listed = self.shell(node, &format!("conntrack -L {filter} 2>/dev/null || true"));
        listed.lines().map(str::to_owned).collect()
    }

    /// What tcpdump makes of the wire so far; a filter as in pcap-filter(7).
    pub(crate) fn wire(&self, filter: &str) -> Vec<String> {
        let mut command = HostCommand::new("tcpdump");
        command.arg("-nr").arg(self.directory.join("wire.pcap")).arg(filter);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

/// The program that is server and client in pods.
fn agent() -> PathBuf {
    env!("CARGO_BIN_EXE_sluice-conformance").into()
}
