//! Soak: a day of a busy node within an hour. Objects change, pods come and go, somebody takes the
//! kernel's state apart, the daemon is killed, and connections that must live do. In the end
//! memory, the kernel's elements and the plan are as they were.

mod measure;
mod work;

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use crate::interrupt;
use crate::lab::plugin::PodNetwork;
use crate::lab::{Lab, LabOptions};
use crate::topology::Topology;
use measure::{Elements, Measures, differences, elements, kernel_memory, memory};
use work::{Deed, Traffic, Work};

/// How much.
#[derive(Debug, Clone, Copy, clap::Args)]
// Commands that have these have a group of this name, too.
#[group(skip)]
pub struct Arguments {
    /// Duration in minutes; the work is the same part of a day's work as this is of an hour
    #[arg(long, default_value_t = 60.0)]
    pub minutes: f64,
}

/// The node whose daemon is killed, and whose kernel others take apart; and the one whose daemon
/// lives through all of it.
const NODE: &str = "node-a";
const CALM: &str = "node-b";
const TOPOLOGY: &str = r#"{
    "nodes": {"node-a": {}, "node-b": {}},
    "pods": {
        "user": {"node": "node-a", "ip": "10.244.1.10"},
        "coming": {"node": "node-b", "ip": "10.244.2.20"},
        "b1": {"node": "node-b", "ip": "10.244.2.11"},
        "b2": {"node": "node-b", "ip": "10.244.2.12"}
    }
}"#;
/// By then the daemon has allocated what it keeps: this part of the time.
const SETTLED: f64 = 0.15;
/// How much more may be in use in the end.
const GROWTH: f64 = 0.1;
/// A machine that is too busy may take so many times longer, and says so.
const PATIENCE: u32 = 4;
/// Between two looks at memory.
const LOOK: Duration = Duration::from_secs(5);

/// Runs it, prints what was done and what became of it; fails if a limit is broken.
pub fn run(options: LabOptions, arguments: Arguments) -> Result<()> {
    let topology: Topology = serde_json::from_str(TOPOLOGY)?;
    let mode = options.proxy.mode().to_owned();
    let options = LabOptions { pod_network: PodNetwork::Sluice, ..options };
    let mut lab = Lab::create(&topology, options)?;
    let mut work = Work::new(arguments.minutes / 60.0);
    work.begin(&lab)?;
    lab.start_proxies(&Value::Null)?;
    lab.await_first_syncs()?;
    let mut traffic = Traffic::begin(&mut lab)?;
    let before = elements(&lab, &mode)?;
    let (slab, begun) = (kernel_memory()?, Instant::now());
    let time = Duration::from_secs_f64(arguments.minutes * 60.0);
    let first = all_day(&mut lab, &mut work, &mut traffic, time)?;
    let seconds = begun.elapsed().as_secs();
    work.end(&lab)?;
    traffic.end(&mut lab)?;
    interrupt::sleep(work::QUIET)?;
    let measures = Measures {
        memory: (first, memory(&lab, CALM)?),
        elements: (before, elements(&lab, &mode)?),
        slab: (slab, kernel_memory()?),
    };
    for node in [NODE, CALM] {
        work.restart(&mut lab, node, true)?;
    }
    report(&mode, seconds, &work, &traffic, &measures);
    judge(&work, &traffic, &measures)
}

/// Does the work of the day, evenly; tells what the calm daemon held when it had settled.
fn all_day(lab: &mut Lab, work: &mut Work, traffic: &mut Traffic, time: Duration) -> Result<f64> {
    let begun = Instant::now();
    let (mut settled, mut looked) = (Vec::new(), begun);
    loop {
        let part = begun.elapsed().as_secs_f64() / time.as_secs_f64();
        let Some(deed) = work.next(part.min(1.0)) else {
            if part >= 1.0 {
                break;
            }
            interrupt::sleep(Duration::from_millis(5))?;
            continue;
        };
        if begun.elapsed() > time * PATIENCE {
            bail!("the machine is too busy: after {:?} work is left", begun.elapsed());
        }
        lab.check_proxies()?;
        match deed {
            Deed::Flush => work.flush(lab, traffic)?,
            Deed::Kill => work.restart(lab, NODE, false)?,
            other => work.small(lab, other)?,
        }
        if looked.elapsed() > LOOK {
            looked = Instant::now();
            traffic.check(lab)?;
            if part > SETTLED && settled.len() < 5 {
                settled.push(memory(lab, CALM)?);
            }
        }
    }
    settled.sort_by(f64::total_cmp);
    settled.get(settled.len() / 2).copied().map_or_else(|| memory(lab, CALM), Ok)
}

fn report(mode: &str, seconds: u64, work: &Work, traffic: &Traffic, measures: &Measures) {
    println!("soak, mode {mode}, {seconds} s");
    for (name, done, wanted) in work.counts() {
        println!("  {name:<44} {done:>8} of {wanted}");
    }
    let (first, last) = measures.memory;
    println!(
        "  {:<44} {first:>8.1} MiB, {last:.1} MiB in the end",
        "resident memory of the daemon that lived"
    );
    let (first, last) = (total(&measures.elements.0), total(&measures.elements.1));
    println!("  {:<44} {first:>8}, {last} in the end", "elements in the kernel");
    differences(&measures.elements).iter().for_each(|line| println!("    {line}"));
    let (first, last) = measures.slab;
    println!(
        "  {:<44} {first:>8.0} MiB, {last:.0} MiB in the end",
        "slabs of the whole machine (not judged)"
    );
    println!("  {:<44} {:>8}", "operations of restarts without changes", work.drift);
    println!("  {:<44} {:>8} of {}", "failed connections", traffic.failed, traffic.opened);
    println!("  {:<44} {:>8} of {}", "held connections that broke", traffic.broken, traffic.held);
}

fn total(elements: &Elements) -> u64 {
    elements.values().sum()
}

fn judge(work: &Work, traffic: &Traffic, measures: &Measures) -> Result<()> {
    let flat = |(first, last): (f64, f64)| last <= first * (1.0 + GROWTH);
    let (before, after) = (total(&measures.elements.0), total(&measures.elements.1));
    let mut broken = Vec::new();
    let mut limit = |holds: bool, what: &str| broken.extend((!holds).then(|| what.to_owned()));
    limit(work.counts().iter().all(|(_, done, wanted)| done >= wanted), "not all of the work was done");
    limit(flat(measures.memory), "the daemon's memory grew");
    limit(before > 0 && flat((before as f64, after as f64)), "the kernel has more elements than before");
    limit(work.drift == 0, "the kernel's state differed from the plan");
    limit(traffic.failed == 0 && traffic.broken == 0, "connections failed");
    limit(traffic.opened > 0, "no connection was opened");
    ensure!(broken.is_empty(), "{}:\n{}", broken.join("; "), traffic.first_failures.join("\n"));
    Ok(())
}
