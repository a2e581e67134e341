//! The IPVS backend's driver: applies the ledger's steps to IPVS, the dummy link and our nf_tables
//! table.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use sluice_core::ipvs::{
    DestinationKey, Ledger, Load, Observed, Op, SchedulerName, ServerKey, Steps, concerned,
};
use sluice_core::lang::nftables;
use sluice_core::nft::{self, TABLE, quarantine};
use sluice_core::plan::{PlanChange, ServicePlan};
use sluice_sys::dummy::{AddressChange, Link, LinkError};
use sluice_sys::ipvs::{Ipvs, IpvsError, sysctls};
use sluice_sys::netlink::{BatchError, NetlinkError, Refusals};
use sluice_sys::nft::{Nft, observe, without_present};
use sluice_sys::steering::{Packets, RuleChange, Steering};
use tracing::{debug, info, warn};

use super::apart::{commit_apart, is_refusal};
use super::nftables::commit;
use super::{Applied, Backend, BackendError, Checked, Checks, Done, Known, Refused};
use crate::config::Settings;
use crate::http::health::Progress;
use crate::node::addresses::IPVS_LINK;
use crate::service::facts::{self, NodeFacts};

/// The backend.
pub struct IpvsBackend {
    nft: Nft,
    ipvs: Ipvs,
    link: Link,
    steering: Steering,
    /// The node's addresses, which its own processes have towards what rules of routing lead here.
    sources: [Option<IpAddr>; 2],
    sticky: SchedulerName,
    ledger: Ledger,
    progress: Progress,
}

fn ledger(settings: &Settings, facts: &NodeFacts, sticky: SchedulerName) -> Ledger {
    let (config, view) = (facts::nft_config(settings, facts), facts::node_view(settings, facts));
    let ruleset = nft::Ledger::new(config, view);
    Ledger::new(facts::ipvs_config(settings, sticky), facts::ipvs_view(settings, facts), ruleset)
}

/// What needs full privileges: IPVS with the scheduler, the link, and sysctls. All that is missing
/// is named at once.
pub fn prepare(settings: &Settings) -> Result<Ipvs, BackendError> {
    let mut missing = Vec::new();
    let ipvs = match Ipvs::open() {
        Ok(mut ipvs) => {
            let scheduler = settings.ipvs.scheduler;
            if !ipvs.has_scheduler(scheduler)? {
                missing.push(format!(
                    "ipvs.scheduler: the kernel has no scheduler \"{scheduler}\"; on the node, run: modprobe \
                     ip_vs_{scheduler}, or choose another"
                ));
            }
            Some(ipvs)
        }
        Err(IpvsError::Missing(error)) => {
            missing.push(error.to_string());
            None
        }
        Err(error) => return Err(error.into()),
    };
    match Link::open(IPVS_LINK) {
        Ok(_) => {}
        Err(LinkError::Missing(error)) => missing.push(error.to_string()),
        Err(error) => return Err(error.into()),
    }
    let Some(ipvs) = ipvs.filter(|_| missing.is_empty()) else { return Err(BackendError::NoIpvs(missing)) };
    for (name, value) in sysctls::apply(settings.ipvs.strict_arp)? {
        info!(name, value, "sysctl set");
    }
    Ok(ipvs)
}

/// The scheduler of virtual servers by mark that clients shall stick to.
fn sticky(ipvs: &mut Ipvs, settings: &Settings) -> Result<SchedulerName, BackendError> {
    for scheduler in [SchedulerName::MAGLEV, SchedulerName::SOURCE_HASH] {
        if ipvs.has_scheduler(scheduler)? {
            return Ok(scheduler);
        }
    }
    warn!(
        "the kernel has neither ip_vs_mh nor ip_vs_sh: with externalTrafficPolicy Local, pods and this \
         node get no ClientIP affinity"
    );
    Ok(settings.ipvs.scheduler)
}

/// How many lists of virtual servers are looked at before something is taken for missing: while
/// other network namespaces delete theirs, the kernel passes over some.
const LISTS: usize = 4;

/// Whether something was refused because it is there already.
fn is_about_what_is_there(refusals: &Refusals<Op>) -> bool {
    refusals.0.iter().any(|refusal| {
        matches!(refusal.item, Op::AddServer(_) | Op::AddDestination(..))
            && refusal.error.errno() == Some(libc::EEXIST)
    })
}

/// The operations that are for the link.
fn of_addresses(ops: &[Op]) -> impl Iterator<Item = (Op, AddressChange)> {
    ops.iter().filter_map(|op| match *op {
        Op::BindAddress(ip) => Some((*op, AddressChange::Bind(ip))),
        Op::UnbindAddress(ip) => Some((*op, AddressChange::Unbind(ip))),
        _ => None,
    })
}

/// Those that are for rules of routing, which virtual servers by mark do not need.
fn of_rules(ops: &[Op]) -> impl Iterator<Item = (Op, RuleChange)> {
    let packets = |key| match key {
        ServerKey::Address(address, protocol, port) => Some(Packets { address, protocol, port }),
        ServerKey::Mark(..) => None,
    };
    ops.iter().filter_map(move |op| match *op {
        Op::LeadHere(key) => Some((*op, RuleChange::LeadHere(packets(key)?))),
        Op::LetPass(key) => Some((*op, RuleChange::LetPass(packets(key)?))),
        _ => None,
    })
}

/// The virtual servers whose packets rules of routing lead here.
fn led(steering: &mut Steering) -> Result<Vec<ServerKey>, NetlinkError> {
    let key = |to: Packets| ServerKey::Address(to.address, to.protocol, to.port);
    Ok(steering.led()?.into_iter().map(key).collect())
}

impl Backend for IpvsBackend {
    fn report_to(&mut self, progress: Progress) {
        self.progress = progress;
    }

    fn full(
        &mut self,
        settings: &Settings,
        facts: &NodeFacts,
        plans: &[Arc<ServicePlan>],
        known: &Known,
    ) -> Result<Done, BackendError> {
        for _ in 1..LISTS {
            match self.full_by_one_list(settings, facts, plans, known)? {
                (_, Some(refusals)) if is_about_what_is_there(&refusals) => {
                    debug!("IPVS did not list some of its virtual servers: {refusals}");
                }
                (done, refusals) => return self.told(done, refusals, plans),
            }
        }
        let (done, refusals) = self.full_by_one_list(settings, facts, plans, known)?;
        self.told(done, refusals, plans)
    }

    fn change(&mut self, changes: &[PlanChange]) -> Result<Applied, BackendError> {
        let steps = self.ledger.change(changes);
        self.apply(&steps)
    }

    fn set_node(&mut self, settings: &Settings, facts: &NodeFacts) -> Result<Option<Applied>, BackendError> {
        let (is, shall) = (self.ledger.node(), facts::ipvs_view(settings, facts));
        let same = *self.ledger.ruleset().config() == facts::nft_config(settings, facts)
            && is.own_addresses == shall.own_addresses
            && is.node_port_addresses == shall.node_port_addresses
            && is.others.listed == shall.others.listed;
        if !same {
            return Ok(None);
        }
        if is.others != shall.others {
            let steps = self.ledger.set_others(shall.others, facts::node_view(settings, facts));
            return Ok(Some(self.apply(&steps)?));
        }
        let ops = self.ledger.ruleset_mut().set_node(facts::node_view(settings, facts));
        Ok(Some(commit(&mut self.nft, &ops, &self.progress)?))
    }

    /// Whether destinations are being drained, or chains wait to be deleted.
    fn has_garbage(&self) -> bool {
        self.ledger.draining().len() > 0 || self.ledger.ruleset().has_retired()
    }

    fn collect_garbage(&mut self) -> Result<Applied, BackendError> {
        let mut applied = Applied::default();
        while self.ledger.ruleset().has_retired() {
            let ops = self.ledger.ruleset_mut().delete_retired();
            applied += commit(&mut self.nft, &ops, &self.progress)?;
        }
        let keys: Vec<ServerKey> = self.ledger.draining().copied().collect();
        let loads = self.loads(&keys)?;
        let steps = self.ledger.delete_drained(&loads);
        applied += self.apply(&steps)?;
        Ok(applied)
    }

    fn checks(&self) -> Checks {
        Checks::Services
    }

    fn check(&mut self) -> Result<Checked, BackendError> {
        Ok(if self.agrees()? { Checked::Repaired(0) } else { Checked::Differs })
    }

    /// Nobody tells of changes of destinations.
    fn audit_period(&self, settings: &Settings) -> Option<Duration> {
        Some(settings.sync_period)
    }

    fn port(&self) -> Option<u32> {
        Some(self.nft.port())
    }
}

impl IpvsBackend {
    /// A backend that has written nothing but sysctls yet. Virtual servers of a predecessor go on
    /// as they are.
    pub fn open(settings: &Settings, facts: &NodeFacts) -> Result<Self, BackendError> {
        let mut ipvs = prepare(settings)?;
        let sticky = sticky(&mut ipvs, settings)?;
        ipvs.set_timeouts(settings.ipvs.timeouts)?;
        let link = Link::open(IPVS_LINK)?;
        info!(scheduler = %settings.ipvs.scheduler, link = IPVS_LINK, "IPVS is available");
        let ledger = ledger(settings, facts, sticky);
        let (steering, sources) = (Steering::open()?, facts::primary_addresses(settings, facts));
        let (nft, progress) = (Nft::open()?, Progress::default());
        Ok(IpvsBackend { nft, ipvs, link, steering, sources, sticky, ledger, progress })
    }

    /// Refused operations on virtual servers and addresses are told of the Services that they are
    /// about.
    fn told(
        &self,
        mut done: Done,
        refusals: Option<Refusals<Op>>,
        plans: &[Arc<ServicePlan>],
    ) -> Result<Done, BackendError> {
        let marks = self.ledger.ruleset().marks();
        let Some(refusals) = refusals else { return Ok(done) };
        let of = |op: &Op| concerned(op, plans, marks);
        let all: Vec<Refused> = refusals
            .0
            .iter()
            .map(|refusal| Refused { services: of(&refusal.item), why: refusal.error.to_string() })
            .collect();
        if all.iter().any(|refused| refused.services.is_empty()) {
            return Err(BatchError::Refused(refusals).into());
        }
        done.refused.extend(all);
        Ok(done)
    }

    fn full_by_one_list(
        &mut self,
        settings: &Settings,
        facts: &NodeFacts,
        plans: &[Arc<ServicePlan>],
        known: &Known,
    ) -> Result<(Done, Option<Refusals<Op>>), BackendError> {
        if *self.ledger.ruleset().config() != facts::nft_config(settings, facts) {
            self.ledger = ledger(settings, facts, self.sticky);
        }
        // Somebody may have deleted it.
        self.link = Link::open(IPVS_LINK)?;
        let observed = Observed {
            servers: self.ipvs.dump()?,
            addresses: self.link.addresses()?.into_iter().collect(),
            led: led(&mut self.steering)?,
            table: observe(&mut self.nft, &TABLE)?,
        };
        self.progress.made();
        let is_new = observed.table.is_none();
        let (view, of_ruleset) = (facts::ipvs_view(settings, facts), facts::node_view(settings, facts));
        let mut steps = self.ledger.reconcile(plans, observed, view, of_ruleset);
        self.sources = facts::primary_addresses(settings, facts);
        if self.ledger.leads() {
            // Somebody may have deleted it.
            self.steering.deliver(self.sources)?;
        }
        if !is_new {
            steps.ruleset = without_present(&mut self.nft, &TABLE, steps.ruleset)?;
        }
        let (mut done, mut refused) = (Done::default(), None);
        self.apply_servers(&steps.before, &mut done.applied, &mut refused)?;
        let ruleset = self.full_ruleset(std::mem::take(&mut steps.ruleset), is_new, plans, known)?;
        done.applied += ruleset.applied;
        done.refused = ruleset.refused;
        self.apply_behind(&steps, &mut done.applied, &mut refused)?;
        Ok((done, refused))
    }

    /// With `at_once` the ruleset is one transaction, if nothing of it is refused: one half of a
    /// new one refuses what the other half would let pass.
    fn full_ruleset(
        &mut self,
        ops: Vec<nftables::Op>,
        at_once: bool,
        plans: &[Arc<ServicePlan>],
        known: &Known,
    ) -> Result<Done, NetlinkError> {
        let is_one = at_once || ops.len() <= quarantine::TRANSACTION;
        if is_one && (at_once || known.suspects.is_empty()) {
            match self.nft.commit(&TABLE, &ops) {
                Ok(_) => return Ok(Applied { operations: ops.len(), transactions: 1 }.into()),
                Err(error) if is_refusal(&error) => {}
                Err(error) => return Err(error),
            }
        }
        commit_apart(&mut self.nft, self.ledger.ruleset(), ops, plans, known, &self.progress)
    }

    fn loads(
        &mut self,
        keys: &[ServerKey],
    ) -> Result<FxHashMap<(ServerKey, DestinationKey), Load>, BackendError> {
        let mut loads = FxHashMap::default();
        for key in keys {
            for observed in self.ipvs.destinations(key)? {
                loads.insert((*key, observed.destination.key), observed.load);
            }
        }
        Ok(loads)
    }

    /// Whether virtual servers and addresses are as they should be; nobody tells of changes that
    /// others make.
    fn agrees(&mut self) -> Result<bool, BackendError> {
        if Link::find(IPVS_LINK)?.is_none_or(|link| link.index() != self.link.index()) {
            return Ok(false);
        }
        let addresses: Vec<IpAddr> = self.link.addresses()?.into_iter().collect();
        let led = led(&mut self.steering)?;
        for _ in 0..LISTS {
            let servers: Vec<_> = self.ipvs.servers()?.into_iter().map(|observed| observed.server).collect();
            if self.ledger.agrees(&servers, &addresses, &led) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Applies steps. What is refused of virtual servers keeps nothing else from being done; it is
    /// told in the end.
    fn apply(&mut self, steps: &Steps) -> Result<Applied, BackendError> {
        let (mut applied, mut refused) = (Applied::default(), None);
        self.apply_servers(&steps.before, &mut applied, &mut refused)?;
        applied += commit(&mut self.nft, &steps.ruleset, &self.progress)?;
        self.apply_behind(steps, &mut applied, &mut refused)?;
        refused.map_or(Ok(applied), |refusals| Err(BatchError::Refused(refusals).into()))
    }

    /// Applies the steps behind the ruleset.
    fn apply_behind(
        &mut self,
        steps: &Steps,
        applied: &mut Applied,
        refused: &mut Option<Refusals<Op>>,
    ) -> Result<(), BackendError> {
        self.apply_servers(&steps.after, applied, refused)?;
        self.apply_servers(&steps.last, applied, refused)?;
        *applied += commit(&mut self.nft, &steps.closing, &self.progress)?;
        Ok(())
    }

    /// Applies operations on virtual servers, then those on addresses and on rules of routing.
    fn apply_servers(
        &mut self,
        ops: &[Op],
        applied: &mut Applied,
        refused: &mut Option<Refusals<Op>>,
    ) -> Result<(), BackendError> {
        if ops.is_empty() {
            return Ok(());
        }
        if ops.iter().any(|op| matches!(op, Op::LeadHere(_))) {
            self.steering.deliver(self.sources)?;
        }
        let servers = self.ipvs.apply(ops);
        self.progress.made();
        let addresses = self.link.apply(of_addresses(ops));
        self.progress.made();
        for result in [servers, addresses, self.steering.apply(of_rules(ops))] {
            match result {
                Ok(()) => {}
                Err(BatchError::Refused(refusals)) => match refused {
                    Some(refused) => refused.0.extend(refusals.0),
                    None => *refused = Some(refusals),
                },
                Err(error) => return Err(error.into()),
            }
        }
        *applied += Applied { operations: ops.len(), transactions: 1 };
        Ok(())
    }
}
