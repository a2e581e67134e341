//! Execution of cases: several labs at a time, steps in order, the first failure ends a case.

mod probe;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;
use sluice_skips::Why;

use crate::capture::Capture;
use crate::case::{Case, Step};
use crate::cluster::Cluster;
use crate::cluster::tools::Tools;
use crate::expect::{Unmet, Verdict};
use crate::interrupt;
use crate::known::KnownErrors;
use crate::lab::{Lab, LabOptions};
use crate::needs;
use crate::patience;
use crate::report::{CaseReport, Ending, Failure, Report, seconds};
use crate::target::From;

/// How long a polled expectation may take unless the case says otherwise.
const WITHIN: Duration = Duration::from_secs(5);
/// Between two looks.
const POLL: Duration = Duration::from_millis(50);
/// What a case may take beside the times it asks for.
const CASE_LIMIT: Duration = Duration::from_secs(180);

/// What a run needs beside its cases.
#[derive(Debug)]
pub struct RunOptions {
    /// The proxy and the agent
    pub lab: LabOptions,
    /// The programs of a cluster, where objects come from an API server
    pub tools: Option<Tools>,
    /// Cases that are wrong
    pub known: KnownErrors,
}

/// Executes the cases of some files, `jobs` at a time.
pub fn run_all(files: &[PathBuf], options: &RunOptions, jobs: usize, report: &Report) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, files.len().max(1)) {
            scope.spawn(|| {
                let mut cluster = None;
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if interrupt::requested() {
                        return;
                    }
                    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                    let started = Instant::now();
                    let (name, ending) = match Case::read(file) {
                        Ok(case) => {
                            let ending = run_selected(&case, options, &mut cluster);
                            (case.name, ending)
                        }
                        Err(error) => (
                            name,
                            failed(Failure {
                                line: error.line,
                                reason: Some(error.reason),
                                ..Failure::default()
                            }),
                        ),
                    };
                    report.add(CaseReport {
                        name,
                        file: file.clone(),
                        seconds: seconds(started.elapsed()),
                        ending,
                    });
                }
            });
        }
    });
}

fn failed(failure: Failure) -> Ending {
    Ending::Failed(Box::new(failure))
}

/// Executes a case unless it is to be skipped. `cluster` is this worker's API server, started when
/// first needed.
fn run_selected(case: &Case, options: &RunOptions, cluster: &mut Option<Rc<Cluster>>) -> Ending {
    let names = options.lab.proxy.names();
    if let Some(why) = names.iter().find_map(|name| options.known.skip_reason(&case.name, name)) {
        return Ending::Skipped(why);
    }
    if options.tools.is_some() && case.needs.iter().any(|need| need == needs::MANIFESTS) {
        return Ending::Skipped(Why::choice("needs manifests: an API server refuses its objects"));
    }
    if options.lab.pod_network.is_sluice() && case.needs.iter().any(|need| need == needs::LAB_LINKS) {
        return Ending::Skipped(Why::choice(
            "needs lab-links: sluice's plugin gives pods' links other names",
        ));
    }
    match case.skip_reason(&names) {
        Ok(None) => {}
        Ok(Some(why)) => return Ending::Skipped(why),
        Err(error) => return broken(&error),
    }
    if let (Some(tools), None) = (&options.tools, &cluster) {
        match Cluster::start(tools) {
            Ok(started) => *cluster = Some(Rc::new(started)),
            Err(error) => return broken(&error.context("no API server")),
        }
    }
    run_case(case, &options.lab, cluster.as_ref())
}

/// The ending of a case that could not even begin.
fn broken(error: &anyhow::Error) -> Ending {
    failed(Failure { reason: Some(format!("{error:#}")), ..Failure::default() })
}

/// Executes one case in a lab of its own, which is gone afterwards. With a cluster, objects are in
/// its API server.
#[must_use]
pub fn run_case(case: &Case, options: &LabOptions, cluster: Option<&Rc<Cluster>>) -> Ending {
    let run = || match Execution::run(case, options, cluster) {
        Ok(()) => Ending::Passed,
        Err(failure) => Ending::Failed(failure),
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        failed(Failure { reason: Some("the runner panicked (see stderr)".to_owned()), ..Failure::default() })
    })
}

/// A case under way.
struct Execution<'a> {
    case: &'a Case,
    lab: Lab,
    /// Held connections: where they were opened, and whether they are datagrams
    holds: BTreeMap<String, (From, bool)>,
    captures: BTreeMap<String, Capture>,
    captures_made: usize,
    /// Who answered the probes with an id
    answered: BTreeMap<String, BTreeSet<String>>,
    deadline: Instant,
}

impl<'a> Execution<'a> {
    fn run(case: &'a Case, options: &LabOptions, cluster: Option<&Rc<Cluster>>) -> Result<(), Box<Failure>> {
        let error = |error: anyhow::Error| {
            Box::new(Failure { reason: Some(format!("{error:#}")), ..Failure::default() })
        };
        let mut execution = Self::prepare(case, options, cluster).map_err(error)?;
        for (index, (line, step)) in case.steps.iter().enumerate() {
            let done = execution.step(step).and_then(|()| execution.lab.check_proxies());
            if let Err(error) = done {
                return Err(Box::new(execution.failure(index, *line, step, &error)));
            }
        }
        Ok(())
    }

    fn prepare(case: &'a Case, options: &LabOptions, cluster: Option<&Rc<Cluster>>) -> Result<Self> {
        let mut lab = match cluster {
            None => Lab::create(&case.topology, options.clone())?,
            Some(cluster) => Lab::create_with(&case.topology, options.clone(), Rc::clone(cluster))?,
        };
        lab.apply(&case.objects)?;
        lab.start_proxies(&case.config)?;
        // The time that expectations have is the proxy's to converge in, not the machine's to start
        // it.
        lab.await_first_syncs()?;
        let asked = case.steps.iter().map(|(_, step)| asked_time(step)).sum::<Duration>();
        let limit = patience::stretched(CASE_LIMIT + asked);
        Ok(Self {
            case,
            lab,
            holds: BTreeMap::new(),
            captures: BTreeMap::new(),
            captures_made: 0,
            answered: BTreeMap::new(),
            deadline: Instant::now() + limit,
        })
    }

    fn config(&self) -> &'a Value {
        &self.case.config
    }

    fn failure(&mut self, index: usize, line: u64, step: &Step, error: &anyhow::Error) -> Failure {
        let mut failure = Failure {
            line: Some(line),
            step: Some(index + 1),
            kind: Some(step.name().to_owned()),
            logs: self.lab.proxy_logs(10),
            ..Failure::default()
        };
        match error.downcast_ref::<Unmet>() {
            Some(unmet) => {
                failure.expected = Some(unmet.expected.clone());
                failure.observed = Some(unmet.observed.clone());
                if let Step::Probe(probe) | Step::Alternate(probe) = step {
                    failure.packets = self.first_packets(probe);
                }
            }
            None => failure.reason = Some(format!("{error:#}")),
        }
        failure
    }

    /// Looks until the expectation is met or the time is over. Looks at least once.
    fn poll(
        &mut self,
        within: Option<Duration>,
        mut look: impl FnMut(&mut Self) -> Result<Verdict>,
    ) -> Result<()> {
        let within = patience::stretched(within.unwrap_or(WITHIN));
        let mut end = Instant::now() + within;
        // A look may itself take the whole time, as a lost SYN does: one that fails is followed by
        // another.
        let mut last = within.is_zero();
        loop {
            self.check_time()?;
            let Err(unmet) = look(self)? else { return Ok(()) };
            let are_starting = self.lab.are_starting()?;
            if last {
                return Err(unmet.into());
            }
            if are_starting {
                // A step has started a proxy: the time counts from its first sync.
                end = Instant::now() + within;
            }
            last = Instant::now() >= end;
            interrupt::sleep(POLL)?;
        }
    }

    /// Looks over and over until the time is over; every look must find the expectation met. Looks
    /// at least once.
    fn always(
        &mut self,
        within: Option<Duration>,
        mut look: impl FnMut(&mut Self) -> Result<Verdict>,
    ) -> Result<()> {
        let end = Instant::now() + within.unwrap_or_default();
        loop {
            self.check_time()?;
            look(self)??;
            if Instant::now() >= end {
                return Ok(());
            }
            interrupt::sleep(POLL)?;
        }
    }

    fn check_time(&self) -> Result<()> {
        if interrupt::requested() {
            bail!("interrupted");
        }
        if Instant::now() > self.deadline {
            bail!("the case exceeds its time limit");
        }
        Ok(())
    }
}

/// The time that a step asks for by its own words.
fn asked_time(step: &Step) -> Duration {
    let within = match step {
        Step::Wait(time) => Some(*time),
        Step::Probe(probe) | Step::Alternate(probe) => {
            let connections = u32::try_from(probe.connections() * probe.to.len()).unwrap_or(u32::MAX);
            // The last try may begin just before the time is over.
            let tries = probe.interval.unwrap_or_default().saturating_mul(connections).saturating_mul(2);
            Some(tries + probe.within.unwrap_or(WITHIN))
        }
        Step::Hold(hold) | Step::Sendto(hold) => hold.within,
        Step::Held(held) => held.within,
        Step::Run(run) => run.within,
        Step::Http(http) => http.within,
        Step::Conntrack(conntrack) => conntrack.within,
        _ => None,
    };
    within.unwrap_or_default()
}
