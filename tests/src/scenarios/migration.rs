//! From the real kube-proxy to sluice and back, while connections are opened all the time.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use sluice_skips::skip_for;

use super::Scenario;
use super::stage::{Stage, met};
use super::traffic::ADDRESSES;
use crate::expect::Verdict;
use crate::needs;
use crate::proxy::ProxyProgram;

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "migration-nftables", body: |stage| migration(stage, "nftables"), ..TEMPLATE },
    Scenario {
        name: "migration-iptables",
        needs: &["nft", "iptables-legacy"],
        body: |stage| migration(stage, "iptables"),
        ..TEMPLATE
    },
];

const TEMPLATE: Scenario = Scenario { needs: &["nft"], ..Scenario::under_traffic(file!()) };

/// Connections in a second, from inside and from outside each.
const PER_SECOND: u64 = 200;
/// kube-proxy needs its time, the more so on a busy machine.
const SYNC: Duration = Duration::from_secs(60);
const NODE: &str = "node-a";

fn migration(stage: &mut Stage, mode: &str) -> Result<()> {
    let kube_proxy = ProxyProgram::kube_proxy(&stage.tools.kube_proxy, mode, &stage.sluice.sluice)?;
    stage.apply_web()?;
    stage.lab.start_program(NODE, &kube_proxy, &Value::Null)?;
    stage.eventually(SYNC, |stage| Ok(serves(&kube_proxys(&rules(stage)?), "kube-proxy")))?;
    stage.begin_traffic(PER_SECOND)?;
    stage.step("kube-proxy alone")?;
    stage.traffic_goes_on(Duration::from_secs(2))?;
    to_sluice(stage, &kube_proxy)?;
    back(stage, &kube_proxy)?;
    stage.end_traffic()
}

/// In the order of docs/migration.md: both want the same ports, so the old one ends first.
fn to_sluice(stage: &mut Stage, kube_proxy: &ProxyProgram) -> Result<()> {
    stage.step("kube-proxy ends, its rules stay")?;
    stage.lab.stop_program(NODE, kube_proxy)?;
    stage.traffic_goes_on(Duration::from_secs(1))?;
    stage.step("sluice starts, and removes what kube-proxy left")?;
    stage.lab.start_proxy(NODE, &Value::Null)?;
    stage.eventually(SYNC, |stage| Ok(serves(&sluices(&rules(stage)?), "sluice")))?;
    stage.eventually(SYNC, |stage| {
        let left = kube_proxys(&rules(stage)?);
        Ok(met(left.is_empty(), "nothing of kube-proxy is left", || left))
    })?;
    stage.step("sluice alone")?;
    stage.traffic_goes_on(Duration::from_secs(2))?;
    stage.change_and_change_back()
}

fn back(stage: &mut Stage, kube_proxy: &ProxyProgram) -> Result<()> {
    stage.step("sluice ends, its rules stay")?;
    stage.lab.stop_proxy(NODE)?;
    stage.traffic_goes_on(Duration::from_secs(1))?;
    stage.step("kube-proxy starts")?;
    stage.lab.start_program(NODE, kube_proxy, &Value::Null)?;
    stage.eventually(SYNC, |stage| Ok(serves(&kube_proxys(&rules(stage)?), "kube-proxy")))?;
    stage.traffic_goes_on(Duration::from_secs(1))?;
    stage.step("the rules of sluice are removed")?;
    let finished = stage.run(NODE, &["sluice", "cleanup"])?;
    ensure!(finished.status.success(), "sluice cleanup: {}", finished.stderr);
    let left = sluices(&rules(stage)?);
    met(left.is_empty(), "nothing of sluice is left", || left)?;
    stage.step("kube-proxy alone again")?;
    stage.traffic_goes_on(Duration::from_secs(2))?;
    stage.change_and_change_back()
}

/// All rules of the node, of nf_tables and of the kernel's older tables; each line with the table
/// that it is in.
fn rules(stage: &Stage) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut table = String::new();
    let listed = stage.run(NODE, &["nft", "list", "ruleset"])?;
    ensure!(listed.status.success(), "nft: {}", listed.stderr);
    for line in listed.stdout.lines() {
        if line.starts_with("table") {
            line.clone_into(&mut table);
        }
        lines.push(format!("{table} {line}"));
    }
    if let Some(lack) = needs::missing("iptables-legacy")? {
        skip_for(lack);
    } else {
        for program in ["iptables-save", "ip6tables-save"] {
            let saved = stage.run(NODE, &["xtables-legacy-multi", program])?;
            ensure!(saved.status.success(), "{program}: {}", saved.stderr);
            lines.extend(saved.stdout.lines().map(str::to_owned));
        }
    }
    Ok(lines)
}

fn of(rules: &[String], marks: &[&str]) -> String {
    let owned = rules.iter().filter(|line| marks.iter().any(|mark| line.contains(mark)));
    owned.map(|line| format!("{line}\n")).collect()
}

fn kube_proxys(rules: &[String]) -> String {
    of(
        rules,
        &["table ip kube-proxy", "table ip6 kube-proxy", "KUBE-SERVICES", "KUBE-SVC-", "KUBE-NODEPORTS"],
    )
}

fn sluices(rules: &[String]) -> String {
    of(rules, &["table inet sluice"])
}

/// Whether these rules are about the Service, in both families.
fn serves(rules: &str, proxy: &str) -> Verdict {
    let wanted = ADDRESSES.iter().filter(|address| needs::has_ipv6() || !address.contains(':'));
    let missing: Vec<&&str> = wanted.filter(|address| !rules.contains(**address)).collect();
    met(missing.is_empty(), &format!("rules of {proxy} for {ADDRESSES:?}"), || {
        format!("none for {missing:?}")
    })
}
