//! Neighbours, on the wire and on the node, that would be somebody else; and addresses that nobody has.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::agent::protocol::{Outcome, ProbeRequest};
use crate::capture::Capture;
use crate::scenarios::stage::Stage;
use crate::target::From;

/// Who sends, to whom, and what, in hexadecimal digits.
const SEND: &str = "import socket, sys
source, to, port, data = sys.argv[1:]
sender = socket.socket(socket.AF_INET6 if ':' in to else socket.AF_INET, socket.SOCK_DGRAM)
sender.bind((source, 0))
sender.sendto(bytes.fromhex(data), (to, int(port)))";

/// A frame of 10.244.2.7 to the pod 10.244.1.10, behind a VXLAN header with VNI 1 (RFC 7348, section 5).
const WRAPPED: &str = "0800000000000100\
    020000000001020000000002\
    0800450000211000000040110000\
    0af40207\
    0af4010a\
    0009270f000d000068656c6c6f";

impl Stage {
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
    stage.step("whoever is no node sends VXLAN to the node")?;
    let before = stage.dropped("tunnel_source")?;
    stage.send("client", "192.168.77.100", "192.168.77.11", 4789, WRAPPED)?;
    stage.one_more_is_dropped(before, "tunnel_source")?;
    stage.step("a pod sends it to its own node")?;
    stage.send("pod/user", "10.244.1.10", "192.168.77.11", 4789, WRAPPED)?;
    stage.one_more_is_dropped(before + 1, "tunnel_source")?;
    stage.step("a pod sends it to another node")?;
    let before = stage.dropped("tunnel_forwarded")?;
    stage.send("pod/user", "10.244.1.10", "192.168.77.12", 4789, WRAPPED)?;
    stage.one_more_is_dropped(before, "tunnel_forwarded")?;
    stage.step("a pod sends with the address of a pod of the other node")?;
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
    stage.step("honest pods are reached, and nothing of theirs was dropped")?;
    stage.reaches_other_node()?;
    ensure!(stage.dropped("pod_source")? == before + 2, "an honest packet was dropped");
    ensure!(stage.dropped("pod_claim")? == 0, "a claim was dropped that nobody made");
    nobody_has_them(stage)?;
    stage.step("the node's links take no redirects and no source routes of pods")?;
    let settings = stage.shell(
        "cd /proc/sys/net/ipv4/conf; for link in sl????????????; do cat $link/accept_redirects $link/send_redirects \
         $link/secure_redirects $link/accept_source_route; done | sort -u",
    )?;
    ensure!(settings.trim() == "0", "{settings}");
    Ok(())
}

/// Who asks for an address that no pod has is told at once, and no packet of it leaves the node.
fn nobody_has_them(stage: &mut Stage) -> Result<()> {
    for to in ["tcp://10.244.1.200:8080", "tcp://[fd00:10:244:1::200]:8080"] {
        stage.step(&format!("{to} is no pod"))?;
        let (request, node) = (ProbeRequest::one(to)?, From::Host(super::NODE.to_owned()));
        // In the node's own directory, which goes with the lab.
        let file = stage.shell("printf %s $PWD/nobody.pcap")?.into();
        let capture = Capture::start(&stage.lab.namespace(&node), "eth0", "tcp port 8080", file)?;
        let begun = Instant::now();
        let attempts = stage.lab.probe(&From::Pod("user".to_owned()), request, None)?;
        let took = begun.elapsed();
        let left = capture.finish()?;
        ensure!(left.count == 0, "it left by the uplink: {}", left.brief);
        match attempts.first().map(|attempt| &attempt.outcome) {
            Some(Outcome::Error(_)) => {}
            other => bail!("{to}: no error at once but {other:?}, after {took:?}"),
        }
    }
    Ok(())
}
