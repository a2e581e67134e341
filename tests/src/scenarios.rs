//! Scenarios: what happens around a proxy in a cluster (controllers at work, an API server in
//! trouble, a proxy that is exchanged or killed under load), each as a program with a lab and a
//! real API server.

mod backends;
mod controllers;
mod draining;
mod ipvs;
mod migration;
mod outage;
mod pod_network;
mod pods;
mod restart;
mod stage;
mod traffic;
mod types;
mod watch;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sluice_skips::Why;

use crate::cluster::Cluster;
use crate::cluster::tools::Tools;
use crate::expect::Unmet;
use crate::lab::plugin::PodNetwork;
use crate::lab::{Lab, LabOptions};
use crate::report::{CaseReport, Ending, Failure, Report, seconds};
use crate::{interrupt, needs};
use stage::Stage;

/// Lines of each log that a failure shows.
const LOG_LINES: usize = 15;

/// One scenario.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// What `--only` calls it
    pub name: &'static str,
    /// Where it is written
    file: &'static str,
    /// Features of the machine that it needs
    needs: &'static [&'static str],
    /// The lab, as the `topology` of a case
    topology: &'static str,
    /// It takes minutes
    long: bool,
    /// Who wires pods and joins nodes
    pod_network: PodNetwork,
    body: fn(&mut Stage) -> Result<()>,
}

impl Scenario {
    /// What scenarios under traffic have in common: its topology, and nothing else that is special.
    const fn under_traffic(file: &'static str) -> Self {
        Self {
            name: "",
            file,
            needs: &[],
            topology: traffic::TOPOLOGY,
            long: false,
            pod_network: PodNetwork::Lab,
            body: |_| Ok(()),
        }
    }
}

/// What a run needs.
#[derive(Debug)]
pub struct Options {
    /// Sluice and the agent
    pub lab: LabOptions,
    /// The programs of a cluster
    pub tools: Tools,
    /// Also what takes minutes
    pub long: bool,
}

/// All scenarios, in the order they are run.
fn all() -> impl Iterator<Item = Scenario> {
    let groups = [
        controllers::ALL,
        draining::ALL,
        types::ALL,
        restart::ALL,
        backends::ALL,
        migration::ALL,
        ipvs::ALL,
        watch::ALL,
        outage::ALL,
        pod_network::ALL,
    ];
    groups.concat().into_iter()
}

/// The scenarios of these names; all of them where none is given.
pub fn select(names: &[String]) -> Result<Vec<Scenario>> {
    if let Some(unknown) = names.iter().find(|name| !all().any(|scenario| scenario.name == **name)) {
        let known: Vec<&str> = all().map(|scenario| scenario.name).collect();
        bail!("no scenario {unknown}; there are {}", known.join(", "));
    }
    Ok(all().filter(|scenario| names.is_empty() || names.iter().any(|name| name == scenario.name)).collect())
}

/// Runs scenarios one after the other, on one API server as long as it lives.
pub fn run_all(scenarios: &[Scenario], options: &Options, report: &Report) {
    let mut cluster = None;
    for scenario in scenarios {
        if interrupt::requested() {
            return;
        }
        let started = Instant::now();
        let ending = run_selected(scenario, options, &mut cluster);
        report.add(CaseReport {
            name: scenario.name.to_owned(),
            file: PathBuf::from(scenario.file),
            seconds: seconds(started.elapsed()),
            ending,
        });
    }
}

fn run_selected(scenario: &Scenario, options: &Options, cluster: &mut Option<Rc<Cluster>>) -> Ending {
    if scenario.long && !options.long {
        return Ending::Skipped(Why::choice("it takes minutes: use --long"));
    }
    for need in scenario.needs {
        match needs::missing(need) {
            Ok(None) => {}
            Ok(Some(lack)) => return Ending::Skipped(lack),
            Err(error) => return failed(&error),
        }
    }
    match stage(scenario, options, cluster) {
        Ok(mut stage) => perform(scenario, &mut stage),
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> Ending {
    Ending::Failed(Box::new(Failure { reason: Some(format!("{error:#}")), ..Failure::default() }))
}

fn stage(scenario: &Scenario, options: &Options, cluster: &mut Option<Rc<Cluster>>) -> Result<Stage> {
    let cluster = match cluster {
        Some(running) if running.api().ready().is_ok() => Rc::clone(running),
        other => {
            // The old one goes first: memory and cores are for one.
            *other = None;
            Rc::clone(other.insert(Rc::new(Cluster::start(&options.tools).context("no API server")?)))
        }
    };
    let lab = LabOptions { pod_network: scenario.pod_network, ..options.lab.clone() };
    let topology = serde_saphyr::from_str(scenario.topology).context("the scenario's topology")?;
    let lab = Lab::create_with(&topology, lab, Rc::clone(&cluster))?;
    Ok(Stage::new(lab, cluster, options.tools.clone(), options.lab.proxy.clone()))
}

fn perform(scenario: &Scenario, stage: &mut Stage) -> Ending {
    let done =
        catch_unwind(AssertUnwindSafe(|| (scenario.body)(stage).and_then(|()| stage.lab.check_proxies())));
    let Ok(done) = done else {
        return Ending::Failed(Box::new(Failure {
            reason: Some("the scenario panicked (see stderr)".to_owned()),
            ..stage.failure(LOG_LINES)
        }));
    };
    let Err(error) = done else { return Ending::Passed };
    let mut failure = stage.failure(LOG_LINES);
    match error.downcast_ref::<Unmet>() {
        Some(unmet) => {
            failure.expected = Some(unmet.expected.clone());
            failure.observed = Some(unmet.observed.clone());
        }
        None => failure.reason = Some(format!("{error:#}")),
    }
    Ending::Failed(Box::new(failure))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::topology::Topology;

    #[test]
    fn names_are_unique_and_topologies_and_needs_are_good() {
        let names: BTreeSet<&str> = all().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), all().count());
        for scenario in all() {
            let topology: Topology = serde_saphyr::from_str(scenario.topology).unwrap();
            topology.check().unwrap_or_else(|error| panic!("{}: {error}", scenario.name));
            scenario.needs.iter().for_each(|need| needs::check_name(need).unwrap());
        }
    }

    #[test]
    fn selection() {
        assert_eq!(select(&[]).unwrap().len(), all().count());
        let first = all().next().unwrap().name.to_owned();
        assert_eq!(select(std::slice::from_ref(&first)).unwrap().len(), 1);
        assert!(select(&["teapot".to_owned()]).is_err());
    }
}
