//! The IPVS backend under load: killed, exchanged for nftables and back, and in the place of
//! kube-proxy's mode ipvs.
//!
//! They run in VMs, so their loads are small.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Scenario;
use super::stage::{Stage, met};
use super::traffic::WEB;
use crate::expect::Verdict;
use crate::proxy::ProxyProgram;

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "ipvs-restart-under-load", body: restart_under_load, ..TEMPLATE },
    Scenario { name: "switch-to-ipvs-and-back", body: switch_and_back, ..TEMPLATE },
    Scenario { name: "migration-ipvs-to-ipvs", body: |stage| migration(stage, "ipvs"), ..OF_KUBE_PROXY },
    Scenario {
        name: "migration-ipvs-to-nftables",
        body: |stage| migration(stage, "nftables"),
        ..OF_KUBE_PROXY
    },
];

const TEMPLATE: Scenario = Scenario { needs: &["nft", "ipvs", "dummy"], ..Scenario::under_traffic(file!()) };
const OF_KUBE_PROXY: Scenario = Scenario { needs: &["nft", "ipvs", "dummy", "iptables-legacy"], ..TEMPLATE };

/// Connections in a second, from inside and from outside each.
const PER_SECOND: u64 = 40;
const SYNC: Duration = Duration::from_secs(30);
/// The kernel remembers a connection that is over for two minutes.
const REMEMBERED: Duration = Duration::from_secs(180);
const NODE: &str = "node-a";

fn restart_under_load(stage: &mut Stage) -> Result<()> {
    let ipvs = ProxyProgram::sluice(&stage.sluice.sluice, "ipvs")?;
    stage.apply_web()?;
    stage.lab.start_program(NODE, &ipvs, &Value::Null)?;
    stage.begin_traffic(PER_SECOND)?;
    for wait in [2000, 10, 300, 1000, 3000] {
        stage.step(&format!("killed {wait} ms after its start"))?;
        stage.traffic_goes_on(Duration::from_millis(wait))?;
        stage.lab.kill_program(NODE, &ipvs)?;
        stage.lab.start_program(NODE, &ipvs, &Value::Null)?;
    }
    stage.catches_up(NODE, &ipvs)?;
    stage.end_traffic()
}

fn switch_and_back(stage: &mut Stage) -> Result<()> {
    let [nftables, ipvs] = ["nftables", "ipvs"].map(|mode| ProxyProgram::sluice(&stage.sluice.sluice, mode));
    let (nftables, ipvs) = (nftables?, ipvs?);
    stage.apply_web()?;
    stage.lab.start_program(NODE, &nftables, &Value::Null)?;
    stage.begin_traffic(PER_SECOND)?;
    stage.step("from nftables to IPVS")?;
    switch(stage, &nftables, &ipvs)?;
    stage.step("from IPVS to nftables")?;
    switch(stage, &ipvs, &nftables)?;
    stage.end_traffic()
}

fn migration(stage: &mut Stage, mode: &str) -> Result<()> {
    let kube_proxy = ProxyProgram::kube_proxy(&stage.tools.kube_proxy, "ipvs", &stage.sluice.sluice)?;
    let sluice = ProxyProgram::sluice(&stage.sluice.sluice, mode)?;
    stage.apply_web()?;
    // So that what is left of connections does not stay for five minutes.
    let short = json!({"ipvs": {"udpTimeout": "10s", "tcpFinTimeout": "10s"}});
    stage.lab.start_program(NODE, &kube_proxy, &short)?;
    stage.eventually(SYNC, |stage| {
        let links = links(stage)?;
        Ok(met(links.contains("kube-ipvs0"), "kube-proxy has its link", || links))
    })?;
    stage.begin_traffic(PER_SECOND)?;
    stage.step("from kube-proxy to sluice")?;
    switch(stage, &kube_proxy, &sluice)?;
    if mode == "ipvs" {
        stage.step("virtual servers continue, and nothing else of kube-proxy is left")?;
        stage.eventually(SYNC, nothing_of_kube_proxy)?;
        stage.traffic_goes_on(Duration::from_secs(1))?;
        return stage.end_traffic();
    }
    stage.end_traffic()?;
    stage.step("virtual servers are removed after their last connection")?;
    stage.end_held()?;
    stage.eventually(REMEMBERED, nothing_of_kube_proxy)?;
    stage.reaches("pod/user", WEB, &["a1", "b1"])
}

/// Another proxy, and it is in charge.
fn switch(stage: &mut Stage, from: &ProxyProgram, to: &ProxyProgram) -> Result<()> {
    stage.exchange(NODE, from, to)?;
    stage.change_and_change_back()
}

fn links(stage: &Stage) -> Result<String> {
    let listed = stage.run(NODE, &["ip", "-o", "link"])?;
    ensure!(listed.status.success(), "ip link: {}", listed.stderr);
    Ok(listed.stdout)
}

fn nothing_of_kube_proxy(stage: &Stage) -> Result<Verdict> {
    let mut all = links(stage)?;
    let commands: [&[&str]; 3] = [
        &["ipset", "list", "-n"],
        &["xtables-legacy-multi", "iptables-save"],
        &["xtables-legacy-multi", "ip6tables-save"],
    ];
    for argv in commands {
        let listed = stage.run(NODE, argv)?;
        ensure!(listed.status.success(), "{argv:?}: {}", listed.stderr);
        all += &listed.stdout;
    }
    let left: Vec<&str> =
        all.lines().filter(|line| line.contains("kube-ipvs0") || line.contains("KUBE-")).collect();
    Ok(met(left.is_empty(), "nothing of kube-proxy is left", || left.join("\n")))
}
