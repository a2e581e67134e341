//! Pod to pod over VXLAN between two VMs: sluice's plumbing beside the same plumbing made by hand
//! with `ip`.
//!
//! By hand is what flannel makes: a bridge on each node, a VXLAN device, a route, a neighbour and a
//! forwarding entry for the other node.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use sluice_tests::vm::switch::Switch;
use sluice_tests::vm::{Command, Vm, VmOptions, modules};
use sluice_tests::{interrupt, lab::prune};

use super::peers::{Spread, spread};
use crate::machine;
use crate::vm::kernels::{self, Series};

/// Arguments of `bench pod-network`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Turns of each network, alternately
    #[arg(long, default_value_t = 9)]
    turns: usize,
    /// Duration of each turn, in seconds
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Kernel of the VMs
    #[arg(long, default_value_t)]
    kernel: Series,
}

const NODES: [&str; 2] = ["192.168.78.11", "192.168.78.12"];
const LIMIT: Duration = Duration::from_secs(120);

/// Measures and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    machine::prepare()?;
    machine::install(&[("iperf3", "iperf3")])?;
    let programs = machine::build()?;
    interrupt::install()?;
    prune::stale();
    let kernel = kernels::get(arguments.kernel, false)?;
    let switch = Switch::start(2, None)?;
    let keep: Vec<PathBuf> = programs.sluice.parent().map(PathBuf::from).into_iter().collect();
    let options: Vec<VmOptions> = ["node-a", "node-b"]
        .into_iter()
        .zip(switch.ports())
        .map(|(name, port)| VmOptions {
            name: name.to_owned(),
            memory: 768,
            cpus: 1,
            keep: keep.clone(),
            ports: vec![port.clone()],
            ..VmOptions::default()
        })
        .collect();
    let mut vms = Vm::start_all(&kernel, &options)?;
    println!(
        "two VMs: Linux {}, one processor each, emulated; {} turns of {} s",
        kernel.release, arguments.turns, arguments.seconds
    );
    for (vm, address) in vms.iter_mut().zip(NODES) {
        vm.load(&[modules::OF_A_NODE.as_slice(), &modules::OF_NFTABLES, &modules::OF_POD_NETWORK].concat())?;
        shell(
            vm,
            &format!(
                "ip address add {address}/24 dev eth0; ip link set eth0 up; ip link set lo up; \
                 echo 1 >/proc/sys/net/ipv4/ip_forward"
            ),
        )?;
    }
    by_hand(&mut vms)?;
    by_sluice(&mut vms, &programs)?;
    let mut samples = [Vec::new(), Vec::new()];
    for _ in 0..arguments.turns {
        for (series, (pod, address)) in
            samples.iter_mut().zip([("hand", "10.250.2.2"), ("pod", "10.244.2.9")])
        {
            series.push(turn(&mut vms, pod, address, arguments.seconds)?);
        }
    }
    print(&samples)
}

fn shell(vm: &mut Vm, line: &str) -> Result<String> {
    vm.run_ok(&Command::shell(line), LIMIT)
}

/// Another VNI and port than sluice's.
fn by_hand(vms: &mut [Vm]) -> Result<()> {
    let mut macs = Vec::new();
    for (number, vm) in vms.iter_mut().enumerate() {
        let (own, local) = (number + 1, NODES[number]);
        shell(
            vm,
            &format!(
                "ip link add hand0 type vxlan id 42 dstport 8472 local {local} dev eth0 nolearning && ip link set hand0 mtu 1450 up && \
             ip address add 10.250.{own}.0/32 dev hand0 && ip link add cni0 type bridge && ip address add 10.250.{own}.1/24 dev cni0 && \
             ip link set cni0 mtu 1450 up && ip netns add hand && ip link add v-hand mtu 1450 type veth peer name eth0 mtu 1450 netns hand && \
             ip link set v-hand master cni0 up && ip -n hand address add 10.250.{own}.2/24 dev eth0 && ip -n hand link set eth0 up && \
             ip -n hand link set lo up && ip -n hand route add default via 10.250.{own}.1"
            ),
        )?;
        macs.push(shell(vm, "cat /sys/class/net/hand0/address")?.trim().to_owned());
    }
    for (number, vm) in vms.iter_mut().enumerate() {
        let other = 1 - number;
        let (mac, node, cidr) = (&macs[other], NODES[other], other + 1);
        shell(
            vm,
            &format!(
                "ip neighbour add 10.250.{cidr}.0 lladdr {mac} dev hand0 nud permanent && bridge fdb append {mac} dev hand0 dst {node} && \
             ip route add 10.250.{cidr}.0/24 via 10.250.{cidr}.0 dev hand0 onlink"
            ),
        )?;
    }
    Ok(())
}

fn by_sluice(vms: &mut [Vm], programs: &machine::Programs) -> Result<()> {
    let node = |name: &str, address: &str, cidr: usize| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDRs: [10.244.{cidr}.0/24]}}\n\
             status: {{addresses: [{{type: InternalIP, address: {address}}}]}}\n---\n"
        )
    };
    let nodes = node("node-a", NODES[0], 1) + &node("node-b", NODES[1], 2);
    for (number, vm) in vms.iter_mut().enumerate() {
        let name = ["node-a", "node-b"][number];
        shell(vm, &format!("mkdir -p /tmp/m; cat >/tmp/m/nodes.yaml <<'E'\n{nodes}\nE"))?;
        let sluice = programs.sluice.display();
        vm.spawn(&Command::shell(&format!(
            "exec {sluice} run --cni --manifests /tmp/m --hostname-override {name} --cluster-cidr 10.244.0.0/16 >/tmp/sluice.log 2>&1"
        )))?;
        // As a container runtime does, with what the daemon has installed.
        let config = r#"{"cniVersion": "1.0.0", "name": "sluice", "type": "sluice-cni", "runtimeConfig": {"ips": ["IP"]}}"#;
        let config = config.replace("IP", &format!("10.244.{}.9", number + 1));
        shell(
            vm,
            &format!(
                "for i in $(seq 300); do [ -e /etc/cni/net.d/10-sluice.conflist ] && break; sleep 0.1; done; ip netns add pod; \
             CNI_COMMAND=ADD CNI_CONTAINERID=pod CNI_IFNAME=eth0 CNI_NETNS=/run/netns/pod CNI_PATH=/opt/cni/bin \
             /opt/cni/bin/sluice-cni <<'E' || {{ cat /tmp/sluice.log; exit 1; }}\n{config}\nE"
            ),
        )?;
    }
    Ok(())
}

/// Bits a second from a pod of the first node to one of the second, as the receiver counts them.
fn turn(vms: &mut [Vm], pod: &str, address: &str, seconds: u64) -> Result<f64> {
    let [sender, receiver] = vms else { anyhow::bail!("two VMs are needed") };
    shell(receiver, &format!("ip netns exec {pod} iperf3 -s -1 -D --pidfile /tmp/iperf3.{pod}; sleep 1"))?;
    let report = shell(sender, &format!("ip netns exec {pod} iperf3 -c {address} -t {seconds} -J"))?;
    let report: Value = serde_json::from_str(&report)?;
    report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .with_context(|| format!("no throughput in {report}"))
}

fn print(samples: &[Vec<f64>; 2]) -> Result<()> {
    let spreads: Vec<Spread> = samples.iter().filter_map(|series| spread(series)).collect();
    let [hand, sluice] = spreads.as_slice() else { anyhow::bail!("no turn was measured") };
    println!("{:<10} {:>12} {:>12} {:>12}   Mbit/s, TCP, one connection", "plumbing", "median", "min", "max");
    for (name, of) in [("by hand", hand), ("sluice", sluice)] {
        println!("{name:<10} {:>12.1} {:>12.1} {:>12.1}", of.median / 1e6, of.min / 1e6, of.max / 1e6);
    }
    println!("sluice / by hand, of medians: {:.3}", sluice.median / hand.median);
    Ok(())
}
