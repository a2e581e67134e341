//! Which rules and chains to remove from tables that the nf_tables variant of iptables wrote. Pure.

use std::collections::{BTreeMap, BTreeSet};

use sluice_sys::nft::{ForeignChain, ForeignJump, Removal};

use super::names::{is_chain, is_entry};

/// The tables that kube-proxy writes to.
pub(super) const TABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// What to do in one table.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TablePlan {
    /// What to remove, in this order.
    pub(super) removals: Vec<Removal>,
    /// Chains that go.
    pub(super) gone: usize,
    /// Chains that stay, because rules of others lead to them.
    pub(super) kept: BTreeSet<String>,
}

/// Plans for all tables with chains of kube-proxy, by family and name: the jumps to them go first,
/// then their rules, then the chains.
pub(super) fn plan(chains: &[ForeignChain], jumps: &[ForeignJump]) -> BTreeMap<(u8, String), TablePlan> {
    let mut plans = BTreeMap::new();
    for chain in chains.iter().filter(|chain| TABLES.contains(&chain.table.as_str()) && is_theirs(chain)) {
        let key = (chain.family, chain.table.clone());
        plans.entry(key).or_insert_with(|| table(chain.family, &chain.table, chains, jumps));
    }
    plans
}

fn is_theirs(chain: &ForeignChain) -> bool {
    !chain.is_base && is_chain(&chain.name)
}

fn table(family: u8, table: &str, chains: &[ForeignChain], jumps: &[ForeignJump]) -> TablePlan {
    let here = || chains.iter().filter(|chain| chain.family == family && chain.table == table);
    let jumps: Vec<_> = jumps.iter().filter(|jump| jump.family == family && jump.table == table).collect();
    let theirs: BTreeSet<&str> = here().filter(|c| is_theirs(c)).map(|c| c.name.as_str()).collect();
    let bases: BTreeSet<&str> = here().filter(|c| c.is_base).map(|c| c.name.as_str()).collect();
    let mut plan = TablePlan::default();
    let mut keep = Vec::new();
    for jump in jumps.iter().filter(|jump| theirs.contains(jump.target.as_str())) {
        if bases.contains(jump.chain.as_str()) && is_entry(&jump.target) {
            let (table, chain) = (table.to_owned(), jump.chain.clone());
            plan.removals.push(Removal::Rule { family, table, chain, handle: jump.handle });
        } else if !theirs.contains(jump.chain.as_str()) {
            keep.push(jump.target.as_str());
        }
    }
    // What a kept chain leads to is kept too.
    while let Some(name) = keep.pop() {
        if plan.kept.insert(name.to_owned()) {
            keep.extend(jumps.iter().filter(|jump| jump.chain == name).map(|jump| jump.target.as_str()));
        }
    }
    let go: Vec<&str> = theirs.into_iter().filter(|name| !plan.kept.contains(*name)).collect();
    let owned = |name: &str| (table.to_owned(), name.to_owned());
    let rules = go.iter().map(|name| owned(name));
    plan.removals.extend(rules.map(|(table, chain)| Removal::Rules { family, table, chain }));
    let chains = go.iter().map(|name| owned(name));
    plan.removals.extend(chains.map(|(table, chain)| Removal::Chain { family, table, chain }));
    plan.gone = go.len();
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(name: &str) -> ForeignChain {
        let is_base = !name.contains('-');
        ForeignChain { family: 2, table: "nat".into(), name: name.into(), is_base }
    }

    fn jump(chain: &str, handle: u64, target: &str) -> ForeignJump {
        ForeignJump { family: 2, table: "nat".into(), chain: chain.into(), handle, target: target.into() }
    }

    #[test]
    fn jumps_go_first_and_what_others_use_stays() {
        let chains = [
            "OUTPUT",
            "KUBE-SERVICES",
            "KUBE-SVC-A",
            "KUBE-MARK-MASQ",
            "CNI-HOSTPORT",
            "KUBE-KUBELET-CANARY",
        ]
        .map(chain);
        let jumps = [
            jump("OUTPUT", 5, "KUBE-SERVICES"),
            jump("OUTPUT", 6, "CNI-HOSTPORT"),
            jump("KUBE-SERVICES", 7, "KUBE-SVC-A"),
            jump("KUBE-SVC-A", 8, "KUBE-MARK-MASQ"),
            jump("CNI-HOSTPORT", 9, "KUBE-MARK-MASQ"),
            jump("OUTPUT", 10, "KUBE-MARK-MASQ"),
        ];
        let plans = plan(&chains, &jumps);
        let plan = &plans[&(2, "nat".to_owned())];
        assert_eq!(plan.kept, BTreeSet::from(["KUBE-MARK-MASQ".to_owned()]));
        assert_eq!(plan.gone, 2);
        let described: Vec<String> = plan
            .removals
            .iter()
            .map(|removal| match removal {
                Removal::Rule { chain, handle, .. } => format!("{chain} {handle}"),
                Removal::Rules { chain, .. } => format!("flush {chain}"),
                Removal::Chain { chain, .. } => format!("delete {chain}"),
            })
            .collect();
        assert_eq!(
            described,
            [
                "OUTPUT 5",
                "flush KUBE-SERVICES",
                "flush KUBE-SVC-A",
                "delete KUBE-SERVICES",
                "delete KUBE-SVC-A"
            ]
        );
    }

    #[test]
    fn tables_without_chains_of_kube_proxy_are_left_alone() {
        let chains = [chain("OUTPUT"), chain("KUBE-FIREWALL"), chain("KUBE-IPTABLES-HINT")];
        assert!(plan(&chains, &[jump("OUTPUT", 1, "KUBE-FIREWALL")]).is_empty());
        let other = ForeignChain { table: "mine".into(), ..chain("KUBE-SERVICES") };
        assert!(plan(&[other], &[]).is_empty());
    }
}
