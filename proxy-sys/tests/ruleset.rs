//! The skeleton, read back by the nft program through the `nftables` crate: an independent pair of
//! eyes.
#![expect(clippy::unwrap_used, reason = "integration tests fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use nftables::schema::NfListObject;
use nftables::types::{NfChainType, NfFamily, NfHook};
use sluice_core::nft::{Balancer, Ledger, NftConfig, NodeView, TABLE, sets};
use sluice_sys::nft::Nft;

/// What nft lists. Maps are read from the JSON itself: nft 1.0.6 writes their data types as one
/// text (`mark . ipv4_addr`, `verdict`), which the crate (0.6.3) does not know.
struct Listed {
    objects: Vec<NfListObject<'static>>,
    /// Name and data type.
    maps: BTreeMap<String, String>,
}

/// Loads the skeleton in a fresh network namespace and lists it; `None`, with the reason, where
/// that cannot be.
fn listed(balancer: Balancer) -> Option<Listed> {
    let text = sluice_skips::in_namespaces(nix::sched::CloneFlags::CLONE_NEWNET, move || {
        let node = NodeView {
            node_port_addresses: vec!["192.168.77.11".parse().unwrap()],
            service_networks: vec!["10.96.0.0/16".parse().unwrap()],
            ..NodeView::default()
        };
        let ledger = Ledger::new(NftConfig { balancer, ..NftConfig::default() }, node);
        let mut nft = Nft::open().unwrap();
        nft.commit(&TABLE, &ledger.create_skeleton()).unwrap();
        nft.commit(&TABLE, &ledger.finish_load()).unwrap();
        let output = Command::new("nft").args(["-j", "list", "table", "inet", "sluice"]).output();
        let Ok(output) = output else {
            sluice_skips::skip("nft", "the program is not installed");
            return None;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(output.stdout)
    })??;
    let all: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let mut listed = Listed { objects: Vec::new(), maps: BTreeMap::new() };
    for object in all["nftables"].as_array().unwrap() {
        match object.get("map") {
            Some(map) => {
                let text = |field: &str| map[field].as_str().unwrap().to_owned();
                listed.maps.insert(text("name"), text("map"));
            }
            None => {
                let mut object = object.clone();
                list_single_flags(&mut object);
                listed.objects.push(serde_json::from_value(object).unwrap());
            }
        }
    }
    Some(listed)
}

/// nft writes one flag as a text and several as a list; the crate reads lists only.
fn list_single_flags(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            if let Some(flags) = map.get_mut("flags").filter(|flags| flags.is_string()) {
                *flags = serde_json::Value::Array(vec![flags.take()]);
            }
            map.values_mut().for_each(list_single_flags);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(list_single_flags),
        _ => {}
    }
}

#[test]
fn base_chains_hook_where_the_reference_says() {
    let Some(ruleset) = listed(Balancer::Ruleset) else { return };
    let mut hooks: BTreeMap<String, (NfChainType, NfHook, i32)> = BTreeMap::new();
    let mut chains = BTreeSet::new();
    for object in &ruleset.objects {
        let NfListObject::Chain(chain) = object else { continue };
        assert_eq!((chain.family, chain.table.as_ref()), (NfFamily::INet, "sluice"));
        chains.insert(chain.name.to_string());
        if let (Some(kind), Some(hook), Some(priority)) = (chain._type, chain.hook, chain.prio) {
            hooks.insert(chain.name.to_string(), (kind, hook, priority));
        }
    }
    let (filter, nat) = (NfChainType::Filter, NfChainType::NAT);
    let expected = [
        ("filter-forward", (filter, NfHook::Forward, 0)),
        ("filter-input", (filter, NfHook::Input, 0)),
        ("filter-output", (filter, NfHook::Output, 0)),
        ("filter-output-early", (filter, NfHook::Output, -110)),
        ("filter-prerouting", (filter, NfHook::Prerouting, -110)),
        ("nat-output", (nat, NfHook::Output, -100)),
        ("nat-postrouting", (nat, NfHook::Postrouting, 100)),
        ("nat-prerouting", (nat, NfHook::Prerouting, -100)),
    ];
    assert_eq!(hooks, expected.map(|(name, hook)| (name.to_owned(), hook)).into_iter().collect());
    for name in ["reject", "services", "check-sources", "check-endpoints", "check-nodeports", "svc4-local"] {
        assert!(chains.contains(name), "{name} among {chains:?}");
    }
}

#[test]
fn every_set_is_there_and_only_small_maps_hold_verdicts() {
    let both = ["entries4", "entries6", "refusals4", "refusals6"];
    let of_ruleset = ["classes4", "classes6", "groups4", "groups6"];
    for (balancer, more) in [(Balancer::Ruleset, of_ruleset.as_slice()), (Balancer::Ipvs, &[])] {
        let Some(ruleset) = listed(balancer) else { return };
        let mut names: BTreeSet<String> = ruleset.maps.keys().cloned().collect();
        for object in &ruleset.objects {
            if let NfListObject::Set(set) = object {
                names.insert(set.name.to_string());
            }
        }
        assert_eq!(names, sets(balancer).iter().map(|set| set.name().to_owned()).collect());
        let verdicts: BTreeSet<&str> = ruleset
            .maps
            .iter()
            .filter(|(_, data)| *data == "verdict")
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(verdicts, both.iter().chain(more).copied().collect());
    }
}

#[test]
fn every_rule_says_what_it_is_for() {
    for balancer in [Balancer::Ruleset, Balancer::Ipvs] {
        let Some(ruleset) = listed(balancer) else { return };
        let mut rules = 0;
        for object in &ruleset.objects {
            if let NfListObject::Rule(rule) = object {
                rules += 1;
                assert!(rule.comment.as_ref().is_some_and(|comment| comment.contains(" #")), "{rule:?}");
            }
        }
        assert!(rules > 30, "{rules} rules");
    }
}
