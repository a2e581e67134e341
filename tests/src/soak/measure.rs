//! What is in use.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{CALM, NODE};
use crate::interrupt;
use crate::lab::Lab;
use crate::target::From;

const METRICS: &str = "http://127.0.0.1:10249/metrics";
/// The daemon counts entries of maps as often.
const COUNTED: Duration = Duration::from_secs(35);
/// Maps that programs write, not the daemon: what is in them depends on who has just spoken.
const OF_TRAFFIC: [&str; 8] =
    ["FLOWS", "OLD_FLOWS", "FRAGMENTS", "AFFINITY", "PEERS", "TCP_PEERS", "PICKS", "CURSORS"];

/// Numbers of elements, by node and set or map.
pub(super) type Elements = BTreeMap<String, u64>;

/// What there was before and after.
#[derive(Debug)]
pub(super) struct Measures {
    pub(super) memory: (f64, f64),
    pub(super) elements: (Elements, Elements),
    pub(super) slab: (f64, f64),
}

fn page(lab: &Lab, node: &str) -> Result<String> {
    Ok(lab.agent(&From::Host(node.to_owned()))?.http_get(METRICS)?.body)
}

/// What the daemon of a node holds, in MiB.
pub(super) fn memory(lab: &Lab, node: &str) -> Result<f64> {
    let page = page(lab, node)?;
    let line = page.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    let bytes: f64 = line.context("no metric of the daemon's memory")?.parse()?;
    Ok(bytes / f64::from(1 << 20))
}

/// The kernel's slabs, in MiB.
pub(super) fn kernel_memory() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("Slab:")).context("no Slab in /proc/meminfo")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// What the daemons have in the kernels of both nodes: elements and rules of tables, or entries of
/// maps.
pub(super) fn elements(lab: &Lab, mode: &str) -> Result<Elements> {
    if mode == "ebpf" {
        interrupt::sleep(COUNTED)?;
    }
    let mut all = Elements::new();
    for node in [NODE, CALM] {
        let of_node = match mode {
            "ebpf" => entries(&page(lab, node)?),
            _ => {
                let argv = ["nft", "-j", "list", "table", "inet", "sluice"].map(str::to_owned);
                of_table(&serde_json::from_str(&lab.run(node, &argv)?.stdout)?)
            }
        };
        all.extend(of_node.into_iter().map(|(name, count)| (format!("{node} {name}"), count)));
    }
    Ok(all)
}

/// What is not as many as before.
pub(super) fn differences((before, after): &(Elements, Elements)) -> Vec<String> {
    let names = before.keys().chain(after.keys()).collect::<BTreeSet<_>>();
    let count = |all: &Elements, name: &String| all.get(name).copied().unwrap_or(0);
    let both = names.into_iter().map(|name| (name, count(before, name), count(after, name)));
    both.filter(|(_, b, a)| b != a).map(|(name, b, a)| format!("{name}: {b}, {a} in the end")).collect()
}

fn of_table(table: &Value) -> Elements {
    let mut all = Elements::new();
    for object in table["nftables"].as_array().into_iter().flatten() {
        for kind in ["set", "map"] {
            if let Some(elements) = object[kind]["elem"].as_array() {
                let name = object[kind]["name"].as_str().unwrap_or_default();
                *all.entry(name.to_owned()).or_default() += elements.len() as u64;
            }
        }
        *all.entry("rules".to_owned()).or_default() += u64::from(object.get("rule").is_some());
    }
    all
}

fn entries(page: &str) -> Elements {
    let lines = page.lines().filter_map(|line| line.strip_prefix("sluice_ebpf_map_entries{map=\""));
    let samples = lines.filter_map(|rest| rest.split_once("\"} "));
    let own = samples.filter(|(map, _)| !OF_TRAFFIC.contains(map));
    own.filter_map(|(map, count)| Some((map.to_owned(), count.parse().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn all(counts: &[(&str, u64)]) -> Elements {
        counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn elements_and_rules_are_counted() {
        let table = json!({"nftables": [
            {"set": {"name": "a", "elem": ["10.0.0.1", "10.0.0.2"]}}, {"map": {"name": "b", "elem": [1]}}, {"rule": {}},
            {"set": {"name": "c"}},
        ]});
        assert_eq!(of_table(&table), all(&[("a", 2), ("b", 1), ("rules", 1)]));
    }

    #[test]
    fn entries_of_the_daemons_own_maps_are_counted() {
        let page = "sluice_ebpf_map_entries{map=\"FLOWS\"} 70\nsluice_ebpf_map_entries{map=\"FRONTENDS\"} 3\n\
                    sluice_ebpf_map_entries{map=\"GROUPS\"} 4\nother 9\n";
        assert_eq!(entries(page), all(&[("FRONTENDS", 3), ("GROUPS", 4)]));
    }

    #[test]
    fn differences_are_named() {
        let both = (all(&[("a", 1), ("b", 2)]), all(&[("a", 1), ("c", 3)]));
        assert_eq!(differences(&both), ["b: 2, 0 in the end", "c: 0, 3 in the end"]);
    }
}
