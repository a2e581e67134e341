//! Changes that pass those of a large Service.

use sluice_core::lang::nftables::Expr;

use super::*;

impl Run {
    /// Each range of sources has a rule that looks at its prefix length, whatever waits.
    pub(super) fn check_source_ranges(&self) {
        for id in self.kernel.elements.keys() {
            let Some(family) = SetKind::AllowedSources.family_of(id.set) else { continue };
            let length = id.key.last_chunk::<4>().expect("a prefix length").to_vec();
            let chain =
                ChainName::new(if family == Family::V4 { "filter-sources4" } else { "filter-sources6" });
            let (_, rules) = &self.kernel.chains[&chain];
            let looks = |expr: &Expr| matches!(expr, Expr::Immediate { data, .. } if *data == length);
            let has_rule = rules.iter().any(|rule| rule.exprs.iter().any(looks));
            assert!(has_rule, "no rule looks at ranges of the length {length:?}");
        }
    }
}

/// What a large Service still leads to was deleted with the last other one that needed it.
#[test]
fn what_a_change_in_work_still_leads_to_stays() {
    let addresses = "192.0.2.1 192.0.2.2 192.0.2.3";
    let ports = vec![port("http", Tcp, 80, 0)];
    let large = Service { ports: ports.clone(), external_ips: ips(addresses), ..service("s1", "172.30.0.1") };
    let small = Service { ports, ..service("s2", "172.30.0.2") };
    let serving = |slice_name: &str, service: &str, numbers: std::ops::Range<u8>| {
        let endpoints = numbers.map(|n| endpoint(&format!("10.0.0.{n}"), "")).collect();
        Event::Slice(Change::Apply(slice(slice_name, service, ("http", Tcp, 8080), endpoints)))
    };
    let mut run = Run::new(nft_config(Scheduler::Random));
    run.turns = Some((Turns::with_large_from(9), Backlog::new(1)));
    let services = [large, small.clone()].map(|service| Event::Service(Change::Apply(service)));
    run.step(&Step::Events(
        [services.into(), vec![serving("a4", "s1", 1..3), serving("b4", "s2", 3..5)]].concat(),
    ));
    run.catch_up();
    run.step(&Step::Events(vec![serving("a4", "s1", 1..4)]));
    run.go_on();
    assert!(run.is_in_turns());
    // It passes, and each step on the way is checked.
    run.step(&Step::Events(vec![Event::Service(Change::Delete(small.name))]));
    assert!(run.is_in_turns());
    run.step(&Step::Collect);
}
