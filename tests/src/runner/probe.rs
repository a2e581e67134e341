//! The steps `probe` and `alternate`, and the packets of a failed one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::Execution;
use crate::address::NodeAddresses;
use crate::agent::protocol::{Outcome, ProbeRequest};
use crate::capture::Capture;
use crate::case::ProbeStep;
use crate::expect::{self, Senders, Verdict};
use crate::target::{From, Proto, Target};

/// How many packets of a failed probe are shown for each namespace.
const SHOWN: usize = 20;

impl Execution<'_> {
    pub(super) fn probe(&mut self, step: &ProbeStep) -> Result<()> {
        let same_as = match &step.same_as {
            Some(id) => {
                Some(self.answered.get(id).cloned().ok_or_else(|| anyhow!("probe {id} got no answer"))?)
            }
            None => None,
        };
        let mut answered = BTreeSet::new();
        let look = |execution: &mut Self| {
            let seen = execution.one_try(step)?;
            answered =
                seen.iter().flat_map(|seen| expect::endpoints(seen).into_keys().map(str::to_owned)).collect();
            Ok(execution.judge(step, same_as.as_ref(), &seen))
        };
        if step.always { self.always(step.within, look) } else { self.poll(step.within, look) }?;
        if let Some(id) = &step.id {
            self.answered.insert(id.clone(), answered);
        }
        Ok(())
    }

    /// One try: what became of the connections to each destination.
    fn one_try(&self, step: &ProbeStep) -> Result<Vec<Vec<Outcome>>> {
        let interval = step.interval.unwrap_or_default();
        let request = ProbeRequest {
            dests: step.to.clone(),
            count: step.connections(),
            interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
            parallel: step.fails.is_some(),
            stop_at_failure: step.fails.is_none(),
        };
        let mut seen = vec![Vec::new(); step.to.len()];
        for attempt in self.lab.probe(&step.from, request, step.via.as_deref())? {
            let Some(target) = step.to.get(attempt.dest) else { continue };
            if let Some(seen) = seen.get_mut(attempt.dest) {
                seen.push(self.named(step, *target, attempt.outcome));
            }
        }
        Ok(seen)
    }

    /// Names whoever replied to an ICMP echo: the owner of the address, else the node that answers
    /// for it.
    fn named(&self, step: &ProbeStep, target: Target, mut outcome: Outcome) -> Outcome {
        if let (Proto::Icmp, Outcome::Answer(answer)) = (target.proto, &mut outcome) {
            let topology = self.lab.topology();
            let pod = topology.pods.iter().find(|(_, pod)| pod.addresses().any(|addr| addr == target.addr));
            answer.pod = match pod {
                Some((name, _)) => name.clone(),
                None if crate::address::CLIENT.contains(&target.addr) => "client".to_owned(),
                None => topology.balancing_node(&step.from, step.via.as_deref(), target.addr).to_owned(),
            };
        }
        outcome
    }

    fn judge(&self, step: &ProbeStep, same_as: Option<&BTreeSet<String>>, seen: &[Vec<Outcome>]) -> Verdict {
        // Not cut short by a failure, or only the destinations before it would be judged on what
        // they still owe.
        let broken = step.fails.is_none()
            && seen.iter().flatten().any(|outcome| !matches!(outcome, Outcome::Answer(_)));
        for (target, seen) in step.to.iter().zip(seen) {
            let all_fine = seen.iter().all(|outcome| matches!(outcome, Outcome::Answer(_)));
            if broken && all_fine {
                continue;
            }
            let senders = self.senders(step, target.addr);
            expect::probe(step, &senders, same_as, seen).map_err(|mut unmet| {
                if step.to.len() > 1 {
                    unmet.observed = format!("{target}: {}", unmet.observed);
                }
                unmet
            })?;
        }
        Ok(())
    }

    fn senders(&self, step: &ProbeStep, dest: IpAddr) -> Senders {
        let topology = self.lab.topology();
        let node = topology.balancing_node(&step.from, step.via.as_deref(), dest);
        Senders {
            original: topology.own_addresses(&step.from),
            node: NodeAddresses::of(node).map(|node| node.all().to_vec()).unwrap_or_default(),
            node_or_original: self.lab.mode() == "ebpf" && step.from != From::Client,
        }
    }

    /// Repeats one attempt of a failed probe under tcpdump, where it starts and where it is
    /// balanced.
    pub(super) fn first_packets(&mut self, step: &ProbeStep) -> BTreeMap<String, String> {
        let Some(target) = step.to.first().copied() else { return BTreeMap::new() };
        let node = self.lab.topology().balancing_node(&step.from, step.via.as_deref(), target.addr);
        let balancer = From::Host(node.to_owned());
        let places: BTreeSet<From> = [step.from.clone(), balancer].into();
        let mut packets = BTreeMap::new();
        let mut captures = Vec::new();
        for place in places {
            let file = self.lab.dir().join(format!("failed-{}.pcap", captures.len()));
            let filter = match target.proto {
                Proto::Icmp => "icmp or icmp6".to_owned(),
                proto => format!("{} or icmp or icmp6", proto.name()),
            };
            match Capture::start(&self.lab.namespace(&place), "any", &filter, file) {
                Ok(capture) => captures.push((place, capture)),
                Err(error) => drop(packets.insert(format!("in {place}"), format!("not captured: {error:#}"))),
            }
        }
        let request = ProbeRequest {
            dests: vec![target],
            count: 1,
            interval_ms: 0,
            parallel: false,
            stop_at_failure: false,
        };
        let again = self.lab.probe(&step.from, request, step.via.as_deref());
        std::thread::sleep(Duration::from_millis(50));
        for (place, capture) in captures {
            let text = capture
                .finish()
                .map(|packets| packets.first(SHOWN))
                .unwrap_or_else(|error| format!("{error:#}"));
            let text = if text.is_empty() { "none".to_owned() } else { text };
            packets.insert(format!("in {place}"), text);
        }
        let outcomes: Vec<Outcome> =
            again.unwrap_or_default().into_iter().map(|attempt| attempt.outcome).collect();
        packets.insert("what became of it".to_owned(), expect::describe(&outcomes));
        packets
    }
}
