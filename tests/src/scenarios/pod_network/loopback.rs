//! Ports of the node on its loopback addresses: for its own processes, and for nobody else.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::NODE;
use crate::case::Fails;
use crate::proxy::ProxyProgram;
use crate::scenarios::stage::{Stage, WITHIN, met};
use crate::target::From;

/// Asks with a source address of its own, and prints the answer.
const ASK: &str = "import socket, sys
host, port, source = sys.argv[1:]
connection = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET)
connection.settimeout(3)
connection.bind((source, 0))
connection.connect((host, int(port)))
connection.sendall(b'probe\\n')
print(connection.recv(1000).decode())";

/// Listens on loopback only, and prints all that comes until the end.
const LISTEN: &str = "import socket
listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listener.bind(('127.0.0.1', 9999))
listener.settimeout(20)
open('listening', 'w').close()
seen = []
while 'end' not in seen:
    seen.append(listener.recv(100).decode())
print(*sorted(set(seen)))";

/// Sends a word to what listens there.
const SEND: &str = "import socket, sys
word, source = sys.argv[1:]
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.bind((source, 0))
[sender.sendto(word.encode(), ('127.0.0.1', 9999)) for _ in range(3)]";

/// Wires a pod with ports of the node, of which some cannot be served.
fn wire(stage: &Stage) -> Result<()> {
    // Spelled as containerd does.
    let on = |port: u32, protocol: &str, host: &str| json!({"HostPort": port, "ContainerPort": 8080, "Protocol": protocol, "HostIP": host});
    let ports = json!([
        on(8081, "tcp", ""),
        on(8082, "tcp", "127.0.0.1"),
        on(8083, "tcp", "::1"),
        on(5353, "udp", "127.0.0.1"),
        on(8084, "icmp", ""),
        on(70_000, "tcp", ""),
    ]);
    stage.lab.rewire("a1", &json!({"portMappings": ports}))
}

/// As portmap serves: from 127.0.0.1 itself; and as the conformance test of host ports asks: from
/// an address of the node.
fn answer_the_node(stage: &mut Stage) -> Result<()> {
    let node = format!("host/{NODE}");
    for to in ["tcp://127.0.0.1:8081", "tcp://127.0.0.1:8082", "tcp://127.1.2.3:8081", "udp://127.0.0.1:5353"]
    {
        stage.reaches(&node, to, &["a1"])?;
    }
    for (host, port, source) in [
        ("127.0.0.1", 8081, "192.168.77.11"),
        ("127.0.0.1", 8082, "192.168.77.11"),
        ("::1", 8081, "fd00:77::11"),
        ("::1", 8083, "fd00:77::11"),
    ] {
        let answer = stage.shell(&format!("python3 -c \"{ASK}\" {host} {port} {source}"))?;
        ensure!(answer.contains("a1"), "{host}:{port} from {source}: {answer}");
    }
    Ok(())
}

/// The same when eBPF drives the services.
pub(super) fn answers_beside_ebpf(stage: &mut Stage) -> Result<()> {
    let ebpf = ProxyProgram::sluice(&stage.sluice.sluice, "ebpf")?;
    stage.lab.start_program(NODE, &ebpf, &Value::Null)?;
    wire(stage)?;
    answer_the_node(stage)?;
    is_seen_by(stage, "end")?;
    stage.lab.kill_program(NODE, &ebpf)
}

/// Nobody but the node itself, which can be told because without the rules somebody else would.
pub(super) fn answers(stage: &mut Stage) -> Result<()> {
    stage.lab.start_proxies(&Value::Null)?;
    stage.reaches_other_node()?;
    wire(stage)?;
    answer_the_node(stage)?;
    let node = format!("host/{NODE}");
    stage.step("from ::1 itself, the kernel has no route, and connections are refused at once")?;
    stage.fails(&node, "tcp://[::1]:8083", Fails::Refused)?;
    stage.fails("client", "tcp://192.168.77.11:8082", Fails::Any)?;
    stage.step("host ports that cannot be served are reported")?;
    for why in [
        "hostIP ::1 answers only processes of the node",
        "\"icmp\" is not a protocol",
        "hostPort 70000 is not a port",
    ] {
        is_told(stage, why)?;
    }
    stage.step(
        "neither a neighbour nor a pod reaches a listener on loopback, even if the kernel would allow it",
    )?;
    // The kernel itself keeps neighbours out otherwise, and the rules would not be seen to.
    set_localnet_of_uplink(stage, 1)?;
    is_seen_by(stage, "end")?;
    stage.step("without the rules, both reach it")?;
    stage.lab.kill_proxy(NODE)?;
    stage.shell("nft flush chain inet sluice-pods loopback-guard")?;
    is_seen_by(stage, "client end pod")?;
    set_localnet_of_uplink(stage, 0)?;
    is_seen_by(stage, "end pod")?;
    stage.step("after cleanup, neither reaches it")?;
    stage.shell("sluice cleanup")?;
    is_seen_by(stage, "end")
}

/// Lets packets for 127.0.0.0/8 in and out by the interface that has the node's address, or not.
fn set_localnet_of_uplink(stage: &Stage, value: u8) -> Result<()> {
    let line = format!(
        "uplink=$(ip -4 -o address show to 192.168.77.11 | sed 's/^[0-9]*: *\\([^ ]*\\) .*/\\1/;q')\n\
         echo {value} >/proc/sys/net/ipv4/conf/$uplink/route_localnet"
    );
    stage.shell(&line).map(drop)
}

/// Those reach the node's loopback, and nobody else.
fn is_seen_by(stage: &Stage, expected: &str) -> Result<()> {
    let seen = who_reaches_loopback(stage)?;
    ensure!(seen == expected, "{seen} reach the node's loopback instead of {expected}");
    Ok(())
}

fn is_told(stage: &mut Stage, why: &str) -> Result<()> {
    stage.eventually(WITHIN, |stage| {
        let events = stage.api().list("Event")?;
        let notes = events.iter().filter_map(|event| event["note"].as_str());
        let is_told = notes.clone().any(|note| note.contains("host port") && note.contains(why));
        Ok(met(is_told, why, || notes.collect::<Vec<_>>().join("; ")))
    })
}

/// A neighbour and a pod send to the node's loopback, by routes that they make themselves, and then
/// the node does ("end").
fn who_reaches_loopback(stage: &Stage) -> Result<String> {
    let mut line = format!(
        "rm -f listening; timeout 25 python3 -c \"{LISTEN}\" >seen & until test -e listening; do sleep 0.05; done\n"
    );
    for (word, place) in [("client", From::Client), ("pod", From::Pod("a1".to_owned()))] {
        let netns = stage.lab.namespace(&place).name().to_owned();
        line += &format!(
            "ip netns exec {netns} sh -c 'echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet'\n\
             ip -n {netns} route flush table local 127.0.0.0/8; ip -n {netns} route flush table local 127.0.0.1\n\
             via=$(ip -n {netns} -4 route show default | sed 's/.* via \\([^ ]*\\).*/\\1/')\n\
             ip -n {netns} route replace 127.0.0.1 via ${{via:-192.168.77.11}} dev eth0 onlink\n\
             own=$(ip -n {netns} -4 -o address show dev eth0 | sed 's#.* inet \\([^/ ]*\\).*#\\1#;q')\n\
             ip netns exec {netns} python3 -c \"{SEND}\" {word} $own\n"
        );
    }
    line += &format!("python3 -c \"{SEND}\" end 127.0.0.1; wait; cat seen");
    Ok(stage.shell(&line)?.trim().to_owned())
}
