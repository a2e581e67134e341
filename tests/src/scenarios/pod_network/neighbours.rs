//! Neighbours, on the wire and on the node, that would be somebody else; and addresses that nobody
//! has.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{NODE, WITHIN};
use crate::agent::protocol::{Outcome, ProbeRequest};
use crate::capture::Capture;
use crate::needs;
use crate::proxy::ProxyProgram;
use crate::scenarios::stage::{Stage, met};
use crate::scenarios::traffic::{WEB, WEB_UDP};
use crate::target::From;

/// Who sends, to whom, and what, in hexadecimal digits.
const SEND: &str = "import socket, sys
source, to, port, data = sys.argv[1:]
sender = socket.socket(socket.AF_INET6 if ':' in to else socket.AF_INET, socket.SOCK_DGRAM)
sender.bind((source, 0))
sender.sendto(bytes.fromhex(data), (to, int(port)))";

/// A frame of 10.244.2.7 to the pod 10.244.1.10, behind a VXLAN header with VNI 1 (RFC 7348,
/// section 5).
const WRAPPED: &str = "0800000000000100\
    020000000001020000000002\
    0800450000211000000040110000\
    0af40207\
    0af4010a\
    0009270f000d000068656c6c6f";

/// The same by a raw socket, which takes any source and is no business of the programs at sockets.
const FORGE: &str = "import socket, struct, sys
source, source_port, to, port = sys.argv[1:]
six = ':' in to
family = socket.AF_INET6 if six else socket.AF_INET
ends = socket.inet_pton(family, source) + socket.inet_pton(family, to)
data = b'forged'
def udp(checksum):
    return struct.pack('!4H', int(source_port), int(port), 8 + len(data), checksum) + data
length = len(udp(0))
words = ends + struct.pack('!II', length, 17) + udp(0)
total = sum(struct.unpack('!%dH' % (len(words) // 2), words))
while total >> 16:
    total = (total & 0xffff) + (total >> 16)
if six:
    header = struct.pack('!IHBB', 6 << 28, length, 17, 64) + ends
else:
    header = struct.pack('!BBHHHBBH', 0x45, 0, 20 + length, 1, 0, 64, 17, 0) + ends
sender = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
if six:
    sender.setsockopt(socket.IPPROTO_IPV6, 36, 1)
sender.sendto(header + udp(total ^ 0xffff or 0xffff), (to, 0))";

/// What programs of mode ebpf say of it themselves.
const BY_PROGRAMS: &str = "sluice_ebpf_packets_total{verdict=\"drop_pod_source\"}";

/// Addresses of the Service; an address of nobody here; those of the pods `user` and `b1`.
const FAMILIES: [[&str; 4]; 2] = [
    ["10.96.0.10", "203.0.113.9", "10.244.1.10", "10.244.2.11"],
    ["fd00:10:96::a", "2001:db8::9", "fd00:10:244:1::10", "fd00:10:244:2::11"],
];

impl Stage {
    fn forge(&self, who: &str, source: (&str, u16), to: (&str, u16)) -> Result<()> {
        let [(source, source_port), (to, port)] = [source, to];
        self.shell_in(who, &format!("python3 -c \"{FORGE}\" {source} {source_port} {to} {port}")).map(drop)
    }

    /// What comes in at a pod with these words of tcpdump while something is done.
    fn captured(&self, pod: &str, filter: &str, act: impl FnOnce(&Self) -> Result<()>) -> Result<usize> {
        let file = self.shell("printf %s $PWD/forged.pcap")?.into();
        let namespace = self.lab.namespace(&From::Pod(pod.to_owned()));
        let capture = Capture::start(&namespace, "eth0", filter, file)?;
        act(self)?;
        Ok(capture.finish()?.count)
    }

    fn shell_in(&self, who: &str, line: &str) -> Result<String> {
        self.lab.shell(&who.parse().map_err(anyhow::Error::msg)?, line)
    }

    fn send(&self, who: &str, source: &str, to: &str, port: u16, data: &str) -> Result<()> {
        self.shell_in(who, &format!("python3 -c \"{SEND}\" {source} {to} {port} {data}")).map(drop)
    }

    /// How often packets were dropped for a reason.
    fn dropped(&self, reason: &str) -> Result<u32> {
        let name = format!("sluice_pod_network_dropped_packets_total{{reason=\"{reason}\"}}");
        let number = self.metric(&name)?;
        number.parse().with_context(|| format!("{name}: {number}"))
    }

    fn one_more_is_dropped(&mut self, before: u32, reason: &str) -> Result<()> {
        let name = format!("sluice_pod_network_dropped_packets_total{{reason=\"{reason}\"}}");
        self.metric_becomes(&name, &(before + 1).to_string())
    }
}

pub(super) fn cannot_be_others(stage: &mut Stage) -> Result<()> {
    stage.lab.start_proxies(&Value::Null)?;
    stage.reaches_other_node()?;
    stage.step("a host that is not a node sends VXLAN to the node")?;
    let before = stage.dropped("tunnel_source")?;
    stage.send("client", "192.168.77.100", "192.168.77.11", 4789, WRAPPED)?;
    stage.one_more_is_dropped(before, "tunnel_source")?;
    stage.step("a pod sends VXLAN to its own node")?;
    stage.send("pod/user", "10.244.1.10", "192.168.77.11", 4789, WRAPPED)?;
    stage.one_more_is_dropped(before + 1, "tunnel_source")?;
    stage.step("a pod sends VXLAN to another node")?;
    let before = stage.dropped("tunnel_forwarded")?;
    stage.send("pod/user", "10.244.1.10", "192.168.77.12", 4789, WRAPPED)?;
    stage.one_more_is_dropped(before, "tunnel_forwarded")?;
    stage.step("a pod sends from the address of a pod of the other node")?;
    let before = stage.dropped("pod_source")?;
    stage.shell_in(
        "pod/user",
        "ip address add 10.244.2.77/32 dev eth0; ip address add fd00:10:244:2::77/128 dev eth0 nodad",
    )?;
    stage.send("pod/user", "10.244.2.77", "192.168.77.12", 9, "00")?;
    stage.one_more_is_dropped(before, "pod_source")?;
    stage.send("pod/user", "fd00:10:244:2::77", "fd00:77::12", 9, "00")?;
    stage.one_more_is_dropped(before + 1, "pod_source")?;
    stage.shell_in(
        "pod/user",
        "ip address del 10.244.2.77/32 dev eth0; ip address del fd00:10:244:2::77/128 dev eth0",
    )?;
    stage.step("pods with their own addresses are reached, and none of their packets was dropped")?;
    stage.reaches_other_node()?;
    ensure!(stage.dropped("pod_source")? == before + 2, "a packet with a valid source was dropped");
    ensure!(stage.dropped("pod_claim")? == 0, "a claim was dropped that no pod made");
    nobody_has_them(stage)?;
    stage.step("the node's links accept no redirects and no source routes from pods")?;
    let settings = stage.shell(
        "cd /proc/sys/net/ipv4/conf; for link in sl????????????; do cat $link/accept_redirects $link/send_redirects \
         $link/secure_redirects $link/accept_source_route; done | sort -u",
    )?;
    ensure!(settings.trim() == "0", "{settings}");
    Ok(())
}

/// In mode ebpf programs see packets of pods before any rule does.
pub(super) fn cannot_be_others_beside_ebpf(stage: &mut Stage) -> Result<()> {
    let ebpf = ProxyProgram::sluice(&stage.sluice.sluice, "ebpf")?;
    stage.lab.start_program(NODE, &ebpf, &Value::Null)?;
    stage.lab.start_proxy("node-b", &Value::Null)?;
    stage.apply_web()?;
    stage.point_web_to(&["b1"])?;
    stage.reaches("pod/user", WEB_UDP, &["b1"])?;
    let has = needs::has_ipv6();
    for [service, nobody, user, endpoint] in
        FAMILIES.into_iter().filter(|[service, ..]| has || !service.contains(':'))
    {
        stage.step(&format!("a pod calls {service} from an address that no pod has"))?;
        stage.eventually(WITHIN, |stage| {
            let before = stage.metric(BY_PROGRAMS)?;
            stage.forge("pod/user", (nobody, 4001), (service, 53))?;
            let now = stage.metric(BY_PROGRAMS)?;
            Ok(met(before != now, "it is dropped", || now))
        })?;
        let before = (stage.metric(BY_PROGRAMS)?, stage.dropped("pod_source")?);
        let asked = |stage: &Stage, source, filter: &str| {
            stage.captured("b1", filter, |stage| stage.forge("pod/user", (source, 4001), (service, 53)))
        };
        let came = asked(stage, nobody, "udp dst port 8080")?;
        ensure!(came == 0, "{came} packets came to the endpoint");
        let after = stage.dropped("pod_source")?;
        ensure!(after > before.1 && before.0 != stage.metric(BY_PROGRAMS)?, "{after} after {}", before.1);
        stage.step(&format!("a pod calls {service} from its own address, and another pod answers first"))?;
        ensure!(asked(stage, user, "udp dst port 8080")? == 1, "the request did not arrive");
        let came = stage.captured("user", "udp dst port 4001", |stage| {
            stage.forge("pod/a1", (endpoint, 8080), (user, 4001))
        })?;
        ensure!(came == 0, "{came} answers came from a pod that is not {endpoint}");
        ensure!(stage.dropped("pod_source")? > after, "it was not counted");
    }
    stage.step("pods with their own addresses are served, and none of their packets was dropped")?;
    let before = stage.metric(BY_PROGRAMS)?;
    stage.point_web_to(&["a1", "b1"])?;
    for to in [WEB, WEB_UDP] {
        stage.reaches("pod/user", to, &["a1", "b1"])?;
        stage.reaches("pod/a1", to, &["a1", "b1"])?;
    }
    for [service, _, user, _] in FAMILIES.into_iter().filter(|[service, ..]| has || !service.contains(':')) {
        stage.forge("pod/user", (user, 4002), (service, 53))?;
    }
    ensure!(stage.metric(BY_PROGRAMS)? == before, "a packet with a valid source was dropped");
    stage.step("without checkSources, any source address can be used")?;
    stage.lab.kill_program(NODE, &ebpf)?;
    let unchecked = json!({"sluice": {"podNetwork": {"checkSources": false}}});
    stage.lab.start_program(NODE, &ebpf, &unchecked)?;
    // On this node: other nodes look at what comes out of the tunnel.
    stage.point_web_to(&["a1"])?;
    let [service, nobody, ..] = FAMILIES[0];
    stage.eventually(WITHIN, |stage| {
        let ask = |stage: &Stage| stage.forge("pod/user", (nobody, 4003), (service, 53));
        let came = stage.captured("a1", "udp dst port 8080", ask)?;
        Ok(met(came == 1, "it comes to the endpoint", || came.to_string()))
    })?;
    stage.lab.kill_program(NODE, &ebpf)
}

/// Who asks for an address that no pod has is told at once, and no packet of it leaves the node.
fn nobody_has_them(stage: &mut Stage) -> Result<()> {
    for to in ["tcp://10.244.1.200:8080", "tcp://[fd00:10:244:1::200]:8080"] {
        stage.step(&format!("{to} is not the address of a pod"))?;
        let (request, node) = (ProbeRequest::one(to)?, From::Host(NODE.to_owned()));
        // In the node's own directory, which goes with the lab.
        let file = stage.shell("printf %s $PWD/nobody.pcap")?.into();
        let capture = Capture::start(&stage.lab.namespace(&node), "eth0", "tcp port 8080", file)?;
        let begun = Instant::now();
        let attempts = stage.lab.probe(&From::Pod("user".to_owned()), request, None)?;
        let took = begun.elapsed();
        let left = capture.finish()?;
        ensure!(left.count == 0, "it left through the uplink: {}", left.brief);
        match attempts.first().map(|attempt| &attempt.outcome) {
            Some(Outcome::Error(_)) => {}
            other => bail!("{to}: no error at once but {other:?}, after {took:?}"),
        }
    }
    Ok(())
}
