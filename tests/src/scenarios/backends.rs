//! The eBPF backend under load: killed, started again, and exchanged for the nftables backend and
//! back.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::Scenario;
use super::stage::{Stage, met};
use super::traffic::{WEB_UDP, place};
use crate::case::HeldStep;
use crate::interrupt;
use crate::proxy::ProxyProgram;

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "ebpf-restart-under-load", body: restart_under_load, ..TEMPLATE },
    Scenario { name: "switch-to-ebpf-and-back", body: switch_and_back, ..TEMPLATE },
];

const TEMPLATE: Scenario = Scenario { needs: &["nft"], ..Scenario::under_traffic(file!()) };

/// Connections in a second, from inside and from outside each.
const PER_SECOND: u64 = 400;
/// Connections that are opened while the proxy is killed again and again, at least.
const ATTEMPTS: u64 = 10_000;
const SYNC: Duration = Duration::from_secs(30);
const NODE: &str = "node-a";
/// A UDP socket that the socket path has connected.
const CONNECTED: &str = "udp-connected-by-ebpf";

fn backend(stage: &Stage, mode: &str) -> Result<ProxyProgram> {
    ProxyProgram::sluice(&stage.sluice.sluice, mode)
}

fn restart_under_load(stage: &mut Stage) -> Result<()> {
    let ebpf = backend(stage, "ebpf")?;
    stage.apply_web()?;
    stage.lab.start_program(NODE, &ebpf, &Value::Null)?;
    stage.begin_traffic(PER_SECOND)?;
    stage.step("killed for two seconds")?;
    stage.traffic_goes_on(Duration::from_secs(1))?;
    stage.lab.kill_program(NODE, &ebpf)?;
    stage.traffic_goes_on(Duration::from_secs(2))?;
    stage.lab.start_program(NODE, &ebpf, &Value::Null)?;
    stage.traffic_goes_on(Duration::from_secs(2))?;
    for wait in [10, 100, 300, 500, 700, 1000, 1500] {
        stage.step(&format!("killed {wait} ms after its start"))?;
        stage.lab.kill_program(NODE, &ebpf)?;
        stage.lab.start_program(NODE, &ebpf, &Value::Null)?;
        stage.traffic_goes_on(Duration::from_millis(wait))?;
    }
    stage.step("killed until enough connections were opened")?;
    while stage.connections_opened()? < ATTEMPTS {
        interrupt::sleep(Duration::ZERO)?;
        stage.lab.kill_program(NODE, &ebpf)?;
        stage.lab.start_program(NODE, &ebpf, &Value::Null)?;
        stage.traffic_goes_on(Duration::from_secs(1))?;
    }
    stage.catches_up(NODE, &ebpf)?;
    stage.end_traffic()
}

fn switch_and_back(stage: &mut Stage) -> Result<()> {
    let (nftables, ebpf) = (backend(stage, "nftables")?, backend(stage, "ebpf")?);
    stage.apply_web()?;
    stage.lab.start_program(NODE, &nftables, &Value::Null)?;
    stage.begin_traffic(PER_SECOND)?;
    stage.step("from nftables to eBPF")?;
    stage.exchange(NODE, &nftables, &ebpf)?;
    stage.eventually(SYNC, |stage| {
        let rules = table(stage)?;
        Ok(met(!rules.contains("10.96.0.10"), "nothing of the Service is in table inet sluice", || rules))
    })?;
    stage.change_and_change_back()?;
    stage.step("from eBPF to nftables")?;
    let user = place("pod/user")?;
    stage.lab.agent(&user)?.hold(CONNECTED, WEB_UDP.parse().map_err(anyhow::Error::msg)?, true)?;
    stage.held_alive(&user, CONNECTED)?;
    stage.exchange(NODE, &ebpf, &nftables)?;
    stage.eventually(SYNC, |stage| {
        let rules = table(stage)?;
        Ok(met(rules.contains("10.96.0.10"), "the Service is in table inet sluice", || rules))
    })?;
    stage.step(
        "a connected UDP socket may still get its answer; it ends later, because no backend tracks it",
    )?;
    stage.held_alive(&user, CONNECTED)?;
    let ended = HeldStep { id: CONNECTED.to_owned(), alive: false, endpoint: None, within: None };
    stage.held(&user, SYNC, &ended)?;
    stage.change_and_change_back()?;
    stage.end_traffic()
}

/// Our table, or nothing where it does not exist.
fn table(stage: &Stage) -> Result<String> {
    let listed = stage.run(NODE, &["nft", "list", "ruleset"])?;
    ensure!(listed.status.success(), "nft: {}", listed.stderr);
    Ok(listed.stdout)
}
