//! Tests in VMs: a few of them every time, all when asked for.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use sluice_skips::Why;

use crate::built_tests::BuiltTests;
use crate::cluster_tools;
use crate::conformance;
use crate::machine::{self, run as run_command};
use crate::scenarios;
use crate::suites::Suites;
use crate::vm::kernels::{self, Series};
use crate::vm::runner;

/// Names the kernel for the tests of the VMs themselves.
pub(super) const KERNEL_VARIABLE: &str = "SLUICE_VM_KERNEL";
/// Names the daemon for the tests with nodes.
const SLUICE_VARIABLE: &str = "SLUICE_BINARY";
/// For all kernel tests.
const TESTS_LIMIT: Duration = Duration::from_secs(300);
/// The oldest kernel for which everything is meant.
const OLDEST: Series = Series::V6_1;
/// The backends that VMs are for.
const BACKENDS: [&str; 3] = ["nftables", "ebpf", "ipvs"];
/// Scenarios that need what few machines have.
const SCENARIOS: [&str; 4] = [
    "ipvs-restart-under-load",
    "switch-to-ipvs-and-back",
    "migration-ipvs-to-ipvs",
    "migration-ipvs-to-nftables",
];

/// What is run every time, with the oldest kernel: one case of each kind, and what this machine's
/// kernel may lack.
const SMOKE: [(&str, &[&str]); 3] = [
    (
        "nftables",
        &[
            "sctp-services-work",
            "cluster-ip-balances-over-ready-endpoints",
            "external-policy-local-keeps-the-source-and-short-circuits-inside",
            "no-endpoints-rejects-and-recovers",
            "udp-flows-of-every-frontend-follow-their-service",
            "ipv6-ranges-affinity-and-hairpin-work",
            "single-rules-elements-and-chains-come-back",
        ],
    ),
    (
        "ebpf",
        &[
            "cluster-ip-balances-over-ready-endpoints",
            "external-policy-cluster-masquerades-every-external-frontend",
            "pods-choose-the-socket-path-while-they-run",
            "maglev-spreads-over-all-endpoints",
            // With messages all programs are loaded, and they are at their largest.
            "messages-of-the-programs-change-nothing",
            "udp-flows-of-every-frontend-follow-their-service",
            "ipv6-external-frontends-follow-the-traffic-policy",
        ],
    ),
    (
        "ipvs",
        &[
            "sctp-services-work",
            "cluster-ip-balances-over-ready-endpoints",
            "round-robin-takes-turns",
            "external-policy-cluster-masquerades-every-external-frontend",
            "external-policy-local-keeps-the-source-and-short-circuits-inside",
            "load-balancer-source-ranges-filter-only-the-vip",
            "no-endpoints-rejects-and-recovers",
            "client-ip-affinity-sticks-until-the-endpoint-goes",
            "udp-flows-of-every-frontend-follow-their-service",
            "connections-outlive-endpoint-changes-and-proxy-restarts",
            "ipv6-ranges-affinity-and-hairpin-work",
            "flushed-rules-come-back",
        ],
    ),
];

/// Where there can be no VMs, why.
fn obstacle() -> Option<&'static str> {
    if cfg!(not(target_arch = "x86_64")) {
        Some("their kernels are for x86_64")
    } else if !machine::has("apt-get") {
        Some("their kernels are Debian's packages, and there is no apt-get here")
    } else {
        None
    }
}

/// The directory of the kernel for tests of VMs, unless there can be none.
pub(super) fn kernel_of_tests() -> Result<Option<PathBuf>> {
    if let Some(obstacle) = obstacle() {
        // Its tests are skipped one by one.
        println!("no tests in VMs: {obstacle}");
        return Ok(None);
    }
    kernels::get(OLDEST, false)?;
    Ok(Some(kernels::directory(OLDEST)))
}

/// Runs the tests of every time: IPVS, which this machine may lack, and cases of each backend.
pub(super) fn smoke(suites: &mut Suites, tests: &BuiltTests) {
    if let Some(obstacle) = obstacle() {
        return suites.skip("tests in VMs", Why::lack("vm", obstacle));
    }
    suites.run("kernel tests of IPVS in a VM", || kernel_tests(OLDEST, tests));
    for name in ["nodes_with_ipvs", "nodes_with_the_pod_network"] {
        suites.run(&format!("nodes that are VMs: {name}"), || nodes(OLDEST, tests, name));
    }
    for (backend, names) in SMOKE {
        suites.run(&format!("some cases in a VM: {backend}"), || {
            run_cases(backend, OLDEST, tests, places_of(names))
        });
    }
}

/// Runs everything: all cases with each backend, nodes, scenarios and the tests of VMs, under each
/// kernel.
pub(super) fn all(suites: &mut Suites, tests: &BuiltTests) -> Result<()> {
    if let Some(obstacle) = obstacle() {
        bail!("VMs are not possible: {obstacle}");
    }
    for series in [Series::V6_1, Series::V6_12] {
        kernels::get(series, false)?;
        let name = |what: &str| format!("Linux {series}: {what}");
        suites.run(&name("tests of VMs"), || {
            let mut vm = tests.command("sluice-tests", "vm")?;
            run_command(vm.env(KERNEL_VARIABLE, kernels::directory(series)))
        });
        suites.run(&name("kernel tests"), || kernel_tests(series, tests));
        suites.run(&name("nodes"), || nodes(series, tests, ""));
        for backend in BACKENDS {
            suites.run(&name(backend), || run_cases(backend, series, tests, Vec::new()));
        }
        if cluster_tools::has_go() {
            suites.run(&name("scenarios"), || run_scenarios(series, tests));
        } else {
            suites.skip(&name("scenarios"), Why::lack("go", "it builds the real API server"));
        }
    }
    Ok(())
}

/// The tests of IPVS and dummy links against the kernel.
fn kernel_tests(series: Series, tests: &BuiltTests) -> Result<()> {
    let test = tests.command("sluice-sys", "ipvs")?.get_program().to_string_lossy().into_owned();
    runner::run_alone(series, &["ipvs"], vec![test], TESTS_LIMIT)
}

/// Services on nodes that are VMs: the tests of a name, or all.
fn nodes(series: Series, tests: &BuiltTests, name: &str) -> Result<()> {
    let mut nodes = tests.command("sluice-tests", "nodes")?;
    nodes.env(KERNEL_VARIABLE, kernels::directory(series)).env(SLUICE_VARIABLE, &tests.programs.sluice);
    run_command(nodes.arg(name))
}

fn run_scenarios(series: Series, tests: &BuiltTests) -> Result<()> {
    let only = SCENARIOS.map(str::to_owned).to_vec();
    let arguments = scenarios::Arguments { only, vm: Some(series), ..scenarios::Arguments::default() };
    scenarios::run_with(&tests.programs, &arguments)
}

/// Runs cases, or all, with a backend in a VM.
fn run_cases(backend: &str, series: Series, tests: &BuiltTests, cases: Vec<PathBuf>) -> Result<()> {
    let all = super::cases(backend, "manifests");
    let arguments = conformance::Arguments { vm: Some(series), cases, ..all };
    conformance::run_with(&tests.programs, &arguments)
}

/// Some cases of a backend, one of each kind.
pub(super) fn some_cases(backend: &str) -> Vec<PathBuf> {
    SMOKE.iter().filter(|(of, _)| *of == backend).flat_map(|(_, names)| places_of(names)).collect()
}

/// The files of cases.
fn places_of(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(|name| conformance::directory().join(format!("{name}.yaml"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_of_each_run_is_there() {
        for place in SMOKE.iter().flat_map(|(_, names)| places_of(names)) {
            assert!(place.is_file(), "{}", place.display());
        }
    }
}
