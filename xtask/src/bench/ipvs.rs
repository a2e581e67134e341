//! Mode ipvs against kube-proxy's, in a VM, because few machines that build this have IPVS.
//!
//! Both read the same objects from the same replaying API server, in turns, in one VM. Everything
//! is slower there, by about the same factor, than on a machine: what counts is the ratio.

mod turn;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sluice_tests::replay::Replay;
use sluice_tests::vm::VmOptions;

use super::peers::{Spread, bulk, spread};
use crate::cluster_tools;
use crate::machine;
use crate::vm::kernels::Series;
use crate::vm::options;
use crate::vm::runner::program;
use turn::Programs;

/// Arguments of `bench ipvs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Number of Services
    #[arg(long, default_value_t = 10_000)]
    services: usize,
    /// Endpoints of each Service
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    /// Turns of each proxy; a turn of kube-proxy with 10,000 Services takes more than half an hour
    #[arg(long, default_value_t = 1)]
    repetitions: usize,
    /// Changes to measure in each turn
    #[arg(long, default_value_t = 5)]
    changes: usize,
    /// Kernel of the VM
    #[arg(long, default_value_t)]
    kernel: Series,
    /// Time limit of a load or a change, in seconds; a proxy that exceeds it is stopped
    #[arg(long, default_value_t = 1800)]
    give_up: u64,
    /// Time limit of the whole run, in seconds
    #[arg(long, default_value_t = 7200)]
    limit: u64,
    #[command(flatten)]
    cluster: cluster_tools::Arguments,
    /// File to write every sample to
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What runs in the VM: the programs, instead of the rest
    #[arg(long, hide = true, num_args = 2, value_names = ["SLUICE", "KUBE_PROXY"])]
    inside: Vec<PathBuf>,
}

/// In MiB: kube-proxy, and all objects as text.
const MEMORY: u32 = 6144;

/// Samples by what they are of and by proxy.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Samples(BTreeMap<String, BTreeMap<String, Vec<f64>>>);

impl Samples {
    fn add(&mut self, metric: &str, proxy: &str, value: f64) {
        println!("  {metric:<24} {value:.6}");
        self.0.entry(metric.to_owned()).or_default().entry(proxy.to_owned()).or_default().push(value);
    }

    fn spread(&self, metric: &str, proxy: &str) -> Option<Spread> {
        spread(self.0.get(metric)?.get(proxy)?)
    }
}

/// Measures and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if let [sluice, kube_proxy] = arguments.inside.as_slice() {
        return inside(arguments, &Programs { sluice: sluice.clone(), kube_proxy: kube_proxy.clone() });
    }
    machine::prepare()?;
    let kube_proxy = cluster_tools::build(arguments.cluster.kubernetes)?.join("kube-proxy");
    let sluice = machine::build()?.sluice;
    let output = machine::target_directory().join(format!("vm/bench-{}", std::process::id()));
    let options = VmOptions { memory: MEMORY, ..options(Some(&output))? };
    let numbers = [
        ("--services", arguments.services),
        ("--endpoints", arguments.endpoints),
        ("--repetitions", arguments.repetitions),
        ("--changes", arguments.changes),
    ];
    let mut argv = vec![std::env::current_exe()?.display().to_string(), "bench".into(), "ipvs".into()];
    argv.extend(numbers.iter().flat_map(|(name, number)| [(*name).to_owned(), number.to_string()]));
    argv.extend(["--give-up".to_owned(), arguments.give_up.to_string()]);
    argv.extend(["--json", "/out/samples.json", "--inside"].map(str::to_owned));
    argv.extend([sluice, kube_proxy].map(|program| program.display().to_string()));
    let done = program(arguments.kernel, &options, &["ipvs"], argv, Duration::from_secs(arguments.limit));
    if let Some(file) = &arguments.json {
        std::fs::copy(output.join("samples.json"), file)?;
    }
    drop(std::fs::remove_dir_all(output));
    done
}

fn inside(arguments: &Arguments, programs: &Programs) -> Result<()> {
    let objects = objects(arguments);
    let mut api = Replay::start(&objects)?;
    let mut samples = Samples::default();
    for repetition in 0..arguments.repetitions {
        for proxy in ["ipvs", "kube-proxy-ipvs"] {
            println!(
                "{} services, turn {} of {}: {proxy}",
                arguments.services,
                repetition + 1,
                arguments.repetitions
            );
            let slices = objects.get("endpointslices").map(Vec::as_slice).unwrap_or_default();
            let done = turn::run(arguments, programs, proxy, &mut api, slices, &mut samples);
            if let Err(error) = &done {
                println!("    stopped measuring {proxy}: {error:#}");
            }
            if proxy == "ipvs" {
                done?;
            }
            turn::clean_up(programs)?;
            if let Some(file) = &arguments.json {
                std::fs::write(file, serde_json::to_string_pretty(&samples)? + "\n")?;
            }
        }
    }
    print(&samples);
    Ok(())
}

fn print(samples: &Samples) {
    println!("\n{:<24} {:>32} {:>32} {:>8}", "median (range)", "sluice ipvs", "kube-proxy ipvs", "ratio");
    for metric in samples.0.keys() {
        let [ours, theirs] = ["ipvs", "kube-proxy-ipvs"].map(|proxy| samples.spread(metric, proxy));
        let text = |spread: Option<Spread>| {
            spread.map_or("-".to_owned(), |s| format!("{:.4} ({:.4} to {:.4})", s.median, s.min, s.max))
        };
        let ratio = match (ours, theirs) {
            (Some(ours), Some(theirs)) => format!("{:.1}", theirs.median / ours.median),
            _ => "-".to_owned(),
        };
        println!("{metric:<24} {:>32} {:>32} {ratio:>8}", text(ours), text(theirs));
    }
}

/// The objects as an API server has them, with all defaults.
fn objects(arguments: &Arguments) -> HashMap<&'static str, Vec<Value>> {
    let (mut services, mut slices) = (Vec::new(), Vec::new());
    for index in 0..arguments.services {
        let (mut service, mut slice) = bulk(index, arguments.endpoints);
        for (object, kind) in [(&mut service, "service"), (&mut slice, "slice")] {
            object["metadata"]["uid"] = json!(format!("{kind}-{index}"));
            object["metadata"]["resourceVersion"] = json!("1");
        }
        for (field, value) in [
            ("ipFamilies", json!(["IPv4"])),
            ("ipFamilyPolicy", json!("SingleStack")),
            ("sessionAffinity", json!("None")),
            ("internalTrafficPolicy", json!("Cluster")),
        ] {
            service["spec"][field] = value;
        }
        service["status"] = json!({"loadBalancer": {}});
        services.push(service);
        slices.push(slice);
    }
    let node = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": turn::NODE, "uid": "node", "resourceVersion": "1"},
        "spec": {"podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": turn::ADDRESS}]}});
    HashMap::from([("services", services), ("endpointslices", slices), ("nodes", vec![node])])
}
