//! All steps but probes.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::Execution;
use crate::capture::Capture;
use crate::case::{CaptureStep, CapturedStep, ConntrackStep, HeldStep, HoldStep, HttpStep, RunStep, Step};
use crate::expect::{self, Unmet};
use crate::interrupt;
use crate::objects::Key;
use crate::target::{From, Proto};

impl Execution<'_> {
    pub(super) fn step(&mut self, step: &Step) -> Result<()> {
        self.check_time()?;
        match step {
            Step::Probe(probe) | Step::Alternate(probe) => self.probe(probe),
            Step::Apply(yaml) => self.lab.apply(yaml),
            Step::Delete(items) => items.iter().try_for_each(|item| {
                self.lab.delete(&Key::new(&item.kind, item.namespace.as_deref(), &item.name))
            }),
            Step::Hold(hold) => self.hold(hold, true),
            Step::Sendto(hold) => self.hold(hold, false),
            Step::Held(held) => self.held(held),
            Step::Kill(node) => self.lab.kill_proxy(node),
            Step::Stop(node) => self.lab.stop_proxy(node),
            Step::Start(node) => self.lab.start_proxy(node, self.config()),
            Step::Run(run) => self.run_program(run),
            Step::Http(http) => self.http(http),
            Step::Conntrack(conntrack) => self.conntrack(conntrack),
            Step::Capture(capture) => self.capture(capture),
            Step::Captured(captured) => self.captured(captured),
            Step::Wait(time) => self.wait(*time),
        }
    }

    /// Proxies must survive a wait too, and their end is noticed at once.
    fn wait(&mut self, time: Duration) -> Result<()> {
        interrupt::sleep(time)?;
        self.lab.check_proxies()
    }

    fn hold(&mut self, hold: &HoldStep, connected: bool) -> Result<()> {
        let expected = format!("a connection from {} to {}", hold.from, hold.to);
        self.poll(hold.within, |execution| {
            let opened = execution.lab.agent(&hold.from)?.hold(&hold.id, hold.to, connected);
            Ok(opened.map_err(|error| Unmet { expected: expected.clone(), observed: format!("{error:#}") }))
        })?;
        self.holds.insert(hold.id.clone(), (hold.from.clone(), hold.to.proto == Proto::Udp));
        Ok(())
    }

    fn held(&mut self, held: &HeldStep) -> Result<()> {
        let known = self.holds.get(&held.id).cloned();
        let (place, datagrams) =
            known.ok_or_else(|| anyhow!("no connection is held with the id {}", held.id))?;
        self.poll(held.within, |execution| {
            Ok(expect::held(held, datagrams, &execution.lab.agent(&place)?.held(&held.id)?))
        })
    }

    /// A program runs once, unless its output is awaited.
    fn run_program(&mut self, run: &RunStep) -> Result<()> {
        let within = if run.expect_stdout.is_some() { run.within } else { Some(Duration::ZERO) };
        self.poll(within, |execution| Ok(expect::run(run, &execution.lab.run(&run.node, &run.argv)?)))
    }

    fn http(&mut self, http: &HttpStep) -> Result<()> {
        let node = From::Host(http.node.clone());
        self.poll(http.within, |execution| {
            Ok(match execution.lab.agent(&node)?.http_get(&http.url) {
                Ok(answer) => expect::http(http, &answer),
                Err(error) => {
                    let expected = format!("status {}", http.status.unwrap_or(200));
                    Err(Unmet { expected, observed: format!("no answer: {error:#}") })
                }
            })
        })
    }

    fn conntrack(&mut self, conntrack: &ConntrackStep) -> Result<()> {
        let family = if conntrack.orig.is_ipv6() { "ipv6" } else { "ipv4" };
        let argv = ["conntrack", "-L", "-f", family, "-p", conntrack.proto.name()].map(str::to_owned);
        self.poll(conntrack.within, |execution| {
            let finished = execution.lab.run(&conntrack.node, &argv)?;
            if !finished.status.success() {
                bail!("conntrack -L: {}", finished.stderr.trim());
            }
            Ok(expect::conntrack(conntrack, &finished.stdout))
        })
    }

    fn capture(&mut self, capture: &CaptureStep) -> Result<()> {
        let file = self.lab.dir().join(format!("capture-{}.pcap", self.captures_made));
        self.captures_made += 1;
        let namespace = self.lab.namespace(&From::Host(capture.node.clone()));
        let running = Capture::start(&namespace, &capture.dev, &capture.filter, file)?;
        self.captures.insert(capture.id.clone(), running);
        Ok(())
    }

    fn captured(&mut self, captured: &CapturedStep) -> Result<()> {
        let capture =
            self.captures.remove(&captured.id).with_context(|| format!("no capture {}", captured.id))?;
        let packets = capture.finish()?;
        expect::captured(captured, packets.count, &packets.verbose, &packets.first(20))?;
        Ok(())
    }
}
