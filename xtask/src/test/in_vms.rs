//! Tests in VMs: a few of them every time, all when asked for.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

use crate::conformance::{self, default_cases};
use crate::machine::{self, cargo, run as run_command};
use crate::vm::kernels::{self, Series};

/// Names the kernel for the tests of the VMs themselves.
pub(super) const KERNEL_VARIABLE: &str = "SLUICE_VM_KERNEL";
/// The oldest kernel for which everything is meant.
const OLDEST: Series = Series::V6_1;
/// The backends that VMs are for.
const BACKENDS: [&str; 2] = ["nftables", "ebpf"];

/// What is run every time, with the oldest kernel: one case of each kind, and what this machine's kernel may lack.
const SMOKE: [(&str, &[&str]); 2] = [
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
            "ipv6-external-frontends-follow-the-traffic-policy",
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
        println!("skip: all tests in VMs: {obstacle}");
        return Ok(None);
    }
    kernels::get(OLDEST, false)?;
    Ok(Some(kernels::directory(OLDEST)))
}

/// Runs the cases of every time.
pub(super) fn smoke() -> Result<()> {
    if obstacle().is_some() {
        return Ok(());
    }
    for (backend, names) in SMOKE {
        let cases = places_of(names);
        if !cases.is_empty() {
            run_cases(backend, OLDEST, cases)?;
        }
    }
    Ok(())
}

/// Runs everything: the tests of VMs, and all cases with each backend, under each kernel.
pub(super) fn all() -> Result<()> {
    if let Some(obstacle) = obstacle() {
        bail!("there can be no VMs: {obstacle}");
    }
    let mut failed = Vec::new();
    for series in [Series::V6_1, Series::V6_12] {
        kernels::get(series, false)?;
        println!("tests of VMs: Linux {series}");
        let mut tests = cargo(&["test", "--quiet", "--package", "sluice-tests", "--test", "vm"]);
        run_command(tests.env(KERNEL_VARIABLE, kernels::directory(series)))?;
        for backend in BACKENDS {
            // The others are of interest, too.
            if let Err(error) = run_cases(backend, series, Vec::new()) {
                failed.push(format!("{backend} with Linux {series}: {error:#}"));
            }
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// Runs cases, or all, with a backend in a VM.
fn run_cases(backend: &str, series: Series, cases: Vec<PathBuf>) -> Result<()> {
    let all = super::cases(backend, "manifests");
    conformance::run(&conformance::Arguments { vm: Some(series), cases, ..all })
}

/// The files of cases. One that is not there is said.
fn places_of(names: &[&str]) -> Vec<PathBuf> {
    let directories = default_cases();
    let find = |name: &&str| {
        let mut places = directories.iter().map(|directory| directory.join(format!("{name}.yaml")));
        let place = places.find(|place| place.is_file());
        if place.is_none() {
            println!("skip {name}: the case is not here");
        }
        place
    };
    names.iter().filter_map(find).collect()
}
